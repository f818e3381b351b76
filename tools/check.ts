// npm run check: everything that can be checked without a network and without starting a section.
import { execFile } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { checkClaims, checkSections, emptyReport, type Report } from "./check-sections.ts";
import { checkTranslations } from "./check-translation.ts";
import { codeLines } from "./code.ts";
import { checkLessons } from "./lessons.ts";
import { checkMarkdown } from "./markdown.ts";
import { isMain, ROOT, readLanguages } from "./sections.ts";

const FILE_LIMIT = 250;
const TOOLS_LIMIT = 1150; // in code lines; about 1,000 is the aim
const PRACTICE_LIMIT = 119;

/** Runs a program of node_modules with this Node, without a shell, so also on Windows. */
async function run(root: string, title: string, script: string, args: string[]): Promise<Report> {
  const command = [path.join(ROOT, "node_modules", script), ...args];
  const options = { cwd: root, maxBuffer: 1 << 26 };
  const output = await new Promise<string>((resolve) => {
    execFile(process.execPath, command, options, (error, stdout, stderr) =>
      resolve(error ? `${stdout}${stderr}`.trim() || error.message : ""),
    );
  });
  const report = emptyReport();
  if (output === "") report.facts.push(`${title}: fine`);
  else report.problems.push(`${title}:\n${output}`);
  return report;
}

export const checkTypes = (root: string) =>
  run(root, "types", "typescript/bin/tsc", ["-p", root, "--pretty", "false"]);

export const checkStyle = (root: string) =>
  run(root, "format and lint", "@biomejs/biome/bin/biome", ["ci", "--colors=off"]);

/** The tools stay small enough to read. */
export function checkSizes(root: string): Report {
  const report = emptyReport();
  const limit = (file: string, lines: number, most: number, what = "lines") => {
    const problem = `${file}: ${lines} ${what}, ${most} is the limit. Shorten or split it.`;
    if (lines > most) report.problems.push(problem);
  };
  const read = (file: string) => readFileSync(path.join(root, file), "utf8");
  const length = (file: string) => read(file).trimEnd().split("\n").length;
  const names = readdirSync(path.join(root, "tools")).filter((name) => name.endsWith(".ts"));
  const tools = names.map((name) => `tools/${name}`);
  for (const file of tools) limit(file, length(file), FILE_LIMIT);
  const total = tools.reduce((sum, file) => sum + codeLines(read(file), file).length, 0);
  limit("tools/*.ts", total, TOOLS_LIMIT, "code lines");
  for (const file of ["phone", "rpc", "knobs"].map((name) => `practice/${name}.ts`)) {
    if (existsSync(path.join(root, file))) limit(file, length(file), PRACTICE_LIMIT);
  }
  report.facts.push(`tools: ${total} code lines in ${tools.length} files`);
  return report;
}

/** A step that can't be done is a problem like any other: the other steps still report. */
async function guarded(step: () => Report | Promise<Report>): Promise<Report> {
  try {
    return await step();
  } catch (error) {
    const problem = error instanceof Error ? error.message : String(error);
    return { ...emptyReport(), problems: [problem] };
  }
}

export async function check(root: string): Promise<Report> {
  const steps = [
    () => checkTypes(root), // the two that are other processes begin first
    () => checkStyle(root),
    () => checkClaims(root, readLanguages(root)),
    () => checkSections(root, readLanguages(root).get("en")),
    () => checkLessons(root, readLanguages(root)),
    () => checkMarkdown(root),
    () => checkTranslations(root),
    () => checkSizes(root),
  ];
  const reports = await Promise.all(steps.map(guarded));
  return {
    problems: reports.flatMap((report) => report.problems),
    notes: reports.flatMap((report) => report.notes),
    facts: reports.flatMap((report) => report.facts),
  };
}

async function main(): Promise<void> {
  const color = process.stdout.isTTY && !process.env.NO_COLOR;
  const paint = (code: number, text: string) => (color ? `\x1b[${code}m${text}\x1b[0m` : text);
  const { problems, notes, facts } = await check(ROOT);
  for (const fact of facts) console.log(paint(2, fact));
  for (const note of notes) console.log(paint(33, `note: ${note}`));
  for (const problem of problems) console.log(paint(31, `\n✗ ${problem}`));
  const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
  console.log(problems.length === 0 ? paint(32, "Everything is fine.") : `\n${count}.`);
  process.exitCode = problems.length > 0 ? 1 : 0;
}

if (isMain(import.meta.filename)) await main();
