/** What a delivery and a lane cost beside ten thousand that are idle. */

import path from "node:path";
import { pathToFileURL } from "node:url";
import { existingSections, ROOT, sectionPath } from "../../tools/sections.ts";
import { inFolder, median, QUICK } from "./time.ts";

type Newest = typeof import("../../sessions/en/s10_concurrency.ts");

const [FEW, MANY] = [10, 10_000];
const ROUNDS = 300; // of what is measured; the median counts
const LATER = 24 * 3600 * 1000; // ms

/** Deliveries beside `count` that wait for later; gives what sends one and takes its time. */
function deliveries(section: Newest, folder: string, count: number): () => Promise<number> {
  const { ChannelManager, DeliveryQueue, DeliveryRunner } = section;
  const queue = new DeliveryQueue(folder);
  const channels = new ChannelManager();
  const done = async () => {};
  channels.set("telegram", { name: "telegram", limit: 4096, start: done, send: done, stop: done });
  const runner = new DeliveryRunner(queue, channels);
  const add = (to: string, id: string, nextAttemptAt: number) => {
    const rest = { text: "a reply", enqueuedAt: Date.now(), failures: 0, unfinished: 0 };
    queue.add({ id: `${id}#0`, channel: "telegram", to, nextAttemptAt, ...rest });
  };
  for (let i = 0; i < count; i++) add(`idle ${i}`, `idle ${i}`, Date.now() + LATER);
  runner.start(); // each has its timer now
  let finished = () => {};
  const finish = queue.acknowledge.bind(queue);
  queue.acknowledge = (delivery) => {
    finish(delivery);
    finished();
  };
  let round = 0;
  return async () => {
    add("ada", `ada ${round++}`, 0);
    const end = new Promise<void>((resolve) => {
      finished = resolve;
    });
    const from = process.hrtime.bigint();
    runner.wake("telegram ada");
    await end;
    return Number(process.hrtime.bigint() - from) / 1e6;
  };
}

async function deliveryTimes(section: Newest): Promise<[few: number, many: number]> {
  return inFolder(async (folder) => {
    const ways = [FEW, MANY].map((count) =>
      deliveries(section, path.join(folder, `${count}`), count),
    );
    const times: number[][] = [[], []];
    // By turns, so that what else the machine does at a time falls on both.
    for (let round = 0; round < ROUNDS; round++) {
      for (const [index, way] of ways.entries()) times[index]?.push(await way());
    }
    return [median(times[0] ?? []), median(times[1] ?? [])];
  }, QUICK);
}

/** A turn in a lane of one, beside `count` conversations whose tasks have begun and go on. */
async function laneTime(section: Newest, count: number, isInLine: boolean): Promise<number> {
  const queue = new section.CommandQueue({ main: [1, 60] });
  let release = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const idle = Array.from({ length: count }, (_, i) => queue.run(`agent:${i}`, () => held));
  const times: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const from = process.hrtime.bigint();
    const turn = () => queue.run("main", async () => {});
    await (isInLine ? queue.run("agent:ada", turn) : turn());
    times.push(Number(process.hrtime.bigint() - from) / 1e6);
  }
  release();
  await Promise.all(idle);
  return median(times);
}

/** One of `count` turns that stand in line in a lane of one. */
async function queueTime(section: Newest, count: number): Promise<number> {
  const times: number[] = [];
  for (let done = 0; done < MANY; done += count) {
    const lane = new section.LaneQueue(1, 60);
    const from = process.hrtime.bigint();
    await Promise.all(Array.from({ length: count }, () => lane.enqueue(async () => {})));
    times.push(Number(process.hrtime.bigint() - from) / 1e6 / count);
  }
  return median(times);
}

export async function besideIdle(): Promise<void> {
  const name = existingSections(ROOT, "en").at(-1) ?? "";
  const { href } = pathToFileURL(path.join(ROOT, sectionPath("en", name)));
  const section = (await import(href)) as Newest; // the newest one has them
  const row = (what: string, time: number, base: number) =>
    `${what.padEnd(60)}${time.toFixed(4).padStart(10)}${(time / base).toFixed(2).padStart(8)}`;
  console.log(`${name}: the median of ${ROUNDS}\n`);
  console.log(`${"".padEnd(60)}${"ms".padStart(10)}${"ratio".padStart(8)}`);
  const counted = (count: number) => count.toLocaleString("en");
  const [few, many] = await deliveryTimes(section);
  console.log(row(`baseline: a delivery beside ${FEW} that wait for later`, few, few));
  console.log(row(`a delivery beside ${counted(MANY)} that wait for later`, many, few));
  for (const isInLine of [true, false]) {
    const what = isInLine ? "a turn in its conversation's lane and main" : "a turn in main, of 1";
    await laneTime(section, 0, isInLine);
    const alone = await laneTime(section, 0, isInLine);
    const crowded = await laneTime(section, MANY, isInLine);
    console.log(row(`baseline: ${what}, alone`, alone, alone));
    console.log(row(`${what}, beside ${counted(MANY)} conversations`, crowded, alone));
  }
  await queueTime(section, FEW);
  const [short, long] = [await queueTime(section, FEW), await queueTime(section, MANY)];
  console.log(row(`baseline: each of ${FEW} turns that wait in main, of 1`, short, short));
  console.log(row(`each of ${counted(MANY)}`, long, short));
  process.exit(); // the timers of those that wait for later would keep it here
}
