// What `check` asks of every Markdown file: links lead somewhere, and the READMEs' numbers are true.
import { readdirSync } from "node:fs";
import path from "node:path";
import { codeLines } from "./code.ts";
import { Report } from "./report.ts";
import { exists, read } from "./sections.ts";

export interface Fence {
  /** All that follows the opening backticks. */
  info: string;
  /** The number of the opening line, from 1. */
  line: number;
  body: string[];
}

export interface Heading {
  level: number;
  text: string;
  /** The number of its line, from 1. */
  line: number;
}

/** What the tools know of a Markdown text. */
export interface Markdown {
  lines: string[];
  fences: Fence[];
  /** The lines outside of the fences; those inside are "", so that line numbers stay. */
  prose: string[];
  headings: Heading[];
  /** A part begins with a heading of level 1 or 2; `end` is the number of its last line. */
  parts: (Heading & { end: number })[];
}

export function parseMarkdown(text: string): Markdown {
  const lines = text.split(/\r?\n/);
  const { fences, prose } = readFences(lines);
  const headings = prose.flatMap((line, i) => readHeading(line, i + 1) ?? []);
  const tops = headings.filter(({ level }) => level <= 2);
  const parts = tops.map((heading, i) => {
    const next = tops[i + 1];
    return { ...heading, end: next ? next.line - 1 : lines.length };
  });
  return { lines, fences, prose, headings, parts };
}

/** A fence that is being read. */
interface Open {
  body: string[];
  indent: string;
  close: RegExp;
}

function readFences(lines: string[]): { fences: Fence[]; prose: string[] } {
  const fences: Fence[] = [];
  const prose: string[] = [];
  let open: Open | undefined;
  for (const [i, line] of lines.entries()) {
    const [, indent = "", marks = "", info = ""] = /^(\s*)(`{3,}|~{3,})([^`]*)$/.exec(line) ?? [];
    prose.push(open || marks ? "" : line);
    if (open) {
      open = readInside(open, line);
    } else if (marks) {
      const close = new RegExp(`^\\s*${marks[0]}{${marks.length},}\\s*$`);
      open = { body: [], indent, close };
      fences.push({ info: info.trim(), line: i + 1, body: open.body });
    }
  }
  return { fences, prose };
}

/** Reads a line of an open fence; gives undefined if it closes it. */
function readInside(open: Open, line: string): Open | undefined {
  if (open.close.test(line)) return undefined;
  // In a list the fence is indented, and what is in it by as much.
  open.body.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line);
  return open;
}

function readHeading(line: string, number: number): Heading | undefined {
  const [, hashes, text = ""] = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line) ?? [];
  return hashes === undefined ? undefined : { level: hashes.length, text, line: number };
}

/** The anchors of a file: GitHub's slugs of its headings, and what `id=` names. */
export function anchors({ headings, prose }: Markdown): Set<string> {
  const found = new Set<string>();
  for (const { text } of headings) {
    const plain = text.replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1").toLowerCase();
    const slug = plain.replace(/[^\p{L}\p{M}\p{Nd}\p{Pc}\- ]/gu, "").replaceAll(" ", "-");
    let unique = slug;
    for (let i = 1; found.has(unique); i++) unique = `${slug}-${i}`;
    found.add(unique);
  }
  for (const [, id = ""] of prose.join("\n").matchAll(/\s(?:id|name)="([^"]+)"/g)) found.add(id);
  return found;
}

/** All Markdown files of a tree, with "/" in their paths. */
function markdownFiles(root: string, folder = ""): string[] {
  return readdirSync(path.join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const file = folder + entry.name;
    const skip = entry.name === "node_modules" || /^\.(?!github)/.test(entry.name);
    if (entry.isDirectory()) return skip ? [] : markdownFiles(root, `${file}/`);
    return file.endsWith(".md") ? [file] : [];
  });
}

const LINKS = [
  /\]\(<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+"[^"]*")?\)/g,
  /^\s*\[[^\]^][^\]]*\]:\s+(\S+)/g,
  /\s(?:href|src)="([^"]*)"/g,
];
const INLINE_CODE = /(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)/g;

function checkLink(root: string, file: string, link: string): string[] {
  if (/^([a-z][a-z\d+.-]*:|\/\/)/i.test(link)) return []; // another site: nothing to see offline
  const decoded = /%(?![\da-f]{2})/i.test(link) ? link : decodeURIComponent(link);
  const [target = "", anchor = ""] = decoded.split("#");
  const folder = target.startsWith("/") ? "" : path.dirname(file);
  const to = target === "" ? file : path.join(folder, target.replace(/^\//, ""));
  if (to.startsWith("..") || !exists(root, to)) {
    return [`there is no file ${target}. Mend the link.`];
  }
  const found =
    !anchor || !to.endsWith(".md") || anchors(parseMarkdown(read(root, to))).has(anchor);
  return found ? [] : [`${target || file} has no heading #${anchor}. Mend the link.`];
}

export function checkMarkdown(root: string, report = new Report()): Report {
  let count = 0;
  for (const file of markdownFiles(root)) {
    for (const [i, line] of parseMarkdown(read(root, file)).prose.entries()) {
      const text = line.replace(INLINE_CODE, "");
      const links = LINKS.flatMap((kind) => [...text.matchAll(kind)]);
      count += links.length;
      const problems = links.flatMap(([, link = ""]) => checkLink(root, file, link));
      if (/^README[^/]*\.md$/.test(file)) problems.push(...checkNumber(root, line));
      report.problems.push(...problems.map((problem) => `${file}:${i + 1}: ${problem}`));
    }
  }
  report.facts.push(`links: ${count}`);
  return report;
}

/** A table row that links a section's code gives its code lines in a cell of its own. */
function checkNumber(root: string, line: string): string[] {
  const [, file] = /^\s*\|.*\]\((?:\.\/)?(sessions\/\w+\/s\d\d_\w+\.ts)\)/.exec(line) ?? [];
  if (!file || !exists(root, file)) return [];
  const right = codeLines(read(root, file), file).length;
  const cells = line.split("|").map((cell) => cell.replace(/[,*\s]/g, ""));
  const problem = `${file} has ${right} code lines. Say so in a cell that is just the number.`;
  return cells.includes(String(right)) ? [] : [problem];
}
