/** Which tool calls a request asks for in plain words, and in which steps. */

import type Anthropic from "@anthropic-ai/sdk";
import type { Kind, Language } from "./phrases.ts";

export interface Call {
  what: Kind;
  name: string;
  input: Record<string, string>;
  /** What the call is about, for sentences: a path, a command. */
  on: string;
}

export interface Plan {
  /**
   * Each step is one reply: its calls run in parallel, and the next step waits for their results.
   */
  steps: Call[][];
  /** What the request asks for although no offered tool can do it. */
  missing: ("tool" | "clock" | "memory")[];
}

type Tools = readonly Anthropic.ToolUnion[];
type Groups = Record<string, string | undefined>;

/** The names that a parameter may have; programs differ, so the schema of the tool decides. */
const PARAMETER_NAMES: Record<string, string[]> = {
  path: ["path", "file_path", "filename", "file", "directory", "dir"],
  content: ["content", "text", "contents"],
  old: ["old_text", "old_string", "old", "find"],
  new: ["new_text", "new_string", "new", "replace"],
  command: ["command", "cmd"],
  category: ["category"],
  query: ["query", "q", "text"],
};

/** A tool call that a request asks for, before it is known whether the tool is offered. */
interface Wish {
  what: Call["what"];
  tool: string;
  values: Groups;
  on: string;
  /** What is missing without the tool; a search of the memory can also be answered in words. */
  missing?: Plan["missing"][number];
  /** A shell command that does the same, if the tool is not offered. */
  command?: string;
}

/**
 * Plans a request. `before` is the file that was named last, for a request like "read it again".
 */
export function makePlan(text: string, tools: Tools, language: Language, before: string): Plan {
  const plan: Plan = { steps: [], missing: [] };
  let here = "";
  for (const part of splitRequest(text, language)) {
    const wishes = understand(part.text, { language, last: here || before, here });
    const refers = language.refers.test(part.text);
    here = wishes.at(-1)?.values.path ?? findPaths(part.text).at(-1) ?? here;
    const calls = wishes.flatMap((wish) => toCall(wish, tools, plan.missing) ?? []);
    const step = plan.steps.at(-1);
    // A part that refers to the part before, as "read it" does, has to wait for its result.
    if (step && !part.waits && !refers) step.push(...calls);
    else if (calls.length > 0) plan.steps.push(calls);
  }
  return plan;
}

/** The parts of a request, without polite words around them. Quotations stay whole. */
function splitRequest(text: string, language: Language): { text: string; waits: boolean }[] {
  const masked = text.replace(
    /`[^`]*`|"[^"]*"|「[^」]*」|(?<=^|\s)'[^']*'(?=$|[\s.,!?])/g,
    (quoted) => "\u0001".repeat(quoted.length),
  );
  const parts: { text: string; waits: boolean }[] = [];
  let start = 0;
  let waits = false;
  for (const match of masked.matchAll(language.separator)) {
    parts.push({ text: text.slice(start, match.index), waits });
    start = match.index + match[0].length;
    waits = match.groups?.then !== undefined;
  }
  parts.push({ text: text.slice(start), waits });
  return parts.map((part) => ({ ...part, text: trimWords(part.text, language) }));
}

/** A text without the words that mean nothing before and after a request. */
export function trimWords(text: string, language: Language): string {
  let before = "";
  let rest = text.trim();
  while (rest !== before) {
    before = rest;
    rest = rest.replace(language.before, "");
  }
  return rest.replace(language.after, "");
}

/**
 * The paths in a text: words with a dot or a slash, and, if `quoted`, what is in quotation marks.
 */
export function findPaths(text: string, quoted = false): string[] {
  const word = /(?:\.{1,2}\/|~\/|\/)?[\w@-][\w@./-]{0,99}\.\w{1,8}|[\w@.~-]{0,99}\/[\w@./-]*/;
  const pattern = quoted
    ? /`([^`\s]+)`|"([^"\s]+)"|'([^'\s]+)'/.source + `|(${word.source})`
    : word;
  const found = [...text.replace(/https?:\S+/g, "").matchAll(new RegExp(pattern, "g"))];
  const paths = found.map((match) => match.slice(1).find((part) => part) ?? match[0]);
  return [...new Set(paths)].filter((path) => !/^(?:e\.g|i\.e|\d+\.\d+|\/+)$/.test(path));
}

/** What a part of a request may refer to. */
interface Around {
  language: Language;
  /** The file that was named last, here or in an earlier message. */
  last: string;
  /** The same, but only if it was named in this request. */
  here: string;
}

type Maker = (found: Groups, around: Around) => Omit<Wish, "what">[];

/**
 * Makes the wishes of each kind of request; the first kind wins that makes any. To add a kind, add
 * it to PATTERN_NAMES and `Kind` in phrases.ts, its patterns to each language, and an entry here.
 */
const MAKERS: [Kind, Maker][] = [
  ["edit", edit],
  ["list", list],
  ["run", run],
  ["write", write],
  ["read", read],
  [
    "time",
    () => [{ tool: "get_current_time", values: {}, on: "", missing: "clock", command: "date" }],
  ],
  ["remember", remember],
  ["recall", ({ query }) => [{ tool: "memory_search", values: { query: unquote(query) }, on: "" }]],
];

function understand(text: string, around: Around): Wish[] {
  for (const [what, make] of MAKERS) {
    for (const pattern of around.language.patterns[what]) {
      const match = pattern.exec(text);
      const wishes = match ? make({ ...match.groups }, around) : [];
      if (wishes.length > 0) return wishes.map((wish) => ({ what, ...wish }));
    }
  }
  return [];
}

function edit(found: Groups, { language, last, here }: Around): Omit<Wish, "what">[] {
  const path = found.path ? resolve(found.path, language, last) : here;
  if (!path) return [];
  const values = { path, old: unquote(found.old), new: unquote(found.new) };
  return [{ tool: "edit_file", values, on: path, missing: "tool" }];
}

function list(found: Groups, around: Around): Omit<Wish, "what">[] {
  const named = found.path ?? found.path2;
  const path = named ? resolve(named, around.language, around.last) : ".";
  // "what is in SOUL.md" has the same form, but is a file.
  if (!path || /\.\w{1,8}$/.test(path)) return [];
  const command = path === "." ? "ls" : `ls "${path}"`;
  return [{ tool: "list_directory", values: { path }, on: path, missing: "tool", command }];
}

const INTERPRETERS: Record<string, string> = { js: "node", mjs: "node", py: "python3", sh: "sh" };

function run(found: Groups, { here }: Around): Omit<Wish, "what">[] {
  let command = unquote(found.command);
  if (found.script) command = here && `${INTERPRETERS[extension(here)] ?? "cat"} ${here}`;
  return command ? [{ tool: "bash", values: { command }, on: command, missing: "tool" }] : [];
}

function write(found: Groups, { language, last }: Around): Omit<Wish, "what">[] {
  const path = resolve(found.path, language, last);
  if (!path) return [];
  const content = found.prints
    ? program(path, unquote(found.prints))
    : contentOf(found.content, language);
  return [{ tool: "write_file", values: { path, content }, on: path, missing: "tool" }];
}

function read(found: Groups, around: Around): Omit<Wish, "what">[] {
  const { language, last } = around;
  const named = found.path
    ? [resolve(found.path, language, last)]
    : findPaths(found.paths ?? "", true);
  const paths = named.length > 0 ? named : [last];
  return paths.filter(Boolean).flatMap((path) => {
    // One step can't read "the files in notes/", because it does not know their names yet.
    if (path.endsWith("/")) return list({ path }, around);
    return { tool: "read_file", values: { path }, on: path, missing: "tool" };
  });
}

function remember({ content }: Groups): Omit<Wish, "what">[] {
  const values = { content: unquote(content), category: "fact" };
  return [{ tool: "memory_write", values, on: "", missing: "memory" }];
}

function resolve(path: string | undefined, language: Language, last: string): string {
  return !path || language.pronoun.test(path) ? last : unquote(path);
}

function extension(path: string): string {
  return /\.(\w+)$/.exec(path)?.[1] ?? "";
}

/** "a script hello.py that prints hello" */
function program(path: string, text: string): string {
  const quoted = JSON.stringify(text);
  if (extension(path) === "py") return `print(${quoted})\n`;
  return extension(path) === "sh" ? `echo ${quoted}\n` : `console.log(${quoted});\n`;
}

function toCall(wish: Wish, tools: Tools, missing: Plan["missing"]): Call | undefined {
  const { what, on, command } = wish;
  const offered = (name: string) => tools.find((one) => "name" in one && one.name === name);
  const tool = offered(wish.tool);
  if (tool) return { what, name: wish.tool, input: fill(wish.values, tool), on };
  const bash = command === undefined ? undefined : offered("bash");
  if (bash && command)
    return { what: "run", name: "bash", input: fill({ command }, bash), on: command };
  if (wish.missing) missing.push(wish.missing);
  return undefined;
}

/** The input, with the parameters that the tool's schema has; it would refuse any other. */
function fill(values: Groups, tool: Anthropic.ToolUnion): Record<string, string> {
  const schema = "input_schema" in tool ? tool.input_schema : undefined;
  const known = Object.keys(schema?.properties ?? {});
  const input: Record<string, string> = {};
  for (const [kind, value] of Object.entries(values)) {
    const name = (PARAMETER_NAMES[kind] ?? [kind]).find((candidate) => known.includes(candidate));
    if (name && value !== undefined) input[name] = value;
  }
  return input;
}

function contentOf(content: string | undefined, language: Language): string {
  const text = unquote(content);
  // "write a haiku to poem.txt" means a haiku, not those two words.
  if (text === content?.trim() && language.patterns.haiku.some((pattern) => pattern.test(text))) {
    return `${language.say.haiku}\n`;
  }
  return text;
}

function unquote(text: string | undefined): string {
  const trimmed = (text ?? "").trim();
  const match = /^(?:`([^`]*)`|"([^"]*)"|'([^']*)'|“([^”]*)”)$/.exec(trimmed);
  return match ? (match[1] ?? match[2] ?? match[3] ?? match[4] ?? "") : trimmed;
}
