// The stops of a lesson, as a section marks them: parts of its region under lines like
// "// -- 2 · Nothing lost, and in order --".
import { codeLines } from "./code.ts";
import type { Range } from "./verbatim.ts";

export const STOP_LIMIT = 180; // code lines

/** A stop and its lines in the file, counted from 0. */
export interface Stop extends Range {
  number: number;
  title: string;
}

const STOP = /^\/\/ -- (\d+) · (.+) --$/;

/** The region of a section: from its banner to the next one. Undefined if there is no banner. */
export function regionOf(lines: string[], id: string): Range | undefined {
  const start = lines.findIndex((line) => line.startsWith(`// ---- ${id} · `));
  if (start === -1) return undefined;
  const next = lines.findIndex((line, i) => i > start && line.startsWith("// ---- "));
  return { start, end: next === -1 ? lines.length : next };
}

/** The stops of a section's own region, in the order in which they stand there. */
export function stopsOf(source: string, id: string): Stop[] {
  const lines = source.split("\n");
  const region = regionOf(lines, id);
  const stops: Stop[] = [];
  for (let i = region?.start ?? 0; i < (region?.end ?? 0); i++) {
    const [, number, title = ""] = STOP.exec(lines[i] ?? "") ?? [];
    if (!number) continue;
    const last = stops.at(-1);
    if (last) last.end = i;
    stops.push({ number: Number(number), title, start: i, end: region?.end ?? i });
  }
  return stops;
}

/** What is wrong with the stops of a section: their numbers, or one that is too long to read. */
export function checkStops(file: string, source: string, id: string): string[] {
  const stops = stopsOf(source, id);
  const lines = source.split("\n");
  const problems: string[] = [];
  for (const [i, { number, title, start, end }] of stops.entries()) {
    const where = `${file}:${start + 1}: stop ${number} · ${title}`;
    if (number !== i + 1) problems.push(`${where} must have the number ${i + 1}.`);
    const size = codeLines(lines.slice(start, end).join("\n"), file).length;
    const remedy = `${STOP_LIMIT} is the limit. Cut it where a reader can pause.`;
    if (size > STOP_LIMIT) problems.push(`${where} has ${size} code lines, ${remedy}`);
  }
  return problems;
}
