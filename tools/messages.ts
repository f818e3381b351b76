// What a translator sees of a section: its comments and its terminal texts, as messages; and the
// way back, from translations to a file that is otherwise the same, byte for byte.
import { type Node, type Program, Visitor } from "oxc-parser";
import { parse } from "./code.ts";

const LIMIT = 100; // columns
/** The note of a text that people read in the terminal, and not beside the code. */
export const PRINTED = "printed";
/** Characters that take two columns. The ambiguous ones (… “ ” → and the boxes) count as one. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

/** The columns of a line: a wide character is in two of them. */
export const columns = (line: string): string[] =>
  [...line].flatMap((character) => (WIDE.test(character) ? [character, character] : character));

export interface Message {
  start: number;
  end: number;
  /** What is to be translated; also the key in the catalogue. */
  id: string;
  /** For the translator: what it is, and how much room there is. */
  note: string;
  isPrinted: boolean;
  /** A translation as source text. Throws if it can't stand there. `part` gives a part of it. */
  write(translation: string, part: (from: number, to: number) => string): string;
}

type Comment = ReturnType<typeof parse>["comments"][number];
type Group = [Comment, ...Comment[]];

/** What stands before an offset in its line. */
const before = (source: string, offset: number) =>
  source.slice(source.lastIndexOf("\n", offset - 1) + 1, offset);

/** Regions are found by this form, `// ---- s03 · Title ----`, so only the title is translated. */
const BANNER = /^( ---- (?:s\d\d · )?)(.+)( ----)$/;
/** What stands before and behind the words of any other comment. */
const EDGES = /^([*\s]*)([\s\S]*?)(\s*)$/;
/** What is for the compiler or the linter. */
const DIRECTIVE = /^[/*\s]*(@ts-|biome-|<reference)/;

/** Comments of whole lines that follow each other are one message. */
function groups(source: string, comments: Comment[]): Group[] {
  const found: Group[] = [];
  for (const comment of comments.filter(({ value }) => !DIRECTIVE.test(value))) {
    const group = found.at(-1);
    const last = group?.at(-1);
    const indent = before(source, comment.start);
    const adjacent = source.slice(last?.end, comment.start) === `\n${indent}` && !indent.trim();
    const isLine = (one?: Comment) => one?.type === "Line" && !BANNER.test(one.value);
    const aligned = last && before(source, last.start) === indent;
    if (adjacent && aligned && isLine(last) && isLine(comment)) group?.push(comment);
    else found.push([comment]);
  }
  return found;
}

function commentMessage(source: string, group: Group): Message {
  const [{ start, type, value }] = group;
  const end = group.at(-1)?.end ?? start;
  const indent = before(source, start);
  const isLine = type === "Line";
  const banner = isLine && BANNER.exec(value);
  const [, lead = "", words = "", trail = ""] = banner || EDGES.exec(value) || [];
  const alone = !banner && !indent.trim() && /^[ \t]*(\n|$)/.test(source.slice(end));
  const inner = isLine
    ? group.map((one) => one.value.replace(/^ /, ""))
    : words.split("\n").map((line) => line.replace(/^\s*(\* ?)?/, ""));
  const id = alone ? inner.map((line) => line.trimEnd()).join("\n") : words;

  const write = (translation: string) => {
    const lines = translation.split("\n");
    const count = words.split("\n").length;
    if (!alone && lines.length !== count) {
      throw new Error(`it must have as many lines as the English: ${count}`);
    }
    const framed = lines.map((line) => `${isLine ? "//" : " *"} ${line}`.trimEnd());
    const open = value.startsWith("*") ? "/**" : "/*";
    const block = lines.length > 1 ? [open, ...framed, " */"] : [`${open} ${translation} */`];
    const [mark, close] = isLine ? ["//", ""] : ["/*", "*/"];
    const written = alone
      ? (isLine ? framed : block).join(`\n${indent}`)
      : mark + lead + translation + trail + close;
    const width = Math.max(...(indent + written).split("\n").map((line) => columns(line).length));
    if (width <= LIMIT) return written;
    throw new Error(`a line of it takes ${width} columns, ${LIMIT} are there`);
  };
  const room = LIMIT - columns(indent).length - 3;
  const kind = alone ? "comment" : banner ? "title" : "comment beside code, lines as in English";
  return { start, end, id, note: `${kind}, ${room} columns`, isPrinted: false, write };
}

/** The fields where an expression has what it may give: not what it compares, nor arguments. */
const PARTS = `alternate body callee consequent elements expression expressions left object
properties right value`.split(/\s/);

/** The literals that an expression may give: in `rows.map((row) => a ? "b" : "c" + d)` two. */
function literals(node: Node | null): Node[] {
  if (!node || (node.type === "BinaryExpression" && node.operator !== "+")) return [];
  if (node.type === "Literal") return typeof node.value === "string" ? [node] : [];
  const parts = Object.entries(node).flatMap(([key, part]) => (PARTS.includes(key) ? part : []));
  const given = node.type === "CallExpression" ? node.arguments : [];
  const functions = given.filter(({ type }) => type === "ArrowFunctionExpression");
  const inner = [...parts, ...functions].flatMap(literals);
  return node.type === "TemplateLiteral" ? [node, ...inner] : inner;
}

const SPEAKERS = ["say", "info", "warn", "fail", "t"];

/** The literals of all terminal texts in their order, also those without words. */
export function textNodes(program: Program): Node[] {
  const found = new Map<number, Node>(); // by place: text() may stand inside of info()
  const visitor = new Visitor({
    CallExpression({ callee, arguments: given }) {
      const name = callee.type === "Identifier" ? callee.name : "";
      const spoken = name === "command" ? given.slice(1, 2) : SPEAKERS.includes(name) ? given : [];
      for (const node of spoken.flatMap(literals)) found.set(node.start, node);
    },
  });
  visitor.visit(program);
  return [...found.values()].sort((a, b) => a.start - b.start);
}

const ESCAPES = /\\(x1b\[[\d;]*m|x\w\w|u\w{4}|u\{\w+\}|[\s\S])/g;
/** Behind an even number of backslashes: so what follows is not escaped. */
const PLAIN = "(?<=(?<!\\\\)(?:\\\\\\\\)*)";
const HOLE = new RegExp(`${PLAIN}\\$\\{`);
/** The line breaks at both ends and the indentation: the program relies on them. */
const edges = (text: string) => text.replace(/^((?:\s|\\n)*)[\s\S]*?((?:\\n)*)$/, "$1|$2");

function textMessage(source: string, node: Node): Message {
  const { start, end } = node;
  const quote = source[start] ?? "";
  const quasis = node.type === "TemplateLiteral" ? node.quasis : [];
  // An element begins with its "`" or "}", and ends with its "`" or "${".
  const holes = quasis
    .slice(1)
    .map((next, i) => source.slice((quasis[i]?.end ?? 0) - 2, next.start + 1));
  const escaped = holes.map((one) => one.replace(/\W/g, "\\$&"));
  const hole = new RegExp(`${PLAIN}(${escaped.join("|") || "(?!)"})`);
  /** The words with `change` made to them, and the placeholders with `keep`. */
  const each = (all: string, change: (words: string) => string, keep = (one: string) => one) =>
    all.split(hole).map((one, i) => (i % 2 === 0 ? change(one) : keep(one)));
  const shape = (all: string) =>
    each(all, (words) => HOLE.exec(words)?.[0] ?? "")
      .toSorted()
      .join();

  const whole = source.slice(start + 1, end - 1);
  const bare = (words: string) => words.replace(/\\(["'`])|\\[\s\S]/g, (all, one) => one ?? all);
  const id = each(whole, bare).join("");
  const write: Message["write"] = (translation, part) => {
    const wanted = id.includes("\n") ? translation : translation.replaceAll("\n", "\\n");
    if (edges(wanted) !== edges(id)) {
      throw new Error("it must begin and end with the same spaces and line breaks (\\n)");
    }
    if (quote === "`" && shape(wanted) !== shape(id)) {
      throw new Error(`it must have just these placeholders: ${holes.join(" ") || "none"}`);
    }
    const quoted = (words: string) =>
      words.replace(/\\[\s\S]|["'`]/g, (one) => (one === quote ? `\\${one}` : one));
    const filled = (one: string) =>
      part(source.indexOf(one, start), source.indexOf(one, start) + one.length);
    return quote + each(wanted, quoted, filled).join("") + quote;
  };
  const words = each(whole, (one) => one.replace(ESCAPES, "")).filter((_, i) => i % 2 === 0);
  const own = isWordy(words.join("")) ? id : "";
  return { start, end, id: own, note: PRINTED, isPrinted: true, write };
}

export const isWordy = (text: string) => /\p{L}/u.test(text);

/** All messages of a section, in their order. */
export function findMessages(source: string, file: string): Message[] {
  const { comments, program } = parse(source, file);
  const found = [
    ...groups(source, comments).map((group) => commentMessage(source, group)),
    ...textNodes(program).map((node) => textMessage(source, node)),
  ];
  return found.filter(({ id }) => isWordy(id)).sort((a, b) => a.start - b.start);
}
