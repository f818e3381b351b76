// Where has a piece of old code gone? Its lines are laid beside the declarations of today (align.ts).
// Where a version of the section is known in which an excerpt was verbatim, whole declarations are
// compared, because the lines around an excerpt say which lines it has become.
import { align, coverage, type Match } from "./align.ts";
import { type Code, type Place, placeAround, placeBegun, withComment } from "./places.ts";
import { isBlank, isComment, LEFT_OUT, type Positions, type Range } from "./verbatim.ts";

/** The share of old code that must be in the declaration of its name, to follow it there. */
const ENOUGH = 0.4;
/** The same for a declaration of another name, where a likeness is more often a coincidence. */
const MOVED = 0.65;
/** How much less a class counts in which the lines of a method are: a method is the better place. */
const TOO_WIDE = 0.3;
/** So much more must be in another declaration, if neither is enough, to prefer it. */
const CLEARLY_MORE = 0.2;
/** So many declarations of other names are compared line by line. */
const NEAR = 8;

/** An excerpt of a lesson, without the first line that says where it is. */
export interface Excerpt {
  body: string[];
  /** What that line says, such as "Inbox.add". */
  name?: string;
}

/** A version of the section in which an excerpt was verbatim, and where it was there. */
export interface Base {
  code: Code;
  positions: Positions;
}

/** Old code, a part of which is in an excerpt, piece by piece: the lines between two "// …". */
export interface Old {
  /** The name of the declaration; undefined if nobody knows it. */
  name?: string;
  /** The comment of the declaration, and from the line `head` on the declaration itself. */
  lines: string[];
  head: number;
  pieces: Range[];
  isMember: boolean;
}

/** Old code beside a declaration of today that may have it. */
export interface Candidate {
  place: Place;
  old: Old;
  /** For each old line what it has become, as a line of the file. */
  matches: (Match | undefined)[];
  /** How much of the excerpt is there: 1 is all of it. */
  share: number;
}

export function spanOf(positions: Positions): Range {
  const numbers = positions.filter((at) => at !== undefined);
  return { start: Math.min(...numbers), end: Math.max(...numbers) + 1 };
}

/** Ranges of lines that follow each other directly. */
function piecesOf(positions: Positions): Range[] {
  const pieces: Range[] = [];
  for (const at of positions.filter((one) => one !== undefined)) {
    const last = pieces.at(-1);
    if (last?.end === at) last.end += 1;
    else pieces.push({ start: at, end: at + 1 });
  }
  return pieces;
}

/** The old code of an excerpt: in one part, or by declarations, if no single one has all of it. */
export function oldCode(code: Code, excerpt: Excerpt, base?: Base): Old[] {
  if (!base) return [alone(code, excerpt)];
  const whole = placeAround(base.code, spanOf(base.positions));
  const places = whole ? [whole] : base.code.places.filter(({ isMember }) => !isMember);
  const parts = places.map((place) => partIn(base, place));
  return parts.filter(({ pieces }) => pieces.length > 0);
}

function partIn({ code, positions }: Base, place: Place): Old {
  const { start, end } = withComment(code.lines, place);
  const cut = piecesOf(positions).map((piece) => ({
    start: Math.max(piece.start, start) - start,
    end: Math.min(piece.end, end) - start,
  }));
  const pieces = cut.filter((piece) => piece.start < piece.end);
  const { name, isMember } = place;
  return { name, isMember, lines: code.lines.slice(start, end), head: place.start - start, pieces };
}

/** The excerpt itself is the old code, if nobody knows what was around it. */
function alone(code: Code, { body, name }: Excerpt): Old {
  const lines = body.map((line) => (LEFT_OUT.test(line) ? "" : line));
  const pieces = piecesOf(body.map((line, i) => (LEFT_OUT.test(line) ? undefined : i)));
  const own = placeBegun(code, body)?.name ?? declaredName(body);
  // If the excerpt says where it is, then its first line is not that of the declaration.
  const head =
    name === undefined ? lines.findIndex((line) => !isBlank(line) && !isComment(line)) : -1;
  return { name: name ?? own, isMember: name?.includes(".") ?? false, lines, head, pieces };
}

const DECLARATION =
  /^(?:export )?(?:async )?(?:abstract )?(?:class|function|interface|type|const|let) (\w+)/;

/** The name that an excerpt declares, also if the rest of that line has changed. */
function declaredName(body: string[]): string | undefined {
  const first = body.find((line) => !isBlank(line) && !isComment(line)) ?? "";
  const [, callee, argument] = /^(\w+)\("([^"]+)"/.exec(first) ?? [];
  return callee ? `${callee}("${argument}")` : DECLARATION.exec(first)?.[1];
}

const inPieces = ({ lines, pieces }: Old): string[] =>
  pieces.flatMap(({ start, end }) => lines.slice(start, end));

function compare({ lines }: Code, old: Old, place: Place): Candidate {
  const { start, end } = withComment(lines, place);
  const found = align(old.lines, lines.slice(start, end));
  const matches = found.map((match) => match && { ...match, at: match.at + start });
  const own = old.pieces.flatMap((piece) => matches.slice(piece.start, piece.end));
  const isTooWide = old.isMember && !place.isMember;
  const share = coverage(inPieces(old), own) - (isTooWide ? TOO_WIDE : 0);
  return { place, old, matches, share };
}

/** Whether so much of the old code is there that its lines can be followed. */
export const isFound = ({ place, old, share }: Candidate): boolean =>
  share >= (place.name === old.name ? ENOUGH : MOVED);

/** The declaration that has the old code now: the one of the same name, or what is most like it. */
export function bestCandidate(code: Code, old: Old): Candidate | undefined {
  const compared = (places: Place[]) =>
    places.map((place) => compare(code, old, place)).sort((a, b) => b.share - a.share);
  const [same] = compared(code.places.filter(({ name }) => name === old.name));
  if (same && isFound(same)) return same;
  const [other] = compared(mostLike(code, inPieces(old)));
  if (!same || !other || isFound(other)) return other ?? same;
  return other.share > same.share + CLEARLY_MORE ? other : same;
}

/**
 * The declarations that may have some lines now, judged by words: those that have most of their
 * words, and those that have few other words. The latter finds a short declaration that was renamed.
 */
function mostLike({ lines, places }: Code, wanted: string[]): Place[] {
  const words = wordsIn(wanted);
  const rated = places.map((place) => {
    const there = wordsIn(lines.slice(place.start, place.end));
    const shared = [...words].filter((word) => there.has(word)).length;
    return { place, shared, share: shared / (words.size + there.size - shared || 1) };
  });
  const most = rated.toSorted((a, b) => b.shared - a.shared).slice(0, NEAR);
  const purest = rated.toSorted((a, b) => b.share - a.share).slice(0, NEAR);
  return [...new Set([...most, ...purest].map(({ place }) => place))];
}

const wordsIn = (lines: string[]) => new Set(lines.join("\n").match(/\w+/g));

/** What the pieces have become; undefined if one of them is gone, or has become much longer. */
export function follow({ lines }: Code, candidate: Candidate): Range[] | undefined {
  const whole = withComment(lines, candidate.place);
  const ranges: Range[] = [];
  for (const piece of candidate.old.pieces) {
    const range = followPiece(candidate, piece, whole);
    const limit = 2 * (piece.end - piece.start) + 4;
    if (!range || range.end - range.start > limit) return undefined;
    ranges.push(withoutBlanks(lines, range));
  }
  return ranges;
}

/**
 * From the first line with a match to the last one. The lines at an end of the piece may have none:
 * then what is new between the nearest matches belongs to the piece, if it is about as long.
 */
function followPiece(candidate: Candidate, piece: Range, whole: Range): Range | undefined {
  const { matches, old, place } = candidate;
  const own = matches.slice(piece.start, piece.end);
  const lostBefore = own.findIndex(Boolean);
  const lostBehind = own.length - 1 - own.findLastIndex(Boolean);
  const first = own[lostBefore]?.at;
  const last = own.findLast(Boolean)?.at;
  if (first === undefined || last === undefined) return undefined;
  const before = matches.slice(0, piece.start).findLast(Boolean)?.at ?? whole.start - 1;
  const behind = matches.slice(piece.end).find(Boolean)?.at ?? whole.end;
  const start = first - replacing(lostBefore, first - before - 1);
  const end = last + 1 + replacing(lostBehind, behind - last - 1);
  // What began or ended with its declaration does so again, also if that takes more lines now.
  const hasHead = piece.start <= old.head && old.head < piece.end;
  const isToEnd = old.head >= 0 && piece.end === old.lines.length;
  return {
    start: hasHead ? Math.min(start, place.start) : start,
    end: isToEnd ? Math.max(end, whole.end) : end,
  };
}

/** How many new lines have replaced the lost ones: all, unless they are many more. */
const replacing = (lost: number, fresh: number) => (lost > 0 && fresh <= lost + 2 ? fresh : 0);

function withoutBlanks(lines: string[], { start, end }: Range): Range {
  let [first, behind] = [start, end];
  while (first < behind && isBlank(lines[first] ?? "")) first += 1;
  while (behind > first && isBlank(lines[behind - 1] ?? "")) behind -= 1;
  return { start: first, end: behind };
}
