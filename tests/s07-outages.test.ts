/** s07, what is not a job's own fault: people without a pause, outages, slips, and broken files. */

import { mkdirSync, readdirSync, rmdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { changed, outline, printed, say, sectionsFrom } from "./helper.ts";
import {
  asking,
  cron,
  DAY,
  event,
  every,
  load07,
  MINUTE,
  OWNER,
  type Own,
  once,
  own,
  quarantined,
  shownBy,
  writeCron,
} from "./s07-helper.ts";
import { countOf, wording } from "./wording.ts";
import { inbound } from "./world.ts";

const AGAIN = 'cron: {what}: {error}. {t("It is tried again.")}';

const toOwner = { channel: "telegram", to: OWNER };

/** In s09 and s10 a key rests after a failure: somebody clears that. */
function clearCooldowns({ app }: Own): void {
  if ("profiles" in app) (app.profiles as { clear(): void }).clear();
}

/** Resolves when no run is under way: an event goes through the same queue, behind all others. */
async function runsEnded({ begin }: Own): Promise<void> {
  ends += 1;
  await begin(event(`end-${ends}`, once(0), { deliver: { channel: "cli", to: "owner" } }));
}
let ends = 0;

/** The next tick, and all that it begins. */
async function tick(world: Own): Promise<void> {
  world.clock.at += MINUTE;
  world.app.cron.tick();
  await runsEnded(world);
}

describe.each(sectionsFrom("s07"))("$name, a job", (file) => {
  it("among people who write without a pause takes its turn when it has waited long enough", async () => {
    const { app, model, section, begin } = await own(file);
    app.activeTurns.maxWait = 1;
    const held = model.hold();
    model.script(say("the job's"), say("for a person"));
    const person = section.accept(app, inbound({ text: "hello", peerId: "1002" })).done;
    await held.waiting;
    expect(await begin(asking("tidy", once(0)))).toBe("the job's");
    held.release();
    expect(await person).toBe("for a person");
  });

  it("is not switched off by an outage, and the run that met it comes when it is over", async () => {
    const world = await own(file);
    const { app, model, clock, phone } = world;
    const jobs = [
      asking("daily", every(86_400), { deliver: toOwner }),
      asking("once", once(clock.at), { deliver: toOwner }),
    ];
    writeCron(world.workspace, jobs);
    app.cron.read();
    clock.at += DAY;
    model.fail("401", 99);
    for (let count = 0; count < 8; count++) {
      await tick(world);
      clearCooldowns(world);
    }
    model.setFailure({});
    expect(jobs.map((job) => app.cron.stateOf(job).errors)).toEqual([0, 0]);
    for (const { id } of jobs) {
      expect(countOf(printed(), wording(file, AGAIN, { what: id }))).toBe(1);
    }
    expect(phone.sent).toEqual([]);
    model.script(say("It works."), say("It works, too."));
    await tick(world);
    expect((await phone.until(2)).sort()).toEqual([
      `${OWNER}: It works, too.`,
      `${OWNER}: It works.`,
    ]);
    expect(app.inbox.pending()).toEqual([]);
  });

  it("is not switched off because the account can't be used, though the API calls that invalid", async () => {
    const world = await own(file);
    const { model, phone } = world;
    writeCron(world.workspace, [asking("once", once(1), { deliver: toOwner })]);
    const words = [
      "Your credit balance is too low to access the Anthropic API.",
      "You have reached your specified API usage limits.",
      "You have reached your specified workspace API usage limits.",
      "This organization has been disabled.",
    ];
    for (const message of words) {
      model.script({ error: { status: 400, type: "invalid_request_error", message } });
      await tick(world);
      clearCooldowns(world);
    }
    expect(model.log).toHaveLength(words.length);
    expect(printed()).not.toMatch(/in a row/);
    expect(phone.sent).toEqual([]);
    model.script(say("It works."));
    await tick(world);
    expect(await phone.until(1)).toEqual([`${OWNER}: It works.`]);
  });

  it("that the disk refuses is tried again, and the other jobs don't wait for it", async () => {
    const world = await own(file);
    const { app, model, phone } = world;
    const current = app.store.current.bind(app.store);
    let isFull = true;
    app.store.current = (key) => {
      const refused = isFull && key.includes(":bad:");
      if (refused) throw Object.assign(new Error("ENOSPC: no space left"), { code: "ENOSPC" });
      return current(key);
    };
    writeCron(world.workspace, [
      asking("bad", once(1), { deliver: toOwner }),
      asking("good", once(1), { deliver: toOwner }),
    ]);
    model.script(say("good"));
    await tick(world);
    await tick(world);
    expect(await phone.until(1)).toEqual([`${OWNER}: good`]);
    expect(printed().match(/cron: bad: .*ENOSPC/g)).toHaveLength(1);
    isFull = false;
    model.script(say("bad"));
    await tick(world);
    expect(await phone.until(2)).toEqual([`${OWNER}: good`, `${OWNER}: bad`]);
    expect(app.inbox.pending()).toEqual([]);
    expect(model.log).toHaveLength(2);
  });

  it("that the disk refuses is named once, though its run gets into the inbox meanwhile", async () => {
    const world = await own(file);
    const { app, model, phone } = world;
    const full = () => Object.assign(new Error("ENOSPC: no space left"), { code: "ENOSPC" });
    const add = app.inbox.add.bind(app.inbox);
    const current = app.store.current.bind(app.store);
    writeCron(world.workspace, [asking("bad", once(1), { deliver: toOwner })]);
    app.inbox.add = (message) => {
      if (message.peerId === "bad") throw full();
      return add(message);
    };
    app.store.current = (key) => {
      if (key.includes(":bad:")) throw full();
      return current(key);
    };
    for (let count = 0; count < 2; count++) await tick(world);
    app.inbox.add = add;
    for (let count = 0; count < 3; count++) await tick(world);
    expect(printed().match(/cron: bad: .*ENOSPC/g)).toHaveLength(1);
    app.store.current = current;
    model.script(say("bad"));
    await tick(world);
    expect(await phone.until(1)).toEqual([`${OWNER}: bad`]);
    // That was the end of the outage, so the next one is named.
    app.inbox.add = () => {
      throw full();
    };
    writeCron(world.workspace, [asking("bad", once(2), { deliver: toOwner })]);
    app.cron.tick();
    expect(printed().match(/cron: bad: .*ENOSPC/g)).toHaveLength(2);
  });

  it("is run once, though its state can't be written for a while", async () => {
    const world = await own(file);
    const { app, model } = world;
    app.cron.tick();
    const obstacle = join(world.state, "cron.json.tmp"); // a folder where the file is written first
    mkdirSync(obstacle);
    const job = asking("hour", every(3600, "2027-01-01T00:00:00Z"), { deliver: toOwner });
    writeCron(world.workspace, [job]);
    await tick(world);
    world.clock.at += 60 * MINUTE;
    model.script(say("done"));
    for (let count = 0; count < 3; count++) await tick(world);
    expect(countOf(printed(), wording(file, AGAIN, { what: join(world.state, "cron.json") }))).toBe(
      1,
    );
    // A crash: the new state was never written.
    const next = world.again();
    await tick(next);
    rmdirSync(obstacle);
    await tick(next);
    const last = next.again();
    await tick(last);
    expect(model.log).toHaveLength(1);
    expect(last.app.cron.next()).toBe(app.cron.next());
  });

  it("whose place no channel has is named when CRON.json is read", async () => {
    const world = await own(file);
    const bad = ["Telegram", "telgram", "telegram ", "", "ws", "cron"].map((channel, index) =>
      event(`job-${index}`, once(1), { deliver: { channel, to: OWNER } }),
    );
    writeCron(world.workspace, [...bad, event("good", once(1), { deliver: toOwner })]);
    expect(world.app.cron.read().map(({ id }) => id)).toEqual(["good"]);
    for (const number of bad.keys()) {
      const values = {
        "index + 1": number + 1,
        error: "Error: channel must be one of cli,telegram",
      };
      const named = wording(file, "job {index + 1} is left out: {error}", values);
      expect(printed()).toMatch(named);
    }
  });

  it("says its event, whatever else its payload has", async () => {
    const world = await own(file);
    const payload = { kind: "system_event" as const, text: "Stretch!", message: "not this" };
    writeCron(world.workspace, [event("stretch", once(1), { payload, deliver: toOwner })]);
    const [job] = world.app.cron.read();
    expect(job?.payload).toEqual(payload);
    await shownBy(world, "cron-trigger", "stretch");
    expect(await world.phone.until(1)).toEqual([`${OWNER}: Stretch!`]);
  });

  it("that is asked for while a run of it waits is not said to be in line once more", async () => {
    const world = await own(file);
    const { model } = world;
    writeCron(world.workspace, [asking("slow", every(3600))]);
    world.app.cron.read();
    const held = model.hold();
    model.script(say("one"));
    expect(await shownBy(world, "cron-trigger", "slow")).toMatch(
      wording(file, "{id} is in line.", { id: "slow" }),
    );
    await held.waiting;
    expect(await shownBy(world, "cron-trigger", "slow")).toMatch(
      wording(file, "An earlier run of {id} is still in line.", { id: "slow" }),
    );
    held.release();
    await runsEnded(world);
    expect(model.log.map((entry) => outline(entry).at(-1))).toEqual(["user: ask slow"]);
  });
});

describe.each(sectionsFrom("s07"))("$name, around it", (file) => {
  it("a job of every third hour does not run in the second pass of a repeated hour", async () => {
    const { nextRun } = await load07(file);
    const firstPass = Date.parse("2027-10-31T00:10:00Z"); // 02:10 in Berlin
    const due = (expr: string) => {
      const at = nextRun(cron(expr, "Europe/Berlin"), firstPass, 0);
      return new Date(at).toISOString().slice(11, 16);
    };
    expect(due("0 */3 * * *")).toBe("02:00"); // 03:00 on the wall
    expect(due("0 0,3,6 * * *")).toBe("02:00");
    expect(due("0 * * * *")).toBe("01:00"); // 02:00 again
    expect(due("0 */1 * * *")).toBe("01:00");
    expect(due("0 0-23 * * *")).toBe("01:00");
  });

  it("an answer in italics that all is well is not told", async () => {
    const { heartbeatText } = await load07(file);
    for (const quiet of [
      "_HEARTBEAT_OK_",
      "__HEARTBEAT_OK__",
      "All is well. _HEARTBEAT_OK_",
      "_HEARTBEAT_OK_ All is well.",
    ]) {
      expect(heartbeatText(quiet), quiet).toBe("");
    }
    expect(heartbeatText("HEARTBEAT_OK_2 is a name.")).toBe("HEARTBEAT_OK_2 is a name.");
    expect(heartbeatText("MY_HEARTBEAT_OK")).toBe("MY_HEARTBEAT_OK");
  });

  it("a heartbeat that could not be sent is reported; from s08 on it waits", async () => {
    const world = await own(file);
    const { app, model, phone } = world;
    writeFileSync(join(world.workspace, "HEARTBEAT.md"), "- the kettle\n");
    writeFileSync(join(world.state, "owner.json"), JSON.stringify(toOwner));
    const send = phone.send.bind(phone);
    phone.send = async () => Promise.reject(new Error("no network"));
    model.script(say("The kettle boils."), say("The kettle boils."));
    const first = await app.heartbeat.run(app, true);
    phone.send = send;
    world.clock.at += MINUTE;
    const second = await app.heartbeat.run(app, true);
    expect([first, second]).toEqual(["delivered", "duplicate"]);
    const unsent = wording(file, "{channel} {to}: a reply was not sent: {error}", {
      error: "Error: no network",
    });
    if (!changed(file, "queue")) expect(printed()).toMatch(unsent);
  });

  it("state that can't be used is quarantined, and the message of its owner is accepted", async () => {
    const world = await own(file);
    const files = ["owner.json", "heartbeat.json", "cron.json"];
    for (const [index, name] of files.entries()) {
      const path = join(world.state, name);
      if (index === 1) symlinkSync(join(world.state, "nowhere"), path);
      else mkdirSync(path, { recursive: true });
    }
    writeFileSync(join(world.workspace, "HEARTBEAT.md"), "- the kettle\n");
    const next = world.again();
    next.model.script(say("re: hello"), say("The kettle boils."));
    await next.section.accept(next.app, inbound({ text: "hello", peerId: OWNER })).done;
    await next.app.heartbeat.run(next.app, true);
    expect(await next.phone.until(2)).toEqual([
      `${OWNER}: re: hello`,
      `${OWNER}: The kettle boils.`,
    ]);
    for (const name of files) {
      expect(
        readdirSync(world.state).some((one) => one.startsWith(`${name}.`)),
        name,
      ).toBe(true);
      expect(printed()).toMatch(
        wording(file, "{file} is quarantined (renamed to {path.basename(name)}): {why}", {
          file: join(world.state, name),
        }),
      );
    }
    expect(quarantined(world.state, "nothing")).toEqual([]);
  });

  it("a CRON.json that is a folder, or a link to nowhere or to itself, is named", async () => {
    for (const kind of ["folder", "nowhere", "CRON.json"]) {
      const world = await own(file);
      const path = join(world.workspace, "CRON.json");
      if (kind === "folder") mkdirSync(path);
      else symlinkSync(kind, path);
      world.app.cron.tick();
      world.app.cron.tick();
      const unread = wording(file, "not readable. The jobs from before go on. {error}");
      expect(countOf(printed(), unread), kind).toBeGreaterThan(0);
    }
  });
});
