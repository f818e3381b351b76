// What `check` asks of the lessons: one form, and nothing in them that isn't so.
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { emptyReport, type Report, sinkFor } from "./check-sections.ts";
import { type Fence, type Markdown, parseMarkdown } from "./markdown.ts";
import type { References } from "./openclaw.ts";
import { type Language, SECTIONS, sectionPath, short } from "./sections.ts";

const LENGTH_LIMIT = 220;
const LAST_LENGTH_LIMIT = 300; // s10 also has the reading path and "leave it running"

interface Lesson extends Markdown {
  root: string;
  code: string;
  name: string;
}

export function checkLessons(root: string, languages: Map<string, Language>): Report {
  const report = emptyReport();
  for (const [code, language] of languages) {
    for (const name of SECTIONS) {
      const file = sectionPath(code, name, "md");
      if (!existsSync(path.join(root, file))) continue;
      const text = readFileSync(path.join(root, file), "utf8");
      const lesson = { ...parseMarkdown(text), root, code, name };
      const problems = [
        ...checkForm(lesson, language),
        ...checkExercises(lesson),
        ...lesson.fences.flatMap((fence) => checkFence(lesson, fence)),
        ...checkReferences(lesson),
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
  for (let i = 0; i < Math.max(parts.length, language.headings.length); i++) {
    const [part, wanted] = [parts[i], language.headings[i]];
    if (part?.text === wanted) continue;
    const line = part?.line ?? lines.length;
    problems.push(
      wanted === undefined
        ? `${line}: "## ${part?.text}" is one heading too many. Make it "###".`
        : `${line}: "## ${wanted}" must be here. The headings are: ${language.headings.join(", ")}.`,
    );
    break; // after one wrong heading all others are shifted
  }
  const minutes = new RegExp(language.minutes);
  if (!prose.slice(0, parts[0]?.line).some((line) => minutes.test(line))) {
    problems.push(`1: how long does it take to read? Below the title, like ${language.minutes}`);
  }
  const transcripts = fences.filter(({ info }) => info === "console");
  const length = transcripts.reduce((sum, { body }) => sum - body.length - 2, lines.length - 1);
  const limit = short(name) === "s10" ? LAST_LENGTH_LIMIT : LENGTH_LIMIT;
  if (length > limit) {
    problems.push(`${lines.length}: ${length} lines without transcripts, ${limit} is the limit.`);
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
  const shape = lines.flatMap((line) => /^(?:### )?(\d)\. |<\/?details>/.exec(line)?.[0] ?? []);
  const found = shape.join(" ").replaceAll("### ", "").replace(/\s+/g, " ");
  const hint = "<details> </details>";
  if (found === `1. ${hint} 2. ${hint} 3. ${hint}`) return [];
  return [
    `${first}: three exercises are wanted, "1. ", "2. " and "3. " at the beginning of a line, each ` +
      `with a hint in <details> … </details>. Found: ${found || "none"}.`,
  ];
}

function checkFence(lesson: Lesson, fence: Fence): string[] {
  switch (fence.info) {
    case "ts":
      return checkExcerpt(lesson, fence);
    case "sh":
      return fence.body.flatMap((line, i) => checkCommand(lesson.root, line, fence.line + 1 + i));
    case "":
    case "text":
    case "console":
    case "json shape":
    case "jsonl shape":
      return [];
    default:
      return [
        `${fence.line}: a fence of "${fence.info}". There are: ts (an excerpt of the file), console ` +
          '(a transcript), text (a diagram), sh (commands), "json shape" and "jsonl shape".',
      ];
  }
}

const COMMAND = /^(npm (start|test|ci|install|run [\w-]+)\b|npx tsx sessions\/|git |cat )/;

/** A line of a `sh` fence: a command that works on every system, and files that exist. */
function checkCommand(root: string, line: string, number: number): string[] {
  const command = line.replace(/\s+#.*$|^#.*$/, "").trim();
  if (command === "") return [];
  if (!COMMAND.test(command)) {
    return [
      `${number}: "${command}": only npm, "npx tsx sessions/…", git and cat are for sh fences.`,
    ];
  }
  const script = /^npm run ([\w-]+)/.exec(command)?.[1];
  const { scripts } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
  const problems = script && !(script in scripts) ? [`${number}: no script "${script}".`] : [];
  // What a section keeps under .state is only there after it ran.
  const isFile = (word: string) => /^([\w.-]+\/[^:*]*|[\w.-]+\.(md|json|ts))$/.test(word);
  const files = command.split(/\s+/).filter(isFile);
  const missing = files.filter(
    (file) => !/\/\.state\b/.test(file) && !existsSync(path.join(root, file)),
  );
  return [...problems, ...missing.map((file) => `${number}: there is no file ${file}.`)];
}

const LEFT_OUT = /^\s*\/\/ …$/;

/** Code is an excerpt of the file beside the lesson, or of the one that its first line names. */
function checkExcerpt({ root, code, name }: Lesson, { body, line }: Fence): string[] {
  const other = /^\/\/ (s\d\d)$/.exec(body[0] ?? "")?.[1];
  const section = other ? SECTIONS.find((one) => short(one) === other) : name;
  const file = section && sectionPath(code, section);
  if (!file || !existsSync(path.join(root, file)))
    return [`${line}: there is no file for ${other}.`];
  const source = readFileSync(path.join(root, file), "utf8").split(/\r?\n/);
  const excerpt = other ? body.slice(1) : body;
  const match = matchExcerpt(source, excerpt);
  if (match === excerpt.length) return [];
  return [
    `${line + 1 + match + (other ? 1 : 0)}: not like this in ${file}: "${excerpt[match]?.trim()}". ` +
      'Copy the lines from there; a line "// …" stands for those that you leave out.',
  ];
}

/** How many lines of an excerpt are in the source, in order; all of them if it is one. */
export function matchExcerpt(source: string[], excerpt: string[]): number {
  const first = excerpt.find((line) => line.trim() !== "" && !LEFT_OUT.test(line)) ?? "";
  const indents = source
    .filter((line) => line.endsWith(first))
    .map((line) => line.slice(0, -first.length));
  let best = 0;
  for (const indent of new Set(indents.filter((one) => one.trim() === ""))) {
    best = Math.max(best, matchIndented(source, excerpt, indent));
  }
  return best;
}

function matchIndented(source: string[], excerpt: string[], indent: string): number {
  let from = 0;
  let at = 0;
  while (at < excerpt.length) {
    if (LEFT_OUT.test(excerpt[at] ?? "")) {
      at++;
      if (at > 1) from++; // at least one line is left out
      continue;
    }
    const end = excerpt.findIndex((line, i) => i > at && LEFT_OUT.test(line));
    const chunk = excerpt.slice(at, end === -1 ? undefined : end);
    const lines = chunk.map((line) => (line === "" ? "" : indent + line));
    let best = { length: 0, at: 0 };
    for (let i = from; i < source.length && best.length < lines.length; i++) {
      const length = lines.findIndex((line, j) => line !== source[i + j]);
      if (length === -1) best = { length: lines.length, at: i };
      else if (length > best.length) best = { length, at: i };
    }
    at += best.length;
    if (best.length < lines.length) return at;
    from = best.at + best.length;
  }
  return at;
}

/** What a lesson says of OpenClaw must be in the list that `npm run openclaw` verifies. */
function checkReferences(lesson: Lesson): string[] {
  const read = (file: string) => readFileSync(path.join(lesson.root, file), "utf8");
  const list: References = JSON.parse(read("tools/openclaw.json"));
  const { lines, first } = partOf(lesson, 5);
  const file = sectionPath(lesson.code, lesson.name);
  // Our own names may stand in the same row.
  const ours = new Set(existsSync(path.join(lesson.root, file)) ? read(file).match(/[\w$]+/g) : []);
  let cited = 0;
  const problems = lines.flatMap((line, i) => {
    const quoted = [...line.matchAll(/`([^`]+)`/g)].map(([, text = ""]) => text);
    const paths = quoted.filter((text) => /\/.*\.ts$/.test(text));
    const found = list.references.filter((one) => paths.includes(one.path));
    cited += found.length;
    const lost = paths.filter((one) => !found.some((reference) => reference.path === one));
    const symbols = found.flatMap((one) =>
      one.symbols.flatMap((text) => [text, ...text.split("=")]),
    );
    const isTable = paths.length > 0 && line.trimStart().startsWith("|");
    const names = isTable ? quoted.flatMap(identifiers) : [];
    lost.push(...names.filter((text) => !symbols.includes(text) && !ours.has(text)));
    if (found.length > 0 && isTable && !names.some((text) => symbols.includes(text))) {
      lost.push("a symbol of this row");
    }
    return lost.map((text) => `${first + 1 + i}: ${text} is not in tools/openclaw.json. ${ADD_IT}`);
  });
  return cited > 0 ? problems : [...problems, `${first}: no path of OpenClaw is cited here.`];
}

const ADD_IT = "Add it to the path and symbols there, then run: npm run openclaw";

/** The names in a quoted text: `a`, `a()`, `a.b`, `A=5`; none if it is something else. */
function identifiers(text: string): string[] {
  if (/\.(md|json|jsonl|ts)$/.test(text)) return [];
  if (/^[A-Z_a-z$][\w$]*\s*=\s*\S+$/.test(text)) return [text.replace(/\s/g, "")];
  return /^[A-Za-z_$][\w$]*(\.[\w$]+)*(\(\))?$/.test(text) ? text.replace("()", "").split(".") : [];
}
