/** s07, killed with SIGKILL around the times when jobs are due. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { PracticeModel } from "../practice/model.ts";
import { startTelegram } from "../practice/telegram.ts";
import { telegramSettings } from "../practice/world.ts";
import { englishFrom, outline, SEVERAL, settings, start } from "./helper.ts";
import { asking, event, every, type Job, once, writeCron } from "./s07-helper.ts";
import { afterwards, echoModel, processedLines } from "./world.ts";

/** The files of a folder of the state that are whole. */
function stored(folder: string): { id: string; attempts?: number; unfinished?: number }[] {
  if (!existsSync(folder)) return [];
  const names = readdirSync(folder).filter((name) => /^\d+\.json$/.test(name));
  return names.map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")));
}

const jobIn = (id: string) => id.split(":")[1] ?? "";

/** What a job says to the person: its own text, or what the model answers to its message. */
const textOf = ({ payload }: Job) =>
  payload.kind === "system_event" ? payload.text : `re: ${payload.message}`;

/** That the model was asked by a job at least once if it asks at all, and not too often. */
function expectRequests(model: PracticeModel, { id, payload }: Job, most: number): void {
  const message = payload.kind === "agent_turn" ? payload.message : undefined;
  const asked = `user: ${message}`;
  const requests = model.log.filter((entry) => outline(entry)[0] === asked);
  if (message) expect(requests.length, id).toBeGreaterThan(0);
  expect(requests.length, id).toBeLessThanOrEqual(most);
}

/** The ids of a job's runs that the inbox has processed. */
function processedRunsOf(job: string, state: string): string[] {
  const ids = processedLines(join(state, "inbox")).map((line): string => JSON.parse(line).id);
  return ids.filter((id) => jobIn(id) === job);
}

/** Half of the jobs are due in a life that has just begun, half in one that has settled. */
const delayOf = (kill: number, dice: (sides: number) => number) =>
  kill % 2 ? 1_000 : 300 + dice(500);

/** Two jobs that ask the model and two that do not, each due 40 ms after the one before it. */
const fourJobs = (kill: number, first: number, deliver: Job["deliver"]): Job[] =>
  [event, asking, event, asking].map((make, n) =>
    make(`job-${kill}-${n}`, once(first + n * 40), { deliver }),
  );

/** The jobs of which a run, or the sending of what it said, had begun and was not over. */
function underWay(state: string): Set<string> {
  const open = ["inbox", "delivery"].flatMap((name) => stored(join(state, name)));
  return new Set(
    open.filter(({ attempts, unfinished }) => attempts || unfinished).map(({ id }) => jobIn(id)),
  );
}

// The newest one has all that came before, so between it and the first one none is tried here.
const KILLS = [...englishFrom("s07").slice(0, 1), ...englishFrom("s08").slice(-1)].map(
  (section, index) => ({ section, name: section.name, kills: index === 0 ? 6 : 3 }),
);

describe.each(KILLS)("$name, killed $kills times", ({ section, kills }) => {
  it(
    "loses no job, and runs none twice for one time, unless it was under way",
    SEVERAL,
    async () => {
      const model = await echoModel();
      const telegram = await startTelegram();
      afterwards(() => telegram.close());
      const given = settings(model, { ...telegramSettings(telegram), HEARTBEAT_INTERVAL: "0" });
      const workspace = given.CLAW0_WORKSPACE ?? "";
      const state = join(workspace, ".state");
      const toAlice = { channel: "telegram", to: String(telegram.chatId("alice")) };
      const toBob = { channel: "telegram", to: String(telegram.chatId("bob")) };

      // Each kill has a few jobs of its own, whose times are near to it.
      let random = 20_261_128 + Number(section.id.slice(1));
      const dice = (sides: number) => {
        random = (random * 48271) % 2147483647;
        return random % sides;
      };
      const jobs: Job[] = [];
      const beat = event("beat", every(1), { deliver: toBob });
      const begin = () => start(section, given, { words: ["--serve"] });
      const open = new Map<string, number>(); // job → at how many kills it was under way
      const mostRuns = (id: string) => 1 + (open.get(id) ?? 0);
      for (let kill = 0; kill < kills; kill++) {
        const first = Date.now() + delayOf(kill, dice);
        jobs.push(...fourJobs(kill, first, toAlice));
        writeCron(workspace, [...jobs, beat]);
        const killed = begin();
        await sleep(first - Date.now() + dice(200));
        killed.kill("SIGKILL");
        await killed.end();
        for (const id of underWay(state)) open.set(id, mostRuns(id));
      }
      const program = begin();
      const heard = (text: string) =>
        telegram.textsTo("alice").filter((one) => one === text).length;
      await program.until(/telegram: ready/); // before that, a SIGTERM is not its to answer
      await telegram.until(() => jobs.every((job) => heard(textOf(job)) > 0));
      program.kill("SIGTERM");
      expect((await program.end()).code).toBe(0);

      const twice = jobs.filter((job) => heard(textOf(job)) > mostRuns(job.id));
      expect(twice).toEqual([]);
      for (const job of jobs) expectRequests(model, job, mostRuns(job.id));
      // What it was asked is in the conversation once, whatever happened.
      for (const entry of model.log) expect(outline(entry)).toHaveLength(1);
      // A job of every second: each time that was begun was told, and hardly any twice.
      const beats = processedRunsOf("beat", state);
      expect(new Set(beats).size).toBe(beats.length);
      const told = telegram.textsTo("bob").length;
      expect(told).toBeGreaterThanOrEqual(beats.length);
      expect(told).toBeLessThan(beats.length + mostRuns("beat"));
      // Nothing is left, and nothing was given up.
      expect(stored(join(state, "inbox"))).toEqual([]);
      const files = readdirSync(join(state, "inbox"));
      expect(files.filter((name) => name.endsWith(".quarantined"))).toEqual([]);
      expect(jobs.length).toBe(4 * kills);
    },
  );
});

describe.each(englishFrom("s07"))("$name, killed once", (section) => {
  it("goes on with the run that was under way, from what is stored", SEVERAL, async () => {
    const model = await echoModel();
    const telegram = await startTelegram();
    afterwards(() => telegram.close());
    const given = settings(model, { ...telegramSettings(telegram), HEARTBEAT_INTERVAL: "0" });
    const toAlice = { channel: "telegram", to: String(telegram.chatId("alice")) };
    const past = once("2026-01-01T00:00:00Z");
    writeCron(given.CLAW0_WORKSPACE ?? "", [
      asking("held", past, { deliver: toAlice }),
      asking("next", past, { deliver: toAlice }),
    ]);
    const held = model.hold();
    const first = start(section, given, { words: ["--serve"] });
    await held.waiting;
    first.kill("SIGKILL");
    await first.end();
    const second = start(section, given, { words: ["--serve"] });
    await telegram.until(() => telegram.sent.length === 2);
    await second.until("telegram: ready");
    second.kill("SIGTERM");
    expect((await second.end()).code).toBe(0);
    expect(telegram.textsTo("alice")).toEqual(["re: ask held", "re: ask next"]);
    expect(model.log.map((entry) => outline(entry))).toEqual(
      ["held", "held", "next"].map((id) => [`user: ask ${id}`]),
    );
  });
});
