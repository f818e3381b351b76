/**
 * The set that measures memory search: that it is well formed, that its halves are what they claim,
 * and that nobody has changed it. No search is looked at here: the set was frozen before there was one.
 *
 * Each half is proven by the stricter reading. A question that shares must have a content word of
 * its fact: no word of the closed list below counts. One that doesn't share may have none of its
 * words, in English not even "the"; in Chinese and Japanese not even one character.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { LANGUAGES, type LanguageCode as Language } from "../sessions/names.ts";

interface Fact {
  id: string;
  lang: Language;
  text: string;
  category: string;
  daysAgo: number;
}

interface Question {
  fact: string; // its id
  lang: Language;
  shared: boolean; // whether it has a content word of its fact
  text: string;
}

function evalSet(): { facts: Fact[]; questions: Question[] } {
  return JSON.parse(readFileSync(new URL("fixtures/memory-eval.json", import.meta.url), "utf8"));
}

// Frozen before any search was tuned with it. A change makes all earlier figures worthless.
const FROZEN = "e2809cf9c33140b29c803312464d55b438bc9633c5f3020e0ff273b08600732f";

const { facts, questions } = evalSet();
const factOf = new Map(facts.map((fact) => [fact.id, fact]));

// ---- English ----

/** Words that say nothing by themselves: no question shares its fact by one of these. */
const ENGLISH_GRAMMAR = new Set(
  `a an the this that these those each every any some no not never and or but if when while until
  after before since than as at by for from in into of off on out over to up with without under
  about against i me my we us our you your he she it its her his they them their who whom whose
  which what where why how is am are was were be been has have had do does did can cannot could
  will would shall should may might must there here`.split(/\s+/),
);

const englishWords = (text: string) =>
  (text.toLowerCase().match(/[\p{L}\p{N}]+(?:['’]\p{L}+)?/gu) ?? []).map((word) =>
    word.replace(/['’]s?$/, "").replace(/['’]/, ""),
  );

/** One form for singular and plural: "trains" and "train", "buses" and "bus", "berries" and "berry". */
const singular = (word: string) =>
  word
    .replace(/(?<=..)ies$/, "y")
    .replace(/(?<=s|x|z|ch|sh)es$/, "")
    .replace(/(?<=[^s]{2})s$/, "");

/** One form for all that a verb can be: "plans", "planned", "planning"; "move" and "moving". */
const stem = (word: string) =>
  singular(word)
    .replace(/(?<=\p{L}{3})(?:ing|ed)$/u, "")
    .replace(/(?<=\p{L}{2})(\p{L})\1$/u, "$1")
    .replace(/(?<=\p{L}{3})e$/u, "");

// ---- Chinese and Japanese ----

/** Words that say nothing by themselves, so that no pair of characters is made with them. */
const HAN_GRAMMAR =
  /的|什么|我们|你们|哪里|哪儿|哪个|时候|以后|多少|怎么|怎样|用户|何時|何日|何曜日/gu;

/** The one character that facts and questions without a shared word may both have: a particle. */
const CHINESE_PARTICLE = "的";

/** Words in hiragana that say nothing by themselves. Single kana aren't words here at all. */
const KANA_GRAMMAR = new Set(
  `から まで より だけ しか など ので のに ため こと もの とき ところ どこ どれ どの どんな どう
  どちら いつ いくら ある いる する した して です ます ない たい なら れる られる という さん
  いい よう あと`.split(/\s+/),
);

const pairs = (run: string) => [...run].slice(1).map((unit, i) => [...run][i] + unit);

/** What tells a text from another without any knowledge of words: pairs, names, numbers. */
function pairsOf(text: string): string[] {
  const plain = text.normalize("NFKC").toLowerCase().replace(HAN_GRAMMAR, " ");
  return [
    ...(plain.match(/\p{sc=Han}+/gu) ?? []).flatMap(pairs),
    ...(plain.match(/[\p{sc=Katakana}ー]+/gu) ?? []).flatMap(pairs),
    ...(plain.match(/[a-z0-9]{2,}/g) ?? []),
  ];
}

const wordsOf = (text: string, language: Language) =>
  [...new Intl.Segmenter(language, { granularity: "word" }).segment(text.normalize("NFKC"))]
    .filter(({ isWordLike }) => isWordLike)
    .map(({ segment }) => segment);

/** The finest there is: pairs, each Chinese character, and the words in hiragana. */
const atomsOf = (text: string, language: Language) => [
  ...pairsOf(text),
  ...(text.match(/\p{sc=Han}/gu) ?? []).filter((one) => one !== CHINESE_PARTICLE),
  ...wordsOf(text, language).filter(
    (word) => /^\p{sc=Hiragana}{2,}$/u.test(word) && !KANA_GRAMMAR.has(word),
  ),
];

// ---- The halves ----

const common = (a: string[], b: string[]) => [...new Set(a)].filter((one) => b.includes(one));

/** The content words (in Chinese and Japanese: the pairs) that a question shares with its fact. */
function sharedContent(question: Question, fact: string): string[] {
  if (question.lang !== "en") return common(pairsOf(question.text), pairsOf(fact));
  const content = (text: string) =>
    englishWords(text).filter((word) => /\p{L}{3}/u.test(word) && !ENGLISH_GRAMMAR.has(word));
  return common(content(question.text).map(singular), content(fact).map(singular));
}

/** Anything at all that they share, were it in another form. */
function sharedAnything({ lang, text }: Question, fact: string): string[] {
  if (lang !== "en") return common(atomsOf(text, lang), atomsOf(fact, lang));
  return common(englishWords(text).map(stem), englishWords(fact).map(stem));
}

const textOf = ({ fact }: Question) => factOf.get(fact)?.text ?? "";

describe.each(LANGUAGES)("the evaluation set, %s", (lang) => {
  const mine = questions.filter((question) => question.lang === lang);
  const halves = [true, false].map((shared) => mine.filter((one) => one.shared === shared));

  test("at least 40 facts, each with one question, in two equal halves", () => {
    const ids = facts.filter((fact) => fact.lang === lang).map(({ id }) => id);
    expect(ids.length).toBeGreaterThanOrEqual(40);
    expect(mine.map(({ fact }) => fact).sort()).toEqual(ids.sort());
    expect(halves[0]).toHaveLength(mine.length / 2);
  });

  test.each(halves[0] ?? [])("$fact shares a content word: $text", (question) => {
    expect(sharedContent(question, textOf(question))).not.toEqual([]);
  });

  test.each(halves[1] ?? [])("$fact shares none: $text", (question) => {
    expect(sharedContent(question, textOf(question))).toEqual([]);
    expect(sharedAnything(question, textOf(question))).toEqual([]);
    if (lang === "en") return;
    // Nor by words as Intl.Segmenter finds them, which need not be pairs.
    const words = (text: string) =>
      wordsOf(text, lang).filter((word) => /[^\p{sc=Hiragana}]/u.test(word));
    const rest = common(words(question.text), words(textOf(question)));
    expect(rest.filter((word) => word !== CHINESE_PARTICLE)).toEqual([]);
  });
});

describe("the evaluation set", () => {
  test("no two facts and no two questions are the same, and each is one full sentence", () => {
    expect(new Set(facts.map(({ id }) => id)).size).toBe(facts.length);
    expect(new Set(facts.map(({ text }) => text)).size).toBe(facts.length);
    expect(new Set(questions.map(({ text }) => text)).size).toBe(questions.length);
    for (const { text } of facts) expect(text).toMatch(/^[^\n。]+[.。]$/);
    for (const { text } of questions) expect(text).toMatch(/^[^\n?？]+[?？]$/);
  });

  test("a fact is in the language that it claims, and was noted in the last three months", () => {
    for (const { id, lang, text, category, daysAgo } of facts) {
      expect(id.slice(0, 2)).toBe(lang);
      expect(/\p{sc=Han}/u.test(text)).toBe(lang !== "en");
      expect(/\p{sc=Hiragana}/u.test(text)).toBe(lang === "ja");
      expect(category).toMatch(/^[a-z]+$/);
      expect(daysAgo).toBeGreaterThanOrEqual(0);
      expect(daysAgo).toBeLessThan(90);
    }
  });

  test("it is the set that was frozen", () => {
    const json = JSON.stringify({ facts, questions });
    expect(createHash("sha256").update(json).digest("hex")).toBe(FROZEN);
  });
});

describe("the checker", () => {
  const ask = (lang: Language, text: string): Question => ({ lang, text, fact: "", shared: false });

  test.each<[Language, string, string, string[]]>([
    ["en", "Where do the trains stop?", "She likes a train.", ["train"]],
    ["en", "What is on the table?", "The cat is on my chair.", []],
    ["en", "Do I have a meeting at 10?", "The shop opens at 10.", []],
    ["zh", "机票是哪天的？", "用户订了机票。", ["机票"]],
    ["zh", "我们什么时候走？", "我们什么时候都行。", []],
    ["ja", "コーヒーは好き？", "コーヒーが苦手だ。", ["コー", "ーヒ", "ヒー"]],
    ["ja", "どこですか？", "それはどこですか。", []],
  ])("%s: content of %j in %j", (lang, question, fact, expected) => {
    expect(sharedContent(ask(lang, question), fact)).toEqual(expected);
  });

  test.each<[Language, string, string, string[]]>([
    ["en", "Who is planning it?", "She planned a trip.", ["plan"]],
    ["en", "What is the name?", "The dog barks.", ["the"]],
    ["zh", "谁的猫？", "我的猫。", ["猫"]],
    ["ja", "りんごは？", "りんごを食べた。", ["りんご"]],
  ])("%s: anything of %j in %j", (lang, question, fact, expected) => {
    expect(sharedAnything(ask(lang, question), fact)).toEqual(expected);
  });
});
