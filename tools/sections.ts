// What all tools share: where the sections and their languages are, and how a tool starts.
import { existsSync, readFileSync, realpathSync } from "node:fs";
import path from "node:path";
import { SECTIONS } from "../sessions/names.ts";

export { SECTIONS };

export const ROOT = path.dirname(import.meta.dirname);

export const exists = (root: string, file: string) => existsSync(path.join(root, file));

export const read = (root: string, file: string) => readFileSync(path.join(root, file), "utf8");

/** The text of a file; "" if it isn't there. */
export const textOf = (root: string, file: string) => (exists(root, file) ? read(root, file) : "");

/** What a language can claim of a section: the code with its printed texts, and apart from that. */
export type Claim = "code" | "comments" | "lessons";

/**
 * What `tools/languages.json` says of a language. For each claim it lists the sections ("s01") of
 * which that part is finished: it must be there and pass the check. The others may lag behind.
 */
export interface Language extends Record<Claim, string[]> {
  headings: string[];
  /** A regular expression for the line below the title that says how long it takes to read. */
  minutes: string;
}

/** By their codes: "en", "zh". */
export type Languages = Map<string, Language>;

export function readLanguages(root: string): Languages {
  const found: Record<string, Language> = JSON.parse(read(root, "tools/languages.json"));
  return new Map(Object.entries(found));
}

/** "s02_tool_use" to "s02". */
export const short = (name: string) => name.slice(0, 3);

/** "s02" to "s02_tool_use". */
export const longName = (id: string) => SECTIONS.find((name) => short(name) === id);

/** The path from the root, with "/" on every system, as messages show it. */
export const sectionPath = (language: string, name: string, extension = "ts") =>
  `sessions/${language}/${name}.${extension}`;

/** The sections whose code is on disk, in order. */
export const existingSections = (root: string, language: string) =>
  SECTIONS.filter((name) => exists(root, sectionPath(language, name)));

/** The English sections whose code a language claims. One that is being written can wait. */
export function claimedSections(root: string): string[] {
  const claimed = [...readLanguages(root).values()].flatMap(({ code }) => code);
  return existingSections(root, "en").filter((name) => claimed.includes(short(name)));
}

/** The section that a person means by "s02" or "s02_tool_use"; it must exist. */
export function findSection(root: string, language: string, given: string): string {
  const existing = existingSections(root, language);
  const name = existing.find((one) => one === given || short(one) === given);
  if (name !== undefined) return name;
  const there = existing.length > 0 ? `There are: ${existing.join(", ")}` : "There are none yet";
  throw new Error(`There is no section "${given}" in sessions/${language}. ${there}.`);
}

export const messageOf = (error: unknown) => (error instanceof Error ? error.message : `${error}`);

/** Whether a file is the one that was started, and not imported by a test. */
export const isMain = (filename: string) =>
  process.argv[1] !== undefined && realpathSync(process.argv[1]) === filename;

/** Runs a tool, if it is what was started. An error is for a person: no stack. */
export async function start(filename: string, main: (root: string, args: string[]) => unknown) {
  if (!isMain(filename)) return;
  try {
    await main(ROOT, process.argv.slice(2));
  } catch (error) {
    console.error(messageOf(error));
    process.exitCode = 1;
  }
}
