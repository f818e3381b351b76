// What `check` asks of the section files: they grow, within a budget, and stand alone.
import { codeLines, commentShare, kept, lineAt, parse } from "./code.ts";
import { over, Report } from "./report.ts";
import type { Language, Languages } from "./sections.ts";
import { exists, longName, messageOf, read, SECTIONS, sectionPath, short } from "./sections.ts";
import { checkStops } from "./stops.ts";

const PACKAGES = ["@anthropic-ai/sdk", "cron-parser", "dotenv", "grammy", "undici", "ws", "yaml"];
const MAY_IMPORT = new RegExp(`^(node:|(${PACKAGES.join("|")})(/|$))`);
const TOTAL_LIMITS: Record<string, number> = { s03: 1130, s05: 2750, s07: 3700, s10: 4600 };
const ADDED_LIMITS: Record<string, number> = { s01: 145, s03: 590, s04: 1170 };
const ADDED_LIMIT = 530;
const COMMENTS_LIMIT = 0.25;
const KEPT_LIMIT = 0.98;
const KEPT_MEAN_LIMIT = 0.99;

/** Rounded down, so that nothing that fails looks as if it had passed. */
const percent = (share: number) => `${(Math.floor(share * 1000 + 1e-6) / 10).toFixed(1)}%`;

/** The claims that have a file of their own, with its extension. */
const FILES = [
  ["code", "ts"],
  ["lessons", "md"],
] as const;

/** Claimed and missing is a problem, there and not claimed is said. */
export function checkClaims(root: string, languages: Languages, report = new Report()): Report {
  for (const [code, language] of languages) {
    for (const [claim, extension] of FILES) {
      const claimed = language[claim];
      for (const id of new Set([...SECTIONS.map(short), ...claimed])) {
        const file = sectionPath(code, longName(id) ?? id, extension);
        checkClaim(file, exists(root, file), claimed.includes(id), report);
      }
    }
  }
  return report;
}

function checkClaim(file: string, isThere: boolean, isClaimed: boolean, report: Report): void {
  if (isClaimed && !isThere) {
    const remedy = "Write it, or take the claim away.";
    report.problems.push(`${file}: missing, but tools/languages.json claims it. ${remedy}`);
  }
  if (isThere && !isClaimed) {
    report.notes.push(`${file}: tools/languages.json doesn't claim it yet.`);
  }
}

interface Section {
  id: string;
  file: string;
  source: string;
  code: string[];
  /** The section before; undefined if it is not there, so that nothing can be compared with it. */
  before?: Section;
  /** How much of the section before is kept. */
  step?: ReturnType<typeof kept>;
}

/** The rules for the English files; the other languages are made from them. */
export function checkSections(root: string, language?: Language, report = new Report()): Report {
  const rules = [checkImports, checkComments, checkBanners, checkStopsOf, checkBudget, checkKept];
  const sections = new Map<string, Section>();
  for (const [i, name] of SECTIONS.entries()) {
    const file = sectionPath("en", name);
    if (!exists(root, file)) continue;
    const source = read(root, file);
    const before = sections.get(SECTIONS[i - 1] ?? "");
    const sink = report.sink(language, "code", name);
    try {
      const code = codeLines(source, file);
      const step = before && kept(before.code, code);
      const section = { id: short(name), file, source, code, before, step };
      sections.set(name, section);
      sink.push(...rules.flatMap((rule) => rule(section, report.facts)));
    } catch (error) {
      sink.push(messageOf(error)); // it doesn't parse
    }
  }
  const shares = [...sections.values()].map(({ step }) => step?.share);
  const steps = shares.filter((share) => share !== undefined);
  checkMean(steps, report);
  return report;
}

/** The average counts when all ten are there. */
function checkMean(steps: number[], { problems, facts }: Report): void {
  if (steps.length < SECTIONS.length - 1) return;
  const mean = steps.reduce((sum, share) => sum + share, 0) / steps.length;
  facts.push(`kept on average: ${percent(mean)}`);
  if (mean >= KEPT_MEAN_LIMIT) return;
  const remedy = "Give the earlier sections the shape that the later ones need.";
  problems.push(`sessions/en: ${percent(mean)} kept on average, 99% is the rule. ${remedy}`);
}

function checkKept({ id, file, before, step }: Section, facts: string[]): string[] {
  if (!before || !step) return [];
  const said = `${before.id} → ${id}: ${percent(step.share)} kept`;
  const list = step.removed.map((line) => `\n    - ${line}`).join("");
  facts.push(said + list);
  const remedy = `Give ${before.file} the shape that these lines need later:${list}`;
  return step.share < KEPT_LIMIT ? [`${file}: ${said}, 98% is the rule. ${remedy}`] : [];
}

function checkBudget({ id, file, source, code, before }: Section, facts: string[]): string[] {
  const lines = code.length;
  const added = lines - (before?.code.length ?? 0);
  const comments = percent(commentShare(source, file));
  facts.push(`${id}: ${lines} code lines (+${added}), ${comments} comments`);
  const most = before || id === "s01" ? (ADDED_LIMITS[id] ?? ADDED_LIMIT) : undefined;
  const remedy = "Fewer options, shorter functions, or a library; don't squeeze.";
  return [
    ...over(lines, `${file}: has ${lines} code lines`, TOTAL_LIMITS[id], remedy),
    ...over(added, `${file}: adds ${added} code lines`, most, remedy),
  ];
}

function checkComments({ file, source }: Section): string[] {
  const wide = source
    .split("\n")
    .flatMap((line, i) => (/^\s*(\/[/*]|\*)/.test(line) && line.length > 100 ? [i + 1] : []))
    .map((line) => `${file}:${line}: a comment of more than 100 columns. Break the line.`);
  const share = Math.round(commentShare(source, file) * 1000) / 1000;
  if (share <= COMMENTS_LIMIT) return wide;
  const remedy = "Keep the comments that say why.";
  const problem = `${file}: ${percent(share)} of the lines are comments, 25% is the limit. ${remedy}`;
  return [problem, ...wide];
}

/** A section stands alone: npm packages of the list, and what Node brings. */
function checkImports({ file, source }: Section): string[] {
  const { staticImports, staticExports, dynamicImports } = parse(source, file).module;
  const exports = staticExports.flatMap((one) => one.entries);
  return [...staticImports, ...exports, ...dynamicImports].flatMap(({ moduleRequest }) => {
    if (!moduleRequest) return [];
    const { start, end } = moduleRequest;
    const name = source.slice(start, end).replace(/["'`]/g, "");
    const remedy = `A section imports only node: modules and ${PACKAGES.join(", ")}.`;
    const problem = `${file}:${lineAt(source, start)}: imports "${name}". ${remedy}`;
    return MAY_IMPORT.test(name) ? [] : [problem];
  });
}

const checkStopsOf = ({ id, file, source }: Section) => checkStops(file, source, id);

const banners = (source = ""): string[] => source.match(/^\/\/ ---- .+ ----$/gm) ?? [];

/** One numbered region per section, in order, up to the file's own; and all that were before. */
function checkBanners({ id, file, source, before }: Section): string[] {
  const there = banners(source);
  const ids = there.flatMap((line) => /^\/\/ ---- (s\d\d) · /.exec(line)?.[1] ?? []).join(" ");
  const wanted = SECTIONS.map(short)
    .filter((one) => one <= id)
    .join(" ");
  const form = `each once, in order, under lines like "// ---- ${id} · Title ----"`;
  const problem = `${file}: its regions are ${ids || "missing"}, they must be ${wanted}, ${form}.`;
  const problems = ids === wanted ? [] : [problem];
  for (const line of banners(before?.source)) {
    const found = there.indexOf(line);
    if (found !== -1) there.splice(0, found + 1);
    else problems.push(`${file}: "${line}" of ${before?.file} is gone, or not in order.`);
  }
  return problems;
}
