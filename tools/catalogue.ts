// The catalogues, sessions/<language>/code.po: what is in them, and how they follow the sections.
import path from "node:path";
import { type GetTextTranslation, po } from "gettext-parser";
import type { Message, Source } from "./messages.ts";

/** Below this, the nearest old translation is of no help. */
const SIMILAR = 0.6;

export const isFuzzy = ({ comments }: GetTextTranslation) => /\bfuzzy\b/.test(comments?.flag ?? "");
/** A translator's comment "# same" says that the words are meant to be the English ones. */
export const isSame = ({ comments }: GetTextTranslation) =>
  /^same$/m.test(comments?.translator ?? "");

type Entries = Map<string, GetTextTranslation>;

export interface Catalogue {
  live: Entries;
  obsolete: Entries;
}

export function parseCatalogue(text: string): Catalogue {
  const { translations, obsolete } = po.parse(text);
  const { "": _header, ...live } = translations[""] ?? {};
  const entries = (record: Record<string, GetTextTranslation> = {}) =>
    new Map(Object.entries(record));
  return { live: entries(live), obsolete: entries(obsolete?.[""]) };
}

/** What is written into the files. */
export const finished = ({ live }: Catalogue): Map<string, string> =>
  new Map(
    [...live].flatMap(([id, entry]) => {
      const [translation = ""] = entry.msgstr;
      return translation && !isFuzzy(entry) ? [[id, translation] as const] : [];
    }),
  );

const wordsOf = (text: string) => new Set(text.toLowerCase().match(/\p{L}+/gu));

/** The entry whose English is most like this one; undefined if none is much like it. */
function nearest(id: string, entries: Iterable<GetTextTranslation>) {
  const words = wordsOf(id);
  let best: GetTextTranslation | undefined;
  let most = SIMILAR;
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
  "Project-Id-Version": "claw0",
  "MIME-Version": "1.0",
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
  for (const { file, messages } of sources) {
    for (const message of messages) {
      if (next.has(message.id)) continue;
      // Only the first section that has it, without a line, so that an edit changes few entries.
      next.set(message.id, entryFor(message, path.basename(file), known));
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
