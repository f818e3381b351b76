// npm run carry s01: takes what you changed in an English section forward into all later ones.
//
// For each step it merges three texts: the section as committed (base), the same section now
// (theirs), and the next one (ours). Since each base is a commit and not the result of an earlier
// run, a run that stopped at a conflict goes on from the section where the conflict was resolved.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { withFiles } from "./code.ts";
import {
  existingSections,
  findSection,
  isMain,
  ROOT,
  sectionPath,
  short,
  start,
} from "./sections.ts";

const USAGE = `npm run carry s01                    your edit of s01 into s02, s03, ...
npm run carry -- s01 --base HEAD~2   what changed in s01 since that commit
Commit between two edits of the same lines.`;

/** Git's answer, or what to do instead of it. */
function git(cwd: string, args: string[], problem: string) {
  const result = spawnSync("git", args, { cwd, encoding: "utf8", maxBuffer: 1 << 26 });
  if (result.error) throw new Error(`git can't be started: ${result.error.message}. Install git.`);
  // merge-file gives the number of conflicts, at most 127; from 128 on it is an error.
  if (result.status === null || result.status >= 128)
    throw new Error(`${problem}\n${result.stderr}`);
  return { text: result.stdout, conflicts: result.status };
}

function mergeFile(ours: string, base: string, theirs: string, labels: string[]) {
  const marks = labels.flatMap((label) => ["-L", label]);
  const args = ["merge-file", "-p", ...marks, "ours", "base", "theirs"];
  return withFiles({ ours, base, theirs }, (folder) => git(folder, args, "git merge-file failed."));
}

const conflictLines = (text: string) =>
  text.split("\n").flatMap((line, i) => (/^(<{7}|>{7}) /.test(line) ? [i + 1] : []));

/** Merges along the sections; says what it did. Throws at a conflict, which is then in the file. */
export function carry(root: string, args: string[]): string[] {
  const options = { base: { type: "string", default: "HEAD" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const [given] = positionals;
  if (given === undefined || positionals.length > 1) throw new Error(USAGE);
  const existing = existingSections(root, "en");
  const names = existing.slice(existing.indexOf(findSection(root, "en", given)));
  const read = (name: string) => readFileSync(path.join(root, sectionPath("en", name)), "utf8");
  const missing = `is not in ${values.base}: there is nothing to compare with. Commit it first.`;
  const base = (name: string) => {
    const file = sectionPath("en", name);
    return git(root, ["show", `${values.base}:./${file}`], `${file} ${missing}`).text;
  };
  for (const name of names) {
    const [line] = conflictLines(read(name));
    const file = sectionPath("en", name);
    if (line) throw new Error(`${file}:${line}: a conflict is open. Resolve it, then carry on.`);
  }
  const bases = names.slice(0, -1).map(base); // all of them before the first file is written
  const said: string[] = [];
  for (const [i, name] of names.slice(1).entries()) {
    const from = names[i] ?? "";
    const old = bases[i] ?? "";
    const now = read(from);
    const ours = read(name);
    const labels = [short(name), `${short(from)} at ${values.base}`, `${short(from)} now`];
    const merged = mergeFile(ours, old, now, labels);
    if (merged.text === ours) continue;
    writeFileSync(path.join(root, sectionPath("en", name)), merged.text);
    if (merged.conflicts > 0) throw new Error(conflict(name, merged.text, values.base));
    said.push(`${sectionPath("en", name)}: changed`);
  }
  return said.length > 0 ? said : [`Nothing to carry: the sections after ${given} have it all.`];
}

function conflict(name: string, text: string, base: string): string {
  const goOn = base === "HEAD" ? `carry ${short(name)}` : `carry -- ${short(name)} --base ${base}`;
  return `${sectionPath("en", name)}: a conflict at line ${conflictLines(text).join(", ")}.
Edit the file there: keep what belongs between <<<<<<< and >>>>>>>, and take the marks out.
Then, before you commit, go on with: npm run ${goOn}`;
}

function main(): number {
  for (const line of carry(ROOT, process.argv.slice(2))) console.log(line);
  return 0;
}

if (isMain(import.meta.filename)) start(main);
