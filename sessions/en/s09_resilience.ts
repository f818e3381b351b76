// Resilience
//
// A model call can fail in many ways, and each way needs another answer: another key, another
// model, a shorter conversation, a pause, or none at all because the request itself is wrong.
//
// The path of a message (║…║ is new here):
//
//   terminal · Telegram · Feishu · program (JSON-RPC) · cron job · heartbeat
//     └─► accept ─► route ─► Inbox ─► runExclusive ─► handle or runJob, which take three steps:
//           1. runTurn ─► memory, prompt ─► ║failover║ ─► context guard ─► continueTurn
//           2. reply ─► chunkMessage ─► DeliveryQueue ─► DeliveryRunner ─► Channel.send
//           3. acknowledge: the message leaves the inbox
//
// The terminal, programs and heartbeats skip the Inbox: nobody waits for them after a crash.
//
//   finishTurn
//   └─ ResilienceRunner   layer 1: which key, which model
//      └─ ContextGuard    layer 2: is the conversation too long? then shorten it
//         └─ continueTurn layer 3: the loop of calls and tools, from what is stored
//
// New here: failures classified by type, keys with cooldowns, fallback models, an idle timeout for
// streams.
// Run it:   npm start -- s09      offline; three keys; `npm run practice -- fail 529` beside it
//           npx tsx sessions/en/s09_resilience.ts [--serve]      with your keys in .env
// Left out on purpose: keys for each agent or model, a key pinned to a conversation, OAuth, other
// providers, trying a key before its cooldown ends.
//
// Regions: Configuration · Terminal · s01 The agent loop · s02 Tool use · s03 Sessions ·
//          s04 Channels · s05 Gateway and routing · s06 Intelligence ·
//          s07 Heartbeat and cron · s08 Delivery · s09 Resilience · All of it together

// The Chinese and Japanese files are made from this one and from code.po: npm run translate.

import { spawn } from "node:child_process";
import crypto from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import type { Interface } from "node:readline";
import { createInterface } from "node:readline";
import { type Duplex, PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic from "@anthropic-ai/sdk";
import { CronExpressionParser } from "cron-parser";
import dotenv from "dotenv";
import { Bot, GrammyError } from "grammy";
import type { Message as TelegramMessage, UserFromGetMe } from "grammy/types";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
import { type WebSocket, WebSocketServer } from "ws";
import { parse as parseYaml } from "yaml";

// ---- Configuration ----

// Importing this file must do nothing: .env is read only if it is the file being run.
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // what the program keeps for itself
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);
type Setting = (name: string) => string; // "" for what is not set
const env: Setting = (name) => process.env[name] ?? "";

/** A whole number from 0 to `max` among the settings. Throws, naming the setting and its range. */
function wholeNumber(name: string, otherwise: number, max: number): number {
  const value = Number(env(name) || otherwise);
  if (Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new Error(`${name} must be a whole number from 0 to ${max}`);
}

// ---- Terminal ----

let atLineStart = true;

/** Prints what the model says, piece by piece. */
export function say(piece: string) {
  if (typing && piece) return sayAbove(typing, piece);
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** Lines of the program's own: dim, yellow, and red. */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** Marks a sentence for people that is not printed right here, so that it can be translated. */
export const t = (sentence: string) => sentence;

let typing: Interface | undefined; // set while somebody may be typing at the prompt

/**
 * Prints above the line that is being typed. It may be longer than the terminal is wide, so:
 * up to its first row, clear all of it, print, leave as many rows, and have it drawn again.
 */
function sayAbove(reader: Interface, lines: string): void {
  const { rows } = reader.getCursorPos();
  process.stdout.write(`\r${rows ? `\x1b[${rows}A` : ""}\x1b[J${lines}${"\n".repeat(rows)}`);
  reader.prompt(true);
}

/** Reads lines from a person or a pipe, and hands them over one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line being answered; at the prompt it leaves. */
  async run(handle: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    // readline would echo keys into a reply that is streaming. So it is paused meanwhile, and
    // the keys wait here, between the keyboard and readline. Only Ctrl+C is seen at once.
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const terminal = stdin.isTTY && stdout.isTTY;
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    const prompt = () => {
      if (!terminal) return say("You > ");
      typing = reader;
      reader.prompt();
    };
    let turn: AbortController | undefined;
    const interrupt = () => (turn ? turn.abort() : reader.close());
    process.on("SIGINT", interrupt);
    reader.on("SIGINT", interrupt).on("line", () => terminal && reader.pause());
    // Line by line: when it pauses, readline still finishes the piece that it has.
    const put = (typed: string) => typed.split(/(?<=\r(?!\n))/).map((line) => keys.write(line));
    stdin.setEncoding("utf8").on("end", () => keys.end());
    stdin.on("data", (typed) => (turn && typed.includes("\x03") ? turn.abort() : put(`${typed}`)));
    prompt();
    for await (const entered of reader) {
      typing = undefined;
      atLineStart = true;
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`Failed: ${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    typing = undefined;
    stdin.destroy();
    say("\n");
  }
}

// ---- s01 · The agent loop ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** A reply is kept exactly as the API gave it: with its id, its stop reason and its usage. */
export type Message = Anthropic.Message | (Entry & { role: "user" });

/** The model remembers nothing from one call to the next. This list is all that it knows. */
export class Conversation {
  messages: Message[] = [];

  append(message: Message, _about: { inboxId?: string } = {}): void {
    this.messages.push(message);
  }
}

/** How one turn is to run: who hears the reply as it arrives, and what can stop it. */
export interface TurnOptions {
  onText?(piece: string): void;
  signal?: AbortSignal;
}

/** After these the model is not done; after the others it is, and here is what to tell a person. */
const CONTINUE_REASONS = new Set(["pause_turn"]);
const STOP_NOTES: Record<string, string> = {
  end_turn: "",
  stop_sequence: "",
  max_tokens: t("\n(The reply was cut off: it reached its limit of tokens.)"),
  refusal: t("\n(The model refused. From now on it will not see this turn.)"),
  model_context_window_exceeded: t("\n(Cut off: the model can read no more than this.)"),
};
const stopNote = (m: Message) => ("stop_reason" in m && STOP_NOTES[m.stop_reason ?? ""]) || "";
const startsTurn = (entry: Entry) => entry.role === "user" && resultsIn(entry).length === 0;

/** The history as the API accepts it: nothing blank, nothing refused, the roles in turn. */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  history = answerCalls(history);
  for (const message of history) {
    const last = request.at(-1);
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    // A reply may not end in thinking; if it does, the thinking was cut off.
    while (content.at(-1)?.type.endsWith("thinking")) content.pop();
    // What was refused once is refused again, together with all that follows it.
    const refused = "stop_reason" in message && message.stop_reason === "refusal";
    if (refused) request.splice(request.findLastIndex(startsTurn));
    else if (last?.role === message.role) last.content.push(...content);
    else if (content.length > 0) request.push({ role: message.role, content });
  }
  return request;
}

/** Everything that one call needs. */
export function buildRequest({ messages }: Conversation, options: TurnOptions) {
  return {
    model: options.model ?? options.agent?.model ?? MODEL,
    max_tokens: 8192,
    system: buildSystemPrompt(options),
    tools: toolsFor(options),
    messages: withCacheBreakpoint(toRequest(messages)),
  };
}

/** One call. Gives the reply, or what had arrived of it when it was aborted. Throws API errors. */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  throwSimulated(options);
  const idleTimer = setTimeout(() => stream.abort(), IDLE_TIMEOUT);
  // The SDK finds ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL in the environment.
  const client = withIdleTimeout(options.client ?? new Anthropic(), idleTimer);
  const stream = client.messages.stream(request, { signal: options.signal });
  let finished = 0;
  stream.on("text", (piece) => options.onText?.(piece)).on("contentBlock", () => finished++);
  try {
    return await stream.finalMessage();
  } catch (error) {
    if (!options.signal?.aborted) throw error;
    options.onText?.(" (interrupted)");
    const arrived = stream.currentMessage?.content ?? [];
    const kept = arrived.filter((block, index) => block.type === "text" || index < finished);
    const content = [...kept, { type: "text", text: "(interrupted)", citations: null }];
    // No stop reason, since nobody but us stopped it. id and usage only the API could give.
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  } finally {
    clearTimeout(idleTimer);
  }
}

/** The loop. It goes by what is stored and nothing else, so it can be entered at any point. */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    checkRounds(conversation);
    const reply = await callModel(buildRequest(conversation, options), options);
    conversation.append(reply);
    options.onText?.(stopNote(reply));
    if (reply.stop_reason !== "tool_use") continue;
    const turn = { ...options, conversation };
    const results = await Promise.all(callsIn(reply).map((call) => runTool(call, turn)));
    conversation.append({ role: "user", content: results });
  }
}

const needsReply = (last?: Message) =>
  last?.role === "user" || CONTINUE_REASONS.has(last?.stop_reason ?? "");

/** Brings the turn to its end. Gives all that was said since the person spoke. */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  // After a restart the answer may be stored already. Then nothing is asked, so no key is needed.
  if (needsReply(conversation.messages.at(-1))) await runMiddleware(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(textOf).filter(Boolean).join("\n\n");
}

const textOf = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + stopNote(message);

/** One turn. What the person said is on record before the model is asked, and stays there. */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  const about = { inboxId: options.message?.id };
  const texts = [contextFor(conversation, input, options), input];
  const content = texts.map((text) => ({ type: "text" as const, text }));
  conversation.append({ role: "user", content }, about);
  return finishTurn(conversation, options);
}

// ---- s02 · Tool use ----

/** What a handler knows of the turn that it works for. */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

type Fields = Record<string, unknown>; // of something that came from outside

/** Gets input that fits the tool's schema. Gives the output; what it throws, the model reads. */
export type Handler = (input: Fields, turn: Turn) => string | Promise<string>;

const string = (description: string) => ({ type: "string", description });
const file = string("The path, relative to the workspace.");

/** The JSON Schema of an object. Every property is required unless `optional` names it. */
function objectSchema(properties: object, optional: string[] = []) {
  const required = Object.keys(properties).filter((name) => !optional.includes(name));
  return { type: "object" as const, properties, required };
}

/** An entry of `TOOLS`: the properties are those of the input that the model has to give. */
function tool(name: string, description: string, properties: object, optional: string[] = []) {
  return { name, description, input_schema: objectSchema(properties, optional) };
}

/** What the model is told. It knows a tool by nothing but these words. */
export const TOOLS: Anthropic.Tool[] = [
  tool(
    "bash",
    "Run a shell command in the workspace (bash; on Windows cmd.exe). Gives stdout and stderr. " +
      "What it leaves running in the background is ended with it.",
    {
      command: string("The command."),
      seconds: { type: "integer", description: "Time limit, 1 to 600; 60 if left out." },
    },
    ["seconds"],
  ),
  tool("read_file", "Read a text file of the workspace. A long one is shown without its middle.", {
    path: file,
  }),
  tool(
    "write_file",
    "Write a text file of the workspace, with its folders. Replaces what was there.",
    { path: file, content: string("The whole text of the file.") },
  ),
  tool("edit_file", "Replace one passage of a text file. It must occur exactly once.", {
    path: file,
    old_text: string("The passage as it stands in the file, with enough round it."),
    new_text: string("What stands there afterwards."),
  }),
];

/** What runs here when the model says the name. */
export const HANDLERS: Record<string, Handler> = {
  bash: (input, turn) => bash(String(input.command), Number(input.seconds ?? 60), turn.signal),
  read_file: (input) => readText(safePath(String(input.path), WORKSPACE)),
  write_file: (input) => writeText(String(input.path), String(input.content)),
  edit_file: (input) =>
    editText(String(input.path), String(input.old_text), String(input.new_text)),
};

CONTINUE_REASONS.add("tool_use");
const MAX_ROUNDS = 50;
const OUTPUT_LIMIT = 30_000; // characters of one result, half of them from each end

/** A model that goes round in circles costs money until somebody looks. */
function checkRounds({ messages }: Conversation): void {
  const replies = messages
    .slice(messages.findLastIndex(startsTurn))
    .filter((m) => m.role === "assistant");
  if (replies.length < MAX_ROUNDS) return;
  throw new Error(`stopped after ${MAX_ROUNDS} rounds of tool calls; say "go on" to go on`);
}

const callsIn = (message: Message | undefined) =>
  message?.role === "assistant" ? message.content.filter((block) => block.type === "tool_use") : [];
const resultsIn = (entry: Entry | undefined) =>
  entry?.role === "user" ? entry.content.filter((block) => block.type === "tool_result") : [];

const idsIn = ({ content }: Message) =>
  content.map((block) => ("tool_use_id" in block ? block.tool_use_id : ""));

/**
 * The history with one result for every call, right after it, as the API demands. A call is
 * left open by a crash, by Ctrl+C, or by `max_tokens` in the middle of its input. A tool that the
 * API runs itself is left open by an error in the middle of a pause; such a call is left out.
 */
function answerCalls(history: Message[]): Message[] {
  const done = new Set(history.flatMap(idsIn));
  return history.flatMap((message, index): Message[] => {
    const asked = new Set(callsIn(history[index - 1]).map(({ id }) => id));
    const content = message.content.filter((block) => {
      if (block.type === "tool_result") return asked.delete(block.tool_use_id);
      const isOpen = block.type === "server_tool_use" && !done.has(block.id);
      return !isOpen || index === history.length - 1;
    });
    if (message.role === "user") return [{ ...message, content }];
    const answered = new Set(resultsIn(history[index + 1]).map((block) => block.tool_use_id));
    const open = callsIn(message).filter(({ id }) => !answered.has(id));
    const reply = { ...message, content } as Anthropic.Message; // its own blocks, or fewer
    // A refused turn is left out as a whole: its calls need no results.
    if (open.length === 0 || message.stop_reason === "refusal") return [reply];
    const cut = message.stop_reason === "max_tokens";
    const why = cut ? "cut off; it was not run" : "interrupted; it may have run";
    return [reply, { role: "user", content: open.map(({ id }) => result(id, why, true)) }];
  });
}

/** Runs one call. Never throws: whatever goes wrong is a result that the model can work with. */
export async function runTool(call: Anthropic.ToolUseBlock, turn: Turn) {
  info(`  ${call.name} ${JSON.stringify(call.input).slice(0, 100)}`);
  try {
    const tool = toolsFor(turn).find(({ name }) => name === call.name);
    const handler = HANDLERS[call.name];
    if (!tool || !handler) throw new Error(`there is no tool ${call.name}`);
    const input = checkInput(tool.input_schema, call.input);
    checkPrivate(input, turn);
    if (turn.signal?.aborted) throw new Error("interrupted; it was not run");
    return result(call.id, await handler(input, turn));
  } catch (error) {
    return result(call.id, error instanceof Error ? error.message : String(error), true);
  }
}

function result(id: string, output: string, failed = false): Anthropic.ToolResultBlockParam {
  // Half a character, from output that was cut, would make the whole request invalid.
  const content = keepEnds(output, OUTPUT_LIMIT).toWellFormed() || "(no output)";
  return { type: "tool_result", tool_use_id: id, content, ...(failed && { is_error: true }) };
}

type Property = { type?: string; enum?: unknown[] };

/** The input, if it has what the schema requires, in the right types. Throws, naming the field. */
export function checkInput(schema: Anthropic.Tool.InputSchema, input: unknown) {
  if (typeof input !== "object" || input === null) throw new Error("the input must be an object");
  const fields: Fields = { ...input };
  const properties = (schema.properties ?? {}) as Record<string, Property>; // ours
  for (const name of schema.required ?? []) {
    if (fields[name] === undefined) throw new Error(`${name} is missing`);
  }
  for (const [name, { type, enum: values }] of Object.entries(properties)) {
    const value = fields[name];
    if (value === undefined) continue;
    const fits = type === "integer" ? Number.isInteger(value) : !type || typeof value === type;
    if (!fits) throw new Error(`${name} must be of type ${type}`);
    if (values && !values.includes(value)) throw new Error(`${name} must be one of ${values}`);
  }
  return fields;
}

/** The text, or its two ends if it is longer than `limit`; `lost` characters went before. */
function keepEnds(whole: string, limit: number, lost = 0): string {
  if (whole.length <= limit) return whole;
  const half = Math.ceil(limit / 2);
  const left = whole.length - 2 * half + lost;
  return `${whole.slice(0, half)}\n… ${left} characters left out …\n${whole.slice(-half)}`;
}

/**
 * The real path of a file below `root`, which need not exist yet. Throws if it is outside:
 * by "..", as an absolute path, in a sibling "root2", or behind a symbolic link.
 */
export function safePath(file: string, root: string): string {
  const base = fs.realpathSync.native(root);
  const target = path.resolve(base, file);
  let existing = target;
  while (!fs.lstatSync(existing, { throwIfNoEntry: false })) existing = path.dirname(existing);
  // realpath fails on a link that leads nowhere. Good: writing there would create its target.
  const real = path.join(fs.realpathSync.native(existing), path.relative(existing, target));
  const inside = path.relative(base, real);
  if (inside.split(path.sep)[0] === ".." || path.isAbsolute(inside)) {
    throw new Error(`${file} is outside the workspace`);
  }
  if (inside.split(path.sep)[0]?.toLowerCase() === ".state") {
    throw new Error(`${file} belongs to the program itself`);
  }
  return real;
}

// The file tools are synchronous on purpose: calls run side by side, and between the reading
// and the writing of an edit nobody else gets a turn.

function readText(file: string): string {
  const stat = fs.statSync(file);
  if (!stat.isFile()) throw new Error("not a file"); // reading a pipe would wait for ever
  if (stat.size > 10_000_000)
    throw new Error(`${stat.size} bytes are too many: look at parts with bash`);
  const bytes = fs.readFileSync(file);
  const content = bytes.toString("utf8");
  // Written back, a file in another encoding would come out broken.
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** `words` with the line ends that the file has: a model writes "\n", whatever was there. */
function withLineEnds(words: string, content: string): string {
  return words.replace(/\r?\n/g, content.includes("\r\n") ? "\r\n" : "\n");
}

function writeText(name: string, content: string): string {
  const file = safePath(name, WORKSPACE);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const before = fs.existsSync(file) ? readText(file) : content;
  fs.writeFileSync(file, withLineEnds(content, before));
  return `wrote ${content.length} characters to ${name}`;
}

function editText(name: string, oldText: string, newText: string): string {
  const file = safePath(name, WORKSPACE);
  const content = readText(file);
  const old = content.includes(oldText) ? oldText : withLineEnds(oldText, content);
  const parts = content.split(old);
  if (!oldText || parts.length !== 2) {
    const times = oldText ? parts.length - 1 : 0;
    throw new Error(`old_text occurs ${times} times in ${name}; it must occur exactly once`);
  }
  fs.writeFileSync(file, parts.join(withLineEnds(newText, content)));
  return `edited ${name}`;
}

// bash runs in the workspace but is not confined to it: it can read whatever you can, .env too.
// Its environment holds no keys and tokens, so that no stray `env` shows them to the model; that
// is a fence against accidents. Against intent only a sandbox helps, or not offering the tool.
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";

async function bash(command: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const env = Object.fromEntries(SAFE_ENV.split(" ").map((name) => [name, process.env[name]]));
  const child = spawn(command, {
    shell: WINDOWS || "bash",
    cwd: WORKSPACE,
    env,
    detached: !WINDOWS, // a process group of its own, which can be killed as one
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  let output = "";
  let lost = 0;
  const collect = (piece: string) => {
    output += piece;
    if (output.length < 10 * OUTPUT_LIMIT) return;
    // A flood. Only its ends will be shown, so the middle need not be kept.
    lost += output.length - 2 * OUTPUT_LIMIT;
    output = output.slice(0, OUTPUT_LIMIT) + output.slice(-OUTPUT_LIMIT);
  };
  child.stdout.setEncoding("utf8").on("data", collect);
  child.stderr.setEncoding("utf8").on("data", collect);
  let stopped = "";
  const stop = (why: string) => {
    stopped = why;
    killGroup(child.pid);
    // A child that left the group may hold the pipes open: don't wait for it.
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const interrupt = () => stop("interrupted by the user");
  const limit = Math.min(Math.max(seconds, 1), 600);
  const timer = setTimeout(() => stop(`stopped after ${limit} s`), limit * 1000);
  signal?.addEventListener("abort", interrupt);
  child.on("exit", () => WINDOWS || killGroup(child.pid)); // ends what runs on in the background
  try {
    const [code, killer] = await once(child, "close");
    output = keepEnds(output, OUTPUT_LIMIT - 200, lost); // leaves room for the words below
    if (code === 0) return output;
    throw new Error(`${stopped || `exit code ${code ?? killer}`}\n${output}`);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", interrupt);
  }
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  if (WINDOWS) return void spawn("taskkill", ["/pid", String(pid), "/t", "/f"]);
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // Nobody is left in the group.
  }
}

// ---- s03 · Sessions ----

/** The parts of a running program. Each section adds its own. */
export interface App {
  store: SessionStore;
  key: string; // of the conversation that the terminal is in
}

/** Each section that needs to know more about a turn adds it to these options. */
export interface TurnOptions {
  app?: App; // for middleware and tools that use a part of the program
}

/**
 * A layer of middleware stands round every turn. `next` runs all that is further in. A layer may do
 * something before and after `next`, change the options, catch an error, or call `next` again: what
 * was already said and done is stored, so the turn goes on from there and no tool runs twice.
 */
export type Middleware = (
  conversation: Conversation,
  options: TurnOptions,
  next: (options: TurnOptions) => Promise<void>,
) => Promise<void>;

/** Outermost first. To add a layer, `unshift` it (outermost) or `push` it (innermost). */
export const MIDDLEWARE: Middleware[] = [];

/** Runs `innermost` with all layers of MIDDLEWARE round it. */
function runMiddleware(
  conversation: Conversation,
  options: TurnOptions,
  innermost: (conversation: Conversation, options: TurnOptions) => Promise<void> = continueTurn,
): Promise<void> {
  let run = (given: TurnOptions) => innermost(conversation, given);
  // It is built from the inside out, because each layer needs the one inside it as its `next`.
  for (const layer of MIDDLEWARE.toReversed()) {
    const next = run;
    run = (given) => layer(conversation, given, next);
  }
  return run(options);
}

// A session file, line by line. Nothing in it is ever changed or taken out: what makes the
// history shorter is one more line, which says what to leave out when the file is replayed.
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        as the API gave it
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                step 1 of the guard
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"Ada …","keepFrom":5}}       step 2: lines 2 to 4 go

/** One line of a session file, whichever it is. */
interface LogRecord {
  at?: string;
  message?: Message;
  inboxId?: string;
  compaction?: { summary: string; keepFrom: number };
  shorten?: { toolUseIds: string[] };
}

/**
 * A file of JSON lines that is only ever appended to. A line that can't be read, torn by a
 * crash perhaps, stays where it is, is named by its number, and hides no other.
 */
class JsonlFile {
  readonly file: string;
  lines = 0;
  #torn = false;

  constructor(file: string) {
    this.file = file;
  }

  /** Every readable line, with its number. */
  read(): { line: number; record: object }[] {
    if (!fs.existsSync(this.file)) return [];
    const lines = fs.readFileSync(this.file, "utf8").split("\n");
    this.#torn = lines.at(-1) !== "";
    if (!this.#torn) lines.pop();
    this.lines = lines.length;
    return lines.flatMap((content, index) => {
      const record = parseObject(content);
      if (record) return [{ line: index + 1, record }];
      warn(`${this.file}, line ${index + 1}: not readable, skipped. It stays in the file.`);
      return [];
    });
  }

  /** Adds the time. On disk when it returns, by the number of its line. */
  append(record: object): number {
    const json = JSON.stringify({ at: new Date().toISOString(), ...record });
    // The rest of a torn line would swallow this one, unless a new line begins first.
    const line = `${this.#torn ? "\n" : ""}${json}\n`;
    this.#torn = true; // if this fails, it leaves half a line or a blank one, which counts too
    this.lines++;
    fs.appendFileSync(this.file, line);
    this.#torn = false;
    return this.lines;
  }
}

/** The object in `json`, or undefined: also for what parses and is no object, like `null`. */
function parseObject(json: string): object | undefined {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === "object" && !Array.isArray(value) ? (value ?? undefined) : undefined;
  } catch {
    return undefined;
  }
}

/** A conversation on disk: the same list, and behind it a file with all that it ever was. */
export class Session extends Conversation {
  readonly id: string;
  header = { key: "", label: "", at: "" };
  summary = ""; // of what compaction took out of the list
  rewritten = 0; // so many messages from the start the API's figures no longer describe
  #log: JsonlFile;
  #lines = new Map<Message, number>();
  #inboxIds = new Set<string>();

  /** Replays the file. */
  constructor(file: string) {
    super();
    this.id = path.basename(file, ".jsonl");
    this.#log = new JsonlFile(file);
    for (const { line, record } of this.#log.read()) this.#replay(record, line);
  }

  #replay(record: LogRecord, line: number): void {
    if (line === 1) Object.assign(this.header, record);
    if (Array.isArray(record.message?.content)) this.#add(record.message, line);
    if (record.inboxId) this.#inboxIds.add(record.inboxId);
    if (record.compaction) this.#compact(record.compaction.summary, record.compaction.keepFrom);
    if (record.shorten) this.#shorten(new Set(record.shorten.toolUseIds));
  }

  /** On disk before it is in the list: what the model is told has always been kept. */
  override append(message: Message, about: { inboxId?: string } = {}): void {
    // After a crash the inbox brings it again. It is here, and so may be half of its answer.
    if (about.inboxId && this.#inboxIds.has(about.inboxId)) return;
    this.#add(message, this.#log.append({ message, ...about }));
    if (about.inboxId) this.#inboxIds.add(about.inboxId);
  }

  #add(message: Message, line: number): void {
    super.append(message);
    this.#lines.set(message, line);
  }

  /** From now on the history is the summary, and what follows from `kept` on. */
  compact(summary: string, kept: Message | undefined): void {
    const keepFrom = (kept && this.#lines.get(kept)) ?? this.#log.lines + 1;
    this.#log.append({ compaction: { summary, keepFrom } });
    this.#compact(summary, keepFrom);
  }

  #compact(summary: string, keepFrom: number): void {
    const kept = this.messages.filter((message) => (this.#lines.get(message) ?? 0) >= keepFrom);
    const told = `Summary of our conversation so far:\n${summary}`;
    const noted = [{ type: "text", text: "I have read the summary.", citations: null }];
    this.summary = summary;
    this.messages = [
      { role: "user", content: [{ type: "text", text: told }] },
      // A reply of our own, as after Ctrl+C. It keeps the summary apart from the next turn: if
      // that is refused, it goes, and the summary stays.
      { role: "assistant", content: noted, stop_reason: null } as Anthropic.Message,
      ...kept,
    ];
    this.rewritten = this.messages.length;
  }

  /** From now on the results of these calls are only their two ends. */
  shorten(toolUseIds: string[]): void {
    this.#log.append({ shorten: { toolUseIds } });
    this.#shorten(new Set(toolUseIds));
  }

  #shorten(ids: Set<string>): void {
    for (const block of this.messages.flatMap(resultsIn)) {
      // In place, so that the message keeps its line number.
      if (ids.has(block.tool_use_id)) block.content = shortened(block);
    }
    this.rewritten = this.messages.length;
  }
}

const sha256 = (data: string) => crypto.createHash("sha256").update(data);

// A key says who talks to whom; a session is one conversation of theirs. There is no list of all
// sessions in a file of its own: the folders are the list, so nothing can fall out of step with it.

/** All sessions, in `dir`: a folder for each key, and in it a file for each session. */
export class SessionStore {
  #dir: string;
  #open = new Map<string, Session>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** The session that this key is in; a new one, if it has none yet. */
  current(key: string): Session {
    const open = this.#open.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#open.set(key, open);
    return open;
  }

  /** Begins a new session for this key, and makes it the current one. */
  create(key: string, label = ""): Session {
    const id = crypto.randomUUID().slice(0, 8);
    const header = { v: 1, id, key, label, at: new Date().toISOString() };
    fs.mkdirSync(this.#folder(key), { recursive: true });
    fs.writeFileSync(this.#file(key, id), `${JSON.stringify(header)}\n`, { flag: "wx" });
    return this.#enter(key, new Session(this.#file(key, id)));
  }

  /** The sessions of this key, the newest last. */
  list(key: string): Session[] {
    return this.#in(this.#folder(key));
  }

  #in(folder: string): Session[] {
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
    const files = fs.readdirSync(folder).filter((name) => name.endsWith(".jsonl"));
    const sessions = files.map((name) => new Session(path.join(folder, name)));
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /** Every session of every key. */
  all(): Session[] {
    const folders = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    return folders.flatMap((name) => this.#in(path.join(this.#dir, name)));
  }

  /** Goes back to the session whose id begins with `prefix`. Throws unless there is exactly one. */
  switch(key: string, prefix: string): Session {
    const found = this.list(key).filter(({ id }) => prefix && id.startsWith(prefix));
    if (found.length === 1 && found[0]) return this.#enter(key, found[0]);
    throw new Error(`${found.length} sessions begin with "${prefix}"; /list shows them`);
  }

  #enter(key: string, session: Session): Session {
    replaceFile(path.join(this.#folder(key), "current"), session.id);
    this.#open.set(key, session);
    return session;
  }

  /** What the file "current" names. If that makes no sense, the newest session: nothing is lost. */
  #stored(key: string): Session | undefined {
    const pointer = path.join(this.#folder(key), "current");
    if (!fs.existsSync(pointer)) return this.list(key).at(-1);
    const id = fs.readFileSync(pointer, "utf8");
    if (/^[\w-]+$/.test(id) && fs.existsSync(this.#file(key, id)))
      return new Session(this.#file(key, id));
    quarantine(pointer, t("it names no session. The newest one is used instead."));
    return this.list(key).at(-1);
  }

  /** Deletes the conversations whose key begins with `prefix`, but for the `keep` last of them. */
  prune(prefix: string, keep: number): void {
    const names = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    const ours = names.filter((name) => name.startsWith(encodeURIComponent(prefix))).sort();
    for (const name of ours.slice(0, -keep)) {
      fs.rmSync(path.join(this.#dir, name), { recursive: true });
      this.#open.delete(decodeURIComponent(name));
    }
  }

  #folder(key: string): string {
    const name = encodeURIComponent(key.toLowerCase()).replaceAll("*", "%2A");
    if (name.length <= 200) return path.join(this.#dir, name); // file systems stop at 255
    return path.join(this.#dir, sha256(name).digest("hex"));
  }

  #file(key: string, id: string): string {
    return path.join(this.#folder(key), `${id}.jsonl`);
  }
}

/**
 * Writes a small file so that a crash leaves the old one or the new one, never half of it. When
 * it returns, it is on the disk and not in the system's memory: it survives a power cut too.
 */
function replaceFile(file: string, content: string): void {
  fs.writeFileSync(`${file}.tmp`, content, { flush: true }); // on the disk before it has the name
  fs.renameSync(`${file}.tmp`, file);
  if (WINDOWS) return; // where a folder can't be flushed
  const folder = fs.openSync(path.dirname(file), "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/**
 * Quarantine: what cannot be used is renamed and reported, so that it neither stops the program
 * nor gets lost. The random part of the name makes sure that no older file is overwritten.
 */
function quarantine(file: string, why: string): void {
  const name = `${file}.${crypto.randomUUID().slice(0, 8)}.quarantined`;
  fs.renameSync(file, name);
  warn(`${file} is quarantined (renamed to ${path.basename(name)}): ${why}`);
}

/** Two programs that append to one session would tear it. Throws if another one has `dir`. */
export function lockFolder(dir: string): void {
  const file = path.join(dir, "lock");
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 }); // what people said is nobody else's
  if (fs.existsSync(file)) {
    const before = fs.readFileSync(file, "utf8");
    const pid = Number.parseInt(before, 10);
    const who = `process ${pid} is using ${path.dirname(dir)}`;
    if (isAlive(pid)) throw new Error(`${who}: stop it, set CLAW0_WORKSPACE, or delete ${file}`);
    // Two starters may find the same dead lock, and the other may have put its own there since.
    // So: take it away, which only one of them can, look at it again, and give back a live one.
    const taken = `${file}.${process.pid}`;
    fs.renameSync(file, taken);
    if (fs.readFileSync(taken, "utf8") !== before) fs.renameSync(taken, file);
    fs.rmSync(taken, { force: true });
  }
  // wx: fails if it exists, so of two that come this far at once, one goes home.
  fs.writeFileSync(file, `${process.pid} ${crypto.randomUUID()}`, { flag: "wx" });
  process.on("exit", () => fs.rmSync(file, { force: true })); // SIGKILL leaves it: see above
}

function isAlive(pid: number): boolean {
  // Our own number, left by a life before this one: in a container they are the same.
  if (!(pid > 0) || pid === process.pid) return false;
  try {
    return process.kill(pid, 0); // signal 0 only asks
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // alive, but somebody else's
  }
}

/** Tokens of a text, roughly: four characters to a token, but one for Chinese, Japanese, Korean. */
export function estimateTokens(words: string): number {
  const wide = words.match(/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu) ?? [];
  return wide.length + Math.ceil((words.length - wide.length) / 4);
}

const tokensOf = (messages: Message[]) =>
  estimateTokens(JSON.stringify(messages.map(({ content }) => content)));

// What to do when a conversation grows too long. Tool results are the cheapest thing to lose:
// the model can read the file again. Turns are dearer, so they are summarised and not dropped.
// All of it happens to the history in memory; on disk there are only more lines.

const BIG_RESULT = 2_000; // characters; a shortened result keeps half as many
const FULL = 0.85; // of the window: the reply needs room too
const KEPT = 0.3; // of what there was, verbatim after a compaction

// The names and ids matter most: with "the file" for "src/a.ts", the model has to ask again.
const SUMMARISE =
  "Summarise this conversation for the assistant who will go on with it. Keep names, numbers, " +
  "paths and ids exactly, what was decided, what failed, and what the user still waits for. " +
  "Facts only, at most 400 words.";

const shortened = ({ content }: Anthropic.ToolResultBlockParam) =>
  keepEnds(String(content), BIG_RESULT / 2).toWellFormed();

/** The API has no error type for this. It is the one error that we tell by its words. */
export function isOverflow(error: unknown): boolean {
  return error instanceof Anthropic.BadRequestError && /prompt is too long/i.test(error.message);
}

/** Layer 2 of the onion: keeps the conversation inside the context window. */
export class ContextGuard {
  readonly limit: number; // tokens

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Tokens of the next request: the API's own figure, and an estimate of what came after it. */
  size(conversation: Conversation): number {
    const { messages } = conversation;
    // After a compaction the old figures would still say "too long", and it would never end.
    const old = conversation instanceof Session ? conversation.rewritten : 0;
    const at = messages.findLastIndex((m, i) => i >= old && m.role !== "user" && m.stop_reason);
    const last = messages[at];
    const tail = tokensOf(messages.slice(at + 1));
    if (last?.role !== "assistant")
      return tail + estimateTokens(JSON.stringify([buildSystemPrompt({}), TOOLS]));
    const { usage } = last;
    const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
    return usage.input_tokens + cached + usage.output_tokens + tail;
  }

  /** Runs `next`; shortens the conversation if it is too long for it, in three steps at most. */
  async run(
    conversation: Conversation,
    options: TurnOptions,
    next: (options: TurnOptions) => Promise<void>,
  ): Promise<void> {
    const steps = [
      () => this.shortenResults(conversation),
      () => this.summarise(conversation, options, KEPT),
      () => this.summarise(conversation, options, 0),
    ];
    const shrink = async () => {
      for (let step = steps.shift(); step; step = steps.shift()) if (await step()) return true;
      return false;
    };
    // Before the call by our own count, which costs nothing; after it by what the API says.
    // After a restart there may be no call to make: then what is to be said is all there.
    const isFull = this.size(conversation) > this.limit * FULL;
    if (isFull && needsReply(conversation.messages.at(-1))) await shrink();
    for (;;) {
      try {
        return await next(options);
      } catch (error) {
        if (!isOverflow(error)) throw error;
        if (await shrink()) continue;
        throw new Error("too long for the model, even shortened; /new begins a new session");
      }
    }
  }

  /** Step 1: cuts big tool results. False if there are none. */
  shortenResults(conversation: Conversation): boolean {
    const results = conversation.messages.flatMap(resultsIn);
    const big = results.filter(({ content }) => String(content).length > BIG_RESULT);
    if (big.length === 0 || !(conversation instanceof Session)) return false;
    conversation.shorten(big.map((block) => block.tool_use_id));
    info(`  (to make room: ${big.length} tool results shortened)`);
    return true;
  }

  /** Step 2 and 3: a summary takes the place of the older turns. False if there are none. */
  async summarise(conversation: Conversation, options: TurnOptions, keep: number) {
    if (!(conversation instanceof Session)) return false;
    const { messages } = conversation;
    // If the API said "too long" below our limit, then our limit is wrong: go by what there is.
    const budget = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, budget * keep);
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const words = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    conversation.compact(await askSummary(conversation, words, budget, options), messages[cut]);
    info(`  (to make room: ${old.length} messages summarised)`);
    return true;
  }
}

/** Asks for a summary of the newest text that fits; of half as much, if that was too much. */
async function askSummary(session: Session, old: string, tokens: number, options: TurnOptions) {
  // The text to be summarised was too long for one request, so not all of it can be shown.
  for (let fit = tokens; ; fit /= 2) {
    const newest = old.slice(-Math.ceil((old.length * fit) / estimateTokens(old))).toWellFormed();
    const content = `Summary so far: ${session.summary || "none"}\n\nSince then:\n${newest}`;
    const messages = [{ role: "user" as const, content }];
    const request = {
      model: options.model ?? MODEL,
      max_tokens: 2048,
      system: SUMMARISE,
      messages,
    };
    try {
      const reply = await callModel(request, { ...options, onText: undefined });
      options.signal?.throwIfAborted(); // then the reply is half a summary, and worse than none
      if (reply.stop_reason !== "refusal" && wordsIn(reply).trim()) return wordsIn(reply);
      throw new Error("the model gave no summary; /new begins a new session");
    } catch (error) {
      if (!isOverflow(error) || fit < 100) throw error;
    }
  }
}

/**
 * Where the kept part begins: at the start of a turn, as early as `tokens` allow. Anywhere else
 * the cut could fall between a call and its result, and no request would be valid again.
 */
function cutPoint(messages: Message[], tokens: number): number {
  let cut = messages.length;
  let size = 0;
  for (const [index, message] of [...messages.entries()].reverse()) {
    size += tokensOf([message]);
    if (size > tokens) break;
    if (startsTurn(message)) cut = index;
  }
  // A turn that is under way stays whole: without its question the answer makes no sense.
  const underWay = needsReply(messages.at(-1)) ? messages.findLastIndex(startsTurn) : cut;
  return Math.min(cut, underWay);
}

function wordsIn({ content }: Message): string {
  const words = content.map((block) => {
    if (block.type === "text") return block.text;
    if (block.type === "tool_use") return `[${block.name} ${JSON.stringify(block.input)}]`;
    return block.type === "tool_result" ? `[result: ${shortened(block)}]` : "";
  });
  return words.join("\n");
}

const GUARD = new ContextGuard(CONTEXT_TOKENS);
MIDDLEWARE.push((conversation, options, next) => GUARD.run(conversation, options, next));

TOOLS.push(
  tool("list_directory", "List a folder of the workspace.", { path: file }, ["path"]),
  tool("get_current_time", "Get the date, the time and the time zone.", {}),
);

Object.assign(HANDLERS, {
  list_directory: (input) => {
    const folder = safePath(String(input.path ?? "."), WORKSPACE);
    const entries = fs.readdirSync(folder, { withFileTypes: true });
    const names = entries.map((entry) => entry.name + (entry.isDirectory() ? "/" : ""));
    const visible = names.filter((name) => name !== ".state/");
    return visible.sort().join("\n");
  },
  get_current_time: () => new Date().toString(),
} satisfies Record<string, Handler>);

/** What a person types behind a slash. `run` gets the rest of the line, and gives lines to show. */
export interface Command {
  help: string;
  run(args: string, app: App, options: TurnOptions): string | string[] | Promise<string>;
}

export const COMMANDS: Record<string, Command> = {};

function command(name: string, help: string, run: Command["run"]): void {
  COMMANDS[name] = { help, run };
}

/** Runs "/name the rest". Gives what to show. */
async function runCommand(line: string, app: App, options: TurnOptions): Promise<string> {
  const [name = "", ...rest] = line.slice(1).split(" ");
  const found = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!found) return t(`There is no command /${name}. /help lists them.`);
  return [await found.run(rest.join(" ").trim(), app, options)].flat().join("\n");
}

command("help", "what you can type here", () =>
  Object.entries(COMMANDS).map(([name, { help }]) => `/${name.padEnd(10)} ${help}`),
);

command("new", "[label]: begin a new session", (label, { store, key }) => {
  const { id } = store.create(key, label);
  return t(`Session ${id} begins. The old one is kept: /list shows it.`);
});

command("list", "the sessions of this conversation", (_args, { store, key }) => {
  const current = store.current(key).id;
  const line = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(line);
});

command("switch", "<id>: go back to a session, by the beginning of its id", (id, app) => {
  const session = app.store.switch(app.key, id);
  return t(`In session ${session.id}, ${session.messages.length} messages.`);
});

command("context", "how full the context window is", (_args, { store, key }) => {
  const size = GUARD.size(store.current(key));
  const percent = Math.round((size / GUARD.limit) * 100);
  return t(`About ${size} of ${GUARD.limit} tokens (${percent}%).`);
});

command("compact", "put a summary in the place of the older turns", async (_args, app, options) => {
  let done = false;
  // It goes through the middleware, because the request for the summary can fail as a turn can.
  await runMiddleware(app.store.current(app.key), { ...options, app }, async (session, given) => {
    done = await GUARD.summarise(session, given, KEPT);
  });
  return done ? t("Done.") : t("Nothing to summarise yet.");
});

const TERMINAL_KEY = "agent:luna:cli:direct:owner"; // agent, name, channel, kind, who

// ---- s04 · Channels ----

// From here on people write to the program who don't sit in front of it, and it promises them two
// things. A message that was accepted is not lost, because it is written to a file before the
// platform hears that it arrived. And within a conversation messages are answered first in, first
// out (FIFO), because each one waits for the promise of the one before it.

// -- 1 · One envelope --

/** What every platform's message becomes, so that the rest of the program knows no platform. */
export interface InboundMessage {
  id: string; // the idempotency key: a message that a platform sends twice has the same id twice
  channel: string;
  accountId: string; // which of our own accounts it came to
  peerId: string; // the chat, which is where the answer goes
  senderId: string; // the person
  guildId?: string; // what the chat belongs to: a supergroup, a company
  isGroup: boolean;
  text: string;
  media: { kind: string; id: string }[];
  at: number; // when it was sent, in ms
  part?: string; // messages with the same value are parts of one: an album, a text that was cut
  attempts?: number; // how often the program began to answer it, counted by the inbox
}

/** A message and the conversation it belongs to, which is settled once, when it comes in. */
export interface Routed extends InboundMessage {
  sessionKey: string;
}

/** Whose conversation a message belongs to. */
export function route(message: InboundMessage, app: App, agent?: Agent): Routed {
  const isTerminal = message.channel === "cli";
  const chosen = isTerminal ? app.terminalAgent : agent?.id;
  const agentId = chosen ?? app.bindings.resolve(message).agentId;
  const key = buildSessionKey(agentId, message, app.agents.find(agentId).dmScope);
  return { ...message, agentId, sessionKey: isTerminal ? app.key : key };
}

/**
 * Takes a message from a channel. When it returns, the message is on disk. `done` resolves to the
 * answer when that was sent, and to "" for a message that we already have.
 */
export type Accept = (message: InboundMessage, signal?: AbortSignal) => { done: Promise<string> };

/** A platform: it gives us messages, and takes texts of at most `limit` UTF-16 units. */
export interface Channel {
  readonly name: string;
  readonly limit: number;
  start(onMessage: Accept): Promise<void>; // resolves when ready, rejects if it never will be
  send(to: string, text: string): Promise<void>; // throws SendError
  stop(): Promise<void>;
  typing?(to: string): Promise<unknown>;
  stream?(to: string, delta: string): void; // for a channel that shows a reply while it is made
}

/** Why a text was not sent. `permanent`: it never will be. `retryAfter`: seconds to wait. */
export class SendError extends Error {
  permanent: boolean;
  retryAfter?: number;

  constructor(why: string, permanent = false, retryAfter?: number) {
    super(why);
    this.permanent = permanent;
    this.retryAfter = retryAfter;
  }
}

const sendError = (why: string, permanent: boolean, retryAfter?: number) =>
  new SendError(why, permanent, retryAfter);

export interface App {
  channels: ChannelManager;
}

export interface TurnOptions {
  message?: InboundMessage; // what is being answered
}

// People who may write to the bot may not yet run programs on this machine. They may read files,
// because the workspace is shared on purpose. REMOTE_TOOLS=1 gives them all tools.
const OWNER_TOOLS = ["bash", "write_file", "edit_file"];

/** The tools that the model is offered in this turn. */
function toolsFor({ message }: TurnOptions): Anthropic.Tool[] {
  const isTrusted = !message || message.channel === "cli" || env("REMOTE_TOOLS") === "1";
  return isTrusted ? TOOLS : TOOLS.filter(({ name }) => !OWNER_TOOLS.includes(name));
}

/**
 * The name of the command in a direct chat on a platform, or "". In a group it is plain text,
 * because otherwise anybody there could end the conversation of all the others.
 */
function publicCommand({ channel, isGroup, text }: Routed): string {
  if (channel === "cli" || isGroup) return "";
  return /^\/(new|help)\b/.exec(text)?.[1] ?? "";
}

/** What is said to a message: by the model, or by one of the two commands for everybody. */
async function answerTo(message: Routed, app: App, options: TurnOptions): Promise<string> {
  const name = publicCommand(message);
  if (name === "help") return t("/new begins a new conversation.");
  if (name) return runCommand(message.text, { ...app, key: message.sessionKey }, options);
  const session = app.store.current(message.sessionKey);
  // A client can send half a surrogate pair, which would make this request and all later ones fail.
  return trackTurn(runTurn(session, message.text.toWellFormed(), { ...options, app }));
}

const CHANNEL_PATIENCE = 3_000; // ms that start and stop wait for a platform that is out of reach

/** The channels of a running program, by name. One that is down does not stop the others. */
export class ChannelManager extends Map<string, Channel> {
  readonly states = new Map<string, string>();

  /** Resolves when all are ready or have failed, but after 3 s at the latest. */
  async start(onMessage: Accept): Promise<void> {
    const starts = [...this.values()].map((channel) => this.#start(channel, onMessage));
    await Promise.race([Promise.all(starts), sleep(CHANNEL_PATIENCE)]);
    for (const [name, state] of this.states) {
      if (state === t("starting")) warn(`${name}: not ready yet, still trying`);
    }
  }

  async #start(channel: Channel, onMessage: Accept): Promise<void> {
    this.states.set(channel.name, t("starting"));
    const state = await channel.start(onMessage).then(() => t("ready"), String);
    this.states.set(channel.name, state);
    info(`${channel.name}: ${state}`);
  }

  /** Resolves when all have stopped, or after 3 s. What fails here no longer matters. */
  async stop(): Promise<void> {
    const stops = [...this.values()].map((channel) => channel.stop());
    await Promise.race([Promise.allSettled(stops), sleep(CHANNEL_PATIENCE)]);
  }
}

/** The terminal, as one channel among others. Its person sees a reply while it is made. */
export class CliChannel implements Channel {
  readonly name = "cli";
  readonly limit = Number.MAX_SAFE_INTEGER;
  closed = Promise.resolve(); // from `start` on, it resolves when the person leaves
  #onCommand: (line: string, options: TurnOptions) => Promise<string>;

  /** `onCommand` runs a line that begins with a slash, and gives what to show. */
  constructor(onCommand: (line: string, options: TurnOptions) => Promise<string>) {
    this.#onCommand = onCommand;
  }

  async start(onMessage: Accept): Promise<void> {
    this.closed = new Terminal().run((line, signal) => this.#take(line, signal, onMessage));
  }

  async #take(line: string, signal: AbortSignal, onMessage: Accept): Promise<void> {
    if (line.startsWith("/")) {
      info(await this.#onCommand(line, { signal }));
    } else {
      await onMessage(this.#read(line), signal).done;
    }
  }

  #read(line: string): InboundMessage {
    return {
      id: `cli:${crypto.randomUUID()}`,
      channel: "cli",
      accountId: "local",
      peerId: "owner",
      senderId: "owner",
      isGroup: false,
      text: line,
      media: [],
      at: Date.now(),
    };
  }

  stream(_to: string, delta: string): void {
    say(delta);
  }

  async send(_to: string, line: string): Promise<void> {
    info(line);
  }

  async stop(): Promise<void> {}
}

/** Shows "typing" in a chat until the function that it gives is called. */
function showTyping(channel: Channel | undefined, peerId: string): () => void {
  const show = () => channel?.typing?.(peerId).catch(() => {});
  show();
  const timer = setInterval(show, 4_000); // because the platforms show it for 5 s
  return () => clearInterval(timer);
}

/**
 * Puts the answer into the delivery queue, in chunks that the platform takes; when it returns, they
 * are on disk. It is idempotent, because the same answer after a crash has the same ids.
 */
export async function reply(app: App, { id, channel, peerId: to }: InboundMessage, answer: string) {
  const target = app.channels.get(channel);
  const text = answer.trim() || t("(There is nothing to say.)");
  if (!target) return;
  // Whoever sees a reply while it is made sits in front of it, so nothing has to wait in a queue.
  if (target.stream) return target.send(to, text);
  for (const [part, piece] of chunkMessage(text, target.limit).entries()) {
    app.queue.add(newDelivery(`${id}#${part}`, { channel, to, text: piece }));
  }
  app.delivery.wake(recipientOf({ channel, to }));
}

// -- 2 · Nothing lost, and in order --

export interface App {
  inbox: Inbox;
  partGroups: Set<PartGroup>; // messages of which more parts may come
}

/** The files "<number>.json" of a folder, in order. A "<number>.json.tmp" may be half a file. */
function numberedFiles(folder: string): string[] {
  const names = fs.readdirSync(folder).filter((name) => /^\d+\.json$/.test(name));
  return names.sort().map((name) => path.join(folder, name));
}

const numberOf = (file: string) => Number.parseInt(path.basename(file), 10);

/** The entry in a file. A file without a usable one is quarantined, and gives undefined. */
function readEntry<T>(file: string, schema: Anthropic.Tool.InputSchema): T | undefined {
  try {
    const entry = checkInput(schema, parseObject(fs.readFileSync(file, "utf8")));
    return entry as T; // the schema names the fields without which the program can't go on
  } catch (error) {
    quarantine(file, String(error));
    return undefined;
  }
}

/**
 * A folder of entries that still have to be worked on, each in a numbered file of its own. It is a
 * write-ahead log: an entry is flushed to the disk before anybody acts on it. The ids of processed
 * entries stay in a file, which makes adding idempotent: an entry that comes again is not new.
 */
export class Spool<T extends { id: string }> {
  protected nextNumber = 1;
  protected readonly open = new Map<string, { entry: T; file: string }>(); // by id, oldest first
  readonly #dir: string;
  readonly #log: JsonlFile;
  readonly #processed = new Set<string>(); // ids

  /** Takes up what an earlier run has left in `dir`. The schema says what an entry has to have. */
  constructor(dir: string, schema: Anthropic.Tool.InputSchema) {
    this.#dir = dir;
    fs.mkdirSync(dir, { recursive: true });
    this.#log = new JsonlFile(path.join(dir, "processed.jsonl"));
    for (const { record } of this.#log.read()) {
      this.#processed.add((record as { id: string }).id); // markProcessed wrote it
    }
    for (const file of numberedFiles(dir)) {
      this.nextNumber = numberOf(file) + 1;
      const entry = readEntry<T>(file, schema);
      if (entry) this.#load(entry, file);
    }
  }

  #load(entry: T, file: string): void {
    // A crash in markProcessed leaves a file that is done; a restored backup may add a second copy.
    if (this.#isKnown(entry.id)) fs.rmSync(file);
    else this.open.set(entry.id, { entry, file });
  }

  #isKnown(id: string): boolean {
    return this.#processed.has(id) || this.open.has(id);
  }

  /** The entries that are not processed yet, in the order in which they were added. */
  pending(): T[] {
    return [...this.open.values()].map(({ entry }) => entry);
  }

  /** Keeps an entry, which is on disk when it returns. False if its id was added before. */
  add(entry: T): boolean {
    if (this.#isKnown(entry.id)) return false;
    // The number is padded with zeros, so that the names sort as the numbers do.
    const name = `${String(this.nextNumber).padStart(12, "0")}.json`;
    const file = path.join(this.#dir, name);
    this.nextNumber += 1;
    replaceFile(file, JSON.stringify(entry));
    this.open.set(entry.id, { entry, file });
    return true;
  }

  /** Writes an entry that has changed. One that is not here is left alone. */
  save(entry: T): void {
    const kept = this.open.get(entry.id);
    if (kept) replaceFile(kept.file, JSON.stringify(entry));
  }

  /** Removes an entry and remembers its id. One that is not here is left alone. */
  protected markProcessed(id: string): void {
    const kept = this.open.get(id);
    if (!kept) return;
    // The id is written first, so that a crash between the two steps leaves a file which the next
    // start removes. In the other order nothing would know the id when the entry comes again.
    this.#log.append({ id });
    this.#processed.add(id);
    fs.rmSync(kept.file, { force: true });
    this.open.delete(id);
  }
}

const STRING = { type: "string" };
const ROUTED = objectSchema({
  id: STRING,
  channel: STRING,
  peerId: STRING,
  text: STRING,
  sessionKey: STRING,
});
const MAX_ATTEMPTS = 3;

/**
 * The messages that were accepted and are not answered yet. A platform that heard no confirmation
 * sends a message again, most often after the very crash that lost the confirmation; the inbox
 * then knows its id and does not take it for a new one.
 */
export class Inbox extends Spool<Routed> {
  constructor(dir: string) {
    super(dir, ROUTED);
    // A poison message kills the program, so without a limit it would do so at every start.
    for (const [id, { entry, file }] of this.open) {
      if ((entry.attempts ?? 0) < MAX_ATTEMPTS) continue;
      quarantine(file, t("it was attempted three times and never came to its end"));
      this.open.delete(id);
    }
  }

  /** Counts an attempt before it begins, because the message may kill the program during it. */
  countAttempt(messages: Routed[]): void {
    for (const { id } of messages) {
      const message = this.open.get(id)?.entry;
      if (!message) continue; // a line of the terminal, which is not kept
      message.attempts = (message.attempts ?? 0) + 1;
      this.save(message);
    }
  }

  /** The messages are answered. The first part goes last, because the session knows its id. */
  acknowledge(messages: Routed[]): void {
    for (const { id } of messages.toReversed()) this.markProcessed(id);
  }
}

// For each conversation that is at work: the promise of its latest task.
const tails = new Map<string, Promise<unknown>>();

/** Runs the tasks of one conversation one after the other, those of different ones side by side. */
export function runExclusive<T>(sessionKey: string, task: () => Promise<T>): Promise<T> {
  const previous = tails.get(sessionKey) ?? Promise.resolve();
  // `task` stands here twice because it must also run if the task before it has failed.
  const latest = previous.then(task, task);
  tails.set(sessionKey, latest);
  // Otherwise the map would keep an entry for every conversation that there ever was.
  const forget = () => {
    if (tails.get(sessionKey) === latest) tails.delete(sessionKey);
  };
  latest.then(forget, forget);
  return latest;
}

/**
 * The entry point of every message. It is synchronous, so when it returns, a platform may forget
 * the message. Delivery is at-least-once: what a crash interrupts is done again.
 */
export function accept(app: App, message: InboundMessage, signal?: AbortSignal) {
  const routed = route(message, app);
  rememberOwner(app, message);
  // A line of the terminal is not kept, because after a crash nobody waits for its answer.
  const isKept = message.channel !== "cli";
  if (isKept && !app.inbox.add(routed)) return { done: Promise.resolve("") };
  return { done: enqueue(app, routed, signal) };
}

const PART_GAP = 600; // ms without another part, and a message in parts is complete

/**
 * The parts of one message. Telegram sends the pictures of an album one by one, and its apps cut a
 * long text in pieces, but a person expects one answer. Each part is in the inbox at once.
 */
class PartGroup {
  readonly parts: Routed[];
  done = Promise.resolve(""); // the answer to all of them, from when the group is in the queue
  #lastAt = Date.now();

  constructor(first: Routed) {
    this.parts = [first];
  }

  /**
   * Whether `message` is another part. One that was attempted before a crash is in the session as
   * it was then; a picture that arrives only after the crash can't be added to that.
   */
  accepts(message: Routed): boolean {
    const [first] = this.parts;
    const wasAttempted = (part?: Routed) => (part?.attempts ?? 0) > 0;
    return first?.part === message.part && wasAttempted(first) === wasAttempted(message);
  }

  add(message: Routed): void {
    this.parts.push(message);
    this.#lastAt = Date.now();
  }

  /** A debounce: each part that arrives meanwhile makes the wait begin again. */
  async complete(): Promise<void> {
    let left = PART_GAP;
    while (left > 0) {
      await sleep(left);
      left = this.#lastAt + PART_GAP - Date.now();
    }
  }
}

/** Puts a message into the queue of its conversation. Gives the answer. */
function enqueue(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  if (message.part) return enqueuePart(app, message, signal);
  if (message.channel === "cron") return runExclusive("cron", () => runJob(app, message, signal));
  return runExclusive(message.sessionKey, () => handle(app, [message], signal));
}

/** The first part takes the place in the queue, and waits there for the others. */
function enqueuePart(app: App, part: Routed, signal?: AbortSignal): Promise<string> {
  const open = [...app.partGroups].find((one) => one.accepts(part));
  if (open) {
    open.add(part);
    return open.done;
  }
  const group = new PartGroup(part);
  app.partGroups.add(group);
  group.done = runExclusive(part.sessionKey, async () => {
    await group.complete();
    app.partGroups.delete(group);
    return handle(app, group.parts, signal);
  });
  return group.done;
}

/**
 * One turn for one message, or for the parts of one: from the inbox to the reply. If the turn
 * fails, the person hears so and the message is done. Only the death of the program brings it back.
 */
export async function handle(app: App, parts: Routed[], signal?: AbortSignal): Promise<string> {
  const message = joinParts(parts);
  const channel = app.channels.get(message.channel);
  const stopTyping = showTyping(channel, message.peerId);
  const onText = (piece: string) => channel?.stream?.(message.peerId, piece);
  let answered: InboundMessage = message;
  let answer: string;
  try {
    app.inbox.countAttempt(parts);
    const agent = app.agents.get(message.agentId);
    answer = await answerTo(message, app, { message, signal, onText, agent });
  } catch (error) {
    if (message.channel === "cli") throw error; // the terminal shows it
    warn(`${message.sessionKey}: ${error}`);
    answer = t("I could not answer that. Try again in a moment, or begin anew with /new.");
    answered = { ...message, id: failureReplyId(message.id) };
  } finally {
    stopTyping();
  }
  if (!channel?.stream) await reply(app, answered, answer);
  app.inbox.acknowledge(parts);
  return answer;
}

/** One message with the id of the first part and the texts of all. */
function joinParts(parts: Routed[]): Routed {
  const text = parts.map((part) => part.text).join("\n");
  return { ...parts[0], text } as Routed; // a message has at least one part
}

// -- 3 · Telegram --

/** Stands between the chat and the thread in the peer of a topic: "-1001:topic:7". */
const TOPIC = ":topic:";

/** The conversation of a message. Each topic of a forum is a conversation of its own. */
function peerOf({ chat, is_topic_message, message_thread_id }: TelegramMessage): string {
  return is_topic_message ? `${chat.id}${TOPIC}${message_thread_id}` : String(chat.id);
}

/** The reverse of peerOf: what the Bot API has to be told to send something there. */
function telegramAddress(peerId: string) {
  const [chat = "", thread] = peerId.split(TOPIC);
  return { chat, options: thread ? { message_thread_id: Number(thread) } : {} };
}

// Anyone can find a bot and write to it, and each answer costs its owner money. So the owner lists
// the chats that may use it, and an empty list admits nobody.

/** The chats that may use the bot of one platform. Its adapter passes each message through here. */
class AllowList {
  #chats: string[];
  #informed = new Set<string>(); // strangers who have been told what their chat's id is

  /** Takes the value of a setting: ids of chats, separated by blanks or commas. */
  constructor(setting: string) {
    this.#chats = setting.split(/[\s,]+/).filter((chat) => chat !== "");
  }

  /** Passes on a message from a chat of the list. Throws if the message can't be stored. */
  admit(channel: Channel, message: InboundMessage, onMessage: Accept): void {
    // The owner lists a forum once, by the id of its chat, and that admits all of its topics.
    const [chat = ""] = message.peerId.split(TOPIC);
    if (!this.#chats.includes(chat)) {
      this.#inform(channel, message.peerId, chat);
      return;
    }
    // JSON escapes control characters, with which a sender could overwrite lines of our terminal.
    info(`[${channel.name} ${message.peerId}] ${JSON.stringify(message.text.slice(0, 80))}`);
    onMessage(message).done.catch((error) => warn(`${message.id}: ${error}`));
  }

  /** Tells a stranger the id of the chat, and the owner the setting that would admit it. */
  #inform(channel: Channel, peerId: string, chat: string): void {
    // Only the first message of a chat is answered, because otherwise strangers could make the bot
    // send as much as they like.
    if (this.#informed.has(chat)) return;
    this.#informed.add(chat);
    warn(`A stranger wrote. ${channel.name.toUpperCase()}_ALLOWED_CHATS=${chat} lets them in.`);
    const words = t(`I don't know this chat. Its id is ${chat}: my owner can let it in.`);
    channel.send(peerId, words).catch(() => {}); // the owner has read the id in the log already
  }
}

/** The words of a message. Under a picture or a file they are called its caption. */
const telegramText = ({ text, caption }: TelegramMessage) => text ?? caption ?? "";

type Attachment = InboundMessage["media"][number];

// Telegram also sets `document` for an animation, so the animation has to be looked for first.
const FILE_KINDS = ["video", "animation", "document", "audio", "voice", "sticker"] as const;

/** The picture or file that came with a message. Its id is Telegram's: we download nothing. */
function attachmentOf(message: TelegramMessage): Attachment | undefined {
  const largest = message.photo?.at(-1); // Telegram lists the sizes of a picture, largest last
  if (largest) return { kind: "photo", id: largest.file_id };
  for (const kind of FILE_KINDS) {
    const attached = message[kind];
    if (attached) return { kind, id: attached.file_id };
  }
  return undefined;
}

/** Finds "@our_bot" in a text, also in "/help@our_bot", but not in "@our_bot2". */
const mentionOf = (bot: UserFromGetMe) => new RegExp(`@${bot.username}\\b`, "gi");

/** Whether a message is meant for the bot: in a group, only if it mentions or answers the bot. */
function isAddressedTo(bot: UserFromGetMe, message: TelegramMessage): boolean {
  if (message.chat.type === "private") return true;
  const isReply = message.reply_to_message?.from?.id === bot.id;
  return isReply || mentionOf(bot).test(telegramText(message));
}

/** A text as the model gets it: the kind of the attachment, and the words without our name. */
function describeMessage(bot: UserFromGetMe, words: string, attachment?: Attachment): string {
  const kind = attachment ? `[${attachment.kind}] ` : "";
  const description = `${kind}${words.replaceAll(mentionOf(bot), "")}`.trim();
  return description || words; // of a bare "@our_bot" nothing would be left, and no turn is empty
}

/** Makes a SendError of a failed call, which says whether another attempt can succeed. */
function telegramError(error: unknown): SendError {
  // If Telegram itself did not answer, the network failed, and a later attempt may succeed.
  if (!(error instanceof GrammyError)) return sendError(String(error), false);
  const { error_code: status, description, parameters } = error;
  // 429 means that we send too fast. Any other refusal is permanent, for example 403, which says
  // that the person blocked the bot, or 400, that there is no such chat.
  const isTemporary = status === 429 || status >= 500;
  return sendError(description, !isTemporary, parameters.retry_after);
}

/**
 * The fetch of Node, for grammY. grammY stops a call by a signal of the package abort-controller,
 * but the fetch of Node 24 takes only Node's own, so this one passes the stop on.
 */
const fetchForGrammy: typeof fetch = (url, init) => {
  const controller = new AbortController();
  const stop = () => controller.abort();
  if (init?.signal?.aborted) stop();
  init?.signal?.addEventListener("abort", stop);
  return fetch(url, { ...init, signal: controller.signal });
};

// The apps cut a long text at 4096 units, or between two words a little before that. A shorter
// message is therefore either whole or the last piece of a text that was cut.
const MIN_CUT_LENGTH = 4_000;

/** The adapter for Telegram, which gets messages by long polling (see `#poll`). */
export class TelegramChannel implements Channel {
  readonly name = "telegram";
  readonly limit = 4096;
  #setting: Setting;
  #bot: Bot;
  #stopped = false;
  #allowed: AllowList;
  // By sender: the newest piece of a text that was cut, and the id that the next piece would have.
  #lastPiece = new Map<string, { part: string; nextId: number }>();
  #addressedParts = new Set<string>(); // the `part` of albums and long texts that are meant for us

  constructor(setting: Setting) {
    this.#setting = setting;
    this.#allowed = new AllowList(setting("TELEGRAM_ALLOWED_CHATS"));
    this.#bot = this.#newBot();
  }

  #newBot(): Bot {
    const apiRoot = this.#setting("TELEGRAM_API_ROOT") || "https://api.telegram.org";
    // By default grammY uses node-fetch, which would ignore the proxy that is set for this program.
    const client = { apiRoot, timeoutSeconds: 60, fetch: fetchForGrammy };
    return new Bot(this.#setting("TELEGRAM_BOT_TOKEN"), { client });
  }

  /** Resolves when Telegram has taken the token; rejects if it refuses it. */
  async start(onMessage: Accept): Promise<void> {
    await this.#bot.init();
    void this.#poll(onMessage);
  }

  /**
   * Long polling: we ask for updates, and Telegram holds the request open until there are some.
   * The next request names the first update that we don't have, which confirms all before it.
   */
  async #poll(onMessage: Accept): Promise<void> {
    while (!this.#stopped) {
      this.#handleUpdates(onMessage);
      try {
        await this.#bot.start({ allowed_updates: ["message"] });
      } catch (error) {
        // grammY itself waits for a server that is down. So this is a refusal, for example because
        // another program asks with the same token, or a message that could not be stored.
        if (!this.#stopped) warn(`telegram: ${error}. Trying again in 5 s.`);
        await sleep(5_000);
        this.#bot = this.#newBot();
      }
    }
  }

  #handleUpdates(onMessage: Accept): void {
    // Telegram forgets what was confirmed, so a message has to be on disk before grammY asks for
    // the next ones. It is, because `onMessage` is synchronous.
    this.#bot.on("message", ({ message }) => {
      const inbound = this.#read(message);
      if (inbound) this.#allowed.admit(this, inbound, onMessage);
    });
    // If it could not be stored, for example on a full disk, nothing may be confirmed. The error
    // therefore ends this bot, and the next one gets the same messages again.
    this.#bot.catch(({ error }) => Promise.reject(error));
  }

  /** Undefined for other bots, for service messages, and for talk in a group that is not for us. */
  #read(message: TelegramMessage): InboundMessage | undefined {
    const { chat, from, message_id } = message;
    const bot = this.#bot.botInfo;
    const words = telegramText(message);
    const attachment = attachmentOf(message);
    const isEmpty = !words && !attachment; // a service message, such as "Bob joined the group"
    if (!from || from.is_bot || isEmpty) return undefined;
    const part = this.#partOf(message);
    // Only one picture of an album has the caption that mentions us, so the others follow it.
    const follows = part !== undefined && this.#addressedParts.has(part);
    if (!follows && !isAddressedTo(bot, message)) return undefined;
    if (part !== undefined) this.#addressedParts.add(part);
    return {
      id: `telegram:${bot.id}:${chat.id}:${message_id}`,
      channel: "telegram",
      accountId: String(bot.id),
      peerId: peerOf(message),
      senderId: String(from.id),
      guildId: message.is_topic_message ? String(chat.id) : undefined,
      isGroup: chat.type !== "private",
      text: describeMessage(bot, words, attachment),
      media: attachment ? [attachment] : [],
      at: message.date * 1000, // Telegram counts seconds
      part,
    };
  }

  /**
   * The mark that all parts of one message share; undefined if it is whole. Telegram marks the
   * parts of an album, but not the pieces of a long text: we know those by their ids in a row.
   */
  #partOf(message: TelegramMessage): string | undefined {
    const { chat, from, message_id, media_group_id } = message;
    if (media_group_id) return `telegram ${chat.id} ${media_group_id}`;
    const sender = `telegram ${chat.id} ${from?.id}`;
    const previous = this.#lastPiece.get(sender);
    const continued = previous?.nextId === message_id ? previous.part : undefined;
    if (telegramText(message).length < MIN_CUT_LENGTH) return continued;
    const part = continued ?? `${sender} ${message_id}`;
    this.#lastPiece.set(sender, { part, nextId: message_id + 1 });
    return part;
  }

  async send(to: string, text: string): Promise<void> {
    const { chat, options } = telegramAddress(to);
    try {
      await this.#bot.api.sendMessage(chat, text, options);
    } catch (error) {
      throw telegramError(error);
    }
  }

  typing(to: string): Promise<unknown> {
    const { chat, options } = telegramAddress(to);
    return this.#bot.api.sendChatAction(chat, "typing", options);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#bot.stop();
  }
}

// -- 4 · HTTP and Feishu --

// Feishu doesn't wait for us to ask. It calls a webhook, an address of ours to which it sends each
// event. Anyone who finds that address can send something there as well. So the server limits what
// it reads, and the channel checks by secrets, which only Feishu and we know, who sent an event.

/** What our HTTP server answers; the body is sent as JSON. */
type Answer = { status: number; body: object };

/** Gets the body byte for byte as it was sent, because a signature is a hash over these bytes. */
type Route = (body: Buffer, headers: http.IncomingHttpHeaders) => Answer;

/** To add a route to the HTTP server, set ROUTES["POST /path"] to a function of this type. */
export const ROUTES: Record<string, Route> = {};

const ACCEPTED: Answer = { status: 200, body: {} };
const UNAUTHORIZED: Answer = { status: 401, body: { error: "this does not come from Feishu" } };
const NOT_FOUND: Answer = { status: 404, body: { error: "not found" } };
const TOO_LARGE: Answer = { status: 413, body: { error: "too large" } };
// What went wrong is in the log, and only there, because the sender may be anyone.
const SERVER_FAILED: Answer = { status: 500, body: { error: "internal error" } };

const MAX_BODY = 1_000_000; // bytes: they are kept in memory before we know who sends them

/** The whole body of a request, or undefined if it has more than MAX_BODY bytes. */
async function readBody(request: http.IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function answerHttp(request: http.IncomingMessage): Promise<Answer> {
  const [pathname] = request.url?.split("?") ?? [];
  const handler = ROUTES[`${request.method} ${pathname}`];
  if (!handler) return NOT_FOUND;
  const body = await readBody(request);
  return body ? handler(body, request.headers) : TOO_LARGE;
}

/**
 * Starts the only HTTP server of the program. It listens on loopback, so Feishu reaches it through
 * a tunnel or a reverse proxy. If the port is taken, the server that this gives is not listening.
 */
async function startHttp(port: number): Promise<http.Server> {
  const server = http.createServer(async (request, response) => {
    const { status, body } = await answerHttp(request).catch((error) => {
      warn(`http: ${error}`);
      return SERVER_FAILED;
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  try {
    await once(server.listen(port, "127.0.0.1"), "listening");
    // With HTTP_PORT=0 the system chooses the port, so we ask for it. The cast is right because an
    // address has no port only if the server listens on a pipe.
    info(`http: listening on 127.0.0.1:${(server.address() as { port: number }).port}`);
  } catch (error) {
    warn(`http: ${error}. Choose another HTTP_PORT; the rest runs.`);
  }
  return server;
}

/** An object from outside with strings under these names, any of which may be missing. */
type Strings<Name extends string> = Partial<Record<Name, string>>;

type FeishuMention = Strings<"key" | "name"> & { id?: Strings<"open_id"> };

type FeishuMessage = Strings<
  "chat_id" | "chat_type" | "message_type" | "content" | "create_time"
> & { mentions?: FeishuMention[] };

/**
 * What we read of a request to the webhook. If it is encrypted, it has only `encrypt`, and the rest
 * is inside. Feishu tests a new webhook by `type`, `token` and `challenge`; events have the others.
 */
type FeishuEvent = Strings<"encrypt" | "type" | "token" | "challenge"> & {
  header?: Strings<"event_type" | "token" | "tenant_key">;
  event?: {
    sender?: Strings<"sender_type"> & { sender_id?: Strings<"open_id"> };
    message?: FeishuMessage;
  };
};

/** Undefined if the body is not encrypted with this key, or, without a key, if it is no JSON. */
function decryptEvent(body: Buffer, encryptKey: string): FeishuEvent | undefined {
  const event: FeishuEvent | undefined = parseObject(body.toString());
  if (!event || !encryptKey) return event;
  const bytes = Buffer.from(String(event.encrypt), "base64");
  const iv = bytes.subarray(0, 16);
  const encrypted = bytes.subarray(16);
  try {
    const decipher = crypto.createDecipheriv("aes-256-cbc", sha256(encryptKey).digest(), iv);
    // We join bytes, because one character may have its bytes in both pieces.
    const json = Buffer.concat([decipher.update(encrypted), decipher.final()]);
    return parseObject(json.toString());
  } catch {
    return undefined;
  }
}

const MAX_EVENT_AGE = 3600; // seconds

/**
 * Whether the signature is right, a hash over the body and a key that only Feishu and we have.
 * Feishu signs only what it encrypts, so without a key the verification token has to be enough.
 */
function isSigned(body: Buffer, headers: http.IncomingHttpHeaders, encryptKey: string): boolean {
  if (!encryptKey) return true;
  const time = headers["x-lark-request-timestamp"];
  const nonce = headers["x-lark-request-nonce"];
  const signature = sha256(`${time}${nonce}${encryptKey}${body}`).digest("hex");
  // In a replay attack, somebody records a signed request and sends it again later. Its signature
  // is still right, but the time in it, which is signed as well, shows how old it is.
  const isFresh = Math.abs(Date.now() / 1000 - Number(time)) < MAX_EVENT_AGE;
  return isFresh && headers["x-lark-signature"] === signature;
}

/** What people said: the words, and the pictures and files that came with them. */
type FeishuContent = Pick<InboundMessage, "text" | "media">;

const fileKeyOf = ({ file_key, image_key }: Fields) => file_key ?? image_key;

/** Gives a link with its address, and a mention as the mark that Feishu uses: "@_user_1". */
function textOfElement({ text, user_id, href }: Fields): string {
  const words = String(text ?? user_id ?? "");
  return href ? `${words} (${href})` : words;
}

/** The elements of a list from outside that are objects, so that their fields can be looked at. */
const objectsOf = (list: unknown): Fields[] =>
  Array.isArray(list) ? list.filter((item) => typeof item === "object" && item !== null) : [];

/** A post is rich text: a title, and lines, each of which is a list of elements. */
function readPost({ title, content }: Fields): FeishuContent {
  const media: Attachment[] = [];
  const lines = [title];
  for (const elements of objectsOf(content)) {
    let line = "";
    for (const element of objectsOf(elements)) {
      const key = fileKeyOf(element);
      if (key) media.push({ kind: "image", id: String(key) });
      line += key ? "[image]" : textOfElement(element);
    }
    lines.push(line);
  }
  return { text: lines.filter(Boolean).join("\n"), media };
}

/** A message that is one picture, file, recording or sticker. */
function readAttachment(kind: string, content: Fields): FeishuContent {
  return { text: `[${kind}]`, media: [{ kind, id: String(fileKeyOf(content)) }] };
}

/** Reads the content of a message: JSON, whose form depends on the type of the message. */
function readFeishu(type: string, json: string): FeishuContent {
  const content = (parseObject(json) ?? {}) as Fields; // the readers check the fields that they use
  if (type === "post") return readPost(content);
  if (fileKeyOf(content)) return readAttachment(type, content);
  return { text: textOfElement(content), media: [] };
}

// -- 5 · The adapter for Feishu --

/** What Feishu's API answers. `code` is 0 if it did what we asked, else it says why not. */
type FeishuAnswer = { code: number; msg: string; expire?: number; tenant_access_token?: string };

const FEISHU_BUSY = [99991400, 230020, 11232]; // codes for too many requests
const FEISHU_EXPIRED = [99991661, 99991663, 99991664]; // codes for an access token that has expired

/** The adapter for Feishu, and for Lark, its international edition. Events come by a webhook. */
export class FeishuChannel implements Channel {
  readonly name = "feishu";
  readonly limit = 4000;
  #setting: Setting;
  #api: string;
  #allowed: AllowList;
  #access = { token: "", expiresAt: 0 };

  /** Throws at a setting that makes no sense. */
  constructor(setting: Setting) {
    this.#setting = setting;
    this.#allowed = new AllowList(setting("FEISHU_ALLOWED_CHATS"));
    const missing = ["FEISHU_APP_SECRET", "FEISHU_VERIFICATION_TOKEN"].find((it) => !setting(it));
    if (missing) throw new Error(`${missing} is not set, and FEISHU_APP_ID needs it`);
    const domain = setting("FEISHU_DOMAIN") || "feishu";
    if (domain !== "feishu" && domain !== "lark") throw new Error("FEISHU_DOMAIN: feishu or lark");
    const host = domain === "lark" ? "open.larksuite.com" : "open.feishu.cn";
    this.#api = setting("FEISHU_API_BASE") || `https://${host}`;
  }

  /** Rejects if the app's id or secret is wrong. */
  async start(onMessage: Accept): Promise<void> {
    ROUTES["POST /feishu/events"] = (body, headers) => this.#receive(body, headers, onMessage);
    await this.#accessToken();
  }

  /**
   * Answers as soon as the message is stored, without waiting for the model. If Feishu gets no
   * answer within 3 s, it sends the event again, which is called a redelivery.
   */
  #receive(body: Buffer, headers: http.IncomingHttpHeaders, onMessage: Accept): Answer {
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    const event = decryptEvent(body, encryptKey);
    const token = event?.header?.token ?? event?.token;
    if (!event || token !== this.#setting("FEISHU_VERIFICATION_TOKEN")) return UNAUTHORIZED;
    // When the owner registers the webhook, Feishu tests it: we have to send the challenge back.
    if (event.type === "url_verification")
      return { status: 200, body: { challenge: event.challenge } };
    if (!isSigned(body, headers, encryptKey)) return UNAUTHORIZED;
    const inbound = this.#read(event);
    if (inbound) this.#allowed.admit(this, inbound, onMessage);
    return ACCEPTED;
  }

  /** Undefined for an event that is no message, or a message that is not meant for us. */
  #read({ header, event }: FeishuEvent): InboundMessage | undefined {
    const { sender, message } = event ?? {};
    if (header?.event_type !== "im.message.receive_v1") return undefined;
    if (!message?.chat_id || sender?.sender_type !== "user") return undefined;
    const { chat_id: peerId, message_type: type = "", content = "", create_time } = message;
    const isGroup = message.chat_type !== "p2p";
    const mentions = message.mentions ?? [];
    if (isGroup && !mentions.some((mention) => this.#isBot(mention))) return undefined;
    const accountId = this.#setting("FEISHU_APP_ID");
    const senderId = sender.sender_id?.open_id ?? "";
    const { text, media } = readFeishu(type, content);
    const words = text.trim() || `[${type}]`; // a location, for example, has no text
    // The id is an idempotency key: a redelivery may come under a new message id, but never with
    // another sender, time or content, so it gets the same hash, and the inbox drops it.
    const fingerprint = JSON.stringify([senderId, peerId, create_time, content]);
    return {
      id: `feishu:${accountId}:${sha256(fingerprint).digest("hex")}`,
      channel: "feishu",
      accountId,
      peerId,
      senderId,
      guildId: header.tenant_key,
      isGroup,
      text: this.#nameMentions(words, mentions).trim() || words,
      media,
      at: Number(create_time), // in ms already
    };
  }

  /** False for everybody if FEISHU_BOT_OPEN_ID is not set, so that no group is answered. */
  #isBot({ id }: FeishuMention): boolean {
    const botId = this.#setting("FEISHU_BOT_OPEN_ID");
    return botId !== "" && id?.open_id === botId;
  }

  /** Puts names where the text has "@_user_1", and nothing where it mentions the bot. */
  #nameMentions(text: string, mentions: FeishuMention[]): string {
    let named = text;
    // Backwards, because "@_user_1" is also the beginning of "@_user_10".
    for (const mention of mentions.toReversed()) {
      const name = this.#isBot(mention) ? "" : `@${mention.name}`;
      if (mention.key) named = named.replaceAll(mention.key, () => name);
    }
    return named;
  }

  async send(to: string, text: string): Promise<void> {
    const content = JSON.stringify({ text });
    const message = { receive_id: to, msg_type: "text", content };
    let answer = await this.#postMessage(message);
    // An access token can become invalid early. One retry with a new token is enough: if Feishu
    // refuses that one, too, the token is not the problem.
    if (FEISHU_EXPIRED.includes(answer.code)) {
      this.#access.expiresAt = 0;
      answer = await this.#postMessage(message);
    }
    const { code, msg } = answer;
    if (code !== 0) throw sendError(`${code} ${msg}`, !FEISHU_BUSY.includes(code));
  }

  async #postMessage(message: object): Promise<FeishuAnswer> {
    const token = await this.#accessToken();
    return this.#post("/open-apis/im/v1/messages?receive_id_type=chat_id", message, token);
  }

  /** Gives the same token for about two hours, and gets a new one a minute before it expires. */
  async #accessToken(): Promise<string> {
    if (Date.now() < this.#access.expiresAt) return this.#access.token;
    const app = {
      app_id: this.#setting("FEISHU_APP_ID"),
      app_secret: this.#setting("FEISHU_APP_SECRET"),
    };
    const answer = await this.#post("/open-apis/auth/v3/tenant_access_token/internal", app);
    if (answer.code !== 0) throw sendError(`${answer.code} ${answer.msg}`, true);
    const { tenant_access_token: token = "", expire = 0 } = answer;
    this.#access = { token, expiresAt: Date.now() + (expire - 60) * 1000 };
    return token;
  }

  /** Gives what Feishu answers, also if it refuses. Throws SendError if there is no answer. */
  async #post(endpoint: string, body: object, token = ""): Promise<FeishuAnswer> {
    const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
    const signal = AbortSignal.timeout(10_000);
    const request = { method: "POST", headers, body: JSON.stringify(body), signal };
    try {
      const response = await fetch(this.#api + endpoint, request);
      if (response.status === 429 || response.status >= 500) throw new Error(response.statusText);
      return (await response.json()) as FeishuAnswer; // Feishu's refusals have this form, too
    } catch (error) {
      throw sendError(String(error), false);
    }
  }

  async stop(): Promise<void> {
    delete ROUTES["POST /feishu/events"];
  }
}

command("channels", "the channels, and how they are", (_args, { channels }) =>
  [...channels.states].map(([name, state]) => `${name.padEnd(10)} ${state}`),
);

command("accounts", "our accounts on the platforms", () => {
  // Only the beginning of each, because whoever reads a whole token can act as the bot.
  const masked = (name: string) => `${name}  ${(env(name) || "-").slice(0, 6)}`;
  return ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(masked);
});

// ---- s05 · Gateway and routing ----

// Each message raises two questions. Which agent answers it, and to whose conversation does it
// belong? The bindings answer the first one, and the agent's dmScope answers the second. `accept`
// asks both once, before the message is stored in the inbox. A binding that changes later therefore
// applies to later messages only, and a message that is replayed keeps its agent.

/** `dmScope` says which direct chats share a conversation: all, those of a person, or none. */
export interface Agent {
  id: string;
  system: string;
  model?: string;
  dmScope: DmScope;
}

type DmScope = "main" | "per-peer" | "per-channel-peer" | "per-account-channel-peer";

export interface TurnOptions {
  agent?: Agent;
}

export interface Routed {
  agentId: string;
}

export interface App {
  agents: AgentManager;
  bindings: BindingTable;
  gateway: GatewayServer;
  terminalAgent?: string; // set by /agent
}

const LUNA = "You are Luna, a warm and brief assistant. Answer plainly.";
const SAGE = "You are Sage, a calm and thorough assistant. Give your reasons.";

/** Who can answer. The type asks for at least one, because the first is the default. */
export const AGENTS: [Agent, ...Agent[]] = [
  { id: "luna", system: LUNA, dmScope: "per-channel-peer" },
  { id: "sage", system: SAGE, dmScope: "per-channel-peer" },
];

/** The agents by id. */
export class AgentManager extends Map<string, Agent> {
  /** Throws if there is no such agent; the error names those that exist. */
  find(id: string): Agent {
    const agent = this.get(id);
    if (!agent) throw new Error(`no such agentId: ${id}; there are ${[...this.keys()].join(", ")}`);
    return agent;
  }
}

// The tiers in their order of precedence: a chat comes before the group of chats that it belongs
// to, then our own account, the platform, and last what applies to every message.
const TIERS = ["peerId", "guildId", "accountId", "channel", "default"] as const;

type Tier = (typeof TIERS)[number];

/** "This agent answers what comes from there." Within a tier the higher priority has precedence. */
export interface Binding {
  agentId: string;
  tier: number; // 1 to 5
  matchKey: Tier;
  matchValue: string; // of a peer also "telegram:1001"
  priority: number;
}

export const BINDINGS: Omit<Binding, "tier">[] = [
  { agentId: "luna", matchKey: "default", matchValue: "*", priority: 0 },
];

/**
 * Has a map from value to binding for each tier, because a look-up takes the same time however many
 * bindings there are. The bindings last until the program ends.
 */
export class BindingTable {
  #byTier = new Map<string, Map<string, Binding>>(TIERS.map((key) => [key, new Map()]));

  constructor(bindings: Omit<Binding, "tier">[]) {
    for (const binding of bindings) this.set(binding);
  }

  /** Adds a binding, or replaces the one with the same key and value. */
  set(binding: Omit<Binding, "tier">): Binding {
    const complete = { ...binding, tier: TIERS.indexOf(binding.matchKey) + 1 };
    this.#byTier.get(binding.matchKey)?.set(binding.matchValue.toLowerCase(), complete);
    return complete;
  }

  /** Gives false if there was no such binding. */
  remove(matchKey: string, matchValue: string): boolean {
    return this.#byTier.get(matchKey)?.delete(matchValue.toLowerCase()) ?? false;
  }

  list(): Binding[] {
    return [...this.#byTier.values()].flatMap((bindings) => [...bindings.values()]);
  }

  /** The agent for a message, and the binding that decided: one of the first tier that has any. */
  resolve(message: InboundMessage): { agentId: string; binding?: Binding } {
    for (const tier of TIERS) {
      const binding = this.#lookUp(tier, message);
      if (binding) return { agentId: binding.agentId, binding };
    }
    return { agentId: AGENTS[0].id };
  }

  #lookUp(tier: Tier, message: InboundMessage): Binding | undefined {
    const values = matchValues(tier, message).map((value) => value.toLowerCase());
    const found = values.map((value) => this.#byTier.get(tier)?.get(value));
    const bindings = found.filter((binding) => binding !== undefined);
    return bindings.sort((a, b) => b.priority - a.priority)[0];
  }
}

/** What a binding of this tier has to name to apply to the message. */
function matchValues(tier: Tier, message: InboundMessage): string[] {
  if (tier === "default") return ["*"];
  const value = message[tier];
  if (!value) return [];
  // Two platforms may give the same number to two people, so a peer can be bound by both names:
  // "telegram:1001", or just "1001" for whoever has it.
  if (tier === "peerId") return [`${message.channel}:${value}`, value];
  return [value];
}

/**
 * The key of the conversation that a message belongs to. It is in lower case, because platforms and
 * file systems disagree about case. Throws if it is longer than the key of any real peer.
 */
export function buildSessionKey(agentId: string, message: InboundMessage, dmScope: DmScope) {
  const key = `agent:${agentId}:${conversationPlace(message, dmScope)}`.toLowerCase();
  if (key.length > 150) throw new Error(`peerId is too long: ${key.length} characters in the key`);
  return key;
}

/** Where the message was said, which is the part of its session key behind the agent. */
function conversationPlace(message: InboundMessage, dmScope: DmScope): string {
  const { channel, accountId, peerId, isGroup } = message;
  if (channel === "cron") return message.id; // each run of a job has a conversation of its own
  if (isGroup) return `${channel}:group:${peerId}`;
  const direct = {
    // All direct chats are one conversation. That suits an agent with one owner; if two people
    // wrote to it, each could ask for what the other said.
    main: "main",
    "per-peer": `direct:${peerId}`,
    "per-channel-peer": `${channel}:direct:${peerId}`,
    "per-account-channel-peer": `${channel}:${accountId}:direct:${peerId}`,
  };
  return direct[dmScope];
}

// The error codes of JSON-RPC 2.0 by the names that its specification gives them.
const PARSE_ERROR = -32700;
const INVALID_REQUEST = -32600;
const METHOD_NOT_FOUND = -32601;
const INVALID_PARAMS = -32602;
const INTERNAL_ERROR = -32603;
const SERVER_ERROR = -32000; // the first of those that each server may use as it likes

/** An error that the client is told. Any other error stays in our log: it may hold private data. */
class RpcError extends Error {
  readonly code: number;

  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * The client that a method works for. `notify` sends it a notification before the response is
 * there, and does nothing if the request has no id that the notification could refer to.
 */
export interface Connection {
  peerId: string; // each connection is a peer of its own
  notify(method: string, params: object): void;
}

/** Gives the result. What it throws becomes the error of the response. */
export type Method = (params: Fields, app: App, connection: Connection) => unknown;

/**
 * What a client can ask of the gateway. To add a method, call `method` with its name, its
 * parameters, the names of those that may be left out, and a function that gives the result.
 */
export const METHODS: Record<string, Method> = {};

/** Adds a method. Its parameters are checked as the input of a tool is, before `run` gets them. */
function method(name: string, properties: object, optional: string[], run: Method): void {
  const schema = objectSchema(properties, optional);
  METHODS[name] = (params, app, connection) => {
    const fields = orInvalidParams(() => checkInput(schema, params));
    return run(fields, app, connection);
  };
}

/** Runs a check of what a client sent. Its error becomes one that the client is told. */
function orInvalidParams<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw new RpcError(INVALID_PARAMS, error instanceof Error ? error.message : String(error));
  }
}

const MAX_FRAME = 1024 * 1024; // bytes: of one message, and of what a client may leave unread

/**
 * JSON-RPC 2.0 over WebSocket, on the one HTTP server. Whoever has the token may do what a person
 * on a channel may do, and change the bindings. Clients are not the owner, so they get no bash.
 */
export class GatewayServer {
  address = ""; // "ws://…", once it is attached to a server that listens
  readonly sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME });
  #token: string;

  constructor(token: string) {
    this.#token = token;
  }

  /** From now on, whoever asks this server for a WebSocket at "/" talks to the gateway. */
  attach(server: http.Server, app: App): void {
    const address = server.address();
    if (typeof address === "object" && address) this.address = `ws://127.0.0.1:${address.port}/`;
    server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      // A client may be gone before we answer. Without a listener that error would end the program.
      socket.on("error", () => {});
      const refusal = this.#refusalOf(request);
      if (refusal) {
        socket.end(`HTTP/1.1 ${refusal}\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.sockets.handleUpgrade(request, socket, head, (client) => this.#listenTo(client, app));
    });
  }

  /**
   * A WebSocket begins with a handshake, an HTTP request to upgrade the connection. It is refused
   * with the HTTP status that this gives: once it is accepted, the client could send.
   */
  #refusalOf(request: http.IncomingMessage): string | undefined {
    const [place, query] = (request.url ?? "").split("?");
    if (place !== "/") return "404 Not Found";
    if (isForeignPage(request)) return "403 Forbidden";
    const bearer = request.headers.authorization?.replace(/^Bearer /i, "");
    const token = bearer ?? new URLSearchParams(query).get("token") ?? "";
    if (!isSameSecret(token, this.#token)) return "401 Unauthorized";
    return undefined;
  }

  #listenTo(socket: WebSocket, app: App): void {
    const push = (message: object) => pushTo(socket, message);
    const client = { peerId: crypto.randomUUID(), push };
    socket.on("error", (error) => info(`gateway: ${error.message}`)); // e.g. a frame over the limit
    socket.on("message", async (data) => {
      const response = await answerRpc(String(data), app, client);
      if (response) client.push(response);
    });
  }
}

/**
 * Every web page in the owner's browser can connect to loopback, but the browser adds the page's
 * origin to the request, and a page can't change it. Programs that are no browsers send none.
 */
function isForeignPage({ headers, socket }: http.IncomingMessage): boolean {
  if (!headers.origin) return false;
  const own = [`http://localhost:${socket.localPort}`, `http://127.0.0.1:${socket.localPort}`];
  return !own.includes(headers.origin);
}

/**
 * Compares in constant time. `===` stops at the first difference, so the time that it takes would
 * tell an attacker how much of a guess is right. The hashes have one length, as the function needs.
 */
function isSameSecret(given: string, secret: string): boolean {
  return crypto.timingSafeEqual(sha256(given).digest(), sha256(secret).digest());
}

/**
 * Sends a message, if the client is still there. Backpressure: what a client does not read piles up
 * in our memory, so we drop a client that leaves too much of it unread.
 */
function pushTo(socket: WebSocket, message: object): void {
  if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message));
  if (socket.bufferedAmount > MAX_FRAME) socket.terminate();
}

/** The other end of one connection. */
type Client = { peerId: string; push(message: object): void };

type RpcId = string | number | null;
/** Without an id it is a notification, to which JSON-RPC gives no response, not even an error. */
type RpcRequest = { id?: RpcId; method: string; params: unknown };
type ResultResponse = { jsonrpc: "2.0"; id: RpcId; result: unknown };
type ErrorResponse = { jsonrpc: "2.0"; id: RpcId; error: { code: number; message: string } };

const errorResponse = (id: RpcId, { code, message }: RpcError): ErrorResponse => ({
  jsonrpc: "2.0",
  id,
  error: { code, message },
});

/** The response to what a client sent, or undefined where there is none to give. */
async function answerRpc(json: string, app: App, client: Client) {
  let message: unknown;
  try {
    message = JSON.parse(json);
  } catch {
    return errorResponse(null, new RpcError(PARSE_ERROR, "this is not JSON"));
  }
  // By the specification an empty array is one invalid request, and not a batch without any.
  if (Array.isArray(message) && message.length > 0) return answerBatch(message, app, client);
  return answerMessage(message, app, client);
}

/** The responses to all requests of a batch; undefined if it has only notifications. */
async function answerBatch(batch: unknown[], app: App, client: Client) {
  const all = await Promise.all(batch.map((message) => answerMessage(message, app, client)));
  const responses = all.filter((response) => response !== undefined);
  return responses.length > 0 ? responses : undefined;
}

/**
 * Requests do not wait for each other: "status" is answered while a "send" still waits for the
 * model. The client tells the responses apart by their ids.
 */
async function answerMessage(message: unknown, app: App, client: Client) {
  const parsed = parseRequest(message);
  if ("error" in parsed) return parsed;
  const response = await dispatch(parsed, app, client);
  const isNotification = parsed.id === undefined;
  return isNotification ? undefined : response;
}

/** The request in a message, or the error response to a message that is no request. */
function parseRequest(message: unknown): RpcRequest | ErrorResponse {
  const isObject = typeof message === "object" && message !== null && !Array.isArray(message);
  const { jsonrpc, id, method: name, params = {} }: Fields = isObject ? { ...message } : {};
  const isId = id === null || typeof id === "string" || typeof id === "number";
  const hasGoodId = isId || id === undefined;
  const isRequest = jsonrpc === "2.0" && typeof name === "string" && hasGoodId;
  if (isRequest) return { id, method: name, params };
  const error = new RpcError(INVALID_REQUEST, "this is no request of JSON-RPC 2.0");
  return errorResponse(isId ? id : null, error);
}

/** Runs the method that a request names. It never rejects: an error becomes the response. */
async function dispatch(request: RpcRequest, app: App, client: Client) {
  const { id, method: name, params } = request;
  const notify = (about: string, more: object) => {
    if (id !== undefined) client.push({ jsonrpc: "2.0", method: about, params: { id, ...more } });
  };
  try {
    // Every object inherits "constructor" and "toString", and these are no methods of ours.
    const run = Object.hasOwn(METHODS, name) ? METHODS[name] : undefined;
    if (!run) throw new RpcError(METHOD_NOT_FOUND, `there is no method ${name}`);
    // `params` may still be anything. Each method checks it against its schema.
    const given = await run(params as Fields, app, { peerId: client.peerId, notify });
    return { jsonrpc: "2.0", id: id ?? null, result: given } satisfies ResultResponse;
  } catch (error) {
    if (error instanceof RpcError) return errorResponse(id ?? null, error);
    warn(`gateway: ${name}: ${error}`);
    return errorResponse(id ?? null, new RpcError(INTERNAL_ERROR, "internal error"));
  }
}

// Only the owner and the program itself write on these channels, so no client may name them.
const INTERNAL_CHANNELS = ["cli", "cron", "heartbeat"];

const SENDER = {
  channel: string("The channel that decides about route and session key; ws if left out."),
  peerId: string("The chat on it; if left out, one that only this connection has."),
  agentId: string("The agent that answers; if left out, the bindings decide."),
};
const SEND = { text: string("What the person says."), ...SENDER };

// The message of a `send` does not enter the inbox, because after a crash the connection is gone,
// and nobody is left to get the answer. What was said is in the session all the same.
method("send", SEND, Object.keys(SENDER), async (params, app, connection) => {
  const inbound = messageFromClient(params, connection);
  const agent = requestedAgent(params, app);
  const message = orInvalidParams(() => route(inbound, app, agent));
  connection.notify("typing", {});
  try {
    const answer = await answerClient(message, app, connection);
    return { agentId: message.agentId, sessionKey: message.sessionKey, reply: answer };
  } catch (error) {
    throw new RpcError(SERVER_ERROR, `the turn failed: ${error}`);
  }
});

/** The message that a `send` stands for. Throws an RpcError that names the wrong parameter. */
function messageFromClient(params: Fields, connection: Connection): InboundMessage {
  const { channel: named = "ws", peerId = connection.peerId } = params;
  const channel = String(named).toLowerCase();
  const isInternal = INTERNAL_CHANNELS.includes(channel);
  if (isInternal || !/^\w+$/.test(channel)) {
    throw new RpcError(INVALID_PARAMS, "channel: not this one");
  }
  const text = String(params.text).trim();
  if (!text) throw new RpcError(INVALID_PARAMS, "text is empty");
  return {
    id: `ws:${crypto.randomUUID()}`,
    channel,
    accountId: "local",
    peerId: String(peerId),
    senderId: connection.peerId,
    isGroup: false,
    text,
    media: [],
    at: Date.now(),
  };
}

/** The agent that a client asks for; undefined if the bindings are to decide. */
function requestedAgent({ agentId }: Fields, app: App): Agent | undefined {
  if (agentId === undefined) return undefined;
  return orInvalidParams(() => app.agents.find(String(agentId)));
}

/** Runs the turn, and passes the pieces of the reply on to the client as they arrive. */
function answerClient(message: Routed, app: App, connection: Connection): Promise<string> {
  const onText = (piece: string) => {
    if (piece) connection.notify("delta", { text: piece });
  };
  const options = { message, onText, agent: app.agents.get(message.agentId) };
  return runExclusive(message.sessionKey, () => answerTo(message, app, options));
}

const MATCH = {
  matchKey: { type: "string", enum: TIERS },
  matchValue: string("The value that a message must have there; * for the default."),
};
const BINDING = {
  agentId: string("The agent that answers."),
  ...MATCH,
  priority: { type: "integer", description: "The highest in a tier wins; 0 if left out." },
};

method("bindings.set", BINDING, ["priority"], (params, app) => {
  const { agentId, matchKey, matchValue, priority = 0 } = params;
  const agent = orInvalidParams(() => app.agents.find(String(agentId)));
  return app.bindings.set({
    agentId: agent.id,
    matchKey: matchKey as Tier, // the schema lets nothing else through
    matchValue: String(matchValue),
    priority: Number(priority),
  });
});

method("bindings.remove", MATCH, [], ({ matchKey, matchValue }, app) => ({
  removed: app.bindings.remove(String(matchKey), String(matchValue)),
}));

method("bindings.list", {}, [], (_params, app) => app.bindings.list());

method("agents.list", {}, [], (_params, app) =>
  [...app.agents.values()].map(({ id, dmScope, model = MODEL }) => ({ id, dmScope, model })),
);

method("sessions.list", {}, [], (_params, app) =>
  app.store.all().map(({ id, header, messages }) => ({ id, ...header, messages: messages.length })),
);

method("status", {}, [], (_params, app) => ({
  uptime: Math.round(process.uptime()), // seconds
  channels: Object.fromEntries(app.channels.states),
  connections: app.gateway.sockets.clients.size,
  conversations: [...tails.keys()].filter((key) => key.startsWith("agent:")).length, // at work
  waiting: app.inbox.pending().length,
}));

command("bindings", "who answers what", (_args, { bindings }) =>
  bindings.list().map((one) => `${one.matchKey} ${one.matchValue} → ${one.agentId}`),
);

command("route", "<channel> <peer> [account] [guild]: who would answer, and why", (args, app) => {
  const [channel = "", peerId = "", accountId = "", guildId] = args.split(/\s+/);
  const nothingSaid = { id: "", senderId: "", isGroup: false, text: "", media: [], at: 0 };
  const message = { ...nothingSaid, channel, peerId, accountId, guildId };
  const { binding } = app.bindings.resolve(message);
  const { agentId, sessionKey } = route(message, app);
  return `${agentId}  ${sessionKey}  (${binding?.tier ?? 5} ${binding?.matchKey ?? "default"})`;
});

command("agents", "the agents", (_args, { agents }) =>
  [...agents.values()].map(({ id, dmScope, system }) => `${id}  ${dmScope}  ${system}`),
);

command("agent", "<id>|off: who answers you here", (id, app) => {
  app.terminalAgent = id === "off" ? undefined : app.agents.find(id).id;
  // The agent is a part of the key, so with each agent the terminal has another conversation.
  app.key = TERMINAL_KEY.replace("luna", app.terminalAgent ?? "luna");
  return t(`From now on: ${app.terminalAgent ?? "as the bindings say"}.`);
});

command("sessions", "all conversations", (_args, { store }) =>
  store.all().map(({ id, header: { key, label } }) => `${id}  ${key}  ${label}`),
);

command("gateway", "where programs can connect", (_args, { gateway }) =>
  t(`${gateway.address || "(not listening)"}  ${gateway.sockets.clients.size} connected`),
);

/**
 * The token that clients must show: that of the settings, or one that we make and keep. Listening
 * on loopback only is no protection: every program and web page on this machine can reach it.
 */
function gatewayToken(): string {
  const given = env("GATEWAY_TOKEN");
  if (given) return given;
  const tokenFile = path.join(STATE, "gateway-token");
  const kept = fs.existsSync(tokenFile) ? fs.readFileSync(tokenFile, "utf8") : "";
  if (/^[\w-]{32}$/.test(kept)) return kept;
  const token = crypto.randomBytes(24).toString("base64url"); // 32 characters
  fs.writeFileSync(tokenFile, token, { mode: 0o600 }); // only this user may read it
  return token;
}

// ---- s06 · Intelligence ----

// The agent's character is in files, and so is what it knows. The system prompt is put together
// from them for each call, and comes out the same, byte by byte, until one of the files changes.
// This saves money by prompt caching: the API keeps what it has read and charges a tenth for it the
// next time, but only as far as a request begins exactly like an earlier one.

export interface TurnOptions {
  mode?: "full" | "minimal" | "none"; // all of the prompt; what a job needs; the identity alone
}

export interface App {
  memory: MemoryStore;
}

/** Whether only the owner reads the answer. Without a message it is a command at the terminal. */
export function isOwner({ message }: TurnOptions): boolean {
  if (!message) return true;
  // A client of the gateway may name the owner's chat as its own, and that proves nothing.
  if (message.isGroup || message.id.startsWith("ws:")) return false;
  // A job is always the owner's, but its answer may go to somebody else.
  const { job } = message;
  if (job) return !job.deliver || isOwnersChat(job.deliver.channel, job.deliver.to);
  return isOwnersChat(message.channel, message.peerId);
}

/** The owner's are the terminal and, on each platform, the direct chat that is listed first. */
function isOwnersChat(channel: string, peerId: string): boolean {
  if (channel === "cli") return true;
  if (channel === "heartbeat") return true; // in which the program asks on the owner's behalf
  const listed = env(`${channel.toUpperCase()}_ALLOWED_CHATS`).split(/[\s,]+/);
  // Telegram's groups have negative numbers. An empty setting is split into one empty string.
  const firstDirectChat = listed.find((chat) => chat !== "" && !chat.startsWith("-"));
  return peerId === firstDirectChat;
}

const PRIVATE = ["MEMORY.md", "USER.md"];
const PRIVATE_FILES = PRIVATE.map((name) => path.join(WORKSPACE, name));

/** Throws if a tool asks for a file of the owner's in a turn of somebody else's. */
function checkPrivate({ path: requested }: Fields, turn: Turn): void {
  if (typeof requested !== "string" || isOwner(turn)) return;
  const real = safePath(requested, WORKSPACE);
  // Both names count, because a link may have a harmless name and lead to a private file.
  const hasPrivateName = isPrivateName(requested) || isPrivateName(real);
  // MEMORY.md may itself be a link. Then the file that it leads to is private, whatever its name.
  const existing = PRIVATE_FILES.filter((one) => fs.existsSync(one));
  const isPrivateFile = existing.some((one) => fs.realpathSync.native(one) === real);
  if (hasPrivateName || isPrivateFile) throw new Error(`${requested} is the owner's`);
}

/** Upper and lower case are the same here, because they are on macOS and Windows. */
function isPrivateName(place: string): boolean {
  const name = path.basename(place).toLowerCase();
  return PRIVATE.some((one) => one.toLowerCase() === name);
}

// The problems that were printed already. A broken file is read again for every prompt, but a
// person wants to be told once. This belongs to the terminal and not to one App: the prompt is also
// made where there is no App, for example when ContextGuard estimates its size.
const reportedProblems = new Set<string>();

/** What `read` gives. If it throws, that is said once, and `otherwise` is given. */
function readOrSay<T>(place: string, otherwise: T, read: (place: string) => T): T {
  try {
    return fs.existsSync(place) ? read(place) : otherwise;
  } catch (error) {
    const problem = `${place} ${error}`;
    if (!reportedProblems.has(problem)) warn(`${place} is left out: ${error}`);
    reportedProblems.add(problem);
    return otherwise;
  }
}

const FILE_LIMIT = 20_000; // characters of one file in the prompt
const TOTAL_LIMIT = 60_000; // characters of all files together

/**
 * Gives an agent's files by name: its own where it has one, else the common one. A long file loses
 * its middle. Earlier `names` have precedence when the limit of all files together is reached.
 */
export function loadBootstrap(agentId: string, names: string[], root = WORKSPACE) {
  const files = new Map<string, string>();
  let room = TOTAL_LIMIT;
  for (const name of names) {
    const whole = readAgentFile(agentId, name, root);
    const kept = room > 0 ? keepEnds(whole, Math.min(room, FILE_LIMIT)) : "";
    files.set(name, kept);
    room -= kept.length;
  }
  return files;
}

/** Both files are read, because one that is broken should be reported even if it is not needed. */
function readAgentFile(agentId: string, name: string, root: string): string {
  const own = readOrSay(path.join(root, "agents", agentId, name), "", readText).trim();
  const common = readOrSay(path.join(root, name), "", readText).trim();
  return own || common; // an empty file of its own would leave the agent without any
}

/** `file` is relative to the workspace: the model reads the whole skill there when it needs it. */
export type Skill = { name: string; description: string; file: string };

/** The skills in some folders. If two have the same name, the one in the earlier folder counts. */
export class SkillsManager {
  #folders: string[];

  constructor(folders: string[]) {
    this.#folders = folders;
  }

  /** Reads the folders anew. A skill that can't be read is reported and left out. */
  list(): Skill[] {
    const byName = new Map<string, Skill>();
    for (const skill of this.#folders.flatMap(skillsIn)) {
      if (!byName.has(skill.name)) byName.set(skill.name, skill);
    }
    return [...byName.values()];
  }
}

function skillsIn(folder: string): Skill[] {
  const names = readOrSay(folder, [], (place) => fs.readdirSync(place)).sort();
  const skills = names.map((name) =>
    readOrSay(path.join(folder, name, "SKILL.md"), undefined, readSkill),
  );
  return skills.filter((skill) => skill !== undefined);
}

// Control characters become blanks, too, because a stranger may have written what is shown on our
// terminal, and a control sequence could clear it or draw over it.
const oneLine = (words: unknown) => `${words}`.replace(/[\s\p{Cc}]+/gu, " ").trim();

const SKILL = objectSchema({
  name: string("What the skill is called in the list."),
  description: string("When to use it."),
});
// The front matter: YAML between two lines of dashes, where the file begins. Editors on Windows may
// put a byte order mark before it.
const FRONT_MATTER = /^\uFEFF?---\r?\n([\s\S]{0,20000}?)\r?\n---/;

/** Reads a SKILL.md. Throws if it has no name or no description. */
function readSkill(skillFile: string): Skill {
  const [, yaml = "{}"] = FRONT_MATTER.exec(readText(skillFile)) ?? [];
  // YAML can name a part and repeat it. A few lines of repeated repetitions, known as "billion
  // laughs", would otherwise fill all memory.
  const fields: unknown = parseYaml(yaml, { maxAliasCount: 20, logLevel: "error" });
  const { name, description } = checkInput(SKILL, fields);
  if (!oneLine(name)) throw new Error("name is empty");
  const relative = path.relative(WORKSPACE, skillFile).split(path.sep).join("/");
  return { name: oneLine(name), description: oneLine(description), file: relative };
}

/** What the layers of the prompt are made from. `files` are those that this person may see. */
type PromptParts = { agent: Agent; message?: InboundMessage; files: Map<string, string> };

/**
 * The layers of the system prompt, in order. To add a layer, add its name and a function that gives
 * its text. The text must not change from turn to turn, or nothing behind it would be cached.
 */
export const PROMPT_LAYERS: { name: string; text(parts: PromptParts): string }[] = [
  { name: "identity", text: ({ agent, files }) => files.get("IDENTITY.md") || agent.system },
  { name: "soul", text: ({ files }) => joinFiles(files, ["SOUL.md"]) },
  { name: "tools", text: ({ files }) => joinFiles(files, ["TOOLS.md"]) },
  { name: "skills", text: skillsText },
  { name: "memory", text: ({ files }) => joinFiles(files, PRIVATE) },
  { name: "bootstrap", text: ({ files }) => joinFiles(files, ["AGENTS.md", "BOOTSTRAP.md"]) },
  { name: "runtime", text: ({ agent }) => `# Runtime\n\nYour id: ${agent.id}` },
  { name: "channel", text: channelText },
];

const MINIMAL = ["identity", "tools", "runtime", "channel"]; // for a job, without a person

function joinFiles(files: Map<string, string>, names: string[]): string {
  const texts = names.map((name) => files.get(name) ?? "");
  return texts.filter((text) => text !== "").join("\n\n");
}

function channelText({ message }: PromptParts): string {
  return `# Channel\n\n${message?.channel ?? "cli"}, ${message?.isGroup ? "a group" : "one person"}`;
}

function skillsText({ agent }: PromptParts): string {
  const folders = [`agents/${agent.id}/skills`, "skills"].map((one) => path.join(WORKSPACE, one));
  const skills = new SkillsManager(folders).list();
  if (skills.length === 0) return "";
  const lines = skills.map((skill) => `- ${skill.name}: ${skill.description} (${skill.file})`);
  const all = ["# Skills\n\nRead the file before you use one.\n", ...lines].join("\n");
  return keepEnds(all, FILE_LIMIT);
}

/** Each layer of the prompt with its text. It may be empty. */
export function promptLayers(options: TurnOptions): { name: string; text: string }[] {
  const { agent = AGENTS[0], message, mode = "full" } = options;
  if (mode === "none") return [{ name: "identity", text: agent.system }];
  const names = ["IDENTITY.md", "SOUL.md", "TOOLS.md", "AGENTS.md", "BOOTSTRAP.md"];
  const visible = isOwner(options) ? [...names, ...PRIVATE] : names;
  const parts = { agent, message, files: loadBootstrap(agent.id, visible) };
  const layers = PROMPT_LAYERS.filter(({ name }) => mode === "full" || MINIMAL.includes(name));
  return layers.map((layer) => ({ name: layer.name, text: layer.text(parts) }));
}

// A breakpoint tells the API to cache the request up to and including this block. We set two: the
// one behind the system prompt serves all conversations, the one on the last message serves the
// next call of this one.
const CACHE_BREAKPOINT = { cache_control: { type: "ephemeral" as const } };

/** The system prompt: all layers that have a text, and a breakpoint for the cache at the end. */
export function buildSystemPrompt(options: TurnOptions): Anthropic.TextBlockParam[] {
  const texts = promptLayers(options).map(({ text }) => text);
  const prompt = texts.filter((text) => text !== "").join("\n\n");
  // A cut through a long file may leave half of a surrogate pair, which the API would refuse.
  return [{ type: "text", text: prompt.toWellFormed(), ...CACHE_BREAKPOINT }];
}

/** The same request with a breakpoint on its last block. The next request begins with all of it. */
function withCacheBreakpoint(request: Entry[]): Entry[] {
  const last = request.at(-1);
  const block = last?.content.at(-1);
  if (!last || !block) return request;
  // TypeScript forgets which kind of block it was, but it still is one of the same kind.
  const marked = { ...block, ...CACHE_BREAKPOINT } as Anthropic.ContentBlockParam;
  const content = [...last.content.slice(0, -1), marked];
  return [...request.slice(0, -1), { ...last, content }];
}

/** Something that was noted. Without `at` (ms) it never ages; without a key it is the owner's. */
export type Memory = { text: string; source: string; at?: number; sessionKey?: string };
export type Hit = Memory & { score: number }; // 0 to 1

/** A memory with what the search needs to know of its text. */
type IndexedMemory = {
  memory: Memory;
  length: number; // in terms
  termFrequencies: Map<string, number>; // term → how often it occurs
  vector: Map<number, number>; // bucket → weight
};

const SEGMENTER = new Intl.Segmenter("und", { granularity: "word" });
const WIDE = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/u;
// In a store of few texts these words are rare, and so BM25 would take them for important.
const STOP_WORDS =
  /^(an?|and|are|at|did|do|does|for|how|i|in|is|it|my|of|on|the|to|wh(at|en|ere|o|y))$/;

/** One spelling for all. Anyone may send a megabyte, so only the beginning of a text is indexed. */
const normalise = (content: string) => content.slice(0, 4_000).normalize("NFKC").toLowerCase();

/** The words that a text can be found by. A dictionary splits Chinese and Japanese into words. */
function termsOf(content: string): string[] {
  const segments = [...SEGMENTER.segment(normalise(content))].map(({ segment }) => segment);
  return segments.filter(isTerm).map(stem);
}

/** Between the words, the segmenter also gives blanks and punctuation. */
const isTerm = (segment: string) => /[\p{L}\p{N}]/u.test(segment) && !STOP_WORDS.test(segment);

/** Stemming in its simplest form: "teas" becomes "tea". The trigrams find the other endings. */
const stem = (word: string) => (WIDE.test(word) ? word : word.replace(/(?<=\p{L}{3})s$/u, ""));

function countEach<T>(items: T[]): Map<T, number> {
  const counts = new Map<T, number>();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

/**
 * The overlapping pieces of three characters that a word is made of: " te", "tea", "ea " for "tea".
 * A Chinese or Japanese word often has only two, so there a piece has two characters.
 */
function trigrams(word: string): string[] {
  const isWide = WIDE.test(word);
  const size = isWide ? 2 : 3;
  const padded = isWide ? word : ` ${word} `; // the blanks tell a beginning or an end apart
  const grams = [padded.slice(0, size)]; // also of a single character, which is shorter than that
  for (let start = 1; start + size <= padded.length; start++) {
    grams.push(padded.slice(start, start + size));
  }
  return grams;
}

/** The hash FNV-1a, in 32 bits. Unlike a random one it gives the same in every process. */
function fnv1a(words: string): number {
  let hash = 0x811c9dc5; // the offset basis of FNV
  for (const character of words) {
    const mixed = hash ^ (character.codePointAt(0) ?? 0);
    hash = Math.imul(mixed, 0x01000193); // the prime of FNV
  }
  return hash >>> 0; // as an unsigned number
}

/** The dimension of the vector that a trigram counts for: 13 bits of the hash, so one of 8,192. */
const bucketOf = (gram: string) => fnv1a(gram) >>> 19;

/**
 * The embedding of a text: a vector of length 1 that counts its trigrams. By it "allergic" finds
 * "allergies", but it knows nothing of meanings. A model's embedding would replace this function.
 */
function embed(content: string): Map<number, number> {
  const words = normalise(content).match(/[\p{L}\p{N}]+/gu) ?? [];
  const buckets = words.flatMap((word) => trigrams(word).map(bucketOf));
  const counts = countEach(buckets);
  const length = Math.hypot(...counts.values()) || 1; // a text without words has no trigrams
  return new Map([...counts].map(([bucket, count]) => [bucket, count / length]));
}

const WEIGHTS = { keyword: 0.6, vector: 0.4 }; // the two scores, from 0 to 1 each, add up to 1
const K1 = 1.2; // of BM25: the lower, the sooner it stops to matter that a word is repeated
const B = 0.75; // of BM25: how far a text's length counts against it, from 0 to 1
const HALF_LIFE = 30 * 24 * 3600 * 1000; // ms
const MIN_RECENCY = 0.8; // however old an entry is, it keeps this share of its score

/**
 * BM25, the usual score of keyword search. It rises with the term frequency, but ever more slowly,
 * up to `idf * (K1 + 1)`. A long text needs a word more often than a short one.
 */
function bm25(termFrequency: number, lengthNorm: number, idf: number): number {
  return (idf * termFrequency * (K1 + 1)) / (termFrequency + K1 * lengthNorm);
}

/** Adds points to the score of an entry. */
type AddScore = (entry: IndexedMemory, points: number) => void;

/**
 * What was noted from day to day, and the owner's MEMORY.md and USER.md. Search is hybrid: BM25
 * finds words, and the cosine of two vectors of trigrams finds what is spelled alike.
 */
export class MemoryStore {
  #dir: string;
  #files: string[];
  #now: () => number;
  #entries = new Set<IndexedMemory>();
  // The inverted index leads from each term, and from each bucket of a vector, to the entries that
  // have it. A search looks only at those and not at all entries, and it reads no file.
  #postings = new Map<string | number, Set<IndexedMemory>>();
  #totalLength = 0; // of all entries, in terms
  #loaded = new Map<string, { mtime: number; entries: IndexedMemory[] }>();
  #logs = new Map<string, JsonlFile>();

  /** `dir`: of the daily logs. `files`: what the owner writes; those that change are read again. */
  constructor(dir: string, files: string[], now = Date.now) {
    this.#dir = dir;
    this.#files = files;
    this.#now = now;
    fs.mkdirSync(dir, { recursive: true });
    for (const name of fs.readdirSync(dir).filter((one) => one.endsWith(".jsonl"))) {
      for (const { record } of this.#log(name).read()) this.#addNote({ ...record }, name);
    }
  }

  #log(name: string): JsonlFile {
    const log = this.#logs.get(name) ?? new JsonlFile(path.join(this.#dir, name));
    this.#logs.set(name, log);
    return log;
  }

  /** Adds a line of a log. One that was written by hand may lack anything; then it is skipped. */
  #addNote({ content, sessionKey, at, category }: Fields, name: string): void {
    if (typeof content !== "string" || typeof sessionKey !== "string") return;
    const source = `${name} ${category}`;
    this.#add({ text: content, source, at: Date.parse(String(at)) || 0, sessionKey });
  }

  /** Notes something for one conversation. It is on disk when this returns. */
  write(content: string, category: string, sessionKey: string): void {
    const at = new Date(this.#now()).toISOString();
    const name = `${at.slice(0, 10)}.jsonl`;
    const record = { at, content, category, sessionKey };
    this.#log(name).append(record);
    this.#addNote(record, name);
  }

  #add(memory: Memory): IndexedMemory {
    const terms = termsOf(memory.text);
    const termFrequencies = countEach(terms);
    const vector = embed(memory.text);
    const entry = { memory, length: terms.length, termFrequencies, vector };
    for (const key of indexKeys(entry)) {
      const posting = this.#postings.get(key) ?? new Set();
      this.#postings.set(key, posting.add(entry));
    }
    this.#entries.add(entry);
    this.#totalLength += entry.length;
    return entry;
  }

  #remove(entry: IndexedMemory): void {
    for (const key of indexKeys(entry)) this.#postings.get(key)?.delete(entry);
    this.#entries.delete(entry);
    this.#totalLength -= entry.length;
  }

  /** Reads those of the owner's files again that have changed. */
  #refresh(): void {
    for (const ownersFile of this.#files) {
      const mtime = fs.statSync(ownersFile, { throwIfNoEntry: false })?.mtimeMs ?? 0;
      const before = this.#loaded.get(ownersFile) ?? { mtime: 0, entries: [] };
      if (before.mtime === mtime) continue;
      for (const entry of before.entries) this.#remove(entry);
      const source = path.basename(ownersFile);
      const facts = factsIn(readOrSay(ownersFile, "", readText));
      const entries = facts.map((text) => this.#add({ text, source }));
      this.#loaded.set(ownersFile, { mtime, entries });
    }
  }

  /** The best of one conversation's entries, and of the owner's files if the owner asks. */
  search(query: string, { sessionKey = "", owner = false, topK = 5, weights = WEIGHTS } = {}) {
    this.#refresh();
    const scores = new Map<IndexedMemory, number>();
    // What others noted is left out here, before it has a score, so it can't come any further. It
    // only has a part in how rare a word is.
    const add: AddScore = (entry, points) => {
      const { memory } = entry;
      const isVisible = memory.sessionKey === undefined ? owner : memory.sessionKey === sessionKey;
      if (isVisible) scores.set(entry, (scores.get(entry) ?? 0) + points);
    };
    this.#scoreKeywords(query, (entry, score) => add(entry, weights.keyword * score));
    this.#scoreVectors(query, (entry, score) => add(entry, weights.vector * score));
    const hits = [...scores].map(([entry, score]) => ({
      entry,
      score: score * this.#recency(entry.memory),
    }));
    return diversify(hits, topK);
  }

  /** The keyword channel: the BM25 scores of all terms of the query, scaled to 0 to 1. */
  #scoreKeywords(query: string, add: AddScore): void {
    const idfs = new Map(termsOf(query).map((term) => [term, this.#idf(term)]));
    const sumOfIdfs = [...idfs.values()].reduce((sum, idf) => sum + idf, 0);
    const maxScore = sumOfIdfs * (K1 + 1); // of a text that has only these terms, again and again
    const averageLength = this.#totalLength / this.#entries.size;
    for (const [term, idf] of idfs) {
      for (const entry of this.#postings.get(term) ?? []) {
        const termFrequency = entry.termFrequencies.get(term) ?? 0;
        const lengthNorm = 1 - B + B * (entry.length / averageLength);
        add(entry, bm25(termFrequency, lengthNorm, idf) / maxScore);
      }
    }
  }

  /**
   * The vector channel: the cosine similarity of two texts, which is 1 if they have the same
   * trigrams. Both vectors have the length 1, so it is the sum of the products bucket by bucket.
   */
  #scoreVectors(query: string, add: AddScore): void {
    for (const [bucket, weight] of embed(query)) {
      for (const entry of this.#postings.get(bucket) ?? []) {
        add(entry, weight * (entry.vector.get(bucket) ?? 0));
      }
    }
  }

  /** Inverse document frequency: a term that few entries have says more than one that all have. */
  #idf(term: string): number {
    const having = this.#postings.get(term)?.size ?? 0;
    return Math.log(1 + (this.#entries.size - having + 0.5) / (having + 0.5));
  }

  /** From 1 down to MIN_RECENCY: a younger entry is preferred, but an old name is still a name. */
  #recency({ at = this.#now() }: Memory): number {
    const age = Math.max(0, this.#now() - at);
    return MIN_RECENCY + (1 - MIN_RECENCY) * 0.5 ** (age / HALF_LIFE);
  }
}

/** What leads to an entry in the inverted index: words are terms, numbers are buckets. */
const indexKeys = ({ termFrequencies, vector }: IndexedMemory) => [
  ...termFrequencies.keys(),
  ...vector.keys(),
];

/** The facts in a file of the owner's: one in each line, without the mark of a list before it. */
function factsIn(content: string): string[] {
  const lines = content.split(/\r?\n/).map((line) => line.replace(/^[-*\s]+/, ""));
  return lines.filter(isFact);
}

/** Whether a line says something. A heading, a comment and a field left empty ("Name:") do not. */
function isFact(line: string): boolean {
  const words = line.trimEnd();
  const isHeading = words.startsWith("#");
  const isComment = words.startsWith("<");
  const isEmptyField = words.endsWith(":");
  return words.length > 1 && !isHeading && !isComment && !isEmptyField;
}

const DUPLICATE = 0.8; // two entries that share this part of their terms say nearly the same

/**
 * Maximal marginal relevance, in its simplest form: the best hits, but none that repeats a better
 * one. The full form weighs how relevant a hit is against how much it resembles the others.
 */
function diversify(hits: { entry: IndexedMemory; score: number }[], topK: number): Hit[] {
  const limit = Math.min(topK, 50); // because each hit is compared with all that were chosen
  const chosen: typeof hits = [];
  for (const hit of hits.sort((a, b) => b.score - a.score)) {
    if (chosen.length >= limit) break;
    const isNew = chosen.every(({ entry }) => jaccard(entry, hit.entry) < DUPLICATE);
    if (isNew) chosen.push(hit);
  }
  return chosen.map(({ entry, score }) => ({ ...entry.memory, score }));
}

/** The Jaccard index: how many of the terms that either entry has are in both, from 0 to 1. */
function jaccard(a: IndexedMemory, b: IndexedMemory): number {
  const ofBoth = [...a.termFrequencies.keys()].filter((term) => b.termFrequencies.has(term));
  const shared = ofBoth.length;
  const all = a.termFrequencies.size + b.termFrequencies.size - shared;
  return all === 0 ? 0 : shared / all;
}

const MIN_SCORE = 0.17; // a lower one comes from a few trigrams that any two texts share by chance

/** At most three memories that belong to what the person says, the best first. */
function recall(conversation: Conversation, input: string, options: TurnOptions): string[] {
  // A heartbeat asks the same each time, so it would recall the same three memories each time.
  if (options.message?.channel === "heartbeat") return [];
  const about = { ...memoryScope(conversation, options), topK: 3 };
  const hits = options.app?.memory.search(input, about) ?? [];
  const relevant = hits.filter(({ score }) => score >= MIN_SCORE);
  return relevant.map(({ text }) => keepEnds(text, 1_000));
}

/**
 * What stands before the person's words and is stored with them: the time, and what we remember. In
 * the system prompt it would change how each request begins, so nothing could be cached.
 */
function contextFor(conversation: Conversation, input: string, options: TurnOptions): string {
  const found = recall(conversation, input, options);
  if (found.length > 0) info(`  (remembered: ${oneLine(found.join(" · "))})`);
  const lines = [`It is ${new Date()}.`, ...found.map((one) => `You remember: ${one}`)];
  return `<context>\n${lines.join("\n").toWellFormed()}\n</context>`;
}

/** Whose memories a conversation may use: its own, and the owner's files if it is the owner's. */
const memoryScope = (conversation: Conversation, options: TurnOptions) => ({
  sessionKey: conversation instanceof Session ? conversation.header.key : "",
  owner: isOwner(options),
});

/** A line for each hit: its score, where it is from, and how it begins. */
const formatHits = (hits: Hit[]) =>
  hits.map((hit) => `${hit.score.toFixed(2)}  ${hit.source}  ${oneLine(hit.text.slice(0, 80))}`);

const COUNT = { type: "integer", description: "How many at most; 5 if left out." };
const FACT = { content: string("One full sentence."), category: string("One word.") };
TOOLS.push(
  tool("memory_write", "Remember a fact for later conversations.", FACT),
  tool("memory_search", "Search what you remember.", { query: string("…"), topK: COUNT }, ["topK"]),
);

Object.assign(HANDLERS, {
  memory_write: ({ content, category }, turn) => {
    const { sessionKey } = memoryScope(turn.conversation, turn);
    turn.app?.memory.write(String(content), String(category), sessionKey);
    return "remembered";
  },
  memory_search: ({ query, topK = 5 }, turn) => {
    const about = { ...memoryScope(turn.conversation, turn), topK: Number(topK) };
    const hits = turn.app?.memory.search(String(query), about) ?? [];
    return formatHits(hits).join("\n") || "nothing found";
  },
} satisfies Record<string, Handler>);

const SEARCH = {
  query: string("The words to search for."),
  topK: COUNT,
  sessionKey: string("The conversation whose memories are searched."),
};
method("memory.search", SEARCH, ["topK", "sessionKey"], (params, app) => {
  const { query, topK = 5, sessionKey = "" } = params;
  return app.memory.search(String(query), { topK: Number(topK), sessionKey: String(sessionKey) });
});

/** The prompt as it is for the owner at the terminal. */
const ownersLayers = (app: App) =>
  promptLayers({ agent: app.agents.get(app.terminalAgent ?? AGENTS[0].id) });

const layerText = (app: App, name: string) =>
  ownersLayers(app).find((layer) => layer.name === name)?.text || "-";

command("soul", "how it talks", (_args, app) => layerText(app, "soul"));
command("skills", "what it has learned to do", (_args, app) => layerText(app, "skills"));
command("memory", "what it always knows of you", (_args, app) => layerText(app, "memory"));
command("bootstrap", "how it works", (_args, app) => layerText(app, "bootstrap"));
command("search", "<words>: what it remembers, the best first", (query, { memory, key }) =>
  formatHits(memory.search(query, { sessionKey: key, owner: true })),
);
command("prompt", "the layers of its prompt, in characters", (_args, app) =>
  ownersLayers(app).map(({ name, text }, i) => `${i + 1} ${name.padEnd(10)} ${text.length}`),
);

// ---- s07 · Heartbeat and cron ----

// The program gets a life of its own: at times nobody has written, and it works all the same. Two
// rules keep that bearable. A person never waits for it. And a time that was due is in a file
// before it is crossed off, so no crash and no sleeping laptop loses it.

/** A job of CRON.json. The owner writes that file; this program only reads it. */
export interface Job {
  id: string;
  name?: string;
  enabled: boolean;
  schedule: Schedule;
  payload: { kind: "agent_turn" | "system_event"; message?: string; text?: string };
  deliver?: { channel: string; to: string };
  deleteAfterRun?: boolean;
}

/** Once; every so many seconds, counted from `anchor`; or as cron has it. Times are ISO 8601. */
export type Schedule =
  | { kind: "at"; at: string }
  | { kind: "every"; everySeconds: number; anchor?: string }
  | { kind: "cron"; expr: string; tz?: string };

export interface InboundMessage {
  job?: { isEvent: boolean; deliver?: Job["deliver"] }; // of a message on the channel "cron"
}

export interface App {
  cron: CronService;
  heartbeat: HeartbeatRunner;
}

const [WORDS, FLAG, OBJECT] = ["string", "boolean", "object"].map((type) => ({ type }));
const MORE = { name: WORDS, deliver: OBJECT, deleteAfterRun: FLAG };
const NEEDED = { id: WORDS, enabled: FLAG, schedule: OBJECT, payload: OBJECT };
const JOB = objectSchema({ ...NEEDED, ...MORE }, Object.keys(MORE));
const KINDS = new Map<unknown, Anthropic.Tool.InputSchema>([
  ["schedule at", objectSchema({ at: WORDS })],
  ["schedule every", objectSchema({ everySeconds: { type: "number" }, anchor: WORDS }, ["anchor"])],
  ["schedule cron", objectSchema({ expr: WORDS, tz: WORDS }, ["tz"])],
  ["payload agent_turn", objectSchema({ message: WORDS })],
  ["payload system_event", objectSchema({ text: WORDS })],
]);

const HOUR = 3600 * 1000; // ms

/** Throws, naming the field, unless it is a job that can be run. */
function checkJob(raw: unknown): Job {
  const job = checkInput(JOB, raw) as unknown as Job; // and its parts:
  for (const part of ["schedule", "payload"] as const) {
    const kind = KINDS.get(`${part} ${job[part]?.kind}`);
    if (!kind) throw new Error(`${part}.kind: there is no ${job[part]?.kind}`);
    checkInput(kind, job[part]);
  }
  if (job.deliver) checkInput(objectSchema({ channel: WORDS, to: WORDS }), job.deliver);
  if (!/^[a-z\d_-]{1,64}$/.test(job.id)) throw new Error("id: a to z, 0 to 9, - and _, at most 64");
  nextRun(job.schedule, 0, 0); // throws if it makes no sense
  return job;
}

/**
 * The first time after `now` (ms). An "every" is counted from its anchor, or else from `since`, so
 * it never drifts. A time that is past is still the time of an "at".
 */
export function nextRun(schedule: Schedule, now: number, since: number): number {
  if (schedule.kind === "cron") return nextCron(schedule.expr, schedule.tz, now);
  const words = schedule.kind === "at" ? schedule.at : schedule.anchor;
  const start = words === undefined ? since : Date.parse(words);
  if (Number.isNaN(start)) throw new Error(`${words}: not a time like 2027-03-14T09:00:00Z`);
  if (schedule.kind === "at") return start;
  const step = schedule.everySeconds * 1000;
  if (!(step >= 1000 && step <= 1e12)) throw new Error("everySeconds must be from 1 to 1e9");
  const steps = Math.floor((now - start) / step) + 1;
  return start + Math.max(steps, schedule.anchor ? 0 : steps) * step; // not before its anchor
}

// Where clocks are put forward and back, a time of day may be missing, or come twice. The library
// stumbles there. So it counts on a wall whose clock is never moved, and we say when that time is.
function nextCron(expr: string, timeZone: string | undefined, now: number): number {
  // With fewer fields the library takes what it likes, and an "H" is another time at each look.
  if (!/^(?!.*\bH\b)(\S+\s+){4,5}\S+$/.test(expr.trim()))
    throw new Error(`expr: "${expr}" has not the 5 fields of cron`);
  // What a clock on the wall shows there, as if it were UTC.
  const wall = (at: number) => Date.parse(`${new Date(at).toLocaleString("sv", { timeZone })}Z`);
  const times = CronExpressionParser.parse(expr, { currentDate: wall(now), tz: "UTC" });
  const isHourly = expr.trim().split(/\s+/).at(-4)?.startsWith("*");
  for (;;) {
    const shown = times.next().getTime();
    const left = shown - wall(now);
    // What comes every hour comes also in the hour that comes twice. Nothing else does.
    const at = isHourly && left <= HOUR ? now - (now % 1000) + left : timeOf(shown, wall);
    if (at > now) return at;
  }
}

/** When a wall shows that, the first time; if it never does, when it would, were it not moved. */
function timeOf(shown: number, wall: (at: number) => number): number {
  const before = shown - (wall(shown - 24 * HOUR) - (shown - 24 * HOUR)); // as it was a day ago
  const after = shown - (wall(before) - before); // as it is by then
  return wall(before) !== shown && wall(after) === shown ? after : before;
}

/** A small file that we keep. One that can't be read is set aside, and things start afresh. */
function readState(file: string): object {
  const state = fs.existsSync(file) ? parseObject(fs.readFileSync(file, "utf8")) : {};
  if (state) return state;
  fs.renameSync(file, `${file}.quarantined`);
  warn(`${file} was not readable and is quarantined.`);
  return {};
}

/**
 * What we keep of a job. `entry`: the job as it was; if it is another now, it starts afresh. Times
 * in ms: `due`, which a job that will not run again does not have, and `from`, when that was worked
 * out. `errors`: in a row.
 */
type JobState = { entry: string; since: number; due?: number; from?: number; errors: number };
const MAX_ERRORS = 5;

/** The jobs of CRON.json, and when each is due. */
export class CronService {
  jobs: Job[] = [];
  #file: string;
  readonly #stateFile: string;
  #states: Map<string, JobState>;
  #begin: (job: Job, due: number) => boolean;
  #now: () => number;
  #changed = 0;

  /** `begin` keeps the run in a file, and drops one that it knows. It may give false: not now. */
  constructor(workspace: string, begin: (job: Job, due: number) => boolean, now = Date.now) {
    this.#file = path.join(workspace, "CRON.json");
    this.#stateFile = path.join(workspace, ".state/cron.json");
    const states = Object.entries(readState(this.#stateFile));
    this.#states = new Map(states.filter(([, one]) => (one?.due ?? 0) >= 0)); // not {"due":"soon"}
    this.#begin = begin;
    this.#now = now;
  }

  /** Begins what is due. Throws none of it: one that can't be begun does not stop the others. */
  tick(): void {
    for (const job of this.read()) {
      try {
        this.#beginIfDue(job);
      } catch (error) {
        warn(`cron: ${job.id}: ${error}`); // a full disk, say
      }
    }
  }

  /** A time is crossed off when its run is in a file, and nowhere else. */
  #beginIfDue(job: Job): void {
    const state = this.stateOf(job);
    if (!job.enabled || !state.due || state.due > this.#now()) return;
    if (!this.#begin(job, state.due)) return;
    // From now and not from `due`: a week of missed runs is made up by one.
    const isLast = job.schedule.kind === "at" || job.deleteAfterRun;
    state.from = this.#now();
    state.due = isLast ? undefined : nextRun(job.schedule, state.from, state.since);
    this.#save();
  }

  /** When the next job is due, in ms. */
  next(): number {
    const dueOf = (job: Job) => (job.enabled && this.stateOf(job).due) || Infinity;
    return Math.min(...this.jobs.map(dueOf));
  }

  stateOf(job: Job): JobState {
    const entry = JSON.stringify(job);
    const now = this.#now();
    const known = this.#states.get(job.id);
    const state = known?.entry === entry ? known : { entry, since: now, errors: 0, due: Infinity };
    const { due = 0, since, from = Infinity } = state;
    // If the clock was put back, this may be too late. What ran before is not begun twice: `begin`
    // knows it. (Asked anew at each look, it would give the hour that comes twice a second time.)
    if (due > now && now < from)
      Object.assign(state, { due: Math.min(due, nextRun(job.schedule, now, since)), from: now });
    this.#states.set(job.id, state);
    return state;
  }

  #save(): void {
    replaceFile(this.#stateFile, JSON.stringify(Object.fromEntries(this.#states)));
  }

  /** The jobs as the file has them now. One that makes no sense leaves things as they were. */
  read(): Job[] {
    const changed = fs.statSync(this.#file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    if (changed === this.#changed) return this.jobs;
    this.#changed = changed;
    const parse = (it: string): Fields => ({ ...JSON.parse(readText(it).replace(/^\uFEFF/, "")) });
    const { jobs } = readOrSay(this.#file, { jobs: changed ? this.jobs : [] }, parse);
    const list: unknown[] = Array.isArray(jobs) ? jobs : this.jobs;
    if (list !== jobs) warn(`${this.#file}: "jobs" must be a list. Those from before go on.`);
    const checked = new Map<string, Job>();
    for (const [index, raw] of list.entries()) {
      try {
        const job = checkJob(raw);
        if (checked.has(job.id)) throw new Error(`id: ${job.id} is there twice`);
        checked.set(job.id, job);
      } catch (error) {
        warn(`${this.#file}, job ${index + 1} is left out: ${error}`);
      }
    }
    this.jobs = [...checked.values()];
    // Of jobs that are gone, too: an editor may take the file away and bring it back.
    for (const job of this.jobs) this.stateOf(job);
    this.#save();
    return this.jobs;
  }

  /** Counts how it went. Gives what the owner should hear: that it failed and won't run again. */
  report(id: string, error?: unknown): string {
    const state = this.#states.get(id);
    if (!state) return "";
    state.errors = error ? state.errors + 1 : 0;
    if (error) warn(`cron: ${id} failed, ${state.errors} in a row: ${error}`);
    if (state.errors >= MAX_ERRORS) state.due = undefined;
    this.#save();
    if (!error || state.due !== undefined) return "";
    return t(`The job ${id} is off; errors in a row: ${state.errors}. Edit its entry to go on.`);
  }
}

// The turns of people that are under way. While there are any, nothing of our own begins.
const activeTurns = new Set<Promise<unknown>>();

function trackTurn<T>(turn: Promise<T>): Promise<T> {
  activeTurns.add(turn);
  turn.catch(() => {}).then(() => activeTurns.delete(turn));
  return turn;
}

/** A message that nobody has written. */
const internalMessage = (channel: string, peerId: string, words: string, at: number) => ({
  id: `${channel}:${peerId}:${new Date(at).toISOString()}`,
  ...{ channel, accountId: "local", peerId, senderId: "owner", isGroup: false, media: [], at },
  text: words,
});

/** A run takes the road of all messages. Its id has the time when it was due: once is enough. */
function enqueueJob(app: App, { id, payload, deliver }: Job, due: number): boolean {
  const isRun = ({ channel, peerId }: Routed) => channel === "cron" && peerId === id;
  if (app.inbox.pending().some(isRun)) return false; // or a slow one would pile up, and cost
  const words = payload.message ?? payload.text ?? "";
  const job = { isEvent: payload.kind === "system_event", deliver };
  const { done } = accept(app, { ...internalMessage("cron", id, words, due), job });
  done.catch((error) => warn(`cron: ${id}: ${error}`));
  return true;
}

const KEPT_RUNS = 20;

/** Runs a job. What fails is an error and no answer: it is counted, and nobody is written to. */
async function runJob(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  const { sessionKey, peerId: id, job } = message;
  const options = { message, agent: app.agents.get(message.agentId), mode: "minimal" as const };
  const run = async (signal?: AbortSignal) => {
    while (activeTurns.size > 0) await Promise.allSettled(activeTurns);
    app.inbox.countAttempt([message]);
    if (job?.isEvent) return message.text;
    return runUnattended(sessionKey, message.text, app, { ...options, signal });
  };
  let answer: string;
  let about: InboundMessage = message;
  try {
    answer = await run(signal);
    app.cron.report(id);
  } catch (error) {
    answer = app.cron.report(id, error);
    about = { ...message, id: failureReplyId(message.id) }; // no answer, and not to be taken for one
  }
  if (answer) await tellOwner(app, about, answer, job?.deliver);
  app.inbox.acknowledge([message]);
  return answer;
}

/** A turn that nobody waits for. Throws if it was stopped or refused: that is no answer. */
async function runUnattended(key: string, input: string, app: App, options: TurnOptions) {
  app.store.prune(key.slice(0, -"2026-11-22T08:00:00.000Z".length), KEPT_RUNS - 1);
  const session = app.store.current(key);
  const answer = await runTurn(session, input.toWellFormed(), { ...options, app });
  const last = session.messages.at(-1);
  const reason = last && "stop_reason" in last ? last.stop_reason : "";
  if (reason && reason !== "refusal") return answer;
  throw new Error(`the model gave no answer: ${reason || "stopped"}`);
}

const OWNER_FILE = path.join(STATE, "owner.json"); // where the owner wrote from last

/** Remembers where the owner is to be found. */
function rememberOwner({ channels }: App, message: InboundMessage): void {
  const { channel, peerId: to } = message;
  if (channel === "cli" || !channels.has(channel) || !isOwner({ message })) return;
  const place = JSON.stringify({ channel, to });
  if (JSON.stringify(readState(OWNER_FILE)) !== place) replaceFile(OWNER_FILE, place);
}

/** Says it where the job wants it, or where the owner wrote from last; else in the terminal. */
async function tellOwner(app: App, about: InboundMessage, words: string, deliver?: Job["deliver"]) {
  const { channel, to } = { channel: "", to: "", ...(deliver ?? readState(OWNER_FILE)) };
  const message = { ...about, job: undefined, channel, peerId: to };
  // Whom the settings no longer name as the owner is none, whatever the file says.
  if (!app.channels.has(channel) || !(deliver || isOwner({ message }))) return info(words);
  await reply(app, message, words);
}

const BLANK = /^\s*(#.*|[-*+]\s*(\[.?\])?\s*|```.*)?$/; // a heading, an empty item, a fence
const AROUND = String.raw`(?:</?\w+>|[^<\p{L}\p{N}])*`; // it likes to make it bold, or code
const OK = new RegExp(`^${AROUND}HEARTBEAT_OK\\b${AROUND}|\\bHEARTBEAT_OK${AROUND}$`, "gu");

/** What an answer to a heartbeat tells: nothing, if it says in a few words that all is well. */
export function heartbeatText(answer: string): string {
  const rest = answer.trim().replace(OK, "").trim();
  return rest.length < answer.trim().length && rest.length <= 300 ? "" : rest;
}

/** Asks the agent from time to time whether something needs the owner. */
export class HeartbeatRunner {
  last = ""; // what came of it
  readonly settings: { interval: number; start: number; end: number }; // seconds; hours
  #at: number;
  #file: string;
  #now: () => number;

  /** Throws at a setting that makes no sense. */
  constructor(file: string, now = Date.now) {
    const interval = wholeNumber("HEARTBEAT_INTERVAL", 1800, 2_000_000);
    const start = wholeNumber("HEARTBEAT_ACTIVE_START", 9, 24);
    this.settings = { interval, start, end: wholeNumber("HEARTBEAT_ACTIVE_END", 22, 24) };
    this.#file = file;
    this.#now = now;
    this.#at = now();
  }

  next(): number {
    return this.#at + (this.settings.interval * 1000 || Infinity);
  }

  /** Why there is to be none now, or "". `forced`: by hand, whatever the time. */
  #reason(tasks: string, forced: boolean): string {
    const { start, end } = this.settings;
    const hour = new Date(this.#now()).getHours();
    const isActive = start < end ? hour >= start && hour < end : hour >= start || hour < end;
    if (tails.has("heartbeat")) return "under-way";
    if (!forced && this.next() > this.#now()) return "not-due";
    if (!forced && !isActive) return "quiet-hours";
    if (activeTurns.size > 0) return "requests-in-flight";
    if (tails.has("cron")) return "cron-in-progress";
    const lines = tasks.replace(/<!--[\s\S]*?-->/g, "").split("\n");
    return lines.every((line) => BLANK.test(line)) ? "empty-heartbeat-file" : "";
  }

  /** Gives what came of it. Never throws. */
  async run(app: App, forced = false, signal?: AbortSignal): Promise<string> {
    const at = this.#now();
    this.#at = Math.min(this.#at, at); // the clock was put back
    const [agent = AGENTS[0] as Agent] = app.agents.values(); // there is one
    const tasks = loadBootstrap(agent.id, ["HEARTBEAT.md"]).get("HEARTBEAT.md") ?? "";
    const reason = this.#reason(tasks, forced);
    if (reason) return reason;
    this.#at = at;
    const ask = `${tasks}\n\nIf nothing needs the owner, answer HEARTBEAT_OK and nothing else.`;
    const options = { message: internalMessage("heartbeat", "owner", ask, at), signal, agent };
    return runExclusive("heartbeat", () => this.#ask(app, options)).catch((error) => {
      warn(`heartbeat: ${error}`);
      return "failed";
    });
  }

  async #ask(app: App, options: { message: InboundMessage; agent: Agent; signal?: AbortSignal }) {
    const { message, agent } = options;
    const key = `agent:${agent.id}:heartbeat:${formatTime(message.at)}`.toLowerCase();
    const said = heartbeatText(await runUnattended(key, message.text, app, options));
    const before = { text: "", at: 0, ...readState(this.#file) };
    if (!said) return "ok";
    if (said === before.text && message.at - before.at < 24 * HOUR) return "duplicate";
    await tellOwner(app, message, said);
    replaceFile(this.#file, JSON.stringify({ text: said, at: message.at }));
    return "delivered";
  }

  async tick(app: App): Promise<void> {
    const result = await this.run(app);
    if (result !== "not-due") this.last = result;
  }
}

/**
 * The one timer. It never sleeps longer than a minute, and then it looks at the clock and at
 * CRON.json again. That settles a laptop that slept, a clock that was put right, an edited file,
 * and waits of more than 24.8 days, which would make setTimeout fire at once.
 */
function startTimer(app: App): void {
  const began = Date.now(); // what falls due while we look is seen the next time
  let waits: number[] = [];
  try {
    app.cron.tick();
    void app.heartbeat.tick(app);
    waits = [app.cron.next(), app.heartbeat.next()].map((at) => at - began);
  } catch (error) {
    warn(`timer: ${error}`); // whatever it is, the timer goes on
  }
  setTimeout(startTimer, Math.min(60_000, ...waits.filter((ms) => ms > 0)), app);
}

const formatTime = (at = Infinity) => (at < 8.64e15 ? new Date(at).toISOString() : "never");

const describeHeartbeat = ({ heartbeat }: App) => {
  return { ...heartbeat.settings, next: formatTime(heartbeat.next()), last: heartbeat.last };
};

const describeJobs = ({ cron }: App) =>
  cron.read().map((job) => {
    const { due, errors } = cron.stateOf(job);
    return { ...job, due: formatTime(job.enabled ? due : undefined), errors };
  });

method("cron.list", {}, [], (_params, app) => describeJobs(app));
method("heartbeat.status", {}, [], (_params, app) => describeHeartbeat(app));

command("heartbeat", "when it looks whether something needs you", (_args, app) =>
  Object.entries(describeHeartbeat(app)).map(([name, value]) => `${name.padEnd(9)} ${value}`),
);

command("trigger", "a heartbeat now", (_, app, { signal }) => app.heartbeat.run(app, true, signal));

command("cron", "the jobs", (_args, app) =>
  describeJobs(app).map((job) => `${job.id}  ${job.due}  ${job.errors}  ${job.name ?? ""}`),
);

command("cron-trigger", "<id>: run a job now", (id, app) => {
  const job = app.cron.read().find((one) => one.id === id);
  if (!job) throw new Error(`there is no job "${id}"; /cron shows them`);
  enqueueJob(app, job, Date.now());
  return t(`${id} is in line.`);
});

// ---- s08 · Delivery ----

// Until here a reply that could not be sent was lost. Now it is written to an outbox before it is
// sent (write-ahead), and leaves the outbox when the platform has taken it. Sending is therefore
// at-least-once: after a crash between the two steps it is sent again. Exactly-once is impossible
// without the platform's help, but a send that was under way is marked, so the log can name it.

/** A part of a reply that is to be sent, as it stands in its file. Times are in ms. */
export interface Delivery {
  id: string; // the id of the message that it answers, "#", and the number of the part
  channel: string;
  to: string;
  text: string;
  enqueuedAt: number;
  nextAttemptAt: number; // not before
  failures: number;
  unfinished: number; // sends during which the program ended, so nobody knows what became of them
  error?: string; // of a dead letter: why it was given up
}

export interface App {
  queue: DeliveryQueue;
  delivery: DeliveryRunner;
  simulatedFailures: SimulatedFailures;
}

const INTEGER = { type: "integer" };
const DELIVERY = objectSchema({
  id: STRING,
  channel: STRING,
  to: STRING,
  text: STRING,
  enqueuedAt: INTEGER,
  nextAttemptAt: INTEGER,
  failures: INTEGER,
  unfinished: INTEGER,
});

type Content = Pick<Delivery, "channel" | "to" | "text">;

/** A delivery that is due at once. */
function newDelivery(id: string, { channel, to, text }: Content, now = Date.now()): Delivery {
  return {
    id,
    channel,
    to,
    text,
    enqueuedAt: now,
    nextAttemptAt: now,
    failures: 0,
    unfinished: 0,
  };
}

/**
 * The id under which a person is told that a turn failed. After a crash the turn may have an answer
 * after all, and under the same id the queue would drop that answer as a repetition.
 */
const failureReplyId = (messageId: string) => `${messageId}!`;

// Order matters only for each recipient, because nobody sees when somebody else's reply came.
const recipientOf = ({ channel, to }: Omit<Content, "text">) => `${channel} ${to}`;
const replyOf = ({ id }: Delivery) => id.replace(/#\d+$/, ""); // the same for all parts of a reply

/**
 * The outbox: a spool of deliveries that are also listed by recipient. Those that can't be sent are
 * dead letters. Their files are moved to the folder "failed", from which /retry sends them again.
 */
export class DeliveryQueue extends Spool<Delivery> {
  readonly waiting = new Map<string, Delivery[]>(); // by recipient, the oldest first
  readonly #failed: string;

  constructor(dir: string) {
    super(dir, DELIVERY);
    this.#failed = path.join(dir, "failed");
    fs.mkdirSync(this.#failed, { recursive: true });
    // A dead letter keeps its file name, so no new delivery may get the same number.
    const lastFailed = numberedFiles(this.#failed).at(-1);
    if (lastFailed) this.nextNumber = Math.max(this.nextNumber, numberOf(lastFailed) + 1);
    for (const delivery of this.pending()) this.#list(delivery);
  }

  get size(): number {
    return this.open.size;
  }

  #list(delivery: Delivery): void {
    const recipient = recipientOf(delivery);
    const line = this.waiting.get(recipient) ?? [];
    line.push(delivery);
    this.waiting.set(recipient, line);
  }

  #unlist(delivery: Delivery): void {
    const recipient = recipientOf(delivery);
    const line = this.waiting.get(recipient) ?? [];
    const place = line.findIndex(({ id }) => id === delivery.id); // most often 0
    if (place >= 0) line.splice(place, 1);
    if (line.length === 0) this.waiting.delete(recipient);
  }

  override add(delivery: Delivery): boolean {
    const isNew = super.add(delivery);
    if (isNew) this.#list(delivery);
    return isNew;
  }

  /** The platform has taken it. */
  acknowledge(delivery: Delivery): void {
    this.markProcessed(delivery.id);
    this.#unlist(delivery);
  }

  /** Gives up a reply, from the part `delivery` on. Gives all parts of which that is true. */
  deadLetter(delivery: Delivery, why: string): Delivery[] {
    const line = this.waiting.get(recipientOf(delivery)) ?? [];
    // Without this part the rest of the reply would make no sense.
    const parts = line.filter((one) => replyOf(one) === replyOf(delivery));
    // The last part is moved first. After a crash in between, the first one is therefore still in
    // the queue, and takes the others along when it is given up again.
    for (const part of parts.toReversed()) this.#moveToDeadLetters(part, why);
    return parts;
  }

  #moveToDeadLetters(delivery: Delivery, why: string): void {
    const kept = this.open.get(delivery.id);
    if (!kept) return;
    delivery.error = why;
    this.save(delivery);
    fs.renameSync(kept.file, path.join(this.#failed, path.basename(kept.file)));
    this.open.delete(delivery.id);
    this.#unlist(delivery);
  }

  /** The dead letters. They are read each time, because a person may have deleted some. */
  #readDeadLetters(): { file: string; letter: Delivery }[] {
    const found: { file: string; letter: Delivery }[] = [];
    for (const file of numberedFiles(this.#failed)) {
      const letter = readEntry<Delivery>(file, DELIVERY);
      if (letter) found.push({ file, letter });
    }
    return found;
  }

  /** What was given up, the oldest first. */
  deadLetters(): Delivery[] {
    return this.#readDeadLetters().map(({ letter }) => letter);
  }

  /** Puts all dead letters into the queue again, as if they were new. Gives how many. */
  retry(now: number): number {
    const found = this.#readDeadLetters();
    for (const { file, letter } of found) {
      // A crash between the two steps leaves both files. Because adding is idempotent, the next
      // /retry then only removes the dead letter.
      this.add(newDelivery(letter.id, letter, now));
      fs.rmSync(file, { force: true });
    }
    return found.length;
  }
}

const BACKOFF = [5, 25, 120, 600]; // seconds to wait after the first failure, the second, …
const EXPIRES = 24 * 3600 * 1000; // ms; an older reply would only puzzle people

/** Jitter: up to a quarter longer, so that not all deliveries are tried in the same second. */
const withJitter = (seconds: number) => seconds * (1 + Math.random() / 4);

/**
 * Exponential back-off: how many seconds to wait after so many failures, or what the platform asks
 * for, if that is longer. Undefined if there is to be no other attempt.
 */
function backoff(failures: number, retryAfter = 0): number | undefined {
  const seconds = BACKOFF[failures - 1];
  if (seconds === undefined) return undefined;
  return Math.ceil(Math.max(withJitter(seconds), retryAfter));
}

/** When to do something about a delivery, in ms. */
function dueAt({ enqueuedAt, nextAttemptAt }: Delivery, now: number): number {
  // It was enqueued in the future, so somebody has put the clock back: its times mean nothing.
  if (enqueuedAt > now) return now;
  // If it expires before its next attempt, it is given up then, and what is behind it goes on.
  return Math.min(nextAttemptAt, enqueuedAt + EXPIRES + 1);
}

/** The kinds of failure that can be simulated. To add one, push its name and ask `take` for it. */
const SIMULATED_KINDS = ["delivery"];

/** Failures that somebody ordered, to see what the program does about them. */
export class SimulatedFailures {
  readonly #left = new Map<string, number>(); // by kind

  /** From now on the next `times` attempts of a kind fail. */
  order(kind: string, times: number): void {
    this.#left.set(kind, times);
  }

  /** Whether this attempt is to fail, which uses up one of those that were ordered. */
  take(kind: string): boolean {
    const left = this.#left.get(kind) ?? 0;
    if (left === 0) return false;
    this.#left.set(kind, left - 1);
    return true;
  }
}

/** Sends what is in the queue: in order for each recipient, and side by side for different ones. */
export class DeliveryRunner {
  readonly stats = { sent: 0, retried: 0, failed: 0 };
  #queue: DeliveryQueue;
  #channels: ChannelManager;
  #simulated: SimulatedFailures;
  #now: () => number;
  #timers = new Map<string, NodeJS.Timeout>(); // by recipient
  #taken = new Set<string>(); // ids that the platform has taken and that are still in the queue

  constructor(
    queue: DeliveryQueue,
    channels: ChannelManager,
    simulated: SimulatedFailures,
    now = Date.now,
  ) {
    this.#queue = queue;
    this.#channels = channels;
    this.#simulated = simulated;
    this.#now = now;
  }

  /** Begins with all that waits, but for channels that are not set up now: that waits on. */
  start(): void {
    for (const [recipient, [first]] of this.#queue.waiting) {
      if (first && this.#channels.has(first.channel)) this.wake(recipient);
    }
  }

  /** Goes on with one recipient. However much waits for them, it is one timer. */
  wake(recipient: string): void {
    this.#clearTimer(recipient);
    runExclusive(`delivery ${recipient}`, () => this.#work(recipient)).catch((error) => {
      warn(`delivery: ${error}`); // for example, because the disk is full
      this.#wakeLater(recipient, 60_000);
    });
  }

  #wakeLater(recipient: string, ms: number): void {
    this.#clearTimer(recipient);
    const timer = setTimeout(() => this.wake(recipient), ms);
    this.#timers.set(recipient, timer);
  }

  #clearTimer(recipient: string): void {
    clearTimeout(this.#timers.get(recipient));
    this.#timers.delete(recipient);
  }

  #firstFor(recipient: string): Delivery | undefined {
    return this.#queue.waiting.get(recipient)?.[0];
  }

  /**
   * Works on the first delivery of a recipient until there is none. If the first has to wait, all
   * behind it wait too (head-of-line blocking), because parts must not overtake each other.
   */
  async #work(recipient: string): Promise<void> {
    let first = this.#firstFor(recipient);
    while (first) {
      const now = this.#now();
      const wait = dueAt(first, now) - now;
      if (wait > 0) return this.#wakeLater(recipient, wait);
      await this.#process(first);
      first = this.#firstFor(recipient);
    }
  }

  /** Sends a delivery. If that fails, it is postponed, or it becomes a dead letter. */
  async #process(delivery: Delivery): Promise<void> {
    // What was taken is not sent again, even if a full disk kept it from being acknowledged.
    if (!this.#taken.has(delivery.id)) {
      const why = this.#whyHopeless(delivery);
      if (why) return this.#giveUp(delivery, why);
      const failure = await this.#attempt(delivery);
      if (failure) return this.#postpone(delivery, failure);
      this.#taken.add(delivery.id);
    }
    this.#queue.acknowledge(delivery);
    this.#taken.delete(delivery.id);
    this.stats.sent += 1;
  }

  /** Why no attempt makes sense any more, or "". */
  #whyHopeless({ enqueuedAt, unfinished }: Delivery): string {
    if (this.#now() - enqueuedAt > EXPIRES) return "older than 24 hours";
    // It may have arrived twice by now, and perhaps it is what kills the program.
    if (unfinished > 1) return "the program ended twice while this was sent";
    return "";
  }

  /** One attempt. Gives what went wrong, or undefined if the platform has taken the text. */
  async #attempt(delivery: Delivery): Promise<SendError | undefined> {
    const { id, channel, to, text, unfinished } = delivery;
    if (unfinished > 0) warn(`${id}: the program ended while this was sent. It may arrive twice.`);
    // In the file the send counts as unfinished until it has ended, one way or the other.
    this.#queue.save({ ...delivery, unfinished: unfinished + 1 });
    delivery.unfinished += 1; // only now, because on a full disk no send has begun
    const target = this.#channels.get(channel);
    if (!target) return new SendError("no channel", false);
    if (this.#simulated.take("delivery")) return new SendError("simulated", false);
    try {
      await target.send(to, text);
      return undefined;
    } catch (error) {
      return error instanceof SendError ? error : new SendError(String(error), false);
    }
  }

  #postpone(delivery: Delivery, { message, permanent, retryAfter }: SendError): void {
    delivery.failures += 1;
    const seconds = backoff(delivery.failures, retryAfter);
    if (permanent || seconds === undefined) {
      this.#giveUp(delivery, message);
      return;
    }
    delivery.unfinished = 0;
    delivery.nextAttemptAt = this.#now() + seconds * 1000;
    this.#queue.save(delivery);
    this.stats.retried += 1;
    warn(`${delivery.id}: not sent: ${message}. Again in ${seconds} s.`);
  }

  #giveUp(delivery: Delivery, why: string): void {
    const parts = this.#queue.deadLetter(delivery, why);
    this.stats.failed += parts.length;
    warn(
      `${delivery.id}: not sent for good, ${parts.length} in failed/: ${why}. /retry sends them again.`,
    );
  }
}

/** Resolves when no task is left. It looks again, because a turn that ends enqueues its reply. */
async function drained(): Promise<void> {
  while (tails.size > 0) await Promise.allSettled(tails.values());
}

/**
 * Cuts a text into pieces of at most `limit` UTF-16 units: between paragraphs, else lines, else
 * sentences, else words, and never within what people see as one character. A code block that is
 * cut is closed, and opened again in the next piece.
 */
export function chunkMessage(text: string, limit: number): string[] {
  const chunks: string[] = [];
  let rest = text;
  let fence = ""; // the line that opened the code block in which the last piece ended
  let isMidLine = false; // the last piece ended in the middle of a line
  while (rest.trim()) {
    const piece = nextPiece(rest, limit, fence);
    rest = rest.slice(piece.length);
    const before = fence;
    if (limit >= MIN_FENCED) fence = fenceAfter(piece, before, isMidLine);
    isMidLine = !piece.endsWith("\n");
    const chunk = withFences(piece, before, rest ? fence : "");
    if (chunk) chunks.push(chunk);
    if (!fence) rest = withoutGap(rest, isMidLine); // but code keeps its empty lines
  }
  return chunks;
}

/** What goes into the next chunk: all of it, if it fits. `fence` is repeated in front of it. */
function nextPiece(text: string, limit: number, fence: string): string {
  const room = fence ? limit - fence.length - 1 : limit;
  if (text.length <= room) return text;
  return text.slice(0, cutAt(text, limit < MIN_FENCED ? room : room - CLOSING_ROOM));
}

/** A piece with the fences that open its first code block and close its last one. */
function withFences(piece: string, before: string, after: string): string {
  if (!before && !piece.trim()) return ""; // no platform takes an empty message
  const opening = before ? `${before}\n` : "";
  const closing = after ? `\n${fenceMarks(after)}` : "";
  return `${opening}${piece.trimEnd()}${closing}`;
}

/** Between two messages nobody needs an empty line, nor the space at which a line was cut. */
function withoutGap(rest: string, isMidLine: boolean): string {
  const [emptyLines] = /^\s*\n/.exec(rest) ?? [];
  if (emptyLines) return rest.slice(emptyLines.length);
  return isMidLine && rest.startsWith(" ") ? rest.slice(1) : rest;
}

const MIN_FENCED = 60; // in less room than that, code blocks are cut like everything else
const CLOSING_ROOM = 9; // a new line and the longest fence that we recognise
const MAX_OPENING = 30; // of a longer line only the marks are repeated, since it leaves no room
const FENCE = /^ {0,3}(`{3,8}|~{3,8})(.*)/;

/** The marks of a line that opens or closes a code block, for example "~~~". Otherwise "". */
function fenceMarks(line: string): string {
  const [, marks = "", behind = ""] = FENCE.exec(line) ?? [];
  // "```npm test``` runs them" is code within a line.
  const isInline = marks.startsWith("`") && behind.includes("`");
  return isInline ? "" : marks;
}

/** The line that opened the code block in which a piece ends, or "" if it ends in none. */
function fenceAfter(piece: string, before: string, isMidLine: boolean): string {
  const lines = piece.split("\n");
  // Backticks are a fence only where a line begins, so the rest of a line that was cut has none.
  if (isMidLine) lines.shift();
  let open = before;
  for (const line of lines) {
    const marks = fenceMarks(line);
    if (!marks) continue;
    if (!open) open = line.length < MAX_OPENING ? line : marks;
    else if (closesFence(line, open)) open = "";
  }
  return open;
}

/** Four backticks are not closed by three, nor by a line with more on it than its marks. */
function closesFence(line: string, open: string): boolean {
  const marks = fenceMarks(line);
  return line.trim() === marks && marks.startsWith(fenceMarks(open));
}

// The places at which a text may be cut, the best first: paragraphs, lines, sentences, words.
const BOUNDARIES = [/\n\s*\n/g, /\n/g, /[.!?](?=\s)|[。！？…]/g, /\s/g];
const GRAPHEMES = new Intl.Segmenter("und", { granularity: "grapheme" });

/** How much of a text to take: at most `room` units, but at least one character. */
function cutAt(text: string, room: number): number {
  const head = text.slice(0, room);
  for (const boundary of BOUNDARIES) {
    const last = [...head.matchAll(boundary)].at(-1);
    const size = last ? last.index + last[0].length : 0;
    // A boundary near the beginning would leave one line in a message, and the rest for the next.
    if (size > room / 3) return size;
  }
  return cutBetweenGraphemes(text, room);
}

/** A grapheme cluster is what people see as one character; the emoji of a family has 11 units. */
function cutBetweenGraphemes(text: string, room: number): number {
  const cluster = GRAPHEMES.segment(text.slice(0, room + 50)).containing(room);
  if (cluster && cluster.index > 0) return cluster.index;
  // One cluster fills all the room, so it has to be cut, but not between two halves of a character.
  const endsInHalf = /[\ud800-\udbff]$/.test(text.slice(0, room));
  if (!endsInHalf) return room;
  return room > 1 ? room - 1 : 2;
}

method("delivery.status", {}, [], (_params, { queue, delivery }) => ({
  ...delivery.stats,
  waiting: queue.size,
  recipients: queue.waiting.size,
  inFailed: queue.deadLetters().length,
}));

/** A line of /queue and /failed. */
function formatDelivery({ id, to, failures, nextAttemptAt, error, text }: Delivery): string {
  const state = error ?? formatTime(nextAttemptAt);
  return `${id}  ${to}  ${failures}  ${state}  ${JSON.stringify(text.slice(0, 40))}`;
}

command("queue", "what waits to be sent", (_args, { queue }) =>
  [...queue.waiting.values()].flat().slice(0, 20).map(formatDelivery),
);

command("failed", "what could not be sent", (_args, { queue }) =>
  queue.deadLetters().slice(-20).map(formatDelivery),
);

command("retry", "send again what could not be sent", (_args, { queue, delivery }) => {
  const count = queue.retry(Date.now());
  delivery.start();
  return t(`${count} in line again.`);
});

command("stats", "how many were sent, tried again, given up", (_args, { queue, delivery }) => {
  const stats = { ...delivery.stats, waiting: queue.size };
  return Object.entries(stats).map(([name, count]) => `${name.padEnd(8)} ${count}`);
});

command("simulate-failure", "<kind> [times]: the next ones fail", (args, app) => {
  const [kind = "", times = "1"] = args.split(/\s+/);
  if (!SIMULATED_KINDS.includes(kind)) {
    throw new Error(`kind: one of ${SIMULATED_KINDS.join(", ")}`);
  }
  if (!/^\d{1,3}$/.test(times)) throw new Error("times: a number from 0 to 999");
  const count = Number(times);
  app.simulatedFailures.order(kind, count);
  return t(`The next ${count} of ${kind} will fail.`);
});

// ---- s09 · Resilience ----

// Up to s08 the SDK retries twice by itself, always with the same key, and we never see it. From
// here on it makes one request and reports the failure, so that one place decides what to do:
// wait, or go on with another key or model (failover). If both retried, the attempts would multiply
// (retry amplification): each of ours would be up to three requests of the SDK. A new attempt
// continues the conversation from what is stored, so a tool that ran is not run a second time.

/** Why an attempt failed. "invalid" means that the request is wrong, whatever the key or model. */
export type Reason =
  | "rate_limit"
  | "overloaded"
  | "auth"
  | "billing"
  | "timeout"
  | "overflow"
  | "model"
  | "invalid"
  | "unknown";

/**
 * The reason by the API's error type, and by the HTTP status. It is a Map because the type comes
 * from outside: in an object, the type "constructor" would find something.
 */
const REASONS = new Map<string | number | null | undefined, Reason>([
  ["rate_limit_error", "rate_limit"],
  [429, "rate_limit"],
  ["overloaded_error", "overloaded"],
  [529, "overloaded"],
  ["authentication_error", "auth"],
  ["permission_error", "auth"],
  [401, "auth"],
  [403, "auth"],
  ["billing_error", "billing"],
  [402, "billing"],
  ["timeout_error", "timeout"],
  [408, "timeout"],
  [504, "timeout"],
  ["not_found_error", "model"],
  [404, "model"],
  ["invalid_request_error", "invalid"],
  ["request_too_large", "invalid"],
  [400, "invalid"],
  [413, "invalid"],
  [422, "invalid"],
]);

/**
 * Gives the reason of a failure. It goes by the error's class and type and never by its words,
 * because the API may change those. The type comes first, since an error inside a stream has no
 * status. What the tables don't know, such as a 500, is "unknown".
 */
export function classifyFailure(error: unknown): Reason {
  const { APIConnectionError, APIUserAbortError, APIError, AnthropicError } = Anthropic;
  if (isOverflow(error)) return "overflow";
  // These two are APIErrors, too, but without type and status. The abort comes from our idle
  // timeout, because callModel does not throw after Ctrl+C.
  if (error instanceof APIConnectionError || error instanceof APIUserAbortError) return "timeout";
  if (error instanceof APIError)
    return REASONS.get(error.type) ?? REASONS.get(error.status) ?? "unknown";
  // The SDK throws its base class if a stream ends before the message does.
  if (error instanceof AnthropicError) return "timeout";
  return "unknown";
}

/**
 * How many seconds a key or a model is not used after its first failure in a row, and at most. A
 * rate limit passes within seconds. An unpaid bill or a revoked key waits for a person, but nobody
 * tells us when it is settled, so even these are tried again, less and less often. The reasons
 * that are missing here have no cooldown, because another key or model would not help.
 */
const COOLDOWNS: Partial<Record<Reason, { first: number; cap: number }>> = {
  rate_limit: { first: 5, cap: 300 },
  overloaded: { first: 2, cap: 60 },
  timeout: { first: 1, cap: 60 },
  unknown: { first: 1, cap: 60 },
  model: { first: 600, cap: 3600 },
  auth: { first: 600, cap: 3600 },
  billing: { first: 600, cap: 86_400 },
};
const LONGEST_COOLDOWN = 86_400_000; // ms

/** Exponential back-off: the cooldown doubles with each failure in a row until it is at the cap. */
function cooldownSeconds(reason: Reason, failures: number, retryAfter: number): number {
  const { first, cap } = COOLDOWNS[reason] ?? { first: 0, cap: 0 };
  const seconds = Math.min(first * 2 ** (failures - 1), cap);
  return Math.max(seconds, retryAfter);
}

/** An API key, under the name of the setting that it comes from. */
export type AuthProfile = { name: string; key: string };

/** `since` and `until` are times in ms, and `count` is the number of failures in a row. */
type Cooldown = { reason: Reason; since: number; until: number; count: number };

/** What an attempt uses. `at` is when both are ready (0: now), and `wait` is the ms until then. */
type Choice = { profile: AuthProfile; model: string; at: number; wait: number };

/**
 * Knows which keys and models are in cooldown, and chooses among the others. The cooldowns are kept
 * in a file, because otherwise a restart would try a revoked key again at once.
 */
export class ProfileManager {
  readonly profiles: AuthProfile[];
  readonly cooldowns: Map<string, Cooldown>; // by cooldownId of a key, or by the model's name
  #stateFile: string;
  #now: () => number;
  // We stay with a key as long as it works (a sticky profile), because another one may belong to
  // another account, whose prompt cache has nothing of our conversations.
  #current = 0;

  constructor(profiles: AuthProfile[], stateFile: string, now = Date.now) {
    this.profiles = profiles;
    this.#stateFile = stateFile;
    this.#now = now;
    // A file that somebody edited may hold anything, for example a cooldown of a thousand years.
    const isSound = ([, cooldown]: [string, Cooldown]) =>
      cooldown?.count > 0 && cooldown.until - cooldown.since <= LONGEST_COOLDOWN;
    this.cooldowns = new Map(Object.entries(readState(stateFile)).filter(isSound));
  }

  /** When the cooldown of a key or a model ends, in ms; 0 if it is not in cooldown. */
  readyAt(id: string): number {
    const { since = 0, until = 0 } = this.cooldowns.get(id) ?? {};
    const now = this.#now();
    if (since > now) return 0; // the clock was put back, so `until` may be years away
    return until > now ? until : 0;
  }

  /**
   * Gives the first choice that is ready: all keys with the first model, then all keys with the
   * next one. If none is ready, it gives the one that will be first. Throws if there is no key.
   */
  choose(models: string[]): Choice {
    const { profiles } = this;
    const inOrder = [...profiles.slice(this.#current), ...profiles.slice(0, this.#current)];
    const now = this.#now();
    const choices: Choice[] = [];
    for (const model of models) {
      for (const profile of inOrder) {
        const at = Math.max(this.readyAt(model), this.readyAt(cooldownId(profile)));
        choices.push({ profile, model, at, wait: Math.max(0, at - now) });
      }
    }
    // The sort is stable, so among those that are ready the order stays as it was.
    const [best] = choices.toSorted((a, b) => a.at - b.at);
    if (!best) throw new Error("there is no key");
    this.#current = profiles.indexOf(best.profile);
    return best;
  }

  /** Starts the cooldown of a key or a model. `retryAfter`: the seconds that the API asks for. */
  fail(id: string, reason: Reason, retryAfter = 0): void {
    // A cooldown that runs is not made longer. If, for example, four turns meet the same rate
    // limit at once, that is one failure, and must not count as four in a row.
    if (this.readyAt(id) > 0) return;
    const previous = this.cooldowns.get(id);
    const count = previous?.reason === reason ? previous.count + 1 : 1;
    const since = this.#now();
    const until = since + cooldownSeconds(reason, count, retryAfter) * 1000;
    this.cooldowns.set(id, { reason, since, until, count });
    this.#save();
  }

  /** Forgets the failures of a key and a model that have worked. */
  succeed(ids: string[]): void {
    // A cooldown that still runs stays. Another turn started it while ours was under way, so what
    // it knows is newer.
    const settled = ids.filter((id) => this.cooldowns.has(id) && this.readyAt(id) === 0);
    if (settled.length === 0) return;
    for (const id of settled) this.cooldowns.delete(id);
    this.#save();
  }

  clear(): void {
    this.cooldowns.clear();
    this.#save();
  }

  #save(): void {
    replaceFile(this.#stateFile, JSON.stringify(Object.fromEntries(this.cooldowns)));
  }
}

/**
 * Under what the cooldown of a key is kept. The hash makes a new key under the same name ready at
 * once, and the key itself stands in no file.
 */
const cooldownId = ({ name, key }: AuthProfile) =>
  `${name} ${sha256(key).digest("hex").slice(0, 8)}`;

// The ms that a turn may spend on waiting and on attempts that failed. Without it a turn might
// never end: of two keys that time out, one is always ready again when the other has failed.
const RETRY_BUDGET = 120_000;

export interface TurnOptions {
  client?: Anthropic;
  model?: string;
}

export interface App {
  profiles: ProfileManager;
  resilience: ResilienceRunner;
}

/** A failure after which another key or model may help. */
type Failure = { error: unknown; reason: Reason };

/** Layer 1 of the onion, failover: tries keys and models until one works or the budget is spent. */
export class ResilienceRunner {
  readonly fallbacks: string[]; // models, the best first
  #profiles: ProfileManager;
  #now: () => number;

  constructor(profiles: ProfileManager, fallbacks: string[], now = Date.now) {
    this.#profiles = profiles;
    this.fallbacks = fallbacks;
    this.#now = now;
  }

  /** Runs `next` with a key and a model until an attempt works, or throws the last one's error. */
  async run(options: TurnOptions, next: (options: TurnOptions) => Promise<void>): Promise<void> {
    const models = [options.agent?.model ?? MODEL, ...this.fallbacks];
    let budget = RETRY_BUDGET;
    let lastError: unknown;
    let choice = this.#profiles.choose(models);
    while (choice.wait <= budget) {
      await waitForCooldown(choice.wait, options.signal);
      const startedAt = this.#now();
      const failure = await this.#attempt(choice, options, next);
      if (!failure) return;
      this.#startCooldown(choice, failure);
      lastError = failure.error;
      // Tools may have run for an hour before the call that failed. That is no reason to give up,
      // so no attempt counts for more than the idle timeout.
      const spent = Math.min(this.#now() - startedAt, IDLE_TIMEOUT);
      budget -= choice.wait + spent;
      choice = this.#profiles.choose(models);
    }
    throw lastError ?? new Error(`nothing is ready before ${formatTime(choice.at)}`);
  }

  /** Gives a failure if another key or model may help, and nothing if it worked. */
  async #attempt(
    { profile, model }: Choice,
    options: TurnOptions,
    next: (options: TurnOptions) => Promise<void>,
  ): Promise<Failure | undefined> {
    const client = new Anthropic({ apiKey: profile.key });
    try {
      await next({ ...options, client, model });
    } catch (error) {
      const reason = classifyFailure(error);
      // What is not the API's error, such as a full disk, is "unknown", but no key would help.
      const canFailOver = error instanceof Anthropic.AnthropicError && reason in COOLDOWNS;
      if (!canFailOver) throw error;
      return { error, reason };
    }
    // After Ctrl+C nobody knows whether the attempt would have worked.
    if (!options.signal?.aborted) this.#profiles.succeed([cooldownId(profile), model]);
    return undefined;
  }

  #startCooldown({ profile, model }: Choice, { error, reason }: Failure): void {
    info(`  (${reason}: ${profile.name}, ${model})`);
    // A model that is overloaded or missing is so for every key. All else is about the key.
    const isModelsFault = reason === "overloaded" || reason === "model";
    const id = isModelsFault ? model : cooldownId(profile);
    this.#profiles.fail(id, reason, retryAfterOf(error));
  }
}

/** Ctrl+C ends the wait, and it also ends the attempt that follows, which has the same signal. */
async function waitForCooldown(ms: number, signal?: AbortSignal): Promise<void> {
  if (ms === 0) return;
  info(`  (waiting ${Math.ceil(ms / 1000)} s)`);
  await sleep(ms, undefined, { signal }).catch(() => {});
}

/** The seconds that the API asks us to wait, from its header `retry-after`; 0 if it does not. */
function retryAfterOf(error: unknown): number {
  if (!(error instanceof Anthropic.APIError)) return 0;
  return Number(error.headers?.get("retry-after")) || 0;
}

// The outermost layer. An overflow never gets here while the context guard, the layer inside it,
// can still shorten the conversation. `app` is missing only in tests of a turn without a program.
MIDDLEWARE.unshift((_conversation, options, next) =>
  options.app ? options.app.resilience.run(options, next) : next(options),
);

// The ms without a byte after which a stream is given up. One that is stuck never ends by itself.
const IDLE_TIMEOUT = 60_000;

/**
 * Gives the client without retries of its own, and restarts `timer` with each piece of a response.
 * The SDK's events would not do, because it has none for a ping, and pings may be all that comes
 * while the model writes a long file.
 */
function withIdleTimeout(client: Anthropic, timer: NodeJS.Timeout): Anthropic {
  const watchedFetch: typeof fetch = async (...request) => {
    const response = await fetch(...request);
    const watch = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        timer.refresh();
        controller.enqueue(chunk);
      },
    });
    return new Response(response.body?.pipeThrough(watch), response);
  };
  return client.withOptions({ maxRetries: 0, fetch: watchedFetch });
}

/** What /simulate-failure can throw. To add a kind, add the API's answer to it here. */
const SIMULATED_ERRORS: Record<string, { status: number; type: string; message?: string }> = {
  rate_limit: { status: 429, type: "rate_limit_error" },
  overloaded: { status: 529, type: "overloaded_error" },
  auth: { status: 401, type: "authentication_error" },
  billing: { status: 402, type: "billing_error" },
  timeout: { status: 504, type: "timeout_error" },
  overflow: {
    status: 400,
    type: "invalid_request_error",
    message: "prompt is too long: simulated",
  },
  unknown: { status: 500, type: "api_error" },
};
SIMULATED_KINDS.push(...Object.keys(SIMULATED_ERRORS));

/**
 * Throws a failure that was ordered by /simulate-failure. The SDK makes the error, as it does from
 * a real answer, so that classifyFailure is tried as well.
 */
function throwSimulated({ app, signal }: TurnOptions): void {
  if (signal?.aborted) return; // no request will be sent, so none can fail
  for (const [kind, { status, type, message = "simulated" }] of Object.entries(SIMULATED_ERRORS)) {
    if (!app?.simulatedFailures.take(kind)) continue;
    const body = { type: "error", error: { type, message } };
    throw Anthropic.APIError.generate(status, body, undefined, new Headers());
  }
}

/** One entry for each key, as `profiles.list` gives it. */
const describeProfiles = ({ profiles }: App) =>
  profiles.profiles.map((profile) => {
    const { reason = "", count = 0 } = profiles.cooldowns.get(cooldownId(profile)) ?? {};
    const at = profiles.readyAt(cooldownId(profile));
    return { name: profile.name, ready: at ? formatTime(at) : "now", reason, failures: count };
  });

method("profiles.list", {}, [], (_params, app) => describeProfiles(app));

command("profiles", "the keys, and when they can be used", (_args, app) =>
  describeProfiles(app).map((it) => `${it.name}  ${it.ready}  ${it.failures} ${it.reason}`),
);

command("cooldowns", "[clear]: what is in cooldown, and why", (args, { profiles }) => {
  if (args === "clear") profiles.clear();
  const running = [...profiles.cooldowns].filter(([id]) => profiles.readyAt(id) > 0);
  return running.map(([id, { reason, until }]) => `${id}  ${reason}  ${formatTime(until)}`);
});

command("fallback", "the models that are tried, in order", (_args, { resilience }) => [
  MODEL,
  ...resilience.fallbacks,
]);

/**
 * Gives the keys of the settings ANTHROPIC_API_KEY and ANTHROPIC_API_KEY_2 to _9. Throws if one has
 * a character that no HTTP header may have, for example the "…" of a key that was copied in part.
 */
function profilesFrom(setting: Setting): AuthProfile[] {
  const names = ["ANTHROPIC_API_KEY"];
  for (let n = 2; n <= 9; n++) names.push(`ANTHROPIC_API_KEY_${n}`);
  const profiles = names.map((name) => ({ name, key: setting(name) })).filter(({ key }) => key);
  const unusable = profiles.find(({ key }) => !/^[\x21-\x7e]+$/.test(key));
  if (unusable)
    throw new Error(`${unusable.name} has a character that is in no key: copy it again`);
  return profiles;
}

// ---- All of it together ----

/** Without an API key two lines say what to do, and the program ends with status 1. */
function requireApiKey(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEY is not set: copy .env.example to .env and put your key there.");
    fail("No key? `npm start` runs the same program offline, with a practice model.");
    process.exit(1);
  }
}

/** What was set for this run, by the environment and on the command line. */
interface Settings {
  httpPort: number;
  isServing: boolean; // with --serve nobody sits at the terminal
}

/** Step 1. Throws, naming the setting, before anything has started. */
function readSettings(): Settings {
  requireApiKey();
  if (!(CONTEXT_TOKENS >= 1000)) throw new Error("CONTEXT_TOKENS must be a number from 1000 up");
  const httpPort = wholeNumber("HTTP_PORT", 8765, 65535);
  return { httpPort, isServing: process.argv.includes("--serve") };
}

/** Step 2. Creates the parts of the program from what is on disk. Nothing is running yet. */
function createApp(): App {
  const channels = new ChannelManager();
  if (env("TELEGRAM_BOT_TOKEN")) channels.set("telegram", new TelegramChannel(env));
  if (env("FEISHU_APP_ID")) channels.set("feishu", new FeishuChannel(env));
  const queue = new DeliveryQueue(path.join(STATE, "delivery"));
  const simulatedFailures = new SimulatedFailures();
  const profiles = new ProfileManager(profilesFrom(env), path.join(STATE, "profiles.json"));
  const fallbackModels = env("FALLBACK_MODELS").match(/[^\s,]+/g) ?? [];
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
    inbox: new Inbox(path.join(STATE, "inbox")),
    partGroups: new Set(),
    channels,
    agents: new AgentManager(AGENTS.map((agent) => [agent.id, agent])),
    bindings: new BindingTable(BINDINGS),
    gateway: new GatewayServer(gatewayToken()),
    memory: new MemoryStore(path.join(STATE, "memory"), PRIVATE_FILES),
    cron: new CronService(WORKSPACE, (job, due) => enqueueJob(app, job, due)),
    heartbeat: new HeartbeatRunner(path.join(STATE, "heartbeat.json")),
    queue,
    delivery: new DeliveryRunner(queue, channels, simulatedFailures),
    simulatedFailures,
    profiles,
    resilience: new ResilienceRunner(profiles, fallbackModels),
  };
  // A binding to an agent that does not exist throws here, and the error names the agent.
  for (const { agentId } of BINDINGS) app.agents.find(agentId);
  return app;
}

function greet({ store, key }: App): void {
  const { id, messages } = store.current(key);
  info(`Talking to ${MODEL}. Ctrl+C stops a reply, "quit" leaves.`);
  info(`Session ${id}, ${messages.length} messages. /help lists the commands.`);
}

/** Step 3. Starts everything that runs beside the terminal. */
async function startApp(app: App, { httpPort }: Settings): Promise<void> {
  // From here on every fetch of this process goes through HTTPS_PROXY or HTTP_PROXY, if one is set.
  setGlobalDispatcher(new EnvHttpProxyAgent());
  const server = await startHttp(httpPort);
  // Feishu's events come in over HTTP, so without a port the channel could receive nothing.
  if (!server.listening) app.channels.delete("feishu");
  app.gateway.attach(server, app);
  const hasOwnToken = app.gateway.address && !env("GATEWAY_TOKEN");
  if (hasOwnToken) info(`gateway: ${app.gateway.address}?token=${gatewayToken()}`);
  app.delivery.start();
  // Before the channels receive anything new, so that nobody is answered out of order.
  resumeInbox(app);
  await app.channels.start((message, signal) => accept(app, message, signal));
  startTimer(app);
}

/**
 * Goes on with the messages that an earlier run accepted and did not finish. One whose channel is
 * not set up now stays in the inbox until it is again.
 */
function resumeInbox(app: App): void {
  for (const message of app.inbox.pending()) {
    if (app.channels.has(message.channel)) void enqueue(app, message);
  }
  for (const message of app.inbox.pending()) {
    if (message.channel === "cron") void enqueue(app, message);
  }
}

/** Answers lines and runs commands until the person at the terminal leaves. */
async function runTerminal(app: App): Promise<void> {
  const cli = new CliChannel((line, options) => runCommand(line, app, options));
  app.channels.set("cli", cli);
  await cli.start((message, signal) => accept(app, message, signal));
  await cli.closed;
}

/** Resolves when a service manager or a person asks the program to stop. */
async function stopSignal(): Promise<void> {
  // Listening for signals alone does not keep Node running, but a timer does.
  const keepAlive = setInterval(() => {}, 60_000);
  await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  clearInterval(keepAlive);
}

/**
 * Step 4 is a graceful shutdown: no channel receives any more, and turns that are running get up
 * to 10 s. What is not done by then is still in the inbox, so the next start goes on with it.
 */
async function shutDown(app: App, { isServing }: Settings): Promise<void> {
  await app.channels.stop();
  if (isServing || process.stdin.isTTY) await Promise.race([drained(), sleep(10_000)]);
  // The callback runs when whoever reads our output through a pipe has taken all of it.
  process.stdout.write("", () => process.exit(0));
}

async function main(): Promise<void> {
  const settings = readSettings();
  lockFolder(STATE);
  const app = createApp();
  greet(app);
  // We listen for signals from here on, because one may arrive while the channels are starting.
  const stopped = settings.isServing ? stopSignal() : undefined;
  await startApp(app, settings);
  await (stopped ?? runTerminal(app));
  await shutDown(app, settings);
}

if (RUN) {
  await main().catch((error) => {
    fail(error.message);
    process.exit(1);
  });
}
