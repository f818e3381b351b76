/** s04 as people run it: a program with a terminal and two platforms, on the English files. */

import { existsSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { closeServer, listen } from "../practice/web.ts";
import {
  blocks,
  changed,
  englishFrom,
  outline,
  settings,
  start,
  temporaryFolder,
} from "./helper.ts";
import { startProxy } from "./proxy.ts";
import { afterwards, echo, echoModel, marked, openWorld, platforms, unmarked } from "./world.ts";

const ANSI = new RegExp(String.fromCharCode(27));
const post = (port: number, path: string, body: string | Buffer = "{}") =>
  fetch(`http://127.0.0.1:${port}${path}`, { method: "POST", body });

describe.each(englishFrom("s04"))("$name, all channels at once", (section) => {
  it("answers each where it was asked", async () => {
    const world = await openWorld(section);
    const { telegram, model, program } = world;
    expect(program.text).toContain("telegram: ready");
    expect(program.text).toContain("feishu: ready");
    expect(await world.types("hello")).toContain("re: hello");

    world.telegramSays("alice", "hello");
    expect(await world.telegramHears("alice")).toBe("re: hello");
    expect(telegram.typing.at(-1)).toMatchObject({ chat: telegram.chatId("alice") });
    world.feishuSays("alice", "hello");
    expect(await world.feishuHears("alice")).toBe("re: hello");

    // Groups and topics; what is not meant for the bot is not asked.
    const asked = model.log.length;
    await world.telegramSays("alice", "dinner?", { group: "family" }).confirmed;
    await world.feishuSays("alice", "dinner?", { group: "family" }).first;
    world.telegramSays("bob", "@practice_bot you?", { group: "family" });
    expect(await world.telegramHears("family")).toBe("re: you?");
    world.feishuSays("bob", "@practice_bot you?", { group: "family" });
    expect(await world.feishuHears("family")).toBe("re: you?");
    for (const topic of [2, 3]) {
      world.telegramSays("bob", "@practice_bot here", { group: "club", topic });
      expect(await world.telegramHears("club")).toBe("re: here");
      expect(telegram.sent.at(-1)?.thread).toBe(topic);
    }
    expect(model.log.length - asked).toBe(4);
    // Each conversation knows of itself only; world.ts looks at every request.
    expect(outline(model.log.at(-1))).toHaveLength(1);
    world.telegramSays("alice", "again");
    await world.telegramHears("alice");
    expect(outline(model.log.at(-1)).map(unmarked)).toEqual([
      "user: hello",
      "assistant: re: hello",
      "user: again",
    ]);

    // An album, a long text, a picture without words, a sticker: a turn each.
    const pictures = model.log.length;
    telegram.album("alice", ["photo", "photo", "photo"], marked("telegram:alice", "our trip"));
    expect(await world.telegramHears("alice")).toBe("re: [photo] our trip\n[photo]\n[photo]");
    const long = "0123456789".repeat(900);
    telegram.say("alice", long);
    await telegram.nextSent("alice");
    const heard = outline(model.log.at(-1)).at(-1)?.replace(/\s/g, "");
    expect(heard).toBe(`user:${long}`);
    telegram.say("alice", "", { media: "photo" });
    telegram.say("alice", "", { media: "sticker" });
    expect(model.log.length - pictures).toBe(2);
    const hears = async (text: string) =>
      telegram.until(() => telegram.textsTo("alice").includes(text));
    await hears("re: [photo]");
    await hears("re: [sticker]");
    expect(model.log.length - pictures).toBe(4);

    expect(program.raw).not.toMatch(ANSI);
    expect(await program.finish("quit\n")).toMatchObject({ code: 0 });
  });

  it("keeps order, does not wait for others, and never says a thing twice", async () => {
    const world = await openWorld(section);
    const { telegram, feishu, model, program } = world;
    // Feishu hears its 200, and Telegram its confirmation, before the model has spoken.
    const alice = model.hold();
    const first = world.feishuSays("alice", "first");
    expect((await first.first).status).toBe(200);
    await alice.waiting;
    const second = world.feishuSays("alice", "second");
    expect((await second.first).status).toBe(200);
    expect(feishu.sent).toEqual([]);
    const bob = model.hold();
    await world.telegramSays("bob", "one").confirmed;
    await bob.waiting;
    await world.telegramSays("bob", "two").confirmed;
    world.telegramSays("alice", "meanwhile");
    expect(await world.telegramHears("alice")).toBe("re: meanwhile");
    expect(await world.types("and me?")).toContain("re: and me?");
    expect(telegram.textsTo("bob")).toEqual([]);
    // The same again while it is at work, under its own id and under another one.
    await feishu.again(first);
    await feishu.again(second, true);
    bob.release();
    alice.release();
    expect(await world.feishuHears("alice")).toBe("re: first");
    expect(await world.feishuHears("alice")).toBe("re: second");
    expect(await world.telegramHears("bob")).toBe("re: one");
    expect(await world.telegramHears("bob")).toBe("re: two");
    await feishu.again(first, true);
    await feishu.again(second);

    // A turn that fails is told in one message, and the next one is answered.
    world.telegramSays("bob", "now !fail");
    const told = await world.telegramHears("bob");
    expect(told).toMatch(/could not answer/);
    expect(told.split("\n")).toHaveLength(1);
    world.telegramSays("bob", "three");
    expect(await world.telegramHears("bob")).toBe("re: three");

    // A reply that can't be sent is said; the rest goes on.
    telegram.fail({ kind: "403", chat: "bob" });
    world.telegramSays("bob", "four");
    await program.until(/blocked by the user/);
    feishu.expireTokens();
    world.feishuSays("alice", "third");
    // From s08 on the owner, who wrote last on Feishu, is told so, too.
    const isTold = changed(section, "queue");
    if (isTold) expect(await world.feishuHears("alice")).toMatch(/telegram 1002 was not sent/);
    expect(await world.feishuHears("alice")).toBe("re: third");
    expect(feishu.textsTo("alice")).toHaveLength(isTold ? 4 : 3);
    await telegram.idle();
    await world.inboxDone();

    // After a restart the platforms send what they think was not heard.
    await world.restart();
    await feishu.again(first);
    await feishu.again(second, true);
    const update = telegram.updates[0]?.update;
    telegram.push("message", update?.message);
    world.feishuSays("alice", "fourth");
    expect(await world.feishuHears("alice")).toBe("re: fourth");
    await telegram.idle();
    expect(model.log.filter((one) => outline(one).at(-1)?.includes("user: first"))).toHaveLength(1);
    expect(world.requestsAbout("one §telegram:bob§")).toHaveLength(1);
    await world.inboxDone();
  });

  it("commands, accounts, tools and strangers", async () => {
    const world = await openWorld(section);
    const { telegram, model, program } = world;
    const channels = await program.ask("/channels");
    expect(channels).toMatch(/telegram +ready/);
    expect(channels).toMatch(/feishu +ready/);
    const accounts = await program.ask("/accounts");
    for (const name of ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"]) {
      expect(accounts).toContain(name);
      expect(accounts).not.toContain(world.settings[name]?.slice(0, 3));
    }
    expect(program.text).not.toContain(telegram.token);

    world.telegramSays("alice", "my name is Ada");
    await world.telegramHears("alice");
    telegram.say("alice", "/help");
    expect(await world.telegramHears("alice")).toContain("/new");
    telegram.say("alice", "/new");
    expect(await world.telegramHears("alice")).toMatch(/begins/);
    world.telegramSays("alice", "who am I?");
    await world.telegramHears("alice");
    expect(outline(model.log.at(-1))).toHaveLength(1);
    world.telegramSays("alice", "@practice_bot /new", { group: "family" });
    expect(await world.telegramHears("family")).toBe("re: /new");
    expect(await program.ask("/list")).toMatch(/^(\s*\[telegram .*\n)*\* \w{8} [^\n]*\n$/); // its own

    // The terminal is offered what the platforms are not, nor can they call it.
    await world.types("hi");
    const tools = () =>
      (model.log.at(-1)?.request.tools ?? []).map((tool) => "name" in tool && tool.name);
    expect(tools()).toContain("bash");
    const made = join(world.workspace, "made");
    model.brain = (request) => {
      const done = blocks(request.messages.at(-1)).some(({ type }) => type === "tool_result");
      const input = { command: `touch ${made}` };
      return done ? echo(request) : { content: [{ type: "tool_use", name: "bash", input }] };
    };
    world.telegramSays("alice", "do it");
    expect(await world.telegramHears("alice")).toBe("re: do it");
    expect(tools()).not.toContain("bash");
    expect(JSON.stringify(model.log.at(-1)?.request.messages.at(-1))).toContain("there is no tool");
    await world.types("do it");
    expect(JSON.stringify(model.log.at(-1)?.request.messages.at(-1))).not.toContain("is_error");
    model.brain = echo;

    for (const text of ["let me in", "please"]) await telegram.say("mallory", text).confirmed;
    const id = telegram.chatId("mallory");
    expect((await telegram.nextSent("mallory")).text).toContain(String(id));
    expect(program.text).toContain(`add ${id} to the list in TELEGRAM_ALLOWED_CHATS`);
    // What comes from outside is shown, but can neither draw nor forge a line.
    await telegram.say("alice", "x\u001b[2J\r\n[telegram 7] y").confirmed;
    await telegram.nextSent("alice");
    expect(program.raw).not.toMatch(ANSI);
    expect(program.text).not.toMatch(/^\[telegram 7\]/m);
    expect(telegram.textsTo("mallory")).toHaveLength(1);

    // The HTTP server says as little as it can.
    expect((await post(world.port, "/")).status).toBe(404);
    expect((await post(world.port, "/constructor")).status).toBe(404);
    expect((await fetch(`http://127.0.0.1:${world.port}/feishu/events`)).status).toBe(404);
    const large = await post(world.port, "/feishu/events", Buffer.alloc(65_537));
    expect(large.status).toBe(413);
    expect((await post(world.port, "/feishu/events", "no json")).status).toBe(401);
    expect((await world.feishu.challenge("c")).body).toContain('"c"');
  });
});

describe.each(englishFrom("s04"))("$name, when something is wrong at the start", (section) => {
  it("says that a token is wrong, that a port is taken, and runs the rest", async () => {
    const taken = createServer();
    const { port } = new URL(await listen(taken));
    afterwards(() => closeServer(taken));
    const world = await openWorld(section, {
      settings: { TELEGRAM_BOT_TOKEN: "1:wrong", HTTP_PORT: port },
    });
    const { program } = world;
    expect(program.text).toMatch(/telegram: .*401.*Unauthorized/);
    expect(program.text).not.toContain("feishu: ready"); // no event could come in
    expect(program.text).toMatch(/http: .*EADDRINUSE.*HTTP_PORT/);
    expect(program.text).not.toMatch(/listening|token=/);
    expect(program.text).not.toMatch(/^\s+at /m);
    expect(await world.types("still there?")).toContain("re: still there?");
    expect(await program.ask("/channels")).toMatch(/telegram +.*401/);
    expect(await program.finish()).toMatchObject({ code: 0 });
  });

  it("waits for a Telegram that is down, and answers the others meanwhile", async () => {
    const world = await openWorld(section, {
      settings: { FEISHU_APP_SECRET: "wrong" },
      prepare: (opening) => opening.telegram.fail({ kind: "hang", method: "getMe" }),
    });
    const { telegram } = world;
    expect(world.program.text).toMatch(/feishu: .*10014/);
    expect(world.program.text).toMatch(/telegram: (?!ready)/); // it is said that it is not up yet
    expect(await world.types("me first")).toContain("re: me first");
    world.telegramSays("alice", "and me");
    telegram.release();
    await world.program.until("telegram: ready");
    expect(await world.telegramHears("alice")).toBe("re: and me");
  });

  it("names HTTP_PORT if it is no number, and ends", async () => {
    const { code, text } = await start(section, settings(undefined, { HTTP_PORT: "abc" })).end();
    expect(code).toBe(1);
    expect(text).toContain("HTTP_PORT");
    expect(text).not.toMatch(/^\s+at /m);
  });
});

describe.each(englishFrom("s04"))("$name, a proxy", (section) => {
  it("may be set as curl takes it", async () => {
    const model = await echoModel();
    const { host, asked, close } = await startProxy();
    afterwards(close);
    const user = (name: string, password: string) =>
      `Basic ${Buffer.from(`${name}:${password}`).toString("base64")}`;
    const values: [Record<string, string>, string | undefined][] = [
      [{ HTTP_PROXY: host, HTTPS_PROXY: "localhost:9" }, undefined],
      [{ HTTP_PROXY: `HTTP://${host}`, HTTPS_PROXY: "Socks5h://localhost:9" }, undefined],
      [{ http_proxy: `http://ada:pa#s/s?@${host}`, HTTP_PROXY: "nowhere" }, user("ada", "pa#s/s?")],
    ];
    for (const [proxy, authorization] of values) {
      const { text } = await start(section, settings(model, proxy)).finish("hello\n");
      expect(text).toContain("re: hello");
      expect(asked.splice(0)[0]).toEqual({ target: new URL(model.url).host, authorization });
    }
  });

  it.each([
    ["HTTP_PROXY", "ftp://ada:secret@127.0.0.1:1"],
    ["HTTPS_PROXY", "127.0.0.1:99999"],
  ])("is named if it makes no sense: %s=%s", async (name, value) => {
    const { code, text } = await start(section, settings(undefined, { [name]: value })).end();
    expect(code).toBe(1);
    expect(text).toContain(`${name} must be`);
    expect(text).not.toMatch(/secret|^\s+at /m);
  });
});

describe.each(englishFrom("s04"))("$name, settings that are nearly right", (section) => {
  it("takes addresses in capitals and with a slash at the end, and ~ for the home folder", async () => {
    const model = await echoModel();
    const { telegram, given } = await platforms();
    const home = temporaryFolder();
    const program = start(section, {
      ...settings(model, given),
      FEISHU_APP_ID: "",
      ANTHROPIC_BASE_URL: `${model.url.replace("http:", "HTTP:")}/`,
      TELEGRAM_API_ROOT: `${telegram.url.replace("http:", "Http:")}/`,
      ...{ HOME: home, USERPROFILE: home, CLAW0_WORKSPACE: "~/place" },
    });
    await program.until("telegram: ready");
    expect((await program.finish("hello\n")).text).toContain("re: hello");
    expect(existsSync(join(home, "place", ".state", "sessions"))).toBe(true);
  });

  it.each([
    ["ANTHROPIC_BASE_URL", "localhost:8080"],
    ["TELEGRAM_API_ROOT", "127.0.0.1:8081"],
    ["FEISHU_API_BASE", "https://"],
  ])("names an address that is none: %s=%s", async (name, value) => {
    const { code, text } = await start(section, settings(undefined, { [name]: value })).end();
    expect(code).toBe(1);
    expect(text).toContain(`${name} must be an address, such as https://example.com`);
  });
});
