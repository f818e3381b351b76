// Transcripts in lessons: what they look like, and the steps that a recording takes.
//
//   <!-- record s02 context_tokens=4000 fail=529x2 -->
//   ```console
//   $ npx tsx sessions/en/s02_tool_use.ts
//   You > read SOUL.md
//   alice > What is my name?   on her phone; also bob, mallory, alice@feishu, alice@family (a group)
//   $ npm run rpc -- status
//   …                          everything else is output, and `npm run record` writes it anew
//   ```
import { type FailCommand, readFailLine } from "../practice/fail-command.ts";
import type { Failure } from "../practice/fault-injection.ts";
import { SETTINGS } from "../practice/world.ts";
import { type Fence, parseMarkdown } from "./markdown.ts";
import { longName, messageOf } from "./sections.ts";

/** What the words after the section in a comment ask for. */
export interface Setup {
  env: Record<string, string>;
  failures: Failure[];
  picture?: boolean; // an SVG is made of it, for the README
}

/** A line behind `alice > `. */
export interface Saying {
  who: string;
  person: string;
  feishu: boolean;
  group?: string;
  text: string;
  /** What the author expects: one of the two below, or else that the bot answers. */
  expect?: string;
}
export const SILENCE = "(no answer)";
/** The answer is held back until the next step is done. */
export const TYPING = "bot is typing …";

export type Step =
  | { do: "start"; line: string }
  | { do: "type"; line: string }
  /** `after` is the line of output to wait for; without it, the prompt. */
  | { do: "kill"; line: string; after?: string }
  | ({ do: "say"; line: string } & Saying)
  | { do: "rpc"; line: string; words: string[] }
  | ({ do: "fail"; line: string; failure: Failure } & Pick<FailCommand, "where" | "said">)
  | { do: "show"; line: string; files: string; width?: number };

export interface Transcript {
  section: string;
  setup: Setup;
  steps: Step[];
  /** The numbers of the lines of the two fences, from 1. */
  from: number;
  to: number;
}

const COMMENT = /^<!-- record (s\d\d)((?: \S+)*) -->$/;

/** The failure that the words of `npm run practice -- fail` order, and where. */
function readOrder(words: string) {
  const { failure, ...rest } = readFailLine(words);
  return { ...rest, failure: failure as Failure }; // "fail off" is of no use in a transcript
}

function readSetup(words: string[]): Setup {
  const setup: Setup = { env: {}, failures: [] };
  for (const word of words) readSetting(setup, word);
  return setup;
}

function readSetting(setup: Setup, word: string): void {
  const [, name = "", value = ""] = /^([a-z\d_]+)=(.*)$/.exec(word) ?? [];
  if (word === "picture") {
    setup.picture = true;
  } else if (name === "fail") {
    const [, kind, times = "1"] = /^(.+?)(?:x(\d+))?$/.exec(value) ?? [];
    setup.failures.push(readOrder(`${kind} --times=${times}`).failure);
  } else if (SETTINGS.includes(name.toUpperCase())) {
    setup.env[name.toUpperCase()] = value;
  } else {
    throw new Error(`"${word}" is neither fail=529x2 nor setting=value`);
  }
}

/** A line of a transcript, and what is known of it. */
interface Line {
  line: string;
  section: string;
  /** The last line of output since the last step or prompt. */
  after: string | undefined;
}

/** One for each kind of step. It gives undefined for a line that is none of its kind. */
const READERS: ((line: Line) => Step | undefined)[] = [
  readStart,
  readKill,
  readFail,
  readShow,
  readSaying,
  readCall,
  readTyped,
];

function readStart({ line, section }: Line): Step | undefined {
  const [, started] = /^\$ npx tsx sessions\/\w+\/(\w+)\.ts$/.exec(line) ?? [];
  if (started === undefined) return undefined;
  if (started.startsWith(`${section}_`)) return { do: "start", line };
  throw new Error(`the comment says ${section}, the command ${started}`);
}

function readKill({ line, after }: Line): Step | undefined {
  return line === "$ kill -9" ? { do: "kill", line, after } : undefined;
}

function readFail({ line }: Line): Step | undefined {
  const [, order] = /^\$ npm run practice -- fail (.+)$/.exec(line) ?? [];
  return order === undefined ? undefined : { do: "fail", line, ...readOrder(order) };
}

function readShow({ line }: Line): Step | undefined {
  const [, width, files] = /^\$ (?:cat|cut -c1-(\d+)) workspace\/(\S+)$/.exec(line) ?? [];
  if (files === undefined) return undefined;
  return { do: "show", line, files, width: width ? Number(width) : undefined };
}

function readSaying({ line, section }: Line): Step | undefined {
  const parts = /^((alice|bob|mallory)(@feishu)?(?:@(\w+))?) > (.*\S)/.exec(line);
  if (!parts) return undefined;
  requireSection("s04", section, line);
  const [, who = "", person = "", feishu, group, text = ""] = parts;
  return { do: "say", line, who, person, feishu: feishu !== undefined, group, text };
}

function readCall({ line, section }: Line): Step | undefined {
  const [, call] = /^\$ npm run rpc -- (.+)$/.exec(line) ?? [];
  if (call === undefined) return undefined;
  requireSection("s05", section, line);
  const words = call.match(/(?:[^\s"]|"[^"]*")+/g) ?? [];
  return { do: "rpc", line, words: words.map((word) => word.replaceAll('"', "")) };
}

function readTyped({ line }: Line): Step | undefined {
  const [, typed] = /^You > (.*\S)/.exec(line) ?? [];
  return typed === undefined ? undefined : { do: "type", line: typed };
}

function requireSection(first: string, section: string, line: string): void {
  if (section < first) throw new Error(`${section} does not have what "${line}" needs`);
}

/** The step that a line asks for; undefined if it is output. */
function readStep(line: Line): Step | undefined {
  for (const reader of READERS) {
    const step = reader(line);
    if (step) return step;
  }
  if (line.line.startsWith("$ ")) throw new Error(`"${line.line}" is no command that record knows`);
  return undefined;
}

function readSteps(body: string[], section: string): Step[] {
  const steps: Step[] = [];
  let after: string | undefined;
  for (const line of body) {
    const step = readStep({ line, section, after });
    const last = steps.at(-1);
    if (last?.do === "say" && [SILENCE, TYPING].includes(line)) last.expect ??= line;
    if (step) steps.push(step);
    const isPrompt = line.trim() === "You >";
    after = step || isPrompt ? undefined : line.trim() || after;
  }
  if (steps.some((step) => ["type", "say", "rpc"].includes(step.do))) return steps;
  throw new Error('nothing is typed: a line "You > …" is missing');
}

/** The setup and the steps of a console fence. Throws what is wrong with it. */
function readTranscript({ line, body }: Fence, comment: string): Transcript {
  const [, section, words = ""] = COMMENT.exec(comment) ?? [];
  if (!section || !longName(section)) {
    throw new Error('directly above must be "<!-- record s01 -->", with one of the sections');
  }
  const setup = readSetup(words.split(" ").filter(Boolean));
  const steps = readSteps(body, section);
  return { section, setup, steps, from: line, to: line + body.length + 1 };
}

/** The transcripts of a lesson, and what is wrong with their form. */
export function readTranscripts(markdown: string): { found: Transcript[]; problems: string[] } {
  const { lines, fences, prose } = parseMarkdown(markdown);
  const found: Transcript[] = [];
  const problems: string[] = [];
  const transcripts = fences.filter(({ info }) => info === "console");
  for (const fence of transcripts) {
    try {
      found.push(readTranscript(fence, lines[fence.line - 2] ?? ""));
    } catch (error) {
      problems.push(`${fence.line}: transcript: ${messageOf(error)}.`);
    }
  }
  for (const [i, line] of prose.entries()) {
    if (!line.startsWith("<!-- record") || transcripts.some((one) => one.line === i + 2)) continue;
    problems.push(`${i + 1}: directly below this comment must be a \`\`\`console fence.`);
  }
  return { found, problems };
}

/** What `npm run check` says of a lesson's transcripts. It starts no section. */
export const checkTranscripts = (markdown: string): string[] => readTranscripts(markdown).problems;
