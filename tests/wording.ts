/** What the sections print, in each language, so that a case can ask for a text in all of them. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "../practice/world.ts";
import { LANGUAGES, type LanguageCode } from "../sessions/names.ts";
import { finished, parseCatalogue } from "../tools/catalogue.ts";
import type { SectionFile } from "./helper.ts";

/** By language, the translation of each text by its English. */
const TRANSLATIONS = new Map<LanguageCode, Map<string, string>>(
  LANGUAGES.filter((code) => code !== "en").map((code) => {
    const catalogue = readFileSync(join(ROOT, "sessions", code, "code.po"), "utf8");
    return [code, finished(parseCatalogue(catalogue).live)];
  }),
);

const escaped = (text: string) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

/**
 * An expression that finds a text in what a section prints. `english` is the text of the English
 * file, with `{name}` where the file has `${name}`. It stands for the value that is given for it, or
 * else for anything within a line. Throws if no section prints such a text, so that a case can't ask
 * for one that is gone.
 */
export function wording(
  { lang }: SectionFile,
  english: string,
  values: Record<string, string | number> = {},
): RegExp {
  const id = english.replaceAll("{", "${");
  for (const [code, translations] of TRANSLATIONS) {
    if (!translations.has(id)) throw new Error(`${code}/code.po does not have: ${id}`);
  }
  const text = TRANSLATIONS.get(lang)?.get(id) ?? id;
  const source = text.split(/(\$\{[^}]*\})/).map((piece) => {
    if (!piece.startsWith("${")) return escaped(piece);
    const value = values[piece.slice(2, -1)];
    return value === undefined ? ".*" : escaped(String(value));
  });
  return new RegExp(source.join(""), "g");
}

/** How often a section has printed a text. */
export const countOf = (printed: string, expression: RegExp) =>
  [...printed.matchAll(expression)].length;
