// What a translator sees of a section: its comments and its terminal texts, as messages; and the
// way back, from translations to a file that is otherwise the same, byte for byte.
import { type Node, Visitor } from "oxc-parser";
import { codeLines, lineAt, parse } from "./code.ts";

const LIMIT = 100; // columns
/** Characters that take two columns. The ambiguous ones (… “ ” → and the boxes) count as one. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

/** The columns of a line: a wide character is in two of them. */
export const columns = (line: string): string[] =>
  [...line].flatMap((character) => (WIDE.test(character) ? [character, character] : [character]));

export interface Message {
  /** What is to be translated; also the key in the catalogue. */
  id: string;
  /** For the translator: what it is, and how much room there is. */
  note: string;
  start: number;
  end: number;
  /** The source text of a translation; throws if it can't stand there. `inner` translates a part. */
  write(translation: string, inner: (start: number, end: number) => string): string;
}

type Comment = ReturnType<typeof parse>["comments"][number];

const hasWords = (text: string) => /\p{L}/u.test(text);
const times = (count: number, what: string) => `${count} ${what}${count === 1 ? "" : "s"}`;

/** What stands before an offset in its line. */
const before = (source: string, offset: number) =>
  source.slice(source.lastIndexOf("\n", offset - 1) + 1, offset);

/** `// ---- s03 · Title ----`: other tools know regions by this form, so only the title changes. */
const BANNER = /^( ---- (?:s\d\d · )?)(.+)( ----)$/;
/** Comments for the compiler and the linter. */
const DIRECTIVE = /^[/*\s]*(@ts-|biome-|<reference)/;

/** Comments of whole lines that follow each other are one message. */
function groups(source: string, comments: Comment[]): Comment[][] {
  const found: Comment[][] = [];
  const flows = ({ type, value }: Comment) => type === "Line" && !BANNER.test(value);
  for (const comment of comments.filter(({ value }) => !DIRECTIVE.test(value))) {
    const last = found.at(-1)?.at(-1);
    const indent = before(source, comment.start);
    const adjacent =
      last &&
      source.slice(last.end, comment.start) === `\n${indent}` &&
      flows(last) &&
      indent.trim() === "" &&
      before(source, last.start) === indent &&
      flows(comment);
    if (adjacent) found.at(-1)?.push(comment);
    else found.push([comment]);
  }
  return found;
}

/** The words of a comment without its frame. */
function bare(group: Comment[]): string {
  const lines = group.flatMap(({ type, value }) =>
    type === "Line"
      ? [value.replace(/^ /, "")]
      : value.split("\n").map((l, i) => l.replace(i === 0 ? /^\*?\s*/ : /^\s*(\* ?)?/, "")),
  );
  return lines
    .map((line) => line.trimEnd())
    .join("\n")
    .replace(/^\n+|\n+$/g, "");
}

/** Throws if a line is too wide. `indent` is what stands before the first one. */
function fitting(indent: string, written: string): string {
  for (const [i, line] of written.split("\n").entries()) {
    const width = columns(i === 0 ? indent + line : line).length;
    if (width > LIMIT) throw new Error(`line ${i + 1} takes ${width} columns, ${LIMIT} are there`);
  }
  return written;
}

function commentMessage(source: string, group: Comment[]): Message {
  const [first, last] = [group[0], group.at(-1)];
  if (!first || !last) throw new Error("a group of comments has one at least");
  const { start, type, value } = first;
  const span = { start, end: last.end };
  const indent = before(source, start);
  const room = LIMIT - columns(indent).length - 3;
  const alone = indent.trim() === "" && /^[ \t]*(\n|$)/.test(source.slice(last.end));
  const isBanner = type === "Line" && BANNER.test(value);
  if (alone && !isBanner) {
    const line = (text: string) => `// ${text}`.trimEnd();
    const open = source.slice(start, start + 3) === "/**" ? "/**" : "/*";
    const write = (translation: string) => {
      const lines = translation.split("\n");
      if (type === "Line") return fitting(indent, lines.map(line).join(`\n${indent}`));
      if (lines.length === 1) return fitting(indent, `${open} ${translation} */`);
      const framed = [open, ...lines.map((text) => ` * ${text}`.trimEnd()), " */"];
      return fitting(indent, framed.join(`\n${indent}`));
    };
    return { ...span, id: bare(group), note: `comment, ${room} columns`, write };
  }
  // A banner, or beside code: as many lines as there are, since a new line could change the code.
  const frame = isBanner ? BANNER : /^([*\s]*)([\s\S]*?)(\s*)$/;
  const [, lead = "", id = "", trail = ""] = frame.exec(value) ?? [];
  const [open, close] = type === "Line" ? ["//", ""] : ["/*", "*/"];
  const count = id.split("\n").length;
  const write = (translation: string) => {
    const problem = `it must have ${times(count, "line")}`;
    if (translation.split("\n").length !== count) throw new Error(problem);
    return fitting(indent, open + lead + translation + trail + close);
  };
  const note = `${isBanner ? "title" : "comment"}, ${times(count, "line")}, ${room} columns`;
  return { ...span, id, note, write };
}

/** The literals that an expression may give: not what it compares, nor arguments, nor keys. */
function literals(node: Node | null): Node[] {
  switch (node?.type) {
    case "Literal":
      return typeof node.value === "string" ? [node] : [];
    case "TemplateLiteral":
      return [node, ...node.expressions.flatMap(literals)];
    case "ConditionalExpression":
      return [node.consequent, node.alternate].flatMap(literals);
    case "LogicalExpression":
      return [node.left, node.right].flatMap(literals);
    case "BinaryExpression":
      return node.operator === "+" ? [node.left, node.right].flatMap(literals) : [];
    case "ParenthesizedExpression":
    case "TSAsExpression":
    case "TSSatisfiesExpression":
      return literals(node.expression);
    case "ArrayExpression":
      return node.elements.flatMap(literals);
    case "ObjectExpression":
      return node.properties.flatMap((one) => literals("value" in one ? one.value : one.argument));
    // ["a", "b"].join(), and rows.map((row) => `row ${row}`)
    case "CallExpression":
      return [node.callee, ...node.arguments.filter((one) => one.type.startsWith("Arrow"))].flatMap(
        literals,
      );
    case "MemberExpression":
      return literals(node.object);
    case "ArrowFunctionExpression":
      return literals(node.body);
    default:
      return [];
  }
}

const SPEAKERS = ["say", "info", "warn", "fail", "text"];

/** The literals of all terminal texts, also those without words. */
function textNodes(source: string, file: string): Node[] {
  const found = new Map<number, Node>(); // by place: text() may stand inside of info()
  new Visitor({
    CallExpression({ callee, arguments: given }) {
      const name = callee.type === "Identifier" ? callee.name : "";
      const spoken = name === "command" ? given.slice(1, 2) : SPEAKERS.includes(name) ? given : [];
      for (const node of spoken.flatMap(literals)) found.set(node.start, node);
    },
  }).visit(parse(source, file).program);
  return [...found.values()];
}

const bareQuotes = (raw: string) =>
  raw.replace(/\\(["'`])|\\[\s\S]/g, (all, quote) => quote ?? all);
/** The line breaks at both ends and the indentation: the program relies on them. */
const edges = (text: string) => text.replace(/^((?:\s|\\n)*)[\s\S]*?((?:\\n)*)$/, "$1|$2");
const ESCAPES = /\\(x1b\[[\d;]*m|x\w\w|u\w{4}|u\{\w+\}|[\s\S])/g;

function textMessage(source: string, node: Node): Message {
  const { start, end } = node;
  const quote = source[start] ?? "";
  const quasis = node.type === "TemplateLiteral" ? node.quasis : [];
  // An element begins with its "`" or "}", and ends with its "`" or "${".
  const spans = quasis
    .slice(1)
    .map((next, i) => [(quasis[i]?.end ?? 0) - 2, next.start + 1] as const);
  const holes = spans.map(([from, to]) => source.slice(from, to));
  const raw =
    quasis.length > 0 ? quasis.map(({ value }) => value.raw) : [source.slice(start + 1, end - 1)];
  const id = raw.map((text, i) => bareQuotes(text) + (holes[i] ?? "")).join("");
  const hole = new RegExp(
    `(${holes.map((one) => one.replace(/\W/g, "\\$&")).join("|") || "(?!)"})`,
  );
  const write: Message["write"] = (translation, inner) => {
    const wanted = id.includes("\n") ? translation : translation.replaceAll("\n", "\\n");
    if (edges(wanted) !== edges(id)) {
      throw new Error("it must begin and end with the same spaces and line breaks (\\n)");
    }
    const pieces = wanted.split(hole);
    const used = pieces.filter((_, i) => i % 2 === 1);
    const others = pieces.filter((_, i) => i % 2 === 0);
    const unknown = quote === "`" && others.some((text) => /(?<!\\)\$\{/.test(text));
    if (unknown || used.sort().join("\n") !== holes.toSorted().join("\n")) {
      throw new Error(`it must have just these placeholders: ${holes.join(" ") || "none"}`);
    }
    const written = pieces.map((text, i) => {
      const span = i % 2 === 1 ? spans[holes.indexOf(text)] : undefined;
      if (span) return inner(...span);
      return text.replace(/\\[\s\S]|["'`]/g, (one) => (one === quote ? `\\${one}` : one));
    });
    return quote + written.join("") + quote;
  };
  const words = hasWords(raw.join(" ").replace(ESCAPES, "")) ? id : "";
  return { id: words, note: "printed", start, end, write };
}

/** A section, taken apart once for all languages. */
export interface Source {
  file: string;
  text: string;
  messages: Message[];
}

export function readSource(text: string, file: string): Source {
  const comments = groups(text, parse(text, file).comments);
  const found = [
    ...comments.map((group) => commentMessage(text, group)),
    ...textNodes(text, file).map((node) => textMessage(text, node)),
  ];
  const messages = found.filter(({ id }) => hasWords(id)).sort((a, b) => a.start - b.start);
  return { file, text, messages };
}

/** The code alone: without comments, and with nothing in the terminal texts. */
export function skeleton(text: string, file: string): string {
  let code = "";
  let end = 0;
  for (const node of textNodes(text, file).sort((a, b) => a.start - b.start)) {
    if (node.start < end) continue;
    code += `${text.slice(end, node.start)}""`;
    end = node.end;
  }
  return codeLines(code + text.slice(end), file).join("\n");
}

/** Writes the translations into a section. What has none, or a wrong one, stays English. */
export function translateSource(
  { text, file, messages }: Source,
  translations: Map<string, string>,
) {
  const problems: string[] = [];
  const range = (from: number, to: number): string => {
    let written = "";
    let at = from;
    for (const { id, start, end, write } of messages) {
      const translation = translations.get(id);
      if (translation === undefined || start < at || end > to) continue;
      try {
        const piece = write(translation, range);
        written += text.slice(at, start) + piece;
        at = end;
      } catch (error) {
        const entry = `line ${lineAt(text, start)}, ${JSON.stringify(id.slice(0, 60))}`;
        problems.push(`${file}, ${entry}: ${error instanceof Error ? error.message : error}.`);
      }
    }
    return written + text.slice(at, to);
  };
  const translated = range(0, text.length);
  if (translated !== text && skeleton(text, file) !== skeleton(translated, file)) {
    problems.push(`${file}: the code of the translation is not that of the English file.`);
  }
  return { text: translated, problems };
}
