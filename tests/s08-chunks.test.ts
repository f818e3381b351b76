/** s08, chunkMessage: what must hold for every text and every limit. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SectionFile, sectionsFrom } from "./helper.ts";
import { load08 } from "./s08-helper.ts";

/** The code of a translation is the English one's, and checked to be: there a few will do. */
const runs = ({ lang }: SectionFile) => ({ numRuns: lang === "en" ? 250 : 25, seed: 8 });
const SEGMENTS = new Intl.Segmenter("und", { granularity: "grapheme" });
const FAMILY = "👨‍👩‍👧‍👦";

const plainPiece = fc.oneof(
  fc.constantFrom(
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "a",
    "word ",
    "A sentence. ",
    "你好。",
    "猫が",
    "　",
  ),
  fc.constantFrom(FAMILY, "e\u0301", "🇩🇪", "👍🏽", "    indented\n", "  - item\n", "x".repeat(80)),
  fc.string({ maxLength: 20 }),
  fc.string({ unit: "grapheme", maxLength: 20 }),
);
const documentOf = (piece: fc.Arbitrary<string>) =>
  fc.array(piece, { maxLength: 100 }).map((parts) => parts.join(""));
const plain = documentOf(plainPiece);
const limit = (min: number) => fc.integer({ min, max: 300 });

/** What a person sees of a text. */
const visible = (text: string) =>
  text.replace(/[\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]/gu, "");

describe.each(sectionsFrom("s08"))("$name, chunkMessage", (file) => {
  it("gives pieces within the limit, none empty, without half a character", async () => {
    const { chunkMessage } = await load08(file);
    const check = fc.property(plain, limit(2), (text, most) => {
      for (const piece of chunkMessage(text, most)) {
        expect(piece.length).toBeLessThanOrEqual(most);
        expect(visible(piece)).not.toBe("");
        if (text.isWellFormed()) expect(piece.isWellFormed()).toBe(true);
      }
    });
    fc.assert(check, runs(file));
    expect(chunkMessage("", 100)).toEqual([]);
    expect(chunkMessage(" \n\n ", 100)).toEqual([]);
    // No platform takes a message in which nobody sees anything.
    expect(chunkMessage(`${"x".repeat(10)}${"\u200b".repeat(10)}`, 10)).toEqual(["x".repeat(10)]);
    expect(chunkMessage("  x", 100)).toEqual(["  x"]);
  });

  it("counts UTF-16 units: 4096 of them are one message, one more are two", async () => {
    const { chunkMessage } = await load08(file);
    for (const sign of ["a", "é", "猫", "😀"]) {
      const full = sign.repeat(4096 / sign.length);
      expect(chunkMessage(full, 4096)).toEqual([full]);
      expect(chunkMessage(`${full}b`, 4096)).toHaveLength(2);
    }
  });

  it("loses no text", async () => {
    const { chunkMessage } = await load08(file);
    const whole = fc.property(plain, limit(1), (text, most) => {
      expect(visible(chunkMessage(text, most).join(""))).toBe(visible(text));
    });
    fc.assert(whole, runs(file));
  });

  it("cuts nothing in two that people see as one", async () => {
    const { chunkMessage } = await load08(file);
    const check = fc.property(plain, limit(60), (text, most) => {
      const starts = new Set([...SEGMENTS.segment(text)].map(({ index }) => index));
      let end = 0;
      for (const piece of chunkMessage(text, most)) {
        const start = text.indexOf(piece, end);
        expect(start).toBeGreaterThanOrEqual(0);
        expect(starts.has(start)).toBe(true);
        end = start + piece.length;
        expect(end === text.length || starts.has(end)).toBe(true);
      }
    });
    fc.assert(check, runs(file));
    const families = FAMILY.repeat(100);
    expect(chunkMessage(families, 100).join("")).toBe(families);
    for (const piece of chunkMessage(families, 100)) expect(piece.length % FAMILY.length).toBe(0);
  });

  it("cuts between paragraphs, else lines, else sentences, else words", async () => {
    const { chunkMessage } = await load08(file);
    const word = "abcdefg ";
    const words = word.repeat(4); // 32
    // Each text has a cut of its kind at 40 or a little later, and lesser ones behind it.
    const cut = (separator: string, after: string) => {
      const text = `${words}first${separator}${after}`;
      const [first] = chunkMessage(text, 64);
      return first;
    };
    const rest = `${word}${word}${word}x\n${word}`;
    expect(cut("\n\n", rest)).toBe(`${words}first`);
    expect(cut("\n", `${word}. ${word}${word}${word}`)).toBe(`${words}first`);
    expect(cut(". ", `${word}${word}${word}${word}`)).toBe(`${words}first.`);
    expect(cut("。", `${word}${word}${word}${word}`)).toBe(`${words}first。`);
    expect(cut(" ", word.repeat(5))).toBe(`${words}first ${word.repeat(3)}`.trimEnd());
    expect(cut("", "x".repeat(80))).toBe(words.trimEnd());
    // No word is broken where there is a space to break at: 3.14 and "e.g.x" are no sentence ends.
    expect(chunkMessage(`${words}3.14159 ${word}`, 44)[0]).toBe(`${words}3.14159`);
    // Without any, the piece is full.
    const full = chunkMessage("x".repeat(150), 64).map(({ length }) => length);
    expect(full).toHaveLength(3);
    for (const length of full.slice(0, 2)) expect(length).toBeGreaterThanOrEqual(55);
    // What it cuts behind must not be so near the beginning that the piece is a crumb.
    expect(chunkMessage(`Hi.\n\n${"x".repeat(100)}`, 64)[0]?.length).toBeGreaterThan(20);
  });

  it("keeps the indentation of a line that begins a piece", async () => {
    const { chunkMessage } = await load08(file);
    const text = [`- ${"a".repeat(50)}`, "  - nested", "    code", `  - ${"b".repeat(50)}`].join(
      "\n",
    );
    const lines = chunkMessage(text, 64).flatMap((piece) => piece.split("\n"));
    expect(lines).toEqual(text.split("\n"));
  });

  it("does work in proportion to the text", async () => {
    const { chunkMessage } = await load08(file);
    // How many characters its searches are given, in all.
    let work = 0;
    const { matchAll } = String.prototype;
    const { split } = String.prototype;
    const { segment } = Intl.Segmenter.prototype;
    const measure = (text: string) => {
      work = 0;
      String.prototype.matchAll = function (this: string, ...args) {
        work += this.length;
        return matchAll.apply(this, args);
      };
      const counting = function (this: string, ...args: never[]) {
        work += this.length;
        return Reflect.apply(split, this, args);
      };
      String.prototype.split = counting;
      Intl.Segmenter.prototype.segment = function (words) {
        work += words.length;
        return segment.call(this, words);
      };
      try {
        const pieces = chunkMessage(text, 4096);
        return { pieces, work };
      } finally {
        String.prototype.matchAll = matchAll;
        String.prototype.split = split;
        Intl.Segmenter.prototype.segment = segment;
      }
    };
    for (const piece of [
      "A sentence of it. And one more.\n\n",
      "x",
      "猫",
      `${FAMILY}`,
      "```js\ncode();\n```\n",
    ]) {
      const of = (length: number) => piece.repeat(Math.ceil(length / piece.length));
      const size = file.lang === "en" ? 1_000_000 : 300_000;
      const small = measure(of(size / 10));
      const large = measure(of(size));
      expect(small.work).toBeGreaterThan(0);
      expect(large.work / small.work, piece).toBeLessThan(12);
      expect(visible(large.pieces.join("")).length).toBeGreaterThanOrEqual(
        visible(of(size)).length,
      );
    }
  });
});
