/** s10, the lanes by themselves: order, number, clock, reset, and an end. */

import { getEventListeners } from "node:events";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { sectionsFrom } from "./helper.ts";
import { Grace, gate, LaneClock, load10, turns } from "./s10-helper.ts";
import "./world.ts"; // takes back what a case has mocked

/** Tasks that begin when their lane lets them, and end when the case does. */
function tasks() {
  const begun: string[] = [];
  const open = new Map<string, ReturnType<typeof gate<string>>>();
  const signals = new Map<string, AbortSignal>();
  const task = (name: string) => (signal: AbortSignal) => {
    begun.push(name);
    signals.set(name, signal);
    const one = gate<string>();
    open.set(name, one);
    return one.promise;
  };
  const end = async (name: string, settle: "resolve" | "reject" = "resolve") => {
    const one = open.get(name);
    if (!one) throw new Error(`${name} has not begun`);
    if (settle === "resolve") one.resolve(`${name} done`);
    else one.reject(new Error(`${name} failed`));
    await turns();
  };
  return { begun, task, end, signals };
}

describe.each(sectionsFrom("s10"))("$name: a lane", (section) => {
  it("runs one after the other, in the order in which they came", async () => {
    const { LaneQueue } = await load10(section);
    const { begun, task, end } = tasks();
    const lane = new LaneQueue();
    const results = Promise.allSettled(["a", "b", "c"].map((name) => lane.enqueue(task(name))));
    expect(begun).toEqual(["a"]); // it has begun when enqueue returns
    await end("a");
    expect(begun).toEqual(["a", "b"]);
    await end("b", "reject"); // which is the affair of whoever put it there
    expect(begun).toEqual(["a", "b", "c"]);
    await end("c");
    expect(await results).toEqual([
      { status: "fulfilled", value: "a done" },
      { status: "rejected", reason: new Error("b failed") },
      { status: "fulfilled", value: "c done" },
    ]);
    expect([lane.active, lane.waiting.size]).toEqual([0, 0]);
  });

  it("survives a task that throws before it gives a promise", async () => {
    const { LaneQueue } = await load10(section);
    const lane = new LaneQueue();
    const bad = lane.enqueue(() => {
      throw new Error("at once");
    });
    await expect(bad).rejects.toThrow("at once");
    expect(await lane.enqueue(async () => "next")).toBe("next");
    expect(lane.active).toBe(0);
  });

  it("keeps to its number whatever ends first, and begins in order", async () => {
    const { LaneQueue } = await load10(section);
    const shape = fc.record({
      limit: fc.integer({ min: 1, max: 5 }),
      order: fc.array(fc.nat(), { minLength: 12, maxLength: 12 }),
    });
    await fc.assert(
      fc.asyncProperty(shape, async ({ limit, order }) => {
        const { begun, task, end } = tasks();
        const lane = new LaneQueue(limit);
        const names = order.map((_, index) => `${index}`);
        const results = Promise.allSettled(names.map((name) => lane.enqueue(task(name))));
        const ended = new Set<string>();
        for (const pick of order) {
          const running = begun.filter((one) => !ended.has(one));
          expect(running).toHaveLength(Math.min(limit, names.length - ended.size));
          expect(lane.active).toBe(running.length);
          const name = running[pick % running.length] ?? "";
          ended.add(name);
          await end(name, pick % 3 === 0 ? "reject" : "resolve");
        }
        expect(begun).toEqual(names);
        expect(await results).toHaveLength(names.length);
      }),
      { numRuns: 15 },
    );
  });

  it("begins more at once when its number grows, and fewer when it shrinks", async () => {
    const { LaneQueue } = await load10(section);
    const { begun, task, end } = tasks();
    const lane = new LaneQueue(1);
    for (const name of "abcdef") void lane.enqueue(task(name));
    lane.limit = 3;
    expect(begun.join("")).toBe("abc");
    lane.limit = 1;
    await end("b");
    await end("a");
    expect(begun.join("")).toBe("abc"); // c still has the only place
    await end("c");
    expect(begun.join("")).toBe("abcd");
  });

  it("ends one that takes too long: the signal, 2 s, and the lane goes on without it", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const { LaneQueue, LaneError } = await load10(section);
    const { begun, task, end, signals } = tasks();
    const lane = new LaneQueue(1, 700);
    const hung = lane.enqueue(task("hung"));
    const next = lane.enqueue(task("next"));
    const failure = hung.catch((error) => error);
    expect(clock.running).toEqual([700]);
    clock.pass(700);
    await turns();
    expect(signals.get("hung")?.aborted).toBe(true);
    expect(grace.asked).toEqual([2000]);
    expect(begun).toEqual(["hung"]); // it may still come to its end
    await grace.pass();
    expect(await failure).toBeInstanceOf(LaneError);
    expect(String(await failure)).toContain("700 s");
    expect(begun).toEqual(["hung", "next"]);
    expect(signals.get("next")?.aborted).toBe(false);
    // When it comes back after all, it changes nothing: not the places, not the result.
    const third = lane.enqueue(task("third"));
    await end("hung");
    expect([lane.active, begun.length]).toEqual([1, 2]);
    await end("next");
    expect(await next).toBe("next done");
    expect(begun).toEqual(["hung", "next", "third"]);
    await end("third");
    expect(await third).toBe("third done");
    expect([lane.active, clock.running.length]).toEqual([0, 0]);
  });

  it("takes what is done within the grace for ended all the same, and does not wait on", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const { LaneQueue, LaneError } = await load10(section);
    const { task, end, begun } = tasks();
    const lane = new LaneQueue(1, 700);
    const slow = lane.enqueue(task("slow")).catch((error) => error);
    void lane.enqueue(task("next"));
    clock.pass(700);
    await end("slow");
    expect(await slow).toBeInstanceOf(LaneError);
    expect(begun).toEqual(["slow", "next"]);
    await grace.pass(); // too late for anything
    expect(lane.active).toBe(1);
    // The same for one that fails because it was ended: that is why, whatever it says.
    const failing = new LaneQueue(1, 700);
    const failed = failing.enqueue(task("failing")).catch((error) => error);
    clock.pass(700);
    await end("failing", "reject");
    expect(await failed).toBeInstanceOf(LaneError);
    expect(String(await failed)).toContain("700 s");
  });

  it("does not mind what a task throws when nobody waits for it any more", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const { LaneQueue, LaneError } = await load10(section);
    const unheard: unknown[] = [];
    const hear = (error: unknown) => unheard.push(error);
    const others = process.listeners("unhandledRejection");
    process.removeAllListeners("unhandledRejection").on("unhandledRejection", hear);
    try {
      const { task, end } = tasks();
      const lane = new LaneQueue(1, 700);
      const slow = lane.enqueue(task("slow")).catch((error) => error);
      clock.pass(700);
      await grace.pass();
      expect(await slow).toBeInstanceOf(LaneError);
      await end("slow", "reject");
      expect(unheard).toEqual([]);
      expect(lane.active).toBe(0);
    } finally {
      process.removeAllListeners("unhandledRejection");
      for (const listener of others) process.on("unhandledRejection", listener);
    }
  });

  it("has a clock for each task, from when it begins, and stops it at its end", async () => {
    const clock = new LaneClock();
    const { LaneQueue } = await load10(section);
    const { task, end } = tasks();
    const lane = new LaneQueue(1, 700);
    void lane.enqueue(task("a"));
    const b = lane.enqueue(task("b"));
    expect(clock.running).toEqual([700]); // b waits, and has its time before it
    await end("a");
    expect(clock.running).toEqual([700]);
    await end("b");
    expect(await b).toBe("b done");
    expect(clock.running).toEqual([]);
    // Without seconds there is no clock.
    void new LaneQueue().enqueue(task("c"));
    expect(clock.running).toEqual([]);
  });

  it("a reset ends what runs, begins what waits in order, and counts the places anew", async () => {
    const grace = new Grace();
    const { LaneQueue, LaneError } = await load10(section);
    const { begun, task, end, signals } = tasks();
    const lane = new LaneQueue(2);
    const old = ["a", "b"].map((name) => lane.enqueue(task(name)).catch((error) => error));
    const waiting = ["c", "d", "e"].map((name) => lane.enqueue(task(name)));
    expect(lane.generation).toBe(0);
    expect(lane.reset()).toBe(2);
    expect(lane.generation).toBe(1);
    expect([...signals].map(([name, { aborted }]) => `${name} ${aborted}`)).toEqual([
      "a true",
      "b true",
      "c false",
      "d false",
    ]);
    expect(begun).toEqual(["a", "b", "c", "d"]);
    await end("a"); // at once
    expect(lane.active).toBe(2); // its place was not one of these two
    await grace.pass(); // b hangs
    expect(lane.active).toBe(2);
    for (const error of await Promise.all(old)) expect(error).toBeInstanceOf(LaneError);
    await end("b"); // very late
    expect([lane.active, begun.length]).toEqual([2, 4]);
    await end("c");
    expect(begun).toEqual(["a", "b", "c", "d", "e"]);
    await end("d");
    await end("e");
    expect(await Promise.all(waiting)).toEqual(["c done", "d done", "e done"]);
    expect([lane.active, lane.waiting.size]).toEqual([0, 0]);
    // The lane is as good as new.
    const more = lane.enqueue(task("f"));
    await end("f");
    expect(await more).toBe("f done");
    expect(lane.reset()).toBe(0);
  });

  it("a second reset while the first one's tasks are still ending does no harm", async () => {
    const grace = new Grace();
    const { LaneQueue } = await load10(section);
    const { begun, task, end } = tasks();
    const lane = new LaneQueue(1);
    const results = ["a", "b", "c"].map((name) => lane.enqueue(task(name)).catch(String));
    expect(lane.reset()).toBe(1);
    expect(lane.reset()).toBe(1); // b, and not a again
    expect(begun).toEqual(["a", "b", "c"]);
    await end("b");
    await end("a");
    await grace.pass();
    expect(lane.active).toBe(1);
    await end("c");
    expect(await Promise.all(results)).toEqual([
      expect.stringContaining("reset"),
      expect.stringContaining("reset"),
      "c done",
    ]);
    expect(lane.active).toBe(0);
  });

  it("an interrupt in the queue goes ahead, with an aborted signal", async () => {
    const { LaneQueue } = await load10(section);
    const { begun, task, end, signals } = tasks();
    const lane = new LaneQueue(1);
    void lane.enqueue(task("a"));
    const control = new AbortController();
    const b = lane.enqueue(task("b"), control.signal);
    void lane.enqueue(task("c"));
    control.abort();
    expect(begun).toEqual(["a", "b"]);
    expect(signals.get("b")?.aborted).toBe(true);
    await end("b");
    expect(await b).toBe("b done");
    expect(begun).toEqual(["a", "b"]); // a still has the only place
    await end("a");
    expect(begun).toEqual(["a", "b", "c"]);
    expect(lane.active).toBe(1);
  });

  it("an interrupt reaches the task that runs; one that ignores it has 2 s", async () => {
    const grace = new Grace();
    const { LaneQueue, LaneError } = await load10(section);
    const { begun, task, end, signals } = tasks();
    const lane = new LaneQueue(1);
    const control = new AbortController();
    const polite = lane.enqueue(task("polite"), control.signal);
    control.abort();
    await end("polite");
    expect(await polite).toBe("polite done"); // the person stopped it: that is no failure
    const again = new AbortController();
    const deaf = lane.enqueue(task("deaf"), again.signal).catch((error) => error);
    void lane.enqueue(task("next"));
    again.abort();
    expect(signals.get("deaf")?.aborted).toBe(true);
    await turns();
    expect(begun).not.toContain("next");
    await grace.pass();
    expect(await deaf).toBeInstanceOf(LaneError);
    expect(begun).toContain("next");
  });

  it("a reset or a timeout after an interrupt stops the task, also if it ends in time", async () => {
    new Grace();
    const clock = new LaneClock();
    const { LaneQueue, LaneError } = await load10(section);
    const { task, end } = tasks();
    for (const how of ["reset", "timeout"]) {
      const lane = new LaneQueue(1, 700);
      const control = new AbortController();
      const failure = lane.enqueue(task(how), control.signal).catch((error) => error);
      control.abort();
      if (how === "reset") lane.reset();
      else clock.pass(700);
      await end(how);
      expect(await failure).toBeInstanceOf(LaneError);
      expect(String(await failure)).toContain(how === "reset" ? "reset" : "700 s");
    }
  });

  it("leaves nothing behind on a signal that lives long", async () => {
    const { LaneQueue, LaneError } = await load10(section);
    const lane = new LaneQueue();
    const { signal } = new AbortController();
    const added = vi.spyOn(signal, "addEventListener");
    const removed = vi.spyOn(signal, "removeEventListener");
    for (let i = 0; i < 5; i++) await lane.enqueue(async () => i, signal);
    // What waits at the door is removed when it has come in, or it would keep every task alive.
    expect(removed.mock.calls).toHaveLength(added.mock.calls.length);
    expect(getEventListeners(signal, "abort")).toEqual([]);
    const { task, end } = tasks();
    const first = lane.enqueue(task("first"), signal);
    const refused = lane.enqueue(task("refused"), signal).catch((error: unknown) => error);
    expect(getEventListeners(signal, "abort")).toHaveLength(2); // one runs, and one waits
    lane.refuseWaiting(new LaneError("no"));
    expect(await refused).toBeInstanceOf(LaneError);
    expect(getEventListeners(signal, "abort")).toHaveLength(1);
    await end("first");
    await first;
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });

  it("what a stopped task throws too late is nobody's affair", async () => {
    const grace = new Grace();
    const { LaneQueue } = await load10(section);
    const unhandled: unknown[] = [];
    const note = (error: unknown) => unhandled.push(error);
    process.on("unhandledRejection", note);
    const { task, end } = tasks();
    const lane = new LaneQueue();
    const failure = lane.enqueue(task("late")).catch((error: unknown) => String(error));
    lane.reset();
    await grace.pass();
    expect(await failure).toContain("reset");
    await end("late", "reject");
    await turns();
    process.off("unhandledRejection", note);
    expect(unhandled).toEqual([]);
  });
});

describe.each(sectionsFrom("s10"))("$name: the lanes", (section) => {
  it("have names; one that has no number of its own is there while it has work", async () => {
    const { CommandQueue } = await load10(section);
    const { task, end, begun } = tasks();
    const queue = new CommandQueue({ main: [2, 60], cron: [1, 60] });
    expect([...queue.lanes.keys()]).toEqual(["main", "cron"]);
    const results = [queue.run("ada", task("a1")), queue.run("ada", task("a2"))];
    void queue.run("bob", task("b1"));
    expect(begun).toEqual(["a1", "b1"]);
    expect([...queue.lanes.keys()]).toEqual(["main", "cron", "ada", "bob"]);
    expect(["ada", "bob", "main", "eve"].map((name) => queue.isBusy(name))).toEqual([
      true,
      true,
      false,
      false,
    ]);
    await end("b1");
    await end("a1");
    expect([...queue.lanes.keys()]).toEqual(["main", "cron", "ada"]);
    await end("a2");
    expect(await Promise.all(results)).toEqual(["a1 done", "a2 done"]);
    expect([...queue.lanes.keys()]).toEqual(["main", "cron"]);
  });

  it("one that empties and is used again in the same breath keeps its order", async () => {
    const { CommandQueue } = await load10(section);
    const queue = new CommandQueue({});
    const seen: string[] = [];
    const put = (name: string): Promise<unknown> =>
      queue.run("ada", async () => {
        seen.push(`${name}+`);
        await turns(2);
        seen.push(`${name}-`);
      });
    let last = put("a");
    for (const name of "bcd") {
      const before = last;
      last = before.then(() => Promise.all([put(name), put(`${name}2`)]));
    }
    await last;
    expect(seen.join(" ")).toBe("a+ a- b+ b- b2+ b2- c+ c- c2+ c2- d+ d- d2+ d2-");
    expect(queue.lanes.size).toBe(0);
  });

  it("ten thousand conversations leave no lane behind", async () => {
    const { CommandQueue } = await load10(section);
    const queue = new CommandQueue({ main: [4, 60] });
    const many = Array.from({ length: 10_000 }, (_, i) => {
      const task = () => queue.run("main", async () => i);
      return queue.run(`agent:luna:${i}`, task);
    });
    expect(queue.lanes.size).toBe(10_001);
    expect(await Promise.all(many)).toHaveLength(10_000);
    expect([...queue.lanes.keys()]).toEqual(["main"]);
  });

  it("a reset ends the turns, and leaves the conversations to go on by themselves", async () => {
    const grace = new Grace();
    const { CommandQueue } = await load10(section);
    const { begun, task, end } = tasks();
    const queue = new CommandQueue({ main: [1, 60], cron: [1, 60] });
    const inside = (name: string) => () => queue.run("main", task(name));
    const first = queue.run("ada", inside("a1")).catch(String);
    const second = queue.run("ada", inside("a2"));
    const other = queue.run("bob", inside("b1"));
    void queue.run("cron", task("job")).catch(() => {});
    expect(begun).toEqual(["a1", "job"]);
    expect(queue.reset()).toBe(2);
    expect(begun).toEqual(["a1", "job", "b1"]);
    await grace.pass();
    expect(await first).toContain("reset");
    await end("b1");
    expect(begun).toEqual(["a1", "job", "b1", "a2"]);
    await end("a2");
    expect(await Promise.all([second, other])).toEqual(["a2 done", "b1 done"]);
    await turns();
    expect([...queue.lanes.keys()]).toEqual(["main", "cron"]);
  });

  it("drain lets what runs come to its end, and begins nothing", async () => {
    const { CommandQueue, StoppingError } = await load10(section);
    const { begun, task, end } = tasks();
    const queue = new CommandQueue({ main: [1, 60], cron: [1, 60] });
    const inside = (name: string) => () => queue.run("main", task(name));
    const runs = queue.run("ada", inside("a1"));
    const waits = [queue.run("ada", inside("a2")), queue.run("bob", inside("b1"))];
    const failures = waits.map((one) => one.catch((error) => error));
    let isOver = false;
    const over = queue.shutDown().then(() => {
      isOver = true;
    });
    await turns();
    expect(await failures[1]).toBeInstanceOf(StoppingError);
    await expect(queue.run("cron", task("job"))).rejects.toBeInstanceOf(StoppingError);
    expect(isOver).toBe(false);
    // What is no turn may still begin: the reply to the one that runs has to leave.
    const delivery = queue.run("delivery telegram 1001", task("reply"));
    await end("a1");
    expect(await runs).toBe("a1 done");
    expect(await failures[0]).toBeInstanceOf(StoppingError);
    expect(isOver).toBe(false);
    await end("reply");
    expect(await delivery).toBe("reply done");
    await over;
    expect(begun).toEqual(["a1", "reply"]);
    await queue.shutDown(); // there is nothing left, so it is over at once
  });
});
