// What `check` asks of the lessons: one form, and nothing in them that isn't so.
import { type Fence, type Markdown, parseMarkdown } from "./markdown.ts";
import type { Reference, References } from "./openclaw.ts";
import { pictureOf } from "./picture.ts";
import { type Code, placeBegun, readCode, readPlace, withComment } from "./places.ts";
import { over, Report } from "./report.ts";
import type { Language, Languages } from "./sections.ts";
import { exists, longName, read, SECTIONS, sectionPath, short, textOf } from "./sections.ts";
import { checkTranscripts } from "./transcripts.ts";
import { locate, matchExcerpt } from "./verbatim.ts";

/** Lines that somebody has written: transcripts and excerpts are as long as what they show. */
const LENGTH_LIMIT = 200;
const LAST_LENGTH_LIMIT = 280; // s10 also has the reading path and "leave it running"

type Lesson = Markdown & { root: string; lang: string; name: string };

export function checkLessons(root: string, languages: Languages, report = new Report()): Report {
  for (const [lang, language] of languages) {
    for (const name of SECTIONS) {
      const file = sectionPath(lang, name, "md");
      if (!exists(root, file)) continue;
      const problems = checkLesson(root, lang, language, name);
      const sink = report.sink(language, "lessons", name);
      sink.push(...problems.map((problem) => `${file}:${problem}`));
    }
    report.problems.push(...checkReleases(root, lang, language));
  }
  return report;
}

/**
 * A lesson that waits for its new edition describes the code of a release and not today's, so it is
 * not compared with today's. Its first line tells the reader which release that is.
 */
export const describesRelease = (text: string) => /^>.*\b\d+\.\d+\.\d+\b/.test(text);

/** The texts that nobody claims, beside code that is claimed: all of them must say so. */
function checkReleases(root: string, lang: string, language: Language): string[] {
  const waiting = language.code.filter((id) => !language.lessons.includes(id));
  const names = waiting.flatMap((id) => longName(id) ?? []);
  if (language.code.length > 0 && language.lessons.length === 0) names.push("setup");
  const files = names.map((name) => sectionPath(lang, name, "md"));
  const silent = files.filter((file) => exists(root, file) && !describesRelease(read(root, file)));
  const remedy = "Its first line must say which release it describes, as in > … 0.1.0 …";
  return silent.map((file) => `${file}:1: tools/languages.json claims the code only. ${remedy}`);
}

/** What is wrong with a lesson; nothing, if it is not claimed and says that it is of a release. */
function checkLesson(root: string, lang: string, language: Language, name: string): string[] {
  const text = read(root, sectionPath(lang, name, "md"));
  if (!language.lessons.includes(short(name)) && describesRelease(text)) return [];
  const lesson = { ...parseMarkdown(text), root, lang, name };
  return [
    ...checkForm(lesson, language),
    ...checkExercises(lesson),
    ...lesson.fences.flatMap((fence) => checkFence(lesson, fence)),
    ...checkReferences(lesson),
    ...checkTranscripts(text),
    ...checkPicture(lesson, text),
  ];
}

const partsOf = (lesson: Lesson) => lesson.parts.filter(({ level }) => level === 2);

/** The picture beside it is made of the transcript that stands there now. */
function checkPicture({ root, lang, name }: Lesson, text: string): string[] {
  const file = sectionPath(lang, name, "svg");
  if (textOf(root, file) === pictureOf(text)) return [];
  return [`1: ${file} is not of this transcript. Run: npm run record ${short(name)}`];
}

/** Headings, minutes to read, length. */
function checkForm(lesson: Lesson, { headings, minutes }: Language): string[] {
  const problems: string[] = [];
  const parts = partsOf(lesson);
  if (parts.map(({ text }) => text).join("\n") !== headings.join("\n")) {
    const part = parts.find(({ text }, i) => text !== headings[i]) ?? parts.at(-1);
    const wanted = headings.join(", ");
    problems.push(`${part?.line ?? 1}: its "##" headings must be, in this order: ${wanted}.`);
  }
  const top = lesson.prose.slice(0, parts[0]?.line);
  if (!top.some((line) => new RegExp(minutes).test(line))) {
    problems.push(`1: say how long it takes to read, above the first "##": ${minutes}`);
  }
  const made = lesson.fences.filter(({ info }) => info === "console" || info === "ts");
  const length = made.reduce((sum, { body }) => sum - body.length - 2, lesson.lines.length);
  const limit = short(lesson.name) === "s10" ? LAST_LENGTH_LIMIT : LENGTH_LIMIT;
  const said = `1: ${length - 1} lines of its own`; // one is behind the last line break
  return [...problems, ...over(length - 1, said, limit, "Say less.")];
}

/** "1. …", "2. …" and "3. …", each with one hint. */
function checkExercises(lesson: Lesson): string[] {
  const { line, end } = partsOf(lesson)[6] ?? { line: lesson.prose.length, end: 0 };
  const text = lesson.prose.slice(line, end).join("\n");
  const outline = text.replace(/<details>[\s\S]*?<\/details>/g, "<hint>");
  const marks = [...outline.matchAll(/^(?:### )?(\d)\. |<hint>/gm)];
  const found = marks.map(([, digit = "hint"]) => digit).join(" ");
  if (found === "1 hint 2 hint 3 hint") return [];
  const wanted = 'three exercises are wanted, "1. ", "2. " and "3. " at the beginning of a line';
  const hints = "each with a hint in <details> … </details>";
  return [`${line}: ${wanted}, ${hints}. Found: ${found || "none"}.`];
}

/** What needs no comparing here: diagrams, shapes of files; transcripts are checked apart. */
const FREE = ["", "text", "console", "json shape", "jsonl shape"];

function checkFence(lesson: Lesson, fence: Fence): string[] {
  const { info, line, body } = fence;
  if (info === "ts") return checkExcerpt(lesson, fence);
  if (info === "sh") return body.flatMap((text, i) => checkCommand(lesson, text, line + 1 + i));
  const kinds =
    "ts (excerpts), sh (commands), console (transcripts), text, json shape, jsonl shape";
  return FREE.includes(info) ? [] : [`${line}: a fence of "${info}". There are: ${kinds}.`];
}

const COMMAND = /^(npm (start|test|ci|install|run [\w-]+)\b|npx tsx sessions\/|git |cat )/;
/** Words that are files; not in .state: what a section keeps is there after it ran. */
const FILE = /^(?!.*\/\.state\/)([\w.-]+\/[^:*]*|[\w.-]+\.(md|json|ts))$/;

/** A line of a `sh` fence: a command that works on every system, and files that exist. */
function checkCommand({ root }: Lesson, line: string, number: number): string[] {
  const command = line.replace(/\s+#.*$|^#.*$/, "").trim();
  if (command === "") return [];
  if (!COMMAND.test(command)) {
    return [`${number}: "${command}": sh is for npm, "npx tsx sessions/…", git and cat only.`];
  }
  const script = /^npm run ([\w-]+)/.exec(command)?.[1];
  const { scripts } = JSON.parse(read(root, "package.json"));
  const problems = script && !(script in scripts) ? [`${number}: no script "${script}".`] : [];
  const files = command.split(/\s+/).filter((word) => FILE.test(word) && !exists(root, word));
  return [...problems, ...files.map((file) => `${number}: there is no file ${file}.`)];
}

/** Code is an excerpt of the file beside the lesson, or of the one that its first line names. */
function checkExcerpt({ root, lang, name }: Lesson, { body, line }: Fence): string[] {
  const place = readPlace(body[0]);
  const section = place?.section ? longName(place.section) : name;
  const file = section && sectionPath(lang, section);
  if (!file || !exists(root, file)) {
    return [`${line}: there is no code of ${place?.section ?? name} to compare with.`];
  }
  const excerpt = place ? body.slice(1) : body;
  const code = readCode(read(root, file), file);
  const match = matchExcerpt(code.lines, excerpt);
  if (match === excerpt.length) return checkPlace(line, excerpt, code, place?.name);
  const at = line + 1 + match + (body.length - excerpt.length);
  const remedy = 'A line "// …" stands for those that you leave out. To refresh it, run:';
  const command = `npm run excerpts ${short(name)}`;
  return [`${at}: not like this in ${file}: "${excerpt[match]?.trim()}". ${remedy} ${command}`];
}

/** An excerpt says where it is: by its first line, or because it begins with its declaration. */
function checkPlace(at: number, excerpt: string[], code: Code, name?: string): string[] {
  const { file, lines, places } = code;
  if (name === undefined) {
    const remedy = 'Begin it with a line like "// in Inbox.add".';
    const problem = `${at}: this excerpt does not say where it is. ${remedy}`;
    return placeBegun(code, excerpt) ? [] : [problem];
  }
  const named = places.filter((place) => place.name === name);
  if (named.length === 0) return [`${at}: there is no ${name} in ${file}.`];
  const isThere = named.some((place) => locate(lines, excerpt, withComment(lines, place)));
  return isThere ? [] : [`${at}: these lines are in ${file}, but not in ${name}.`];
}

/** `name`, `name()`, `NAME=value`: the form of the symbols in the list. */
const SYMBOL = /^[A-Za-z_$][\w$]*(=\S+)?$/;

/** What a lesson says of OpenClaw must be in the list that `npm run openclaw` verifies. */
function checkReferences(lesson: Lesson): string[] {
  const { root, lang, name, prose } = lesson;
  const { references }: References = JSON.parse(read(root, "tools/openclaw.json"));
  const { line: first, end } = partsOf(lesson)[5] ?? { line: prose.length, end: 0 };
  const part = prose.slice(first, end);
  // Our own names may stand in the same row.
  const ours = new Set(textOf(root, sectionPath(lang, name)).match(/[\w$]+/g));
  const isCited = part.some((line) => citationsIn(line).paths.length > 0);
  if (!isCited) return [`${first}: no path of OpenClaw is cited here.`];
  const remedy = "Add it to the path and symbols there, then run: npm run openclaw";
  return part.flatMap((line, i) => {
    const unlisted = unlistedIn(line, references, ours);
    const where = `${first + 1 + i}:`;
    return unlisted.map((text) => `${where} ${text} is not in tools/openclaw.json. ${remedy}`);
  });
}

/** What a line quotes: paths of source files, and names. */
function citationsIn(line: string): { paths: string[]; names: string[] } {
  const quoted = [...line.matchAll(/`([^`]+)`/g)].map(([, text = ""]) => text.replace("()", ""));
  return {
    paths: quoted.filter((text) => /\/.*\.ts$/.test(text)),
    names: quoted.filter((text) => SYMBOL.test(text)),
  };
}

/** What a line cites and the list doesn't have. In a row of the table, each name is looked up, too. */
function unlistedIn(line: string, references: Reference[], ours: Set<string>): string[] {
  const { paths, names } = citationsIn(line);
  const listed = references.filter(({ path }) => paths.includes(path));
  const unlisted = paths.filter((path) => !listed.some((one) => one.path === path));
  const isRow = line.trimStart().startsWith("|");
  if (listed.length === 0 || unlisted.length > 0 || !isRow) return unlisted;
  const symbols = listed.flatMap((one) => one.symbols);
  const known = new Set([...symbols, ...symbols.map((symbol) => symbol.replace(/=.*/, ""))]);
  const unknown = names.filter((name) => !known.has(name) && !ours.has(name));
  return names.some((name) => known.has(name)) ? unknown : [...unknown, "any symbol of this row"];
}
