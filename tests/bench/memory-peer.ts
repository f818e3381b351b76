/** Memory search beside MiniSearch, on the same texts and with the same questions. */

import MiniSearch from "minisearch";
import { evalSet, KEY, newestMemory, storeOf } from "./evaluation.ts";
import { madeUp } from "./search-time.ts";
import { inFolder, median, millisecondsOf, QUICK, type Row } from "./time.ts";

/** `folder` is in memory: 20,000 notes are flushed 20,000 times, and here only searches count. */
async function timesIn(folder: string, count: number) {
  const { MemoryStore } = await newestMemory();
  const { facts, questions } = evalSet();
  const noted = [...facts, ...madeUp(count - facts.length, 1)];
  const store = storeOf(MemoryStore, folder, noted);
  // As it comes: it cuts at blanks and punctuation, so a Chinese sentence is one word to it. With
  // a segmenter, as we have, it takes two to three times as long.
  const searchOptions = { prefix: true, fuzzy: 0.2 };
  const index = new MiniSearch({ fields: ["text"], storeFields: ["text"], searchOptions });
  index.addAll(noted.map(({ text }, id) => ({ id, text })));
  const ask = { sessionKey: KEY, owner: true, topK: 5 };
  const ours: number[] = [];
  const theirs: number[] = [];
  for (const { text } of [...questions, ...questions, ...questions]) {
    ours.push(await millisecondsOf(() => store.search(text, ask)));
    theirs.push(await millisecondsOf(() => index.search(text).slice(0, 5)));
  }
  return { ours: median(ours), theirs: median(theirs) };
}

export async function memoryRow(count: number): Promise<Row> {
  const times = await inFolder((folder) => timesIn(folder, count), QUICK);
  const what = `memory search, ${count.toLocaleString("en")} entries`;
  return { what, peer: "MiniSearch with `prefix` and `fuzzy`", ...times };
}
