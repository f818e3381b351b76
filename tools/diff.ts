// npm run diff s02 s03: what changed from one section to the next.
import path from "node:path";
import { parseArgs } from "node:util";
import { codeLines, git, withFiles } from "./code.ts";
import { existingSections, findSection, read, short, start } from "./sections.ts";
import { regionOf, stopsOf } from "./stops.ts";

const USAGE = `npm run diff s02 s03                  what s03 adds to s02
npm run diff s03                      the same: without a second one, the section before
npm run diff s03 s04 2                only the second stop of s04 (0: what is outside its region)
npm run diff -- s02 s03 --code        without comments and blank lines
npm run diff -- s02 s03 --lang zh     the Chinese files`;

interface Wanted {
  /** The two sections, "s03_sessions". */
  before: string;
  after: string;
  language: string;
  stop?: number;
  codeOnly: boolean;
}

function readArguments(root: string, args: string[]): Wanted {
  const options = { code: { type: "boolean" }, lang: { type: "string", default: "en" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const isNumber = (word: string) => /^\d+$/.test(word);
  const [stop, ...moreStops] = positionals.filter(isNumber);
  const [one, two, ...moreSections] = positionals.filter((word) => !isNumber(word));
  if (one === undefined || moreStops.length > 0 || moreSections.length > 0) throw new Error(USAGE);
  const language = values.lang;
  const first = findSection(root, language, one);
  const after = two === undefined ? first : findSection(root, language, two);
  const before = two === undefined ? sectionBefore(root, language, first) : first;
  const number = stop === undefined ? undefined : Number(stop);
  return { before, after, language, stop: number, codeOnly: values.code ?? false };
}

function sectionBefore(root: string, language: string, name: string): string {
  const existing = existingSections(root, language);
  const before = existing[existing.indexOf(name) - 1];
  if (before === undefined) throw new Error(`There is no section before ${name}.\n${USAGE}`);
  return before;
}

/** Git prints, with the reader's own colours and pager, if there is a terminal. */
export function diff(root: string, args: string[]) {
  const { before, after, language, stop, codeOnly } = readArguments(root, args);
  const folder = path.join(root, `sessions/${language}`);
  const names = [`${before}.ts`, `${after}.ts`];
  // --minimal is how the kept share is measured, so that both show the same lines.
  const show = (cwd: string) => git(cwd, ["diff", "--no-index", "--minimal", ...names], "inherit");
  if (!codeOnly && stop === undefined) return show(folder);
  const whole = names.map((name) => read(folder, name));
  const texts = stop === undefined ? whole : onlyStop(whole, short(after), stop);
  const shown = codeOnly ? texts.map((text, i) => codeOf(text, names[i] ?? "")) : texts;
  return withFiles(Object.fromEntries(names.map((name, i) => [name, shown[i] ?? ""])), show);
}

const codeOf = (text: string, name: string) =>
  codeLines(text, name)
    .map((line) => `${line}\n`)
    .join("");

/**
 * Two texts whose difference is one stop of a section. Stop 0, "Hooking in", is everything that has
 * changed outside of the section's own region; any other one is a part of that region, all new.
 */
function onlyStop([earlier = "", later = ""]: string[], id: string, number: number) {
  const lines = later.split("\n");
  if (number === 0) {
    const region = regionOf(lines, id);
    if (!region) throw new Error(`There is no region "// ---- ${id} · … ----" in that file.`);
    const outside = [...lines.slice(0, region.start), ...lines.slice(region.end)];
    return [earlier, outside.join("\n")];
  }
  const stops = stopsOf(later, id);
  const stop = stops.find((one) => one.number === number);
  const there = stops.map((one) => `${one.number} · ${one.title}`).join(", ");
  if (!stop) throw new Error(`${id} has no stop ${number}. There are: ${there || "none yet"}.`);
  return ["", `${lines.slice(stop.start, stop.end).join("\n").trimEnd()}\n`];
}

await start(import.meta.filename, diff);
