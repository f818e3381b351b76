/** s07, the heartbeat: when there is one, and what its owner hears of it. */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { outline, printed, say, sectionsFrom } from "./helper.ts";
import {
  asking,
  DAY,
  event,
  HOUR,
  MINUTE,
  OWNER,
  type Own,
  once,
  own,
  quarantined,
  shownBy,
  viaRpc,
} from "./s07-helper.ts";
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
  const beat = () => world.app.heartbeat.run(world.app);

  /** One by hand. No two can have the same time: it is the name of their conversation. */
  function trigger(): Promise<string> {
    world.clock.at += 1;
    return world.app.heartbeat.run(world.app, true);
  }

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
    expect(await shownBy(world, "trigger")).toBe("ok");
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

  const CANDIDATES = [0, 5, 6, 8, 9, 10, 12, 21, 22, 23];
  const HOURS: [start: string, end: string, active: number[]][] = [
    ["", "", [9, 10, 12, 21]],
    ["8", "12", [8, 9, 10]],
    ["22", "6", [0, 5, 22, 23]],
    ["0", "24", CANDIDATES],
  ];
  it.each(HOURS)("is quiet outside of %s to %s o'clock", async (start, end, active) => {
    await open({ HEARTBEAT_ACTIVE_START: start, HEARTBEAT_ACTIVE_END: end });
    world.model.script(...active.map(() => say("HEARTBEAT_OK")));
    for (const hour of CANDIDATES) {
      world.clock.at = new Date(2027, 0, 5 + hour, hour, 59).getTime();
      expect([hour, await beat()]).toEqual([hour, active.includes(hour) ? "ok" : "quiet-hours"]);
    }
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
    expect([await beat(), await trigger()]).toEqual(["requests-in-flight", "requests-in-flight"]);
    toPerson.release();
    await done;
    const toJob = model.hold();
    const run = world.begin(asking("job", once(0)));
    await toJob.waiting;
    expect([await beat(), await trigger()]).toEqual(["cron-in-progress", "cron-in-progress"]);
    toJob.release();
    await run;
    const toHeartbeat = model.hold();
    const first = beat();
    await toHeartbeat.waiting;
    expect([await beat(), await trigger()]).toEqual(["under-way", "under-way"]);
    toHeartbeat.release();
    expect(await first).toBe("ok");
    expect(model.log).toHaveLength(3); // and none for what was skipped
  });

  it("costs no call when there is nothing to look at", async () => {
    await open();
    world.clock.at += INTERVAL;
    for (const words of [
      "",
      "\n \n",
      "# Heartbeat\n\n## Later\n",
      "# Heartbeat\n- \n* [ ]\n+\n- [x]  \n",
      "<!-- nothing\nyet -->\n```\n```\n",
      "# Heartbeat\r\n\r\n- [ ]\r\n## Later\r\n", // as Windows ends its lines
    ]) {
      tasks(words);
      const results = [await beat(), await trigger()];
      expect([words, ...results]).toEqual([words, "empty-heartbeat-file", "empty-heartbeat-file"]);
    }
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
  it("is silent when the answer has HEARTBEAT_OK at one end, and at most 300 characters", async () => {
    await open();
    await write("hello");
    for (const answer of SILENT) {
      world.model.script(say(answer));
      expect([answer, await trigger()]).toEqual([answer, "ok"]);
    }
    expect(printed()).not.toContain("HEARTBEAT_OK");
    expect((await heard()).slice(1)).toEqual([]);
  });

  const MIDDLE = "I would say HEARTBEAT_OK but the kettle is on.";
  const SAID: [answer: string, heard: string][] = [
    ["The kettle is on.", "The kettle is on."],
    [`HEARTBEAT_OK ${"x".repeat(301)}`, "x".repeat(301)],
    [`${"y".repeat(301)} HEARTBEAT_OK`, "y".repeat(301)],
    [MIDDLE, MIDDLE],
    ["HEARTBEAT_OKAY is what the log says.", "HEARTBEAT_OKAY is what the log says."],
  ];
  it("tells the owner everything else, without HEARTBEAT_OK at its ends", async () => {
    await open();
    await write("hello");
    for (const [answer] of SAID) {
      world.model.script(say(answer));
      expect([answer, await trigger()]).toEqual([answer, "delivered"]);
    }
    expect((await heard()).slice(1)).toEqual(SAID.map(([, words]) => `${OWNER}: ${words}`));
  });

  it("does not say the same again within 24 hours, and after that it does", async () => {
    const { clock, model } = await open();
    await write("hello");
    const kettle = say("The kettle is on.");
    model.script(kettle, kettle, kettle, kettle, say("The tap is on."));
    expect(await trigger()).toBe("delivered");
    const said = clock.at;
    expect(await trigger()).toBe("duplicate");
    world = world.again(); // it is in a file
    clock.at = said + DAY - 2;
    expect(await trigger()).toBe("duplicate");
    expect(await trigger()).toBe("delivered"); // what was not said did not count as said
    expect(await trigger()).toBe("delivered"); // something else
    expect((await heard()).slice(1)).toEqual(
      ["The kettle is on.", "The kettle is on.", "The tap is on."].map(
        (words) => `${OWNER}: ${words}`,
      ),
    );
  });

  it("does not say the same again when the clock is put back, but is not silent until then", async () => {
    const { clock, model } = await open();
    await write("hello");
    const kettle = say("The kettle is on.");
    model.script(kettle, kettle, kettle);
    const before = clock.at;
    clock.at += 400 * DAY;
    expect(await trigger()).toBe("delivered");
    clock.at -= HOUR;
    expect(await trigger()).toBe("duplicate");
    clock.at = before;
    expect(await trigger()).toBe("delivered");
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
    expect(await trigger()).toBe("delivered");
    expect(printed()).toContain("One.");
    // Neither somebody else nor a group is the owner's direct conversation.
    model.script(say("re: other"), say("re: group"), say("Two."));
    await section.accept(app, inbound({ text: "other", peerId: "1002" })).done;
    await section.accept(app, inbound({ text: "group", peerId: "-5", isGroup: true })).done;
    expect(await trigger()).toBe("delivered");
    expect(printed()).toContain("Two.");
    await write("hello");
    model.script(say("re: other"));
    await section.accept(app, inbound({ text: "other", peerId: "1002" })).done;
    world = world.again(); // it is remembered
    model.script(say("Three."));
    expect(await trigger()).toBe("delivered");
    expect(await heard()).toContain(`${OWNER}: Three.`);
    expect(printed()).not.toContain("Three.");
  });

  it("does not believe an old note of who the owner was", async () => {
    const { model } = await open();
    await write("hello");
    process.env.TELEGRAM_ALLOWED_CHATS = "1002, 1001"; // somebody else has it now
    world = world.again();
    model.script(say("The kettle is on."));
    expect(await trigger()).toBe("delivered");
    expect(printed()).toContain("The kettle is on.");
    expect((await heard()).slice(1)).toEqual([]);
  });

  it("is the owner's: it knows MEMORY.md and has the tools of the terminal's reader", async () => {
    const { model, workspace } = await open();
    writeFileSync(join(workspace, "MEMORY.md"), "- The owner's cat is Fluse.\n");
    model.script(say("HEARTBEAT_OK"));
    expect(await trigger()).toBe("ok");
    expect(JSON.stringify(model.log[0]?.request.system)).toContain("Fluse");
  });

  it("uses the agent's own HEARTBEAT.md where there is one", async () => {
    const { model, workspace } = await open();
    mkdirSync(join(workspace, "agents/luna"), { recursive: true });
    tasks("- Luna's own kettle\n", join(workspace, "agents/luna"));
    model.script(say("HEARTBEAT_OK"));
    expect(await trigger()).toBe("ok");
    expect(outline(model.log[0])[0]).toContain("Luna's own kettle");
    expect(outline(model.log[0])[0]).not.toContain("Is the kettle on?");
  });

  it("keeps the newest 20 of its conversations, also while the clock is behind", async () => {
    const { model, clock, app } = await open();
    const key = (at: number) => `agent:luna:heartbeat:${new Date(at).toISOString()}`.toLowerCase();
    for (let n = 1; n <= 22; n++) app.store.create(key(clock.at + n * HOUR));
    model.script(say("HEARTBEAT_OK"), say("HEARTBEAT_OK"));
    expect(await trigger()).toBe("ok"); // older than all of them, but under way
    clock.at += DAY;
    expect(await trigger()).toBe("ok");
    const kept = (await app.store.headers()).map(({ key: one }) => one);
    expect(kept).toContain(key(clock.at));
    expect(kept.length).toBeLessThanOrEqual(21);
    expect(kept).not.toContain(key(clock.at - 23 * HOUR));
  });

  it("shows itself: /heartbeat and heartbeat.status", async () => {
    const { model, clock, app } = await open({ HEARTBEAT_INTERVAL: "600" });
    model.script(say("HEARTBEAT_OK"));
    clock.at += 10 * MINUTE;
    await app.heartbeat.tick(app);
    const status = await viaRpc(world, "heartbeat.status");
    const next = new Date(clock.at + 10 * MINUTE).toISOString();
    expect(status).toEqual({ interval: 600, start: 9, end: 22, next, last: "ok" });
    const shown = await shownBy(world, "heartbeat");
    for (const words of ["600", next, "ok"]) expect(shown).toContain(words);
  });

  it("names a setting that makes no sense", async () => {
    await open();
    for (const [name, value] of [
      ["HEARTBEAT_INTERVAL", "soon"],
      ["HEARTBEAT_INTERVAL", "-1"],
      ["HEARTBEAT_INTERVAL", "1.5"],
      ["HEARTBEAT_INTERVAL", "99999999999"],
      ["HEARTBEAT_ACTIVE_START", "25"],
      ["HEARTBEAT_ACTIVE_END", "9:30"],
    ] as const) {
      process.env[name] = value;
      const make = () => new world.section.HeartbeatRunner(join(world.state, "h.json"));
      expect(make, `${name}=${value}`).toThrow(new RegExp(`${name}.*whole number`));
      process.env[name] = "";
      expect(make).not.toThrow();
    }
  });

  it("leaves an unreadable note of what it said aside", async () => {
    const { model, state } = await open();
    mkdirSync(state, { recursive: true });
    writeFileSync(join(state, "heartbeat.json"), "[1");
    model.script(say("The kettle is on."));
    expect(await trigger()).toBe("delivered");
    expect(quarantined(state, "heartbeat.json")).toEqual(["[1"]);
  });
});
