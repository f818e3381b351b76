/** `npm run phone` and `npm run rpc` as processes, in a small copy of the tutorial. */

import { createServer, type Server } from "node:http";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { type WebSocket, WebSocketServer } from "ws";
import { closeServer, listen } from "../practice/web.ts";
import { Copy, PROMPTS, suspend } from "./practice-copy.ts";

vi.setConfig({ testTimeout: 60_000 });

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
    console.log("process " + process.pid + "; settings " + JSON.stringify([env.TELEGRAM_ALLOWED_CHATS, env.FEISHU_ALLOWED_CHATS,
      env.REMOTE_TOOLS, env.GATEWAY_TOKEN.length]));
  });
  process.stdin.on("end", () => process.exit()).resume();
`;

const copy = new Copy();

beforeAll(() => {
  copy.section("en", "s03_sessions", 'console.log("settings"); process.stdin.resume();');
  for (const name of ["s04_channels", "s05_gateway"]) copy.section("en", name, SECTION);
});

afterAll(() => copy.remove());

async function startSection(section: string) {
  const started = copy.launch("start.ts", [section]);
  const output = await started.says(/settings.*\n/);
  const [, pid] = /process (\d+)/.exec(output) ?? [];
  return { ...started, output, pid };
}

const phone = (...args: string[]) => copy.launch("phone.ts", args);

const WAITS =
  "(No section is running, so your messages wait. " +
  "npm start -- s04 starts one, and so does each section up to s10.)";

describe("the world and its sections", () => {
  afterEach(() => copy.endAll());

  it("has the fake platforms, and the section gets their settings", async () => {
    const { child, done, output } = await startSection("s04");
    expect(output).toContain("npm run phone -- telegram alice");
    expect(output).toContain(
      'settings ["1001,1002,-1001000000001","oc_alice,oc_bob,oc_family","",0]',
    );
    child.stdin.end();
    expect((await done).code).toBe(0);
  });

  it("says so where there are no channels or no gateway yet", async () => {
    const early = await startSection("s03");
    expect((await copy.run("phone.ts", ["telegram", "alice"])).output).toBe(
      "(s03 (en) has no channels, so your messages wait. " +
        "npm start -- s04 starts one, and so does each section up to s10.)\nalice > ",
    );
    early.child.stdin.end();
    await early.done;
    expect((await copy.run("rpc.ts", ["status"])).output).toBe(
      "No section is running: npm start -- s05 has one.\n",
    );
    await startSection("s04");
    expect((await copy.run("rpc.ts", ["status"])).output).toBe(
      "s04 (en) has no gateway: npm start -- s05 has one.\n",
    );
  });

  it.each(["telegram", "feishu"])(
    "what waits on %s is answered by the next section",
    async (platform) => {
      const alice = phone(platform, "alice");
      await alice.says(`${WAITS}\nalice > `);
      alice.child.stdin.write("hello\n");
      await alice.says(WAITS, 2);
      await startSection("s04");
      await alice.says("bot > You said: hello");
      alice.child.stdin.end();
      expect((await alice.done).code).toBe(0);
    },
  );

  it("the phone stays open when a section is killed, and the answer arrives there", async () => {
    const first = await startSection("s04");
    const alice = phone("telegram", "alice");
    await alice.says("alice > ");
    alice.child.stdin.write("one\n");
    await alice.says("bot > You said: one");
    expect((await copy.run("knobs.ts", ["kill"])).output).toBe(
      `Killed s04 (en), process ${first.pid}, with SIGKILL.\n`,
    );
    await first.done;
    alice.child.stdin.write("two\n");
    await alice.says(WAITS);
    await startSection("s04");
    await alice.says("bot > You said: two");
    // A phone that is switched on later shows the chat.
    const { output } = await copy.run("phone.ts", ["telegram", "alice", "--lang", "zh"]);
    const lines = [
      "alice > one",
      "机器人 > You said: one",
      "alice > two",
      "机器人 > You said: two",
    ];
    expect(output).toBe(`${lines.join("\n")}\nalice > `);
    alice.child.stdin.end();
    await alice.done;
  });

  it("a phone shows the last twenty lines of its chat", async () => {
    const typed = Array.from({ length: 23 }, (_, i) => `line ${i + 1}`);
    await copy.run("phone.ts", ["telegram", "bob"], `${typed.join("\n")}\n`);
    const { output } = await copy.run("phone.ts", ["telegram", "bob"]);
    const shown = typed.slice(-20).map((line) => `bob > ${line}\n`);
    expect(output).toBe(`${shown.join("")}${WAITS}\nbob > `);
    const { output: other } = await copy.run("phone.ts", ["telegram", "alice"]);
    expect(other).toBe(`${WAITS}\nalice > `);
  });
});

describe("npm run phone", () => {
  beforeAll(async () => {
    await startSection("s04");
  });

  afterAll(() => copy.endAll());

  it("is a person on Telegram", async () => {
    const lines = ["hello", "twice", "/photo look", "/photo", "/reply what?", "quit", "never"];
    const { code, output } = await copy.run(
      "phone.ts",
      ["telegram", "alice"],
      `${lines.join("\n")}\n`,
    );
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
    const { output } = await copy.run("phone.ts", ["feishu", "bob"], "你好\n/photo\n");
    expect(output).toBe("bob > bot > You said: 你好\nbob > bot > You said: img_practice_1\nbob > ");
  });

  it.each(["telegram", "feishu"])("is one of a group on %s", async (platform) => {
    const input = "/reply hm?\nhello all\n@practice_bot hello\n/reply why?\n";
    const args = [platform, "alice", "--group"];
    const { output } = await copy.run("phone.ts", args, input);
    const [first, second, third, fourth] = output.split("alice > ").slice(1);
    expect(first).toBe("The bot has sent nothing here yet.\n");
    expect(second).toBe(""); // the bot was not meant
    expect(third).toMatch(/You said: @(practice_bot|_user_1) hello\n$/);
    expect(fourth).toMatch(/You said: why\?\n$/);
  });

  it("shows what comes while nobody types", async () => {
    await copy.endWorld();
    await startSection("s04");
    const alice = phone("telegram", "alice", "--group");
    await alice.says("alice > ");
    const line = "@practice_bot it is me\n";
    await copy.run("phone.ts", ["telegram", "bob", "--group"], line);
    const output = await alice.says("alice > ", 2);
    expect(output).toContain("alice > \nbot is typing …\n");
    await alice.says("\nbot > You said: @practice_bot it is me\nalice > ");
    alice.child.stdin.end();
    expect((await alice.done).code).toBe(0);
  });

  it("explains itself", async () => {
    for (const args of [["--help"], ["fax", "alice"], ["telegram", "a b"]]) {
      expect((await copy.run("phone.ts", args)).output).toContain(
        "npm run phone -- telegram alice",
      );
    }
  });

  it.skipIf(process.platform === "win32")("does not destroy the line being typed", async () => {
    const args = ["--import", "tsx", "practice/phone.ts", "telegram", "mallory"];
    const { says, type, output, exit } = copy.terminal(process.execPath, args);
    await says("mallory > ");
    type("half a li");
    await says("half a li");
    output.text = "";
    await copy.run("phone.ts", ["telegram", "mallory"], "hello\n");
    await says("bot > You said: hello\n");
    expect(output.text.slice(output.text.indexOf("You said"))).toContain("mallory > half a li");
    output.text = "";
    type("ne\r");
    await says("bot > You said: half a line");
    type("quit\r");
    await exit;
  });

  it.skipIf(process.platform === "win32")("lets the shell come back with Ctrl+Z", async () => {
    const shell = await copy.shell();
    // npm stands between the shell and the phone; here it is another process that waits.
    const wait =
      "require('child_process').spawnSync('node', process.argv.slice(1), {stdio:'inherit'})";
    shell.type(`node -e "${wait}" -- --import tsx practice/phone.ts telegram bob\r`);
    await shell.says(/^.*bob > /m);
    await suspend(shell);
    await shell.says("bob > ", 2);
    shell.type("hi\r");
    await shell.says("bot > You said: hi");
    shell.type("quit\r");
    await shell.says("shell> ", PROMPTS);
  });

  it("leaves when the world ends", async () => {
    const alice = phone("feishu", "alice");
    await alice.says("alice > ");
    await copy.run("knobs.ts", ["stop"]);
    const { code, output } = await alice.done;
    expect(code).toBe(0);
    expect(output).toContain("The practice world has ended.");
  });
});

describe("npm run rpc", () => {
  let server: Server;
  let sockets: WebSocketServer;
  const requests: { url: string; message: unknown }[] = [];

  let address = "";

  function answer(socket: WebSocket, { id, method }: { id: number; method: string }): void {
    const send = (message: object): void => socket.send(JSON.stringify(message));
    if (method === "hang") return;
    if (method === "hang up") socket.close(1011);
    const error = { code: -32602, message: "text is missing", data: { parameter: "text" } };
    if (method === "fail") send({ jsonrpc: "2.0", id, error });
    if (method === "hang up" || method === "fail") return;
    send({ jsonrpc: "2.0", method: "typing", params: { id } });
    for (const text of ["Hel", "lo"]) {
      send({ jsonrpc: "2.0", method: "delta", params: { id, text } });
    }
    send({ jsonrpc: "2.0", method: "news", params: { a: 1 } });
    send({ jsonrpc: "2.0", id, result: { ok: true } });
  }

  /** A gateway of our own. */
  beforeEach(async () => {
    requests.length = 0;
    server = createServer();
    sockets = new WebSocketServer({
      server,
      verifyClient: ({ req }: { req: { url?: string } }) => req.url !== "/?token=wrong",
    });
    sockets.on("connection", (socket, { url = "" }) => {
      socket.on("message", (data) => {
        const message = JSON.parse(String(data));
        requests.push({ url, message });
        answer(socket, message);
      });
    });
    address = `${(await listen(server)).replace("http", "ws")}/?token=secret`;
  });

  afterEach(async () => {
    for (const socket of sockets.clients) socket.terminate();
    await closeServer(server);
  });

  const rpc = (...args: string[]) => copy.run("rpc.ts", [`--url=${address}`, ...args]);

  it("calls a method and prints what is said on the way", async () => {
    const { code, output } = await rpc("send", "text=hi there", "channel=telegram");
    expect(output).toBe('typing …\nHello\nnews {"a":1}\n{\n  "ok": true\n}\n');
    expect(code).toBe(0);
    const params = { text: "hi there", channel: "telegram" };
    const message = { jsonrpc: "2.0", id: 1, method: "send", params };
    expect(requests).toEqual([{ url: "/?token=secret", message }]);
  });

  it("tells numbers from texts", async () => {
    const words = "priority=5 topK=3 all=true text=5 peerId=1001 matchValue=telegram:123 x=a=b y=";
    await rpc("bindings.set", ...words.split(" "));
    expect(requests[0]?.message).toMatchObject({
      params: {
        ...{ priority: 5, topK: 3, all: true, text: "5", peerId: "1001" },
        ...{ matchValue: "telegram:123", x: "a=b", y: "" },
      },
    });
  });

  it("says what went wrong", async () => {
    const failed = await rpc("fail");
    expect(failed.code).toBe(1);
    expect(failed.output).toBe('-32602: text is missing\n{\n  "parameter": "text"\n}\n');
    expect((await rpc("hang up")).output).toMatch(/closed the connection \(1011\)/);
    expect((await rpc("send", "hi")).output).toContain('"hi" is no parameter');
    expect((await copy.run("rpc.ts", [])).output).toContain("npm run rpc -- status");
    const port = new URL(address).host;
    const refused = await copy.run("rpc.ts", ["status", `--url=ws://${port}/?token=wrong`]);
    expect(refused.code).toBe(1);
    expect(refused.output).toMatch(/can't be reached: Unexpected server response: 401/);
    expect(refused.output).not.toContain("wrong");
    const nobody = await copy.run("rpc.ts", ["status", "--url=ws://127.0.0.1:9/"]);
    expect(nobody.output).toMatch(/^The gateway at 127\.0\.0\.1:9 can't be reached: .+\n$/);
  });

  it("gives up on a gateway that hangs, in three languages", async () => {
    const { host } = new URL(address);
    const said = {
      en: `The gateway at ${host} has said nothing for 0.5 s, so this command stops waiting.`,
      zh: `网关 ${host} 已有 0.5 秒没有数据，不再等待。`,
      ja: `ゲートウェイ${host}から0.5秒間応答がないため、待つのをやめます。`,
    };
    for (const [language, sentence] of Object.entries(said)) {
      const { code, output } = await rpc("hang", "--timeout=0.5", "--lang", language);
      expect(code).toBe(1);
      expect(output).toContain(sentence);
    }
  });

  it("finds the gateway of the section that runs, with its token", async () => {
    copy.section("en", "s05_gateway", GATEWAY);
    await startSection("s05");
    const { output } = await copy.run("rpc.ts", ["status"]);
    expect(JSON.parse(output)).toMatch(/^\/\?token=[\da-f]{32}$/);
    await copy.endAll();
  });
});

/** A section whose gateway says with which address it was called. */
const GATEWAY = `
  import { WebSocketServer } from "ws";
  const server = new WebSocketServer({ port: Number(process.env.HTTP_PORT), host: "127.0.0.1" });
  server.on("listening", () => console.log("process " + process.pid + "; settings"));
  server.on("connection", (socket, { url }) => {
    socket.on("message", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, result: url })));
  });
  process.stdin.on("end", () => process.exit()).resume();
`;
