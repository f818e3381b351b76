/** s04: which attempts count, what quarantine does, whose answer is whose, and a disk that is full. */

import fs, {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import {
  calls,
  englishFrom,
  outline,
  printed,
  results,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import {
  type App04,
  afterwards,
  appOf,
  begunAlbum,
  delivered,
  echoModel,
  inbound,
  lastText,
  load04,
  openWorld,
  platforms,
  processedFile,
  type S04,
  silentChannel,
} from "./world.ts";

type Section = Parameters<typeof load04>[0];
type Routed = Parameters<InstanceType<S04["Inbox"]>["add"]>[0];

/** A section with an echoing model, and a Telegram that takes everything. */
async function openApp(section: Section) {
  const model = await echoModel();
  const s04 = await load04(section, settings(model));
  const folder = temporaryFolder();
  const app = appOf(s04, folder);
  const telegram = silentChannel();
  app.channels.set("telegram", telegram);
  return { s04, app, model, telegram, folder };
}

/** The file of the session in which a conversation goes on. */
const sessionFile = (app: App04, folder: string, key: string) =>
  join(folder, "sessions", encodeURIComponent(key), `${app.store.current(key).id}.jsonl`);

const inboxFiles = (folder: string) =>
  readdirSync(join(folder, "inbox")).filter((name) => name.endsWith(".json"));

/** Waits until `condition` holds. The limit only ends a test that would hang. */
async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`It never became so: ${condition}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/**
 * The pause after the disk has refused something: it lasts until the test ends it, and `count` says
 * how often there was one. To be called before the section is loaded.
 */
function holdMinutes() {
  const waiting: (() => void)[] = [];
  const minutes = { count: 0, pass: () => waiting.splice(0).forEach((run) => void run()) };
  vi.doMock("node:timers/promises", () => ({
    setTimeout: (ms: number) =>
      new Promise<void>((resolve) => {
        if (ms !== 60_000) return void globalThis.setTimeout(resolve, ms);
        minutes.count += 1;
        waiting.push(resolve);
      }),
  }));
  return minutes;
}

/**
 * Every write to this file fails for want of space, as writing to /dev/full does, until the function
 * that this gives is called.
 */
function fill(file: string): () => void {
  const aside = `${file}.aside`;
  if (existsSync(file)) renameSync(file, aside);
  symlinkSync("/dev/full", file);
  return () => {
    rmSync(file);
    if (existsSync(aside)) renameSync(aside, file);
  };
}

/** Nothing can be added to this file until the function that this gives is called. */
function lock(file: string): () => void {
  const { openSync } = fs;
  const spy = vi.spyOn(fs, "openSync").mockImplementation((path, ...more) => {
    if (path !== file) return openSync(path, ...more);
    throw Object.assign(new Error(`EACCES: permission denied, open '${file}'`), { code: "EACCES" });
  });
  return () => spy.mockRestore();
}

/** The number of the file that the inbox or the queue writes next. */
const next = (folder: string, number: number) =>
  join(folder, `${String(number).padStart(12, "0")}.json.tmp`);

describe.each(sectionsFrom("s04"))("$name, too many messages", (section) => {
  it("100 may wait in a conversation; the next is told so once, and others are taken", async () => {
    const { s04, app, model, telegram, folder } = await openApp(section);
    const hold = model.hold();
    const write = (id: string, peerId = "1001") =>
      s04.accept(app, inbound({ id, peerId, text: id })).done;
    const done = [write("running")];
    await hold.waiting;
    for (let i = 0; i < 100; i++) done.push(write(`m${i}`));
    expect(inboxFiles(folder)).toHaveLength(101);
    expect(await Promise.all([write("more"), write("again"), write("m3")])).toEqual(["", "", ""]);
    await delivered(app);
    expect(telegram.sent.map(({ to }) => to)).toEqual(["1001"]);
    expect(telegram.sent[0]?.text).toContain("100");
    expect(await write("other", "1002")).toBe("re: other");
    hold.release();
    await Promise.all(done);
    await delivered(app);
    expect(inboxFiles(folder)).toEqual([]);
    expect(telegram.sent).toHaveLength(103);
    // What was not taken may be sent again.
    expect(await write("more")).toBe("re: more");
  }, 60_000);
});

describe.each(sectionsFrom("s04"))("$name, attempts", (section) => {
  it("count deaths only: an orderly stop gives them back", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    new Inbox(dir).add(inbound({ id: "a" }));
    const live = (end: "orderly" | "killed") => {
      const inbox = new Inbox(dir);
      inbox.countAttempt(inbox.pending());
      inbox.countAttempt(inbox.pending()); // the same turn, after a minute on a full disk
      if (end === "orderly") inbox.stopCounting();
      return new Inbox(dir).pending().map(({ attempts }) => attempts);
    };
    for (let life = 0; life < 5; life++) expect(live("orderly")).toEqual([0]);
    expect(live("killed")).toEqual([1]);
    expect(live("orderly")).toEqual([1]);
    expect(live("killed")).toEqual([2]);
    expect(live("killed")).toEqual([]);
  });

  it("that begin after the end has begun don't count", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const inbox = new Inbox(dir);
    for (const id of ["a", "b"]) inbox.add(inbound({ id }));
    inbox.stopCounting();
    inbox.countAttempt(inbox.pending());
    expect(new Inbox(dir).pending().map(({ attempts }) => attempts)).toEqual([0, 0]);
  });

  it("can be given back one by one, and only once", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const inbox = new Inbox(dir);
    for (const id of ["a", "b"]) inbox.add(inbound({ id, attempts: 1 }));
    const [a] = inbox.pending();
    inbox.countAttempt(inbox.pending());
    if (a) for (let times = 0; times < 2; times++) inbox.giveBack([a]);
    expect(new Inbox(dir).pending().map(({ attempts }) => attempts)).toEqual([1, 2]);
  });

  it("given back, still tell which parts may be in the session already", async () => {
    const { Inbox } = await load04(section);
    const dir = join(temporaryFolder(), "inbox");
    const { inbox } = begunAlbum(Inbox, dir);
    inbox.stopCounting();
    const after = new Inbox(dir);
    after.add(inbound({ id: "p3", part: "album" }));
    const groups = after.pending().map((one) => after.partsOf(one).map(({ id }) => id));
    expect(groups).toEqual([["p1", "p2"], ["p1", "p2"], ["p3"]]);
  });
});

describe.each(sectionsFrom("s04"))("$name, quarantine", (section) => {
  it("is listed by /inbox, and /inbox retry answers what is there", async () => {
    const { s04, model, telegram, folder } = await openApp(section);
    const inbox = new s04.Inbox(join(folder, "inbox"));
    for (const id of ["a", "b"]) inbox.add(inbound({ id, text: `text ${id}`, attempts: 3 }));
    writeFileSync(join(folder, "inbox/000000000009.json"), "[]");
    const app = appOf(s04, folder);
    app.channels.set("telegram", telegram);
    expect([...app.inbox.newlyQuarantined.keys()]).toEqual(["a", "b"]);
    const list = await s04.COMMANDS.inbox?.run("", app, {});
    expect(list).toHaveLength(2);
    expect(String(list)).toMatch(/a.*text a.*b.*text b/s);
    expect(await s04.COMMANDS.inbox?.run("retry", app, {})).toContain("2");
    await until(() => telegram.sent.length === 2);
    expect(telegram.sent.map(({ text }) => text)).toEqual(["re: text a", "re: text b"]);
    await delivered(app);
    expect(model.log).toHaveLength(2);
    expect(inboxFiles(folder)).toEqual([]);
    expect(typeof (await s04.COMMANDS.inbox?.run("", app, {}))).toBe("string");
    expect(new s04.Inbox(join(folder, "inbox")).add(inbound({ id: "a" }))).toBe(false);
  });

  it("stays in the inbox after /inbox retry, if its channel is not set up in this run", async () => {
    const { s04, model, folder } = await openApp(section);
    const inbox = new s04.Inbox(join(folder, "inbox"));
    inbox.add(inbound({ id: "a", text: "text a", attempts: 3 }));
    const app = appOf(s04, folder);
    expect(await s04.COMMANDS.inbox?.run("retry", app, {})).toContain("1");
    expect(app.inbox.pending().map(({ id }) => id)).toEqual(["a"]);
    expect(inboxFiles(folder)).toHaveLength(1);
    expect(model.log).toEqual([]);
  });

  it("takes what a number can't count, ids that can't be read, and a folder that is none", async () => {
    const { Inbox } = await load04(section);
    const folder = temporaryFolder();
    const dir = join(folder, "inbox");
    new Inbox(dir).add(inbound({ id: "a" }));
    writeFileSync(join(dir, `${"9".repeat(22)}.json`), JSON.stringify(inbound({ id: "far" })));
    mkdirSync(processedFile(dir));
    const inbox = new Inbox(dir);
    inbox.add(inbound({ id: "b" }));
    expect(inboxFiles(folder)).toEqual(["000000000001.json", "000000000002.json"]);
    inbox.acknowledge(inbox.pending().slice(0, 1));
    expect(new Inbox(dir).add(inbound({ id: "a" }))).toBe(false);
    for (const name of [`${"9".repeat(22)}.json`, basename(processedFile(dir))])
      expect(printed()).toMatch(new RegExp(`${name}\\D.*quarantined`));

    for (const replace of [
      () => writeFileSync(dir, "not a folder"),
      () => symlinkSync(join(folder, "nowhere"), dir),
    ]) {
      rmSync(dir, { recursive: true });
      replace();
      const afresh = new Inbox(dir);
      expect(afresh.add(inbound({ id: "c" }))).toBe(true);
      expect(new Inbox(dir).pending().map(({ id }) => id)).toEqual(["c"]);
    }
  });
});

describe.each(sectionsFrom("s04"))("$name, whose answer", (section) => {
  const user = (text: string) => ({
    role: "user" as const,
    content: [{ type: "text" as const, text }],
  });

  it("a message gets that of its own turn, though a later turn is stored behind it", async () => {
    const { s04, app, model, telegram } = await openApp(section);
    const a: Routed = inbound({ id: "a", text: "text a" });
    const b: Routed = inbound({ id: "b", text: "text b" });
    const session = app.store.current(a.sessionKey);
    for (const message of [a, b]) {
      app.inbox.add(message);
      session.append(user(message.text), { inboxId: message.id });
      const options = { message, app } as Parameters<S04["runTurn"]>[2]; // s04 knows no app
      expect(await s04.runTurn(session, "", options)).toBe(`re: ${message.text}`);
    }
    const asked = model.log.length;
    expect(await s04.handle(app, [a])).toBe("re: text a");
    expect(await s04.handle(app, [b])).toBe("re: text b");
    await delivered(app);
    expect(telegram.sent.map(({ text }) => text)).toEqual(["re: text a", "re: text b"]);
    expect(model.log).toHaveLength(asked);
  });

  it("one that never got an answer is asked again, and not answered with the later one's", async () => {
    const { s04, app, model } = await openApp(section);
    const a: Routed = inbound({ id: "a", text: "text a" });
    const b: Routed = inbound({ id: "b", text: "text b" });
    const session = app.store.current(a.sessionKey);
    for (const message of [a, b]) app.inbox.add(message);
    session.append(user(a.text), { inboxId: a.id });
    await s04.handle(app, [b]);
    expect(await s04.handle(app, [a])).toBe("re: text a");
    expect(outline(model.log.at(-1)).at(-1)).toBe("user: text a");
    await delivered(app);
  });
});

// Writing to /dev/full fails as a full disk does.
describe.runIf(existsSync("/dev/full")).each(sectionsFrom("s04"))(
  "$name, on a full disk",
  (section) => {
    it("accept throws, so that the platform sends it again, and leaves nothing behind", async () => {
      const { s04, app, telegram, folder } = await openApp(section);
      const message = inbound({ text: "again" });
      const free = fill(next(join(folder, "inbox"), 1));
      for (let times = 0; times < 3; times++)
        expect(() => s04.accept(app, { ...message })).toThrow("ENOSPC");
      expect(readdirSync(join(folder, "inbox"))).toEqual(["000000000001.json.tmp", "processed"]);
      free();
      expect(await s04.accept(app, { ...message }).done).toBe("re: again");
      await delivered(app);
      expect(telegram.sent).toHaveLength(1);
    });

    it("/inbox retry answers what it took out of quarantine before, and the rest later", async () => {
      const { s04, telegram, folder } = await openApp(section);
      const inbox = new s04.Inbox(join(folder, "inbox"));
      const ids = ["a", "b", "c"];
      for (const id of ids) inbox.add(inbound({ id, text: `text ${id}`, attempts: 3 }));
      const app = appOf(s04, folder);
      app.channels.set("telegram", telegram);
      const free = fill(next(join(folder, "inbox"), 5));
      const retry = async () => s04.COMMANDS.inbox?.run("retry", app, {});
      await expect(retry()).rejects.toThrow("ENOSPC");
      await until(() => telegram.sent.length === 1);
      free();
      expect(await retry()).toContain("2");
      await until(() => telegram.sent.length === 3);
      expect(telegram.sent.map(({ text }) => text)).toEqual(ids.map((id) => `re: text ${id}`));
      await delivered(app);
      expect(inboxFiles(folder)).toEqual([]);
    });

    it("counting an attempt waits, and with it what came later; it is said once", async () => {
      const minutes = holdMinutes();
      const { s04, app, telegram, folder, model } = await openApp(section);
      let begin = (): void => {};
      const busy = new Promise<void>((resolve) => {
        begin = resolve;
      });
      void s04.runExclusive(inbound().sessionKey, () => busy);
      const first = s04.accept(app, inbound({ text: "one" })).done;
      const free = fill(next(join(folder, "inbox"), 1));
      begin();
      const second = s04.accept(app, inbound({ text: "two" })).done;
      const other = inbound({ peerId: "1002", senderId: "1002", text: "other" });
      expect(await s04.accept(app, other).done).toBe("re: other");
      for (const times of [1, 2, 3]) {
        await until(() => minutes.count === times);
        expect(model.log).toHaveLength(1);
        minutes.pass();
      }
      free();
      expect(await Promise.all([first, second])).toEqual(["re: one", "re: two"]);
      await delivered(app);
      expect(telegram.sent.map(({ text }) => text)).toEqual(["re: other", "re: one", "re: two"]);
      expect(printed().match(/ENOSPC/g)).toHaveLength(1);
      expect(inboxFiles(folder)).toEqual([]);
    });

    it("a tool whose result can't be stored runs once, and the reply is asked for once", async () => {
      const minutes = holdMinutes();
      const { s04, app, model, folder } = await openApp(section);
      const message = inbound({ text: "do it" });
      const file = sessionFile(app, folder, message.sessionKey);
      let ran = 0;
      let free = () => {};
      s04.HANDLERS.get_current_time = () => {
        ran += 1;
        free = lock(file);
        return "noon";
      };
      model.brain = (request) =>
        results(model.log.at(-1)).length > 0
          ? say(`done: ${lastText(request)}`)
          : calls(["get_current_time", {}]);
      const { done } = s04.accept(app, message);
      for (const times of [1, 2]) {
        await until(() => minutes.count === times);
        minutes.pass();
      }
      await until(() => minutes.count === 3);
      free();
      minutes.pass();
      expect(await done).toBe("done: do it");
      expect(ran).toBe(1);
      expect(model.log).toHaveLength(2);
      expect(results(model.log.at(-1))[0]?.content).toBe("noon");
      await delivered(app);
      const lines = readFileSync(file, "utf8").trim().split("\n");
      expect(lines.filter((line) => line.includes("noon"))).toHaveLength(1);
    });

    it("a question or an answer that can't be stored waits as well", async () => {
      const minutes = holdMinutes();
      const { s04, app, model, folder } = await openApp(section);
      const message = inbound({ text: "hello" });
      const file = sessionFile(app, folder, message.sessionKey);
      let free = lock(file);
      const { done } = s04.accept(app, message);
      await until(() => minutes.count === 1);
      expect(model.log).toHaveLength(0);
      free();
      const held = model.hold();
      minutes.pass();
      await held.waiting;
      free = lock(file);
      held.release();
      await until(() => minutes.count === 2);
      free();
      minutes.pass();
      expect(await done).toBe("re: hello");
      expect(model.log).toHaveLength(1);
      await delivered(app);
      expect(
        new s04.SessionStore(join(folder, "sessions")).current(message.sessionKey).messages,
      ).toHaveLength(2);
    });

    it("an answered message is acknowledged later, and answered once", async () => {
      const minutes = holdMinutes();
      const { s04, app, telegram, folder } = await openApp(section);
      const free = lock(processedFile(join(folder, "inbox")));
      const { done } = s04.accept(app, inbound({ text: "hello" }));
      await until(() => minutes.count === 1);
      await delivered(app);
      expect(telegram.sent).toHaveLength(1);
      expect(inboxFiles(folder)).toHaveLength(1);
      free();
      minutes.pass();
      await done;
      expect(inboxFiles(folder)).toEqual([]);
      await delivered(app);
      expect(telegram.sent).toHaveLength(1);
    });
  },
);

describe.each(englishFrom("s04"))("$name, three orderly ends", (section) => {
  it("drop no message: input that ends, SIGTERM at the terminal", async () => {
    const world = await openWorld(section, { feishu: false });
    let held = world.model.hold();
    world.telegramSays("alice", "patience");
    await held.waiting;
    for (const end of ["input", "SIGTERM", "SIGTERM", "input"] as const) {
      if (end === "input") world.program.write("quit\n");
      else world.program.kill(end);
      expect((await world.program.end()).code).toBe(0);
      expect(world.inboxEntries().map(({ attempts }) => attempts)).toEqual([0]);
      held = world.model.hold();
      await world.start();
      await held.waiting;
    }
    held.release();
    expect(await world.telegramHears("alice")).toBe("re: patience");
  });
});

describe.each(sectionsFrom("s04"))("$name, a group that became a supergroup", (section) => {
  const open = async (more = {}) => {
    const { telegram, given } = await platforms();
    const workspace = temporaryFolder();
    const { id } = telegram.group("old", { type: "group" });
    const all: Record<string, string> = {
      ...given,
      TELEGRAM_ALLOWED_CHATS: `1001 ${id}`,
      ...more,
    };
    const s04 = await load04(section, settings(undefined, { CLAW0_WORKSPACE: workspace }));
    const got: { peerId: string; text: string }[] = [];
    const start = async () => {
      const channel = new s04.TelegramChannel((name) => all[name] ?? "");
      afterwards(() => channel.stop().catch(() => {}));
      await channel.start((message) => {
        got.push(message);
        return { done: Promise.resolve("") };
      });
      return channel;
    };
    return { telegram, workspace, id: String(id), all, got, start };
  };

  it("is followed to its new id, and keeps its old one in the program, after a start too", async () => {
    const { telegram, workspace, id, got, all, start } = await open();
    const channel = await start();
    const { newId } = telegram.upgrade("old", false); // nobody told us: the send is refused
    await channel.send(id, "one");
    await channel.send(id, "two");
    expect(telegram.sent.map(({ chat, text }) => [chat, text])).toEqual([
      [newId, "one"],
      [newId, "two"],
    ]);
    const moved = JSON.parse(readFileSync(join(workspace, ".state/moved.json"), "utf8"));
    expect(moved).toEqual({ [id]: String(newId) });
    await telegram.say("alice", "@practice_bot hi", { group: "old" }).confirmed;
    expect(got.at(-1)).toMatchObject({ peerId: id });
    await channel.stop();
    all.TELEGRAM_ALLOWED_CHATS = `1001 ${newId}`; // the owner knows the new one only
    const later = await start();
    await telegram.say("alice", "@practice_bot there", { group: "old" }).confirmed;
    expect(got.at(-1)).toMatchObject({ peerId: id });
    await later.send(id, "three");
    expect(telegram.sent.at(-1)).toMatchObject({ chat: newId, text: "three" });
  });

  it("is known by Telegram's own message about it", async () => {
    const { telegram, id, got, start } = await open();
    await start();
    telegram.upgrade("old");
    await telegram.say("alice", "@practice_bot hi", { group: "old" }).confirmed;
    expect(got).toMatchObject([{ peerId: id }]);
    expect(telegram.sent).toEqual([]); // no stranger
  });

  it("a topic that is gone is answered in its chat", async () => {
    const { telegram, start } = await open();
    const channel = await start();
    const club = telegram.chatId("club");
    await channel.send(`${club}:topic:77`, "here");
    expect(telegram.sent).toMatchObject([{ chat: club, text: "here" }]);
    expect(telegram.sent[0]?.thread).toBe(undefined);
  });

  it("an answer in which nobody sees anything is one in words", async () => {
    const { s04, app, telegram } = await openApp(section);
    for (const answer of ["\u200b\u2060", "\u3164", "\ufe0f", "\u2800 ", "\u0007", ""]) {
      await s04.reply(app, inbound(), answer);
    }
    await delivered(app);
    expect(telegram.sent).toHaveLength(6);
    for (const { text } of telegram.sent) expect(text).toMatch(/\p{L}/u);
  });
});

describe.each(englishFrom("s04"))("$name, the end of the program", (section) => {
  it("ends the commands that still run", async () => {
    const world = await openWorld(section, { feishu: false, settings: { REMOTE_TOOLS: "1" } });
    const file = join(world.workspace, "pid");
    world.model.brain = () => calls(["bash", { command: "echo $$ > pid; exec sleep 500" }]);
    world.telegramSays("alice", "sleep");
    const pid = () => (existsSync(file) ? Number(readFileSync(file, "utf8")) : 0);
    await until(() => pid() > 0);
    world.program.write("quit\n");
    expect((await world.program.end()).code).toBe(0);
    // A killed process may stay for a moment until the system has taken note of it.
    await until(() => isGone(pid()));
  });

  it("a message that was attempted three times is told to its writer, and from s07 to the owner", async () => {
    const world = await openWorld(section, { feishu: false });
    world.telegramSays("alice", "I am the owner");
    expect(await world.telegramHears("alice")).toBe("re: I am the owner");
    const held = world.model.hold();
    world.telegramSays("bob", "poison");
    await held.waiting;
    await world.kill();
    const [name = ""] = world.inboxFiles();
    const inbox = join(world.state, "inbox", name);
    const message = JSON.parse(readFileSync(inbox, "utf8"));
    writeFileSync(inbox, JSON.stringify({ ...message, attempts: 3 }));
    const program = await world.start();
    expect(await world.telegramHears("bob")).toMatch(/not answer an earlier message/);
    if (section.id >= "s07") expect(await world.telegramHears("alice")).toContain("/inbox retry");
    expect(program.text).toMatch(/is quarantined.*\/inbox retry/);
    expect(await program.ask("/inbox")).toContain("poison");
    expect(await program.ask("/inbox retry")).toContain("1");
    expect(await world.telegramHears("bob")).toBe("re: poison");
  });
});

/** Whether a process has ended. */
function isGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return true;
  }
  const stat = `/proc/${pid}/stat`; // which only Linux has
  return existsSync(stat) && readFileSync(stat, "utf8").includes(") Z ");
}
