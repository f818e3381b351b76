/** `npm run phone` and `npm run rpc` as processes, in a small copy of the tutorial. */

import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { WebSocketServer } from "ws";
import { closeServer, listen } from "../practice/web.ts";
import type { WorldFile } from "../practice/world.ts";

const PROJECT = join(import.meta.dirname, "..");

/** A section of our own: a bot that repeats what it hears, in groups only when it is meant. */
const SECTION = `
  import { createDecipheriv, createHash } from "node:crypto";
  import { createServer } from "node:http";
  import { Bot } from "grammy";
  const { env } = process;
  const answer = (text, files) =>
    text === "silence" ? [] : text === "twice" ? ["one", "two"] : ["You said: " + (text || files)];

  const bot = new Bot(env.TELEGRAM_BOT_TOKEN, { client: { apiRoot: env.TELEGRAM_API_ROOT } });
  bot.on("message", async (ctx) => {
    const { chat, text, caption = "", photo, reply_to_message: to } = ctx.message;
    const words = text ?? caption;
    if (chat.id < 0 && !words.includes("@practice_bot") && to?.from.id !== ctx.me.id) return;
    await ctx.replyWithChatAction("typing");
    for (const part of answer(words, photo && "a photo")) await ctx.reply(part.slice(0, 60));
  });
  void bot.start();

  async function feishu(path, body, token) {
    const headers = token && { authorization: "Bearer " + token };
    const url = env.FEISHU_API_BASE + "/open-apis/" + path;
    return (await fetch(url, { method: "POST", headers, body: JSON.stringify(body) })).json();
  }
  async function send(chat, text) {
    const app = { app_id: env.FEISHU_APP_ID, app_secret: env.FEISHU_APP_SECRET };
    const { tenant_access_token: token } = await feishu("auth/v3/tenant_access_token/internal", app);
    const message = { receive_id: chat, msg_type: "text", content: JSON.stringify({ text }) };
    await feishu("im/v1/messages?receive_id_type=chat_id", message, token);
  }
  const server = createServer(async (request, response) => {
    let raw = "";
    for await (const chunk of request) raw += chunk;
    response.end("{}");
    const bytes = Buffer.from(JSON.parse(raw).encrypt, "base64");
    const key = createHash("sha256").update(env.FEISHU_ENCRYPT_KEY).digest();
    const cipher = createDecipheriv("aes-256-cbc", key, bytes.subarray(0, 16));
    const { message } = JSON.parse(cipher.update(bytes.subarray(16)) + cipher.final()).event;
    const meant = message.mentions?.some((one) => one.id.open_id === env.FEISHU_BOT_OPEN_ID);
    if (message.chat_type === "group" && !meant && !message.parent_id) return;
    const content = JSON.parse(message.content);
    for (const part of answer(content.text, content.image_key)) await send(message.chat_id, part);
  });
  server.listen(Number(env.HTTP_PORT), "127.0.0.1", () => {
    console.log("settings " + JSON.stringify([env.TELEGRAM_ALLOWED_CHATS, env.FEISHU_ALLOWED_CHATS,
      env.REMOTE_TOOLS, env.GATEWAY_TOKEN.length]));
  });
  process.stdin.on("end", () => process.exit()).resume();
`;

let root: string;
const running = new Set<ChildProcess>();

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "practice-phone-"));
  cpSync(join(PROJECT, "practice"), join(root, "practice"), { recursive: true });
  symlinkSync(join(PROJECT, "node_modules"), join(root, "node_modules"), "junction");
  writeFileSync(join(root, "package.json"), '{ "type": "module" }');
  mkdirSync(join(root, "workspace"));
  mkdirSync(join(root, "sessions", "en"), { recursive: true });
  cpSync(join(PROJECT, "sessions", "names.ts"), join(root, "sessions", "names.ts"));
  for (const name of ["s03_sessions", "s04_channels", "s05_gateway"]) {
    const code = name.startsWith("s03")
      ? 'console.log("settings"); process.stdin.resume();'
      : SECTION;
    writeFileSync(join(root, "sessions", "en", `${name}.ts`), code);
  }
});

/** On Windows a folder can't go while a process has it as its working directory. */
async function endAll(): Promise<void> {
  const ends = [...running].map((child) => {
    const end = new Promise((resolve) => child.once("close", resolve));
    child.kill("SIGKILL");
    return end;
  });
  await Promise.all(ends);
}

afterAll(async () => {
  await endAll();
  rmSync(root, { recursive: true, force: true, maxRetries: 5 });
});

const worldFile = () => join(root, ".practice", "world.json");
const readWorld = (): WorldFile => JSON.parse(readFileSync(worldFile(), "utf8"));

/** A process whose output can be waited for. */
function launch(script: string, ...args: string[]) {
  const path = join(root, "practice", script);
  const child = spawn(process.execPath, ["--import", "tsx", path, ...args], {
    cwd: root,
    env: { ...process.env, ANTHROPIC_API_KEY: "" },
  });
  running.add(child);
  let output = "";
  const watchers = new Set<() => void>();
  const more = (chunk: string): void => {
    output += chunk.replaceAll("\r", "");
    for (const watch of watchers) watch();
  };
  child.stdout.setEncoding("utf8").on("data", more);
  child.stderr.setEncoding("utf8").on("data", more);
  const done = new Promise<{ code: number | null; output: string }>((resolve) => {
    child.once("close", (code) => {
      running.delete(child);
      resolve({ code, output });
      for (const watch of watchers) watch();
    });
  });
  const says = (wanted: string, times = 1): Promise<string> =>
    new Promise((resolve, reject) => {
      const watch = (): void => {
        const found = output.split(wanted).length > times;
        if (!found && running.has(child)) return;
        watchers.delete(watch);
        if (found) resolve(output);
        else reject(new Error(`It ended without "${wanted}":\n${output}`));
      };
      watchers.add(watch);
      watch();
    });
  return { child, done, says };
}

/** Runs to the end, with some lines as its input. */
async function run(script: string, args: string[], input = "") {
  const { child, done } = launch(script, ...args);
  child.stdin.on("error", () => {}); // it may be gone before it has read anything
  child.stdin.end(input);
  return await done;
}

async function startSection(section: string) {
  const started = launch("start.ts", section);
  const output = await started.says("settings");
  return { ...started, output };
}

describe("the world from s04 on", () => {
  afterEach(endAll);

  it("has the fake platforms, and the section gets their settings", async () => {
    const { child, done, output } = await startSection("s04");
    expect(output).toContain("npm run phone -- telegram alice");
    expect(output).toContain(
      'settings ["1001,1002,-1001000000001","oc_alice,oc_bob,oc_family","",0]',
    );
    expect(readWorld()).toEqual({
      pid: child.pid,
      url: expect.stringMatching(/^http:/),
      startedAt: expect.any(String),
      user: "s04 (en)",
      telegram: expect.stringMatching(/^http:/),
      feishu: expect.stringMatching(/^http:/),
    });
    child.stdin.end();
    expect((await done).code).toBe(0);
  });

  it("says so where there are no channels or no gateway yet", async () => {
    const early = await startSection("s03");
    expect(await run("phone.ts", ["telegram", "alice"])).toEqual({
      code: 1,
      output: "s03 (en) has no channels yet: npm start -- s04 has.\n",
    });
    early.child.kill("SIGKILL");
    await early.done;
    expect((await run("phone.ts", ["feishu", "bob"])).output).toContain("No practice world");
    const { output } = await startSection("s04");
    expect(output).toContain("settings");
    expect((await run("rpc.ts", ["status"])).output).toBe(
      "s04 (en) has no gateway yet: npm start -- s05 has.\n",
    );
  });
});

describe("npm run phone", () => {
  let section: Awaited<ReturnType<typeof startSection>>;

  beforeAll(async () => {
    section = await startSection("s04");
  });

  afterAll(endAll);

  it("is a person on Telegram", async () => {
    const lines = ["hello", "twice", "/photo look", "/photo", "/reply what?", "quit", "never"];
    const { code, output } = await run("phone.ts", ["telegram", "alice"], `${lines.join("\n")}\n`);
    expect(output).toBe(
      [
        "alice > bot is typing …\nbot > You said: hello",
        "alice > bot is typing …\nbot > one\nbot > two",
        "alice > bot is typing …\nbot > You said: look",
        "alice > bot is typing …\nbot > You said: a photo",
        "alice > bot is typing …\nbot > You said: what?",
        "alice > ",
      ].join("\n"),
    );
    expect(code).toBe(0);
  });

  it("is a person on Feishu", async () => {
    const { output } = await run("phone.ts", ["feishu", "bob"], "你好\n/photo\n");
    expect(output).toBe("bob > bot > You said: 你好\nbob > bot > You said: img_practice_1\nbob > ");
  });

  it.each(["telegram", "feishu"])("is one of a group on %s", async (platform) => {
    const input = "/reply hm?\nhello all\n@practice_bot hello\n/reply why?\n";
    const args = [platform, "alice", "--group"];
    const { output } = await run("phone.ts", args, input);
    const [first, second, third, fourth] = output.split("alice > ").slice(1);
    expect(first).toBe("The bot has sent nothing here yet.\n");
    expect(second).toBe(""); // the bot was not meant
    expect(third).toMatch(/You said: @(practice_bot|_user_1) hello\n$/);
    expect(fourth).toMatch(/You said: why\?\n$/);
  });

  it("shows what comes while nobody types", async () => {
    const phone = launch("phone.ts", "telegram", "alice", "--group");
    await phone.says("alice > ");
    await run("phone.ts", ["telegram", "bob", "--group"], "@practice_bot it is me\n");
    const output = await phone.says("alice > ", 2);
    expect(output).toContain("alice > \nbot is typing …\n");
    await phone.says("\nbot > You said: @practice_bot it is me\nalice > ");
    phone.child.stdin.end();
    expect((await phone.done).code).toBe(0);
  });

  it("explains itself", async () => {
    for (const args of [["--help"], ["fax", "alice"], ["telegram", "a b"]]) {
      expect((await run("phone.ts", args)).output).toContain("npm run phone -- telegram alice");
    }
  });

  it.skipIf(process.platform === "win32")("does not destroy the line being typed", async () => {
    const { spawn: open } = await import("@lydell/node-pty");
    const args = ["--import", "tsx", "practice/phone.ts", "telegram", "alice"];
    const terminal = open(process.execPath, args, { cwd: root, cols: 60, rows: 20 });
    let output = "";
    const watchers = new Set<() => void>();
    terminal.onData((data) => {
      output += data;
      for (const watch of watchers) watch();
    });
    const says = (wanted: string): Promise<void> =>
      new Promise((resolve) => {
        const watch = (): void => {
          if (!output.includes(wanted)) return;
          watchers.delete(watch);
          resolve();
        };
        watchers.add(watch);
        watch();
      });
    await says("alice > ");
    terminal.write("half a li");
    await says("half a li");
    output = "";
    await run("phone.ts", ["telegram", "alice"], "hello\n");
    await says("bot > You said: hello\r\n");
    expect(output.slice(output.indexOf("You said"))).toContain("alice > half a li");
    output = "";
    terminal.write("ne\r");
    await says("bot > You said: half a line");
    const exit = new Promise((resolve) => terminal.onExit(resolve));
    terminal.write("quit\r");
    await exit;
  });

  it("leaves when the world ends", async () => {
    const phone = launch("phone.ts", "feishu", "alice");
    await phone.says("alice > ");
    section.child.stdin.end();
    await section.done;
    const { code, output } = await phone.done;
    expect(code).toBe(0);
    expect(output).toContain("The practice world has ended.");
  });
});

describe("npm run rpc", () => {
  let server: Server;
  let sockets: WebSocketServer;
  const requests: { url: string; message: unknown }[] = [];

  /** A gateway of our own; the world's file names it. */
  beforeEach(async () => {
    requests.length = 0;
    server = createServer();
    sockets = new WebSocketServer({
      server,
      verifyClient: ({ req }: { req: { url?: string } }) => req.url !== "/?token=wrong",
    });
    sockets.on("connection", (socket, { url = "" }) => {
      const send = (message: object): void => socket.send(JSON.stringify(message));
      socket.on("message", (data) => {
        const message = JSON.parse(String(data));
        requests.push({ url, message });
        const { id, method } = message;
        if (method === "hang up") return socket.close(1011);
        if (method === "fail") {
          const error = { code: -32602, message: "text is missing", data: { parameter: "text" } };
          return send({ jsonrpc: "2.0", id, error });
        }
        send({ jsonrpc: "2.0", method: "typing", params: { id } });
        for (const text of ["Hel", "lo"]) {
          send({ jsonrpc: "2.0", method: "delta", params: { id, text } });
        }
        send({ jsonrpc: "2.0", method: "news", params: { a: 1 } });
        send({ jsonrpc: "2.0", id, result: { ok: true } });
      });
    });
    const address = (await listen(server)).replace("http", "ws");
    const world = { pid: process.pid, user: "s05 (en)", gateway: `${address}/?token=secret` };
    mkdirSync(join(root, ".practice"), { recursive: true });
    writeFileSync(worldFile(), JSON.stringify(world));
  });

  afterEach(async () => {
    for (const socket of sockets.clients) socket.terminate();
    await closeServer(server);
  });

  it("calls a method and prints what is said on the way", async () => {
    const { code, output } = await run("rpc.ts", ["send", "text=hi there", "channel=telegram"]);
    expect(output).toBe('typing …\nHello\nnews {"a":1}\n{\n  "ok": true\n}\n');
    expect(code).toBe(0);
    const params = { text: "hi there", channel: "telegram" };
    const message = { jsonrpc: "2.0", id: 1, method: "send", params };
    expect(requests).toEqual([{ url: "/?token=secret", message }]);
  });

  it("tells numbers from texts", async () => {
    const words = "priority=5 topK=3 all=true text=5 peerId=1001 matchValue=telegram:123 x=a=b y=";
    await run("rpc.ts", ["bindings.set", ...words.split(" ")]);
    expect(requests[0]?.message).toMatchObject({
      params: {
        ...{ priority: 5, topK: 3, all: true, text: "5", peerId: "1001" },
        ...{ matchValue: "telegram:123", x: "a=b", y: "" },
      },
    });
  });

  it("says what went wrong", async () => {
    const failed = await run("rpc.ts", ["fail"]);
    expect(failed.code).toBe(1);
    expect(failed.output).toBe('-32602: text is missing\n{\n  "parameter": "text"\n}\n');
    expect((await run("rpc.ts", ["hang up"])).output).toMatch(/closed the connection \(1011\)/);
    expect((await run("rpc.ts", ["send", "hi"])).output).toContain('"hi" is no parameter');
    expect((await run("rpc.ts", [])).output).toContain("npm run rpc -- status");
    const port = new URL(readWorld().gateway ?? "").host;
    const refused = await run("rpc.ts", ["status", `--url=ws://${port}/?token=wrong`]);
    expect(refused.code).toBe(1);
    expect(refused.output).toMatch(/can't be reached: Unexpected server response: 401/);
    expect(refused.output).not.toContain("wrong");
    const nobody = await run("rpc.ts", ["status", "--url=ws://127.0.0.1:9/"]);
    expect(nobody.output).toMatch(/^The gateway at 127\.0\.0\.1:9 can't be reached: .+\n$/);
  });

  it("is told the address and the token by npm start", async () => {
    await startSection("s05");
    const { gateway } = readWorld();
    expect(gateway).toMatch(/^ws:\/\/127\.0\.0\.1:\d+\/\?token=[\da-f]{32}$/);
    await endAll();
  });
});
