// npm run excerpts [s04 …]: makes the code in the English lessons verbatim again, after the sections
// have changed. It finds each excerpt by its place, which its first line says or declares.
import { writeFileSync } from "node:fs";
import path from "node:path";
import { LEFT_OUT, matchExcerpt } from "./lessons.ts";
import { parseMarkdown } from "./markdown.ts";
import { type Places, placesOf, type Range, readPlace } from "./places.ts";
import { exists, longName, read, SECTIONS, sectionPath, short, start } from "./sections.ts";

const SHORT = 25; // lines: a declaration up to this length is shown whole
const LIKE = 0.5; // how many of its words a line has to share with the one that it has become

const wordsOf = (line: string) => new Set(line.match(/[\p{L}\p{N}_]+/gu));

/** How alike two lines are, from 0 to 1: the words that they share, of all that they have. */
function likeness(one: string, other: string): number {
  if (one.trim() === other.trim()) return 1;
  const [words, others] = [wordsOf(one), wordsOf(other)];
  const shared = [...words].filter((word) => others.has(word)).length;
  return shared / (words.size + others.size - shared || 1);
}

/** The line of a range that is most like `line`; undefined if none is much like it. */
function nearest(lines: string[], line: string, range: Range): number | undefined {
  let best: number | undefined;
  let most = LIKE;
  for (let i = range.start; i < range.end; i++) {
    const share = likeness(line, lines[i] ?? "");
    if (share > most) [best, most] = [i, share];
  }
  return best;
}

/** An excerpt in pieces: the lines between two "// …". */
function piecesOf(body: string[]): string[][] {
  const pieces: string[][] = [[]];
  for (const line of body) {
    if (LEFT_OUT.test(line)) pieces.push([]);
    else pieces.at(-1)?.push(line);
  }
  return pieces;
}

/** The lines that a piece has become: from what is like its first line to what is like its last. */
function follow(lines: string[], piece: string[], range: Range): Range | undefined {
  const words = piece.filter((line) => line.trim() !== "");
  const from = nearest(lines, words[0] ?? "", range);
  const until = nearest(lines, words.at(-1) ?? "", { start: from ?? 0, end: range.end });
  if (from === undefined || until === undefined) return undefined;
  return { start: from, end: until + 1 };
}

const indentOf = (line = "") => line.length - line.trimStart().length;

/** Lines of a section with as little indentation as possible, since an excerpt begins at the left. */
function outdent(lines: string[]): string[] {
  const indents = lines.filter((line) => line.trim() !== "").map(indentOf);
  const least = Math.min(...indents, 40);
  return lines.map((line) => line.slice(least));
}

/** The new text of an excerpt, and whether it had to be replaced by the declaration itself. */
export function refresh(lines: string[], body: string[], range: Range) {
  const taken: Range[] = [];
  let from = range.start;
  for (const piece of piecesOf(body).filter((one) => one.some((line) => line.trim() !== ""))) {
    const found = follow(lines, piece, { start: from, end: range.end });
    if (!found) return { body: declaration(lines, range), isReplaced: true };
    taken.push(found);
    from = found.end;
  }
  const marked: (string | undefined)[] = []; // undefined stands for lines that are left out
  for (const [i, { start: first, end }] of taken.entries()) {
    const before = taken[i - 1]?.end ?? first;
    if (first > before) marked.push(undefined);
    marked.push(...lines.slice(first, end));
  }
  return { body: withMarks(marked), isReplaced: false };
}

/** Puts "// …" where lines are left out, indented as the line that follows. */
function withMarks(marked: (string | undefined)[]): string[] {
  const full = marked.map((line, i) => line ?? `${" ".repeat(indentOf(marked[i + 1]))}// …`);
  return outdent(full);
}

/** The whole declaration, if it is short; else its beginning and its last line. */
function declaration(lines: string[], range: Range): string[] {
  const all = lines.slice(range.start, range.end);
  if (all.length <= SHORT) return outdent(all);
  return withMarks([...all.slice(0, SHORT - 5), undefined, all.at(-1)]);
}

/** The place of an excerpt, by its first line or by the declaration that it begins with. */
export function placeOf(body: string[], places: Places, lines: string[]): string | undefined {
  const named = readPlace(body[0])?.name;
  if (named) return named;
  const first = body.find((line) => line.trim() !== "" && !/^\s*(\/\/|\/?\*)/.test(line)) ?? "";
  const starts = [...places].filter(([, range]) => lines[range.start]?.trim() === first.trim());
  const own =
    /^(?:export )?(?:async )?(?:abstract )?(?:class|function|interface|type|const|let) (\w+)/;
  const call = /^(\w+)\("([^"]+)"/.exec(first);
  return starts[0]?.[0] ?? own.exec(first)?.[1] ?? (call ? `${call[1]}("${call[2]}")` : undefined);
}

/** A lesson with its excerpts refreshed, and what a person should look at. */
export function refreshLesson(root: string, language: string, name: string) {
  const file = sectionPath(language, name, "md");
  const text = read(root, file);
  const lines = text.split("\n");
  const said: string[] = [];
  const { fences } = parseMarkdown(text);
  for (const { body, line } of fences.filter(({ info }) => info === "ts").reverse()) {
    const place = readPlace(body[0]);
    const section = longName(place?.section ?? short(name));
    const code = section ? sectionPath(language, section) : "";
    if (!exists(root, code)) continue; // check names it
    const source = read(root, code).split("\n");
    const excerpt = place ? body.slice(1) : body;
    const where = `${file}:${line}`;
    if (matchExcerpt(source, excerpt) === excerpt.length) continue;
    const places = placesOf(read(root, code), code);
    const found = placeOf(body, places, source) ?? "";
    const range = places.get(found);
    if (!range) {
      said.push(`${where}: there is no ${found || "place"} in ${code}. Say where it is now.`);
      continue;
    }
    const made = refresh(source, excerpt, range);
    const head = place ? body.slice(0, 1) : [];
    lines.splice(line, body.length, ...head, ...made.body);
    const what = made.isReplaced ? "replaced by the declaration of" : "follows";
    said.push(`${where}: ${what} ${found}`);
  }
  return { file, text: lines.join("\n"), said: said.reverse() };
}

function main(root: string, args: string[]): void {
  const wanted = SECTIONS.filter((name) => args.length === 0 || args.includes(short(name)));
  for (const name of wanted.filter((one) => exists(root, sectionPath("en", one, "md")))) {
    const { file, text, said } = refreshLesson(root, "en", name);
    writeFileSync(path.join(root, file), text);
    console.log(said.length > 0 ? said.join("\n") : `${file}: all excerpts are verbatim`);
  }
}

await start(import.meta.filename, main);
