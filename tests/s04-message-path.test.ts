/** s04, the path of a message: the inbox, the order, and what happens between the two ends. */

import fs, {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import type { ScriptedBlock } from "../practice/model.ts";
import {
  blocks,
  outline,
  printed,
  quarantineLine,
  results,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import {
  appOf,
  begunAlbum,
  delivered,
  echoModel,
  inbound,
  lastText,
  load04,
  marked,
  processedFile,
  type S04,
  silentChannel,
  unmarked,
  watchMarks,
} from "./world.ts";

type Routed = Parameters<InstanceType<S04["Inbox"]>["add"]>[0];

/** A section with an echoing model, and a Telegram that sends nothing anywhere. */
async function theRoad(section: Parameters<typeof load04>[0], more = {}) {
  const model = await echoModel();
  watchMarks(model.log);
  const s04 = await load04(section, settings(model, more));
  const folder = temporaryFolder();
  const app = appOf(s04, folder);
  const telegram = silentChannel();
  app.channels.set("telegram", telegram);
  /** Has it answered, and the answer sent. */
  const take = async (message: Parameters<typeof s04.accept>[1]) => {
    const answer = await s04.accept(app, message).done;
    await delivered(app);
    return answer;
  };
  return { s04, app, model, telegram, folder, take };
}

const files = (folder: string) =>
  readdirSync(join(folder, "inbox")).filter((name) => name.endsWith(".json"));

/** A promise that is settled from outside. */
function gate() {
  let open = (): void => {};
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, passed };
}

describe.each(sectionsFrom("s04"))("$name, Inbox", (section) => {
  it("keeps what it was given, in order, until it is finished", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const ids = (inbox: InstanceType<typeof Inbox>) => inbox.pending().map(({ id }) => id);
    const first = new Inbox(dir);
    const messages = ["a", "b", "c"].map((id): Routed => inbound({ id }));
    const [a, b, c] = messages as [Routed, Routed, Routed]; // as many as above
    expect(messages.map((one) => first.add(one))).toEqual([true, true, true]);
    expect(first.add(inbound({ id: "b", text: "again" }))).toBe(false);
    first.countAttempt([b]);
    first.acknowledge([b]);
    expect(ids(first)).toEqual(["a", "c"]);
    expect(first.add(b)).toBe(false);

    // As after a crash: what is open is open, what is done is done.
    const second = new Inbox(dir);
    expect(ids(second)).toEqual(["a", "c"]);
    expect(second.add(b)).toBe(false);
    expect(second.add(a)).toBe(false);
    expect(second.add(inbound({ id: "d" }))).toBe(true);
    expect(second.pending()[0]).toEqual(JSON.parse(JSON.stringify(a)));
    second.acknowledge([a, c]);
    expect(ids(new Inbox(dir))).toEqual(["d"]);
    expect(new Inbox(dir).add(c)).toBe(false);
  });

  it("keeps the order over restarts, also past ten and with gaps", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    for (let i = 0; i < 12; i++) {
      const inbox = new Inbox(dir);
      inbox.add(inbound({ id: `m${i}` }));
      if (i % 3 === 0) inbox.acknowledge(inbox.pending().slice(0, 1));
    }
    const left = new Inbox(dir).pending().map(({ id }) => Number(id.slice(1)));
    expect(left).toEqual([...left].sort((x, y) => x - y));
    expect(left).toHaveLength(8);
  });

  it("quarantines what was begun three times, and what is no message", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const seed = new Inbox(dir);
    seed.add(inbound({ id: "poison" }));
    for (let start = 0; start < 3; start++) {
      const inbox = new Inbox(dir);
      expect(inbox.pending().map(({ id }) => id)).toEqual(["poison"]);
      inbox.countAttempt(inbox.pending());
    }
    const bad = ['{"id":"torn","te', "null", "[]", "7", '"text"', "true", "", "{}", '{"id":7}'];
    bad.forEach((content, index) => {
      writeFileSync(join(dir, `${String(100 + index).padStart(12, "0")}.json`), content);
    });
    seed.add(inbound({ id: "good" }));
    appendFileSync(processedFile(dir), '{"id":"to');
    const after = new Inbox(dir);
    expect(after.pending().map(({ id }) => String(id))).toContain("good");
    expect(after.pending().map(({ id }) => id)).not.toContain("poison");
    const aside = readdirSync(dir).filter((name) => name.endsWith(".quarantined"));
    expect(aside).toHaveLength(bad.length + 1);
    // What was torn hides nothing that comes after it.
    after.acknowledge(after.pending());
    expect(new Inbox(dir).pending()).toEqual([]);
    expect(new Inbox(dir).add(inbound({ id: "good" }))).toBe(false);
  });

  it("quarantines what can't be read, a folder and a broken link, and the others go on", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    new Inbox(dir).add(inbound({ id: "a" }));
    mkdirSync(join(dir, "000000000002.json"));
    symlinkSync(join(dir, "nowhere"), join(dir, "000000000003.json"));
    const wrong = { ...inbound({ id: "w" }), peerId: undefined };
    writeFileSync(join(dir, "000000000004.json"), JSON.stringify(wrong));
    writeFileSync(join(dir, "000000000005.json.tmp"), JSON.stringify(inbound({ id: "half" })));
    const inbox = new Inbox(dir);
    inbox.add(inbound({ id: "b" }));
    expect(inbox.pending().map(({ id }) => id)).toEqual(["a", "b"]);
    const names = readdirSync(dir).filter((name) => name.endsWith(".quarantined"));
    expect(names).toHaveLength(3);
    for (const name of names) expect(printed()).toMatch(quarantineLine(name));
    expect(new Inbox(dir).pending().map(({ id }) => id)).toEqual(["a", "b"]);
  });

  it("drops a file whose id is done: the crash came between the two", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const inbox = new Inbox(dir);
    inbox.add(inbound({ id: "a" }));
    const [name = ""] = readdirSync(dir).filter((one) => one.endsWith(".json"));
    const content = readFileSync(join(dir, name));
    inbox.acknowledge(inbox.pending());
    writeFileSync(join(dir, name), content);
    expect(new Inbox(dir).pending()).toEqual([]);
    expect(existsSync(join(dir, name))).toBe(false);
  });

  it("after a crash in the middle of finishing, the part with the turn's id is still there", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const { inbox, parts } = begunAlbum(Inbox, dir);
    vi.spyOn(fs, "rmSync").mockImplementationOnce(() => {
      throw new Error("killed here");
    });
    expect(() => inbox.acknowledge(parts)).toThrow("killed here");
    // The session knows p1: nothing is asked again, only the reply is repeated.
    expect(new Inbox(dir).pending().map(({ id }) => id)).toEqual(["p1"]);
  });

  it("keeps the ids of seven days, in files by day, also after a restart", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    vi.useFakeTimers({ toFake: ["Date"], now: Date.UTC(2026, 0, 5, 23) });
    const inbox = new Inbox(dir);
    const days = () => readdirSync(join(dir, "processed")).sort();
    const process = (id: string, spool = inbox) => {
      expect(spool.add(inbound({ id }))).toBe(true);
      spool.acknowledge(spool.pending());
    };
    for (let day = 5; day <= 12; day++) {
      process(`id ${day}`);
      vi.setSystemTime(Date.now() + 86_400_000);
    }
    expect(days()).toHaveLength(8);
    vi.setSystemTime(Date.UTC(2026, 0, 12, 23));
    for (const again of [inbox, new Inbox(dir)])
      for (let day = 5; day <= 12; day++)
        expect(again.add(inbound({ id: `id ${day}` }))).toBe(false);
    vi.setSystemTime(Date.UTC(2026, 0, 13, 1));
    process("next");
    expect(days()[0]).toBe("2026-01-06.jsonl");
    expect(days().at(-1)).toBe("2026-01-13.jsonl");
    process("id 5"); // it would come again within a day, so it is a new message by now
    expect(inbox.add(inbound({ id: "id 6" }))).toBe(false);

    // After a week without the program, an old id still tells that a file is only left over.
    const left = join(dir, "000000000099.json");
    writeFileSync(left, JSON.stringify(inbound({ id: "id 8" })));
    vi.setSystemTime(Date.UTC(2026, 1, 13));
    const late = new Inbox(dir);
    expect(late.pending()).toEqual([]);
    expect(existsSync(left)).toBe(false);
    expect(days()).toEqual([]);
    process("id 8", late);
  });

  it("costs the same with 2,000 messages done", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    new Inbox(dir);
    const lines = Array.from({ length: 2_000 }, (_, i) => `{"id":"old${i}"}\n`);
    appendFileSync(processedFile(dir), lines.join(""));
    const inbox = new Inbox(dir);
    const before = readFileSync(processedFile(dir)).length;
    inbox.add(inbound({ id: "new" }));
    inbox.acknowledge(inbox.pending());
    const grown = readFileSync(processedFile(dir)).length - before;
    expect(grown).toBeLessThan(200); // a line, and not the list again
  });
});

describe.each(sectionsFrom("s04"))("$name, runExclusive", (section) => {
  it("runs one task of a conversation at a time, in order, those of others beside it", async () => {
    const { runExclusive } = await load04(section);
    const said: string[] = [];
    const slow = gate();
    const one = runExclusive("a", () => slow.passed.then(() => said.push("a1")));
    const two = runExclusive("a", async () => said.push("a2"));
    await runExclusive("b", async () => said.push("b1"));
    expect(said).toEqual(["b1"]);
    slow.open();
    await Promise.all([one, two]);
    expect(said).toEqual(["b1", "a1", "a2"]);
  });

  it("goes on after a task that fails, whichever way", async () => {
    const { runExclusive } = await load04(section);
    const late = runExclusive("a", () => Promise.reject(new Error("late")));
    const thrown = runExclusive("a", () => {
      throw new Error("at once");
    });
    const fine = runExclusive("a", async () => "fine");
    await expect(late).rejects.toThrow("late");
    await expect(thrown).rejects.toThrow("at once");
    expect(await fine).toBe("fine");
    expect(await runExclusive("a", async () => "later")).toBe("later");
  });

  it("gives what the task gives, and takes a task from within a task", async () => {
    const { runExclusive } = await load04(section);
    let inner: Promise<number> | undefined;
    await runExclusive("a", async () => {
      inner = runExclusive("a", async () => 2); // waiting for it here would be waiting for oneself
    });
    expect(await inner).toBe(2);
  });
});

describe.each(sectionsFrom("s04"))("$name, accept and what follows", (section) => {
  it("has the message on disk when it returns, and the file goes with the answer", async () => {
    const { s04, app, model, telegram, folder } = await theRoad(section);
    const held = model.hold();
    const { done } = s04.accept(app, inbound({ text: "hello" }));
    expect(files(folder)).toHaveLength(1); // not a tick later
    await held.waiting;
    expect(files(folder)).toHaveLength(1);
    held.release();
    expect(await done).toBe("re: hello");
    await delivered(app);
    expect(telegram.sent).toEqual([{ to: "1001", text: "re: hello" }]);
    expect(files(folder)).toEqual([]);
  });

  it("answers a duplicate once, while the first is at work, later, and after a restart", async () => {
    const { s04, app, model, telegram, folder, take } = await theRoad(section);
    const message = inbound({ text: "once" });
    const held = model.hold();
    const { done } = s04.accept(app, { ...message });
    await held.waiting;
    await s04.accept(app, { ...message }).done;
    held.release();
    await done;
    await take({ ...message });
    const again = appOf(s04, folder, app.channels);
    await s04.accept(again, { ...message }).done;
    await delivered(again);
    expect(telegram.sent).toHaveLength(1);
    expect(model.log).toHaveLength(1);
  });

  it("answers in order; another conversation does not wait", async () => {
    const { model, telegram, take } = await theRoad(section);
    const from = (peerId: string, text: string) =>
      take(inbound({ peerId, senderId: peerId, text: marked(peerId, text) }));
    const held = model.hold();
    const first = from("1001", "first");
    await held.waiting;
    const second = from("1001", "second");
    await from("1002", "other");
    expect(telegram.sent.map(({ text }) => unmarked(text))).toEqual(["re: other"]);
    held.release();
    await Promise.all([first, second]);
    const said = telegram.sent.map(({ text }) => unmarked(text));
    expect(said).toEqual(["re: other", "re: first", "re: second"]);
    expect(outline(model.log.at(-1)).map(unmarked)).toHaveLength(3);
  });

  it("tells the person when a turn fails, in one message, and goes on", async () => {
    const { telegram, folder, model, take } = await theRoad(section);
    const bad = take(inbound({ text: "bad !fail" }));
    const good = take(inbound({ text: "good" }));
    const [told] = await Promise.all([bad, good]);
    expect(telegram.sent.map(({ text }) => text)).toEqual([told, "re: good"]);
    expect(told).not.toMatch(/ordered|invalid_request|Error/); // why is nobody else's business
    expect(told.trim().split("\n")).toHaveLength(1);
    expect(files(folder)).toEqual([]);
    // What the person said stays in the conversation.
    expect(outline(model.log.at(-1))).toEqual(["user: bad !fail | good"]);
  });

  it("tells of /new when a turn fails, but not in a group, where it is no command", async () => {
    const { telegram, take } = await theRoad(section);
    await take(inbound({ text: "bad !fail" }));
    await take(inbound({ text: "bad !fail", peerId: "-100", isGroup: true }));
    const [direct, group] = telegram.sent.map(({ text }) => text);
    expect(direct).toContain("/new");
    expect(group).not.toContain("/");
  });

  it("shows that it is typing until the turn is over, whichever way it ends", async () => {
    const { app, take } = await theRoad(section);
    const shown: string[] = [];
    const running = new Set<unknown>();
    const [start, stop] = [setInterval, clearInterval];
    vi.spyOn(globalThis, "setInterval").mockImplementation(((...words: [() => void, number]) => {
      const timer = start(...words);
      running.add(timer);
      return timer;
    }) as typeof setInterval); // without __promisify__, which nobody uses here
    vi.spyOn(globalThis, "clearInterval").mockImplementation((timer) => {
      running.delete(timer);
      stop(timer);
    });
    const typing = async (to: string) => void shown.push(to);
    app.channels.set("telegram", Object.assign(silentChannel(), { typing }));
    await take(inbound());
    await take(inbound({ text: "!fail" }));
    expect(shown.length).toBeGreaterThan(1);
    expect([...running]).toEqual([]);
  });

  it("takes half a character, which the API would refuse, in what people say", async () => {
    const { take, model } = await theRoad(section);
    expect(await take(inbound({ text: "half \ud83d of it" }))).toContain("of it");
    expect(await take(inbound({ text: "and \udc00 the other" }))).toContain("the other");
    expect(model.log.every(({ request }) => JSON.stringify(request).isWellFormed())).toBe(true);
    expect(JSON.stringify(model.log.at(-1)?.request.messages)).not.toMatch(/\\ud[89a-f]/i);
  });

  it("goes on when the answer can't be sent, and with a channel that is not there", async () => {
    const { s04, app, telegram, folder, take } = await theRoad(section);
    telegram.send = async () => {
      throw Object.assign(new s04.SendError("blocked"), { permanent: true });
    };
    await take(inbound());
    // From s08 on its reply waits in the queue for a run in which there is such a channel.
    await s04.accept(app, inbound({ channel: "pigeon" })).done;
    expect(files(folder)).toEqual([]);
  });

  it("answers an empty reply with something, and cuts a long one for the platform", async () => {
    const { model, telegram, take } = await theRoad(section);
    model.brain = () => ({ content: [] });
    await take(inbound());
    expect(telegram.sent[0]?.text.trim()).not.toBe("");
    const long = "👍".repeat(5_000);
    model.brain = () => say(long);
    await take(inbound());
    const pieces = telegram.sent.slice(1).map(({ text }) => text);
    expect(pieces.join("").replace(/\s/g, "")).toContain(long);
    for (const piece of pieces) {
      expect(piece.length).toBeLessThanOrEqual(4096);
      expect(piece.isWellFormed()).toBe(true);
    }
  });

  it("/new and /help are commands in a direct chat only", async () => {
    const { model, telegram, take } = await theRoad(section);
    const hears = async (text: string, more = {}) => {
      await take(inbound({ text, ...more }));
      return telegram.sent.at(-1)?.text ?? "";
    };
    await hears("remember me");
    expect(await hears("/help")).toContain("/new");
    expect(await hears("/new")).not.toContain("re:");
    expect(model.log).toHaveLength(1);
    await hears("who am I?");
    expect(outline(model.log.at(-1))).toEqual(["user: who am I?"]);
    // The others are the terminal's: from here they are only words.
    expect(await hears("/list")).toBe("re: /list");
    expect(await hears("/newer")).toBe("re: /newer");
    const group = { peerId: "-100", isGroup: true };
    expect(await hears("/new", group)).toBe("re: /new");
    expect(await hears("/help", group)).toBe("re: /help");
  });

  it("joins the parts of one message, and has them done together", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    const quiet = gate();
    vi.doMock("node:timers/promises", () => ({
      setTimeout: async (ms: number) => {
        await quiet.passed;
        vi.setSystemTime(Date.now() + ms);
      },
    }));
    const { s04, app, model, telegram, folder } = await theRoad(section);
    const part = "telegram 1001 album";
    const one = s04.accept(app, inbound({ id: "p1", text: "[photo] look", part })).done;
    const two = s04.accept(app, inbound({ id: "p2", text: "[photo]", part })).done;
    const next = s04.accept(app, inbound({ id: "n", text: "and?" })).done;
    const other = s04.accept(app, inbound({ id: "o", text: "other", part: "telegram 9 x" })).done;
    expect(files(folder)).toHaveLength(4); // each at once
    quiet.open();
    await Promise.all([one, two, next, other]);
    await delivered(app);
    expect(telegram.sent.map(({ text }) => text)).toEqual([
      "re: [photo] look\n[photo]",
      "re: and?",
      "re: other",
    ]);
    expect(files(folder)).toEqual([]);
    expect(model.log).toHaveLength(3);
    const again = appOf(s04, folder);
    for (const id of ["p1", "p2", "n", "o"]) expect(again.inbox.add(inbound({ id }))).toBe(false);
  });

  it("has the session's record carry the inbox id, and appends it no second time", async () => {
    const { s04, app, model, telegram, folder } = await theRoad(section);
    const message = inbound({ id: "telegram:123456:1001:77", text: "only once" });
    const held = model.hold();
    const { done } = s04.accept(app, { ...message });
    await held.waiting; // the question is on record, the answer is not: now it "crashes"
    const after = appOf(s04, folder, app.channels);
    const [kept] = after.inbox.pending();
    expect(kept).toMatchObject({ id: message.id, attempts: 1 });
    const key = kept?.sessionKey ?? "";
    const [session] = after.store.list(key);
    const file = join(folder, "sessions", encodeURIComponent(key), `${session?.id}.jsonl`);
    const records = () =>
      readFileSync(file, "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
    expect(records().filter(({ inboxId }) => inboxId === message.id)).toHaveLength(1);

    // What a restart does with it: the same turn again, from what is stored.
    const copy = after.store.current(key);
    await s04.runTurn(copy, "only once", { message });
    expect(outline(model.log.at(-1))).toEqual(["user: only once"]);
    expect(records().filter(({ inboxId }) => inboxId === message.id)).toHaveLength(1);
    const asked = model.log.length;
    // And if the answer is stored too, only that is given.
    expect(
      await s04.runTurn(new s04.SessionStore(join(folder, "sessions")).current(key), "x", {
        message,
      }),
    ).toBe("re: only once");
    expect(model.log).toHaveLength(asked);
    await delivered(app);
    expect(telegram.sent).toEqual([]);
    held.release();
    await done;
  });
});

describe.each(sectionsFrom("s04"))(
  "$name, what somebody outside the terminal may do",
  (section) => {
    const offered = async (more: Record<string, string>, message?: ReturnType<typeof inbound>) => {
      const s04 = await load04(section, settings(undefined, more));
      const request = s04.buildRequest(new s04.Conversation(), { message });
      return (request.tools ?? []).map(({ name }) => name);
    };
    const OWNERS = ["bash", "write_file", "edit_file"];

    it("is offered no tool that changes things, unless REMOTE_TOOLS=1", async () => {
      const far = await offered({}, inbound());
      for (const name of OWNERS) expect(far).not.toContain(name);
      expect(far).toContain("read_file");
      expect(await offered({ REMOTE_TOOLS: "0" }, inbound())).not.toContain("bash");
      expect(await offered({ REMOTE_TOOLS: "1" }, inbound())).toEqual(
        expect.arrayContaining(OWNERS),
      );
      expect(await offered({}, inbound({ channel: "cli" }))).toEqual(
        expect.arrayContaining(OWNERS),
      );
      expect(await offered({}, inbound({ channel: "CLI" }))).not.toContain("bash");
    });

    it("can't call one that is not offered either", async () => {
      const { model, telegram, folder, take } = await theRoad(section);
      const made = join(folder, "made");
      const uses = (name: string, input: object): ScriptedBlock => ({
        type: "tool_use",
        name,
        input,
      });
      model.brain = (request) =>
        results(model.log.at(-1)).length > 0
          ? say(`done ${lastText(request)}`)
          : {
              content: [
                uses("bash", { command: `touch ${made}` }),
                uses("write_file", { path: "made", content: "x" }),
                uses("constructor", {}),
              ],
            };
      await take(inbound({ text: "do it" }));
      expect(results(model.log.at(-1)).map((one) => one.is_error)).toEqual([true, true, true]);
      expect(existsSync(made)).toBe(false);
      expect(telegram.sent.at(-1)?.text).toBe("done do it");
      expect(blocks(model.log.at(-1)?.request.messages.at(-1))).toHaveLength(3);
    });
  },
);
