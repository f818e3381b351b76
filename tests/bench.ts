/**
 * `npm run bench -- memory`: how well the memory of the newest section finds things, and how fast.
 * `npm run bench -- idle`: what a delivery and a lane cost beside ten thousand that are idle.
 *
 * The set in fixtures/memory-eval.json was written by hand and frozen before any search was tuned.
 * All of it is in one store, in one conversation. What was found is the same in every process, and
 * its digest shows it; times differ, so they stand beside a baseline measured in the same run.
 */

import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { LANGUAGES, type LanguageCode } from "../sessions/names.ts";
import { existingSections, ROOT, read, sectionPath, start } from "../tools/sections.ts";

const HELP = `npm run bench -- memory            recall, and search time at 5,000 entries
npm run bench -- memory --misses   and each question whose fact is not among the first three
npm run bench -- memory --digest   only what was found, as one number: no times
npm run bench -- idle              a delivery and a lane, beside 10,000 that are idle`;

// ---- The set ----

export { LANGUAGES };
export type Language = LanguageCode;

export interface Fact {
  id: string;
  lang: Language;
  text: string;
  category: string;
  daysAgo: number;
}

export interface Question {
  fact: string; // its id
  lang: Language;
  shared: boolean; // whether it has a content word of its fact
  text: string;
}

export function evalSet(): { facts: Fact[]; questions: Question[] } {
  return JSON.parse(read(ROOT, "tests/fixtures/memory-eval.json"));
}

// ---- The store ----

type Section = Pick<typeof import("../sessions/en/s06_intelligence.ts"), "MemoryStore">;
type Store = InstanceType<Section["MemoryStore"]>;

const DAY = 24 * 3600 * 1000; // ms
const NOW = Date.parse("2026-06-15T12:00:00Z"); // the set's dates are written for this day
const KEY = "agent:luna:main";

async function newestMemory(): Promise<{ name: string; MemoryStore: Section["MemoryStore"] }> {
  const name = existingSections(ROOT, "en").findLast((one) =>
    read(ROOT, sectionPath("en", one)).includes("export class MemoryStore"),
  );
  if (!name) throw new Error("No section in sessions/en exports MemoryStore.");
  const { href } = pathToFileURL(path.join(ROOT, sectionPath("en", name)));
  const { MemoryStore } = (await import(href)) as Section; // a later section has what s06 has
  return { name, MemoryStore };
}

type Noted = Pick<Fact, "text" | "category" | "daysAgo">;

/** A store in which each fact was noted on its day. */
export function storeOf(
  MemoryStore: Section["MemoryStore"],
  folder: string,
  facts: Noted[],
): Store {
  let now = NOW;
  const store = new MemoryStore(folder, [], () => now);
  for (const { text, category, daysAgo } of facts.toSorted((a, b) => b.daysAgo - a.daysAgo)) {
    now = NOW - daysAgo * DAY;
    store.write(text, category, KEY);
  }
  now = NOW;
  return store;
}

// ---- Recall ----

export const CHANNELS = {
  keyword: { keyword: 1, vector: 0 },
  vector: { keyword: 0, vector: 1 },
  hybrid: undefined, // as the section weighs them
};
export type Channel = keyof typeof CHANNELS;
const NAMES: Channel[] = ["keyword", "vector", "hybrid"];

export interface Answer {
  question: Question;
  fact: string;
  channel: Channel;
  place: number; // of the fact among what was found: 1 is best, 0 is not found
  found: { text: string; score: number }[];
}

export function answersOf(store: Store): Answer[] {
  const { facts, questions } = evalSet();
  const texts = new Map(facts.map(({ id, text }) => [id, text]));
  return NAMES.flatMap((channel) =>
    questions.map((question) => {
      const about = { sessionKey: KEY, owner: true, topK: 3, weights: CHANNELS[channel] };
      // What has no score in a channel was not found by it, whatever its place.
      const found = store.search(question.text, about).filter(({ score }) => score > 0);
      const fact = texts.get(question.fact) ?? "";
      return {
        question,
        fact,
        channel,
        place: found.findIndex((hit) => hit.text === fact) + 1,
        found,
      };
    }),
  );
}

/** Tells whether two processes have found the same: every hit of every question, with its score. */
export function digestOf(answers: Answer[]): string {
  const lines = answers.flatMap(({ found }) => [
    "?",
    ...found.map(({ text, score }) => `${score.toFixed(6)} ${text}`),
  ]);
  return createHash("sha256").update(lines.join("\n")).digest("hex").slice(0, 16);
}

/** The same store, as the next process finds it. */
export const openedAgain = (MemoryStore: Section["MemoryStore"], folder: string) =>
  new MemoryStore(folder, [], () => NOW);

/** Asks everything by every channel: of a store just written, and of the same one opened again. */
export async function askAll(): Promise<{ section: string; answers: Answer[]; digest: string }> {
  const { name: section, MemoryStore } = await newestMemory();
  return inFolder((folder) => {
    const store = storeOf(MemoryStore, folder, evalSet().facts);
    const nothing = { sessionKey: KEY, weights: { keyword: 0, vector: 0 } };
    if (store.search("Lisbon", nothing).some(({ score }) => score > 0)) {
      throw new Error(`${section}: search takes no weights, so its channels cannot be told apart.`);
    }
    const answers = answersOf(store);
    const digest = digestOf(answers);
    if (digestOf(answersOf(openedAgain(MemoryStore, folder))) !== digest) {
      throw new Error(`${section}: opened again, the store finds something else.`);
    }
    return { section, answers, digest };
  });
}

export interface Recall {
  questions: number;
  at1: number; // for how many the fact came first
  at3: number; // for how many it was among the first three
}

export function recallOf(
  answers: Answer[],
  channel: Channel,
  lang: Language,
  shared: boolean,
): Recall {
  const places = answers
    .filter(({ question }) => question.lang === lang && question.shared === shared)
    .filter((answer) => answer.channel === channel)
    .map(({ place }) => place);
  const count = (last: number) => places.filter((place) => place > 0 && place <= last).length;
  return { questions: places.length, at1: count(1), at3: count(3) };
}

function recallTable(answers: Answer[]): string {
  const row = (head: string, cells: string[]) => head.padEnd(21) + cells.join("   ");
  const half = (lang: Language, shared: boolean) => {
    const recalls = NAMES.map((channel) => recallOf(answers, channel, lang, shared));
    const cell = (found: number, all: number) =>
      `${found}`.padStart(3) + `${Math.round((100 * found) / all)}%`.padStart(5);
    const cells = recalls.map(
      ({ questions, at1, at3 }) => cell(at1, questions) + cell(at3, questions),
    );
    const count = `${recalls[0]?.questions ?? 0}`.padStart(3);
    return row(`${lang}  ${shared ? "shared    " : "not shared"} ${count}`, cells);
  };
  return [
    row(
      "",
      NAMES.map((name) => `  ${name}`.padEnd(16)),
    ),
    row(
      "",
      NAMES.map(() => "      @1      @3"),
    ),
    ...LANGUAGES.flatMap((lang) => [half(lang, true), half(lang, false)]),
  ].join("\n");
}

function missesOf(answers: Answer[]): string {
  const missed = answers.filter(({ channel, place }) => channel === "hybrid" && place === 0);
  return missed
    .map(({ question, fact, found }) =>
      [
        `${question.fact}  ${question.text}${question.shared ? "   (shared)" : ""}`,
        `      wanted  ${fact}`,
        ...found.map(({ text, score }) => `      ${score.toFixed(4)}  ${text}`),
      ].join("\n"),
    )
    .join("\n\n");
}

// ---- Time ----

const ENTRIES = 5000;

/** Numbers from 0 to 1 that are the same in every process (mulberry32). */
function numbersFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Entries of 8 to 19 words each, drawn from the facts of one language as often as they occur. */
function madeUp(count: number, seed: number): Noted[] {
  const random = numbersFrom(seed);
  const pools = LANGUAGES.map((lang) =>
    evalSet()
      .facts.filter((fact) => fact.lang === lang)
      .flatMap(({ text }) => wordsOf(text)),
  );
  return Array.from({ length: count }, (_, i) => {
    const pool = pools[i % pools.length] ?? [];
    const length = 8 + Math.floor(random() * 12);
    const drawn = Array.from({ length }, () => pool[Math.floor(random() * pool.length)] ?? "");
    const text = drawn.join(LANGUAGES[i % LANGUAGES.length] === "en" ? " " : "");
    return { text, category: "note", daysAgo: i % 90 };
  });
}

const segmenter = new Intl.Segmenter("und", { granularity: "word" });
const wordsOf = (text: string) =>
  [...segmenter.segment(text)].filter(({ isWordLike }) => isWordLike).map(({ segment }) => segment);

/** The baseline: reads every text, counts the words of the question in it, takes the best three. */
function plainScan(texts: string[], query: string): string[] {
  const words = wordsOf(query.toLowerCase());
  return texts
    .map((text) => {
      const plain = text.toLowerCase();
      return { text, count: words.filter((word) => plain.includes(word)).length };
    })
    .sort((a, b) => b.count - a.count)
    .slice(0, 3)
    .map(({ text }) => text);
}

function millisecondsOf(run: () => unknown): number {
  const from = process.hrtime.bigint();
  run();
  return Number(process.hrtime.bigint() - from) / 1e6;
}

const median = (times: number[]) =>
  times.toSorted((a, b) => a - b)[Math.floor(times.length / 2)] ?? 0;

async function timeTable(): Promise<string> {
  const { MemoryStore } = await newestMemory();
  return inFolder((folder) => {
    const { facts, questions } = evalSet();
    const noted = [...facts, ...madeUp(ENTRIES - facts.length, 1)];
    const texts = noted.map(({ text }) => text);
    const store = storeOf(MemoryStore, folder, noted);
    const more = madeUp(questions.length, 2);
    const about = { sessionKey: KEY, owner: true, topK: 3 };
    const scan: number[] = [];
    const search: number[] = [];
    const write: number[] = [];
    const after: number[] = [];
    // Everything once before it counts, so that no first call is measured.
    for (const { text } of questions) {
      plainScan(texts, text);
      store.search(text, about);
    }
    // First all that is measured at 5,000; only then does the store grow.
    for (const { text } of questions) {
      scan.push(millisecondsOf(() => plainScan(texts, text)));
      search.push(millisecondsOf(() => store.search(text, about)));
    }
    for (const [i, { text }] of questions.entries()) {
      const { text: entry, category } = more[i] ?? { text: "", category: "" };
      write.push(millisecondsOf(() => store.write(entry, category, KEY)));
      after.push(millisecondsOf(() => store.search(text, about)));
    }
    const open = millisecondsOf(() => openedAgain(MemoryStore, folder).search("Lisbon", about));
    const base = median(scan);
    const row = (what: string, time: number) =>
      `${what.padEnd(48)}${time.toFixed(3).padStart(10)}${(time / base).toFixed(2).padStart(10)}`;
    return [
      `${`${ENTRIES.toLocaleString("en")} entries; median`.padEnd(48)}${"ms".padStart(10)}${"ratio".padStart(10)}`,
      row("baseline: a plain scan of all texts", base),
      row("search", median(search)),
      row("search, each time right after one entry more", median(after)),
      row("the writing of that entry", median(write)),
      row("for comparison: all read and indexed again", open),
    ].join("\n");
  });
}

// ---- Idle ones ----

type Newest = typeof import("../sessions/en/s10_concurrency.ts");

const [FEW, MANY] = [10, 10_000];
const ROUNDS = 300; // of what is measured; the median counts
const LATER = 24 * 3600 * 1000; // ms

// On a disk the writing of a file would be all that one sees.
const QUICK = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

/** Deliveries beside `count` that wait for later; gives what sends one and takes its time. */
function deliveries(section: Newest, folder: string, count: number): () => Promise<number> {
  const { ChannelManager, DeliveryQueue, DeliveryRunner, SimulatedFailures } = section;
  const queue = new DeliveryQueue(folder);
  const channels = new ChannelManager();
  const done = async () => {};
  channels.set("telegram", { name: "telegram", limit: 4096, start: done, send: done, stop: done });
  const runner = new DeliveryRunner(queue, channels, new SimulatedFailures());
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

async function besideIdle(): Promise<void> {
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

// ---- All of it together ----

async function inFolder<T>(run: (folder: string) => T | Promise<T>, at = tmpdir()): Promise<T> {
  const folder = mkdtempSync(path.join(at, "claw0-bench-"));
  try {
    return await run(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function memory(showMisses: boolean, onlyDigest: boolean): Promise<void> {
  const { section, answers, digest } = await askAll();
  if (onlyDigest) return console.log(digest);
  const { facts, questions } = evalSet();
  console.log(
    `${section}: ${facts.length} facts in one conversation, ${questions.length} questions`,
  );
  console.log("recall: how many questions had their fact first (@1), among the first three (@3)\n");
  console.log(recallTable(answers));
  console.log(`\nWhat was found, in every process and when opened again: ${digest}\n`);
  if (showMisses) console.log(`${missesOf(answers)}\n`);
  console.log(await timeTable());
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      misses: { type: "boolean", default: false },
      digest: { type: "boolean", default: false },
    },
  });
  if (positionals.join() === "idle") return besideIdle();
  if (positionals.join() !== "memory") throw new Error(HELP);
  await memory(values.misses, values.digest);
}

await start(import.meta.filename, main);
