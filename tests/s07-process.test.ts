/** s07 as people run it: one timer, beside a person who types and another who writes. */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { englishFrom, SEVERAL, say, settings, start } from "./helper.ts";
import { asking, cron, DAY, event, every, iso, once, writeCron } from "./s07-helper.ts";
import { afterwards, lastText, openWorld, unmarked, type World } from "./world.ts";

/** Asks the gateway. */
function rpc(world: World, method: string): Promise<unknown> {
  const socket = new WebSocket(world.gateway);
  afterwards(() => socket.terminate());
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("open", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method })));
    socket.on("message", (data) => resolve(JSON.parse(String(data)).result));
  });
}

/** The heartbeat sees the owner's tasks and has nothing to say; to others it says what it hears. */
const isHeartbeat = (words: string) => words.includes("Is the kettle on?");

const LONG_AGO = once("2026-01-01T00:00:00Z");

/** CRON.json with these jobs. One of every second keeps the timer awake, so that edits are seen. */
function edit(workspace: string, ...jobs: object[]): void {
  const deliver = { channel: "cli", to: "owner" };
  writeCron(workspace, [...jobs, event("second", every(1), { deliver })]);
}

function prepare(world: World): void {
  writeFileSync(join(world.workspace, "HEARTBEAT.md"), "- Is the kettle on?\n");
  edit(world.workspace, event("early", LONG_AGO));
  const { brain } = world.model;
  world.model.brain = (request) =>
    isHeartbeat(lastText(request)) ? say("All is well. HEARTBEAT_OK") : brain(request);
}

/**
 * Node's timers and the clock on the wall are two clocks: what a timer runs may see 1 ms too little
 * by the other, and to look at a file takes a moment. Here that is always so.
 */
const EARLY = `
  import fs from "node:fs";
  const [now, wait, exists] = [Date.now, setTimeout, fs.existsSync];
  let inside;
  Date.now = () => inside ?? now();
  fs.existsSync = (file) => {
    if (inside) inside += 2;
    return exists(file);
  };
  globalThis.setTimeout = (run, ms = 0, ...rest) => {
    const due = Date.now() + ms;
    if (ms >= 60000) console.log("a timer of " + ms);
    return wait(() => {
      inside = due - 1;
      try { run(...rest); } finally { inside = undefined; }
    }, ms);
  };`;

const EVERY_SECOND = {
  NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(EARLY)}`,
  HEARTBEAT_INTERVAL: "1",
  HEARTBEAT_ACTIVE_START: "0",
  HEARTBEAT_ACTIVE_END: "24",
};

describe.each(englishFrom("s07"))("$name, its own life", (section) => {
  it("puts a run of a job that killed it three times into quarantine, and answers nobody", async () => {
    const sender = { accountId: "local", senderId: "owner", isGroup: false, agentId: "luna" };
    const run = {
      channel: "cron",
      peerId: "bad",
      text: "poison",
      job: { isEvent: true },
      media: [],
    };
    const id = "cron:bad:2027-01-04T10:00:00.000Z";
    const message = { ...sender, ...run, id, at: 1, sessionKey: `agent:luna:${id}`, attempts: 3 };
    const world = await openWorld(section, {
      feishu: false,
      prepare: ({ state }) => {
        mkdirSync(join(state, "inbox"), { recursive: true });
        writeFileSync(join(state, "inbox/000000000001.json"), JSON.stringify(message));
      },
    });
    const { program } = world;
    expect(program.text).toMatch(/is quarantined.*\/inbox retry/);
    // As a person's, which has to be told to its writer, it would have no channel.
    expect(program.text).not.toContain("not set up");
    expect(await program.ask("/inbox")).toContain("poison");
  });

  it(
    "goes on beside people: what it has to say comes by itself, and nobody waits for it",
    SEVERAL,
    async () => {
      const world = await openWorld(section, { feishu: false, settings: EVERY_SECOND, prepare });
      const { program, model, telegram, workspace } = world;
      // Nobody has pressed Enter.
      await program.until("event of early");

      // The model has a heartbeat in its hands, and a person is answered all the same.
      const { brain } = model;
      model.brain = (request) =>
        isHeartbeat(lastText(request)) ? say("The kettle is on.") : brain(request);
      const held = model.hold();
      const entry = await held.waiting;
      expect(isHeartbeat(lastText(entry.request))).toBe(true);
      expect(await world.types("hello")).toContain("re: hello");
      await world.telegramSays("bob", "hello, too").confirmed;
      expect(await world.telegramHears("bob")).toBe("re: hello, too");
      held.release();
      await program.until("The kettle is on.");
      model.brain = brain;

      // CRON.json is edited, broken and mended while it runs.
      writeCron(workspace, "{ half of it");
      await program.until(/CRON\.json.*\n/);
      const jobs = [
        { ...event("bad", LONG_AGO), payload: null },
        asking("mended", LONG_AGO),
        event("spring", cron("30 2 14 3 *", "America/New_York")),
      ];
      edit(workspace, ...jobs);
      await program.until(/job 1 .*\n/);
      await program.until("re: ask mended");

      // Once the owner has written from the phone, things are said there.
      await world.telegramSays("alice", "I am here").confirmed;
      expect(await world.telegramHears("alice")).toBe("re: I am here");
      edit(workspace, ...jobs, event("later", LONG_AGO));
      expect(await world.telegramHears("alice")).toBe("event of later");

      expect(await rpc(world, "cron.list")).toMatchObject([
        { id: "mended", due: "never", errors: 0 },
        { id: "spring", due: expect.stringMatching(/-03-14T07:30:00\.000Z$/), errors: 0 },
        { id: "later", due: "never" },
        { id: "second" },
      ]);
      expect(await rpc(world, "heartbeat.status")).toMatchObject({
        interval: 1,
        start: 0,
        end: 24,
      });

      // At the end of its input it leaves; it does not wait for what is due some day.
      expect(program.text).not.toContain("HEARTBEAT_OK");
      expect((await program.finish()).code).toBe(0);
      expect(telegram.textsTo("alice").map(unmarked)).toEqual(["re: I am here", "event of later"]);

      // Whatever has run stays away.
      const far = Date.now() + 400 * DAY; // more than setTimeout can take
      const last = [event("later", LONG_AGO), event("last", LONG_AGO), event("far", once(far))];
      edit(workspace, ...jobs, ...last);
      const again = await world.start({ HEARTBEAT_INTERVAL: "0" });
      expect(await world.telegramHears("alice")).toBe("event of last");
      await again.until("event of second"); // made up
      await again.until("event of second"); // in time, by a timer that has fired too early
      writeCron(workspace, [...jobs, ...last]);
      await again.until(/a timer of 60000\n/);
      expect(await again.ask("/cron")).toContain(iso(far));
      expect(again.text).not.toMatch(/a timer of \d{8}|TimeoutOverflow/);
      expect(telegram.textsTo("alice")).toHaveLength(3);
      expect(world.requestsAbout("ask mended")).toHaveLength(1);
    },
  );

  it("names a setting that makes no sense, and does not start", async () => {
    const program = start(section, settings(undefined, { HEARTBEAT_ACTIVE_START: "9:30" }));
    const { code, text } = await program.end();
    expect(code).toBe(1);
    expect(text).toMatch(/HEARTBEAT_ACTIVE_START.*whole number/);
  });
});
