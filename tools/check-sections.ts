// What `check` asks of the section files: they grow, within a budget, and stand alone.
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { codeLines, commentShare, kept, lineAt, parse } from "./code.ts";
import { existingSections, type Language, SECTIONS, sectionPath, short } from "./sections.ts";

/** What a step of the check found. */
export interface Report {
  /** Each one names a file, and what to do. Any of them fails the check. */
  problems: string[];
  /** Things to know; problems of sections that no language claims yet are among them. */
  notes: string[];
  /** The figures of the summary. */
  facts: string[];
}

export const emptyReport = (): Report => ({ problems: [], notes: [], facts: [] });

const PACKAGES = ["@anthropic-ai/sdk", "cron-parser", "dotenv", "grammy", "undici", "ws", "yaml"];
const TOTAL_LIMITS: Record<string, number> = { s03: 750, s05: 1600, s07: 2250, s10: 3200 };
const ADDED_LIMITS: Record<string, number> = { s01: 130, s04: 560, s05: 430 };
const ADDED_LIMIT = 400;
const KEPT_LIMIT = 0.98;
const KEPT_MEAN_LIMIT = 0.99;

/** Rounded down, so that nothing that fails looks as if it had passed. */
const percent = (share: number) => `${(Math.floor(share * 1000 + 1e-6) / 10).toFixed(1)}%`;

/** A section is finished when it is claimed; until then its problems are only told. */
export function sinkFor(report: Report, language: Language | undefined, name: string): string[] {
  return language?.sections.includes(short(name)) ? report.problems : report.notes;
}

/** Claimed and missing is a problem, there and not claimed is said. */
export function checkClaims(root: string, languages: Map<string, Language>): Report {
  const report = emptyReport();
  for (const [code, { sections }] of languages) {
    const claimed = sections.map((id) => SECTIONS.find((name) => short(name) === id) ?? id);
    for (const name of new Set([...SECTIONS, ...claimed])) {
      for (const file of ["ts", "md"].map((extension) => sectionPath(code, name, extension))) {
        const there = existsSync(path.join(root, file));
        if (there && !claimed.includes(name)) {
          report.notes.push(`${file}: tools/languages.json doesn't claim it yet.`);
        }
        if (!there && claimed.includes(name)) {
          const remedy = "Write it, or take the claim away.";
          report.problems.push(`${file}: missing, but tools/languages.json claims it. ${remedy}`);
        }
      }
    }
  }
  return report;
}

interface Section {
  name: string;
  file: string;
  source: string;
  code: string[];
}

/** The rules for the English files; the other languages are made from them. */
export function checkSections(root: string, language: Language | undefined): Report {
  const report = emptyReport();
  const steps: number[] = [];
  let before: Section | undefined;
  for (const name of existingSections(root, "en")) {
    const sink = sinkFor(report, language, name);
    const file = sectionPath("en", name);
    const source = readFileSync(path.join(root, file), "utf8");
    try {
      const section = { name, file, source, code: codeLines(source, file) };
      const previous = SECTIONS[SECTIONS.indexOf(name) - 1];
      if (before && before.name !== previous) before = undefined; // a gap: nothing to compare with
      sink.push(...checkImports(section), ...checkComments(section));
      sink.push(...checkBanners(section, before), ...checkBudget(section, before, report.facts));
      if (before) steps.push(checkKept(before, section, sink, report.facts));
      before = section;
    } catch (error) {
      sink.push(error instanceof Error ? error.message : String(error));
      before = undefined;
    }
  }
  if (steps.length === SECTIONS.length - 1) checkMean(steps, report);
  return report;
}

function checkMean(steps: number[], { problems, facts }: Report): void {
  const mean = steps.reduce((sum, share) => sum + share, 0) / steps.length;
  facts.push(`kept on average: ${percent(mean)}`);
  if (mean >= KEPT_MEAN_LIMIT) return;
  const remedy = "Give the earlier sections the shape that the later ones need.";
  problems.push(`sessions/en: ${percent(mean)} kept on average, 99% is the rule. ${remedy}`);
}

function checkKept(before: Section, after: Section, sink: string[], facts: string[]): number {
  const { share, removed } = kept(before.code, after.code);
  const step = `${short(before.name)} → ${short(after.name)}: ${percent(share)} kept`;
  const list = removed.map((line) => `\n    - ${line}`).join("");
  facts.push(step + list);
  const remedy = `Give ${before.file} the shape that these lines need later:${list}`;
  if (share < KEPT_LIMIT) sink.push(`${after.file}: ${step}, 98% is the rule. ${remedy}`);
  return share;
}

function checkBudget(section: Section, before: Section | undefined, facts: string[]): string[] {
  const id = short(section.name);
  const lines = section.code.length;
  const added = lines - (before?.code.length ?? 0);
  const comments = percent(commentShare(section.source, section.file));
  facts.push(`${id}: ${lines} code lines (+${added}), ${comments} comments`);
  const over = (verb: string, count: number, limit = Number.POSITIVE_INFINITY) => {
    const remedy = "Fewer options, shorter functions, or a library; don't squeeze.";
    const problem = `${section.file}: ${verb} ${count} code lines, ${limit} is the limit. ${remedy}`;
    return count > limit ? [problem] : [];
  };
  const comparable = before !== undefined || id === "s01"; // the section before is not there yet
  return [
    ...over("has", lines, TOTAL_LIMITS[id]),
    ...(comparable ? over("adds", added, ADDED_LIMITS[id] ?? ADDED_LIMIT) : []),
  ];
}

function checkComments({ file, source }: Section): string[] {
  const share = Math.round(commentShare(source, file) * 1000) / 1000;
  const remedy = share < 0.15 ? "Say why, where a reader would ask." : "Keep those that say why.";
  const wide = source
    .split("\n")
    .flatMap((line, i) => (/^\s*(\/[/*]|\*)/.test(line) && line.length > 100 ? [i + 1] : []))
    .map((line) => `${file}:${line}: a comment of more than 100 columns. Break the line.`);
  if (share >= 0.15 && share <= 0.25) return wide;
  const problem = `${file}: ${percent(share)} of the lines are comments, not 15 to 25%. ${remedy}`;
  return [problem, ...wide];
}

/** A section stands alone: npm packages of the list, and what Node brings. */
function checkImports({ file, source }: Section): string[] {
  const { staticImports, staticExports, dynamicImports } = parse(source, file).module;
  const exports = staticExports.flatMap((one) => one.entries);
  const spans = [...staticImports, ...exports, ...dynamicImports];
  const problems: string[] = [];
  for (const { start, end } of spans.flatMap((one) => one.moduleRequest ?? [])) {
    const name = source.slice(start, end).replace(/["'`]/g, "");
    const listed = PACKAGES.some((one) => name === one || name.startsWith(`${one}/`));
    if (listed || name.startsWith("node:")) continue;
    const remedy = `A section imports only node: modules and ${PACKAGES.join(", ")}.`;
    problems.push(`${file}:${lineAt(source, start)}: imports "${name}". ${remedy}`);
  }
  return problems;
}

const banners = (source: string): string[] => source.match(/^\/\/ ---- .+ ----$/gm) ?? [];

/** One numbered region per section, in order, up to the file's own; and all that were before. */
function checkBanners({ name, file, source }: Section, before: Section | undefined): string[] {
  const ids = banners(source).flatMap((line) => /^\/\/ ---- (s\d\d) · /.exec(line)?.[1] ?? []);
  const wanted = SECTIONS.slice(0, SECTIONS.indexOf(name) + 1).map(short);
  const problems: string[] = [];
  if (ids.join() !== wanted.join()) {
    const form = `each once, in order, under lines like "// ---- ${short(name)} · Title ----"`;
    const found = ids.join(" ") || "missing";
    problems.push(`${file}: its regions are ${found}, they must be ${wanted.join(" ")}, ${form}.`);
  }
  const there = banners(source);
  for (const line of before ? banners(before.source) : []) {
    const found = there.indexOf(line);
    if (found !== -1) there.splice(0, found + 1);
    else problems.push(`${file}: "${line}" of ${before?.file} is gone, or not in order.`);
  }
  return problems;
}
