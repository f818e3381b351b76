// What `check` asks of every Markdown file: links lead somewhere, and the READMEs' numbers are true.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { emptyReport, type Report } from "./check-sections.ts";
import { codeLines } from "./code.ts";

export interface Fence {
  /** All that follows the opening backticks. */
  info: string;
  /** The number of the opening line, from 1. */
  line: number;
  body: string[];
}

export interface Markdown {
  lines: string[];
  fences: Fence[];
  /** The lines outside of the fences; those inside are "", so that line numbers stay. */
  prose: string[];
  headings: { level: number; text: string; line: number }[];
}

export function parseMarkdown(text: string): Markdown {
  const lines = text.split(/\r?\n/);
  const found: Markdown = { lines, fences: [], prose: [], headings: [] };
  let open: { fence: Fence; indent: string; close: RegExp } | undefined;
  for (const [i, line] of lines.entries()) {
    const [, indent = "", marks = "", info = ""] = /^(\s*)(`{3,}|~{3,})([^`]*)$/.exec(line) ?? [];
    found.prose.push(open || marks ? "" : line);
    if (open?.close.test(line)) {
      open = undefined;
    } else if (open) {
      // In a list the fence is indented, and what is in it by as much.
      open.fence.body.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line);
    } else if (marks) {
      const fence = { info: info.trim(), line: i + 1, body: [] };
      const close = new RegExp(`^\\s*${marks[0]}{${marks.length},}\\s*$`);
      open = { fence, indent, close };
      found.fences.push(fence);
    } else {
      const [, hashes = "", heading = ""] = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line) ?? [];
      if (hashes) found.headings.push({ level: hashes.length, text: heading, line: i + 1 });
    }
  }
  return found;
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

const LINK = /\]\(<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+"[^"]*")?\)/g;
const OTHER_LINKS = [/^\s*\[[^\]^][^\]]*\]:\s+(\S+)/g, /\s(?:href|src)="([^"]*)"/g];

const withoutInlineCode = (line: string) => line.replace(/(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)/g, "");

function checkLink(root: string, file: string, link: string): string {
  if (/^([a-z][a-z\d+.-]*:|\/\/)/i.test(link)) return ""; // another site: nothing to see offline
  const decoded = /%(?![\da-f]{2})/i.test(link) ? link : decodeURIComponent(link);
  const [target = "", anchor = ""] = decoded.split("#");
  const folder = target.startsWith("/") ? "" : path.dirname(file);
  const to = target === "" ? file : path.join(folder, target.replace(/^\//, ""));
  const full = path.join(root, to);
  if (to.startsWith("..") || !existsSync(full)) return `there is no file ${target}`;
  if (anchor === "" || !full.endsWith(".md")) return "";
  if (anchors(parseMarkdown(readFileSync(full, "utf8"))).has(anchor)) return "";
  return `${target || file} has no heading #${anchor}`;
}

export function checkMarkdown(root: string): Report {
  const report = emptyReport();
  let count = 0;
  for (const file of markdownFiles(root)) {
    const { prose } = parseMarkdown(readFileSync(path.join(root, file), "utf8"));
    for (const [i, line] of prose.entries()) {
      const text = withoutInlineCode(line);
      for (const [, link = ""] of [LINK, ...OTHER_LINKS].flatMap((re) => [...text.matchAll(re)])) {
        count++;
        const problem = checkLink(root, file, link);
        if (problem) report.problems.push(`${file}:${i + 1}: ${problem}. Mend the link.`);
      }
      if (/^README[^/]*\.md$/.test(file)) {
        report.problems.push(...checkNumber(root, line).map((text) => `${file}:${i + 1}: ${text}`));
      }
    }
  }
  report.facts.push(`links: ${count}`);
  return report;
}

/** A table row that links a section's code gives its code lines in a cell of its own. */
function checkNumber(root: string, line: string): string[] {
  const [, section = ""] = /^\s*\|.*\]\((?:\.\/)?(sessions\/\w+\/s\d\d_\w+\.ts)\)/.exec(line) ?? [];
  const full = path.join(root, section);
  if (section === "" || !existsSync(full)) return [];
  const right = codeLines(readFileSync(full, "utf8"), section).length;
  const cells = line.split("|").map((cell) => cell.replace(/[,*\s]/g, ""));
  if (cells.includes(String(right))) return [];
  return [`${section} has ${right} code lines. Say so in a cell that is just the number.`];
}
