/** s07, when a job is due: by a clock that only moves when a case moves it. */

import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { printed, sectionsFrom, settings } from "./helper.ts";
import {
  Clock,
  cron,
  DAY,
  event,
  every,
  HOUR,
  iso,
  type Job,
  load07,
  MINUTE,
  once,
  own,
  quarantined,
  type S07,
  service,
  shownBy,
  viaRpc,
  writeCron,
} from "./s07-helper.ts";

const at = (words: string) => Date.parse(words);

/** What a clock on the wall shows there: "2027-03-14 03:30". */
const wall = (time: number, timeZone: string) =>
  new Date(time).toLocaleString("sv", { timeZone }).slice(0, 16);

/** The times from `from` until before `to`, one after the other. */
function times(section: S07, schedule: Job["schedule"], from: string, to: string): number[] {
  const found: number[] = [];
  for (let now = at(from); ; ) {
    now = section.nextRun(schedule, now, 0);
    if (now >= at(to)) return found;
    found.push(now);
    if (found.length > 20_000) throw new Error("it does not come forward");
  }
}

describe.each(sectionsFrom("s07"))("$name, nextRun", (file) => {
  let section: S07;
  beforeEach(async () => {
    section = await load07(file);
  });

  it("counts an every from its anchor, however late it is looked at", () => {
    const anchor = at("2027-01-01T00:07:00Z");
    const fromAnchor = every(90, iso(anchor));
    const since = at("2027-01-01T00:00:11.5Z");
    let random = 7;
    let now = at("2027-01-05T12:00:00Z");
    for (let i = 0; i < 200; i++) {
      random = (random * 48271) % 2147483647;
      now += random % (5 * MINUTE);
      const next = section.nextRun(fromAnchor, now, since);
      expect((next - anchor) % 90_000).toBe(0);
      expect(next).toBeGreaterThan(now);
      expect(next - now).toBeLessThanOrEqual(90_000);
      const unanchored = section.nextRun(every(90), now, since);
      expect((unanchored - since) % 90_000).toBe(0);
      expect(unanchored - now).toBeGreaterThan(0);
      expect(unanchored - now).toBeLessThanOrEqual(90_000);
    }
    // On the very time: the next one.
    expect(section.nextRun(fromAnchor, anchor, 0)).toBe(anchor + 90_000);
    expect(section.nextRun(every(60), since + MINUTE, since)).toBe(since + 2 * MINUTE);
    // Not before it.
    expect(section.nextRun(fromAnchor, anchor - DAY, 0)).toBe(anchor);
  });

  it("has one time for an at, also when it is past or far away", () => {
    expect(section.nextRun(once("2027-03-14T09:00:00Z"), at("2026-01-01"), 0)).toBe(
      at("2027-03-14T09:00:00Z"),
    );
    expect(section.nextRun(once("2027-03-14T09:00:00+02:00"), at("2040-01-01"), 0)).toBe(
      at("2027-03-14T07:00:00Z"),
    );
  });

  const SHIFTS: [zone: string, when: string, around: [string, string], expected: string[]][] = [
    [
      "America/New_York",
      "30 2 * * *", // 02:00 to 03:00 does not exist on the 14th
      ["2027-03-13T05:00Z", "2027-03-16T04:00Z"],
      ["2027-03-13 02:30", "2027-03-14 03:30", "2027-03-15 02:30"],
    ],
    [
      "America/New_York",
      "30 1 * * *", // on the 7th there are two of it
      ["2027-11-06T04:00Z", "2027-11-09T05:00Z"],
      ["2027-11-06 01:30", "2027-11-07 01:30", "2027-11-08 01:30"],
    ],
    [
      "Australia/Lord_Howe",
      "15 2 * * *", // 02:00 to 02:30 does not exist on the 3rd
      ["2027-10-01T13:30Z", "2027-10-04T13:00Z"],
      ["2027-10-02 02:15", "2027-10-03 02:45", "2027-10-04 02:15"],
    ],
    [
      "Australia/Lord_Howe",
      "45 1 * * *", // on the 4th there are two of it, half an hour apart
      ["2027-04-02T13:00Z", "2027-04-05T13:30Z"],
      ["2027-04-03 01:45", "2027-04-04 01:45", "2027-04-05 01:45"],
    ],
  ];
  it.each(SHIFTS)("runs once a day in %s while clocks change: %s", (tz, expr, [from, to], days) => {
    const found = times(section, cron(expr, tz), from, to);
    expect(found.map((time) => wall(time, tz))).toEqual(days);
  });

  const SKIPPED: [zone: string, expr: string, seen: string, to: string, expected: string[]][] = [
    ["Europe/Berlin", "*/20 2 * * *", "03-28T00:50", "03-28T20:00", ["01:00", "01:20", "01:40"]],
    ["Europe/Berlin", "30 2 * * *", "03-28T01:10", "03-28T20:00", ["01:30"]],
    ["Europe/Berlin", "30 2 * * *", "03-28T01:30", "03-28T20:00", []],
    ["Europe/Berlin", "0 2,3 * * *", "03-28T00:59", "03-28T20:00", ["01:00"]],
    ["Europe/Berlin", "15 * * * *", "03-28T00:20", "03-28T03:20", ["01:15", "02:15", "03:15"]],
    ["America/New_York", "*/30 2 * * *", "03-14T07:00", "03-14T20:00", ["07:30"]],
    // From 02:00 to 02:30; and from 01:00 to 03:00, at UTC+0 and then +2.
    ["Australia/Lord_Howe", "0,15 2 * * *", "10-02T15:00", "10-03T12:00", ["15:30", "15:45"]],
    ["Antarctica/Troll", "40 1,2 * * *", "03-28T00:50", "03-28T20:00", ["01:40", "02:40"]],
    ["Antarctica/Troll", "40 2 * * *", "03-28T02:30", "03-28T20:00", ["02:40"]],
  ];
  it.each(SKIPPED)("in %s runs each time of `%s` that clocks skip, seen at %s", (...row) => {
    const [tz, expr, seen, to, expected] = row;
    const found = times(section, cron(expr, tz), `2027-${seen}Z`, `2027-${to}Z`);
    expect(found.map((time) => iso(time).slice(11, 16))).toEqual(expected);
  });

  it("of an hour that comes twice takes the first; at other times is not moved", () => {
    const [first] = times(
      section,
      cron("30 1 7 11 *", "America/New_York"),
      "2027-11-01T00:00Z",
      "2027-11-30T00:00Z",
    );
    expect(iso(first ?? 0)).toBe("2027-11-07T05:30:00.000Z");
    const summer = section.nextRun(cron("0 12 * * *", "Europe/Berlin"), at("2027-07-01"), 0);
    expect(iso(summer)).toBe("2027-07-01T10:00:00.000Z");
  });

  // Four days with the shift in the middle, in New York and in Lord Howe, forward and back.
  const AROUND = [
    ["America/New_York", "2027-03-13T05:00Z", [5, 4, 4, 4]],
    ["America/New_York", "2027-11-06T04:00Z", [4, 5, 5, 5]],
    ["Australia/Lord_Howe", "2027-10-01T13:30Z", [-10.5, -11, -11, -11]],
    ["Australia/Lord_Howe", "2027-04-02T13:00Z", [-11, -10.5, -10.5, -10.5]],
  ] as const;
  it.each(AROUND)("has a run of 9 o'clock on each day in %s from %s on", (tz, from, offsets) => {
    const midnight = Math.round((at(from) - offsets[0] * HOUR) / DAY) * DAY;
    const runs = offsets.map((offset, day) => midnight + day * DAY + (9 + offset) * HOUR);
    // From wherever it is asked: the first one after that.
    for (let now = at(from); now < (runs[3] ?? 0); now += 13 * HOUR + 7 * MINUTE) {
      const next = runs.find((time) => time > now) ?? 0;
      const given = section.nextRun(cron("0 9 * * *", tz), now, 0);
      expect(iso(given), `asked at ${iso(now)}`).toBe(iso(next));
    }
  });

  it("knows the 31st and leap days, and no time zone of its own", () => {
    const months = times(section, cron("0 9 31 * *", "UTC"), "2027-01-01T00:00Z", "2028-01-01");
    expect(months.map((time) => iso(time).slice(0, 16))).toEqual(
      ["01", "03", "05", "07", "08", "10", "12"].map((month) => `2027-${month}-31T09:00`),
    );
    const leaps = times(section, cron("0 9 29 2 *", "UTC"), "2095-01-01T00:00Z", "2109-01-01");
    expect(leaps.map((time) => iso(time).slice(0, 10))).toEqual([
      "2096-02-29",
      "2104-02-29", // 2100 is none
      "2108-02-29",
    ]);
    const here = section.nextRun(cron("30 9 * * *"), at("2027-06-01T00:00Z"), 0);
    expect([new Date(here).getHours(), new Date(here).getMinutes()]).toEqual([9, 30]);
  });

  const SENSELESS: [what: Job["schedule"], named: RegExp][] = [
    [cron(""), /expr/],
    [cron("* * *"), /\* \* \*/],
    [cron("* * * * * * *"), /5 fields/],
    [cron("0 0 30 2 *"), /./],
    [cron("61 * * * *"), /61/],
    [cron("0 9 * * *", "Mars/Olympus_Mons"), /Mars\/Olympus_Mons/],
    [every(0), /everySeconds/],
    [every(-5), /everySeconds/],
    [every(Number.NaN), /everySeconds/],
    [every(60, "soon"), /soon/],
    [once("tomorrow"), /tomorrow/],
    [once(""), /time/],
  ];
  it("throws at what makes no sense", () => {
    for (const [schedule, named] of SENSELESS) {
      const next = () => section.nextRun(schedule, at("2027-01-01"), 0);
      expect(next, JSON.stringify(schedule)).toThrow(named);
    }
  });
});

describe.each(sectionsFrom("s07"))("$name, CronService", (file) => {
  let section: S07;
  let workspace: string;
  let clock: Clock;
  beforeEach(async () => {
    const given = settings();
    workspace = given.CLAW0_WORKSPACE ?? "";
    section = await load07(file, given);
    clock = new Clock(at("2027-01-04T10:00:00Z"));
    mkdirSync(join(workspace, ".state"));
  });

  /** Moves the clock in steps, and ticks after each. */
  function pass(running: { cron: { tick(): void } }, total: number, step = MINUTE): void {
    for (let passed = 0; passed < total; passed += step) {
      clock.at += step;
      running.cron.tick();
    }
  }

  it("begins each time once, in order, and none before it", () => {
    writeCron(workspace, [
      event("half", every(30 * 60, "2027-01-01T00:05:00Z")),
      event("noon", cron("0 12 * * *", "UTC")),
      event("once", once("2027-01-04T11:20:30Z")),
      event("off", every(60), { enabled: false }),
    ]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    expect(one.begun).toEqual([]);
    expect(iso(one.cron.next())).toBe("2027-01-04T10:05:00.000Z");
    pass(one, 3 * HOUR, 20_000);
    expect(one.begun).toEqual([
      "half 2027-01-04T10:05:00.000Z",
      "half 2027-01-04T10:35:00.000Z",
      "half 2027-01-04T11:05:00.000Z",
      "once 2027-01-04T11:20:30.000Z",
      "half 2027-01-04T11:35:00.000Z",
      "noon 2027-01-04T12:00:00.000Z",
      "half 2027-01-04T12:05:00.000Z",
      "half 2027-01-04T12:35:00.000Z",
    ]);
  });

  it("does not drift, whatever the timer does", () => {
    writeCron(workspace, [event("quarter", every(15 * 60))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    const since = clock.at;
    pass(one, 10 * HOUR, 61_713);
    expect(one.begun.length).toBeGreaterThanOrEqual(40);
    const begunAt = one.begun.map((words) => at(words.split(" ")[1] ?? ""));
    expect(begunAt).toEqual(begunAt.map((_, n) => since + (n + 1) * 15 * MINUTE));
  });

  it("waits for more than 24.8 days", () => {
    const far = clock.at + 400 * DAY;
    writeCron(workspace, [event("far", once(far))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    expect(one.cron.next()).toBe(far);
    pass(one, 400 * DAY - HOUR, HOUR);
    expect(one.begun).toEqual([]);
    pass(one, HOUR, HOUR);
    expect(one.begun).toEqual([`far ${iso(far)}`]);
  });

  it("after a week asleep makes each job up once, and goes on at its times", () => {
    writeCron(workspace, [
      event("hour", every(3600, "2027-01-01T00:30:00Z")),
      event("noon", cron("0 12 * * *", "UTC")),
      event("once", once("2027-01-06T08:00:00Z")),
    ]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    clock.at += 7 * DAY + 5 * MINUTE;
    one.cron.tick();
    one.cron.tick();
    const madeUp = [
      "hour 2027-01-04T10:30:00.000Z",
      "noon 2027-01-04T12:00:00.000Z",
      "once 2027-01-06T08:00:00.000Z",
    ];
    expect(one.begun).toEqual(madeUp);
    pass(one, 2 * HOUR);
    expect(one.begun).toEqual([
      ...madeUp,
      "hour 2027-01-11T10:30:00.000Z",
      "hour 2027-01-11T11:30:00.000Z",
      "noon 2027-01-11T12:00:00.000Z",
    ]);
  });

  it("makes up what was missed while it did not run", () => {
    const jobs = [event("hour", every(3600)), event("once", once(clock.at + 3 * HOUR))];
    writeCron(workspace, jobs);
    const before = service(section, workspace, clock);
    before.cron.tick();
    const started = clock.at;
    clock.at += 2 * DAY + 10 * MINUTE;
    const after = service(section, workspace, clock);
    after.cron.tick();
    after.cron.tick();
    expect(after.begun).toEqual([`hour ${iso(started + HOUR)}`, `once ${iso(started + 3 * HOUR)}`]);
    // And it still counts from where it began.
    expect(after.cron.next()).toBe(started + 2 * DAY + HOUR);
  });

  it("with a clock that jumps a day ahead makes up one run; and a day back does not wait for it", () => {
    writeCron(workspace, [event("hour", every(3600, "2027-01-01T00:30:00Z"))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    clock.at += DAY;
    one.cron.tick();
    expect(one.begun).toEqual(["hour 2027-01-04T10:30:00.000Z"]);
    expect(iso(one.cron.next())).toBe("2027-01-05T10:30:00.000Z");
    clock.at -= DAY;
    one.cron.tick();
    pass(one, 2 * HOUR);
    // The 10:30 is the same due time again: the inbox knows it. What counts is that it goes on.
    expect(one.begun.at(-1)).toBe("hour 2027-01-04T11:30:00.000Z");
    expect(new Set(one.begun).size).toBe(2);
  });

  it("looks at the jobs without skipping a run that is due", async () => {
    const world = await own(file);
    const { app } = world;
    writeCron(world.workspace, [event("hour", every(3600)), event("noon", cron("0 12 * * *"))]);
    app.cron.tick();
    const due = app.cron.next();
    world.clock.at = due + 5 * MINUTE;
    for (let i = 0; i < 3; i++) {
      const shown = await shownBy(world, "cron");
      expect(shown).toContain(iso(due));
      const listed = await viaRpc(world, "cron.list");
      expect(listed).toMatchObject([{ id: "hour", due: iso(due) }, { id: "noon" }]);
      expect(app.cron.next()).toBe(due);
    }
    app.cron.tick();
    await world.settled();
    expect(printed()).toContain("event of hour");
  });

  it("keeps a one-shot and a deleteAfterRun away for good, also after a restart", () => {
    writeCron(workspace, [
      event("once", once(clock.at + MINUTE)),
      event("first", every(120), { deleteAfterRun: true }),
      event("daily", cron("0 11 * * *", "UTC"), { deleteAfterRun: true }),
    ]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    pass(one, 2 * HOUR);
    expect(one.begun.map((words) => words.split(" ")[0])).toEqual(["once", "first", "daily"]);
    for (let life = 0; life < 2; life++) {
      const next = service(section, workspace, clock);
      next.cron.tick();
      expect(next.cron.next()).toBe(Number.POSITIVE_INFINITY);
      pass(next, 2 * DAY, HOUR);
      expect(next.begun).toEqual([]);
    }
  });

  it("begins anew a job whose entry is another, and leaves the others as they are", () => {
    const noon = event("noon", cron("0 12 * * *", "UTC"));
    writeCron(workspace, [noon, event("hour", every(3600))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    pass(one, 20 * MINUTE);
    writeCron(workspace, [noon, event("hour", every(600))]);
    pass(one, 15 * MINUTE);
    expect(one.begun).toEqual(["hour 2027-01-04T10:31:00.000Z"]); // seen at 10:21
    writeCron(workspace, [noon]);
    pass(one, 2 * HOUR);
    expect(one.begun.slice(1)).toEqual(["noon 2027-01-04T12:00:00.000Z"]);
  });

  it("goes on with the old jobs while the file is broken, says so, and reads it when it is mended", () => {
    writeCron(workspace, [event("old", every(3600))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    for (const broken of ["{", "null", "[]", '{"jobs":null}', '{"jobs":{"a":1}}', ""]) {
      const said = printed().length;
      writeCron(workspace, broken);
      pass(one, HOUR);
      expect(printed().slice(said), broken).toMatch(/CRON\.json/);
      // Said once, and not at every tick.
      expect(
        printed()
          .slice(said)
          .match(/CRON\.json/g),
        broken,
      ).toHaveLength(1);
    }
    expect(one.begun).toHaveLength(6);
    // Also when it starts with a broken file: what was kept of the jobs is not lost.
    const second = service(section, workspace, clock);
    second.cron.tick();
    expect(second.begun).toEqual([]);
    writeCron(workspace, [event("old", every(3600))]);
    clock.at += 2 * HOUR;
    second.cron.tick();
    expect(second.begun).toEqual(["old 2027-01-04T17:00:00.000Z"]);
  });

  it("names a bad job by its number, and runs the others", () => {
    const good = event("good", every(60));
    const bad: [job: unknown, named: RegExp][] = [
      [null, /./],
      [[], /./],
      ["x", /./],
      [{ ...good, id: "a", payload: null }, /kind|payload/],
      [{ ...good, id: "b", payload: { kind: "agent_turn" } }, /message/],
      [{ ...good, id: "c", payload: { kind: "shell", text: "ls" } }, /shell/],
      [{ ...good, id: "d", schedule: null }, /kind|schedule/],
      [{ ...good, id: "e", schedule: { kind: "cron", expr: 5 } }, /expr/],
      [{ ...good, id: "f", schedule: { kind: "every", everySeconds: "60" } }, /everySeconds/],
      [{ ...good, id: "g", schedule: { kind: "cron", expr: "0 0 30 2 *" } }, /./],
      [{ ...good, id: "h", schedule: { kind: "cron", expr: "0 9 * * *", tz: "Mars/X" } }, /Mars/],
      [{ ...good, id: "../i" }, /id/],
      [{ ...good, id: 7 }, /id/],
      [{ ...good, id: "j", enabled: "yes" }, /enabled/],
      [{ ...good, id: "k", deliver: { channel: "telegram" } }, /to/],
      [{ ...good, id: "l", deliver: "telegram" }, /deliver/],
      [good, /good is there twice/],
    ];
    writeCron(workspace, [good, ...bad.map(([job]) => job), event("last", every(60))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    const lines = printed().split("\n");
    bad.forEach(([job, named], index) => {
      const [line = ""] = lines.filter((words) => new RegExp(`\\b${index + 2}\\b`).test(words));
      expect(line, JSON.stringify(job)).toContain("CRON.json");
      expect(line, JSON.stringify(job)).toMatch(named);
    });
    pass(one, MINUTE);
    expect(one.begun.map((words) => words.split(" ")[0])).toEqual(["good", "last"]);
  });

  it("is off after the fifth error in a row, says it once, and stays off until it is edited", () => {
    const minute = event("minute", every(60));
    writeCron(workspace, [minute, event("other", every(60))]);
    const one = service(section, workspace, clock);
    one.cron.tick();
    const said = [1, 2, 3, 4].map((n) => one.cron.report("minute", new Error(`no ${n}`)));
    expect(said).toEqual(["", "", "", ""]);
    one.cron.report("minute"); // it went well: counted anew
    const more = [1, 2, 3, 4].map((n) => one.cron.report("minute", new Error(`no ${n}`)));
    expect(more).toEqual(["", "", "", ""]);
    expect(one.cron.report("minute", new Error("no 5"))).toContain("minute");
    pass(one, 2 * MINUTE);
    expect(one.begun.map((words) => words.split(" ")[0])).toEqual(["other", "other"]);
    const next = service(section, workspace, clock);
    next.cron.tick();
    pass(next, 2 * MINUTE);
    expect(next.begun.map((words) => words.split(" ")[0])).toEqual(["other", "other"]);
    writeCron(workspace, [{ ...minute, name: "mended" }, event("other", every(60))]);
    next.cron.tick();
    pass(next, MINUTE);
    expect(next.begun.map((words) => words.split(" ")[0]).slice(2)).toEqual(["minute", "other"]);
  });

  it("sets a state file aside that it can't read, and never writes CRON.json", () => {
    writeCron(workspace, [event("hour", every(3600))]);
    const cronFile = join(workspace, "CRON.json");
    const before = [readFileSync(cronFile, "utf8"), statSync(cronFile).mtimeMs];
    writeFileSync(join(workspace, ".state/cron.json"), '{"hour":');
    const one = service(section, workspace, clock);
    one.cron.tick();
    pass(one, 2 * HOUR);
    expect(one.begun).toHaveLength(2);
    expect(printed()).toMatch(/cron\.json/);
    expect(quarantined(join(workspace, ".state"), "cron.json")).toEqual(['{"hour":']);
    expect([readFileSync(cronFile, "utf8"), statSync(cronFile).mtimeMs]).toEqual(before);
  });

  it("starts a job afresh whose state some editor has made unusable", () => {
    writeCron(workspace, [event("hour", every(3600))]);
    const stateFile = join(workspace, ".state/cron.json");
    service(section, workspace, clock).cron.read();
    const { hour } = JSON.parse(readFileSync(stateFile, "utf8"));
    const far = 1e300;
    const unusable: object[] = ["since", "computedAt", "errors", "due"].flatMap((field) =>
      [null, "soon", -1.5, far, []].map((value) => ({ ...hour, [field]: value })),
    );
    for (const field of ["entry", "since", "computedAt", "errors"])
      unusable.push({ ...hour, [field]: undefined });
    for (const state of unusable) {
      writeFileSync(stateFile, JSON.stringify({ hour: state }));
      const { cron: jobs } = service(section, workspace, clock);
      jobs.read();
      expect(jobs.next(), JSON.stringify(state)).toBe(clock.at + HOUR);
      expect(JSON.parse(readFileSync(stateFile, "utf8"))).toEqual({ hour });
    }
    expect(printed().match(/cron\.json: hour: /g)).toHaveLength(unusable.length);
    // What a job has that will not run again.
    const { due: _, ...over } = hour;
    writeFileSync(stateFile, JSON.stringify({ hour: over }));
    const { cron: jobs } = service(section, workspace, clock);
    jobs.read();
    expect(jobs.next()).toBe(Number.POSITIVE_INFINITY);
  });

  it("forgets nothing while the file is away for a moment", () => {
    const jobs = [event("first", every(60), { deleteAfterRun: true }), event("hour", every(3600))];
    writeCron(workspace, jobs);
    const one = service(section, workspace, clock);
    one.cron.tick();
    const began = clock.at;
    pass(one, 2 * MINUTE);
    rmSync(join(workspace, "CRON.json"));
    pass(one, 2 * HOUR);
    writeCron(workspace, jobs);
    pass(one, 3 * MINUTE);
    expect(one.begun).toEqual([`first ${iso(began + MINUTE)}`, `hour ${iso(began + HOUR)}`]);
  });

  it("does without a CRON.json", () => {
    rmSync(join(workspace, "CRON.json"), { force: true });
    const one = service(section, workspace, clock);
    pass(one, HOUR);
    expect([one.begun, one.cron.next(), printed()]).toEqual([[], Number.POSITIVE_INFINITY, ""]);
    writeCron(workspace, [event("hour", every(3600))]);
    pass(one, 2 * HOUR);
    expect(one.begun).toHaveLength(1);
  });

  it("begins the others also if one can't be begun, and that one as soon as it can", () => {
    writeCron(workspace, [event("bad", every(60)), event("good", every(60))]);
    let full = true;
    const begun: string[] = [];
    const begin = (job: Job, due: number) => {
      if (job.id === "bad" && full) throw new Error("the disk is full");
      return begun.push(`${job.id} ${iso(due)}`) > 0;
    };
    const cronService = new section.CronService(workspace, begin, clock.now);
    /** If it throws, the timer says so. */
    const tick = () => {
      try {
        cronService.tick();
      } catch (error) {
        section.warn(String(error));
      }
    };
    tick();
    clock.at += MINUTE;
    tick();
    expect(begun).toEqual([`good ${iso(clock.at)}`]);
    expect(printed()).toContain("the disk is full");
    full = false;
    clock.at += 1000;
    tick();
    expect(begun.slice(1)).toEqual([`bad ${iso(clock.at - 1000)}`]);
  });
});
