// npm run excerpts: makes the code in the English lessons verbatim again, after the sections have
// changed. It finds each excerpt by its place, which its first line says or declares.
import { writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { git, textAt } from "./code.ts";
import type { Base, Excerpt } from "./follow.ts";
import { parseMarkdown } from "./markdown.ts";
import { type Code, placeLine, readCode, readPlace } from "./places.ts";
import { refresh } from "./refresh.ts";
import { exists, findSection, longName, read, SECTIONS, sectionPath, start } from "./sections.ts";
import { locate } from "./verbatim.ts";

const USAGE = `npm run excerpts                     refreshes the code in all English lessons
npm run excerpts s03 s04             only in these
npm run excerpts -- --base 1a617fe   when all excerpts were right; without it, each is looked up in
                                     the history of its section

It follows the lines of an excerpt to where they are now, and keeps what is left out. What it can't
follow is replaced by the declaration. "look:" marks what may not show any more what the lesson says.`;

/** Older versions of the sections, the newest first. Git is asked once for each. */
class History {
  readonly #root: string;
  readonly #base: string | undefined;
  readonly #commits = new Map<string, string[]>();
  readonly #texts = new Map<string, string>();

  constructor(root: string, base?: string) {
    this.#root = root;
    this.#base = base;
  }

  /** The newest version in which an excerpt was verbatim; undefined if there is none. */
  find(file: string, { body, name }: Excerpt): Base | undefined {
    for (const commit of this.#commitsOf(file)) {
      const lines = this.#textAt(commit, file).split("\n");
      if (!locate(lines, body)) continue;
      const code = readCode(lines.join("\n"), file);
      const named = code.places.filter((place) => place.name === name);
      const inNamed = named.map((place) => locate(lines, body, place)).find(Boolean);
      const positions = inNamed ?? locate(lines, body);
      if (positions) return { code, positions };
    }
    return undefined;
  }

  #commitsOf(file: string): string[] {
    if (this.#base !== undefined) return [this.#base];
    const known = this.#commits.get(file);
    if (known) return known;
    const log = git(this.#root, ["log", "--format=%H", "--", file]).text;
    const commits = log.split("\n").filter(Boolean);
    this.#commits.set(file, commits);
    return commits;
  }

  #textAt(commit: string, file: string): string {
    const key = `${commit} ${file}`;
    const text = this.#texts.get(key) ?? textAt(this.#root, commit, file) ?? "";
    this.#texts.set(key, text);
    return text;
  }
}

/** Refreshes the excerpts of lessons, and remembers the sections that it has read. */
export class Excerpts {
  readonly #root: string;
  readonly #history: History;
  readonly #codes = new Map<string, Code>();

  constructor(root: string, base?: string) {
    this.#root = root;
    this.#history = new History(root, base);
  }

  /** A lesson with its excerpts refreshed, and what became of those that have changed. */
  lesson(name: string): { file: string; text: string; said: string[] } {
    const file = sectionPath("en", name, "md");
    const text = read(this.#root, file);
    const lines = text.split(/\r?\n/);
    const said: string[] = [];
    let shift = 0; // how many lines more the lesson has by now
    for (const { body, line } of parseMarkdown(text).fences.filter(({ info }) => info === "ts")) {
      const made = this.#excerpt(name, body);
      if (made.said === undefined) continue;
      const fence = line + shift;
      said.push(`${made.isDoubtful ? "look: " : ""}${file}:${fence}: ${made.said}`);
      const indent = /^\s*/.exec(lines[fence - 1] ?? "")?.[0] ?? ""; // of a fence in a list
      const indented = made.body.map((one) => (one === "" ? "" : indent + one));
      lines.splice(fence, body.length, ...indented);
      shift += indented.length - body.length;
    }
    return { file, text: lines.join("\n"), said };
  }

  /** The lines of one fence, refreshed. */
  #excerpt(lesson: string, fence: string[]) {
    const place = readPlace(fence[0]);
    const name = place?.section ? longName(place.section) : lesson;
    const code = name && this.#code(sectionPath("en", name));
    if (!code) return { body: fence }; // check names it
    const excerpt = { body: place ? fence.slice(1) : fence, name: place?.name };
    const made = refresh(code, excerpt, () => this.#history.find(code.file, excerpt));
    const head = placeLine(place?.section, made.name);
    return { ...made, body: head === "" ? made.body : [head, ...made.body] };
  }

  #code(file: string): Code | undefined {
    if (!exists(this.#root, file)) return undefined;
    const code = this.#codes.get(file) ?? readCode(read(this.#root, file), file);
    this.#codes.set(file, code);
    return code;
  }
}

/** Writes the lessons; gives a line for each excerpt that has changed, and a last one. */
export function refreshLessons(root: string, args: string[]): string[] {
  const options = { base: { type: "string" }, help: { type: "boolean", short: "h" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  if (values.help) return [USAGE];
  const wanted = positionals.map((given) => findSection(root, "en", given));
  const names = SECTIONS.filter((name) => wanted.length === 0 || wanted.includes(name));
  const excerpts = new Excerpts(root, values.base);
  const said: string[] = [];
  for (const name of names.filter((one) => exists(root, sectionPath("en", one, "md")))) {
    const lesson = excerpts.lesson(name);
    if (lesson.said.length > 0) writeFileSync(path.join(root, lesson.file), lesson.text);
    said.push(...lesson.said);
  }
  const doubtful = said.filter((line) => line.startsWith("look: ")).length;
  return [...said, `${said.length} changed, ${doubtful} of them to look at.`];
}

await start(import.meta.filename, (root, args) =>
  console.log(refreshLessons(root, args).join("\n")),
);
