// What the translators keep: the catalogues, sessions/<language>/code.po, and beside them
// follows.json, which says which English text their lessons follow.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { type GetTextTranslation, po } from "gettext-parser";
import { parseMarkdown } from "./markdown.ts";
import type { Message } from "./messages.ts";
import { SECTIONS, sectionPath } from "./sections.ts";
import type { Source } from "./translate.ts";

/** The text of a file; "" if it isn't there. */
export function read(root: string, file: string): string {
  const full = path.join(root, file);
  return existsSync(full) ? readFileSync(full, "utf8") : "";
}

export type Entries = Map<string, GetTextTranslation>;

export const parseCatalogue = (text: string) => {
  const { translations, obsolete } = po.parse(text);
  const live: Entries = new Map(Object.entries(translations[""] ?? {}));
  live.delete(""); // the header
  return { live, obsolete: new Map(Object.entries(obsolete?.[""] ?? {})) satisfies Entries };
};

const isFuzzy = (entry: GetTextTranslation) => /\bfuzzy\b/.test(entry.comments?.flag ?? "");

/** How a problem names an entry. */
export const titleOf = (id: string) => JSON.stringify(id.split("\n", 1)[0]?.slice(0, 60));

/** What is wrong with an entry, "" if nothing is. */
export function flaw(entry: GetTextTranslation | undefined): string {
  if (!entry?.msgstr[0]) return "without a translation";
  if (isFuzzy(entry)) return "fuzzy (see that it fits the English, then take the flag away)";
  const meant = /^same$/m.test(entry.comments?.translator ?? "");
  return entry.msgstr[0] !== entry.msgid || meant
    ? ""
    : 'still English (if it should be, put a line "# same" above it)';
}

/** What is written into the files. */
export const finished = (live: Entries): Map<string, string> =>
  new Map(
    [...live].flatMap(([id, entry]) =>
      isFuzzy(entry) || !entry.msgstr[0] ? [] : [[id, entry.msgstr[0]]],
    ),
  );

const wordsOf = (text: string) => new Set(text.toLowerCase().match(/\p{L}+/gu));

/** The entry whose English is most like this one; undefined if none is much like it. */
function nearest(id: string, entries: Iterable<GetTextTranslation>) {
  const words = wordsOf(id);
  let best: GetTextTranslation | undefined;
  let most = 0.6; // below that it is of no help
  for (const entry of entries) {
    const others = wordsOf(entry.msgid);
    const common = [...words].filter((word) => others.has(word)).length;
    const share = (2 * common) / (words.size + others.size);
    if (share > most && entry.msgstr[0]) [best, most] = [entry, share];
  }
  return best;
}

/** The entry of a message: the one that it had, or a new one with the nearest translation. */
function entryFor({ id, note }: Message, place: string, known: Entries): GetTextTranslation {
  const old = known.get(id);
  const near = old ? undefined : nearest(id, known.values());
  const { translator, flag, previous } = old?.comments ?? {};
  const fuzzy = old ? { flag, ...(isFuzzy(old) && { previous }) } : {};
  const from = near && { flag: "fuzzy", previous: `msgid ${JSON.stringify(near.msgid)}` };
  const comments = { translator, reference: place, extracted: note, ...fuzzy, ...from };
  return { msgid: id, msgstr: (old ?? near)?.msgstr ?? [""], comments };
}

const HEADERS = {
  "Content-Type": "text/plain; charset=UTF-8",
  "Content-Transfer-Encoding": "8bit",
  "Plural-Forms": "nplurals=1; plural=0;",
};

/** The catalogue of these sections, in their order. No translation that was in it is lost. */
export function updateCatalogue(text: string, language: string, sources: Source[]): string {
  const table = po.parse(text);
  const { live, obsolete } = parseCatalogue(text);
  const known: Entries = new Map([...obsolete, ...live]);
  const next: Entries = new Map();
  for (const { name, messages } of sources) {
    for (const message of messages) {
      if (next.has(message.id)) continue;
      // Only the first section that has it, without a line, so that an edit changes few entries.
      next.set(message.id, entryFor(message, `${name}.ts`, known));
    }
  }
  const inUse = new Set([...next.values()].flatMap(({ msgid, msgstr }) => [msgid, msgstr[0]]));
  const gone = [...known].filter(
    ([id, { msgstr }]) => msgstr[0] && !inUse.has(id) && !inUse.has(msgstr[0]),
  );
  const header = table.translations[""]?.[""] ?? { msgid: "", msgstr: [""] };
  const headers = { ...HEADERS, Language: language, ...table.headers };
  const translations = { "": Object.fromEntries([["", header], ...next]) };
  const compiled = po.compile(
    { charset: "utf-8", headers, translations, obsolete: { "": Object.fromEntries(gone) } },
    { foldLength: 0 },
  );
  return compiled.toString("utf8").replace(/[ \t]+$/gm, "");
}

export const DOCUMENTS = ["README", "setup", ...SECTIONS];

export function documentPath(code: string, name: string): string {
  if (name !== "README") return sectionPath(code, name, "md");
  return code === "en" ? "README.md" : `README.${code}.md`;
}

/** A hash for each part of a document, by its heading. What sections print is recorded anew. */
function partHashes(markdown: string): Record<string, string> {
  const { lines, fences, headings } = parseMarkdown(markdown);
  for (const { line, info, body } of fences) {
    if (info !== "console") continue;
    for (const [i, said] of body.entries()) if (!/^(\$|\w+ >) \S/.test(said)) lines[line + i] = "";
  }
  const parts = headings.filter(({ level }) => level <= 2);
  const hashes = parts.map(({ text, line }, i) => {
    const next = parts[i + 1]?.line ?? lines.length + 1;
    const words = lines.slice(i === 0 ? 0 : line - 1, next - 1).filter((one) => one.trim());
    return [text, createHash("sha256").update(words.join("\n")).digest("hex").slice(0, 12)];
  });
  return Object.fromEntries(hashes);
}

const followsFile = (code: string) => `sessions/${code}/follows.json`;
const readFollows = (root: string, code: string): Record<string, Record<string, string>> =>
  JSON.parse(read(root, followsFile(code)) || "{}");

/** The parts in which English has changed since a translation was stamped. */
export function behind(root: string, code: string, name: string): string[] {
  const now = partHashes(read(root, documentPath("en", name)));
  const then = readFollows(root, code)[`${name}.md`] ?? {};
  return Object.keys({ ...now, ...then }).filter((part) => now[part] !== then[part]);
}

/** Says that a translated document, or all of them, follow the English as it is now. */
export function stamp(root: string, code: string, only?: string): string[] {
  const follows = readFollows(root, code);
  const wanted = DOCUMENTS.filter((name) => (only ?? `${name}.md`) === `${name}.md`);
  const found = wanted.filter((name) => read(root, documentPath(code, name)));
  if (found.length === 0) throw new Error(`${code}: there is no ${only ?? "document"} to stamp.`);
  for (const name of found)
    follows[`${name}.md`] = partHashes(read(root, documentPath("en", name)));
  writeFileSync(path.join(root, followsFile(code)), `${JSON.stringify(follows, null, 2)}\n`);
  return found.map((name) => `${documentPath(code, name)} follows ${documentPath("en", name)}`);
}
