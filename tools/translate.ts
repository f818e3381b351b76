// npm run translate: writes the Chinese and Japanese sections from the English ones and code.po.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { finished, parseCatalogue, updateCatalogue } from "./catalogue.ts";
import { readSource, type Source, translateSource } from "./messages.ts";
import {
  existingSections,
  isMain,
  ROOT,
  readLanguages,
  sectionPath,
  short,
  start,
} from "./sections.ts";

const USAGE = `npm run translate                 brings sessions/zh and sessions/ja up to date
npm run translate zh              only the Chinese files
npm run translate -- --stamp zh s01_agent_loop.md
                                  says that this lesson follows the English one again`;

const read = (file: string) => (existsSync(file) ? readFileSync(file, "utf8") : "");

/** The finished English sections. One that is being written would keep translators busy. */
export function readSources(root: string): Source[] {
  const claimed = readLanguages(root).get("en")?.sections ?? [];
  const names = existingSections(root, "en").filter((name) => claimed.includes(short(name)));
  return names.map((name) => {
    const file = sectionPath("en", name);
    return readSource(read(path.join(root, file)), file);
  });
}

/** One language: its catalogue first, then its sections. Says what is left to do. */
export function translate(root: string, language: string, sources: Source[]): string[] {
  const file = `sessions/${language}/code.po`;
  const write = (name: string, text: string) => {
    if (read(path.join(root, name)) !== text) writeFileSync(path.join(root, name), text);
  };
  mkdirSync(path.join(root, path.dirname(file)), { recursive: true });
  const text = updateCatalogue(read(path.join(root, file)), language, sources);
  write(file, text);
  const catalogue = parseCatalogue(text);
  const translations = finished(catalogue);
  const problems = sources.flatMap((source) => {
    const result = translateSource(source, translations);
    write(source.file.replace("/en/", `/${language}/`), result.text);
    return result.problems;
  });
  const { live, obsolete } = catalogue;
  const left = live.size - translations.size;
  return [
    `${file}: ${live.size} messages, ${left} to translate, ${obsolete.size} obsolete`,
    ...problems,
  ];
}

function main(): void {
  const options = { stamp: { type: "boolean" } } as const; // what parseArgs infers from
  const { positionals } = parseArgs({ options, allowPositionals: true });
  const languages = [...readLanguages(ROOT).keys()].filter((code) => code !== "en");
  const [only] = positionals;
  if (only !== undefined && !languages.includes(only)) throw new Error(USAGE);
  const sources = readSources(ROOT);
  const wanted = languages.filter((code) => code === (only ?? code));
  for (const language of wanted) console.log(translate(ROOT, language, sources).join("\n"));
}

if (isMain(import.meta.filename)) start(main);
