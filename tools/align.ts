// Which line has an old line become? Two versions of a piece of code are laid side by side, in
// order, so that the lines beside each other are as alike as possible (a sequence alignment, as
// Needleman and Wunsch do it).

import { isComment } from "./verbatim.ts";

const LIKE = 0.5; // lines that are less alike have nothing to do with each other
const PUNCTUATION = 0.2; // what a pair of lines like "}" counts, of 1 for a line with words
/** Comments are reworded more often than code, and say less about what has become of it. */
const COMMENT = 0.3;

interface Line {
  text: string;
  words: Set<string>;
}

/** The words of a line. What a comment behind the code says does not matter. */
const wordsOf = (line: string) =>
  new Set(line.replace(/(?<=\S) \/\/ .*$/, "").match(/[\p{L}\p{N}_]+/gu));

const lineOf = (line: string): Line => ({ text: line.trim(), words: wordsOf(line) });

/** How alike two lines are, from 0 to 1: the words that they share, of all that they have. */
function likeness(one: Line, other: Line): number {
  if (one.text === "" || other.text === "") return 0;
  if (one.text === other.text) return one.words.size > 0 ? 1 : PUNCTUATION;
  const shared = [...one.words].filter((word) => other.words.has(word)).length;
  const all = one.words.size + other.words.size - shared;
  const share = all === 0 ? 0 : shared / all;
  return share < LIKE ? 0 : share;
}

/** What an old line has become: the number of the new line, and how alike the two are. */
export interface Match {
  at: number;
  share: number;
}

/** For each old line its match; undefined for a line that is gone. Blank lines have no match. */
export function align(before: string[], after: string[]): (Match | undefined)[] {
  const old = before.map(lineOf);
  const fresh = after.map(lineOf);
  const shares = old.map((line) => fresh.map((other) => likeness(line, other)));
  const best = bestSums(shares, fresh.length);
  const sum = (row: number, column: number) => best[row]?.[column] ?? 0;
  const matches: (Match | undefined)[] = old.map(() => undefined);
  let i = 0;
  let j = 0;
  while (i < old.length && j < fresh.length) {
    const share = shares[i]?.[j] ?? 0;
    if (share > 0 && sum(i, j) === share + sum(i + 1, j + 1)) {
      matches[i] = { at: j, share };
      i += 1;
      j += 1;
    } else if (sum(i, j) === sum(i, j + 1)) {
      j += 1; // the new line can be left out at no cost
    } else {
      i += 1;
    }
  }
  return matches;
}

/** `best[i][j]` is the greatest sum of likenesses of the old lines from i and the new ones from j. */
function bestSums(shares: number[][], width: number): number[][] {
  const best: number[][] = [];
  best[shares.length] = Array.from({ length: width + 1 }, () => 0);
  for (let i = shares.length - 1; i >= 0; i--) {
    const below = best[i + 1] ?? [];
    const row: number[] = [];
    row[width] = 0;
    for (let j = width - 1; j >= 0; j--) {
      const share = shares[i]?.[j] ?? 0;
      const paired = share > 0 ? share + (below[j + 1] ?? 0) : 0;
      row[j] = Math.max(paired, below[j] ?? 0, row[j + 1] ?? 0);
    }
    best[i] = row;
  }
  return best;
}

/**
 * How much of the old code is in the new one, from 0 to 1. A line counts as much as it has words, so
 * that a match of a long line says more than one of `return;`.
 */
export function coverage(before: string[], matches: (Match | undefined)[]): number {
  let all = 0;
  let kept = 0;
  for (const [i, line] of before.entries()) {
    const weight = wordsOf(line).size * (isComment(line) ? COMMENT : 1);
    all += weight;
    kept += weight * (matches[i]?.share ?? 0);
  }
  return all === 0 ? 0 : kept / all;
}
