// npm run check: everything that can be checked without a network and without starting a section.
import { readdirSync } from "node:fs";
import path from "node:path";
import { styleText } from "node:util";
import { checkClaims, checkSections } from "./check-sections.ts";
import { checkTranslations } from "./check-translation.ts";
import { codeLines, run } from "./code.ts";
import { checkLessons } from "./lessons.ts";
import { checkMarkdown } from "./markdown.ts";
import { over, Report } from "./report.ts";
import { exists, messageOf, ROOT, read, readLanguages, start } from "./sections.ts";

const FILE_LIMIT = 250;
const PRACTICE_LIMIT = 119;

/** Runs a program of node_modules with this Node, without a shell, so also on Windows. */
function runScript(report: Report, root: string, title: string, script: string, args: string[]) {
  const command = [path.join(ROOT, "node_modules", script), ...args];
  const { status, stdout, stderr } = run(root, process.execPath, command);
  if (status === 0) report.facts.push(`${title}: fine`);
  else report.problems.push(`${title}:\n${`${stdout}${stderr}`.trim() || `status ${status}`}`);
  return report;
}

export const checkTypes = (root: string, report = new Report()) =>
  runScript(report, root, "types", "typescript/bin/tsc", ["-p", root, "--pretty", "false"]);

export const checkStyle = (root: string, report = new Report()) =>
  runScript(report, root, "format and lint", "@biomejs/biome/bin/biome", ["ci", "--colors=off"]);

/** The tools stay small enough to read. */
export function checkSizes(root: string, report = new Report()): Report {
  const limit = (file: string, lines: number, most: number, what = "lines") =>
    report.problems.push(...over(lines, `${file}: ${lines} ${what}`, most, "Shorten or split it."));
  const length = (file: string) => read(root, file).trimEnd().split("\n").length;
  const names = readdirSync(path.join(root, "tools")).filter((name) => name.endsWith(".ts"));
  const tools = names.map((name) => `tools/${name}`);
  for (const file of tools) limit(file, length(file), FILE_LIMIT);
  const total = tools.flatMap((file) => codeLines(read(root, file), file)).length;
  for (const file of ["phone", "rpc", "knobs"].map((name) => `practice/${name}.ts`)) {
    if (exists(root, file)) limit(file, length(file), PRACTICE_LIMIT);
  }
  report.facts.push(`tools: ${total} code lines in ${tools.length} files`);
  return report;
}

export function check(root: string): Report {
  const report = new Report();
  const steps = [
    () => checkTypes(root, report),
    () => checkStyle(root, report),
    () => checkClaims(root, readLanguages(root), report),
    () => checkSections(root, readLanguages(root).get("en"), report),
    () => checkLessons(root, readLanguages(root), report),
    () => checkMarkdown(root, report),
    () => checkTranslations(root, report),
    () => checkSizes(root, report),
  ];
  for (const step of steps) {
    try {
      step();
    } catch (error) {
      report.problems.push(messageOf(error)); // a step that can't be done; the others still report
    }
  }
  return report;
}

function main(root: string): void {
  const { problems, notes, facts } = check(root);
  for (const fact of facts) console.log(styleText("dim", fact));
  for (const note of notes) console.log(styleText("yellow", `note: ${note}`));
  for (const problem of problems) console.log(styleText("red", `\n✗ ${problem}`));
  const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
  console.log(problems.length === 0 ? styleText("green", "Everything is fine.") : `\n${count}.`);
  process.exitCode = problems.length > 0 ? 1 : 0;
}

await start(import.meta.filename, main);
