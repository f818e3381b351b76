/**
 * What the tests of the sections share: which files a case runs against, a section imported with
 * settings of its own, a section as a process, the practice model, and the check that after every
 * test none of its requests was one that the API refuses.
 */

import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import Anthropic from "@anthropic-ai/sdk";
import { spawn as spawnTerminal } from "@lydell/node-pty";
import { afterEach, beforeEach, vi } from "vitest";
import {
  type LoggedRequest,
  type ModelOptions,
  type PracticeModel,
  type Scripted,
  type ScriptedBlock,
  startModel,
} from "../practice/model.ts";
import { LANGUAGES, type LanguageCode, type SectionId } from "../sessions/names.ts";
import { readLanguages } from "../tools/sections.ts";

const ROOT = join(import.meta.dirname, "..");

// ---- Which files ----

export type Language = LanguageCode;
export type { SectionId };

export interface SectionFile {
  id: SectionId;
  lang: Language;
  /** "en/s01_agent_loop", for the titles of tests. */
  name: string;
  file: string;
}

const claims = readLanguages(ROOT);

// For whoever works on one section: TEST_ONLY="en s04 s10" leaves out the other files.
const only = (process.env.TEST_ONLY ?? "").split(/\s+/).filter(Boolean);
const isWanted = (value: string, kind: RegExp) => {
  const chosen = only.filter((word) => kind.test(word));
  return chosen.length === 0 || chosen.includes(value);
};

const ON_DISK: SectionFile[] = LANGUAGES.flatMap((lang) => {
  const folder = join(ROOT, "sessions", lang);
  const files = existsSync(folder) ? readdirSync(folder).sort() : [];
  return files.flatMap((file) => {
    if (!/^s(0[1-9]|10)_\w+\.ts$/.test(file)) return [];
    const id = file.slice(0, 3) as SectionId; // as the expression above says
    // A translation counts when its language claims it: until then it may lag behind.
    if (lang !== "en" && !claims.get(lang)?.code.includes(id)) return [];
    if (!isWanted(lang, /^\D+$/) || !isWanted(id, /^s\d\d$/)) return [];
    return [{ id, lang, name: `${lang}/${file.slice(0, -3)}`, file: join(folder, file) }];
  });
});

/** The files that must have what section `first` brought: from it to the last, in each language. */
export function sectionsFrom(first: SectionId): SectionFile[] {
  return ON_DISK.filter(({ id }) => id >= first);
}

/** The same in English only, for cases that start processes. */
export function englishFrom(first: SectionId): SectionFile[] {
  return sectionsFrom(first).filter(({ lang }) => lang === "en");
}

// ---- What later sections change on purpose ----

/**
 * A case asserts what holds in all later sections. Where one of them means to differ, it is here.
 */
export interface Change {
  /** The first section that differs. */
  since: SectionId;
  /** What the case asks for with `changed`. */
  what: string;
  why: string;
}

export const CHANGES: Change[] = [
  {
    since: "s06",
    what: "context",
    why: "A block with the time and what is remembered comes before what the person said.",
  },
  {
    since: "s08",
    what: "queue",
    why: "A reply is a file first and leaves by a queue: after its turn, and again if that fails.",
  },
  {
    since: "s09",
    what: "own retries",
    why: "The SDK tries once; the program retries, after a cooldown of the key or the model.",
  },
  {
    since: "s10",
    what: "drain",
    why: "A turn that has not begun when the program is told to end is made after the next start.",
  },
];

/** Whether `what` is another in this section, so that the case asserts the new behaviour. */
export function changed(section: SectionFile, what: string): boolean {
  return CHANGES.some((change) => change.what === what && change.since <= section.id);
}

/** How many requests a call makes before it fails, if the failure may pass: the SDK tries again. */
export const attempts = (section: SectionFile) => (changed(section, "own retries") ? 1 : 3);

const CONTEXT = /^<context>\n.*\n<\/context>$/s;

/** The blocks of a message, but not the one that a section from s06 on puts before the person's. */
export function withoutContext<Block extends { type: string }>(content: Block[]): Block[] {
  return content.filter((block) => !("text" in block && CONTEXT.test(String(block.text))));
}

// ---- Settings ----

export type Settings = Record<string, string>;

/** Every setting there is, so that nobody's .env leaks into a test. Empty counts as unset. */
const NO_SETTINGS: Settings = Object.fromEntries(
  `MODEL_ID CONTEXT_TOKENS FALLBACK_MODELS FIRST_BYTE_SECONDS REMOTE_TOOLS GATEWAY_TOKEN
  TELEGRAM_BOT_TOKEN TELEGRAM_API_ROOT TELEGRAM_ALLOWED_CHATS
  FEISHU_APP_ID FEISHU_APP_SECRET FEISHU_ENCRYPT_KEY FEISHU_VERIFICATION_TOKEN FEISHU_BOT_OPEN_ID
  FEISHU_ALLOWED_CHATS FEISHU_DOMAIN FEISHU_API_BASE
  HEARTBEAT_INTERVAL HEARTBEAT_ACTIVE_START HEARTBEAT_ACTIVE_END
  ANTHROPIC_API_KEY_2 ANTHROPIC_API_KEY_3 ANTHROPIC_API_KEY_4 ANTHROPIC_API_KEY_5
  ANTHROPIC_API_KEY_6 ANTHROPIC_API_KEY_7 ANTHROPIC_API_KEY_8 ANTHROPIC_API_KEY_9`
    .split(/\s+/)
    .map((name) => [name, ""]),
);

/** Settings for one section: its model, a workspace of its own, and whatever a case adds. */
export function settings(model?: PracticeModel, more: Settings = {}): Settings {
  return {
    ...NO_SETTINGS,
    ANTHROPIC_API_KEY: "test-key",
    // Without a model nothing may leave this machine: nobody listens on port 9.
    ANTHROPIC_BASE_URL: model?.url ?? "http://127.0.0.1:9",
    HTTP_PORT: "0",
    CLAW0_WORKSPACE: more.CLAW0_WORKSPACE ?? temporaryFolder(),
    ...more,
  };
}

// In memory, where the system has such a folder, because sections flush every message to the disk,
// and a test does not survive a power cut anyway.
const SCRATCH = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();
const folders: string[] = [];

/** An empty folder, by its real path, that is removed after the test. */
export function temporaryFolder(): string {
  const folder = realpathSync(mkdtempSync(join(SCRATCH, "claw0-test-")));
  folders.push(folder);
  return folder;
}

/**
 * The line, in any language, that says what was quarantined under `name`: the file as it was, then
 * its new name, then why.
 */
export function quarantineLine(name: string): RegExp {
  const file = name.replace(/\.[\da-f]{8}\.quarantined$/, "").replaceAll(".", "\\.");
  return new RegExp(`${file}\\D.*${name.replaceAll(".", "\\.")}.*[:：].`);
}

// ---- A section, imported ----

/** The exports that a section and all later ones have. */
interface Modules {
  s01: typeof import("../sessions/en/s01_agent_loop.ts");
  s02: typeof import("../sessions/en/s02_tool_use.ts");
  s03: typeof import("../sessions/en/s03_sessions.ts");
}

/** Imports a section anew, because it reads some settings when it is loaded. */
export async function load<Since extends keyof Modules>(
  _since: Since,
  section: SectionFile,
  given: Settings = settings(),
): Promise<Modules[Since]> {
  for (const name of Object.keys(process.env)) {
    if (name.startsWith("ANTHROPIC_")) delete process.env[name];
  }
  Object.assign(process.env, given);
  vi.resetModules();
  // Every section from `Since` on has its exports: that is what is being tested.
  return (await import(/* @vite-ignore */ section.file)) as Modules[Since];
}

let output: string[] = [];

/** What the section has printed into this process. */
export const printed = () => output.join("");

/** Makes the SDK retry without its back-off. */
export function retryAtOnce(): void {
  const wait = globalThis.setTimeout;
  const quick = (run: () => void, ms = 0, ...args: []) =>
    wait(run, ms >= 300 && ms <= 5000 ? 0 : ms, ...args);
  vi.spyOn(globalThis, "setTimeout").mockImplementation(
    quick as typeof setTimeout, // without __promisify__, which nobody uses here
  );
}

/**
 * Hears every event of every stream when the SDK has read it. `count` begins anew with each
 * stream; the SDK leaves out pings, so it is one less than what the model has sent.
 */
export function onStreamEvent(hear: (count: number, type: string) => void): void {
  const original = Anthropic.Messages.prototype.stream;
  vi.spyOn(Anthropic.Messages.prototype, "stream").mockImplementation(function (
    this: Anthropic.Messages,
    ...args
  ) {
    const stream = original.apply(this, args);
    let count = 0;
    stream.on("streamEvent", ({ type }) => hear(++count, type));
    return stream;
  });
}

// ---- The practice model ----

const models = new Map<PracticeModel, { allowed: Set<LoggedRequest> }>();

/** A model for this test. When the test is over, every request in its log is checked. */
export async function practice(options: ModelOptions = {}): Promise<PracticeModel> {
  const model = await startModel(options);
  models.set(model, { allowed: new Set() });
  return model;
}

/** For a test that breaks a request on purpose. */
export function allow(model: PracticeModel, entry: LoggedRequest | undefined): void {
  if (entry) models.get(model)?.allowed.add(entry);
}

export const say = (text: string, more: Scripted = {}): Scripted => ({
  content: [{ type: "text", text }],
  ...more,
});

export const call = (name: string, input: unknown, id?: string): ScriptedBlock => ({
  type: "tool_use",
  name,
  input,
  ...(id && { id }),
});

/** An answer that calls tools: each of them a name and its input. */
export const calls = (...tools: [name: string, input: unknown][]): Scripted => ({
  content: tools.map(([name, input]) => call(name, input)),
});

type Param = Anthropic.MessageParam;

/** The blocks of a message of a request, whichever way they are written. */
export function blocks(
  message: { content: Param["content"] } | undefined,
): Anthropic.ContentBlockParam[] {
  if (!message) return [];
  const { content } = message;
  return typeof content === "string" ? [{ type: "text", text: content }] : content;
}

/** A message as "role: texts and kinds of blocks", which is quick to compare. */
export function sketch(message: { role: string; content: Param["content"] }): string {
  const parts = withoutContext(blocks(message));
  const words = parts.map((one) => (one.type === "text" ? one.text : one.type));
  return `${message.role}: ${words.join(" | ")}`;
}

/** The messages of a request as sketches. */
export function outline(entry: LoggedRequest | undefined): string[] {
  return (entry?.request.messages ?? []).map(sketch);
}

/** The results of the calls in the last message of a request. */
export function results(entry: LoggedRequest | undefined): Anthropic.ToolResultBlockParam[] {
  const last = blocks(entry?.request.messages.at(-1));
  return last.flatMap((block) => (block.type === "tool_result" ? [block] : []));
}

// ---- The invariant: the next request is always valid ----

/** What is wrong with a request, by our rules, which are stricter than the API's. */
export function breaches(request: { messages?: Param[]; system?: unknown }): string[] {
  const messages = request.messages ?? [];
  const found: string[] = [];
  if (messages.length === 0) found.push("there are no messages");
  const callIds = new Set<string>();
  messages.forEach((message, index) => {
    const problems = [
      ...(message.role === (index % 2 === 0 ? "user" : "assistant")
        ? []
        : ["the roles must take turns, the user first"]),
      ...blocks(message).flatMap((block) => problemsOfBlock(block, callIds)),
      ...problemsOfOrder(message, messages[index - 1]),
    ];
    found.push(...problems.map((what) => `message ${index}: ${what}`));
  });
  const last = messages.at(-1);
  const paused = blocks(last).at(-1)?.type ?? "";
  if (last?.role === "assistant" && !/^server_tool_use$|_tool_result$/.test(paused)) {
    found.push("the last message is neither the user's nor a paused reply");
  }
  if (idsOf(last, "tool_use").length > 0) found.push("the last message has open calls");
  if (!isWellFormed(request)) found.push("half a character");
  return found;
}

/** `callIds` are those of the blocks before this one; its own is added. */
function problemsOfBlock(block: Anthropic.ContentBlockParam, callIds: Set<string>): string[] {
  const found: string[] = [];
  if (isBlank(block)) found.push(`a blank ${block.type}`);
  if (block.type === "thinking" && !block.signature) found.push("thinking that was cut off");
  if (block.type !== "tool_use" && block.type !== "server_tool_use") return found;
  if (callIds.has(block.id)) found.push(`the id ${block.id} is there twice`);
  callIds.add(block.id);
  return found;
}

/** Which blocks a message has to have, and in which order. */
function problemsOfOrder(message: Param, before: Param | undefined): string[] {
  const content = blocks(message);
  const found: string[] = [];
  if (content.length === 0) found.push("it is empty");
  const asked = idsOf(before, "tool_use").join();
  const answered = idsOf(message, "tool_result").join();
  if (asked !== answered) {
    found.push(`calls ${asked || "none"}, but results ${answered || "none"}`);
  }
  const first = content.findIndex(({ type }) => type !== "tool_result");
  if (first >= 0 && content.slice(first).some(({ type }) => type === "tool_result")) {
    found.push("results must come first");
  }
  if (content.at(-1)?.type.endsWith("thinking")) found.push("thinking must not come last");
  return found;
}

function idsOf(message: Param | undefined, type: "tool_use" | "tool_result"): string[] {
  return blocks(message).flatMap((block) => {
    if (block.type !== type) return [];
    return [block.type === "tool_use" ? block.id : block.tool_use_id];
  });
}

function isBlank(block: Anthropic.ContentBlockParam): boolean {
  if (block.type === "text") return block.text.trim() === "";
  return block.type === "tool_result" && (block.content?.length ?? 0) === 0;
}

function isWellFormed(value: unknown): boolean {
  if (typeof value === "string") return value.isWellFormed();
  if (typeof value !== "object" || value === null) return true;
  return Object.values(value).every(isWellFormed);
}

/** What is wrong with any request in this log. */
export function wrongIn(log: LoggedRequest[], allowed = new Set<LoggedRequest>()): string[] {
  return log.flatMap((entry, index) => {
    // A client that hung up at once may not have sent the whole body.
    if (allowed.has(entry) || (entry.aborted && !entry.request.messages)) return [];
    const problems = entry.problem ? [entry.problem] : [];
    const wrong = [...problems, ...breaches(entry.request)];
    const said = outline(entry).map((line) => `\n    ${line.slice(0, 200)}`);
    return wrong.map((what) => `request ${index + 1}: ${what}${said.join("")}`);
  });
}

// ---- What is paid: each request begins with the one before it ----

const withoutMarks = (value: unknown) =>
  JSON.stringify(value, (name, field) => (name === "cache_control" ? undefined : field));

/** The blocks of a request in the order in which the API reads them, without marks. */
function rowOf({ request }: LoggedRequest): string[] {
  const { tools = [], system = [], messages } = request;
  return [
    ...tools.map((tool) => `tool ${withoutMarks(tool)}`),
    ...[system].flat().map((block) => `system ${withoutMarks(block)}`),
    ...messages.flatMap((message) =>
      blocks(message).map((block) => `${message.role} ${withoutMarks(block)}`),
    ),
  ];
}

/** Whether all of `before` stands at the beginning of `after`, block by block. */
export function beginsWith(after: LoggedRequest, before: LoggedRequest): boolean {
  const rows = rowOf(after);
  return rowOf(before).every((block, index) => rows[index] === block);
}

/** The requests that do not begin with the one before them, each with the first other block. */
export function brokenPrefixes(log: LoggedRequest[]): string[] {
  return log.slice(1).flatMap((after, index) => {
    const before = log[index];
    if (!before || beginsWith(after, before)) return [];
    const [newRow, oldRow] = [rowOf(after), rowOf(before)];
    const at = oldRow.findIndex((block, place) => newRow[place] !== block);
    return [`request ${index + 2}, block ${at}: ${oldRow[at]} became ${newRow[at]}`.slice(0, 400)];
  });
}

// ---- A section, as a process ----

/** Longer than anything here takes; it only makes a test that hangs say where. */
const PATIENCE = 30_000;

interface Pipes {
  pid: number | undefined;
  write(input: string): void;
  end(): void;
  kill(signal: NodeJS.Signals): void;
  forward?(ms: number): Promise<unknown>;
  /** Closes our end of its output, so that it gets EPIPE. Not in a terminal. */
  stopReading?(): void;
}

const ESCAPE = String.fromCharCode(27);
const UNFINISHED = new RegExp(`${ESCAPE}(\\[[\\d;?]*)?$`);

/** For cases with several processes: on a busy machine one takes seconds to start. */
export const SEVERAL = { timeout: 4 * PATIENCE };

const programs = new Set<Program>();

/** A running section. Its methods wait for what the section prints, and never for a fixed time. */
export class Program {
  code: number | undefined;
  /** All that was printed, without control sequences for cursor and colours. */
  text = "";
  /** All that was printed, as it came. */
  raw = "";
  readonly #pipes: Pipes;
  readonly #watchers = new Set<() => void>();
  #seen = 0;

  constructor(open: (program: Program) => Pipes) {
    this.#pipes = open(this);
    programs.add(this);
  }

  get pid(): number {
    return this.#pipes.pid ?? 0;
  }

  heard(piece: string): void {
    this.raw += piece;
    // A chunk may end within a control sequence, whose rest then comes with the next chunk.
    const whole = this.raw.replace(UNFINISHED, "");
    this.text = stripVTControlCharacters(whole).replace(/\r+\n/g, "\n");
    for (const watch of this.#watchers) watch();
  }

  ended(code: number): void {
    this.code = code;
    for (const watch of this.#watchers) watch();
  }

  /** Waits until `wanted` is printed; gives what came since the last wait, up to its end. */
  until(wanted: string | RegExp): Promise<string> {
    const flags = typeof wanted === "string" ? "" : wanted.flags;
    const source = typeof wanted === "string" ? wanted.replace(/\W/g, "\\$&") : wanted.source;
    const pattern = new RegExp(source, `${flags}g`);
    return this.#wait(`/${source}/`, () => {
      pattern.lastIndex = this.#seen;
      const match = pattern.exec(this.text);
      if (!match) return undefined;
      const news = this.text.slice(this.#seen, pattern.lastIndex);
      this.#seen = pattern.lastIndex;
      return news;
    });
  }

  /** Waits for the next prompt; gives what was printed before it. */
  async prompt(): Promise<string> {
    const news = await this.until(/(?<=^|\n|You > )You > /);
    return news.slice(0, -"You > ".length);
  }

  /** Types a line; gives what is printed up to the next prompt. */
  ask(line: string): Promise<string> {
    this.write(`${line}\n`);
    return this.prompt();
  }

  write(input: string): void {
    this.#pipes.write(input);
  }

  kill(signal: NodeJS.Signals = "SIGKILL"): void {
    if (this.code === undefined) this.#pipes.kill(signal);
  }

  /** Puts its clock forward, if it was started with `clock`. Resolves when all timers have fired. */
  async forward(ms: number): Promise<void> {
    await this.#pipes.forward?.(ms);
  }

  /** From now on nobody reads what it prints. */
  stopReading(): void {
    this.#pipes.stopReading?.();
  }

  /** Closes the program's input and waits until it has ended. */
  async finish(input = ""): Promise<{ code: number; text: string }> {
    if (input) this.write(input);
    this.#pipes.end();
    return this.end();
  }

  /** Waits until the program has ended. */
  async end(): Promise<{ code: number; text: string }> {
    const code = await this.#wait("its end", () => this.code);
    return { code, text: this.text };
  }

  #wait<T>(what: string, look: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const done = (settle: () => void) => {
        clearTimeout(timer);
        this.#watchers.delete(watch);
        settle();
      };
      const failed = (why: string) =>
        done(() => reject(new Error(`${why} ${what} came. It printed:\n${this.text}`)));
      const timer = setTimeout(() => failed("too long before"), PATIENCE);
      const watch = () => {
        const found = look();
        if (found !== undefined) done(() => resolve(found));
        else if (this.code !== undefined) failed(`it ended with ${this.code} before`);
      };
      this.#watchers.add(watch);
      watch();
    });
  }
}

/** An environment without settings that could change what a section does. */
function bareEnvironment(): Settings {
  const kept = "PATH HOME USER LANG TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
  return Object.fromEntries(kept.split(" ").map((name) => [name, process.env[name] ?? ""]));
}

/** How a section is started: by tsx, as readers do it, or by Node alone, in half the time. */
export type Runner = "tsx" | "fast";

function command({ file }: SectionFile, runner: Runner): string[] {
  return runner === "tsx" ? ["--import", import.meta.resolve("tsx"), file] : [withoutTypes(file)];
}

// esbuild is a dependency of tsx, which removes the types with it.
const ofTsx = createRequire(createRequire(import.meta.url).resolve("tsx"));
const esbuild: { transformSync(code: string, options: object): { code: string } } =
  ofTsx("esbuild");

/**
 * The path of the same code without its types, which Node runs alone. Removing the types at every
 * start would take twice the time, so the result is cached, named by the hash of its source. It is
 * inside node_modules, where it finds its packages.
 */
export function withoutTypes(file: string): string {
  const source = readFileSync(file, "utf8");
  const hash = createHash("sha256").update(source).digest("hex").slice(0, 16);
  const folder = join(ROOT, "node_modules/.cache/claw0", hash, "sessions/code");
  const script = join(folder, `${basename(file, ".ts")}.mjs`);
  if (existsSync(script)) return script;
  mkdirSync(folder, { recursive: true });
  const mine = `${script}.${process.pid}`; // another worker may be writing the same
  writeFileSync(mine, esbuild.transformSync(source, { loader: "ts" }).code);
  renameSync(mine, script);
  return script;
}

export interface StartOptions {
  runner?: Runner;
  /** Arguments after the file, such as --serve. */
  words?: string[];
  /** Has a clock that `forward` puts forward. */
  clock?: boolean;
  /** A command that starts the process, such as `unshare -m`: its own arguments come after it. */
  wrapper?: string[];
  /** Runs as this user. */
  uid?: number;
}

const CLOCK = join(ROOT, "tests/fixtures/clock.mjs");

/** Starts a section that reads from a pipe. */
export function start(
  section: SectionFile,
  given: Settings,
  { runner = "fast", words = [], clock = false, wrapper = [], uid }: StartOptions = {},
): Program {
  const env = { ...bareEnvironment(), ...given };
  const preload = clock ? ["--import", CLOCK] : [];
  const line = [...wrapper, process.execPath, ...preload, ...command(section, runner), ...words];
  const stdio: StdioOptions = clock ? ["pipe", "pipe", "pipe", "ipc"] : "pipe";
  return new Program((program) => {
    const child: ChildProcess = spawn(line[0] ?? "", line.slice(1), { cwd: ROOT, env, stdio, uid });
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding("utf8").on("data", (piece: string) => program.heard(piece));
    }
    child.stdin?.on("error", () => {}); // the program may have ended before a line reaches it
    child.on("close", (code, signal) => program.ended(code ?? (signal ? 128 : 1)));
    return {
      pid: child.pid,
      write: (input) => child.stdin?.write(input),
      end: () => child.stdin?.end(),
      kill: (signal) => child.kill(signal),
      forward: (ms) =>
        new Promise((resolve, reject) => {
          child.once("message", resolve);
          child.send({ forward: ms }, (error) => error && reject(error));
        }),
      stopReading: () => child.stdout?.destroy(),
    };
  });
}

/** Starts a section in a pseudo-terminal of so many columns. */
export function startInTerminal(section: SectionFile, given: Settings, cols = 100): Program {
  return inTerminal([process.execPath, ...command(section, "fast")], given, cols);
}

/** Starts a section as a job of an interactive shell, whose prompt is "$ ". */
export function startInShell(section: SectionFile, given: Settings): Program {
  const shell = inTerminal(["bash", "--norc", "-i"], { ...given, PS1: "$ " }, 200);
  shell.write(`${[process.execPath, ...command(section, "fast")].join(" ")}\r`);
  return shell;
}

function inTerminal([file = "", ...args]: string[], given: Settings, cols: number): Program {
  const env = { ...bareEnvironment(), ...given, TERM: "xterm-256color" };
  return new Program((program) => {
    const size = { cols, rows: 40, name: "xterm-256color" };
    const child = spawnTerminal(file, args, { ...size, cwd: ROOT, env });
    child.onData((piece) => program.heard(piece));
    child.onExit(({ exitCode, signal }) => program.ended(signal ? 128 + signal : exitCode));
    return {
      pid: child.pid,
      write: (input) => child.write(input),
      end: () => child.write("\x04"),
      kill: (signal) => child.kill(process.platform === "win32" ? undefined : signal),
    };
  });
}

// ---- Before and after every test ----

let environment: NodeJS.ProcessEnv;
let atExit: NodeJS.ExitListener[] = [];

beforeEach(() => {
  environment = { ...process.env };
  atExit = process.listeners("exit");
  output = [];
  // What an imported section prints is kept for the test and not shown in the terminal.
  vi.spyOn(process.stdout, "write").mockImplementation((piece) => {
    output.push(String(piece));
    return true;
  });
});

afterEach(async () => {
  for (const program of programs) program.kill();
  await Promise.all([...programs].map((program) => program.end()));
  programs.clear();
  const wrong = [...models].flatMap(([model, { allowed }]) => wrongIn(model.log, allowed));
  await Promise.all([...models.keys()].map((model) => model.close()));
  models.clear();
  vi.restoreAllMocks();
  vi.useRealTimers();
  // A section's listeners for its own end must not run when the test process ends.
  for (const listener of process.listeners("exit")) {
    if (!atExit.includes(listener)) process.off("exit", listener);
  }
  for (const name of Object.keys(process.env)) delete process.env[name];
  Object.assign(process.env, environment);
  for (const folder of folders.splice(0)) {
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  if (wrong.length === 0) return;
  const some = wrong.slice(0, 5).join("\n");
  throw new Error(`The invariant is broken ${wrong.length} times. The first ones:\n${some}`);
});
