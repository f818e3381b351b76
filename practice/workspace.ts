/** The copy of the workspace in which practice works, so that the original stays as it is. */

import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { LANGUAGES, type LanguageCode } from "../sessions/names.ts";
import { ROOT } from "./world.ts";

/** Makes the copy if there is none; `fresh` makes it again. */
export function copyWorkspace(language: LanguageCode, fresh: boolean): void {
  const from = join(ROOT, "workspace");
  const copy = join(ROOT, ".practice", "workspace");
  if (fresh) rmSync(copy, { recursive: true, force: true });
  if (!existsSync(copy)) {
    mkdirSync(copy, { recursive: true });
    const filter = (path: string) => basename(path) !== ".state";
    if (existsSync(from)) cpSync(from, copy, { recursive: true, filter });
  }
  translateWorkspace(copy, language);
}

/**
 * Gives the files of a workspace that have a Chinese and a Japanese version in this language. One
 * that somebody has changed or removed stays as it is.
 */
export function translateWorkspace(workspace: string, language: LanguageCode): void {
  const names = readdirSync(folderOf("zh"), { recursive: true, encoding: "utf8" });
  for (const name of names) {
    const file = join(workspace, name);
    const versions = LANGUAGES.map((one) => readIfThere(join(folderOf(one), name)));
    const wanted = versions[LANGUAGES.indexOf(language)];
    const current = readIfThere(file);
    if (current === undefined || wanted === undefined || !versions.includes(current)) continue;
    if (current !== wanted) writeFileSync(file, wanted);
  }
}

/** Where the files of the workspace are in a language: Chinese and Japanese have only some. */
function folderOf(language: LanguageCode): string {
  return language === "en"
    ? join(ROOT, "workspace")
    : join(ROOT, "practice", "workspace", language);
}

function readIfThere(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined; // not there, or a folder
  }
}
