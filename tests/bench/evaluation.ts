/**
 * How well the memory of the newest section finds things.
 *
 * The set in fixtures/memory-eval.json was written by hand and frozen before any search was tuned.
 * All of it is in one store, in one conversation. What was found is the same in every process, and
 * its digest shows it.
 */

import { createHash } from "node:crypto";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { LANGUAGES, type LanguageCode } from "../../sessions/names.ts";
import { existingSections, ROOT, read, sectionPath } from "../../tools/sections.ts";
import { inFolder } from "./time.ts";

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

type Section = Pick<typeof import("../../sessions/en/s06_intelligence.ts"), "MemoryStore">;
type Store = InstanceType<Section["MemoryStore"]>;

const DAY = 24 * 3600 * 1000; // ms
const NOW = Date.parse("2026-06-15T12:00:00Z"); // the set's dates are written for this day
export const KEY = "agent:luna:main";

export async function newestMemory(): Promise<{
  name: string;
  MemoryStore: Section["MemoryStore"];
}> {
  const name = existingSections(ROOT, "en").findLast((one) =>
    read(ROOT, sectionPath("en", one)).includes("export class MemoryStore"),
  );
  if (!name) throw new Error("No section in sessions/en exports MemoryStore.");
  const { href } = pathToFileURL(path.join(ROOT, sectionPath("en", name)));
  const { MemoryStore } = (await import(href)) as Section; // a later section has what s06 has
  return { name, MemoryStore };
}

export type Noted = Pick<Fact, "text" | "category" | "daysAgo">;

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

export function recallTable(answers: Answer[]): string {
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

export function missesOf(answers: Answer[]): string {
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
