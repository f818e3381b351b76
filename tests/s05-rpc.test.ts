/** s05, the gateway: JSON-RPC 2.0 over WebSocket, asked by programs that know nothing of us. */

import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { promisify } from "node:util";
import { JSONRPCClient } from "json-rpc-2.0";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { closeServer, listen } from "../practice/web.ts";
import { englishFrom, outline, type SectionFile, sectionsFrom, temporaryFolder } from "./helper.ts";
import {
  afterwards,
  appOf05,
  echoModel,
  load05,
  marked,
  openWorld,
  unmarked,
  type World,
} from "./world.ts";

const ROOT = join(import.meta.dirname, "..");
const wscat = join(ROOT, "node_modules/.bin/wscat");

/** What comes over the wire; any of it may be missing. */
interface Said {
  jsonrpc?: string;
  id?: unknown;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { code: number; message: string };
}

/** A connection by hand: everything that arrives, in order. */
class Client {
  readonly socket: WebSocket;
  readonly heard: (Said | Said[])[] = [];
  closed: number | undefined;
  readonly #watchers = new Set<() => void>();
  #count = 0;

  constructor(socket: WebSocket) {
    this.socket = socket;
    socket.on("message", (data) => {
      this.heard.push(JSON.parse(String(data)));
      this.#wake();
    });
    socket.on("error", () => {});
    socket.on("close", (code) => {
      this.closed = code;
      this.#wake();
    });
  }

  #wake(): void {
    for (const watch of [...this.#watchers]) watch();
  }

  /** Resolves with what `find` gives, as soon as it gives something. */
  until<T>(find: () => T | undefined): Promise<T> {
    return new Promise((resolve) => {
      const watch = () => {
        const found = find();
        if (found === undefined) return;
        this.#watchers.delete(watch);
        resolve(found);
      };
      this.#watchers.add(watch);
      watch();
    });
  }

  /** Sends a text as it is. Gives the next answer that is none to something else. */
  async raw(text: string): Promise<Said | Said[]> {
    const from = this.heard.length;
    this.socket.send(text);
    return this.until(() =>
      this.heard.slice(from).find((one) => Array.isArray(one) || one.method === undefined),
    );
  }

  /** The answer to a request. */
  async call(method: string, params?: unknown): Promise<Said> {
    this.#count += 1;
    const id = `call ${this.#count}`;
    this.socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    return this.answer(id);
  }

  answer(id: unknown): Promise<Said> {
    return this.until(() => {
      const all = this.heard.flat();
      return all.find((one) => one.method === undefined && one.id === id);
    });
  }

  /** The notifications about a request. */
  about(id: unknown): Said[] {
    return this.heard.flat().filter((one) => one.method && one.params?.id === id);
  }
}

/** Connects; or gives the HTTP status that refused it. */
function connect(url: string, headers: Record<string, string> = {}): Promise<Client | number> {
  const socket = new WebSocket(url, { headers });
  afterwards(() => socket.terminate());
  return new Promise((resolve) => {
    const connected = new Client(socket);
    socket.once("open", () => resolve(connected));
    socket.once("unexpected-response", (_request, response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
  });
}

async function client(world: World): Promise<Client> {
  const connected = await connect(world.gateway);
  if (typeof connected === "number") throw new Error(`refused with ${connected}`);
  return connected;
}

/** A gateway with nothing else round it. */
const gatewayOnly = (section: SectionFile, settings = {}) =>
  openWorld(section, { telegram: false, feishu: false, settings });

const request = (more: object) => JSON.stringify({ jsonrpc: "2.0", ...more });

/** That the notifications about a request came before its reply, and gave the same text. */
function expectNotified(who: Client, id: unknown, reply: Said): void {
  const notes = who.about(id);
  expect(notes[0]?.method).toBe("typing");
  const deltas = notes.filter(({ method }) => method === "delta");
  expect(deltas.map(({ params }) => params?.text).join("")).toBe(reply.result?.reply);
  for (const note of notes) expect(note).not.toHaveProperty("id");
  const last = notes.at(-1);
  expect(who.heard.indexOf(reply)).toBeGreaterThan(last ? who.heard.indexOf(last) : -1);
}

describe.each(englishFrom("s05"))("$name, JSON-RPC 2.0", (section) => {
  it("answers what it should, and nothing else, and stays open", async () => {
    const world = await gatewayOnly(section);
    const one = await client(world);
    const error = (code: number, id: unknown = null) => ({
      jsonrpc: "2.0",
      id,
      error: { code, message: expect.any(String) },
    });
    const expectEach = async (texts: string[], answer: object) => {
      for (const text of texts) expect(await one.raw(text), text).toEqual(answer);
    };

    const noJson = ["", "{", "no json", '{"jsonrpc":"2.0","id":1,"method":"status"', "\u0000"];
    await expectEach(noJson, error(-32700));
    await expectEach(["7", '"text"', "null", "true", "[]", "{}"], error(-32600));
    const status = { id: 1, method: "status" };
    const invalid: [object, unknown][] = [
      [{ ...status, jsonrpc: "1.0" }, 1],
      [{ ...status, jsonrpc: 2 }, 1],
      [{ ...status, jsonrpc: undefined }, 1],
      [{ id: 2 }, 2],
      [{ id: 3, method: 7 }, 3],
      [{ id: 4, method: null }, 4],
      [{ id: {}, method: "status" }, null],
      [{ id: [1], method: "status" }, null],
      [{ id: true, method: "status" }, null],
      [{ method: 7 }, null],
    ];
    for (const [more, id] of invalid) await expectEach([request(more)], error(-32600, id));
    const unknown = ["nothing", "", "constructor", "__proto__", "toString", "hasOwnProperty"];
    const toUnknown = unknown.map((method) => request({ id: "m", method }));
    await expectEach(toUnknown, error(-32601, "m"));
    for (const id of ["text", "", 0, -1, 2.5, 1e15, null]) {
      expect(await one.raw(request({ ...status, id }))).toMatchObject({ jsonrpc: "2.0", id });
    }
    for (const params of [null, "text", 7, [], [1], { text: 7 }, { text: "" }, { text: " " }, {}]) {
      const answer = await one.call("send", params);
      expect(answer.error?.code, JSON.stringify(params)).toBe(-32602);
    }

    // Notifications are never answered, whatever becomes of them; the answer to what comes next
    // is the next thing that is heard.
    const before = one.heard.length;
    for (const method of ["status", "nothing", "bindings.set", "send", "constructor"]) {
      one.socket.send(request({ method }));
    }
    const notes = [request({ method: "status" }), request({ method: "nothing" })];
    one.socket.send(`[${notes.join()}]`);
    await one.call("status");
    expect(one.heard).toHaveLength(before + 1);

    const mixed = await one.raw(
      `[${[
        request({ id: 1, method: "status" }),
        request({ method: "status" }),
        "7",
        "[]",
        request({ id: "2", method: "nothing" }),
        request({ id: null, method: "agents.list" }),
        '{"id":9}',
      ].join()}]`,
    );
    const said = [mixed].flat().map((answer) => [answer.id, answer.error?.code ?? "result"]);
    expect(said).toHaveLength(6);
    expect(said).toEqual(
      expect.arrayContaining([
        [1, "result"],
        [null, -32600],
        ["2", -32601],
        [null, "result"],
        [9, -32600],
      ]),
    );
    const single = await one.raw(`[${request({ id: 1, method: "status" })}]`);
    expect(single).toEqual([expect.objectContaining({ id: 1 })]);
    expect(one.closed).toBe(undefined);
    // An error of our own says so, and not why: a file where a folder should be.
    rmSync(join(world.state, "sessions"), { recursive: true });
    writeFileSync(join(world.state, "sessions"), "");
    const broken = await one.call("sessions.list");
    if (broken.error) expect(broken.error).toEqual({ code: -32603, message: "internal error" });
    expect((await one.call("status")).error).toBe(undefined);
    expect(await world.program.ask("/gateway")).toMatch(/1 connected/);
  });

  it("send: to the conversation of the connection, with its notifications to nobody else", async () => {
    const world = await gatewayOnly(section);
    const [one, two] = [await client(world), await client(world)];
    const held = world.model.hold();
    const say = (text: string, id: unknown) => request({ id, method: "send", params: { text } });
    one.socket.send(say(marked("one", "a slow one"), 7));
    await held.waiting;
    // By the order of events: the model still holds the answer to 7.
    expect((await one.call("status")).result).toMatchObject({ conversations: 1 });
    expect((await two.call("status")).result).toMatchObject({ connections: 2 });
    two.socket.send(say(marked("two", "a quick one"), 7));
    const quick = await two.answer(7);
    expect(unmarked(String(quick.result?.reply))).toBe("re: a quick one");
    expect(one.heard.flat().some(({ result }) => result?.reply)).toBe(false);
    one.socket.send(say(marked("one", "the next"), "eight"));
    held.release();
    const [slow, next] = [await one.answer(7), await one.answer("eight")];
    expect(slow.result).toMatchObject({ agentId: "luna" });
    expect(String(slow.result?.sessionKey)).toMatch(/^agent:luna:ws:direct:[\w-]+$/);
    expect(next.result?.sessionKey).toBe(slow.result?.sessionKey);
    expect(quick.result?.sessionKey).not.toBe(slow.result?.sessionKey);
    expect(outline(world.model.log.at(-1))).toHaveLength(3);

    for (const [who, id, reply] of [
      [one, 7, slow],
      [one, "eight", next],
      [two, 7, quick],
    ] as const) {
      expectNotified(who, id, reply);
    }
    expect(JSON.stringify(one.heard)).not.toContain("§two§");
    expect(JSON.stringify(two.heard)).not.toContain("§one§");

    // Nobody comes from the terminal, or from a cron job, over the network.
    for (const channel of ["cli", "CLI", "Cli", "cron", "CRON", "heartbeat", " cli"]) {
      const answer = await one.call("send", { text: "hi", channel, peerId: "owner" });
      expect(answer.error, channel).toMatchObject({ code: -32602 });
      expect(answer.error?.message).toContain("channel");
    }
    const unknown = await one.call("send", { text: "hi", agentId: "bob" });
    expect(unknown.error?.message).toMatch(/bob.*luna, sage/);
    const long = await one.call("send", { text: "hi", peerId: "x".repeat(150) });
    expect(long.error).toMatchObject({ code: -32602, message: expect.stringContaining("peerId") });
    const failed = await one.call("send", { text: marked("one", "!fail") });
    expect(failed.error?.code).toBe(-32000);
    const after = await one.call("send", { text: marked("one", "and now?") });
    expect(unmarked(String(after.result?.reply))).toBe("re: and now?");

    // A place of one's choice: route and key by it, the tools of a remote.
    const chosen = { channel: "telegram", peerId: "1001", agentId: "sage" };
    const place = await one.call("send", { text: marked("tg", "hi"), ...chosen });
    expect(place.result?.sessionKey).toBe("agent:sage:telegram:direct:1001");
    const tools = world.model.log.at(-1)?.request.tools ?? [];
    expect(JSON.stringify(tools.map((tool) => "name" in tool && tool.name))).not.toMatch(
      /bash|write_file/,
    );
    expect(JSON.stringify(world.model.log.at(-1)?.request.system)).toContain("Sage");

    expect((await one.call("status")).result).toMatchObject({ conversations: 0 }); // none is kept

    // A client that leaves is not waited for.
    const gone = world.model.hold();
    two.socket.send(say(marked("two", "good bye"), 9));
    await gone.waiting;
    two.socket.terminate();
    gone.release();
    const sessions = await one.call("sessions.list");
    expect(JSON.stringify(sessions.result)).toContain("agent:sage:telegram:direct:1001");
  });

  it("bindings: set, list, replace, remove; the parameter is named when it is wrong", async () => {
    const world = await openWorld(section, { feishu: false });
    const one = await client(world);
    const hears = async (text: string) => {
      world.telegramSays("alice", text);
      await world.telegramHears("alice");
      return JSON.stringify(world.model.log.at(-1)?.request.system);
    };
    expect(await hears("my name is Ada")).toContain("Luna");
    const sage = { agentId: "sage", matchKey: "peerId", matchValue: "telegram:1001" };
    const set = await one.call("bindings.set", { ...sage, priority: 5 });
    expect(set.result).toEqual({ ...sage, tier: 1, priority: 5 });
    expect(await hears("who am I?")).toContain("Sage");
    expect(outline(world.model.log.at(-1))).toHaveLength(1); // another session: sage knows nothing
    const list = JSON.stringify((await one.call("bindings.list")).result);
    expect(list).toContain("telegram:1001");
    expect(await world.program.ask("/bindings")).toContain("peerId telegram:1001 → sage");
    expect(await world.program.ask("/route telegram 1001")).toMatch(
      /agent:sage:telegram:direct:1001 .*1 peerId/,
    );
    expect(await world.program.ask("/route telegram 1002")).toMatch(
      /agent:luna:telegram:direct:1002 .*5 default/,
    );
    const remove = { matchKey: "peerId", matchValue: "telegram:1001" };
    expect((await one.call("bindings.remove", remove)).result).toEqual({ removed: true });
    expect((await one.call("bindings.remove", remove)).result).toEqual({ removed: false });
    expect(await hears("and now?")).toContain("Luna");
    expect(outline(world.model.log.at(-1))).toHaveLength(3);

    const wrong: [string, object, string][] = [
      ["bindings.set", { matchKey: "peerId", matchValue: "1" }, "agentId"],
      ["bindings.set", { agentId: "bob", matchKey: "peerId", matchValue: "1" }, "bob"],
      ["bindings.set", { agentId: 7, matchKey: "peerId", matchValue: "1" }, "agentId"],
      ["bindings.set", { agentId: "sage", matchKey: "person", matchValue: "1" }, "matchKey"],
      ["bindings.set", { agentId: "sage", matchKey: "__proto__", matchValue: "1" }, "matchKey"],
      ["bindings.set", { agentId: "sage", matchKey: "peerId" }, "matchValue"],
      ["bindings.set", { ...sage, priority: "high" }, "priority"],
      ["bindings.set", { ...sage, priority: 1.5 }, "priority"],
      ["bindings.remove", { matchKey: "peerId" }, "matchValue"],
    ];
    for (const [method, params, named] of wrong) {
      const { error } = await one.call(method, params);
      expect(error?.code, JSON.stringify(params)).toBe(-32602);
      expect(error?.message).toContain(named);
    }

    const { program } = world;
    expect(await program.ask("/agents")).toMatch(/luna .*\n.*sage /);
    expect(await program.ask("/agent sage")).toContain("sage");
    await world.types("who are you?");
    expect(JSON.stringify(world.model.log.at(-1)?.request.system)).toContain("Sage");
    expect(await program.ask("/agent off")).not.toContain("sage");
    await world.types("and now?");
    expect(JSON.stringify(world.model.log.at(-1)?.request.system)).toContain("Luna");
    expect(outline(world.model.log.at(-1))).toHaveLength(1); // each agent has its own conversation
    await program.ask("/agent sage");
    await world.types("still there?");
    expect(outline(world.model.log.at(-1))).toHaveLength(3);
    expect(await program.ask("/agent bob")).toMatch(/bob.*luna, sage/);
    expect(await program.ask("/sessions")).toContain("agent:sage:telegram:direct:1001");
    const agents = (await one.call("agents.list")).result;
    expect(agents).toEqual([
      expect.objectContaining({ id: "luna", dmScope: "per-channel-peer" }),
      expect.objectContaining({ id: "sage", dmScope: "per-channel-peer" }),
    ]);
  });
});

describe.each(englishFrom("s05"))("$name, who gets in, and how much", (section) => {
  it("a token, at the upgrade; pages of its own only", async () => {
    const world = await gatewayOnly(section, { GATEWAY_TOKEN: "a secret of ours" });
    const bare = `ws://127.0.0.1:${world.port}/`;
    expect(world.program.text).not.toContain("a secret of ours");
    const bearer = (secret: string) => ({ authorization: `Bearer ${secret}` });
    const token = encodeURIComponent("a secret of ours");
    const refused: [string, Record<string, string>, number][] = [
      [bare, {}, 401],
      [`${bare}?token=`, {}, 401],
      [`${bare}?token=a`, {}, 401],
      [`${bare}?token=${token}x`, {}, 401],
      [bare, bearer(""), 401],
      [bare, bearer("wrong"), 401],
      [bare, { authorization: "Basic YTpi" }, 401],
      [`${bare}?token=${token}`, bearer("wrong"), 401],
      [`${bare}?token=${token}`, { origin: "https://example.org" }, 403],
      [`${bare}?token=${token}`, { origin: "null" }, 403],
      [`${bare}?token=${token}`, { origin: `http://127.0.0.1:${world.port + 1}` }, 403],
      [`${bare}?token=${token}`, { origin: `http://127.0.0.1:${world.port}.example.org` }, 403],
      [`${bare}feishu/events?token=${token}`, {}, 404],
    ];
    for (const [url, headers, status] of refused) {
      expect(await connect(url, headers), `${url} ${JSON.stringify(headers)}`).toBe(status);
    }
    const own = { origin: `http://localhost:${world.port}` };
    for (const [url, headers] of [
      [bare, bearer("a secret of ours")],
      [bare, { authorization: "bearer a secret of ours" }],
      [`${bare}?token=${token}`, {}],
      [`${bare}?token=${token}`, own],
    ] as const) {
      const connected = await connect(url, headers);
      if (typeof connected === "number") throw new Error(`${url} refused with ${connected}`);
      expect((await connected.call("status")).result).toBeTruthy();
    }
    // Plain HTTP at the same place is nothing.
    expect((await fetch(`http://127.0.0.1:${world.port}/`)).status).toBe(404);
  });

  it("its own token is kept for this user alone, and over a restart", async () => {
    const world = await gatewayOnly(section);
    const file = join(world.state, "gateway-token");
    const address = world.gateway;
    const token = new URL(address).searchParams.get("token");
    expect(readFileSync(file, "utf8")).toBe(token);
    if (process.platform !== "win32") expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(await world.program.ask("/gateway")).toContain(`ws://127.0.0.1:${world.port}/`);
    await world.restart();
    expect(new URL(world.gateway).searchParams.get("token")).toBe(token);
    // Broken, it is made anew.
    writeFileSync(file, "short");
    await world.restart();
    const made = new URL(world.gateway).searchParams.get("token");
    expect(made).toHaveLength(token?.length ?? 0);
    expect(made).not.toBe(token);
    expect(await client(world)).toBeInstanceOf(Client);
  });

  it("a frame that is too large, and a client that does not read, harm nobody else", async () => {
    const world = await gatewayOnly(section);
    const [good, large, deaf] = [await client(world), await client(world), await client(world)];
    large.socket.send("x".repeat(1024 * 1024 + 1));
    expect(await large.until(() => large.closed)).toBe(1009);
    // Each answer repeats the name that is unknown; what the deaf one leaves unread piles up.
    deaf.socket.pause();
    const method = "x".repeat(900_000);
    for (let id = 0; id < 40; id++) deaf.socket.send(request({ id, method }));
    for (;;) {
      const { result } = await good.call("status");
      if (result?.connections === 1) break;
    }
    deaf.socket.resume();
    expect(await deaf.until(() => deaf.closed)).toBe(1006); // cut off, without a word of goodbye
    const { result } = await good.call("send", { text: "are you well?" });
    expect(result?.reply).toBe("re: are you well?");
    // Up to the limit a frame is welcome, and so is its answer.
    expect((await good.call("y".repeat(900_000))).error?.code).toBe(-32601);
  });

  it("says that the port is taken, and the rest runs", async () => {
    const taken = createServer();
    const { port } = new URL(await listen(taken));
    afterwards(() => closeServer(taken));
    const world = await gatewayOnly(section, { HTTP_PORT: port });
    expect(world.program.text).toMatch(/EADDRINUSE.*HTTP_PORT/);
    expect(world.program.text).not.toMatch(/ws:\/\/|token=/);
    expect(await world.program.ask("/gateway")).toContain("not listening");
    expect(await world.types("hi")).toContain("re: hi");
  });

  it("an ordinary client from npm, and wscat, talk to it as it is", async () => {
    const world = await gatewayOnly(section);
    const socket = new WebSocket(world.gateway);
    afterwards(() => socket.terminate());
    const ordinary = new JSONRPCClient((payload) => socket.send(JSON.stringify(payload)));
    socket.on("message", (data) => {
      const message = JSON.parse(String(data));
      if (!("method" in message)) ordinary.receive(message);
    });
    await new Promise((resolve) => socket.once("open", resolve));
    expect(await ordinary.request("status", {})).toMatchObject({ connections: 1 });
    expect(await ordinary.request("send", { text: "hello" })).toMatchObject({ reply: "re: hello" });
    await expect(ordinary.request("nothing", {})).rejects.toThrow("nothing");
    ordinary.notify("status", {});
    const both = await ordinary.requestAdvanced([
      { jsonrpc: "2.0", id: "a", method: "agents.list" },
      { jsonrpc: "2.0", id: "b", method: "nothing" },
    ]);
    expect(both.map(({ id }) => id).sort()).toEqual(["a", "b"]);

    const status = request({ id: 1, method: "status" });
    const args = [wscat, "--no-color", "-c", world.gateway, "-w", "1", "-x", status];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    expect(stdout).toContain('"connections":2');
  });
});

describe.each(sectionsFrom("s05"))("$name, METHODS", (section) => {
  it("has its methods, and each names the parameter that is wrong", async () => {
    const model = await echoModel();
    const s05 = await load05(section);
    const app = appOf05(s05);
    const connection = { peerId: "p", notify: () => {} };
    const needed: Record<string, string[]> = {
      send: ["text"],
      "bindings.set": ["agentId", "matchKey", "matchValue"],
      "bindings.remove": ["matchKey", "matchValue"],
      "bindings.list": [],
      "sessions.list": [],
      "agents.list": [],
      status: [],
    };
    const right: Record<string, unknown> = { matchKey: "channel", matchValue: "x" };
    for (const [name, fields] of Object.entries(needed)) {
      const run = s05.METHODS[name];
      expect(run, name).toBeTypeOf("function");
      const all = Object.fromEntries(
        fields.map((field) => [field, right[field] ?? (field === "agentId" ? "sage" : "hi")]),
      );
      for (const field of fields) {
        for (const value of [undefined, 7, null, {}]) {
          const call = async () => run?.({ ...all, [field]: value }, app, connection);
          const wrong: unknown = await call().catch((error) => error);
          expect(wrong).toMatchObject({ code: -32602, message: expect.stringContaining(field) });
        }
      }
    }
    expect(model.log).toEqual([]);
  });

  it("lists a thousand sessions by their first lines, and goes on meanwhile", async () => {
    const s05 = await load05(section);
    const folder = temporaryFolder();
    const app = appOf05(s05, folder);
    for (let i = 0; i < 1_000; i++) {
      const dir = join(folder, "sessions", `agent%3Aluna%3Acli%3Adirect%3A${i}`);
      mkdirSync(dir);
      const first = JSON.stringify({ v: 1, id: `s${i}`, key: `agent:luna:cli:direct:${i}` });
      writeFileSync(join(dir, `s${i}.jsonl`), `${first}\n${"x".repeat(10_000)}\n`);
    }
    mkdirSync(join(folder, "sessions", "odd", "folder.jsonl"), { recursive: true });
    let rounds = 0; // of the event loop
    let isOver = false;
    const count = () => {
      rounds += 1;
      if (!isOver) setImmediate(count);
    };
    count();
    const list = () => s05.METHODS["sessions.list"]?.({}, app, { peerId: "p", notify: () => {} });
    const lists = await Promise.all([list(), list(), list(), list(), list()]);
    isOver = true;
    for (const one of lists) expect(one).toHaveLength(1_000);
    expect(JSON.stringify(lists)).not.toContain("xxx");
    expect(rounds).toBeGreaterThan(1_000);
  });

  it("lists the sessions of all keys, and is not stopped by a stray file", async () => {
    const s05 = await load05(section);
    const app = appOf05(s05);
    app.store.create("agent:luna:cli:direct:owner", "first");
    app.store.create("agent:sage:telegram:direct:1001");
    const folder = app.store.current("agent:luna:cli:direct:owner");
    expect(folder.messages).toEqual([]);
    const list = await s05.METHODS["sessions.list"]?.({}, app, { peerId: "p", notify: () => {} });
    const keys = ["agent:luna:cli:direct:owner", "agent:sage:telegram:direct:1001"];
    expect(list).toEqual(
      expect.arrayContaining(keys.map((key) => expect.objectContaining({ key }))),
    );
  });
});
