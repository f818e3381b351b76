/**
 * `npm run rpc -- send text=hi` calls one method of the gateway that `npm start -- s05` runs, by
 * JSON-RPC 2.0 over a WebSocket, and prints the answer.
 */

import { WebSocket } from "ws";
import { requireWorld, UserError } from "./world.ts";

const HELP = `npm run rpc -- status
npm run rpc -- send text="what time is it?" channel=telegram peerId=1001
npm run rpc -- bindings.set agentId=sage matchKey=peerId matchValue=telegram:1002 priority=5
npm run rpc -- bindings.list | sessions.list | agents.list

It finds the gateway that npm start has started; --url=ws://host:port/?token=… names another.`;

/** An answer, which has the id of its request, or a notification, which has a method. */
interface RpcMessage {
  id?: unknown;
  method?: string;
  params?: Record<string, unknown>;
  result?: unknown;
  error?: { code: number; message: string; data?: unknown };
}

/** Parameters that are texts also if they look like a number, as the id of a chat does. */
const TEXT_PARAMETERS = /^(text|query|channel|label)$|(Id|Key|Value)$/;

/** Reads `priority=5 text=hi` as { priority: 5, text: "hi" }. */
function readParams(words: string[]): Record<string, unknown> {
  const pairs = words.map((word): [string, unknown] => {
    const [, name = "", value = ""] = /^([\w.]+)=(.*)$/s.exec(word) ?? [];
    if (!name) throw new UserError(`"${word}" is no parameter: say name=value.`);
    if (TEXT_PARAMETERS.test(name)) return [name, value];
    try {
      return [name, JSON.parse(value)]; // a number, true, a list
    } catch {
      return [name, value];
    }
  });
  return Object.fromEntries(pairs);
}

/** The WebSocket address: the one of --url, or the one of the running world. */
function findGateway(words: string[]): string {
  const given = words.find((word) => word.startsWith("--url="))?.slice("--url=".length);
  if (given) return given;
  const world = requireWorld();
  if (world.gateway) return world.gateway;
  throw new UserError(`${world.user} has no gateway yet: npm start -- s05 has.`);
}

/** Whether the cursor is within a line, because a streamed reply need not end with a line break. */
let midLine = false;

function print(text: string): void {
  process.stdout.write(`${midLine ? "\n" : ""}${text}\n`);
  midLine = false;
}

function printNotification({ method = "", params = {} }: RpcMessage): void {
  if (method === "delta") {
    const text = String(params.text ?? "");
    process.stdout.write(text);
    if (text !== "") midLine = !text.endsWith("\n");
  } else if (method === "typing") {
    print("typing …");
  } else {
    print(`${method} ${JSON.stringify(params)}`);
  }
}

/** Calls a method and gives the answer. Notifications that come before it are printed. */
function call(url: string, method: string, params: Record<string, unknown>): Promise<RpcMessage> {
  const { host } = new URL(url); // errors name the host only, because the address has the token
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.once("open", () => {
      socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }));
    });
    socket.on("message", (data) => {
      const message = JSON.parse(String(data)) as RpcMessage; // as JSON-RPC 2.0 defines it
      if (message.method !== undefined) return printNotification(message);
      socket.close();
      resolve(message);
    });
    socket.once("error", (error) => {
      reject(new UserError(`The gateway at ${host} can't be reached: ${error.message || error}.`));
    });
    socket.once("close", (code) => {
      reject(new UserError(`The gateway at ${host} closed the connection (${code}).`));
    });
  });
}

try {
  const [method, ...words] = process.argv.slice(2).filter((word) => !word.startsWith("--url="));
  if (!method || method === "--help" || method === "-h") throw new UserError(HELP);
  const { result, error } = await call(findGateway(process.argv), method, readParams(words));
  if (error) {
    const data = error.data === undefined ? "" : `\n${JSON.stringify(error.data, null, 2)}`;
    throw new UserError(`${error.code}: ${error.message}${data}`);
  }
  print(JSON.stringify(result, null, 2));
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  if (midLine) console.log();
  console.error(error.message);
  process.exitCode = 1;
}
