// npm run translate: writes the Chinese and Japanese sections from the English ones and code.po.
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import {
  finished,
  isPrinted,
  lagging,
  parseCatalogue,
  stamp,
  titleOf,
  updateCatalogue,
} from "./catalogue.ts";
import { codeLines, lineAt, parse } from "./code.ts";
import { findMessages, type Message, textNodes } from "./messages.ts";
import {
  claimedSections,
  messageOf,
  readLanguages,
  sectionPath,
  short,
  start,
  textOf,
} from "./sections.ts";

const USAGE = `npm run translate            brings sessions/zh and sessions/ja up to date
npm run translate zh         only sessions/zh
npm run translate -- --stamp zh s01_agent_loop.md
                             says that this lesson follows the English one (all: without a name)`;

/** A piece of a source, and what takes its place. */
type Piece = { start: number; end: number; text: string };

/** The source from one offset to another with the pieces in it; of nested ones the outer. */
function splice(source: string, pieces: Piece[], from = 0, to = source.length): string {
  let result = "";
  let at = from;
  for (const { start, end, text } of pieces) {
    if (start < at || end > to) continue;
    result += source.slice(at, start) + text;
    at = end;
  }
  return result + source.slice(at, to);
}

/** The code alone: without comments, and with nothing in the terminal texts. */
function skeleton(source: string, file: string): string {
  const texts = textNodes(parse(source, file).program);
  const pieces = texts.map(({ start, end }) => ({ start, end, text: '""' }));
  return codeLines(splice(source, pieces), file).join("\n");
}

export type Source = { name: string; text: string; messages: Message[] };

export function readSource(name: string, text: string): Source {
  return { name, text, messages: findMessages(text, sectionPath("en", name)) };
}

export const readSources = (root: string): Source[] =>
  claimedSections(root).map((name) => readSource(name, textOf(root, sectionPath("en", name))));

/**
 * A section with the translations in it. What has none, or a wrong one, stays English; a wrong one
 * is a problem. `older` is given for sections whose comments nobody claims: they take their comments
 * from there, and what can't be written where they stand now simply stays English.
 */
export function translateSource(
  source: Source,
  code: string,
  translations: Map<string, string>,
  older?: Map<string, string>,
) {
  const { name, text, messages } = source;
  const file = sectionPath(code, name);
  const problems: string[] = [];
  const pieces: Piece[] = [];
  // From the end, since what stands inside of another has the later start, and is needed there.
  for (const { start, end, id, isPrinted: printed, write } of messages.toReversed()) {
    const mayLag = older !== undefined && !printed;
    const translation = (mayLag ? older.get(id) : undefined) ?? translations.get(id);
    if (translation === undefined) continue;
    try {
      const written = write(translation, (from, to) => splice(text, pieces, from, to));
      pieces.unshift({ start, end, text: written });
    } catch (error) {
      if (mayLag) continue;
      const entry = `${titleOf(id)} (line ${lineAt(text, start)} in English)`;
      problems.push(`sessions/${code}/code.po: ${entry}: ${messageOf(error)}.`);
    }
  }
  const translated = splice(text, pieces);
  if (translated !== text && skeleton(translated, file) !== skeleton(text, file)) {
    problems.push(`${file}: the code is not that of the English file.`);
  }
  return { text: translated, problems };
}

/** One language: its catalogue first, then its sections. Says what is left to do. */
export function translate(root: string, code: string, sources: Source[]): string[] {
  const po = `sessions/${code}/code.po`;
  const write = (file: string, text: string) => {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    if (textOf(root, file) !== text) writeFileSync(path.join(root, file), text);
  };
  const text = updateCatalogue(textOf(root, po), code, sources);
  write(po, text);
  const { live, obsolete } = parseCatalogue(text);
  const translations = finished(live);
  const claimed = readLanguages(root).get(code)?.comments ?? [];
  const problems = sources.flatMap((source) => {
    const made = claimed.includes(short(source.name))
      ? translateSource(source, code, translations)
      : translateSource(source, code, translations, lagging(live));
    write(sectionPath(code, source.name), made.text);
    return made.problems;
  });
  const left = [...live.values()].filter(({ msgid }) => !translations.has(msgid));
  const printed = left.filter(isPrinted).length;
  const state = `${live.size} messages, ${left.length} to translate, ${printed} of them printed`;
  return [`${po}: ${state}; ${obsolete.size} obsolete`, ...problems];
}

function main(root: string, args: string[]): void {
  const options = { stamp: { type: "boolean" } } as const; // what parseArgs infers from
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const languages = [...readLanguages(root).keys()].filter((code) => code !== "en");
  const [only, document] = positionals;
  if (only ? !languages.includes(only) : values.stamp) throw new Error(USAGE);
  const sources = readSources(root);
  for (const code of languages.filter((one) => one === (only ?? one))) {
    const said = values.stamp ? stamp(root, code, document) : translate(root, code, sources);
    console.log(said.join("\n"));
  }
}

await start(import.meta.filename, main);
