// What the translators keep: the catalogues, sessions/<language>/code.po, and beside them
// follows.json, which says which English text their lessons follow.
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { type GetTextTranslation, po } from "gettext-parser";
import { parseMarkdown } from "./markdown.ts";
import { nearest, successors } from "./nearest.ts";
import { SECTIONS, sectionPath, textOf } from "./sections.ts";
import { PRINTED } from "./texts.ts";
import type { Source } from "./translate.ts";

export type Entries = Map<string, GetTextTranslation>;

/** The entries in use, and those that are not any more. */
export function parseCatalogue(text: string): { live: Entries; obsolete: Entries } {
  const { translations, obsolete } = po.parse(text);
  const live = new Map(Object.entries(translations[""] ?? {}));
  live.delete(""); // the header
  return { live, obsolete: new Map(Object.entries(obsolete?.[""] ?? {})) };
}

const isFuzzy = (entry: GetTextTranslation) => /\bfuzzy\b/.test(entry.comments?.flag ?? "");

/** How a problem names an entry. */
export const titleOf = (id: string) => JSON.stringify(id.split("\n", 1)[0]?.slice(0, 60));

/** What is wrong with an entry, "" if nothing is. */
export function flaw(entry: GetTextTranslation | undefined): string {
  if (!entry?.msgstr[0]) return "without a translation";
  if (isFuzzy(entry)) return "fuzzy (see that it fits the English, then take the flag away)";
  const meant = /^same$/m.test(entry.comments?.translator ?? "");
  if (entry.msgstr[0] !== entry.msgid || meant) return "";
  return 'still English (if it should be, put a line "# same" above it)';
}

export const isPrinted = (entry: GetTextTranslation) => entry.comments?.extracted === PRINTED;

const textsOf = (entries: GetTextTranslation[]) =>
  new Map(entries.flatMap(({ msgid, msgstr: [text] }) => (text ? [[msgid, text] as const] : [])));

/** By their English, the translations that are finished: neither empty nor fuzzy. */
export const finished = (live: Entries): Map<string, string> =>
  textsOf([...live.values()].filter((entry) => !isFuzzy(entry)));

/**
 * What is written into a section whose comments nobody claims: there a comment that has changed
 * keeps the translation that it had. Only for comments, because a printed text that says something
 * else than the English one would mislead whoever acts on it.
 */
export const lagging = (live: Entries): Map<string, string> =>
  textsOf([...live.values()].filter((entry) => !isPrinted(entry)));

/** The messages of all sections, each once. A comment with the words of a printed text is one. */
function messagesById(sources: Source[]): Map<string, { place: string; note: string }> {
  const found = new Map<string, { place: string; note: string }>();
  for (const { name, messages } of sources) {
    for (const { id, note } of messages) {
      // Only the first section that has it, without a line, so that an edit changes few entries.
      const place = found.get(id)?.place ?? `${name}.ts`;
      const strictest = note === PRINTED ? note : (found.get(id)?.note ?? note);
      found.set(id, { place, note: strictest });
    }
  }
  return found;
}

/**
 * For each new message the old English whose translation is a good start. A printed text may take
 * it from any other printed one, since nobody sees it before a translator has. A comment only takes
 * it from a comment that is gone, and not twice, because it may be shown as it is.
 */
function originsOf(wanted: ReturnType<typeof messagesById>, known: Entries): Map<string, string> {
  const fresh = [...wanted].filter(([id]) => !known.has(id));
  const ids = (ofPrinted: boolean) =>
    fresh.filter(([, { note }]) => (note === PRINTED) === ofPrinted).map(([id]) => id);
  const translated = [...known.values()].filter(({ msgstr }) => msgstr[0]);
  const printed = translated.filter(isPrinted).map(({ msgid }) => msgid);
  const comments = translated.filter((entry) => !isPrinted(entry)).map(({ msgid }) => msgid);
  const gone = comments.filter((id) => !wanted.has(id));
  return new Map([...nearest(ids(true), printed), ...successors(ids(false), gone)]);
}

/** The entry that a message had, with its present place and note. */
function sameEntry(old: GetTextTranslation, reference: string, extracted: string) {
  const { translator, flag, previous } = old.comments ?? {};
  const was = isFuzzy(old) ? previous : undefined;
  const comments = { translator, reference, extracted, flag, previous: was };
  return { msgid: old.msgid, msgstr: old.msgstr, comments };
}

/** The entry of a new message: empty, or fuzzy with the translation of its origin. */
function newEntry(msgid: string, reference: string, extracted: string, near?: GetTextTranslation) {
  if (!near) return { msgid, msgstr: [""], comments: { reference, extracted } };
  const previous = `msgid ${JSON.stringify(near.msgid)}`;
  return {
    msgid,
    msgstr: near.msgstr,
    comments: { reference, extracted, flag: "fuzzy", previous },
  };
}

const HEADERS = {
  "Content-Type": "text/plain; charset=UTF-8",
  "Content-Transfer-Encoding": "8bit",
  "Plural-Forms": "nplurals=1; plural=0;",
};

/** The catalogue of these sections, in their order. No translation that was in it is lost. */
export function updateCatalogue(text: string, language: string, sources: Source[]): string {
  const { translations, headers } = po.parse(text);
  const { live, obsolete } = parseCatalogue(text);
  const known: Entries = new Map([...obsolete, ...live]);
  const wanted = messagesById(sources);
  const origins = originsOf(wanted, known);
  const next: Entries = new Map();
  for (const [id, { place, note }] of wanted) {
    const old = known.get(id);
    const near = known.get(origins.get(id) ?? "");
    next.set(id, old ? sameEntry(old, place, note) : newEntry(id, place, note, near));
  }
  const inUse = new Set([...next.values()].flatMap(({ msgid, msgstr }) => [msgid, msgstr[0]]));
  const gone = [...known.values()].filter(
    ({ msgid, msgstr }) => msgstr[0] && !inUse.has(msgid) && !inUse.has(msgstr[0]),
  );
  const header = translations[""]?.[""] ?? { msgid: "", msgstr: [""] };
  const table = (entries: GetTextTranslation[]) => ({
    "": Object.fromEntries(entries.map((entry) => [entry.msgid, entry])),
  });
  const compiled = po.compile(
    {
      charset: "utf-8",
      headers: { ...HEADERS, Language: language, ...headers },
      translations: table([header, ...next.values()]),
      obsolete: table(gone),
    },
    { foldLength: 0 },
  );
  return compiled.toString("utf8").replace(/[ \t]+$/gm, "");
}

/** A hash for each part of a document, by its heading. What sections print is recorded anew. */
function partHashes(markdown: string): Record<string, string> {
  const { lines, fences, parts } = parseMarkdown(markdown);
  for (const { line, body } of fences.filter(({ info }) => info === "console")) {
    for (const [i, said] of body.entries()) if (!/^(\$|\w+ >) \S/.test(said)) lines[line + i] = "";
  }
  const hashes = parts.map(({ text, line, end }, i) => {
    const words = lines.slice(i === 0 ? 0 : line - 1, end).filter((one) => one.trim());
    return [text, createHash("sha256").update(words.join("\n")).digest("hex").slice(0, 12)];
  });
  return Object.fromEntries(hashes);
}

function documentPath(code: string, name: string): string {
  if (name !== "README") return sectionPath(code, name, "md");
  return code === "en" ? "README.md" : `README.${code}.md`;
}

const followsFile = (code: string) => `sessions/${code}/follows.json`;
const readFollows = (root: string, code: string): Record<string, Record<string, string>> =>
  JSON.parse(textOf(root, followsFile(code)) || "{}");

/** What is written in each language, and the parts in which English has changed since. */
export function documentsOf(root: string, code: string) {
  const follows = readFollows(root, code);
  return ["README", "setup", ...SECTIONS].map((name) => {
    const [file, original] = [documentPath(code, name), documentPath("en", name)];
    const hashes = partHashes(textOf(root, original));
    const then = follows[`${name}.md`] ?? {};
    const changed = Object.keys({ ...hashes, ...then }).filter((one) => hashes[one] !== then[one]);
    return { name, file, text: textOf(root, file), original, hashes, changed };
  });
}

/** Says that a translated document, or all of them, follow the English as it is now. */
export function stamp(root: string, code: string, only?: string): string[] {
  const documents = documentsOf(root, code).filter(({ text }) => text);
  const found = documents.filter(({ name }) => (only ?? `${name}.md`) === `${name}.md`);
  if (found.length === 0) throw new Error(`${code}: there is no ${only ?? "document"} to stamp.`);
  const stamped = Object.fromEntries(found.map(({ name, hashes }) => [`${name}.md`, hashes]));
  const follows = { ...readFollows(root, code), ...stamped };
  writeFileSync(path.join(root, followsFile(code)), `${JSON.stringify(follows, null, 2)}\n`);
  return found.map(({ file, original }) => `${file} follows ${original}`);
}
