// npm run diff s02 s03: what changed from one section to the next.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { codeLines, withFiles } from "./code.ts";
import { existingSections, findSection, isMain, ROOT, sectionPath, start } from "./sections.ts";

const USAGE = `npm run diff s02 s03                  what s03 adds to s02
npm run diff s03                      the same: without a second one, the section before
npm run diff -- s02 s03 --code        without comments and blank lines
npm run diff -- s02 s03 --lang zh     the Chinese files`;

/** Git in the reader's terminal, with its own colours and pager. */
function gitDiff(cwd: string, before: string, after: string): number {
  // --minimal is how the kept share is measured, so that both show the same lines.
  const args = ["diff", "--no-index", "--minimal", before, after];
  const git = spawnSync("git", args, { cwd, stdio: "inherit" });
  if (git.error) throw new Error(`git can't be started: ${git.error.message}. Install git.`);
  return git.status === 1 ? 0 : (git.status ?? 1); // 1 only says that the files differ
}

export function diff(root: string, args: string[]): number {
  const options = { code: { type: "boolean" }, lang: { type: "string", default: "en" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const [one, two] = positionals;
  if (one === undefined || positionals.length > 2) throw new Error(USAGE);
  const first = findSection(root, values.lang, one);
  const existing = existingSections(root, values.lang);
  const before = two === undefined ? existing[existing.indexOf(first) - 1] : first;
  const after = two === undefined ? first : findSection(root, values.lang, two);
  if (before === undefined) throw new Error(`There is no section before ${first}.\n${USAGE}`);
  const folder = path.join(root, `sessions/${values.lang}`);
  if (!values.code) return gitDiff(folder, `${before}.ts`, `${after}.ts`);
  const code = (name: string) => {
    const file = sectionPath(values.lang, name);
    return `${codeLines(readFileSync(path.join(root, file), "utf8"), file).join("\n")}\n`;
  };
  const files = { [`${before}.ts`]: code(before), [`${after}.ts`]: code(after) };
  return withFiles(files, (cwd) => gitDiff(cwd, `${before}.ts`, `${after}.ts`));
}

if (isMain(import.meta.filename)) start(() => diff(ROOT, process.argv.slice(2)));
