/** s08, the queue and its runner: imported, with a clock that the cases move. */

import fs from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import {
  practice,
  printed,
  quarantineLine,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import {
  delivery,
  entriesOf,
  filesOf,
  HOUR,
  load08,
  NOON,
  openDesk,
  openTelegram,
  pass,
  plant,
  SECOND,
  stopTheClock,
  turns,
  until,
} from "./s08-helper.ts";
import { delivered, inbound, processedFile, processedLines } from "./world.ts";

const BACKOFF = [5, 25, 120, 600, 1800, 1800];

describe.each(sectionsFrom("s08"))("$name, to a platform that fails", (file) => {
  it("waits 5 s, 25 s, 2 min, 10 min, then 30 min, keeps the order, and holds up nobody else", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, telegram, chat, times } = await openTelegram(section);
    vi.spyOn(Math, "random").mockReturnValue(0);
    const to = chat("alice");
    // None of these is for good: an answer that says so, a page of a proxy's, and nobody there.
    for (const kind of ["500", "502", "refuse", "429", "502", "500"])
      telegram.fail({ kind, chat: "alice" });
    for (const part of [0, 1, 2]) queue.add(delivery(`a#${part}`, { to }));
    queue.add(delivery("b#0", { to }));
    queue.add(delivery("c#0", { to: chat("bob") }));
    runner.start();
    const [first] = queue.waiting.get(`telegram ${to}`) ?? [];
    for (const [tries, seconds] of BACKOFF.entries()) {
      await until(() => first?.failures === tries + 1);
      // Bob has his, and of what is for alice nothing goes before the first.
      await telegram.until(() => telegram.textsTo("bob").length === 1);
      expect(telegram.textsTo("alice")).toEqual([]);
      await pass(seconds * SECOND - 1);
      expect(times("text of a#0")).toHaveLength(tries + 1);
      await pass(1);
    }
    await until(() => queue.size === 0);
    const runExclusive = ["text of a#0", "text of a#1", "text of a#2", "text of b#0"];
    expect(telegram.textsTo("alice")).toEqual(runExclusive);
    expect(telegram.textsTo("bob")).toEqual(["text of c#0"]);
    const sums = [0, 5, 30, 150, 750, 2550, 4350].map((seconds) => seconds * SECOND);
    expect(times("text of a#0")).toEqual(sums);
    expect(runner.stats).toEqual({ sent: 5, retried: 6, failed: 0 });
  });

  it("waits up to a quarter longer, so that not all come at once", async () => {
    const section = await load08(file);
    stopTheClock();
    const waits = async (random: number) => {
      vi.spyOn(Math, "random").mockReturnValue(random);
      const { queue, runner, line, refuse } = openDesk(section);
      line.fate = () => refuse("busy");
      const one = delivery("a#0");
      queue.add(one);
      runner.start();
      const found: number[] = [];
      while (found.length < 6) {
        await until(() => one.failures > found.length);
        found.push((one.nextAttemptAt - Date.now()) / SECOND);
        await pass(one.nextAttemptAt - Date.now());
      }
      return found;
    };
    const shortest = await waits(0);
    const longest = await waits(1 - 2 ** -53);
    expect(shortest).toEqual(BACKOFF);
    for (const [index, seconds] of BACKOFF.entries()) {
      expect(longest[index]).toBeGreaterThan(seconds * 1.1);
      expect(longest[index]).toBeLessThanOrEqual(Math.ceil(seconds * 1.25));
    }
  });

  it("goes on through an outage of 23 hours, and gives up after 24, with the rest of that reply", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line, folder, refuse } = openDesk(section);
    line.fate = () => refuse("Bad Gateway");
    for (const id of ["a#0", "a#1"]) queue.add(delivery(id));
    runner.start();
    await until(() => line.tried.length === 1);
    for (let hour = 0; hour < 22; hour++) await pass(HOUR);
    expect(queue.deadLetters()).toEqual([]);
    expect(line.tried.length).toBeGreaterThan(30);
    expect(line.tried.length).toBeLessThan(60);
    // "a" is the beginning of "a#1!": they are different replies all the same.
    for (const id of ["a#1!#0", "b#0"]) queue.add(delivery(id));
    for (let hour = 22; hour < 25; hour++) await pass(HOUR);
    await until(() => queue.size === 2);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["a#0", "a#1"]);
    expect(entriesOf(folder, "failed").map(({ error }) => error)).toEqual(
      new Array(2).fill(expect.stringContaining("24 hours")),
    );
    line.fate = () => {};
    await pass(HOUR);
    await until(() => queue.size === 0);
    expect(line.taken).toEqual(["text of a#1!#0", "text of b#0"]);
    expect(line.tried).not.toContain("text of a#1");
  });

  it("gives up a refusal that nobody knows after five tries, with the rest of that reply", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line, refuse } = openDesk(section);
    line.fate = (_to, text) =>
      text === "text of a#0" && refuse("401: who is there?", false, undefined, true);
    for (const id of ["a#0", "a#1", "b#0"]) queue.add(delivery(id));
    const [first] = queue.waiting.get("telegram 1001") ?? [];
    runner.start();
    for (const tries of [1, 2, 3, 4]) {
      await until(() => first?.failures === tries);
      await pass((first?.nextAttemptAt ?? 0) - Date.now());
    }
    await until(() => queue.size === 0);
    expect(line.tried.filter((text) => text === "text of a#0")).toHaveLength(5);
    expect(line.taken).toEqual(["text of b#0"]);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["a#0", "a#1"]);
    expect(runner.stats).toEqual({ sent: 1, retried: 4, failed: 2 });
  });

  it("after the clock was put back, waits between its attempts as always", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line, refuse } = openDesk(section);
    line.fate = () => refuse("busy");
    queue.add(delivery("a#0"));
    vi.setSystemTime(NOON - 2 * HOUR);
    runner.start();
    await until(() => line.tried.length === 1);
    await pass(4 * SECOND);
    expect(line.tried).toHaveLength(1);
    await pass(10 * SECOND);
    await until(() => line.tried.length === 2);
    await pass(10 * SECOND); // 24 s after the first: the third is due after 30
    expect(line.tried).toHaveLength(2);
  });

  it.each(["403", "400"])("gives up at once at a %s", async (kind) => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, telegram, chat, times } = await openTelegram(section);
    const to = chat("alice");
    telegram.fail({ kind, chat: "alice" });
    for (const id of ["a#0", "a#1", "b#0"]) queue.add(delivery(id, { to }));
    runner.start();
    await until(() => queue.size === 0);
    expect(times("text of a#0")).toEqual([0]);
    expect(telegram.textsTo("alice")).toEqual(["text of b#0"]);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["a#0", "a#1"]);
  });

  it("respects what it is told to wait", async () => {
    const section = await load08(file);
    stopTheClock();
    vi.spyOn(Math, "random").mockReturnValue(0);
    const { queue, runner, telegram, chat, times } = await openTelegram(section);
    telegram.fail({ kind: "429", chat: "alice", retryAfter: 40 });
    telegram.fail({ kind: "429", chat: "bob", retryAfter: 2 });
    const [alice, bob] = ["alice", "bob"].map((name) => {
      const one = delivery(`${name}#0`, { to: chat(name) });
      queue.add(one);
      return one;
    });
    runner.start();
    await until(() => alice?.failures === 1 && bob?.failures === 1);
    await pass(5 * SECOND);
    await until(() => queue.size === 1);
    await pass(35 * SECOND);
    await until(() => queue.size === 0);
    // Two seconds are less than we would wait anyway.
    expect(times("text of bob#0")).toEqual([0, 5 * SECOND]);
    expect(times("text of alice#0")).toEqual([0, 40 * SECOND]);
  });

  it("holds up nobody for those whose sends hang, however many they are", async () => {
    const section = await load08(file);
    const { queue, runner, line } = openDesk(section);
    line.fate = (to) => to.startsWith("stuck") && new Promise(() => {});
    for (let index = 0; index < 20; index++)
      queue.add(delivery(`s${index}#0`, { to: `stuck ${index}` }));
    queue.add(delivery("a#0"));
    runner.start();
    await until(() => line.taken.length === 1);
    expect(line.taken).toEqual(["text of a#0"]);
    expect(line.tried).toHaveLength(21);
  });

  it("sends again what was accepted when the connection broke", async () => {
    const section = await load08(file);
    stopTheClock();
    vi.spyOn(Math, "random").mockReturnValue(0);
    const { queue, runner, telegram, chat } = await openTelegram(section);
    telegram.fail({ kind: "drop", chat: "alice" });
    const one = delivery("a#0", { to: chat("alice") });
    queue.add(one);
    runner.start();
    await until(() => one.failures === 1);
    expect(telegram.sent.map(({ dropped }) => dropped)).toEqual([true]);
    await pass(5 * SECOND);
    await until(() => queue.size === 0);
    expect(telegram.sent.map(({ dropped }) => dropped)).toEqual([true, false]);
  });
});

describe.each(sectionsFrom("s08"))("$name, time", (file) => {
  it("sends nothing that is older than 24 hours, and says so", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line, refuse } = openDesk(section);
    const old = NOON - 24 * HOUR;
    queue.add(delivery("just#0", { enqueuedAt: old }));
    queue.add(delivery("old#0", { to: "1002", enqueuedAt: old - 1 }));
    queue.add(delivery("old#1", { to: "1002", enqueuedAt: old - 1 }));
    queue.add(delivery("new#0", { to: "1002" }));
    runner.start();
    await until(() => queue.size === 0);
    expect(line.taken.sort()).toEqual(["text of just#0", "text of new#0"]);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["old#0", "old#1"]);
    expect(printed()).toContain("old#0");

    // Nor does it wait with that until its turn has come: it may never come.
    line.fate = () => refuse("busy", false, 90 * 24 * 3600);
    queue.add(delivery("far#0", { to: "1003" }));
    runner.wake("telegram 1003");
    await until(() => line.tried.includes("text of far#0"));
    await pass(24 * HOUR);
    expect(queue.size).toBe(1);
    await pass(SECOND);
    await until(() => queue.size === 0);
    expect(queue.deadLetters().map(({ id }) => id)).toContain("far#0");
    expect(line.tried.filter((text) => text === "text of far#0")).toHaveLength(1);
  });

  it("sends at once what a clock put back would hold up, and no timer runs wild", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line } = openDesk(section);
    const times = vi.spyOn(globalThis, "setTimeout");
    queue.add(delivery("a#0", { nextAttemptAt: NOON + 10 * SECOND }));
    queue.add(delivery("a#1"));
    queue.add(delivery("b#0", { to: "1002", nextAttemptAt: 8e15 })); // the right type, and nonsense
    vi.setSystemTime(NOON - 40 * 24 * HOUR);
    runner.start();
    await until(() => line.taken.length === 3);
    const [a0, a1] = line.taken.filter((text) => text.includes("a#"));
    expect([a0, a1]).toEqual(["text of a#0", "text of a#1"]);
    const tooLong = times.mock.calls.filter(([, ms = 0]) => ms > 2 ** 31 - 1);
    expect(tooLong).toEqual([]);
    expect(queue.size).toBe(0);
  });

  it("has one timer for each recipient, whatever waits; a tick touches nobody else's", async () => {
    const section = await load08(file);
    stopTheClock();
    const { queue, runner, line } = openDesk(section);
    let reads = 0;
    const waiting = (id: string, to: string) => {
      const one = delivery(id, { to, nextAttemptAt: NOON + HOUR });
      const next = one.nextAttemptAt;
      // A delivery that counts how often somebody looks when it is due.
      const get = () => {
        reads += 1;
        return next;
      };
      return Object.defineProperty(one, "nextAttemptAt", { get, enumerable: true });
    };
    const crowd = Array.from({ length: 10_000 }, (_, index) => waiting(`m${index}#0`, "crowd"));
    queue.waiting.set("telegram crowd", crowd);
    const before = vi.getTimerCount();
    runner.start();
    await turns();
    expect(vi.getTimerCount() - before).toBe(1);
    expect(reads).toBeLessThan(10);

    for (let index = 0; index < 1000; index++)
      queue.waiting.set(`telegram p${index}`, [waiting(`p${index}#0`, `p${index}`)]);
    runner.start();
    await turns();
    expect(vi.getTimerCount() - before).toBe(1001);

    // One more, with all of them in the house: what it costs does not depend on them.
    reads = 0;
    const disk = vi.spyOn(fs, "readdirSync");
    const writes = vi.spyOn(fs, "writeFileSync");
    queue.add(delivery("a#0"));
    runner.wake("telegram 1001");
    await until(() => line.taken.length === 1);
    await turns();
    expect(reads).toBe(0);
    expect(disk).not.toHaveBeenCalled();
    const written = writes.mock.calls.filter(([name]) => String(name).endsWith(".tmp"));
    expect(written).toHaveLength(2); // when it came, and when its send began
    expect(vi.getTimerCount() - before).toBe(1001);
    vi.clearAllTimers();
    queue.waiting.clear();
  });
});

describe.each(sectionsFrom("s08"))("$name, files", (file) => {
  it("has each part in a file before it is sent, and none of it afterwards", async () => {
    const section = await load08(file);
    const { app, folder, line, queue } = openDesk(section);
    let seen: unknown[] = [];
    line.fate = () => {
      if (seen.length === 0) seen = entriesOf(folder);
    };
    const answer = `${"A paragraph of it. ".repeat(150)}\n\n`.repeat(3);
    await section.reply(app, inbound({ id: "telegram:1:1001:7" }), answer);
    expect(entriesOf(folder).map(({ id }) => id)).toHaveLength(3);
    await until(() => queue.size === 0);
    expect(seen).toMatchObject([
      { id: "telegram:1:1001:7#0", channel: "telegram", to: "1001", failures: 0, unfinished: 1 },
      { id: "telegram:1:1001:7#1", unfinished: 0 },
      { id: "telegram:1:1001:7#2", unfinished: 0 },
    ]);
    expect(filesOf(folder)).toEqual([]);
    expect(line.taken).toHaveLength(3);
    expect(line.taken.join("").replace(/\s/g, "")).toBe(answer.replace(/\s/g, ""));
  });

  it("enqueues once what is enqueued twice: while it waits, when it is sent, after a start", async () => {
    const section = await load08(file);
    stopTheClock();
    const { app, folder, line, queue, refuse } = openDesk(section);
    const message = inbound();
    line.fate = () => refuse("busy");
    await section.reply(app, message, "the answer");
    await section.reply(app, message, "the answer");
    expect(filesOf(folder)).toHaveLength(1);
    await until(() => line.tried.length > 0);
    line.fate = () => {};
    await pass(7 * SECOND);
    await until(() => queue.size === 0);
    await section.reply(app, message, "the answer");
    await turns();
    expect(line.taken).toEqual(["the answer"]);

    const next = openDesk(section, folder);
    await section.reply(next.app, message, "the answer");
    await section.reply(next.app, inbound(), "another answer");
    await until(() => next.queue.size === 0);
    expect(next.line.taken).toEqual(["another answer"]);
  });

  it("sends nothing twice if the crash came between the note and the file's end", async () => {
    const section = await load08(file);
    const folder = temporaryFolder();
    plant(folder, "000000000007.json", delivery("a#0"));
    plant(folder, "000000000008.json", delivery("b#0"));
    // A copy by hand, or a backup that was brought back.
    plant(folder, "000000000009.json", delivery("b#0"));
    const today = processedFile(join(folder, "delivery"));
    fs.mkdirSync(dirname(today), { recursive: true });
    fs.writeFileSync(today, `${JSON.stringify({ at: "x", id: "a#0" })}\n{"id":"torn`);
    const { line, queue, runner } = openDesk(section, folder);
    runner.start();
    await until(() => queue.size === 0);
    queue.add(delivery("c#0"));
    runner.wake("telegram 1001");
    await until(() => queue.size === 0);
    expect(line.taken).toEqual(["text of b#0", "text of c#0"]);
    expect(filesOf(folder)).toEqual([]);
    // The torn line has not swallowed the ones after it.
    const log = processedLines(join(folder, "delivery"));
    expect(log.filter((one) => /"[bc]#0"}$/.test(one))).toHaveLength(2);
  });

  it("quarantines and names what makes no sense, in both folders, and the others go on", async () => {
    const section = await load08(file);
    const folder = temporaryFolder();
    const odd = [
      "null",
      "[]",
      "7",
      '"x"',
      "{}",
      '{"id":7}',
      "",
      '{"id":"torn#0","te',
      { ...delivery("a#0"), text: 5 },
      { ...delivery("a#0"), to: null },
      { ...delivery("a#0"), failures: "1" },
      { ...delivery("a#0"), nextAttemptAt: undefined },
      { ...delivery("a#0"), enqueuedAt: 1.5 },
    ];
    for (const [index, content] of odd.entries())
      plant(folder, `${String(index + 1).padStart(12, "0")}.json`, content);
    fs.mkdirSync(join(folder, "delivery/failed"), { recursive: true });
    plant(folder, "failed/000000000040.json", "null");
    plant(folder, "failed/000000000041.json", { ...delivery("f#0"), error: "blocked" });
    for (const name of ["000000000020.json", "failed/000000000042.json"])
      fs.mkdirSync(join(folder, "delivery", name));
    plant(folder, "000000000050.json", delivery("good#0"));
    // Half of one that was being written, and whatever else somebody has put there.
    plant(folder, "000000000051.json.tmp", delivery("temporary#0"));
    plant(folder, "notes.txt", "mine");
    plant(folder, "51.json.bak", delivery("backup#0"));
    const { line, queue, runner } = openDesk(section, folder);
    runner.start();
    await until(() => queue.size === 0);
    await turns();
    expect(line.tried).toEqual(["text of good#0"]);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["f#0"]);
    const asides = filesOf(folder).filter((name) => name.endsWith(".quarantined"));
    expect(asides).toHaveLength(odd.length + 1);
    for (const name of asides) {
      expect(printed()).toMatch(quarantineLine(name));
    }
    for (const name of ["000000000040.json", "000000000042.json"])
      expect(printed()).toMatch(new RegExp(`${name}\\D.*\\.quarantined`));
    expect(filesOf(folder)).toEqual(expect.arrayContaining(["notes.txt", "51.json.bak"]));

    // What is added next takes nobody's name.
    queue.add(delivery("new#0"));
    expect(filesOf(folder).filter((name) => /^\d+\.json$/.test(name))).toEqual([
      "000000000051.json",
    ]);
  });

  it("marks a send that is under way; after a crash says so, sends it again once, then no more", async () => {
    const folder = temporaryFolder();
    const begin = async () => {
      const section = await load08(file); // afresh: a new process knows of no send
      const desk = openDesk(section, folder);
      desk.line.fate = () => new Promise(() => {}); // the program dies while it is sent
      desk.runner.start();
      await turns();
      return desk;
    };
    plant(folder, "000000000001.json", delivery("a#0"));
    plant(folder, "000000000002.json", delivery("a#1"));
    plant(folder, "000000000003.json", delivery("b#0"));
    expect((await begin()).line.tried).toEqual(["text of a#0"]);
    expect(entriesOf(folder).map(({ unfinished }) => unfinished)).toEqual([1, 0, 0]);
    expect(printed()).not.toContain("a#0");
    expect((await begin()).line.tried).toEqual(["text of a#0"]);
    expect(printed()).toContain("a#0");
    expect(entriesOf(folder).map(({ unfinished }) => unfinished)).toEqual([2, 0, 0]);
    // The next start gives it up, with the rest of its reply.
    expect((await begin()).line.tried).toEqual(["text of b#0"]);
    expect(entriesOf(folder, "failed").map(({ id }) => id)).toEqual(["a#0", "a#1"]);

    // One that was repeated and taken is done, and has no more to say.
    const other = temporaryFolder();
    plant(other, "000000000001.json", delivery("x#0", { unfinished: 1 }));
    const { line, queue, runner } = openDesk(await load08(file), other);
    runner.start();
    await until(() => queue.size === 0);
    expect(line.taken).toEqual(["text of x#0"]);
  });

  it("counts a try that failed as ended: a crash while it waits repeats nothing", async () => {
    const section = await load08(file);
    stopTheClock();
    const { folder, line, queue, runner, refuse } = openDesk(section);
    line.fate = () => refuse("busy");
    queue.add(delivery("a#0"));
    runner.start();
    await until(() => line.tried.length === 1);
    await turns();
    expect(entriesOf(folder)).toMatchObject([{ unfinished: 0, failures: 1 }]);
    vi.clearAllTimers(); // the first one is no more
    const said = printed().length;
    const next = openDesk(await load08(file), folder);
    next.runner.start();
    await turns();
    expect(next.line.tried).toEqual([]); // its time has not come
    await pass(7 * SECOND);
    await until(() => next.queue.size === 0);
    expect(next.line.taken).toEqual(["text of a#0"]);
    expect(printed().slice(said)).toBe("");
  });

  it("killed while a reply is given up, sends no end without its beginning", async () => {
    const section = await load08(file);
    const folder = temporaryFolder();
    const desk = openDesk(section, folder);
    for (const part of [0, 1, 2]) desk.queue.add(delivery(`a#${part}`));
    const rename = fs.renameSync;
    let moved = 0;
    const killed = vi.spyOn(fs, "renameSync").mockImplementation((from, to) => {
      if (String(to).includes("failed") && ++moved === 2) throw new Error("killed");
      rename(from, to);
    });
    const [first] = desk.queue.waiting.get("telegram 1001") ?? [];
    expect(() => first && desk.queue.deadLetter(first, "blocked")).toThrow("killed");
    killed.mockRestore();
    const next = openDesk(section, folder);
    next.line.fate = () => next.refuse("blocked", true);
    next.runner.start();
    await until(() => next.queue.size === 0);
    expect(next.line.tried).toEqual(["text of a#0"]);
    expect(next.queue.deadLetters().map(({ id }) => id)).toEqual(["a#0", "a#1", "a#2"]);
  });

  it("waits for a full disk, before the send and after it, and sends once", async () => {
    // The pauses are those of the clock that the test moves.
    vi.doMock("node:timers/promises", () => ({
      setTimeout: (ms: number) => new Promise((resolve) => void setTimeout(resolve, ms)),
    }));
    const section = await load08(file);
    stopTheClock();
    for (const method of ["writeFileSync", "appendFileSync"] as const) {
      const { line, queue, runner } = openDesk(section);
      queue.add(delivery("a#0"));
      queue.add(delivery("a#1"));
      const full = vi.spyOn(fs, method).mockImplementation(() => {
        throw Object.assign(new Error("no space left on device"), { code: "ENOSPC" });
      });
      runner.start();
      for (const _ of [1, 2, 3]) {
        await turns();
        await pass(60 * SECOND);
      }
      expect(line.taken).toEqual(method === "appendFileSync" ? ["text of a#0"] : []);
      full.mockRestore();
      await pass(60 * SECOND);
      await until(() => queue.size === 0);
      expect(line.tried, method).toEqual(["text of a#0", "text of a#1"]);
      expect(queue.deadLetters()).toEqual([]);
    }
    expect(printed()).not.toContain("a#0:"); // it never was in doubt whether it was sent
    expect(printed().match(/no space left/g)).toHaveLength(2); // once for each outage
  });

  it("a dead letter keeps its number; one that is deleted by hand is gone, and /retry goes on", async () => {
    const section = await load08(file);
    const { folder, line, queue, runner, refuse } = openDesk(section);
    line.fate = () => refuse("blocked", true);
    for (const id of ["a#0", "b#0", "c#0"]) queue.add(delivery(id));
    runner.start();
    await until(() => queue.size === 0);
    const names = filesOf(folder, "failed");
    expect(names).toEqual(["000000000001.json", "000000000002.json", "000000000003.json"]);
    // After a start, too, nothing new may get the number of a dead letter.
    const next = openDesk(section, folder);
    next.line.fate = () => next.refuse("blocked", true);
    next.queue.add(delivery("d#0"));
    next.runner.start();
    await until(() => next.queue.size === 0);
    expect(next.queue.deadLetters().map(({ id }) => id)).toEqual(["a#0", "b#0", "c#0", "d#0"]);

    fs.rmSync(join(folder, "delivery/failed/000000000002.json"));
    next.line.fate = () => {};
    expect(next.queue.retry(Date.now())).toBe(3);
    next.runner.start();
    await until(() => next.queue.size === 0);
    expect(next.line.taken).toEqual(["text of a#0", "text of c#0", "text of d#0"]);
    expect(next.queue.retry(Date.now())).toBe(0);
  });

  it("goes on when somebody deletes the whole folder of dead letters", async () => {
    const section = await load08(file);
    const { app, folder, line, queue, runner, refuse } = openDesk(section);
    const run = async (name: string) => section.COMMANDS[name]?.run("", app, {});
    fs.rmSync(join(folder, "delivery/failed"), { recursive: true });
    expect(String(await run("failed"))).not.toContain("a#0");
    expect(await run("retry")).toContain("0");
    line.fate = () => refuse("blocked", true);
    queue.add(delivery("a#0"));
    runner.start();
    await until(() => queue.size === 0);
    expect(queue.deadLetters().map(({ id }) => id)).toEqual(["a#0"]);
    line.fate = () => {};
    expect(await run("retry")).toContain("1");
    await until(() => queue.size === 0);
    expect(line.taken).toEqual(["text of a#0"]);
  });

  it("reports a reply that is given up once, whatever parts it has", async () => {
    const section = await load08(file);
    const { line, queue, runner, refuse } = openDesk(section);
    const told: string[] = [];
    runner.onDeadLetter = ({ id, error }) => void told.push(`${id}: ${error}`);
    line.fate = () => refuse("blocked", true);
    for (const id of ["a#0", "a#1", "a#2"]) queue.add(delivery(id));
    runner.start();
    await until(() => queue.size === 0);
    expect(told).toEqual(["a#0: blocked"]);
  });

  it("leaves in line what is for a channel that is not set up now", async () => {
    const section = await load08(file);
    stopTheClock();
    const { folder, line, queue, runner } = openDesk(section);
    queue.add(delivery("f#0", { channel: "feishu", to: "oc_1" }));
    queue.add(delivery("a#0"));
    runner.start();
    await until(() => line.taken.length === 1);
    await pass(HOUR);
    expect(entriesOf(folder)).toMatchObject([{ id: "f#0", failures: 0 }]);
  });
});

describe.each(sectionsFrom("s08"))("$name, the road", (file) => {
  it("takes an apology and an answer for two replies: a replay loses no part", async () => {
    const model = await practice({ rules: false });
    const section = await load08(file, settings(model));
    const { app, folder, line } = openDesk(section);
    line.fate = () => new Promise(() => {}); // nothing is sent before the kill
    const message = section.route(inbound(), app);
    app.inbox.add(message);
    const finish = vi.spyOn(app.inbox, "acknowledge").mockImplementation(() => {
      throw new Error("killed");
    });
    model.fail("400");
    await expect(section.handle(app, [message])).rejects.toThrow("killed");
    finish.mockRestore();
    expect(entriesOf(folder)).toHaveLength(1);

    const next = openDesk(await load08(file, settings(model)), folder);
    model.script(say(`${"One of three. ".repeat(250)}\n\n`.repeat(3)));
    const [again] = next.app.inbox.pending();
    expect(again?.id).toBe(message.id);
    if (again) await section.handle(next.app, [again]);
    await delivered(next.app);
    expect(next.line.taken).toHaveLength(4);
    const answers = next.line.taken.filter((text) => text.startsWith("One of three."));
    expect(answers).toHaveLength(3);
  });

  it("takes what is said of a job that failed, and its answer, for two replies", async () => {
    const model = await practice({ rules: false });
    const given = settings(model, { TELEGRAM_ALLOWED_CHATS: "1001" });
    const section = await load08(file, given);
    const { app, queue, line } = openDesk(section);
    line.fate = () => new Promise(() => {});
    const owner = JSON.stringify({ channel: "telegram", to: "1001" });
    fs.mkdirSync(join(String(given.CLAW0_WORKSPACE), ".state"), { recursive: true });
    fs.writeFileSync(join(String(given.CLAW0_WORKSPACE), ".state/owner.json"), owner);
    vi.spyOn(app.cron, "report").mockImplementation((_id, error) => (error ? "it is off" : ""));
    const run = () => {
      const job = { isEvent: false };
      const from = { channel: "cron", peerId: "job", senderId: "job", job };
      const message = { ...inbound(), ...from, id: "cron:job:2027-01-04T12:00:00.000Z" };
      return section.accept(app, message).done;
    };
    model.fail("400");
    vi.spyOn(app.inbox, "acknowledge").mockImplementation(() => {}); // killed before that
    vi.spyOn(app.inbox, "add").mockImplementation(() => true); // and taken up after the start
    await run();
    model.script(say("its answer"));
    await run();
    const waiting = [...queue.waiting.values()].flat();
    expect(waiting.map(({ text }) => text)).toEqual(["it is off", "its answer"]);
  });

  it("gives people of the terminal theirs directly", async () => {
    const section = await load08(file);
    const { app, folder, line } = openDesk(section);
    const shown: string[] = [];
    Object.assign(line, { stream: (_to: string, piece: string) => void shown.push(piece) });
    await section.reply(app, inbound(), "at once");
    expect(line.taken).toEqual(["at once"]);
    expect(filesOf(folder)).toEqual([]);
  });

  it("shows what waits and what failed, and tries again", async () => {
    const section = await load08(file);
    stopTheClock();
    const { app, line, queue, runner, refuse } = openDesk(section);
    const type = async (name: string, args = "") =>
      [await section.COMMANDS[name]?.run(args, app, {})].flat().join("\n");
    const status = () => section.METHODS["delivery.status"]?.({}, app, undefined as never);

    expect(await type("queue")).toBe("");
    line.fate = () => line.tried.length <= 2 && refuse("busy");
    for (const id of ["a#0", "a#1"]) queue.add(delivery(id));
    runner.start();
    await until(() => runner.stats.retried === 1);
    expect(line.tried).toEqual(["text of a#0"]);
    expect((await type("queue")).split("\n")).toEqual([
      expect.stringMatching(/^a#0 +1001 +1 .*text of a#0/),
      expect.stringMatching(/^a#1 +1001 +0 .*text of a#1/),
    ]);
    expect(status()).toEqual({
      ...{ sent: 0, retried: 1, failed: 0 },
      ...{ waiting: 2, recipients: 1, inFailed: 0 },
    });
    await pass(7 * SECOND);
    await until(() => runner.stats.retried === 2);
    await pass(32 * SECOND);
    await until(() => queue.size === 0);
    expect(line.taken).toEqual(["text of a#0", "text of a#1"]);

    line.fate = () => refuse("blocked by 1001", true);
    for (const id of ["b#0", "b#1"]) queue.add(delivery(id));
    runner.wake("telegram 1001");
    await until(() => queue.size === 0);
    expect((await type("failed")).split("\n")).toEqual([
      expect.stringMatching(/^b#0 .*blocked by 1001/),
      expect.stringMatching(/^b#1 .*blocked by 1001/),
    ]);
    expect(status()).toMatchObject({ sent: 2, retried: 2, failed: 2, waiting: 0, inFailed: 2 });
    expect((await type("stats")).replace(/ +/g, " ").split("\n")).toEqual([
      "sent 2",
      "retried 2",
      "failed 2",
      "waiting 0",
    ]);

    // A day later it is as if it were new: it does not fail for its age.
    line.fate = () => {};
    await pass(25 * HOUR);
    expect(await type("retry")).toContain("2");
    await until(() => queue.size === 0);
    expect(line.taken.slice(2)).toEqual(["text of b#0", "text of b#1"]);
    expect(await type("failed")).toBe("");
    expect(await type("retry")).toContain("0");
  });
});
