// What `check` asks of the lessons: one form, and nothing in them that isn't so.
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { emptyReport, type Report, sinkFor } from "./check-sections.ts";
import { type Fence, type Markdown, parseMarkdown } from "./markdown.ts";
import type { References } from "./openclaw.ts";
import { type Language, SECTIONS, sectionPath, short } from "./sections.ts";
import { checkTranscripts } from "./transcripts.ts";

const LENGTH_LIMIT = 220;
const LAST_LENGTH_LIMIT = 300; // s10 also has the reading path and "leave it running"

interface Lesson extends Markdown {
  root: string;
  lang: string;
  name: string;
}

export function checkLessons(root: string, languages: Map<string, Language>): Report {
  const report = emptyReport();
  for (const [lang, language] of languages) {
    for (const name of SECTIONS) {
      const file = sectionPath(lang, name, "md");
      if (!existsSync(path.join(root, file))) continue;
      const text = readFileSync(path.join(root, file), "utf8");
      const lesson = { ...parseMarkdown(text), root, lang, name };
      const problems = [
        ...checkForm(lesson, language),
        ...checkExercises(lesson),
        ...lesson.fences.flatMap((fence) => checkFence(lesson, fence)),
        ...checkReferences(lesson),
        ...checkTranscripts(text),
      ];
      sinkFor(report, language, name).push(...problems.map((problem) => `${file}:${problem}`));
    }
  }
  return report;
}

/** Headings, minutes to read, length. */
function checkForm({ lines, fences, prose, headings, name }: Lesson, language: Language): string[] {
  const problems: string[] = [];
  const parts = headings.filter(({ level }) => level === 2);
  if (parts.map(({ text }) => text).join("\n") !== language.headings.join("\n")) {
    const part = parts.find(({ text }, i) => text !== language.headings[i]) ?? parts.at(-1);
    const wanted = language.headings.join(", ");
    problems.push(`${part?.line ?? 1}: its "##" headings must be, in this order: ${wanted}.`);
  }
  const minutes = new RegExp(language.minutes);
  if (!prose.slice(0, parts[0]?.line).some((line) => minutes.test(line))) {
    problems.push(`1: say how long it takes to read, above the first "##": ${language.minutes}`);
  }
  const transcripts = fences.filter(({ info }) => info === "console");
  const length = transcripts.reduce((sum, { body }) => sum - body.length - 2, lines.length - 1);
  const limit = short(name) === "s10" ? LAST_LENGTH_LIMIT : LENGTH_LIMIT;
  if (length > limit) {
    const remedy = "Say less, or leave more out of the excerpts.";
    problems.push(`1: ${length} lines without transcripts, ${limit} is the limit. ${remedy}`);
  }
  return problems;
}

/** The prose of the n-th part, from 0, with its first line's number. */
function partOf({ headings, prose }: Lesson, n: number): { lines: string[]; first: number } {
  const parts = headings.filter(({ level }) => level === 2);
  const first = parts[n]?.line ?? prose.length;
  return { lines: prose.slice(first, (parts[n + 1]?.line ?? prose.length + 1) - 1), first };
}

/** "1. …", "2. …" and "3. …", each with one hint. */
function checkExercises(lesson: Lesson): string[] {
  const { lines, first } = partOf(lesson, 6);
  const text = lines.join("\n").replace(/<details>[\s\S]*?<\/details>/g, "<hint>");
  const found = [...text.matchAll(/^(?:### )?(\d)\. |<hint>/gm)].map((match) => match[1] ?? "hint");
  if (found.join(" ") === "1 hint 2 hint 3 hint") return [];
  return [
    `${first}: three exercises are wanted, "1. ", "2. " and "3. " at the beginning of a line, each ` +
      `with a hint in <details> … </details>. Found: ${found.join(" ") || "none"}.`,
  ];
}

/** What needs no comparing here: diagrams, shapes of files; transcripts are checked apart. */
const FREE = ["", "text", "console", "json shape", "jsonl shape"];

function checkFence(lesson: Lesson, fence: Fence): string[] {
  const { info, line, body } = fence;
  if (info === "ts") return checkExcerpt(lesson, fence);
  if (info === "sh") return body.flatMap((text, i) => checkCommand(lesson, text, line + 1 + i));
  if (FREE.includes(info)) return [];
  const kinds =
    "ts (excerpts), sh (commands), console (transcripts), text, json shape, jsonl shape";
  return [`${line}: a fence of "${info}". There are: ${kinds}.`];
}

const COMMAND = /^(npm (start|test|ci|install|run [\w-]+)\b|npx tsx sessions\/|git |cat )/;

/** A line of a `sh` fence: a command that works on every system, and files that exist. */
function checkCommand({ root }: Lesson, line: string, number: number): string[] {
  const command = line.replace(/\s+#.*$|^#.*$/, "").trim();
  if (command === "") return [];
  if (!COMMAND.test(command)) {
    return [`${number}: "${command}": sh is for npm, "npx tsx sessions/…", git and cat only.`];
  }
  const script = /^npm run ([\w-]+)/.exec(command)?.[1];
  const { scripts } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
  const problems = script && !(script in scripts) ? [`${number}: no script "${script}".`] : [];
  const missing = command
    .split(/\s+/)
    .filter((word) => /^([\w.-]+\/[^:*]*|[\w.-]+\.(md|json|ts))$/.test(word))
    .filter((file) => !file.includes("/.state/")) // what a section keeps is there after it ran
    .filter((file) => !existsSync(path.join(root, file)));
  return [...problems, ...missing.map((file) => `${number}: there is no file ${file}.`)];
}

const LEFT_OUT = /^\s*\/\/ …$/;

/** Code is an excerpt of the file beside the lesson, or of the one that its first line names. */
function checkExcerpt({ root, lang, name }: Lesson, { body, line }: Fence): string[] {
  const other = /^\/\/ (s\d\d)$/.exec(body[0] ?? "")?.[1];
  const section = other ? SECTIONS.find((one) => short(one) === other) : name;
  const file = section && sectionPath(lang, section);
  if (!file || !existsSync(path.join(root, file))) {
    return [`${line}: there is no code of ${other ?? name} to compare with.`];
  }
  const source = readFileSync(path.join(root, file), "utf8").split(/\r?\n/);
  const excerpt = other ? body.slice(1) : body;
  const match = matchExcerpt(source, excerpt);
  if (match === excerpt.length) return [];
  const at = line + 1 + match + (body.length - excerpt.length);
  const remedy = 'Copy the lines from there; a line "// …" stands for those that you leave out.';
  return [`${at}: not like this in ${file}: "${excerpt[match]?.trim()}". ${remedy}`];
}

/** How many lines of an excerpt are in the source, in order; all of them if it is one. */
export function matchExcerpt(source: string[], excerpt: string[]): number {
  const first = excerpt.find((line) => line.trim() !== "" && !LEFT_OUT.test(line)) ?? "";
  const chunks: string[][] = [[]];
  for (const line of excerpt) {
    if (LEFT_OUT.test(line)) chunks.push([]);
    else chunks.at(-1)?.push(line);
  }
  const indents = source
    .filter((line) => line.trimStart() === first.trimStart() && line.endsWith(first))
    .map((line) => line.slice(0, line.length - first.length));
  const text = `\n${source.join("\n")}\n`;
  return Math.max(0, ...[...new Set(indents)].map((indent) => matchChunks(text, chunks, indent)));
}

function matchChunks(source: string, chunks: string[][], indent: string): number {
  let from = 0;
  let matched = 0;
  for (const chunk of chunks) {
    const lines = chunk.map((line) => (line === "" ? "" : indent + line));
    const find = (n: number) => source.indexOf(`\n${lines.slice(0, n).join("\n")}\n`, from);
    let length = lines.length;
    while (length > 0 && find(length) === -1) length--;
    matched += length;
    if (length < lines.length) return matched;
    // Behind the last line's end, so that a "// …" leaves out one line at least.
    if (length > 0) from = find(length) + lines.join("\n").length + 2;
    matched += 1; // the "// …"
  }
  return matched - 1;
}

const ADD_IT = "Add it to the path and symbols there, then run: npm run openclaw";
/** `name`, `name()`, `NAME=value`: the form of the symbols in the list. */
const SYMBOL = /^[A-Za-z_$][\w$]*(\(\)|=\S+)?$/;

/** What a lesson says of OpenClaw must be in the list that `npm run openclaw` verifies. */
function checkReferences(lesson: Lesson): string[] {
  const { root, lang, name } = lesson;
  const read = (file: string) => readFileSync(path.join(root, file), "utf8");
  const { references }: References = JSON.parse(read("tools/openclaw.json"));
  const { lines, first } = partOf(lesson, 5);
  const file = sectionPath(lang, name);
  const code = existsSync(path.join(root, file)) ? read(file) : "";
  const ours = new Set(code.match(/[\w$]+/g)); // our own names may stand in the same row
  const problems: string[] = [];
  let cited = 0;
  for (const [i, line] of lines.entries()) {
    const quoted = [...line.matchAll(/`([^`]+)`/g)].map(([, text = ""]) => text);
    const paths = quoted.filter((text) => /\/.*\.ts$/.test(text));
    const found = references.filter((one) => paths.includes(one.path));
    const lost = paths.filter((one) => !found.some((reference) => reference.path === one));
    if (found.length > 0 && lost.length === 0 && line.trimStart().startsWith("|")) {
      const symbols = found.flatMap((one) => one.symbols);
      const listed = new Set(symbols.flatMap((text) => [text, text.replace(/=.*/, "")]));
      const names = quoted
        .filter((text) => SYMBOL.test(text))
        .map((text) => text.replace("()", ""));
      lost.push(...names.filter((text) => !listed.has(text) && !ours.has(text)));
      if (!names.some((text) => listed.has(text))) lost.push("any symbol of this row");
    }
    cited += paths.length;
    const at = first + 1 + i;
    problems.push(...lost.map((text) => `${at}: ${text} is not in tools/openclaw.json. ${ADD_IT}`));
  }
  return cited > 0 ? problems : [`${first}: no path of OpenClaw is cited here.`];
}
