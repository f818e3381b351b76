/** Which section in which language `npm start` runs: from its words, or by asking. */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { createInterface } from "node:readline/promises";
import { LANGUAGE_NAMES, LANGUAGES, type LanguageCode, SECTIONS } from "../sessions/names.ts";
import { suspendWholeJob } from "./job-control.ts";
import { chosenLanguage, machineLanguage } from "./language.ts";
import { TEXTS } from "./texts.ts";
import { ROOT, UserError } from "./world.ts";

export interface Choice {
  section: string;
  language: LanguageCode;
}

/** The choice of these words, or of the person in front of the terminal, who may leave. */
export async function choose(wanted: string | undefined, args: string[]) {
  const lang = chosenLanguage(args);
  const isInteractive = process.stdin.isTTY && process.stdout.isTTY && !process.env.CI;
  if (!wanted && isInteractive) return await askPerson(lang);
  const language = lang ?? machineLanguage();
  return { section: findSection(wanted ?? "s01", language), language };
}

/** The sections that exist in a language, in order. */
function sectionsOf(language: LanguageCode): string[] {
  const folder = join(ROOT, "sessions", language);
  const files = existsSync(folder) ? readdirSync(folder) : [];
  const names = files.filter((name) => /^s\d\d_\w+\.ts$/.test(name));
  return names.map((name) => basename(name, ".ts")).sort();
}

/** "2", "s2", "s02" and "s02_tool_use" all mean section 2. */
function findSection(wanted: string, language: LanguageCode): string {
  const { start } = TEXTS[language];
  const number = /^s?(\d{1,2})(?:_\w+)?$/i.exec(wanted)?.[1]?.padStart(2, "0");
  const name = SECTIONS.find((known) => known.startsWith(`s${number}`));
  if (!number || !name) throw new UserError(start.noSection(wanted));
  const there = sectionsOf(language);
  const section = there.find((known) => known.startsWith(`s${number}`));
  if (section) return section;
  const others = LANGUAGES.filter((other) => sectionsOf(other).includes(name));
  throw new UserError(start.notThere(`s${number}`, LANGUAGE_NAMES[language], others, there));
}

type Ask = (question: string) => Promise<string>;

/** A small menu. Enter takes the first entry; Ctrl+C and Ctrl+D leave and give undefined. */
async function askPerson(lang: LanguageCode | undefined): Promise<Choice | undefined> {
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  suspendWholeJob(terminal);
  const leave = new AbortController();
  terminal.once("SIGINT", () => leave.abort());
  terminal.once("close", () => leave.abort());
  const ask: Ask = async (question) =>
    (await terminal.question(question, { signal: leave.signal })).trim();
  try {
    const language = lang ?? (await askLanguage(ask));
    return { section: await askSection(language, ask), language };
  } catch (error) {
    if (!leave.signal.aborted) throw error;
    console.log();
    return undefined;
  } finally {
    terminal.close();
  }
}

/** Asks until the answer makes sense: `read` throws a UserError if it does not. */
async function askUntil<T>(ask: Ask, question: string, read: (given: string) => T): Promise<T> {
  for (;;) {
    const given = await ask(question);
    try {
      return read(given);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      console.log(error.message);
    }
  }
}

/** Offers the languages that have sections, the one of this machine first. */
async function askLanguage(ask: Ask): Promise<LanguageCode> {
  const machine = machineLanguage();
  const there = LANGUAGES.filter((language) => sectionsOf(language).length > 0);
  there.sort((a, b) => Number(b === machine) - Number(a === machine));
  const [first = "en"] = there;
  if (there.length < 2) return first;
  const { start, comma } = TEXTS[first];
  const names = there.map((language) => `${language} ${LANGUAGE_NAMES[language]}`).join(comma);
  return await askUntil(ask, start.askLanguage(names, first), (given) => {
    const language = there.find((known) => known === (given.toLowerCase() || first));
    if (language) return language;
    throw new UserError(start.noLanguage(given, there.join(comma)));
  });
}

/** The title of a section's lesson, or words from the section's name if there is no lesson yet. */
function titleOf(section: string, language: LanguageCode): string {
  const lesson = join(ROOT, "sessions", language, `${section}.md`);
  const text = existsSync(lesson) ? readFileSync(lesson, "utf8") : "";
  const [, title] = /^# s\d\d · (.+)$/m.exec(text) ?? [];
  return title ?? section.slice(4).replaceAll("_", " ");
}

async function askSection(language: LanguageCode, ask: Ask): Promise<string> {
  const { start } = TEXTS[language];
  const sections = sectionsOf(language);
  for (const section of sections)
    console.log(`  ${section.slice(0, 3)}  ${titleOf(section, language)}`);
  const numbers = SECTIONS.map((name) => name.slice(0, 3));
  const missing = numbers.filter((number) => !sections.some((name) => name.startsWith(number)));
  if (missing.length > 0) console.log(`  ${start.missing(missing.join(" "))}`);
  const first = sections[0]?.slice(0, 3) ?? "s01";
  return await askUntil(ask, start.askSection(first), (given) =>
    findSection(given || first, language),
  );
}
