// What `check` asks of the other languages: all is translated, and nothing is left behind.
import type { GetTextTranslation } from "gettext-parser";
import {
  documentsOf,
  type Entries,
  finished,
  flaw,
  isPrinted,
  lagging,
  parseCatalogue,
  titleOf,
} from "./catalogue.ts";
import { parseMarkdown } from "./markdown.ts";
import { columns } from "./messages.ts";
import { Report } from "./report.ts";
import { readLanguages, SECTIONS, sectionPath, short, textOf } from "./sections.ts";
import { readSources, type Source, translateSource } from "./translate.ts";

type Document = ReturnType<typeof documentsOf>[number];

export function checkTranslations(root: string, report = new Report()): Report {
  const sources = readSources(root);
  for (const [code, language] of readLanguages(root)) {
    const po = `sessions/${code}/code.po`;
    const { live, obsolete } = parseCatalogue(textOf(root, po));
    // What belongs to no section, such as the README, is due with the code of the first one.
    const sink = (name: string) =>
      report.sink(language, "code", SECTIONS.includes(name) ? name : (language.code[0] ?? ""));
    for (const document of documentsOf(root, code)) {
      const isLesson = SECTIONS.includes(document.name);
      if (isLesson && !language.lessons.includes(short(document.name))) continue;
      sink(document.name).push(...checkDocument(root, code, document));
    }
    for (const source of sources) {
      const file = sectionPath(code, source.name);
      const text = textOf(root, file);
      if (text === "") continue; // if it should be there, checkClaims says so
      const comments = text.split("\n").map((line) => (/^\s*(\/\/|\/?\*)/.test(line) ? line : ""));
      sink(source.name).push(...checkDiagrams(file, comments));
      const commentsMayLag = !language.comments.includes(short(source.name));
      const section = { source, code, text, live, commentsMayLag };
      if (code !== "en") sink(source.name).push(...checkSection(section));
    }
    // While no comments are claimed, those that are gone wait for whoever writes the new ones.
    const isDue = (entry: GetTextTranslation) => language.comments.length > 0 || isPrinted(entry);
    const gone = [...obsolete.values()].find(isDue)?.msgid;
    if (gone) sink("").push(`${po}: ${titleOf(gone)} is obsolete. Delete the "#~" entries.`);
    const share = `${finished(live).size} of ${live.size} messages translated`;
    if (code !== "en") report.facts.push(`${code}: ${share}`);
  }
  return report;
}

interface Section {
  source: Source;
  code: string;
  text: string;
  live: Entries;
  commentsMayLag: boolean;
}

/** The entries of a section, and whether the file is what they make of it. */
function checkSection({ source, code, text, live, commentsMayLag }: Section): string[] {
  const run = `npm run translate ${code}`;
  const older = commentsMayLag ? lagging(live) : undefined;
  const { problems, text: made } = translateSource(source, code, finished(live), older);
  const file = sectionPath(code, source.name);
  if (made !== text) problems.push(`${file}: not up to date. Run: ${run}`);
  if (!commentsMayLag && text.includes(`tsx ${sectionPath("en", source.name)}`)) {
    problems.push(`${file}: its header runs the English file. Translate the path too.`);
  }
  const due = source.messages.filter(({ isPrinted: printed }) => printed || !commentsMayLag);
  const [first, ...more] = due.filter(({ id }) => flaw(live.get(id)));
  if (first) {
    const count = more.length === 0 ? "" : ` (the first of ${more.length + 1})`;
    const what = `${titleOf(first.id)} is ${flaw(live.get(first.id))}${count}`;
    const entry = `sessions/${code}/code.po: ${source.name}: ${what}`;
    problems.push(`${entry}. Mend it, then run: ${run}`);
  }
  return problems;
}

/** A lesson, or another text that is written in each language and follows the English one. */
function checkDocument(root: string, code: string, document: Document): string[] {
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
