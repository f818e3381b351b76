// npm run translate: writes the Chinese and Japanese sections from the English ones and code.po.
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import {
  type Entries,
  finished,
  isPrinted,
  lagging,
  parseCatalogue,
  stamp,
  titleOf,
  updateCatalogue,
} from "./catalogue.ts";
import { codeLines, lineAt, parse } from "./code.ts";
import { findMessages, type Message } from "./messages.ts";
import {
  claimedSections,
  type Language,
  messageOf,
  readLanguages,
  sectionPath,
  short,
  start,
  textOf,
} from "./sections.ts";

import { textNodes } from "./texts.ts";

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
  for (const piece of pieces) {
    if (piece.start < at || piece.end > to) continue;
    result += source.slice(at, piece.start) + piece.text;
    at = piece.end;
  }
  return result + source.slice(at, to);
}

/** The code alone: without comments, and with nothing in the terminal texts. */
function skeleton(source: string, file: string): string {
  const texts = textNodes(parse(source, file).program);
  const pieces = texts.map((node) => ({ start: node.start, end: node.end, text: '""' }));
  return codeLines(splice(source, pieces), file).join("\n");
}

/** An English section, and what is to be translated in it. */
export type Source = { name: string; text: string; messages: Message[] };

export function readSource(name: string, text: string): Source {
  return { name, text, messages: findMessages(text, sectionPath("en", name)) };
}

export const readSources = (root: string): Source[] =>
  claimedSections(root).map((name) => readSource(name, textOf(root, sectionPath("en", name))));

/** By their English, the translations of a language. */
export interface Translations {
  finished: Map<string, string>;
  /**
   * For sections whose comments nobody claims: those that comments had before the English changed.
   * What of them can't be written where it would stand now is left out, and is no problem.
   */
  older?: Map<string, string>;
}

/**
 * A section with the translations in it. What has none, or one that can't stand there, stays
 * English; the latter is a problem.
 */
export function translateSource(source: Source, code: string, translations: Translations) {
  const { text, messages } = source;
  const file = sectionPath(code, source.name);
  const problems: string[] = [];
  const pieces: Piece[] = [];
  // From the end, since what stands inside of another has the later start, and is needed there.
  for (const message of messages.toReversed()) {
    try {
      const written = writeMessage(message, text, pieces, translations);
      if (written) pieces.unshift(written);
    } catch (error) {
      const entry = `${titleOf(message.id)} (line ${lineAt(text, message.start)} in English)`;
      problems.push(`sessions/${code}/code.po: ${entry}: ${messageOf(error)}.`);
    }
  }
  const translated = splice(text, pieces);
  if (translated !== text && skeleton(translated, file) !== skeleton(text, file)) {
    problems.push(`${file}: the code is not that of the English file.`);
  }
  return { text: translated, problems };
}

/** A message in the other language, undefined if it stays English. Throws if it can't stand there. */
function writeMessage(
  message: Message,
  text: string,
  pieces: Piece[],
  translations: Translations,
): Piece | undefined {
  const older = message.isPrinted ? undefined : translations.older;
  const translation = older?.get(message.id) ?? translations.finished.get(message.id);
  if (translation === undefined) return undefined;
  const part = (from: number, to: number) => splice(text, pieces, from, to);
  try {
    return { start: message.start, end: message.end, text: message.write(translation, part) };
  } catch (error) {
    if (older) return undefined; // it may lag behind, so nobody has to correct it now
    throw error;
  }
}

/** What is written into a section, by whether its comments are claimed. */
export function translationsFor(live: Entries, language: Language | undefined, name: string) {
  const isClaimed = language?.comments.includes(short(name)) ?? false;
  return { finished: finished(live), older: isClaimed ? undefined : lagging(live) };
}

/** One language: its catalogue first, then its sections. Says what is left to do. */
export function translate(root: string, code: string, sources: Source[]): string[] {
  const po = `sessions/${code}/code.po`;
  const catalogue = updateCatalogue(textOf(root, po), code, sources);
  write(root, po, catalogue);
  const { live, obsolete } = parseCatalogue(catalogue);
  const language = readLanguages(root).get(code);
  const problems = sources.flatMap((source) => {
    const made = translateSource(source, code, translationsFor(live, language, source.name));
    write(root, sectionPath(code, source.name), made.text);
    return made.problems;
  });
  const done = finished(live);
  const left = [...live.values()].filter(({ msgid }) => !done.has(msgid));
  const printed = left.filter(isPrinted).length;
  const state = `${live.size} messages, ${left.length} to translate, ${printed} of them printed`;
  return [`${po}: ${state}; ${obsolete.size} obsolete`, ...problems];
}

/** Writes a file if it is new or has changed, so that its time says when that was. */
function write(root: string, file: string, text: string): void {
  if (textOf(root, file) === text) return;
  mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
  writeFileSync(path.join(root, file), text);
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
