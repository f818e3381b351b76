/**
 * `npm run rpc -- send text=hi` calls one method of the gateway that `npm start -- s05` runs, by
 * JSON-RPC 2.0 over a WebSocket, and prints the answer.
 */

import { WebSocket } from "ws";
import { readOptions, runTool } from "./command-line.ts";
import type { Texts } from "./texts.ts";
import { UserError } from "./world.ts";
import { requireWorld } from "./world-client.ts";

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

/** How long the gateway may say nothing, in seconds. */
const TIMEOUT = 10;

/** Reads `priority=5 text=hi` as { priority: 5, text: "hi" }. */
function readParams(words: string[], { rpc }: Texts): Record<string, unknown> {
  const pairs = words.map((word): [string, unknown] => {
    const [, name = "", value = ""] = /^([\w.]+)=(.*)$/s.exec(word) ?? [];
    if (!name) throw new UserError(rpc.badParameter(word));
    if (TEXT_PARAMETERS.test(name)) return [name, value];
    try {
      return [name, JSON.parse(value)]; // a number, true, a list
    } catch {
      return [name, value];
    }
  });
  return Object.fromEntries(pairs);
}

/** Whether the cursor is within a line, because a streamed reply need not end with a line break. */
let midLine = false;

function endLine(): void {
  if (midLine) console.log();
  midLine = false;
}

function print(text: string): void {
  endLine();
  console.log(text);
}

function printNotification({ method = "", params = {} }: RpcMessage, { rpc }: Texts): void {
  if (method === "delta") {
    const text = String(params.text ?? "");
    process.stdout.write(text);
    if (text !== "") midLine = !text.endsWith("\n");
  } else if (method === "typing") {
    print(rpc.typing);
  } else {
    print(`${method} ${JSON.stringify(params)}`);
  }
}

/** Calls a method and gives the answer. Notifications that come before it are printed. */
function call(url: string, request: object, seconds: number, texts: Texts): Promise<RpcMessage> {
  const { host } = new URL(url); // errors name the host only, because the address has the token
  const socket = new WebSocket(url);
  const { rpc } = texts;
  const calling = new Promise<RpcMessage>((resolve, reject) => {
    const giveUp = (): void => reject(new UserError(rpc.gaveUp(host, seconds)));
    const timer = setTimeout(giveUp, seconds * 1000);
    socket.once("open", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, ...request })));
    socket.on("message", (data) => {
      timer.refresh();
      const message = JSON.parse(String(data)) as RpcMessage; // as JSON-RPC 2.0 defines it
      if (message.method === undefined) resolve(message);
      else printNotification(message, texts);
    });
    const fail = (why: string): void => reject(new UserError(rpc.unreachable(host, why)));
    socket.once("error", (error) => fail(error.message || String(error)));
    socket.once("close", (code) => {
      clearTimeout(timer);
      reject(new UserError(rpc.closed(host, code)));
    });
  });
  return calling.finally(() => {
    socket.terminate(); // a gateway that hangs would not answer a close either
    endLine();
  });
}

const value = { type: "string" } as const;
const help = { type: "boolean", short: "h" } as const;
const OPTIONS = { url: value, timeout: value, lang: value, help } as const;

async function main(args: string[], texts: Texts): Promise<void> {
  const { values, positionals } = readOptions(args, OPTIONS, texts, texts.rpc.help);
  const [method, ...words] = positionals;
  if (!method || values.help) throw new UserError(texts.rpc.help);
  const params = readParams(words, texts);
  const seconds = Number(values.timeout ?? TIMEOUT);
  if (!(seconds > 0)) throw new UserError(texts.duration("--timeout", values.timeout ?? ""));
  const url = values.url ?? (await findGateway(texts));
  const { result, error } = await call(url, { method, params }, seconds, texts);
  if (!error) return print(JSON.stringify(result, null, 2));
  const data = error.data === undefined ? "" : `\n${JSON.stringify(error.data, null, 2)}`;
  throw new UserError(`${error.code}: ${error.message}${data}`);
}

async function findGateway(texts: Texts): Promise<string> {
  const { gateway, section } = await requireWorld(texts);
  if (gateway) return gateway;
  throw new UserError(texts.rpc.noGateway(section?.user));
}

await runTool(main);
