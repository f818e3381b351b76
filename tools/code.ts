// What counts as code: a section without its comments and blank lines, and how much of it stays.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseSync } from "oxc-parser";

const NEWLINE = /\r?\n/;

export const lineAt = (source: string, end: number) => source.slice(0, end).split(NEWLINE).length;

/** Parses a file. A file that doesn't parse has no code lines: the error says where it breaks. */
export function parse(source: string, file: string) {
  const result = parseSync(file, source);
  const [error] = result.errors;
  if (error === undefined) return result;
  const line = lineAt(source, error.labels[0]?.start ?? 0);
  throw new Error(`${file}:${line}: does not parse: ${error.message}. Mend the syntax first.`);
}

const isBlank = (line: string) => line.trim() === "";

/** The code: no comments, no blank lines. Indentation counts, so a re-indented line has changed. */
export function codeLines(source: string, file: string): string[] {
  let text = "";
  let end = 0;
  for (const comment of parse(source, file).comments) {
    text += source.slice(end, comment.start);
    text += source.slice(comment.start, comment.end).replace(/[^\r\n]/g, "");
    end = comment.end;
    // "a /* b */ c" becomes "a c", and what follows a comment keeps the line's indentation.
    if (/(^|[\s([{])$/.test(text)) end += /^[ \t]*/.exec(source.slice(end))?.[0].length ?? 0;
  }
  text += source.slice(end);
  const before = source.split(NEWLINE);
  // The blanks that stood before a cut comment go too; those inside a template literal stay.
  const lines = text.split(NEWLINE).map((line, i) => (line === before[i] ? line : line.trimEnd()));
  return lines.filter((line) => !isBlank(line));
}

/**
 * The share of comment lines. A comment line holds a comment, or a part of one, and no code, so
 * a comment behind code counts as code. Blank lines count nowhere, not even inside a comment.
 */
export function commentShare(source: string, file: string): number {
  const all = source.split(NEWLINE).filter((line) => !isBlank(line)).length;
  return all === 0 ? 0 : (all - codeLines(source, file).length) / all;
}

/** Writes texts side by side into a new folder, for git to compare. */
export function withFiles<T>(files: Record<string, string>, use: (folder: string) => T): T {
  const folder = mkdtempSync(path.join(tmpdir(), "claw0-"));
  try {
    for (const [name, text] of Object.entries(files)) writeFileSync(path.join(folder, name), text);
    return use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Runs a program to its end. */
export function run(cwd: string, program: string, args: string[], stdio?: "inherit") {
  const options = { cwd, stdio, encoding: "utf8", maxBuffer: 1 << 26 } as const; // "utf8": strings
  const { error, ...result } = spawnSync(program, args, options);
  if (error) throw new Error(`${program} can't be started: ${error.message}. Install it.`);
  return result;
}

/** Runs git; a status from 128 on is an error, lower ones are for the caller to judge. */
export function git(cwd: string, args: string[], stdio?: "inherit") {
  const { signal, status, stdout, stderr } = run(cwd, "git", args, stdio);
  if (signal === "SIGPIPE") return { status: 0, text: "" }; // the reader has closed the pager
  if (status === null || status >= 128) throw new Error(`git ${args[0]} failed: ${stderr ?? ""}`);
  return { status, text: stdout };
}

/** The text of a file at a commit; undefined if it was not there. */
export function textAt(root: string, commit: string, file: string): string | undefined {
  const listed = git(root, ["ls-tree", "--name-only", commit, file]).text;
  return listed ? git(root, ["show", `${commit}:./${file}`]).text : undefined;
}

/**
 * How much of the code before is in the code after: 1 - deleted lines / lines before. A changed
 * line is a removed and a new one.
 */
export function kept(before: string[], after: string[]) {
  const text = (lines: string[]) => lines.map((line) => `${line}\n`).join("");
  const files = { before: text(before), after: text(after) };
  // The "-" lines of this patch are the ones that --numstat counts as deleted.
  const options = "--no-index --no-ext-diff --no-color --text --minimal -U0".split(" ");
  const patch = withFiles(files, (cwd) => git(cwd, ["diff", ...options, "before", "after"]).text);
  const hunks = patch.split("\n").slice(4); // behind the names of the files
  const removed = hunks.filter((line) => line.startsWith("-")).map((line) => line.slice(1));
  return { share: 1 - removed.length / (before.length || 1), removed };
}
