/**
 * s03: sessions on disk: replay, torn files, the pointer to the current one, keys, and the lock.
 */

import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import v8 from "node:v8";
import vm from "node:vm";
import type Anthropic from "@anthropic-ai/sdk";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import {
  breaches,
  englishFrom,
  load,
  printed,
  type SectionFile,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";

const KEY = "agent:luna:cli:direct:owner";

type Module = Awaited<ReturnType<typeof load<"s03">>>;
type Session = ReturnType<InstanceType<Module["SessionStore"]>["current"]>;
type Message = Session["messages"][number];

const user = (text: string): Message => ({ role: "user", content: [{ type: "text", text }] });

let made = 0;
/** A reply as the API gives it. */
function reply(content: unknown[], stop_reason = "end_turn"): Message {
  const usage = { input_tokens: 10, output_tokens: 5, cache_read_input_tokens: 0 };
  const message = { id: `msg_${++made}`, type: "message", role: "assistant", model: "m", content };
  // The fields left out are those that no section reads.
  return { ...message, stop_reason, usage } as unknown as Anthropic.Message;
}
const said = (text: string) => reply([{ type: "text", text, citations: null }]);
const called = (...ids: string[]) =>
  reply(
    ids.map((id) => ({ type: "tool_use", id, name: "bash", input: { command: "ls" } })),
    "tool_use",
  );
const answered = (content: string, ...ids: string[]): Message => ({
  role: "user",
  content: ids.map((tool_use_id) => ({ type: "tool_result", tool_use_id, content })),
});

/** When a process started: field 22 of its line in /proc, or what ps says. */
function startTime(pid: number | undefined): string {
  const file = `/proc/${pid}/stat`;
  if (fs.existsSync(file))
    return fs.readFileSync(file, "utf8").split(") ")[1]?.split(" ")[19] ?? "";
  return spawnSync("ps", ["-o", "lstart=", "-p", `${pid}`], {
    env: { ...process.env, LC_ALL: "C", TZ: "UTC" },
    encoding: "utf8",
  }).stdout.trim();
}

async function open(section: SectionFile) {
  const dir = path.join(temporaryFolder(), "sessions");
  const module = await load("s03", section, settings());
  /** The store as the next process finds it. */
  const restart = () => new module.SessionStore(dir);
  return { ...module, dir, restart };
}

/** All files below a folder, by their path in it. */
const filesIn = (dir: string) =>
  fs
    .readdirSync(dir, { recursive: true, encoding: "utf8" })
    .filter((name) => fs.statSync(path.join(dir, name)).isFile())
    .sort();

/** The file of a session. */
function fileOf(dir: string, { id }: Session): string {
  const name = filesIn(dir).find((file) => path.basename(file) === `${id}.jsonl`);
  if (!name) throw new Error(`there is no file of the session ${id}`);
  return path.join(dir, name);
}

const contents = (dir: string) =>
  Object.fromEntries(
    filesIn(dir).map((name) => [name, fs.readFileSync(path.join(dir, name), "latin1")]),
  );

const plain = (value: unknown) => JSON.parse(JSON.stringify(value));

/** All that a session is, to compare two of them. */
const stateOf = (session: Session) => {
  const { id, messages, summary, countsValidFrom } = session;
  return plain({ id, messages, summary, countsValidFrom });
};

type Change =
  | { do: "turn" | "tool" | "fail"; text: string }
  | { do: "compact" | "shorten"; at: number };
type Step = Change | { do: "restart" };

function change(session: Session, step: Change): void {
  if ("text" in step) appendTurn(session, step.do, step.text);
  else if (step.do === "compact") compactAllBut(session, step.at);
  else shortenNewest(session, step.at);
}

/** Summarises what is older than the newest turns. */
function compactAllBut(session: Session, newestTurns: number): void {
  const starts = session.messages.filter(
    ({ role, content }) => role === "user" && content[0]?.type === "text",
  );
  session.compact(`summary ${newestTurns}`, starts.at(-newestTurns));
}

function shortenNewest(session: Session, count: number): void {
  const blocks = session.messages.flatMap(({ role, content }) => (role === "user" ? content : []));
  const results = blocks.filter((block) => block.type === "tool_result");
  session.shorten(results.slice(-count).map((block) => block.tool_use_id));
}

/** A turn as the loop appends it: one that fails has no reply, one with a tool has two calls. */
function appendTurn(session: Session, kind: "turn" | "tool" | "fail", words: string): void {
  session.append(user(`u ${words}`));
  if (kind === "fail") return;
  if (kind === "tool") {
    const ids = [`t${++made}`, `t${++made}`];
    session.append(called(...ids));
    session.append(answered(`r ${words}`, ...ids));
  }
  session.append(said(`a ${words}`));
}

describe.each(sectionsFrom("s03"))("$name", (section) => {
  describe("replay", () => {
    it("gives back what was appended, in the shape that the design fixes", async () => {
      const { restart, dir } = await open(section);
      const session = restart().create(KEY, "my label");
      const messages = [
        user("hi"),
        said("Grüße 你好 👋"),
        user("ls"),
        called("t1"),
        answered("a", "t1"),
      ];
      for (const message of messages) session.append(message);
      const again = restart().current(KEY);
      expect(stateOf(again)).toEqual(stateOf(session));
      expect(again.messages).toEqual(plain(messages));
      const lines = fs.readFileSync(fileOf(dir, session), "utf8").trimEnd().split("\n");
      const [header, ...records] = lines.map((line) => JSON.parse(line));
      expect(header).toMatchObject({ v: 1, id: session.id, key: KEY, label: "my label" });
      expect(Date.parse(header.at)).not.toBeNaN();
      expect(records).toMatchObject(
        messages.map((message) => ({ at: expect.any(String), message })),
      );
    });

    it("is the same as memory after any appends, shortenings, compactions and restarts", async () => {
      const { restart, toRequest } = await open(section);
      const text = fc.oneof(fc.string({ unit: "grapheme" }), fc.string({ maxLength: 5000 }));
      const step: fc.Arbitrary<Step> = fc.oneof(
        { weight: 5, arbitrary: fc.record({ do: fc.constant("turn" as const), text }) },
        { weight: 3, arbitrary: fc.record({ do: fc.constant("tool" as const), text }) },
        { weight: 1, arbitrary: fc.record({ do: fc.constant("fail" as const), text }) },
        { weight: 1, arbitrary: fc.record({ do: fc.constant("compact" as const), at: fc.nat(9) }) },
        { weight: 1, arbitrary: fc.record({ do: fc.constant("shorten" as const), at: fc.nat(9) }) },
        { weight: 1, arbitrary: fc.record({ do: fc.constant("restart" as const) }) },
      );
      let runs = 0;
      const property = fc.property(fc.array(step, { maxLength: 25 }), (steps) => {
        const key = `${KEY}:${++runs}`;
        let session = restart().create(key);
        for (const one of steps) {
          if (one.do === "restart") session = restart().current(key);
          else change(session, one);
        }
        const again = restart().current(key);
        expect(stateOf(again)).toEqual(stateOf(session));
        again.append(user("next"));
        session.messages.push(user("next"));
        expect(plain(toRequest(again.messages))).toEqual(plain(toRequest(session.messages)));
        expect(breaches({ messages: toRequest(again.messages) })).toEqual([]);
      });
      fc.assert(property, { seed: 3, numRuns: 40 });
    });

    it("knows its line numbers after an append that failed", async () => {
      const { restart, dir } = await open(section);
      const session = restart().create(KEY);
      session.append(user("one"));
      session.append(said("1"));
      // The disk is full in the middle of a line; then there is room again.
      const append = fs.appendFileSync;
      vi.spyOn(fs, "appendFileSync").mockImplementationOnce((file, data) => {
        append(file, String(data).slice(0, 20));
        throw Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC" });
      });
      expect(() => session.append(user("lost"))).toThrow("ENOSPC");
      expect(session.messages).toHaveLength(2); // the model is told nothing that was not kept
      for (const message of [user("two"), said("2"), user("three"), said("3")]) {
        session.append(message);
      }
      session.compact("one and two", session.messages.at(-2));
      expect(fs.readFileSync(fileOf(dir, session), "utf8")).not.toContain("lost");
      expect(stateOf(restart().current(KEY))).toEqual(stateOf(session));
    });

    it("reads what s03 has stored", async () => {
      const { restart, dir } = await open(section);
      const [first] = englishFrom("s03");
      if (!first) throw new Error("there is no s03");
      const early = await load("s03", first, settings());
      const session = new early.SessionStore(dir).create(KEY, "early");
      for (const message of [
        user("hi"),
        called("t1"),
        answered("x".repeat(9000), "t1"),
        said("Done."),
      ]) {
        session.append(message);
      }
      session.append(user("and?"));
      session.shorten(["t1"]);
      session.compact("They said hi.", session.messages.at(-1));
      session.append(said("Well."));
      expect(stateOf(restart().current(KEY))).toEqual(stateOf(session));
    });
  });

  describe("a file that is torn or broken", () => {
    /** A file with every kind of line, and characters of several bytes. */
    function write(session: Session): void {
      session.append(user("hé 你 👋"));
      session.append(called("t1"));
      session.append(answered("x".repeat(2100), "t1"));
      session.append(said("ok"));
      session.shorten(["t1"]);
      session.append(user("2"));
      session.compact("sum", session.messages.at(-1));
      session.append(said("3"));
    }

    it("cut at any byte, it loads, and what is appended next is whole", async () => {
      const { restart, dir, toRequest } = await open(section);
      write(restart().create(KEY));
      const file = fileOf(dir, restart().current(KEY));
      const whole = fs.readFileSync(file);
      // Most of it is one result of letters; to cut it at a few places is enough.
      const letters = whole.indexOf("xxxx") + 10;
      // The code is the same in all languages: in English every byte, in the others some.
      const step = section.lang === "en" ? 1 : 13;
      for (let length = 0; length <= whole.length; length += step) {
        if (length > letters && length < letters + 2050) continue;
        const cut = whole.subarray(0, length);
        fs.writeFileSync(file, cut);
        const before = restart().current(KEY);
        const known = before.messages.length;
        before.append(user("one more"));
        before.append(said("and its answer"));
        const after = restart().current(KEY);
        expect(stateOf(after)).toEqual(stateOf(before));
        expect(after.messages.length).toBe(known + 2);
        expect(plain(after.messages.slice(-2))).toEqual(
          plain([user("one more"), before.messages.at(-1)]),
        );
        after.append(user("next"));
        expect(breaches({ messages: toRequest(after.messages) })).toEqual([]);
        // Nothing that was in the file has been changed.
        expect(fs.readFileSync(file).subarray(0, length).equals(cut)).toBe(true);
      }
      expect(filesIn(dir)).toHaveLength(2);
    });

    it("a complete record without its line end counts", async () => {
      const { restart, dir } = await open(section);
      const session = restart().create(KEY);
      session.append(user("hi"));
      const file = fileOf(dir, session);
      fs.truncateSync(file, fs.statSync(file).size - 1);
      const again = restart().current(KEY);
      again.append(said("Hello."));
      expect(restart().current(KEY).messages).toHaveLength(2);
      expect(fs.readFileSync(file, "utf8").trimEnd().split("\n")).toHaveLength(3);
    });

    it.each([
      ["half a record", '{"at":"2026-01-01","message":{"role":"us'],
      ["no JSON", "what is this?"],
      ["null", "null"],
      ["a number", "5"],
      ["a text", '"text"'],
      ["a list", "[1]"],
      ["nothing", ""],
      ["bytes that are no UTF-8", Buffer.from([0xff, 0xfe, 0x00, 0xc3])],
    ])("a line with %s is named by its number, stays, and hides no other", async (_what, bad) => {
      const { restart, dir } = await open(section);
      const session = restart().create(KEY);
      session.append(user("one"));
      session.append(said("1"));
      const file = fileOf(dir, session);
      fs.appendFileSync(file, Buffer.concat([Buffer.from(bad), Buffer.from("\n")]));
      const torn = fs.readFileSync(file);
      const again = restart().current(KEY);
      again.append(user("two"));
      again.append(said("2"));
      again.compact("sum", again.messages.at(-2));
      const later = restart().current(KEY);
      expect(stateOf(later)).toEqual(stateOf(again));
      expect(later.messages).toHaveLength(4);
      expect(printed()).toContain(file);
      expect(printed()).toMatch(/\b4\b/);
      expect(fs.readFileSync(file).subarray(0, torn.length).equals(torn)).toBe(true);
    });

    it.each([
      ["a record of a later version", { future: { x: 1 } }],
      ["an empty record", {}],
      ["a message that is none", { message: 5 }],
      ["a message without content", { message: { role: "user" } }],
    ])("%s is passed over", async (_what, record) => {
      const { restart, dir } = await open(section);
      const session = restart().create(KEY);
      session.append(user("one"));
      fs.appendFileSync(fileOf(dir, session), `${JSON.stringify(record)}\n`);
      const again = restart().current(KEY);
      again.append(said("1"));
      expect(restart().current(KEY).messages).toHaveLength(2);
    });
  });

  describe("memory", () => {
    const HOUR = 3_600_000;
    /** Time passes when the test says so. */
    async function withClock() {
      const opened = await open(section);
      vi.useFakeTimers({ toFake: ["Date", "setInterval"], now: Date.UTC(2026, 0, 5) });
      return { ...opened, store: opened.restart() };
    }

    it("is left by a session that nobody has used for an hour, and it comes back from its file", async () => {
      const { store } = await withClock();
      const early = store.current("early");
      const late = store.current("late");
      for (const session of [early, late]) session.append(user("hello"));
      vi.advanceTimersByTime(HOUR - 60_000);
      expect(store.current("late")).toBe(late);
      vi.advanceTimersByTime(120_000);
      expect(store.current("late")).toBe(late);
      const again = store.current("early");
      expect(again).not.toBe(early);
      expect(again.id).toBe(early.id);
      expect(again.messages).toEqual(early.messages);
    });

    it("is not left while a turn runs, nor in the hour after its end", async () => {
      const { MIDDLEWARE, runTurn, store } = await withClock();
      const session = store.current(KEY);
      let end = () => {};
      const held = new Promise<void>((resolve) => {
        end = resolve;
      });
      MIDDLEWARE.unshift(() => held);
      const turn = runTurn(session, "hello", {});
      vi.advanceTimersByTime(3 * HOUR);
      expect(store.current(KEY)).toBe(session);
      vi.advanceTimersByTime(3 * HOUR);
      expect(store.current(KEY)).toBe(session);
      vi.advanceTimersByTime(3 * HOUR);
      end();
      await turn;
      vi.advanceTimersByTime(HOUR);
      expect(store.current(KEY)).toBe(session);
      vi.advanceTimersByTime(HOUR + 60_000);
      expect(store.current(KEY)).not.toBe(session);
    });

    it("is the same again after many conversations and an hour", async () => {
      v8.setFlagsFromString("--expose-gc");
      const collect = vm.runInNewContext("gc") as () => void;
      const used = () => {
        collect();
        return process.memoryUsage().heapUsed;
      };
      const { store } = await withClock();
      store.current("warm").append(user("up"));
      const before = used();
      const size = Math.ceil(before / 50);
      for (let i = 0; i < 35; i++) store.current(`key-${i}`).append(user(`${i}`.repeat(size)));
      expect(used()).toBeGreaterThan(before * 1.4); // the figure can fail
      vi.advanceTimersByTime(HOUR + 60_000);
      expect(used()).toBeLessThan(before * 1.3);
      expect(store.current("key-7").messages).toHaveLength(1);
    });
  });

  describe("the current session", () => {
    /** Three sessions, a second apart; the pointer is at the second. */
    async function three() {
      const opened = await open(section);
      vi.useFakeTimers({ toFake: ["Date"], now: Date.UTC(2026, 0, 5) });
      const store = opened.restart();
      const sessions = ["a", "b", "c"].map((label) => {
        const session = store.create(KEY, label);
        session.append(user(label));
        vi.setSystemTime(Date.now() + 1000);
        return session;
      });
      const [, chosen, newest] = sessions;
      if (!chosen || !newest) throw new Error("there are three");
      store.switch(KEY, chosen.id);
      const pointer = path.join(path.dirname(fileOf(opened.dir, chosen)), "current");
      return { ...opened, sessions, chosen, newest, pointer };
    }

    it("is remembered", async () => {
      const { restart, chosen } = await three();
      expect(restart().current(KEY).id).toBe(chosen.id);
    });

    it.each([
      ["empty", ""],
      ["half", (id: string) => id.slice(0, 3)],
      ["torn inside a character", Buffer.from([0xe4, 0xbd])],
      ["JSON of another kind", '{"id":1}'],
      ["null", "null"],
      ["of a session that is gone", "deadbeef"],
      ["a path", "../../../etc/passwd"],
      ["full of NULs", Buffer.alloc(8)],
    ])(
      "a pointer that is %s: the newest session, and nothing is overwritten",
      async (_how, bad) => {
        const { restart, dir, chosen, newest, pointer } = await three();
        const wrong = Buffer.from(typeof bad === "function" ? bad(chosen.id) : bad);
        fs.writeFileSync(pointer, wrong);
        const before = contents(dir);
        const current = restart().current(KEY);
        expect(current.id).toBe(newest.id);
        const after = contents(dir);
        for (const [name, content] of Object.entries(before)) {
          if (name.endsWith(".jsonl")) expect(after[name]).toBe(content);
        }
        expect(Object.keys(after).filter((name) => name.endsWith(".jsonl"))).toHaveLength(3);
        // What was there is set aside, and named.
        const aside = Object.entries(after).filter(([name]) => !(name in before));
        expect(aside.map(([, content]) => content)).toEqual([wrong.toString("latin1")]);
        expect(printed()).toContain(pointer);
        current.append(said("Still here."));
        expect(restart().current(KEY).messages).toHaveLength(2);
      },
    );

    it("without a pointer it is the newest one, and nothing is said", async () => {
      const { restart, dir, newest, pointer } = await three();
      fs.rmSync(pointer);
      expect(restart().current(KEY).id).toBe(newest.id);
      expect(printed()).toBe("");
      expect(filesIn(dir).filter((name) => name.endsWith(".jsonl"))).toHaveLength(3);
    });

    it("a key without a session gets one", async () => {
      const { restart } = await open(section);
      const session = restart().current(KEY);
      expect(session.messages).toEqual([]);
      expect(restart().current(KEY).id).toBe(session.id);
      expect(restart().list(KEY)).toHaveLength(1);
    });

    it("the list has all of them, the newest last", async () => {
      const { restart, sessions } = await three();
      expect(
        restart()
          .list(KEY)
          .map(({ id }) => id),
      ).toEqual(sessions.map(({ id }) => id));
      expect(restart().list("agent:luna:cli:direct:nobody")).toEqual([]);
    });
  });

  describe("switching", () => {
    it("takes a prefix that is unique, and is remembered", async () => {
      const { restart } = await open(section);
      const store = restart();
      // With 17 of them two begin with the same of 16 digits.
      const ids = Array.from({ length: 17 }, () => store.create(KEY).id);
      const [, wanted = ""] = ids;
      let unique = wanted.slice(0, 1);
      while (ids.filter((id) => id.startsWith(unique)).length > 1) {
        unique = wanted.slice(0, unique.length + 1);
      }
      expect(store.switch(KEY, unique).id).toBe(wanted);
      expect(store.current(KEY).id).toBe(wanted);
      expect(restart().current(KEY).id).toBe(wanted);

      const digit = [...ids.join("")].find((d) => ids.filter((id) => id.startsWith(d)).length > 1);
      for (const prefix of [digit ?? "", "", "zzz", `${wanted}0`]) {
        expect(() => store.switch(KEY, prefix)).toThrow(/\d+ sessions/);
      }
      expect(store.current(KEY).id).toBe(wanted);
    });

    it("does not reach the sessions of another key", async () => {
      const { restart } = await open(section);
      const other = restart().create("agent:luna:cli:direct:eve");
      expect(() => restart().switch(KEY, other.id)).toThrow();
    });
  });

  describe("keys", () => {
    it("of any kind get safe folders of their own", async () => {
      const { restart, dir } = await open(section);
      const ends = [
        "a*b",
        "a%2ab",
        "a%2Ab ",
        "a/b",
        "a%2fb",
        "a\\b",
        "../up",
        "a..",
        "a?b",
        'a<b>|"',
        "a:b",
      ];
      const long = "长".repeat(40);
      const keys = [
        ...ends,
        "你好",
        "👋",
        long,
        `${long}长`,
        "x".repeat(300),
        "x".repeat(301),
        "a\nb",
        "a b",
        "~'()!",
      ];
      for (const key of keys) restart().current(`agent:luna:${key}`).append(user(key));
      for (const key of keys) {
        expect(restart().current(`agent:luna:${key}`).messages).toEqual([user(key)]);
      }
      const folders = fs.readdirSync(dir);
      expect(folders).toHaveLength(keys.length);
      expect(fs.readdirSync(path.dirname(dir))).toEqual(["sessions"]);
      for (const folder of folders) {
        expect(folder).toMatch(/^[\w%.~'()!-]{1,255}$/);
      }
      // A file system may not tell upper case from lower case.
      expect(new Set(folders.map((folder) => folder.toLowerCase())).size).toBe(folders.length);
    });

    it("in upper and lower case are the same", async () => {
      const { restart } = await open(section);
      const store = restart();
      store.current("agent:luna:cli:direct:Owner").append(user("hi"));
      expect(restart().current(KEY).messages).toHaveLength(1);
      expect(restart().current(KEY.toUpperCase()).messages).toHaveLength(1);
    });
  });

  describe("the tools", () => {
    async function use() {
      const workspace = temporaryFolder();
      const given = settings(undefined, { CLAW0_WORKSPACE: workspace });
      const { runTool, Conversation } = await load("s03", section, given);
      const run = async (name: string, input: unknown) => {
        const caller = { type: "direct" } as const;
        const block = { type: "tool_use", id: "toolu_1", name, input, caller } as const;
        const { content, is_error } = await runTool(block, { conversation: new Conversation() });
        return { content: String(content), failed: is_error === true };
      };
      return { workspace, run };
    }

    it("keep out of what the program keeps for itself", async () => {
      const { workspace, run } = await use();
      const state = path.join(workspace, ".state");
      fs.mkdirSync(path.join(state, "sessions"), { recursive: true });
      fs.mkdirSync(path.join(workspace, "sub"));
      fs.writeFileSync(path.join(state, "secret.txt"), "secret");
      fs.symlinkSync(state, path.join(workspace, "link"), "junction");
      const names = [
        ".state/secret.txt",
        "./sub/../.state/secret.txt",
        path.join(state, "secret.txt"),
        "link/secret.txt",
        ".STATE/secret.txt", // the same folder on some systems
      ];
      for (const name of names) {
        for (const [tool, input] of [
          ["read_file", { path: name }],
          ["write_file", { path: name, content: "taken" }],
          ["edit_file", { path: name, old_text: "secret", new_text: "taken" }],
        ] as const) {
          expect((await run(tool, input)).failed, `${tool} ${name}`).toBe(true);
        }
      }
      for (const name of [".state", "link", ".state/sessions"]) {
        expect((await run("list_directory", { path: name })).failed, name).toBe(true);
      }
      expect(filesIn(state)).toEqual(["secret.txt"]);
      expect(fs.readFileSync(path.join(state, "secret.txt"), "utf8")).toBe("secret");
      expect((await run("list_directory", {})).content).not.toContain(".state");
      // Only the first part of the path makes it the program's.
      const other = { path: ".state-notes.txt", content: "mine" };
      expect((await run("write_file", other)).failed).toBe(false);
    });

    it("list a folder, and tell the time", async () => {
      const { workspace, run } = await use();
      fs.mkdirSync(path.join(workspace, "notes/deep"), { recursive: true });
      fs.writeFileSync(path.join(workspace, "b.txt"), "");
      fs.writeFileSync(path.join(workspace, "a.txt"), "");
      expect((await run("list_directory", {})).content).toBe("a.txt\nb.txt\nnotes/");
      expect((await run("list_directory", { path: "notes" })).content).toBe("deep/");
      for (const name of ["..", "/", "a.txt", "no such folder"]) {
        expect((await run("list_directory", { path: name })).failed, name).toBe(true);
      }
      const { content } = await run("get_current_time", {});
      expect(content).toContain(String(new Date().getFullYear()));
      expect(content).toMatch(/\d\d:\d\d/);
    });
  });

  it("an append costs the same with one session and with many", async () => {
    const { restart, dir } = await open(section);
    const store = restart();
    const session = store.current(KEY);
    session.append(user("first"));
    let touched: string[] = [];
    const functions = Object.entries(fs).filter(([, value]) => typeof value === "function");
    for (const [name] of functions) {
      if (!name.endsWith("Sync")) continue;
      const key = name as "appendFileSync"; // one of many functions whose first argument is a file
      const original = fs[key];
      vi.spyOn(fs, key).mockImplementation((...args) => {
        touched.push(`${name} ${typeof args[0] === "number" ? "open file" : args[0]}`);
        return original(...args);
      });
    }
    const cost = (text: string) => {
      touched = [];
      store.current(KEY).append(user(text));
      const all = touched;
      touched = [];
      return all;
    };
    const alone = cost("second");
    for (let i = 0; i < 50; i++) store.create(`agent:luna:cli:direct:${i}`);
    const own = store.create("agent:luna:cli:direct:owner2");
    expect(own.messages).toEqual([]);
    expect(cost("third")).toEqual(alone);
    expect(alone.length).toBeGreaterThan(0);
    expect(alone.length).toBeLessThan(8); // open, look, cut, write, flush, close
    const file = fileOf(dir, session);
    for (const name of alone) expect(name).toMatch(/ open file$|\.jsonl$/);
    expect(alone.join("\n")).toContain(file);
  });

  describe("the lock", () => {
    const lockIn = (dir: string) => path.join(dir, "lock");

    it("is there while the program has the folder, and says who has it", async () => {
      const { lockFolder } = await open(section);
      const dir = path.join(temporaryFolder(), ".state");
      lockFolder(dir);
      expect(fs.readFileSync(lockIn(dir), "utf8")).toBe(`${process.pid} ${startTime(process.pid)}`);
      if (process.platform === "win32") return;
      expect(fs.statSync(dir).mode & 0o777).toBe(0o700); // nobody else may read what people said
    });

    it("of a program that lives is respected; of one that is dead it is taken over", async () => {
      const { lockFolder } = await open(section);
      const dir = temporaryFolder();
      const child: ChildProcess = spawn(process.execPath, ["-e", "process.stdin.resume()"]);
      const mine = `${child.pid} ${startTime(child.pid)}`;
      fs.writeFileSync(lockIn(dir), mine);
      try {
        const words = new RegExp(`\\b${child.pid}\\b.*CLAW0_WORKSPACE`);
        expect(() => lockFolder(dir)).toThrow(words);
        expect(fs.readFileSync(lockIn(dir), "utf8")).toBe(mine);
      } finally {
        await new Promise<void>((resolve) => {
          child.once("close", () => resolve());
          child.kill("SIGKILL");
        });
      }
      lockFolder(dir);
      expect(fs.readFileSync(lockIn(dir), "utf8")).toMatch(new RegExp(`^${process.pid}\\b`));
      expect(fs.readdirSync(dir)).toEqual(["lock"]);
    });

    it.each([
      ["nothing", ""],
      ["words", "somebody"],
      ["a number that is no process", "-1"],
      ["zero", "0"],
      ["a very large number", "99999999999999999999"],
      ["bytes", Buffer.from([0xff, 0x00, 0xfe])],
      ["this process in an earlier life", `${process.pid} earlier`],
    ])("with %s in it is taken over", async (_what, content) => {
      const { lockFolder } = await open(section);
      const dir = temporaryFolder();
      fs.writeFileSync(lockIn(dir), content);
      lockFolder(dir);
      expect(fs.readFileSync(lockIn(dir), "utf8")).toMatch(new RegExp(`^${process.pid}\\b`));
    });

    it("of a pid that belongs to another program by now is taken over", async () => {
      const { lockFolder } = await open(section);
      for (const [pid, started] of [
        [process.ppid, "1"],
        [1, "00000000-0000-4000-8000-000000000000"],
        [process.ppid, `${startTime(process.ppid)}0`],
      ]) {
        const dir = temporaryFolder();
        fs.writeFileSync(lockIn(dir), `${pid} ${started}`);
        lockFolder(dir);
        expect(fs.readFileSync(lockIn(dir), "utf8")).toMatch(new RegExp(`^${process.pid} `));
        expect(fs.readdirSync(dir)).toEqual(["lock"]);
      }
    });

    it("where nobody knows when a process started, it is known by its pid", async () => {
      const { lockFolder } = await open(section);
      const read = fs.readFileSync;
      vi.spyOn(fs, "readFileSync").mockImplementation((file, ...rest) => {
        if (String(file).startsWith("/proc/")) throw new Error("ENOENT"); // as on Windows
        return read(file, ...rest);
      });
      const { PATH } = process.env;
      process.env.PATH = "/nowhere"; // where there is no ps either
      try {
        const dir = temporaryFolder();
        lockFolder(dir);
        expect(fs.readFileSync(lockIn(dir), "utf8")).toBe(`${process.pid} `);
        for (const lock of [`${process.ppid} `, `${process.ppid}`, `${process.ppid} 123`]) {
          fs.writeFileSync(lockIn(dir), lock);
          expect(() => lockFolder(dir)).toThrow(`process ${process.ppid} is using`);
        }
        fs.writeFileSync(lockIn(dir), "99999999 ");
        lockFolder(dir);
      } finally {
        process.env.PATH = PATH;
      }
    });

    it.skipIf(!fs.existsSync("/proc/self/stat"))("asks ps where there is no /proc", async () => {
      const { lockFolder } = await open(section);
      const read = fs.readFileSync;
      vi.spyOn(fs, "readFileSync").mockImplementation((file, ...rest) => {
        if (String(file).startsWith("/proc/")) throw new Error("ENOENT"); // as on a Mac
        return read(file, ...rest);
      });
      const dir = temporaryFolder();
      lockFolder(dir);
      const lock = fs.readFileSync(lockIn(dir), "utf8");
      if (spawnSync("ps", ["-p", "1"]).status !== 0) return;
      expect(lock).toMatch(/^\d+ \w{3} \w{3} +\d+ \d\d:\d\d:\d\d \d{4}$/);
    });

    it("is taken although a process was killed while it took it", async () => {
      const { lockFolder } = await open(section);
      const dir = temporaryFolder();
      // Its file stays. A process that is in there now has a file that is not older than 5 seconds.
      const old = Date.now() / 1000 - 6;
      for (const number of [1, 2]) {
        fs.writeFileSync(path.join(dir, `lock.takeover.${number}`), "");
        fs.utimesSync(path.join(dir, `lock.takeover.${number}`), old, old);
      }
      lockFolder(dir);
      expect(fs.readFileSync(lockIn(dir), "utf8")).toMatch(new RegExp(`^${process.pid} `));
      expect(fs.existsSync(path.join(dir, "lock.takeover.3"))).toBe(false);
    });

    it("is not removed at the end, if it belongs to another process by then", async () => {
      const { lockFolder } = await open(section);
      const dir = temporaryFolder();
      const before = process.listeners("exit");
      lockFolder(dir);
      const [atExit] = process.listeners("exit").filter((one) => !before.includes(one));
      fs.writeFileSync(lockIn(dir), "12345 678");
      atExit?.call(process, 0);
      expect(fs.readFileSync(lockIn(dir), "utf8")).toBe("12345 678");
    });
  });
});
