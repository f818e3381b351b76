// The comments of a section as messages for a translator.
import type { parse } from "./code.ts";
import { columns, LIMIT } from "./columns.ts";
import type { Message } from "./messages.ts";

export type Comment = ReturnType<typeof parse>["comments"][number];
/** Comments that are one message. */
type Group = [Comment, ...Comment[]];

/** Regions are found by this form, `// ---- s03 · Title ----`, so only the title is translated. */
const BANNER = /^( ---- (?:s\d\d · )?)(.+)( ----)$/;
/** What stands before and behind the words of any other comment. */
const EDGES = /^([*\s]*)([\s\S]*?)(\s*)$/;
/** What is for the compiler or the linter. */
const DIRECTIVE = /^[/*\s]*(@ts-|biome-|<reference)/;

/** The messages of all comments, in their order. Also those without words, such as a line of boxes. */
export function commentMessages(source: string, comments: Comment[]): Message[] {
  const translatable = comments.filter(({ value }) => !DIRECTIVE.test(value));
  return groupsOf(source, translatable).map((group) =>
    isAlone(source, group) ? messageAlone(source, group) : messageBeside(source, group[0]),
  );
}

/** What stands before an offset in its line. */
const textBefore = (source: string, offset: number) =>
  source.slice(source.lastIndexOf("\n", offset - 1) + 1, offset);

const isBanner = ({ type, value }: Comment) => type === "Line" && BANNER.test(value);

/** Line comments that follow each other on whole lines are one message. */
function groupsOf(source: string, comments: Comment[]): Group[] {
  const found: Group[] = [];
  for (const comment of comments) {
    const group = found.at(-1);
    const last = group?.at(-1);
    if (group && last && isContinued(source, last, comment)) group.push(comment);
    else found.push([comment]);
  }
  return found;
}

function isContinued(source: string, last: Comment, next: Comment): boolean {
  if (last.type !== "Line" || next.type !== "Line") return false;
  if (isBanner(last) || isBanner(next)) return false;
  const indent = textBefore(source, next.start);
  const isAdjacent = source.slice(last.end, next.start) === `\n${indent}`;
  return isAdjacent && indent.trim() === "" && textBefore(source, last.start) === indent;
}

/** Whether there is no code in the lines of a comment. A banner is not translated as a whole. */
function isAlone(source: string, group: Group): boolean {
  const [first] = group;
  const end = group.at(-1)?.end ?? first.end;
  const isFree = textBefore(source, first.start).trim() === "";
  return !isBanner(first) && isFree && /^[ \t]*(\n|$)/.test(source.slice(end));
}

/** So many columns are left for the words: "// " and the indentation take the others. */
const roomAt = (indent: string) => LIMIT - columns(indent).length - 3;

/** A comment that has its lines for itself. A translation may have more or fewer lines. */
function messageAlone(source: string, group: Group): Message {
  const [first] = group;
  const indent = textBefore(source, first.start);
  const isLine = first.type === "Line";
  const lines = isLine
    ? group.map(({ value }) => value.replace(/^ /, ""))
    : blockLines(first.value);
  const write = (translation: string) => {
    const frame = isLine ? lineComments : blockComment;
    const written = frame(translation.split("\n"), first).join(`\n${indent}`);
    return checkWidth(indent, written);
  };
  return {
    start: first.start,
    end: group.at(-1)?.end ?? first.end,
    id: lines.map((line) => line.trimEnd()).join("\n"),
    note: `comment, ${roomAt(indent)} columns`,
    isPrinted: false,
    write,
  };
}

/** The lines of a block without the frame and the stars at their beginning. */
function blockLines(value: string): string[] {
  const [, , words = ""] = EDGES.exec(value) ?? [];
  return words.split("\n").map((line) => line.replace(/^\s*(\* ?)?/, ""));
}

const lineComments = (lines: string[]) => lines.map((line) => `// ${line}`.trimEnd());

function blockComment(lines: string[], { value }: Comment): string[] {
  const open = value.startsWith("*") ? "/**" : "/*";
  if (lines.length === 1) return [`${open} ${lines[0]} */`];
  return [open, ...lines.map((line) => ` * ${line}`.trimEnd()), " */"];
}

/** A comment in a line with code, or a banner: its words are replaced, and nothing round them. */
function messageBeside(source: string, comment: Comment): Message {
  const { start, end, type, value } = comment;
  const indent = textBefore(source, start);
  const form = isBanner(comment) ? BANNER : EDGES;
  const [, lead = "", words = "", trail = ""] = form.exec(value) ?? [];
  const [mark, close] = type === "Line" ? ["//", ""] : ["/*", "*/"];
  const kind = isBanner(comment) ? "title" : "comment beside code, lines as in English";
  const write = (translation: string) => {
    const count = words.split("\n").length;
    if (translation.split("\n").length !== count) {
      throw new Error(`it must have as many lines as the English: ${count}`);
    }
    return checkWidth(indent, mark + lead + translation + trail + close);
  };
  const note = `${kind}, ${roomAt(indent)} columns`;
  return { start, end, id: words, note, isPrinted: false, write };
}

/** The text itself, if all its lines fit behind what stands before it. */
function checkWidth(indent: string, written: string): string {
  const widths = (indent + written).split("\n").map((line) => columns(line).length);
  const width = Math.max(...widths);
  if (width <= LIMIT) return written;
  throw new Error(`a line of it takes ${width} columns, ${LIMIT} are there`);
}
