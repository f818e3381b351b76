/** What all benchmarks need: a folder, a median, and two things timed by turns. */

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";

/** In memory where that is possible. On a disk the writing of a file would be all that one sees. */
export const QUICK = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

export interface Row {
  what: string;
  ours: number; // ms
  peer: string;
  theirs: number; // ms
}

export const median = (times: number[]) =>
  times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] ?? 0;

export async function millisecondsOf(run: () => unknown): Promise<number> {
  const from = performance.now();
  await run();
  return performance.now() - from;
}

/**
 * The medians of both, each run `rounds` times after one that does not count. They take
 * turns, so that what else the machine does falls on both.
 */
export async function sideBySide(
  rounds: number,
  ours: () => unknown,
  theirs: () => unknown,
): Promise<{ ours: number; theirs: number }> {
  const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
  await ours();
  await theirs();
  for (let round = 0; round < rounds; round++) {
    times.ours.push(await millisecondsOf(ours));
    times.theirs.push(await millisecondsOf(theirs));
  }
  return { ours: median(times.ours), theirs: median(times.theirs) };
}

/** Gives what `run` gives, and removes the folder that it got. */
export async function inFolder<T>(
  run: (folder: string) => T | Promise<T>,
  at = tmpdir(),
): Promise<T> {
  const folder = mkdtempSync(path.join(at, "claw0-bench-"));
  try {
    return await run(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
