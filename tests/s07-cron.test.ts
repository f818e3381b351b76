/** s07, how a job runs: on the path of all messages, beside people, and not in their way. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { LoggedRequest } from "../practice/model.ts";
import { calls, changed, outline, printed, results, say, sectionsFrom } from "./helper.ts";
import {
  asking,
  DAY,
  event,
  every,
  HOUR,
  iso,
  MINUTE,
  OWNER,
  type Own,
  once,
  own,
  shownBy,
  viaRpc,
  writeCron,
} from "./s07-helper.ts";
import { wording } from "./wording.ts";
import { inbound } from "./world.ts";

const ILL = {
  error: { status: 400, type: "invalid_request_error", message: "the model is ill" },
};
const toOwner = { channel: "telegram", to: OWNER };

/** The chat from which the owner wrote last. */
const wroteLast = ({ state }: Own, to: string) =>
  writeFileSync(join(state, "owner.json"), JSON.stringify({ channel: "telegram", to }));

/** What was asked, without what comes before it. */
const asked = (log: LoggedRequest[]) => log.map((entry) => outline(entry).at(-1));

/** All that the phone has got: one message more tells that nothing else is on its way. */
async function heard({ begin, phone, clock }: Own): Promise<string[]> {
  const id = `end-${phone.sent.length}`;
  await begin(event(id, once(0), { deliver: toOwner }), clock.at);
  for (;;) {
    const end = phone.sent.indexOf(`${OWNER}: event of ${id}`);
    if (end >= 0) return phone.sent.slice(0, end);
    await phone.until(phone.sent.length + 1);
  }
}

/** Resolves when no run is in the inbox any more. */
async function idle({ app }: Own): Promise<void> {
  while (app.inbox.pending().length > 0) await new Promise((resolve) => setImmediate(resolve));
}

describe.each(sectionsFrom("s07"))("$name, a job", (file) => {
  it("does not keep a person waiting: who writes while the model works on it is answered first", async () => {
    const world = await own(file);
    const { model, phone, app, section } = world;
    for (const kind of ["cron", "heartbeat"]) {
      writeFileSync(join(world.workspace, "HEARTBEAT.md"), "- the kettle\n");
      const events: string[] = [];
      const held = model.hold();
      model.script(say("for a person"), say("on my own"));
      const run =
        kind === "cron" ? world.begin(asking("slow", once(0))) : app.heartbeat.run(app, true);
      const ended = run.then(() => events.push("its own"));
      await held.waiting;
      const sent = phone.sent.length;
      await section.accept(app, inbound({ text: "hello", peerId: "1002" })).done;
      events.push("the person's");
      expect(await phone.until(sent + 1)).toContain("1002: for a person");
      held.release();
      await ended;
      expect([kind, ...events]).toEqual([kind, "the person's", "its own"]);
    }
  });

  it("waits while a person is being answered, also for the one who comes next", async () => {
    const world = await own(file);
    const { model, app, section } = world;
    const [first, second] = [model.hold(), model.hold()];
    model.script(...["one", "three", "two", "the job's"].map((words) => say(words)));
    const one = section.accept(app, inbound({ text: "one", peerId: "1002" })).done;
    await first.waiting;
    const run = world.begin(asking("job", once(0), { deliver: toOwner }));
    const two = section.accept(app, inbound({ text: "two", peerId: "1003" })).done;
    await second.waiting;
    first.release();
    await one;
    // Somebody else goes all the way meanwhile; the job has not begun.
    await section.accept(app, inbound({ text: "three", peerId: "1004" })).done;
    expect(asked(model.log)).toEqual(["user: one", "user: two", "user: three"]);
    second.release();
    await two;
    expect(await run).toBe("the job's");
  });

  it("waits for a line of the terminal, too", async () => {
    const world = await own(file);
    const { model, app, section } = world;
    const held = model.hold();
    model.script(say("re: other"), say("re: line"), say("the job's"));
    const line = section.accept(app, inbound({ text: "line", channel: "cli", peerId: "owner" }));
    await held.waiting;
    const run = world.begin(asking("job", once(0)));
    // Somebody else goes all the way meanwhile; the job has not begun.
    await section.accept(app, inbound({ text: "other", peerId: "1002" })).done;
    expect(asked(model.log)).toEqual(["user: line", "user: other"]);
    held.release();
    await line.done;
    expect(await run).toBe("the job's");
  });

  it("after a week asleep comes once, and one job after the other", async () => {
    const world = await own(file);
    const { model, app, clock, section } = world;
    const hour = every(3600, "2027-01-01T00:00:00Z");
    writeCron(world.workspace, [asking("a", hour), asking("b", hour), asking("c", hour)]);
    app.cron.tick();
    clock.at += 7 * DAY;
    const first = model.hold();
    model.script(...["hello", "a", "hello", "b", "c"].map((words) => say(words)));
    app.cron.tick();
    app.cron.tick();
    await first.waiting;
    // A person goes all the way meanwhile; the second job has not begun.
    await section.accept(app, inbound({ text: "hello", peerId: "1002" })).done;
    expect(asked(model.log)).toEqual(["user: ask a", "user: hello"]);
    const second = model.hold();
    first.release();
    await second.waiting;
    await section.accept(app, inbound({ text: "hello", peerId: "1003" })).done;
    expect(asked(model.log.slice(2))).toEqual(["user: ask b", "user: hello"]);
    second.release();
    await world.settled();
    expect(asked(model.log.slice(4))).toEqual(["user: ask c"]);
  });

  it("tells what it has where it should: its own place, or the owner's, or the terminal", async () => {
    const world = await own(file);
    const { model, app, section, begin } = world;
    model.script(say("one"), say("two"), say("re: hello"), say("three"), say("four"));
    await begin(asking("a", once(0)), 1);
    expect(printed()).toContain("one");
    await begin(asking("b", once(0), { deliver: { channel: "telegram", to: "1002" } }), 2);
    await section.accept(app, inbound({ text: "hello", peerId: OWNER })).done;
    await begin(asking("c", once(0)), 3);
    await begin(event("d", once(0)), 4); // costs no call
    // A channel that is not set up now: the log says so. (From s08 on the text waits for it.)
    await begin(asking("e", once(0), { deliver: { channel: "feishu", to: "x" } }), 5);
    expect(printed()).not.toContain("four");
    const told = await heard(world);
    expect(told.slice(0, 4)).toEqual([
      "1002: two",
      `${OWNER}: re: hello`,
      `${OWNER}: three`,
      `${OWNER}: event of d`,
    ]);
    expect(told.slice(4)).toEqual([]);
    const sentence = changed(file, "queue")
      ? "{id}: not sent yet: the channel {channel} is not set up"
      : "{channel} {to}: a reply was not sent: the channel is not set up";
    expect(printed()).toMatch(wording(file, sentence, { channel: "feishu" }));
    expect(model.log).toHaveLength(5);
  });

  it("that fails is an error: counted, kept from everybody, and off after five in a row", async () => {
    const world = await own(file);
    const { model, app, clock } = world;
    const mine = asking("mine", every(60), { deliver: { channel: "telegram", to: "1002" } });
    writeCron(world.workspace, [mine]);
    wroteLast(world, "1001");
    app.cron.tick();
    const errors = () => app.cron.stateOf(mine).errors;
    async function runsInto(answer: object, expected: number): Promise<void> {
      model.script(answer);
      clock.at += MINUTE;
      app.cron.tick();
      await world.settled();
      expect(errors()).toBe(expected);
    }
    await runsInto(ILL, 1);
    await runsInto({ content: [{ type: "text", text: "no" }], stopReason: "refusal" }, 2);
    expect(printed()).toContain("the model is ill");
    await runsInto(say("It works."), 0);
    for (let count = 1; count <= 5; count++) await runsInto(ILL, count);
    const said = await heard(world);
    expect(said).toHaveLength(2); // what worked, and that it is off now
    expect(said[0]).toBe("1002: It works.");
    // The owner hears that it is off, and not those to whom the job speaks.
    expect(said[1]).toMatch(/^1001: .*mine/);
    expect(said.join()).not.toContain("ill");
    const { length } = model.log;
    const next = world.again();
    for (const cron of [app.cron, next.app.cron]) {
      clock.at += HOUR;
      cron.tick();
    }
    await Promise.all([world.settled(), next.settled()]);
    expect(model.log).toHaveLength(length);
    expect(await heard(world)).toHaveLength(3); // the end of `heard` before, and nothing more
    const listed = await viaRpc(next, "cron.list");
    expect(listed).toMatchObject([{ id: "mine", due: "never", errors: 5 }]);
  });

  it("that comes once and fails is not forgotten: its owner hears that, but not the error", async () => {
    const world = await own(file);
    const { model, app } = world;
    writeCron(world.workspace, [asking("birthday", once(1))]);
    wroteLast(world, OWNER);
    model.script(ILL);
    app.cron.tick();
    await world.settled();
    const [said = "", ...more] = await heard(world);
    expect(said).toContain("birthday");
    expect(said).not.toContain("ill");
    expect(more).toEqual([]);
  });

  it("is run once for one due time, whatever was lost between the two files", async () => {
    const world = await own(file);
    const { model, app, clock } = world;
    const jobs = [
      asking("hour", every(3600), { deliver: toOwner }),
      asking("once", once(clock.at + HOUR), { deliver: toOwner }),
    ];
    writeCron(world.workspace, jobs);
    app.cron.tick();
    clock.at += HOUR;
    model.script(say("1"), say("2"));
    // It crashes after each run is kept, and before its time is crossed off.
    const state = join(world.state, "cron.json");
    const old = readFileSync(state, "utf8");
    app.cron.tick();
    await world.settled();
    writeFileSync(state, old);
    const next = world.again();
    next.app.cron.tick();
    await next.settled();
    expect(await heard(next)).toEqual([`${OWNER}: 1`, `${OWNER}: 2`]);
    expect(model.log).toHaveLength(2);
    expect(next.app.cron.next()).toBe(clock.at + HOUR);
  });

  it("goes by a clock that is put right: after a day back it runs on, and none a second time", async () => {
    const world = await own(file);
    const { app, clock, phone } = world;
    writeCron(world.workspace, [event("hour", every(3600), { deliver: toOwner })]);
    app.cron.tick();
    const began = clock.at;
    for (const move of [DAY, -DAY, HOUR, HOUR, HOUR]) {
      clock.at += move;
      app.cron.tick();
      await world.settled();
    }
    // The missed ones once, for the first of them; that one is known when it comes again.
    expect(await heard(world)).toHaveLength(3);
    expect(app.cron.next()).toBe(began + 4 * HOUR);
    expect(phone.sent.length).toBe(4);
  });

  it("has a fresh conversation, a short prompt, and not the tools of the terminal", async () => {
    const world = await own(file);
    const { model, app, section, workspace } = world;
    const parts = ["IDENTITY", "SOUL", "TOOLS", "USER", "AGENTS", "MEMORY"];
    for (const part of parts) writeFileSync(join(workspace, `${part}.md`), `- The ${part} file.\n`);
    model.script(say("re: hello"), say("one"), say("two"));
    await section.accept(app, inbound({ text: "hello", peerId: OWNER })).done;
    await world.begin(asking("job", once(0)), 1000);
    await world.begin(asking("job", once(0)), 2000);
    const [person, ...runs] = model.log;
    expect(JSON.stringify(person?.request.system)).toContain("The SOUL file");
    for (const run of runs) {
      expect(outline(run)).toEqual(["user: ask job"]);
      const system = JSON.stringify(run.request.system);
      const found = parts.filter((part) => system.includes(`The ${part} file`));
      expect(found).toEqual(["IDENTITY", "TOOLS"]);
      const tools = run.request.tools?.map((tool) => ("name" in tool ? tool.name : ""));
      expect(tools).toContain("read_file");
      for (const name of ["bash", "write_file", "edit_file"]) expect(tools).not.toContain(name);
    }
    const keys = (await app.store.headers()).map(({ key }) => key);
    for (const due of [1000, 2000]) {
      expect(keys).toContain(`agent:luna:cron:job:${iso(due).toLowerCase()}`);
    }
  });

  it("remembers MEMORY.md if what it says is the owner's, and never what a conversation noted", async () => {
    const world = await own(file);
    const { model, app, workspace } = world;
    writeFileSync(join(workspace, "MEMORY.md"), "- The cat of the owner is called Fluse.\n");
    app.memory.write("The cat of the family is called Mimi.", "cats", app.key);
    app.memory.write("The cat of alice is Zorro.", "cats", `agent:luna:telegram:direct:${OWNER}`);
    const about = "What is the cat called?";
    const payload = { kind: "agent_turn" as const, message: about };
    const places = [
      [undefined, true],
      [{ channel: "cli", to: "owner" }, true],
      [toOwner, true],
      [{ channel: "telegram", to: "1002" }, false],
      [{ channel: "telegram", to: "-1001" }, false],
    ] as const;
    for (const [index, [deliver, isOwners]] of places.entries()) {
      model.script(calls(["read_file", { path: "MEMORY.md" }]), say("done"));
      await world.begin(asking("cat", once(0), { payload, deliver }), index * 1000);
      const [first, second] = model.log.slice(-2);
      const shown = JSON.stringify(first?.request.messages);
      expect([deliver, shown.includes("Fluse")]).toEqual([deliver, isOwners]);
      expect(shown).not.toMatch(/Mimi|Zorro/);
      expect([deliver, results(second)[0]?.is_error !== true]).toEqual([deliver, isOwners]);
      expect(JSON.stringify(second?.request.messages).includes("Fluse")).toBe(isOwners);
    }
  });

  it("keeps the newest 20 of its conversations, also while the clock is behind", async () => {
    const world = await own(file);
    const { model, app, clock } = world;
    const key = (id: string, at: number) => `agent:luna:cron:${id}:${iso(at).toLowerCase()}`;
    for (let n = 1; n <= 22; n++) app.store.create(key("job", clock.at + n * HOUR));
    app.store.create(key("job-2", clock.at)); // another one's
    model.script(say("early"), say("late"));
    expect(await world.begin(asking("job", once(0)), clock.at)).toBe("early");
    expect(await world.begin(asking("job", once(0)), clock.at + DAY)).toBe("late");
    const kept = (await app.store.headers()).map(({ key: one }) => one);
    const mine = kept.filter((one) => one.startsWith("agent:luna:cron:job:")).sort();
    expect(mine.length).toBeLessThanOrEqual(21);
    expect(mine.at(-1)).toBe(key("job", clock.at + DAY));
    expect(mine).not.toContain(key("job", clock.at + 2 * HOUR));
    expect(kept).toContain(key("job-2", clock.at));
  });

  it("is begun by hand with /cron-trigger, if there is one", async () => {
    const world = await own(file);
    const { app, workspace, phone } = world;
    writeCron(workspace, [event("later", once("2099-01-01"), { deliver: toOwner })]);
    app.cron.tick();
    expect(await shownBy(world, "cron-trigger", "later")).toContain("later");
    expect(await phone.until(1)).toEqual([`${OWNER}: event of later`]);
    await idle(world);
    // As often as one likes; but a run is named by its millisecond, and nobody types that fast.
    const first = Date.now();
    while (Date.now() === first) await new Promise((resolve) => setImmediate(resolve));
    await shownBy(world, "cron-trigger", "later");
    expect(await phone.until(2)).toHaveLength(2);
    await expect(shownBy(world, "cron-trigger", "nobody")).rejects.toThrow(/nobody/);
    expect(iso(app.cron.next())).toBe("2099-01-01T00:00:00.000Z"); // its time has not passed by that
  });

  it("that is slow does not pile up", async () => {
    const world = await own(file);
    const { app, model } = world;
    writeCron(world.workspace, [asking("slow", once("2099-01-01"))]);
    app.cron.tick();
    const held = model.hold();
    await shownBy(world, "cron-trigger", "slow");
    await held.waiting;
    await shownBy(world, "cron-trigger", "slow").catch(() => {}); // it may say so, or throw
    expect(app.inbox.pending().map(({ peerId }) => peerId)).toEqual(["slow"]);
    model.script(say("done at last"), say("none"));
    held.release();
    await idle(world);
    expect(model.log).toHaveLength(1);
    expect(printed()).toContain("done at last");
  });
});
