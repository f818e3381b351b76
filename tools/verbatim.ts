// Is an excerpt of a lesson verbatim code, and where does it stand?

/** A line that stands for one or more lines which the excerpt leaves out. */
export const LEFT_OUT = /^\s*\/\/ …$/;

export const isBlank = (line: string) => line.trim() === "";

/** Whether a line is nothing but a comment, or a part of one. */
export const isComment = (line: string) => /^\s*(\/\/|\/?\*)/.test(line);

export const indentOf = (line = "") => line.length - line.trimStart().length;

/** Lines of a file, counted from 0; `end` is the number behind the last one. */
export interface Range {
  start: number;
  end: number;
}

/** An excerpt may have less indentation than the source, but the same in all its lines. */
const INDENTS = Array.from({ length: 40 }, (_, columns) => " ".repeat(columns));

/**
 * How many lines of an excerpt are in the source, in order; all of them if it is one. So the number
 * is also the index of the first line that is not like the source.
 */
export function matchExcerpt(source: string[], excerpt: string[]): number {
  return Math.max(...INDENTS.map((indent) => matchIndented(source, excerpt, indent)));
}

function matchIndented(source: string[], excerpt: string[], indent: string): number {
  const from = (first: number) =>
    Array.from({ length: Math.max(0, source.length + 2 - first) }, (_, i) => first + i);
  // Where the next line may be: at first everywhere. One more at both ends, for a "// …" there.
  let candidates = from(-1);
  for (const [i, line] of excerpt.entries()) {
    const wanted = isBlank(line) ? "" : indent + line;
    const next = candidates.filter((at) => source[at] === wanted).map((at) => at + 1);
    // A "// …" leaves out one line at least.
    candidates = LEFT_OUT.test(line) ? from((candidates[0] ?? 0) + 1) : next;
    if (candidates.length === 0) return i;
  }
  return excerpt.length;
}

/** For each line of an excerpt the number of its line in the source; undefined for a "// …". */
export type Positions = (number | undefined)[];

/** Where an excerpt stands inside a range of the source; undefined if it is not verbatim there. */
export function locate(
  source: string[],
  excerpt: string[],
  range: Range = { start: 0, end: source.length },
): Positions | undefined {
  const there = source.slice(range.start, range.end);
  for (const indent of INDENTS) {
    if (matchIndented(there, excerpt, indent) < excerpt.length) continue;
    const found = positionsFrom(there, excerpt, indent, 0, -1);
    return found?.map((at) => (at === undefined ? undefined : at + range.start));
  }
  return undefined;
}

/**
 * The positions of the lines from number `i` on, behind the source's line `last`. Where lines may be
 * left out, it tries each place at which the next line could stand.
 */
function positionsFrom(
  source: string[],
  excerpt: string[],
  indent: string,
  i: number,
  last: number,
): Positions | undefined {
  const line = excerpt[i];
  if (line === undefined) return [];
  const rest = (at: number) => positionsFrom(source, excerpt, indent, i + 1, at);
  if (LEFT_OUT.test(line)) return withFirst(undefined, rest(last));
  const { first, until } = reach(excerpt[i - 1], last, source.length);
  const wanted = isBlank(line) ? "" : indent + line;
  for (let at = first; at < until; at++) {
    const found = source[at] === wanted ? withFirst(at, rest(at)) : undefined;
    if (found) return found;
  }
  return undefined;
}

const withFirst = (first: number | undefined, rest: Positions | undefined) =>
  rest && [first, ...rest];

/** Where a line may stand: directly behind the line before, or anywhere if that is a "// …". */
function reach(before: string | undefined, last: number, length: number) {
  if (before === undefined) return { first: last + 1, until: length };
  // A "// …" leaves out one line at least.
  if (LEFT_OUT.test(before)) return { first: last + 2, until: length };
  return { first: last + 1, until: last + 2 };
}
