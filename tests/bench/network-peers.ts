/** The gateway beside a bare WebSocket server, and a start and a reply beside the packages alone. */

import { execFile } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { promisify } from "node:util";
import Anthropic from "@anthropic-ai/sdk";
import { WebSocket, WebSocketServer } from "ws";
import { startModel } from "../../practice/model.ts";
import * as section from "../../sessions/en/s10_concurrency.ts";
import { type Row, sideBySide } from "./time.ts";

const ROOT = path.join(import.meta.dirname, "../..");
const REQUESTS = 64; // in each round, by all clients together
const TOKEN = "a token of the benchmark";
const STATUS = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "status" });

type App = Parameters<section.GatewayServer["attach"]>[1];

/** What "status" looks at, and no more. */
function statusApp(folder: string, gateway: section.GatewayServer): App {
  const channels = new section.ChannelManager();
  const inbox = new section.Inbox(path.join(folder, `inbox of ${Math.random()}`));
  return { channels, gateway, inbox } as unknown as App;
}

async function connect(port: number, count: number): Promise<WebSocket[]> {
  const headers = { authorization: `Bearer ${TOKEN}` };
  const clients = Array.from(
    { length: count },
    () => new WebSocket(`ws://127.0.0.1:${port}/`, { headers }),
  );
  await Promise.all(clients.map((client) => once(client, "open")));
  return clients;
}

/** Each client sends its next request when it has the answer to the one before. */
async function askInTurn(clients: WebSocket[], expected: string): Promise<void> {
  const one = async (client: WebSocket) => {
    for (let sent = 0; sent < REQUESTS / clients.length; sent++) {
      const answer = new Promise((resolve) => client.once("message", resolve));
      client.send(STATUS);
      if (!String(await answer).includes(expected)) throw new Error("another answer came");
    }
  };
  await Promise.all(clients.map(one));
}

async function listen(attach: (server: ReturnType<typeof createServer>) => void) {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  attach(server);
  return { server, port: (server.address() as AddressInfo).port };
}

export async function gatewayRow(count: number, folder: string): Promise<Row> {
  const gateway = new section.GatewayServer(TOKEN);
  const ours = await listen((server) => gateway.attach(server, statusApp(folder, gateway)));
  const theirs = await listen((server) => {
    const echo = new WebSocketServer({ server });
    echo.on("connection", (socket) => socket.on("message", (data) => socket.send(String(data))));
  });
  const clients = await connect(ours.port, count);
  const others = await connect(theirs.port, count);
  const times = await sideBySide(
    151,
    () => askInTurn(clients, '"result"'),
    () => askInTurn(others, '"status"'),
  );
  for (const client of [...clients, ...others]) client.terminate();
  for (const { server } of [ours, theirs]) server.close();
  const what = `gateway, ${REQUESTS} times \`status\`, ${count} client${count > 1 ? "s" : ""}`;
  return { what, peer: "echo with bare `ws`", ...times };
}

/** A process of its own, because a module is loaded once in each. */
async function evaluate(code: string): Promise<void> {
  const args = ["--import", import.meta.resolve("tsx"), "--input-type=module", "-e", code];
  await promisify(execFile)(process.execPath, args, { cwd: ROOT });
}

export async function startRow(): Promise<Row> {
  const packages = ["@anthropic-ai/sdk", "cron-parser", "dotenv", "grammy", "undici", "ws", "yaml"];
  const imports = packages.map((name) => `import "${name}";`).join("");
  const file = path.join(ROOT, "sessions/en/s10_concurrency.ts");
  const times = await sideBySide(
    5,
    () => evaluate(`import ${JSON.stringify(file)};`),
    () => evaluate(imports),
  );
  return { what: "start: s10 imported", peer: "the same packages imported", ...times };
}

/** Until the first piece of a reply: a turn of ours, and a stream of the SDK. */
export async function replyRow(): Promise<Row> {
  const model = await startModel();
  process.env.ANTHROPIC_API_KEY = "sk-practice";
  process.env.ANTHROPIC_BASE_URL = model.url;
  const client = new Anthropic();
  const first = (begin: (onText: () => void) => Promise<unknown>) =>
    new Promise<void>((resolve, reject) => void begin(resolve).catch(reject));
  const request = {
    ...{ model: "claude-sonnet-5-5", max_tokens: 8192, tools: section.TOOLS },
    messages: [{ role: "user" as const, content: "hello" }],
  };
  const times = await sideBySide(
    31,
    () => first((onText) => section.runTurn(new section.Conversation(), "hello", { onText })),
    () => first((onText) => client.messages.stream(request).on("text", onText).finalMessage()),
  );
  await model.close();
  return { what: "first piece of a reply", peer: "the bare SDK", ...times };
}
