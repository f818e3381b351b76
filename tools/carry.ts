// npm run carry s01: takes what you changed in an English section forward into all later ones.
//
// For each step it merges three texts: the section as committed (base), the same section now
// (theirs), and the next one (ours). Since each base is a commit and not the result of an earlier
// run, a run that stopped at a conflict goes on from the section where the conflict was resolved.
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { git, withFiles } from "./code.ts";
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

const conflictLines = (text: string) =>
  text.split("\n").flatMap((line, i) => (/^(<{7}|>{7}) /.test(line) ? [i + 1] : []));

/** The text of a file at a commit. */
function textAt(root: string, commit: string, file: string): string {
  const listed = git(root, ["ls-tree", "--name-only", commit, file]).text;
  if (listed) return git(root, ["show", `${commit}:./${file}`]).text;
  throw new Error(
    `${file} is not in ${commit}: there is nothing to compare with. Commit it first.`,
  );
}

function merge(ours: string, base: string, theirs: string, labels: string[]) {
  const options = ["-p", ...labels.flatMap((label) => ["-L", label])];
  return withFiles({ ours, base, theirs }, (cwd) =>
    git(cwd, ["merge-file", ...options, "ours", "base", "theirs"]),
  );
}

/** Merges along the sections; says what it did. Throws at a conflict, which is then in the file. */
export function carry(root: string, args: string[]): string[] {
  const options = { base: { type: "string", default: "HEAD" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const [given] = positionals;
  if (given === undefined || positionals.length > 1) throw new Error(USAGE);
  const existing = existingSections(root, "en");
  const names = existing.slice(existing.indexOf(findSection(root, "en", given)));
  const file = (name: string) => sectionPath("en", name);
  const read = (name: string) => readFileSync(path.join(root, file(name)), "utf8");
  for (const name of names) {
    const [line] = conflictLines(read(name));
    if (line) throw new Error(`${file(name)}:${line}: a conflict is open. Resolve it first.`);
  }
  // All the bases before the first file is written.
  const bases = names.slice(0, -1).map((name) => textAt(root, values.base, file(name)));
  const said: string[] = [];
  for (const [i, base] of bases.entries()) {
    const [from = "", name = ""] = names.slice(i);
    const ours = read(name);
    const labels = [short(name), `${short(from)} at ${values.base}`, `${short(from)} now`];
    const { text, status } = merge(ours, base, read(from), labels);
    if (text === ours) continue;
    writeFileSync(path.join(root, file(name)), text);
    if (status > 0) throw new Error(conflict(name, text, values.base));
    said.push(`${file(name)}: changed`);
  }
  return said.length > 0 ? said : [`Nothing to carry: the sections after ${given} have it all.`];
}

function conflict(name: string, text: string, base: string): string {
  const goOn = base === "HEAD" ? `carry ${short(name)}` : `carry -- ${short(name)} --base ${base}`;
  return `${sectionPath("en", name)}: a conflict at line ${conflictLines(text).join(", ")}.
Edit the file there: keep what belongs between <<<<<<< and >>>>>>>, and take the marks out.
Then, before you commit, go on with: npm run ${goOn}`;
}

if (isMain(import.meta.filename)) {
  start(() => console.log(carry(ROOT, process.argv.slice(2)).join("\n")));
}
