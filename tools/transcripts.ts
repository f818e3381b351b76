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
import { parseMarkdown } from "./markdown.ts";
import { longName } from "./sections.ts";

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
const START = /^\$ npx tsx sessions\/\w+\/(\w+)\.ts$/;
const SHOW = /^\$ (?:cat|cut -c1-(\d+)) workspace\/(\S+)$/;
const FAIL = /^\$ npm run practice -- fail (.+)$/;
const SAY = /^((alice|bob|mallory)(@feishu)?(?:@(\w+))?) > (.*\S)/;
const RPC = /^\$ npm run rpc -- (.+)$/;

function readOrder(words: string) {
  const { failure, ...rest } = readFailLine(words);
  return { ...rest, failure: failure as Failure }; // "fail off" is of no use in a transcript
}

function readSetup(words: string[]): Setup {
  const setup: Setup = { env: {}, failures: [] };
  for (const word of words) {
    const [, name = "", value = ""] = /^([a-z\d_]+)=(.*)$/.exec(word) ?? [];
    const [, kind, times] = /^(.+?)(?:x(\d+))?$/.exec(value) ?? [];
    if (word === "picture") setup.picture = true;
    else if (name === "fail")
      setup.failures.push(readOrder(`${kind} --times=${times ?? 1}`).failure);
    else if (SETTINGS.includes(name.toUpperCase())) setup.env[name.toUpperCase()] = value;
    else throw new Error(`"${word}" is neither fail=529x2 nor setting=value`);
  }
  return setup;
}

/** The step that a line asks for; undefined if it is output. */
function readStep(line: string, section: string, after: string | undefined): Step | undefined {
  const [, started] = START.exec(line) ?? [];
  if (started?.startsWith(`${section}_`)) return { do: "start", line };
  if (started) throw new Error(`the comment says ${section}, the command ${started}`);
  if (line === "$ kill -9") return { do: "kill", line, after };
  const [, order] = FAIL.exec(line) ?? [];
  if (order) return { do: "fail", line, ...readOrder(order) };
  const [, width, files] = SHOW.exec(line) ?? [];
  if (files) return { do: "show", line, files, width: width ? Number(width) : undefined };
  const [, who = "", person = "", feishu, group, text = ""] = SAY.exec(line) ?? [];
  const [, call = ""] = RPC.exec(line) ?? [];
  if ((who && section < "s04") || (call && section < "s05")) {
    throw new Error(`${section} does not have what "${line}" needs`);
  }
  if (who) return { do: "say", line, who, person, feishu: feishu !== undefined, group, text };
  const words = call.match(/(?:[^\s"]|"[^"]*")+/g) ?? [];
  if (call) return { do: "rpc", line, words: words.map((word) => word.replaceAll('"', "")) };
  if (line.startsWith("$ ")) throw new Error(`"${line}" is no command that record knows`);
  const [, typed] = /^You > (.*\S)/.exec(line) ?? [];
  return typed ? { do: "type", line: typed } : undefined;
}

function readSteps(body: string[], section: string): Step[] {
  const steps: Step[] = [];
  let printed: string | undefined; // the last line of output since the last step or prompt
  for (const line of body) {
    const step = readStep(line, section, printed);
    const last = steps.at(-1);
    if (last?.do === "say" && [SILENCE, TYPING].includes(line)) last.expect ??= line;
    if (step) steps.push(step);
    if (step || line.trim() === "You >") printed = undefined;
    else printed = line.trim() || printed;
  }
  if (steps.some((step) => ["type", "say", "rpc"].includes(step.do))) return steps;
  throw new Error('nothing is typed: a line "You > …" is missing');
}

/** The transcripts of a lesson, and what is wrong with their form. */
export function readTranscripts(markdown: string): { found: Transcript[]; problems: string[] } {
  const { lines, fences, prose } = parseMarkdown(markdown);
  const found: Transcript[] = [];
  const problems: string[] = [];
  const transcripts = fences.filter(({ info }) => info === "console");
  for (const { line, body } of transcripts) {
    try {
      const [, section, words = ""] = COMMENT.exec(lines[line - 2] ?? "") ?? [];
      if (!section || !longName(section))
        throw new Error('directly above must be "<!-- record s01 -->", with one of the sections');
      const setup = readSetup(words.split(" ").filter(Boolean));
      const steps = readSteps(body, section);
      found.push({ section, setup, steps, from: line, to: line + body.length + 1 });
    } catch (error) {
      problems.push(`${line}: transcript: ${error instanceof Error ? error.message : error}.`);
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
