/** How fast the memory finds things. Times differ, so each stands beside a baseline of the same run. */

import {
  evalSet,
  KEY,
  LANGUAGES,
  type Noted,
  newestMemory,
  openedAgain,
  storeOf,
} from "./evaluation.ts";
import { inFolder, median } from "./time.ts";

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
export function madeUp(count: number, seed: number): Noted[] {
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

function millisecondsOf(run: () => unknown): number {
  const from = performance.now();
  run();
  return performance.now() - from;
}

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

export async function timeTable(): Promise<string> {
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
