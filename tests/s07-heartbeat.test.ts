/** s07, the heartbeat: when there is one, and what its owner hears of it. */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { outline, printed, say, sectionsFrom } from "./helper.ts";
import { asking, DAY, event, HOUR, MINUTE, OWNER, type Own, once, own } from "./s07-helper.ts";
import { inbound } from "./world.ts";

const INTERVAL = 30 * MINUTE; // what the settings say if they say nothing

describe.each(sectionsFrom("s07"))("$name, the heartbeat", (file) => {
  let world: Own;

  async function open(more = {}): Promise<Own> {
    world = await own(file, more);
    tasks("# Tasks\n\n- Is the kettle on?\n");
    return world;
  }

  const tasks = (words: string, folder = world.workspace) =>
    writeFileSync(join(folder, "HEARTBEAT.md"), words);
  const beat = (forced = false) => world.app.heartbeat.run(world.app, forced);

  /** The owner wrote from the phone: from now on things are said there. */
  async function write(text: string): Promise<void> {
    world.model.script(say(`re: ${text}`));
    const { done } = world.section.accept(world.app, inbound({ text, peerId: OWNER }));
    await done;
    await world.phone.until(world.phone.sent.length || 1);
  }

  /** What the phone has got; by one message more it is certain that nothing else is on its way. */
  async function heard(): Promise<string[]> {
    const before = world.phone.sent.length;
    const deliver = { channel: "telegram", to: OWNER };
    await world.begin(event(`end-${before}`, once(0), { deliver }));
    const all = await world.phone.until(before + 1);
    const end = all.findIndex((words) => words.endsWith(`event of end-${before}`));
    if (end < 0) return (await world.phone.until(before + 2)).slice(0, -1);
    return all.slice(0, end);
  }

  it("asks after the interval, not before, and counts anew from there", async () => {
    const { clock, model } = await open();
    model.script(say("HEARTBEAT_OK"), say("HEARTBEAT_OK"));
    expect(await beat()).toBe("not-due");
    clock.at += INTERVAL - 1;
    expect(await beat()).toBe("not-due");
    clock.at += 1;
    expect(await beat()).toBe("ok");
    expect(world.app.heartbeat.next()).toBe(clock.at + INTERVAL);
    clock.at += INTERVAL - 1;
    expect(await beat()).toBe("not-due");
    clock.at += 1;
    expect(await beat()).toBe("ok");
    expect(model.log).toHaveLength(2);
    // It was asked about the file, in a conversation of its own each time.
    for (const entry of model.log) {
      expect(outline(entry)).toHaveLength(1);
      expect(outline(entry)[0]).toContain("Is the kettle on?");
    }
  });

  it("is off with an interval of 0, and by hand it is asked all the same", async () => {
    const { clock, model, app } = await open({ HEARTBEAT_INTERVAL: "0" });
    model.script(say("HEARTBEAT_OK"));
    clock.at += 400 * DAY;
    expect(await beat()).toBe("not-due");
    expect(app.heartbeat.next()).toBe(Number.POSITIVE_INFINITY);
    expect(await world.section.COMMANDS.trigger?.run("", app, {})).toBe("ok");
    expect(model.log).toHaveLength(1);
  });

  it("goes by a clock that jumps: a day ahead once, and a day back without a day of silence", async () => {
    const { clock, model } = await open();
    model.script(...new Array(3).fill(say("HEARTBEAT_OK")));
    clock.at += DAY;
    expect([await beat(), await beat()]).toEqual(["ok", "not-due"]);
    clock.at -= DAY;
    expect(await beat()).toBe("not-due");
    clock.at += INTERVAL;
    expect([await beat(), await beat()]).toEqual(["ok", "not-due"]);
    clock.at += 7 * DAY;
    expect([await beat(), await beat()]).toEqual(["ok", "not-due"]);
  });

  const HOURS: [start: string, end: string, active: number[]][] = [
    ["", "", [9, 10, 21]],
    ["8", "12", [8, 11]],
    ["22", "6", [22, 23, 0, 5]],
    ["0", "24", [0, 9, 12, 23]],
  ];
  const CANDIDATES = [0, 5, 6, 8, 9, 10, 11, 12, 21, 22, 23];
  it.each(HOURS)("is quiet outside of %s to %s o'clock", async (start, end, active) => {
    await open({ HEARTBEAT_ACTIVE_START: start, HEARTBEAT_ACTIVE_END: end });
    world.model.script(...active.map(() => say("HEARTBEAT_OK")));
    const found: number[] = [];
    for (const hour of CANDIDATES) {
      world.clock.at = new Date(2027, 0, 5 + hour, hour, 59).getTime();
      const result = await beat();
      if (result === "ok") found.push(hour);
      else expect(result).toBe("quiet-hours");
    }
    expect(found).toEqual(CANDIDATES.filter((hour) => active.includes(hour)));
  });

  it("after a quiet night comes in the first active hour", async () => {
    const { clock, model } = await open();
    model.script(say("HEARTBEAT_OK"));
    clock.at = new Date(2027, 0, 5, 8, 59).getTime();
    expect(await beat()).toBe("quiet-hours");
    clock.at += MINUTE;
    expect(await beat()).toBe("ok");
  });

  it("is skipped while a person is answered, and while a job runs; and there is one at a time", async () => {
    const { clock, model, app } = await open();
    clock.at += INTERVAL;
    const toPerson = model.hold();
    model.script(say("for a person"), say("for a job"), say("HEARTBEAT_OK"));
    const { done } = world.section.accept(app, inbound({ peerId: "1002" }));
    await toPerson.waiting;
    expect([await beat(), await beat(true)]).toEqual(["requests-in-flight", "requests-in-flight"]);
    toPerson.release();
    await done;
    const toJob = model.hold();
    const run = world.begin(asking("job", once(0)));
    await toJob.waiting;
    expect([await beat(), await beat(true)]).toEqual(["cron-in-progress", "cron-in-progress"]);
    toJob.release();
    await run;
    const toHeartbeat = model.hold();
    const first = beat();
    await toHeartbeat.waiting;
    expect([await beat(), await beat(true)]).toEqual(["under-way", "under-way"]);
    toHeartbeat.release();
    expect(await first).toBe("ok");
    expect(model.log).toHaveLength(3); // and none for what was skipped
  });

  const EMPTY = [
    "",
    "\n \n",
    "# Heartbeat\n\n## Later\n",
    "# Heartbeat\n- \n* [ ]\n+\n- [x]  \n",
    "<!-- nothing\nyet -->\n```\n```\n",
  ];
  it.each(EMPTY)("costs no call when there is nothing to look at: %j", async (words) => {
    await open();
    tasks(words);
    world.clock.at += INTERVAL;
    expect([await beat(), await beat(true)]).toEqual([
      "empty-heartbeat-file",
      "empty-heartbeat-file",
    ]);
    expect(world.model.log).toEqual([]);
    tasks("- [ ] the kettle\n"); // now there is, and nobody has to wait for another interval
    world.model.script(say("HEARTBEAT_OK"));
    expect(await beat()).toBe("ok");
  });

  const SILENT = [
    "HEARTBEAT_OK",
    "  HEARTBEAT_OK\n",
    "HEARTBEAT_OK.",
    "**HEARTBEAT_OK**",
    "`HEARTBEAT_OK`",
    "```\nHEARTBEAT_OK\n```",
    "<b>HEARTBEAT_OK</b>",
    "Nothing to do. HEARTBEAT_OK",
    "没有需要处理的事。HEARTBEAT_OK",
    "HEARTBEAT_OK. All quiet.",
    `HEARTBEAT_OK ${"x".repeat(300)}`,
    `${"x".repeat(300)}\n\nHEARTBEAT_OK`,
  ];
  it.each(SILENT)("is silent at %j", async (answer) => {
    await open();
    world.model.script(say(answer));
    expect(await beat(true)).toBe("ok");
    expect(printed()).not.toContain("HEARTBEAT_OK");
    expect(await heard()).toEqual([]);
  });

  const SAID: [answer: string, heard: string][] = [
    ["The kettle is on.", "The kettle is on."],
    [`HEARTBEAT_OK ${"x".repeat(301)}`, "x".repeat(301)],
    [`${"x".repeat(301)} HEARTBEAT_OK`, "x".repeat(301)],
    ["I would say HEARTBEAT_OK but the kettle is on.", "but the kettle is on."],
    ["HEARTBEAT_OKAY is what the log says.", "HEARTBEAT_OKAY is what the log says."],
  ];
  it.each(SAID)("tells the owner %j", async (answer, words) => {
    await open();
    await write("hello");
    world.model.script(say(answer));
    expect(await beat(true)).toBe("delivered");
    const [, last = ""] = await heard();
    expect(last.startsWith(`${OWNER}: `)).toBe(true);
    expect(last.endsWith(words)).toBe(true);
  });

  it("does not say the same again within 24 hours, and after that it does", async () => {
    const { clock, model } = await open();
    await write("hello");
    const kettle = say("The kettle is on.");
    model.script(kettle, kettle, kettle, say("The tap is on."), kettle);
    expect(await beat(true)).toBe("delivered");
    clock.at += DAY - MINUTE;
    expect(await beat(true)).toBe("duplicate");
    // Also after a restart: it is in a file. And what was not said does not count as said.
    world = world.again();
    clock.at += MINUTE - 1;
    expect(await beat(true)).toBe("duplicate");
    expect(await beat(true)).toBe("delivered"); // something else
    clock.at += 1;
    expect(await beat(true)).toBe("delivered");
    expect((await heard()).slice(1)).toEqual(
      ["The kettle is on.", "The tap is on.", "The kettle is on."].map(
        (words) => `${OWNER}: ${words}`,
      ),
    );
  });

  it("a failed call is none: nothing is delivered, it is said here, and asked again later", async () => {
    const { clock, model, app } = await open();
    await write("hello");
    model.script(
      { error: { status: 400, type: "invalid_request_error", message: "the model is ill" } },
      { content: [], stopReason: "refusal" },
      say("The kettle is on."),
    );
    clock.at += INTERVAL;
    await app.heartbeat.tick(app);
    expect(app.heartbeat.last).toBe("failed");
    expect(printed()).toContain("the model is ill");
    clock.at += INTERVAL;
    await app.heartbeat.tick(app);
    expect(app.heartbeat.last).toBe("failed");
    expect((await heard()).slice(1)).toEqual([]);
    clock.at += INTERVAL;
    await app.heartbeat.tick(app);
    expect(app.heartbeat.last).toBe("delivered");
    await app.heartbeat.tick(app); // not due: that is no news
    expect(app.heartbeat.last).toBe("delivered");
  });

  it("speaks in the terminal until the owner has written from somewhere, and then there", async () => {
    const { model, section, app } = await open();
    model.script(say("One."));
    expect(await beat(true)).toBe("delivered");
    expect(printed()).toContain("One.");
    // Neither somebody else nor a group is the owner's direct conversation.
    model.script(say("re: other"), say("re: group"), say("Two."));
    await section.accept(app, inbound({ text: "other", peerId: "1002" })).done;
    await section.accept(app, inbound({ text: "group", peerId: "-5", isGroup: true })).done;
    expect(await beat(true)).toBe("delivered");
    expect(printed()).toContain("Two.");
    await write("hello");
    world = world.again(); // it is remembered
    model.script(say("Three."));
    expect(await beat(true)).toBe("delivered");
    expect((await heard()).slice(-1)).toEqual([`${OWNER}: Three.`]);
    expect(printed()).not.toContain("Three.");
  });

  it("does not believe an old note of who the owner was", async () => {
    const { model } = await open();
    await write("hello");
    process.env.TELEGRAM_ALLOWED_CHATS = "1002, 1001"; // somebody else has it now
    world = world.again();
    model.script(say("The kettle is on."));
    expect(await beat(true)).toBe("delivered");
    expect(printed()).toContain("The kettle is on.");
    expect((await heard()).slice(1)).toEqual([]);
  });

  it("is the owner's: it knows MEMORY.md and has the tools of the terminal's reader", async () => {
    const { model, workspace } = await open();
    writeFileSync(join(workspace, "MEMORY.md"), "- The owner's cat is Fluse.\n");
    model.script(say("HEARTBEAT_OK"));
    expect(await beat(true)).toBe("ok");
    expect(JSON.stringify(model.log[0]?.request.system)).toContain("Fluse");
  });

  it("uses the agent's own HEARTBEAT.md where there is one", async () => {
    const { model, workspace } = await open();
    mkdirSync(join(workspace, "agents/luna"), { recursive: true });
    tasks("- Luna's own kettle\n", join(workspace, "agents/luna"));
    model.script(say("HEARTBEAT_OK"));
    expect(await beat(true)).toBe("ok");
    expect(outline(model.log[0])[0]).toContain("Luna's own kettle");
    expect(outline(model.log[0])[0]).not.toContain("Is the kettle on?");
  });

  it("keeps the newest 20 of its conversations, also while the clock is behind", async () => {
    const { model, clock, app } = await open();
    const key = (at: number) => `agent:luna:heartbeat:${new Date(at).toISOString()}`.toLowerCase();
    for (let n = 1; n <= 22; n++) app.store.create(key(clock.at + n * HOUR));
    model.script(say("HEARTBEAT_OK"), say("HEARTBEAT_OK"));
    expect(await beat(true)).toBe("ok"); // older than all of them, but under way
    clock.at += DAY;
    expect(await beat(true)).toBe("ok");
    const kept = app.store.all().map(({ header }) => header.key);
    expect(kept).toContain(key(clock.at));
    expect(kept.length).toBeLessThanOrEqual(21);
    expect(kept).not.toContain(key(clock.at - 23 * HOUR));
  });

  it("shows itself: /heartbeat and heartbeat.status", async () => {
    const { model, clock, app, section } = await open({ HEARTBEAT_INTERVAL: "600" });
    model.script(say("HEARTBEAT_OK"));
    clock.at += 10 * MINUTE;
    await app.heartbeat.tick(app);
    const status = await section.METHODS["heartbeat.status"]?.({}, app, undefined as never);
    const next = new Date(clock.at + 10 * MINUTE).toISOString();
    expect(status).toEqual({ interval: 600, start: 9, end: 22, next, last: "ok" });
    const shown = await section.COMMANDS.heartbeat?.run("", app, {});
    for (const words of ["600", next, "ok"]) expect(shown).toContain(words);
  });

  const SENSELESS = [
    ["HEARTBEAT_INTERVAL", "soon"],
    ["HEARTBEAT_INTERVAL", "-1"],
    ["HEARTBEAT_INTERVAL", "1.5"],
    ["HEARTBEAT_INTERVAL", "99999999999"],
    ["HEARTBEAT_ACTIVE_START", "25"],
    ["HEARTBEAT_ACTIVE_END", "9:30"],
  ] as const;
  it.each(SENSELESS)("names %s=%s, which makes no sense", async (name, value) => {
    await open();
    process.env[name] = value;
    expect(() => new world.section.HeartbeatRunner(join(world.state, "h.json"))).toThrow(
      new RegExp(`${name}.*whole number`),
    );
  });

  it("leaves an unreadable note of what it said aside", async () => {
    const { model, state } = await open();
    mkdirSync(state, { recursive: true });
    writeFileSync(join(state, "heartbeat.json"), "[1");
    model.script(say("The kettle is on."));
    expect(await beat(true)).toBe("delivered");
    expect(readFileSync(join(state, "heartbeat.json.broken"), "utf8")).toBe("[1");
  });
});
