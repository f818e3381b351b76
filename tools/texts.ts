// The terminal texts of a section as messages for a translator: the literals that are given to
// `say`, `info`, `warn`, `fail` and `t`, and the help of a `command`.
import { type Node, type Program, Visitor } from "oxc-parser";
import type { Message } from "./messages.ts";

/** The note of a text that people read in the terminal, and not beside the code. */
export const PRINTED = "printed";

export const isWordy = (text: string) => /\p{L}/u.test(text);

const SPEAKERS = ["say", "info", "warn", "fail", "t"];

/** The arguments of a call that people read. */
function spokenBy(name: string, given: Node[]): Node[] {
  if (name === "command") return given.slice(1, 2);
  return SPEAKERS.includes(name) ? given : [];
}

/** The literals of all terminal texts in their order, also those without words. */
export function textNodes(program: Program): Node[] {
  const found = new Map<number, Node>(); // by place: t() may stand inside of info()
  const visitor = new Visitor({
    CallExpression({ callee, arguments: given }) {
      const name = callee.type === "Identifier" ? callee.name : "";
      for (const node of spokenBy(name, given).flatMap(literals)) found.set(node.start, node);
    },
  });
  visitor.visit(program);
  return [...found.values()].sort((a, b) => a.start - b.start);
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

/** What a placeholder could begin with. Behind an odd number of backslashes it would be text. */
const HOLE = /(?<=(?<!\\)(?:\\\\)*)\$\{/;
const ESCAPES = /\\(x1b\[[\d;]*m|x\w\w|u\w{4}|u\{\w+\}|[\s\S])/g;

/** A text in pieces, in turn words and a placeholder: ["You have ", "${count}", " messages."]. */
class Template {
  readonly #holes: string[];
  readonly #boundary: RegExp;

  /** `holes` are the placeholders that a text may have, as they are written in the source. */
  constructor(holes: string[]) {
    this.#holes = holes;
    const escaped = holes.map((hole) => hole.replace(/\W/g, "\\$&"));
    const anyHole = escaped.join("|") || "(?!)"; // without placeholders nothing is one
    this.#boundary = new RegExp(`(?<=(?<!\\\\)(?:\\\\\\\\)*)(${anyHole})`);
  }

  /** The text with `change` made to its words, and `fill` to its placeholders. */
  map(text: string, change: (words: string) => string, fill = (hole: string) => hole): string {
    const pieces = text.split(this.#boundary);
    return pieces.map((piece, i) => (i % 2 === 0 ? change(piece) : fill(piece))).join("");
  }

  wordsOf(text: string): string {
    return this.map(
      text,
      (words) => words.replace(ESCAPES, ""),
      () => "",
    );
  }

  /** Whether the text has just these placeholders, in any order. */
  fits(text: string): boolean {
    const pieces = text.split(this.#boundary);
    const isOther = pieces.some((piece, i) => i % 2 === 0 && HOLE.test(piece));
    const found = pieces.filter((_, i) => i % 2 === 1);
    return !isOther && found.toSorted().join() === this.#holes.toSorted().join();
  }
}

/** The placeholders of a literal. An element begins with "`" or "}", and ends with "`" or "${". */
function holesOf(source: string, node: Node): string[] {
  const elements = node.type === "TemplateLiteral" ? node.quasis : [];
  return elements
    .slice(1)
    .map((next, i) => source.slice((elements[i]?.end ?? 0) - 2, next.start + 1));
}

/** The line breaks at both ends and the indentation: the program relies on them. */
const edges = (text: string) => text.replace(/^((?:\s|\\n)*)[\s\S]*?((?:\\n)*)$/, "$1|$2");

/** Quotes are written bare for the translator, and get their backslash back in the source. */
const withoutBackslashes = (words: string) =>
  words.replace(/\\(["'`])|\\[\s\S]/g, (all, quote) => quote ?? all);
const withBackslashes = (words: string, quote: string) =>
  words.replace(/\\[\s\S]|["'`]/g, (one) => (one === quote ? `\\${one}` : one));

/** The message of a literal. Its id is "" if it has no words. */
export function textMessage(source: string, node: Node): Message {
  const { start, end } = node;
  const quote = source[start] ?? "";
  const holes = holesOf(source, node);
  const template = new Template(holes);
  const inside = source.slice(start + 1, end - 1);
  const id = template.map(inside, withoutBackslashes);
  const write: Message["write"] = (translation, part) => {
    const isOneLine = !id.includes("\n");
    const wanted = isOneLine ? translation.replaceAll("\n", "\\n") : translation;
    if (edges(wanted) !== edges(id)) {
      throw new Error("it must begin and end with the same spaces and line breaks (\\n)");
    }
    if (quote === "`" && !template.fits(wanted)) {
      throw new Error(`it must have just these placeholders: ${holes.join(" ") || "none"}`);
    }
    // A placeholder may have texts of its own, which are translated, too.
    const fill = (hole: string) => {
      const at = source.indexOf(hole, start);
      return part(at, at + hole.length);
    };
    return quote + template.map(wanted, (words) => withBackslashes(words, quote), fill) + quote;
  };
  const isMessage = isWordy(template.wordsOf(inside));
  return { start, end, id: isMessage ? id : "", note: PRINTED, isPrinted: true, write };
}
