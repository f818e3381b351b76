/**
 * For the tests of s09: a section with keys, fallback models and a clock of its own. Its waits only
 * move that clock, so a test of minutes ends at once. The real SDK sends real HTTP requests to the
 * practice model.
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { vi } from "vitest";
import type { ModelOptions, PracticeModel } from "../practice/model.ts";
import {
  load,
  practice,
  type SectionFile,
  type Settings,
  settings,
  temporaryFolder,
} from "./helper.ts";
import { afterwards, appOf05, type S05 } from "./world.ts";

export type S09 = typeof import("../sessions/en/s09_resilience.ts");
export type App09 = Parameters<S09["accept"]>[0];
export type Reason = import("../sessions/en/s09_resilience.ts").Reason;

/** A section from s09 on, imported. */
export async function load09(section: SectionFile, given = settings()): Promise<S09> {
  return (await load("s03", section, given)) as unknown as S09; // it grows: what s09 has, it has
}

export const SECOND = 1000;
export const MINUTE = 60_000;
export const START = Date.UTC(2027, 0, 4, 12);
export const PRIMARY = "primary-model";

type Wait = (ms: number, value?: unknown, options?: { signal?: AbortSignal }) => Promise<unknown>;

interface OnionOptions {
  keys?: number;
  fallbacks?: string[];
  folder?: string;
  settings?: Settings;
  model?: PracticeModel;
  practice?: ModelOptions;
  /** Replaces the wait of the section, which otherwise passes at once. */
  wait?: Wait;
}

export class Clock {
  at = START;
  /** How long the section has waited each time, in ms. */
  readonly waits: number[] = [];
  now = () => this.at;
}

/**
 * A section whose turns go through all middleware. Its keys are named K1, K2, … and are k-1, k-2.
 */
export async function openOnion(file: SectionFile, options: OnionOptions = {}) {
  const clock = new Clock();
  const pass: Wait = async (ms) => {
    clock.waits.push(ms);
    clock.at += ms;
  };
  vi.doMock("node:timers/promises", () => ({ setTimeout: options.wait ?? pass }));
  afterwards(() => vi.doUnmock("node:timers/promises"));
  const model = options.model ?? (await practice({ rules: false, ...options.practice }));
  const given = settings(model, { MODEL_ID: PRIMARY, ...options.settings });
  const section = await load09(file, given);
  const folder = options.folder ?? temporaryFolder();
  const state = join(folder, "profiles.json");
  const names = Array.from({ length: options.keys ?? 3 }, (_, index) => index + 1);
  const keys = names.map((n) => ({ name: `K${n}`, key: `k-${n}` }));
  const profiles = new section.ProfileManager(keys, state, clock.now);
  const resilience = new section.ResilienceRunner(profiles, options.fallbacks ?? [], clock.now);
  const early = section as unknown as S05; // what s05 has, it has, and the same for its app
  const whole = appOf05(early, folder) as unknown as App09;
  const app: App09 = { ...whole, profiles, resilience };
  const session = app.store.current(app.key);
  const turn = (input: string, more = {}) => section.runTurn(session, input, { app, ...more });
  const type = async (name: string, args = "") =>
    [await section.COMMANDS[name]?.run(args, app, {})].flat().join("\n");
  /** Each request as "key model: how it ended". */
  const log = () =>
    model.log.map(
      (entry) =>
        `${entry.key} ${entry.model}: ${/^\w+/.exec(entry.error ?? entry.stopReason ?? "")}`,
    );
  const keysUsed = () => model.log.map(({ key }) => key);
  /** The rest of each cooldown in seconds, by the name of its key or model. */
  const resting = () =>
    Object.fromEntries(
      [...profiles.cooldowns.keys()].flatMap((id) => {
        const at = profiles.readyAt(id);
        return at > 0 ? [[id.split(" ")[0] ?? "", (at - clock.at) / SECOND]] : [];
      }),
    );
  const stored = () => (existsSync(state) ? readFileSync(state, "utf8") : "");
  /** A tool that counts how often it ran. */
  const give = (name: string) => {
    const runs = { count: 0 };
    section.TOOLS.push({ name, description: name, input_schema: { type: "object" } });
    section.HANDLERS[name] = () => `run ${++runs.count}`;
    return runs;
  };
  /** The id under which the section stores the cooldown of key n. */
  const idOfKey = (n: number) => section.cooldownId({ profile: keys[n - 1] });
  const parts = {
    app,
    session,
    settings: given,
    idOfKey,
    profiles,
    resilience,
    clock,
    model,
    folder,
    state,
  };
  return { ...parts, section, turn, type, log, keysUsed, resting, stored, give };
}

export const failWith = (status: number, type: string, message: string, headers = {}) => ({
  error: { status, type, message, headers },
});

/** Resolves when the condition is true. The limit of 20 s only ends a test that would hang. */
export async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`It never became so: ${condition}`);
    await turns(1);
  }
}

/** A few turns of the event loop. */
export async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}
