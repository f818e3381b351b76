// How an excerpt of a lesson becomes verbatim again, after the code has changed.
import {
  type Base,
  bestCandidate,
  type Candidate,
  type Excerpt,
  follow,
  isFound,
  oldCode,
  spanOf,
} from "./follow.ts";
import { type Code, placeAround, placeBegun, withComment } from "./places.ts";
import { indentOf, isBlank, LEFT_OUT, locate, type Range } from "./verbatim.ts";

const SHORT = 25; // lines: a declaration up to this length is shown whole
const SIGNATURE = 6; // lines: the head of a longer one, at most
const LIKELY = 0.3; // the share of the old code that a declaration of another name must have
const SURE = 0.75; // with less of the old code, somebody should read whether it still fits

export interface Refreshed extends Excerpt {
  /** What became of it; undefined if it was right. */
  said?: string;
  /** Whether a person should look at it, because it may not show what the lesson explains. */
  isDoubtful?: boolean;
}

/** The excerpt as it should be now. `findBase` is only asked if it isn't verbatim any more. */
export function refresh(
  code: Code,
  excerpt: Excerpt,
  findBase: () => Base | undefined = () => undefined,
): Refreshed {
  if (isRight(code, excerpt)) return excerpt;
  const moved = stillVerbatim(code, excerpt);
  if (moved) return moved;
  const base = findBase();
  const candidates = oldCode(code, excerpt, base).map((old) => bestCandidate(code, old));
  return followed(code, excerpt, candidates, base) ?? replaced(code, excerpt, candidates);
}

/** Verbatim, and where it says. */
function isRight(code: Code, { body, name }: Excerpt): boolean {
  if (name === undefined) return placeBegun(code, body) !== undefined && !!locate(code.lines, body);
  const named = code.places.filter((place) => place.name === name);
  return named.some((place) => locate(code.lines, body, withComment(code.lines, place)));
}

/** All its lines are there, but it doesn't say where, or they are in another declaration now. */
function stillVerbatim(code: Code, { body }: Excerpt): Refreshed | undefined {
  const positions = locate(code.lines, body);
  if (!positions) return undefined;
  const name = placeAround(code, spanOf(positions))?.name;
  const said = name ? `is in ${name}` : "is verbatim, but in no single declaration. Shorten it";
  return { body, name, said, isDoubtful: name === undefined };
}

/** The lines that the old ones have become, if all of them are found. */
function followed(
  code: Code,
  excerpt: Excerpt,
  candidates: (Candidate | undefined)[],
  base: Base | undefined,
): Refreshed | undefined {
  const found = candidates.filter((one) => one !== undefined).filter(isFound);
  const ranges = found.map((one) => follow(code, one));
  if (ranges.length < candidates.length || ranges.includes(undefined)) return undefined;
  const taken = ranges.flatMap((one) => one ?? []).sort((a, b) => a.start - b.start);
  const body = layOut(code, excerpt.body, taken, base);
  const span = { start: taken[0]?.start ?? 0, end: taken.at(-1)?.end ?? 0 };
  const name = nameFor(code, { body, name: excerpt.name }, span);
  if (!isRight(code, { body, name })) return undefined;
  const places = [...new Set(found.map(({ place }) => place.name))].join(", ");
  const was = [...new Set(found.map(({ old }) => old.name))].join(", ");
  const said = places === was ? `follows ${places}` : `follows ${places}, which was ${was}`;
  return { body, name, said, isDoubtful: found.some(({ share }) => share < SURE) };
}

/** The place that the first line of an excerpt names; undefined if it begins with its declaration. */
function nameFor(code: Code, { body, name }: Excerpt, span: Range): string | undefined {
  if (name === undefined && placeBegun(code, body)) return undefined;
  return isRight(code, { body, name }) ? name : placeAround(code, span)?.name;
}

/** The declaration in the excerpt's stead, because its lines can't be followed. */
function replaced(code: Code, excerpt: Excerpt, candidates: (Candidate | undefined)[]): Refreshed {
  const found = candidates.filter((one) => one !== undefined).find(isLikely);
  if (!found) {
    const said = `stays as it is: nothing in ${code.file} is like it. Choose other lines`;
    return { ...excerpt, said, isDoubtful: true };
  }
  const { place, old } = found;
  const was = place.name === old.name ? "" : `, which may be what ${old.name ?? "it"} has become`;
  return {
    body: declaration(code, found),
    name: place.isMember ? place.name : undefined,
    said: `is replaced by the declaration of ${place.name}${was}`,
    isDoubtful: true,
  };
}

const isLikely = ({ place, old, share }: Candidate) => place.name === old.name || share >= LIKELY;

/**
 * A declaration with its comment: whole if it is short. Else its head, what it still has of the
 * excerpt's lines, and its last line.
 */
function declaration({ lines }: Code, { place, old, matches }: Candidate): string[] {
  const whole = withComment(lines, place);
  if (whole.end - whole.start <= SHORT) return lines.slice(whole.start, whole.end);
  const signature = lines.slice(place.start, place.start + SIGNATURE);
  const opening = Math.max(signature.findIndex(opensBody), 0);
  const head = { start: whole.start, end: place.start + opening + 1 };
  const own = old.pieces.flatMap(({ start, end }) => matches.slice(start, end));
  const numbers = own.flatMap((match) => match?.at ?? []).slice(0, SHORT);
  const left = numbers.filter((at) => at >= head.end).map((at) => ({ start: at, end: at + 1 }));
  return joined(lines, [head, ...left, { start: whole.end - 1, end: whole.end }]);
}

/** Whether a body, an object or a list begins at the end of the line, and not only parameters. */
const opensBody = (line: string) => /[{[]$|=> \($/.test(line);

/** The lines of some ranges, with a "// …" between two of them, if any code is left out there. */
function joined(lines: string[], ranges: Range[]): string[] {
  const result: string[] = [];
  let done = ranges[0]?.start ?? 0;
  for (const range of ranges) {
    const between = lines.slice(done, range.start);
    const isGap = between.some((line) => !isBlank(line));
    result.push(...(isGap ? [mark(lines[range.start])] : between));
    result.push(...lines.slice(Math.max(range.start, done), range.end));
    done = Math.max(range.end, done);
  }
  return result;
}

/** A "// …" as it is indented above this line. What ends a block is less indented than its content. */
function mark(next = ""): string {
  const deeper = /^\s*[}\])]/.test(next) ? 2 : 0;
  return `${" ".repeat(indentOf(next) + deeper)}// …`;
}

/** The new body: these ranges, with marks and indentation as the old one has them. */
function layOut({ lines }: Code, old: string[], ranges: Range[], base?: Base): string[] {
  const body = joined(lines, ranges);
  if (LEFT_OUT.test(old[0] ?? "")) body.unshift(mark(body[0]));
  if (LEFT_OUT.test(old.at(-1) ?? "")) body.push(mark(body.at(-1)));
  const before = base ? base.positions.map((at) => base.code.lines[at ?? -1] ?? "") : [" "];
  const isOutdented = leastIndent(old) === 0 && leastIndent(before) > 0;
  const least = isOutdented ? leastIndent(body) : 0;
  return body.map((line) => line.slice(least));
}

function leastIndent(lines: string[]): number {
  const code = lines.filter((line) => !isBlank(line) && !LEFT_OUT.test(line));
  return code.length === 0 ? 0 : Math.min(...code.map(indentOf));
}
