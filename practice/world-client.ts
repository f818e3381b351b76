/** How the tools find the practice world of this checkout, start it, and talk to it. */

import { spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import type { Texts } from "./texts.ts";
import { ROOT, UserError } from "./world.ts";
import { readWorldFile, type WorldFile } from "./world-file.ts";
import type { WorldStatus } from "./world-server.ts";

/** A running world: what its file says, and what it says itself. */
export type World = WorldFile & WorldStatus;

/** How long a world has to start and to answer, and how often we look, in ms. */
const START_TIME = 30_000;
const ANSWER_TIME = 5000;
const INTERVAL = 25;

/** The status of the world of a file; undefined if that world is gone. */
export async function ping(file: WorldFile): Promise<World | undefined> {
  try {
    const signal = AbortSignal.timeout(ANSWER_TIME);
    const answer = await fetch(`${file.url}/_practice/status`, { signal });
    const status = (await answer.json()) as WorldStatus; // checked by its id
    return status.id === file.id ? { ...file, ...status } : undefined;
  } catch (error) {
    // A process that is there and does not answer may have been stopped: it still has its chats.
    if (error instanceof DOMException && error.name === "TimeoutError") throw error;
    return undefined;
  }
}

/** The running world, or undefined. Throws a UserError if its process does not answer. */
export async function findWorld(texts: Texts): Promise<World | undefined> {
  const { file } = readWorldFile(ROOT);
  try {
    return file && (await ping(file));
  } catch {
    throw new UserError(texts.worldHangs(file?.pid ?? 0));
  }
}

/** Resolves when a world that was told to end has ended. */
export async function whenGone(world: World): Promise<void> {
  while (await ping(world)) await wait(INTERVAL);
}

/** The running world. It is started if there is none. */
export async function requireWorld(texts: Texts): Promise<World> {
  const running = await findWorld(texts);
  if (running) return running;
  const log = join(ROOT, ".practice", "world.log");
  let child = launch(log);
  for (const end = Date.now() + START_TIME; Date.now() < end; ) {
    const world = await findWorld(texts);
    if (world) return world;
    if (child.exitCode) break;
    // It ended in favour of another world, and that may have ended, too.
    if (child.exitCode === 0) child = launch(log);
    await wait(INTERVAL);
  }
  throw new UserError(texts.worldDidNotStart(log));
}

/** Starts a world in the background, in a session of its own, so that no Ctrl+C reaches it. */
function launch(log: string) {
  mkdirSync(join(ROOT, ".practice"), { recursive: true });
  const output = openSync(log, "w");
  const program = join(import.meta.dirname, "world-process.ts");
  const child = spawn(process.execPath, ["--import", "tsx", program, ROOT], {
    cwd: ROOT,
    detached: true,
    windowsHide: true,
    stdio: ["ignore", output, output],
  });
  closeSync(output);
  child.unref();
  return child;
}

/** The answer of one of the world's servers; an error comes with its code and values. */
export interface Answer {
  error?: string;
  code?: string;
  values?: Record<string, string>;
}

/** Sends a command to a server of the world. Throws a UserError in the person's language. */
export async function send<Result>(
  address: string,
  command: string,
  body: object,
  texts: Texts,
): Promise<Result> {
  const request = { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(`${address}/_practice/${command}`, request);
  const result = (await answer.json()) as Result & Answer; // handleControl sends it
  if (!answer.ok) throw new UserError(explain(result, texts));
  return result;
}

/** An error of the world in the person's language, as far as it has a code. */
export function explain({ error = "", code, values = {} }: Answer, texts: Texts): string {
  const say = code === undefined ? undefined : texts.refused[code];
  return say ? say(values) : error;
}
