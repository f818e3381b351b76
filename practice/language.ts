/** The language of the tools: the one of `--lang`, else that of the machine, else English. */

import { LANGUAGE_NAMES, LANGUAGES, type LanguageCode } from "../sessions/names.ts";
import { TEXTS, type Texts } from "./texts.ts";
import { UserError } from "./world.ts";

/** Node knows the language where the shell does not name it, as on Windows. */
export function machineLanguage(env = process.env): LanguageCode {
  const { LC_ALL, LC_MESSAGES, LANG } = env;
  const locale = LC_ALL || LC_MESSAGES || LANG || new Intl.NumberFormat().resolvedOptions().locale;
  const [code = ""] = /^[a-z]+/i.exec(locale) ?? [];
  return LANGUAGES.find((language) => language === code.toLowerCase()) ?? "en";
}

/** The language that `--lang zh` or `--lang=zh` on a command line names, if there is such an option. */
export function chosenLanguage(words: string[]): LanguageCode | undefined {
  const place = words.findLastIndex((word) => /^--lang(?:=|$)/.test(word));
  if (place < 0) return undefined;
  const [, given = words[place + 1] ?? ""] = /=(.*)$/.exec(words[place] ?? "") ?? [];
  const language = LANGUAGES.find((known) => known === given.toLowerCase());
  if (language) return language;
  const { start, comma } = TEXTS[machineLanguage()];
  throw new UserError(start.noLanguage(given, Object.keys(LANGUAGE_NAMES).join(comma)));
}

/** The texts for a command line. */
export function textsFor(words: string[]): Texts {
  return TEXTS[chosenLanguage(words) ?? machineLanguage()];
}
