/**
 * `npm start [-- s02] [--lang zh] [--fresh]` runs a section of the tutorial. Without a key it runs
 * in the practice world: the section uses the real SDK and the real wire format, but a practice
 * model answers.
 */

import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { constants } from "node:os";
import { basename, join } from "node:path";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import { parse } from "dotenv";
import { LANGUAGE_NAMES, SECTIONS } from "../sessions/names.ts";
import { isAlive, ROOT, readWorld, startWorld, UserError } from "./world.ts";

/** What each language calls itself, by its code. People may type any code. */
const LANGUAGES: Record<string, string> = LANGUAGE_NAMES;

/** The key of .env.example. Whoever copied the file and did not fill it in has no key. */
const PLACEHOLDER = "sk-ant-your-key-here";

const HELP = `npm start                     choose a section
npm start -- s02              run section 2
npm start -- s02 --lang zh    the same, in Chinese (ja: Japanese)
npm start -- s02 --fresh      with a new copy of the workspace, for practice without a key`;

interface Choice {
  section: string;
  language: string;
}

async function main(): Promise<number> {
  const { values, positionals } = readArguments();
  if (values.help) {
    console.log(HELP);
    return 0;
  }
  const choice = await choose(positionals[0], values.lang);
  if (!choice) return 0;
  const file = join(ROOT, "sessions", choice.language, `${choice.section}.ts`);
  if (hasKey()) {
    if (values.fresh) console.log("(--fresh is for practice without a key: nothing was renewed.)");
    return await run(file, {});
  }
  copyWorkspace(values.fresh ?? false);
  const short = choice.section.slice(0, 3);
  const world = await startWorld(`${short} (${choice.language})`, Number(short.slice(1)));
  console.log("Offline practice: a stand-in answers by fixed rules, no real model, no cost.");
  console.log("For a real model, copy .env.example to .env and put your key into it.");
  if (world.telegram) console.log("Be alice in a second terminal: npm run phone -- telegram alice");
  console.log();
  try {
    return await run(file, world.settings);
  } finally {
    await world.stop();
  }
}

function readArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        lang: { type: "string" },
        fresh: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UserError(`${error instanceof Error ? error.message : error}\n\n${HELP}`);
  }
}

// ---- Which section ----

/** The sections that exist in a language, in order. */
function sectionsOf(language: string): string[] {
  const folder = join(ROOT, "sessions", language);
  const files = existsSync(folder) ? readdirSync(folder) : [];
  const names = files.filter((name) => /^s\d\d_\w+\.ts$/.test(name));
  return names.map((name) => basename(name, ".ts")).sort();
}

async function choose(wanted?: string, lang?: string): Promise<Choice | undefined> {
  if (lang && !LANGUAGES[lang]) {
    throw new UserError(
      `There is no language "${lang}"; there are: ${Object.keys(LANGUAGES).join(", ")}.`,
    );
  }
  const isInteractive = process.stdin.isTTY && process.stdout.isTTY && !process.env.CI;
  if (wanted || !isInteractive) {
    const language = lang ?? "en";
    return { section: findSection(wanted ?? "s01", language), language };
  }
  return await askPerson(lang);
}

/** "2", "s2", "s02" and "s02_tool_use" all mean section 2. */
function findSection(wanted: string, language: string): string {
  const number = /^s?(\d{1,2})(?:_\w+)?$/i.exec(wanted)?.[1]?.padStart(2, "0");
  const name = SECTIONS.find((known) => known.startsWith(`s${number}`));
  if (!number || !name) {
    throw new UserError(`There is no section "${wanted}"; there are s01 to s10.`);
  }
  const there = sectionsOf(language);
  const section = there.find((known) => known.startsWith(`s${number}`));
  if (section) return section;
  const others = Object.keys(LANGUAGES).filter((other) => sectionsOf(other).includes(name));
  const where = others.length > 0 ? `, but it is in ${others.join(" and ")}` : "";
  const rest = there.length > 0 ? ` There are: ${there.join(", ")}.` : "";
  throw new UserError(`s${number} is not there yet in ${LANGUAGES[language]}${where}.${rest}`);
}

/** A small menu. Enter takes the first entry; Ctrl+C and Ctrl+D leave and give undefined. */
async function askPerson(lang?: string): Promise<Choice | undefined> {
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const leave = new AbortController();
  terminal.once("SIGINT", () => leave.abort());
  terminal.once("close", () => leave.abort());
  try {
    const language = lang ?? (await askLanguage(availableLanguages(), ask));
    const sections = sectionsOf(language);
    printSections(sections);
    const first = sections[0]?.slice(0, 3) ?? "s01";
    const wanted = await ask(`Section [${first}]: `);
    return { section: findSection(wanted || first, language), language };
  } catch (error) {
    if (!leave.signal.aborted) throw error;
    console.log();
    return undefined;
  } finally {
    terminal.close();
  }

  async function ask(question: string): Promise<string> {
    return (await terminal.question(question, { signal: leave.signal })).trim();
  }
}

/** The languages that have sections, the one of this machine first. */
function availableLanguages(): string[] {
  const available = Object.keys(LANGUAGES).filter((name) => sectionsOf(name).length > 0);
  return available.sort((a, b) => Number(isMachineLanguage(b)) - Number(isMachineLanguage(a)));
}

function printSections(sections: string[]): void {
  for (const section of sections) {
    console.log(`  ${section.replace("_", "  ").replaceAll("_", " ")}`);
  }
  const numbers = SECTIONS.map((name) => name.slice(0, 3));
  const missing = numbers.filter((number) => !sections.some((name) => name.startsWith(number)));
  if (missing.length > 0) console.log(`  not there yet: ${missing.join(" ")}`);
}

/** Node knows the language where the shell does not name it, as on Windows. */
function isMachineLanguage(language: string): boolean {
  const { LC_ALL, LC_MESSAGES, LANG } = process.env;
  const locale = LC_ALL || LC_MESSAGES || LANG || new Intl.NumberFormat().resolvedOptions().locale;
  return new RegExp(`^${language}(?![a-z])`, "i").test(locale);
}

async function askLanguage(
  there: string[],
  ask: (question: string) => Promise<string>,
): Promise<string> {
  const first = there[0] ?? "en";
  if (there.length < 2) return first;
  const names = there.map((language) => `${language} ${LANGUAGES[language]}`).join(", ");
  const wanted = (await ask(`Language (${names}) [${first}]: `)).toLowerCase() || first;
  if (there.includes(wanted)) return wanted;
  throw new UserError(`There is no language "${wanted}" here; there are: ${there.join(", ")}.`);
}

// ---- The section as a child ----

/** Whether there is a key. As in the sections, the environment beats .env, and empty is unset. */
function hasKey(): boolean {
  const path = join(ROOT, ".env");
  const file = existsSync(path) ? parse(readFileSync(path)) : {};
  const key = process.env.ANTHROPIC_API_KEY ?? file.ANTHROPIC_API_KEY ?? "";
  return key.trim() !== "" && key.trim() !== PLACEHOLDER;
}

/**
 * Makes the copy in which practice works, so that what the agent does leaves the original alone.
 */
function copyWorkspace(fresh: boolean): void {
  const from = join(ROOT, "workspace");
  const copy = join(ROOT, ".practice", "workspace");
  const other = readWorld();
  if (fresh && other && isAlive(other.pid)) {
    throw new UserError(
      `${other.user} (process ${other.pid}) uses the practice copy: leave it first.`,
    );
  }
  if (fresh) rmSync(copy, { recursive: true, force: true });
  if (existsSync(copy)) return;
  mkdirSync(copy, { recursive: true });
  if (!existsSync(from)) return;
  cpSync(from, copy, { recursive: true, filter: (path) => basename(path) !== ".state" });
}

/** Runs a section as a child process and gives its exit code. */
function run(file: string, settings: Record<string, string>): Promise<number> {
  const child = spawn(process.execPath, ["--import", "tsx", file], {
    cwd: ROOT,
    stdio: "inherit",
    env: { ...process.env, ...settings },
  });
  // Ctrl+C goes to all processes of the terminal, so the child has received it and decides what to
  // do. The other signals come to this process alone and are passed on.
  process.on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => child.kill(signal));
  }
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      resolve(code ?? 128 + (signal ? constants.signals[signal] : 0));
    });
  });
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
