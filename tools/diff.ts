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

export function diff(root: string, args: string[]) {
  const options = { code: { type: "boolean" }, lang: { type: "string", default: "en" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const isStop = (word: string) => /^\d+$/.test(word);
  const [one, two] = positionals.filter((word) => !isStop(word));
  const [stop, more] = positionals.filter(isStop);
  if (one === undefined || positionals.length > 3 || more !== undefined) throw new Error(USAGE);
  const first = findSection(root, values.lang, one);
  const existing = existingSections(root, values.lang);
  const before = two === undefined ? existing[existing.indexOf(first) - 1] : first;
  const after = two === undefined ? first : findSection(root, values.lang, two);
  if (before === undefined) throw new Error(`There is no section before ${first}.\n${USAGE}`);
  const folder = path.join(root, `sessions/${values.lang}`);
  const names = [`${before}.ts`, `${after}.ts`];
  // Git prints, with the reader's own colours and pager, if there is a terminal. --minimal is how
  // the kept share is measured, so that both show the same lines.
  const show = (cwd: string) => git(cwd, ["diff", "--no-index", "--minimal", ...names], "inherit");
  if (!values.code && stop === undefined) return show(folder);
  const texts = names.map((name) => read(folder, name));
  const [earlier = "", later = ""] =
    stop === undefined ? texts : onlyStop(texts, short(after), Number(stop));
  const wanted = (text: string, name: string) =>
    values.code ? `${codeLines(text, name).join("\n")}\n` : text;
  return withFiles(
    {
      [`${before}.ts`]: wanted(earlier, `${before}.ts`),
      [`${after}.ts`]: wanted(later, `${after}.ts`),
    },
    show,
  );
}

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
