/**
 * For the tests of s07: a section whose clock moves only when a test moves it, a CRON.json whose
 * time of change always differs, and a channel that keeps what is sent.
 */

import { readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PracticeModel } from "../practice/model.ts";
import { load, practice, type SectionFile, type Settings, settings } from "./helper.ts";
import { appOf05, type S05 } from "./world.ts";

export type S07 = typeof import("../sessions/en/s07_heartbeat_cron.ts");
export type App07 = Parameters<S07["accept"]>[0];
export type Message07 = Parameters<S07["accept"]>[1];
export type Job = import("../sessions/en/s07_heartbeat_cron.ts").Job;

/** A section from s07 on, imported. */
export async function load07(section: SectionFile, given = settings()): Promise<S07> {
  return (await load("s03", section, given)) as unknown as S07; // it grows: what s07 has, it has
}

export const MINUTE = 60_000;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

export class Clock {
  at: number;
  now = () => this.at;

  /** By default a Monday at 10:00 local time, when heartbeats are active. */
  constructor(at = new Date(2027, 0, 4, 10).getTime()) {
    this.at = at;
  }
}

export const iso = (at: number) => new Date(at).toISOString();

let edits = 0;

/**
 * Writes CRON.json with a time of its own, because two edits within one tick of the file system's
 * clock would have the same time, and the section would not see the second one.
 */
export function writeCron(workspace: string, content: unknown[] | string): void {
  const file = join(workspace, "CRON.json");
  writeFileSync(file, typeof content === "string" ? content : JSON.stringify({ jobs: content }));
  edits += 1;
  const at = new Date(1_700_000_000_000 + edits * 1000);
  utimesSync(file, at, at);
}

/** What was in each file that is quarantined in place of `name`: `<name>.<8 hex digits>.quarantined`. */
export function quarantined(folder: string, name: string): string[] {
  const pattern = /^\.[\da-f]{8}\.quarantined$/;
  const isOne = (file: string) => file.startsWith(name) && pattern.test(file.slice(name.length));
  return readdirSync(folder)
    .filter(isOne)
    .map((file) => readFileSync(join(folder, file), "utf8"));
}

/** A job that sends a text without asking the model. */
export const event = (id: string, schedule: Job["schedule"], more: Partial<Job> = {}): Job => ({
  id,
  enabled: true,
  schedule,
  payload: { kind: "system_event", text: `event of ${id}` },
  ...more,
});

/** A job that asks the model. */
export const asking = (id: string, schedule: Job["schedule"], more: Partial<Job> = {}): Job =>
  event(id, schedule, { payload: { kind: "agent_turn", message: `ask ${id}` }, ...more });

export const every = (everySeconds: number, anchor?: string): Job["schedule"] => ({
  kind: "every",
  everySeconds,
  ...(anchor && { anchor }),
});
export const cron = (expr: string, tz?: string): Job["schedule"] => ({
  kind: "cron",
  expr,
  ...(tz && { tz }),
});
export const once = (at: number | string): Job["schedule"] => ({
  kind: "at",
  at: typeof at === "number" ? iso(at) : at,
});

/** A CronService on a workspace, and the runs that it has begun, as "id time". */
export function service(section: S07, workspace: string, clock: Clock) {
  const begun: string[] = [];
  const begin = (job: Job, due: number) => begun.push(`${job.id} ${iso(due)}`) > 0;
  return { cron: new section.CronService(workspace, begin, clock.now), begun };
}

/** A channel that keeps every message, and on which a test can wait for messages. */
export class Phone {
  readonly limit = 4096;
  readonly name: string;
  readonly sent: string[] = [];
  readonly #watchers = new Set<() => void>();

  constructor(name = "telegram") {
    this.name = name;
  }

  async start(): Promise<void> {}
  async stop(): Promise<void> {}

  async send(to: string, text: string): Promise<void> {
    this.sent.push(`${to}: ${text}`);
    for (const watch of this.#watchers) watch();
  }

  /** Resolves with all messages when there are at least `count`. */
  until(count: number): Promise<string[]> {
    return new Promise((resolve) => {
      const watch = () => {
        if (this.sent.length < count) return;
        this.#watchers.delete(watch);
        resolve([...this.sent]);
      };
      this.#watchers.add(watch);
      watch();
    });
  }
}

/** The owner's chat in these cases. */
export const OWNER = "1001";

export interface Own {
  section: S07;
  model: PracticeModel;
  workspace: string;
  state: string;
  clock: Clock;
  phone: Phone;
  app: App07;
  /** Begins a run, as the program does. */
  begin(job: Job, due?: number): Promise<string>;
  /** Resolves when all runs that the service has begun have ended. */
  settled(): Promise<unknown>;
  /** The same workspace after a restart. */
  again(): Own;
}

/** Opens a section with all that takes part in a run, put together as `main` does it. */
export async function own(file: SectionFile, more: Settings = {}): Promise<Own> {
  const model = await practice({ rules: false });
  const given = settings(model, { TELEGRAM_ALLOWED_CHATS: `${OWNER}, 1002`, ...more });
  const section = await load07(file, given);
  return build(section, model, given.CLAW0_WORKSPACE ?? "", new Clock(), new Phone());
}

function build(
  section: S07,
  model: PracticeModel,
  workspace: string,
  clock: Clock,
  phone: Phone,
): Own {
  const state = join(workspace, ".state");
  const runs: Promise<string>[] = [];
  const begin = (job: Job, due = clock.at) => {
    const { done } = section.accept(app, runOf(job, due));
    runs.push(done);
    return done;
  };
  const app: App07 = {
    ...(appOf05(section as unknown as S05, state) as unknown as App07), // and what is new since
    memory: new section.MemoryStore(
      join(state, "memory"),
      ["MEMORY.md", "USER.md"].map((name) => join(workspace, name)),
      clock.now,
    ),
    cron: new section.CronService(
      workspace,
      (job, due) => begin(job, due) !== undefined,
      clock.now,
    ),
    heartbeat: new section.HeartbeatRunner(join(state, "heartbeat.json"), clock.now),
  };
  app.channels.set(phone.name, phone);
  return {
    ...{ section, model, workspace, state, clock, phone, app, begin },
    settled: () => Promise.allSettled(runs),
    again: () => build(section, model, workspace, clock, phone),
  };
}

/** What a command shows, whether it gives lines or one text. */
export async function shownBy({ section, app }: Own, name: string, args = ""): Promise<string> {
  const given: unknown = await section.COMMANDS[name]?.run(args, app, {});
  return [given].flat().join("\n");
}

/** What the gateway answers. */
export async function viaRpc({ section, app }: Own, method: string): Promise<unknown> {
  return section.METHODS[method]?.({}, app, undefined as never); // these methods do not use the connection
}

/** A run as the message that the inbox gets. */
function runOf({ id, payload, deliver }: Job, due: number): Message07 {
  const isEvent = payload.kind === "system_event";
  return {
    id: `cron:${id}:${iso(due)}`,
    ...{ channel: "cron", accountId: "local", peerId: id, senderId: "owner", isGroup: false },
    ...{ media: [], at: due, text: isEvent ? payload.text : payload.message },
    job: { isEvent, deliver },
  };
}
