// npm run carry s01: takes what you changed in an English section forward into all later ones.
//
// For each step it merges three texts: the section as committed (base), the same section now
// (theirs), and the next one (ours). Since each base is a commit and not the result of an earlier
// run, a run that stopped at a conflict goes on from the section where the conflict was resolved.
import { writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { git, textAt, withFiles } from "./code.ts";
import { existingSections, findSection, read, sectionPath, short, start } from "./sections.ts";

const USAGE = `npm run carry s01                    your edit of s01 into s02, s03, ...
npm run carry -- s01 --base HEAD~2   what changed in s01 since that commit
Commit between two edits of the same lines.`;

const conflictLines = (text: string) =>
  text.split("\n").flatMap((line, i) => (/^(<{7}|>{7}) /.test(line) ? [i + 1] : []));

/** Merges along the sections; says what it did. Throws at a conflict, which is then in the file. */
export function carry(root: string, args: string[]): string[] {
  const options = { base: { type: "string", default: "HEAD" } } as const; // what is inferred from
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const [given] = positionals;
  if (given === undefined || positionals.length > 1) throw new Error(USAGE);
  const existing = existingSections(root, "en");
  const names = existing.slice(existing.indexOf(findSection(root, "en", given)));
  const files = names.map((name) => sectionPath("en", name));
  for (const file of files) {
    const [line] = conflictLines(read(root, file));
    if (line) throw new Error(`${file}:${line}: a conflict is open. Resolve it first.`);
  }
  // All the bases before the first file is written.
  const bases = files.slice(0, -1).map((file) => {
    const text = textAt(root, values.base, file);
    if (text !== undefined) return text;
    const problem = `${file} is not in ${values.base}: there is nothing to compare with`;
    throw new Error(`${problem}. Commit it first.`);
  });
  const said: string[] = [];
  for (const [i, base] of bases.entries()) {
    const [from = "", to = ""] = files.slice(i);
    const [theirId = "", id = ""] = names.slice(i).map(short);
    const [theirs, ours] = [read(root, from), read(root, to)];
    const labels = [id, `${theirId} at ${values.base}`, `${theirId} now`];
    const marks = labels.flatMap((label) => ["-L", label]);
    const merge = ["merge-file", "-p", ...marks, "ours", "base", "theirs"];
    const { text, status } = withFiles({ ours, base, theirs }, (cwd) => git(cwd, merge));
    if (text === ours) continue;
    writeFileSync(path.join(root, to), text);
    if (status > 0) throw new Error(conflict(to, id, text, values.base));
    said.push(`${to}: changed`);
  }
  return said.length > 0 ? said : [`Nothing to carry: the sections after ${given} have it all.`];
}

function conflict(file: string, id: string, text: string, base: string): string {
  const goOn = base === "HEAD" ? `carry ${id}` : `carry -- ${id} --base ${base}`;
  return `${file}: a conflict at line ${conflictLines(text).join(", ")}.
Edit the file there: keep what belongs between <<<<<<< and >>>>>>>, and take the marks out.
Then, before you commit, go on with: npm run ${goOn}`;
}

await start(import.meta.filename, (root, args) => console.log(carry(root, args).join("\n")));
