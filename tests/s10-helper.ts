/**
 * For the tests of s10: a section whose timeouts pass when a test says so. The lanes, the turns and
 * their files are the section's own.
 */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { vi } from "vitest";
import { load, practice, type SectionFile, settings, temporaryFolder } from "./helper.ts";
import { appOf05, inbound, lastText, type S05, silentChannel } from "./world.ts";

export type S10 = typeof import("../sessions/en/s10_concurrency.ts");
export type App10 = Parameters<S10["accept"]>[0];

/** A section from s10 on, imported. */
export async function load10(section: SectionFile, given = settings()): Promise<S10> {
  return (await load("s03", section, given)) as unknown as S10; // it grows: what s10 has, it has
}

/** A promise that the test settles. */
export function gate<T = void>() {
  let resolve = (_: T): void => {};
  let reject = (_: unknown): void => {};
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Waits for a few turns of the event loop, in which all that needs no I/O happens. */
export async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Resolves when the condition is true. If it never is, vitest ends the test. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turns(1);
}

/** The grace period in which an aborted task may still end. It passes when a test says so. */
export class Grace {
  /** The length of each grace period that the section asked for, in ms. */
  readonly asked: number[] = [];
  readonly #open = new Set<() => void>();

  /** Has to be created before the section is loaded. */
  constructor() {
    vi.doMock("node:timers/promises", () => ({ setTimeout: (ms: number) => this.#wait(ms) }));
  }

  #wait(ms: number): Promise<void> {
    this.asked.push(ms);
    return new Promise((resolve) => this.#open.add(resolve));
  }

  async pass(): Promise<void> {
    await turns(); // a task that was aborted just now asks for its grace period meanwhile
    for (const resolve of this.#open) resolve();
    this.#open.clear();
    await turns();
  }
}

/** The timeouts of the lanes, which are the only timers of ten minutes or more. */
export class LaneClock {
  readonly #timers = new Map<NodeJS.Timeout, { ms: number; run(): void }>();

  constructor() {
    const wait = globalThis.setTimeout;
    const watched = (run: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) => {
      const timer = wait(run, ms, ...args);
      if (ms >= 600_000) this.#timers.set(timer.unref(), { ms, run: () => run(...args) });
      return timer;
    };
    vi.spyOn(globalThis, "setTimeout").mockImplementation(
      watched as typeof setTimeout, // without __promisify__, which nobody uses here
    );
    const stop = globalThis.clearTimeout;
    vi.spyOn(globalThis, "clearTimeout").mockImplementation((timer) => {
      this.#timers.delete(timer as NodeJS.Timeout); // a number is not in the map
      stop(timer);
    });
  }

  /** The timeouts that are running, in seconds. */
  get running(): number[] {
    return [...this.#timers.values()].map(({ ms }) => ms / 1000);
  }

  /** Fires the timeouts of exactly so many seconds. */
  pass(seconds: number): void {
    for (const [timer, { ms, run }] of this.#timers) {
      if (ms !== seconds * 1000) continue;
      clearTimeout(timer);
      run();
    }
  }
}

/** An app without a process, with a model of which the test gives each answer. */
export async function openRoad(section: SectionFile, folder = temporaryFolder()) {
  const model = await practice({ rules: false });
  const workspace = temporaryFolder();
  writeFileSync(join(workspace, "HEARTBEAT.md"), "- Look at the door.");
  const s10 = await load10(section, settings(model, { CLAW0_WORKSPACE: workspace }));
  const early = s10 as unknown as S05; // what s05 has, it has
  const channels = new early.ChannelManager();
  const telegram = silentChannel();
  channels.set("telegram", telegram);
  const app = appOf05(early, folder, channels) as unknown as App10; // and the same for its app
  const files = () => readdirSync(join(folder, "inbox")).filter((name) => /json$/.test(name));
  return {
    s10,
    app,
    model,
    telegram,
    folder,
    workspace,
    /** The files of the inbox. */
    files,
    lane: (name: string) => {
      const lane = s10.LANES.lanes.get(name);
      if (!lane) throw new Error(`there is no lane ${name}`);
      return lane;
    },
    /** Accepts a message of a person. Resolves when it is answered. */
    write: (peerId: string, text: string, more: object = {}) =>
      s10.accept(app, inbound({ peerId, senderId: peerId, text, ...more })).done,
    /** The requests whose last text is this one. */
    asked: (text: string) => model.log.filter(({ request }) => lastText(request) === text),
    /** The content of a session's file, by the session key. */
    session: (key: string) => {
      const place = join(folder, "sessions", encodeURIComponent(key));
      const [name = ""] = readdirSync(place).filter((one) => one.endsWith(".jsonl"));
      return readFileSync(join(place, name), "utf8");
    },
  };
}

export type Road = Awaited<ReturnType<typeof openRoad>>;

export const keyOf = (peerId: string) => `agent:luna:telegram:direct:${peerId}`;

/** Adds a tool that ignores the abort signal. The test ends each call, by its number. */
export function hangingTool(s10: S10) {
  const calls: ((words: string) => void)[] = [];
  const turnsOf: Parameters<NonNullable<S10["HANDLERS"][string]>>[1][] = [];
  const input_schema = { type: "object" as const, properties: {}, required: [] };
  s10.TOOLS.push({ name: "hang", description: "hangs", input_schema });
  s10.HANDLERS.hang = (_input, turn) => {
    turnsOf.push(turn);
    return new Promise((resolve) => calls.push(resolve));
  };
  return { calls, turns: turnsOf };
}
