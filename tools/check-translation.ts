// What `check` asks of the other languages: all is translated, and nothing is left behind.
import type { GetTextTranslation } from "gettext-parser";
import {
  documentsOf,
  type Entries,
  finished,
  flaw,
  isPrinted,
  parseCatalogue,
  titleOf,
} from "./catalogue.ts";
import { columns } from "./columns.ts";
import { describesRelease } from "./lessons.ts";
import { parseMarkdown } from "./markdown.ts";
import { Report } from "./report.ts";
import { type Language, readLanguages, SECTIONS, sectionPath, short, textOf } from "./sections.ts";
import { readSources, type Source, translateSource, translationsFor } from "./translate.ts";
import { isComment } from "./verbatim.ts";

type Document = ReturnType<typeof documentsOf>[number];

/** A language that is being checked. */
interface Edition {
  root: string;
  code: string;
  language: Language;
  /** The path of its catalogue, and what is in it. */
  po: string;
  live: Entries;
  obsolete: Entries;
}

export function checkTranslations(root: string, report = new Report()): Report {
  const sources = readSources(root);
  for (const [code, language] of readLanguages(root)) {
    const po = `sessions/${code}/code.po`;
    const edition = { root, code, language, po, ...parseCatalogue(textOf(root, po)) };
    for (const document of documentsOf(root, code)) checkOne(edition, document, report);
    for (const source of sources) {
      const text = textOf(root, sectionPath(code, source.name));
      if (text === "") continue; // if it should be there, checkClaims says so
      report.sink(language, "code", source.name).push(...checkSection(edition, source, text));
    }
    if (code === "en") continue;
    report.sink(language, "code", firstOf(language)).push(...checkObsolete(edition));
    const { size } = edition.live;
    report.facts.push(`${code}: ${finished(edition.live).size} of ${size} messages translated`);
  }
  return report;
}

/** What belongs to no section, such as the README, is due with the code of the first one. */
const firstOf = ({ code }: Language) => code[0] ?? "";

/** A document, unless it waits for its new edition, as unclaimed lessons do. */
function checkOne(edition: Edition, document: Document, report: Report): void {
  const { language } = edition;
  const isLesson = SECTIONS.includes(document.name);
  const waits = isLesson
    ? !language.lessons.includes(short(document.name))
    : document.name === "setup" && language.lessons.length === 0;
  if (waits && describesRelease(document.text)) return;
  const name = isLesson ? document.name : firstOf(language);
  const claim = isLesson ? "lessons" : "code";
  report.sink(language, claim, name).push(...checkDocument(edition, document));
}

/** While no comments are claimed, those that are gone wait for whoever writes the new ones. */
function checkObsolete({ language, po, obsolete }: Edition): string[] {
  const isDue = (entry: GetTextTranslation) => language.comments.length > 0 || isPrinted(entry);
  const gone = [...obsolete.values()].find(isDue)?.msgid;
  return gone ? [`${po}: ${titleOf(gone)} is obsolete. Delete the "#~" entries.`] : [];
}

/** The diagrams in a section's comments; and whether it is what its translations make of it. */
function checkSection(edition: Edition, source: Source, text: string): string[] {
  const file = sectionPath(edition.code, source.name);
  const comments = text.split("\n").map((line) => (isComment(line) ? line : ""));
  const diagrams = checkDiagrams(file, comments);
  if (edition.code === "en") return diagrams;
  return [...diagrams, ...checkTranslation(edition, source, text)];
}

function checkTranslation(edition: Edition, source: Source, text: string): string[] {
  const { code, language, live, po } = edition;
  const run = `npm run translate ${code}`;
  const translations = translationsFor(live, language, source.name);
  const { problems, text: made } = translateSource(source, code, translations);
  const file = sectionPath(code, source.name);
  if (made !== text) problems.push(`${file}: not up to date. Run: ${run}`);
  const commentsMayLag = translations.older !== undefined;
  if (!commentsMayLag && text.includes(`tsx ${sectionPath("en", source.name)}`)) {
    problems.push(`${file}: its header runs the English file. Translate the path too.`);
  }
  const due = source.messages.filter((message) => message.isPrinted || !commentsMayLag);
  const [first, ...more] = due.filter(({ id }) => flaw(live.get(id)));
  if (first) {
    const count = more.length === 0 ? "" : ` (the first of ${more.length + 1})`;
    const what = `${titleOf(first.id)} is ${flaw(live.get(first.id))}${count}`;
    problems.push(`${po}: ${source.name}: ${what}. Mend it, then run: ${run}`);
  }
  return problems;
}

/** A lesson, or another text that is written in each language and follows the English one. */
function checkDocument({ root, code }: Edition, document: Document): string[] {
  const { name, file, text, original, changed } = document;
  const problems = checkDiagrams(file, fenceLines(text));
  if (code === "en" || textOf(root, original) === "") return problems;
  // Of a missing lesson checkClaims says so.
  const missing = SECTIONS.includes(name) ? [] : [`${file}: missing. Translate ${original}.`];
  if (text === "") return missing;
  const run = `npm run translate -- --stamp ${code} ${name}.md`;
  const what = `English has changed in: ${changed.join("; ")}. Follow it, then run: ${run}`;
  return changed.length > 0 ? [...problems, `${file}: ${what}`] : problems;
}

/** The lines of the fences that may hold diagrams; "" for the others. */
function fenceLines(markdown: string): string[] {
  const { lines, fences } = parseMarkdown(markdown);
  const drawn = fences.filter(({ info }) => info === "" || info === "text");
  return lines.map((text, i) =>
    drawn.some(({ line, body }) => i >= line && i < line + body.length) ? text : "",
  );
}

/**
 * Two characters, one above the other, that can't be right: the upper goes down, and the lower is
 * blank or a part of a box that doesn't come up to it; or the reverse. An arrowhead's tip may meet
 * anything but a blank. Words are fine everywhere: arrows start at them.
 */
const LOOSE = /^([│┌┐├┤┬┼╭╮▲][\s─┌┐┬╭╮]|[\s─└┘┴╰╯][│└┘├┤┴┼╰╯▼]|▼\s|\s▲)$/;

/** A blank between two words of one text is a part of it, so an arrow may start there. */
const cellsOf = (line = "") =>
  columns(line.replace(/(?<=[^\s\u2500-\u257f]) (?=[^\s\u2500-\u257f])/g, "_"));

/** Compares columns, so that it sees when a wide word has pushed a box's side away. */
function checkDiagrams(file: string, lines: string[]): string[] {
  return lines.flatMap((line, i) => {
    const [upper, lower] = [cellsOf(lines[i - 1]), cellsOf(line)];
    if (upper.length === 0 || lower.length === 0) return [];
    const longer = upper.length > lower.length ? upper : lower;
    const loose = longer.findIndex((_, column) =>
      LOOSE.test(`${upper[column] ?? " "}${lower[column] ?? " "}`),
    );
    if (loose === -1) return [];
    const what = `a line of the diagram ends between here and the line above, column ${loose + 1}`;
    return [`${file}:${i + 1}: ${what}. Align it; a wide character takes two columns.`];
  });
}
