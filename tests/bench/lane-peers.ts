/** Lanes beside p-queue, both with a time limit for each task, and a long line beside a short one. */

import PQueue from "p-queue";
import { CommandQueue, LaneQueue } from "../../sessions/en/s10_concurrency.ts";
import { type Row, sideBySide } from "./time.ts";

const TASKS = 2_000;
const LIMIT = 4; // side by side
const SECONDS = 60; // for each task
const task = async () => {};

const many = (add: () => Promise<unknown>) =>
  Promise.all(Array.from({ length: TASKS }, () => add()));

export async function laneRow(): Promise<Row> {
  const lanes = new CommandQueue({ main: [LIMIT, SECONDS] });
  const queue = new PQueue({ concurrency: LIMIT, timeout: SECONDS * 1000 });
  const times = await sideBySide(
    15,
    () => many(() => lanes.run("main", task)),
    () => many(() => queue.add(task)),
  );
  const what = `lane, ${TASKS.toLocaleString("en")} tasks with a time limit`;
  return { what, peer: "p-queue with `timeout`", ...times };
}

/** One of `count` turns that stand in line in a lane of one, when 10,000 have run in all. */
async function inLine(count: number): Promise<void> {
  for (let done = 0; done < 10_000; done += count) {
    const lane = new LaneQueue(1, SECONDS);
    await Promise.all(Array.from({ length: count }, () => lane.enqueue(task)));
  }
}

export async function queueRow(): Promise<Row> {
  const times = await sideBySide(
    9,
    () => inLine(10_000),
    () => inLine(10),
  );
  return { what: "10,000 turns in line in one lane", peer: "the same turns, 10 in line", ...times };
}
