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
import type { Message as TelegramMessage } from "grammy/types";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
import { type WebSocket, WebSocketServer } from "ws";
import { parse as parseYaml } from "yaml";

// ---- Configuration ----

// Importing this file must do nothing, so .env is read only when the file itself is being run.
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // what the program keeps for itself
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);
/** Looks up a setting. Gives "" for one that is not set. */
type Setting = (name: string) => string;
const env: Setting = (name) => process.env[name] ?? "";

/** A setting that is a whole number from 0 to `max`. Throws, naming the setting and its range. */
function wholeNumber(name: string, otherwise: number, max: number): number {
  const value = Number(env(name) || otherwise);
  if (Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new Error(`${name} must be a whole number from 0 to ${max}`);
}

// ---- Terminal ----

let atLineStart = true; // whether what was printed last ended a line

/** Prints what the model says, piece by piece. */
export function say(piece: string) {
  if (typing && piece) return sayAbove(typing, piece);
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** Lines of the program itself: dim what it reports, yellow a warning, and red what failed. */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** Marks a sentence that is printed elsewhere, so that the translation tool finds it. */
export const t = (sentence: string) => sentence;

/** Set while the prompt is shown, because then somebody may be typing. */
let typing: Interface | undefined;

/**
 * Prints above the line that is being typed, which may fill several rows of the terminal. So the
 * cursor goes up to its first row, all of it is cleared, and readline draws it again below.
 */
function sayAbove(reader: Interface, lines: string): void {
  const { rows } = reader.getCursorPos(); // how far the cursor is below the first row
  const up = rows > 0 ? `\x1b[${rows}A` : ""; // not for 0, which would mean 1
  const room = "\n".repeat(rows); // readline goes up by so many rows before it draws
  process.stdout.write(`\r${up}\x1b[J${lines}${room}`);
  reader.prompt(true);
}

/** Reads lines from a person or a pipe, and hands them to `onLine`, one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line that is being answered. At the prompt it leaves. */
  async run(onLine: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    const terminal = stdin.isTTY && stdout.isTTY;
    // readline would echo keys into a streaming reply. So it is paused, and they wait in here.
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    if (terminal) reader.on("line", () => reader.pause());
    let turn: AbortController | undefined; // of the line that is being answered
    const interrupt = () => (turn ? turn.abort() : reader.close());
    process.on("SIGINT", interrupt);
    forwardKeys(keys, interrupt);
    const prompt = () => {
      if (!terminal) return say("You > ");
      typing = reader;
      reader.prompt();
    };
    prompt();
    for await (const entered of reader) {
      typing = undefined;
      atLineStart = true;
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await onLine(line, turn.signal).catch((e) => fail(`Failed: ${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    typing = undefined;
    stdin.destroy();
    say("\n");
  }
}

/** Passes on what is typed. Only Ctrl+C, which a terminal sends as "\x03", does not wait. */
function forwardKeys(keys: PassThrough, interrupt: () => void): void {
  process.stdin.setEncoding("utf8").on("end", () => keys.end());
  process.stdin.on("data", (typed: string) => {
    if (process.stdin.isTTY && typed.includes("\x03")) return interrupt();
    // Line by line, because readline finishes what it has been given before it pauses.
    for (const line of typed.match(/[^\r]*\r\n?|[^\r]+/g) ?? []) keys.write(line);
  });
}

// ---- s01 · The agent loop ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** A reply is kept exactly as the API gave it, with its id, its stop reason and its usage. */
export type Message = Anthropic.Message | (Entry & { role: "user"; stop_reason?: undefined });

/** The API is stateless: the model knows nothing but what is in this list. */
export class Conversation {
  messages: Message[] = [];

  append(message: Message, _about: { inboxId?: string } = {}): void {
    this.messages.push(message);
  }
}

/** How one turn is to run: who gets the reply as it arrives, and what can stop it. */
export interface TurnOptions {
  onText?(piece: string): void;
  signal?: AbortSignal;
}

/** After one of these stop reasons the model has more to do, so we call it again. */
const CONTINUE_REASONS = new Set(["pause_turn"]);
/** After these a person is told something. The usual ones, such as "end_turn", need no words. */
const STOP_NOTES: Record<string, string> = {
  max_tokens: t("\n(The reply was cut off: it reached its limit of tokens.)"),
  refusal: t("\n(The model refused. From now on it will not see this turn.)"),
  model_context_window_exceeded: t("\n(Cut off: the model can read no more than this.)"),
};
const stopNote = (message: Message) => STOP_NOTES[message.stop_reason ?? ""] ?? "";

/** A turn starts where a person says something. Results of tools have the role "user", too. */
const startsTurn = (m: Entry) => m.role === "user" && m.content[0]?.type !== "tool_result";
/** What was refused once would be refused again, so the whole turn that led to it is left out. */
const withoutLastTurn = (request: Entry[]) => request.slice(0, request.findLastIndex(startsTurn));

/** The history as the API accepts it: nothing blank or refused, user and assistant in turn. */
export function toRequest(history: Message[]): Entry[] {
  let request: Entry[] = [];
  for (const message of answerCalls(history)) {
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    while (content.at(-1)?.type.endsWith("thinking")) content.pop(); // it was cut off there
    const last = request.at(-1);
    if (message.stop_reason === "refusal") request = withoutLastTurn(request);
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
  if (!options.signal?.aborted) throwSimulated();
  // A minute without a byte aborts the stream, and each byte restarts the timer. The SDK tries
  // nothing again, because ResilienceRunner decides about that.
  const timer = setTimeout(() => stream.abort(), IDLE_TIMEOUT);
  const watched = { maxRetries: 0, fetch: withIdleTimeout(() => timer.refresh()) };
  // The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL from the environment.
  const client = (options.client ?? new Anthropic()).withOptions(watched);
  const stream = client.messages.stream(request, { signal: options.signal });
  const finished: Anthropic.ContentBlock[] = [];
  stream.on("text", (piece) => options.onText?.(piece));
  stream.on("contentBlock", (block) => finished.push(block));
  try {
    return await stream.finalMessage();
  } catch (error) {
    if (!options.signal?.aborted) throw error;
    options.onText?.(" (interrupted)");
    // Half a text is worth keeping, but half a tool call or half a thought is of no use.
    const arrived = stream.currentMessage?.content ?? [];
    const kept = arrived.filter((block) => block.type === "text" || finished.includes(block));
    const content = [...kept, { type: "text", text: "(interrupted)", citations: null }];
    // The API gave no stop reason, no id and no usage, so these are missing here.
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  } finally {
    clearTimeout(timer);
  }
}

/** The agent loop. It decides only by what is stored, so it can go on after an error or a crash. */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    checkRounds(conversation);
    const response = await callModel(buildRequest(conversation, options), options);
    conversation.append(response);
    options.onText?.(stopNote(response));
    if (response.stop_reason !== "tool_use") continue;
    const turn = { ...options, conversation };
    const results = await Promise.all(callsIn(response).map((call) => runTool(call, turn)));
    conversation.append({ role: "user", content: results });
  }
}

const needsReply = (last?: Message) =>
  last?.role === "user" || CONTINUE_REASONS.has(last?.stop_reason ?? "");

/** Brings the turn to its end. Gives all that the model said since the person spoke. */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  // After a restart the answer may be stored already. Then nothing is asked, so no key is needed.
  if (needsReply(conversation.messages.at(-1))) await runMiddleware(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(textOf).filter(Boolean).join("\n\n");
}

const textOf = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + stopNote(message);

/** Runs one turn. The person's words are stored first, so they stay if the model fails. */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  const about = { inboxId: options.message?.id };
  // What changes from turn to turn is in a block of its own, so that the prompt stays the same.
  const texts = [contextFor(conversation, input, options), input];
  const content = texts.map((text) => ({ type: "text" as const, text }));
  conversation.append({ role: "user", content }, about);
  return finishTurn(conversation, options);
}

// ---- s02 · Tool use ----

/** What a handler knows about the turn that it works for. */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

/** The fields of an object that came from outside, so nobody knows the types of their values. */
type Fields = Record<string, unknown>;

/** Gets input that fits the tool's schema, and gives the output. The model reads what it throws. */
export type Handler = (input: Fields, turn: Turn) => string | Promise<string>;

/** The JSON Schema of a text. The model reads the description. */
const string = (description: string) => ({ type: "string", description });
const PATH = string("The path, relative to the workspace.");

/** The JSON Schema of an object. Every property is required unless `optional` names it. */
function objectSchema(properties: object, optional: string[] = []) {
  const required = Object.keys(properties).filter((name) => !optional.includes(name));
  return { type: "object" as const, properties, required };
}

/** An entry of TOOLS. The properties are those of the input that the model has to give. */
function tool(name: string, description: string, properties: object, optional: string[] = []) {
  return { name, description, input_schema: objectSchema(properties, optional) };
}

/**
 * What the model is told about each tool, which is all that it knows. To add a tool, add an entry
 * here, and a function of the same name in HANDLERS.
 */
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
    path: PATH,
  }),
  tool(
    "write_file",
    "Write a text file of the workspace, with its folders. Replaces what was there.",
    { path: PATH, content: string("The whole text of the file.") },
  ),
  tool("edit_file", "Replace one passage of a text file. It must occur exactly once.", {
    path: PATH,
    old_text: string("The passage as it stands in the file, with enough round it."),
    new_text: string("What stands there afterwards."),
  }),
];

/** What runs when the model calls a tool. To add a function, add its schema in TOOLS, too. */
export const HANDLERS: Record<string, Handler> = {
  bash: (input, turn) => bash(String(input.command), Number(input.seconds ?? 60), turn.signal),
  read_file: (input) => readText(safePath(String(input.path), WORKSPACE)),
  write_file: (input) => writeText(String(input.path), String(input.content)),
  edit_file: (input) =>
    editText(String(input.path), String(input.old_text), String(input.new_text)),
};

CONTINUE_REASONS.add("tool_use");
const MAX_ROUNDS = 50; // calls of the model in one turn
const OUTPUT_LIMIT = 30_000; // characters of one result, half of them from each end

/** Throws after too many rounds, because a model that repeats itself costs money until it stops. */
function checkRounds({ messages }: Conversation): void {
  const turn = messages.slice(messages.findLastIndex(startsTurn));
  const replies = turn.filter(({ role }) => role === "assistant");
  if (replies.length < MAX_ROUNDS) return;
  throw new Error(`stopped after ${MAX_ROUNDS} rounds of tool calls; say "go on" to go on`);
}

/** The tool calls of a reply. */
const callsIn = (message: Message | undefined) =>
  message?.role === "assistant" ? message.content.filter((block) => block.type === "tool_use") : [];
/** The tool results of a user's message. */
const resultsIn = (entry: Entry | undefined) =>
  entry?.role === "user" ? entry.content.filter((block) => block.type === "tool_result") : [];

/** The history with exactly one result for every call, in the next message, as the API demands. */
function answerCalls(history: Message[]): Message[] {
  return withMissingResults(withoutStrayResults(withoutOpenServerCalls(history)));
}

/**
 * The API runs some tools itself, for example its web search. An error in the middle of one leaves
 * a call whose result only the API could give, so we leave the call out. We keep it in the last
 * message, because there the reply is only paused, and the API goes on with it.
 */
function withoutOpenServerCalls(history: Message[]): Message[] {
  const answered = new Set<string>();
  for (const block of history.flatMap<Anthropic.ContentBlockParam>(({ content }) => content)) {
    if ("tool_use_id" in block) answered.add(block.tool_use_id);
  }
  return history.map((message, index) => {
    if (message.role === "user" || index === history.length - 1) return message;
    const content = message.content.filter(
      (block) => block.type !== "server_tool_use" || answered.has(block.id),
    );
    return { ...message, content };
  });
}

/** Drops results whose call is not in the message before, and the second result of a call. */
function withoutStrayResults(history: Message[]): Message[] {
  return history.map((message, index) => {
    if (message.role === "assistant") return message;
    const results = resultsIn(message);
    const calls = callsIn(history[index - 1]);
    const answers = calls.map(({ id }) => results.find((block) => block.tool_use_id === id));
    const content = message.content.filter(
      (block) => block.type !== "tool_result" || answers.includes(block),
    );
    return { ...message, content };
  });
}

/**
 * Adds an error result for each call that has none. A call is left open by a crash, by Ctrl+C, or
 * by `max_tokens` in the middle of its input. What the result says must be true.
 */
function withMissingResults(history: Message[]): Message[] {
  return history.flatMap((message, index): Message[] => {
    const answered = new Set(resultsIn(history[index + 1]).map((block) => block.tool_use_id));
    const open = callsIn(message).filter(({ id }) => !answered.has(id));
    // A refused turn is left out as a whole, so its calls need no results.
    if (open.length === 0 || message.stop_reason === "refusal") return [message];
    const isCut = message.stop_reason === "max_tokens";
    const why = isCut ? "cut off; it was not run" : "interrupted; it may have run";
    return [message, { role: "user", content: open.map(({ id }) => toolResult(id, why, true)) }];
  });
}

/** Runs one call. Never throws: what goes wrong becomes a result, so that the model can react. */
export async function runTool(call: Anthropic.ToolUseBlock, turn: Turn) {
  info(`  ${call.name} ${JSON.stringify(call.input).slice(0, 100)}`);
  try {
    const offered = toolsFor(turn).find(({ name }) => name === call.name);
    const handler = HANDLERS[call.name];
    if (!offered || !handler) throw new Error(`there is no tool ${call.name}`);
    const input = checkInput(offered.input_schema, call.input);
    checkPrivate(input, turn);
    if (turn.signal?.aborted) throw new Error("interrupted; it was not run");
    return toolResult(call.id, await handler(input, turn));
  } catch (error) {
    return toolResult(call.id, error instanceof Error ? error.message : String(error), true);
  }
}

function toolResult(id: string, output: string, failed = false): Anthropic.ToolResultBlockParam {
  // A cut can fall into the middle of a character, and the API rejects half a character.
  const content = keepEnds(output, OUTPUT_LIMIT).toWellFormed() || "(no output)";
  const block = { type: "tool_result" as const, tool_use_id: id, content };
  return failed ? { ...block, is_error: true } : block;
}

/** The part of JSON Schema that our tools use. */
type Property = { type?: string; enum?: unknown[] };

/** Gives the input as fields, if it fits the schema. Otherwise throws, naming the field. */
export function checkInput(schema: Anthropic.Tool.InputSchema, input: unknown): Fields {
  if (typeof input !== "object" || input === null) throw new Error("the input must be an object");
  const fields: Fields = { ...input };
  checkRequired(fields, schema.required ?? []);
  // The SDK leaves the properties open, but the schemas in this file have only such properties.
  const properties = (schema.properties ?? {}) as Record<string, Property>;
  for (const [name, property] of Object.entries(properties)) {
    const value = fields[name];
    if (value === undefined) continue;
    checkType(name, value, property.type);
    checkEnum(name, value, property.enum);
  }
  return fields;
}

function checkRequired(fields: Fields, required: string[]): void {
  const missing = required.find((name) => fields[name] === undefined);
  if (missing !== undefined) throw new Error(`${missing} is missing`);
}

function checkType(name: string, value: unknown, type: string | undefined): void {
  if (type === undefined) return;
  // JavaScript has only "number", but JSON Schema also has "integer".
  const fits = type === "integer" ? Number.isInteger(value) : typeof value === type;
  if (!fits) throw new Error(`${name} must be of type ${type}`);
}

function checkEnum(name: string, value: unknown, allowed: unknown[] | undefined): void {
  if (allowed === undefined || allowed.includes(value)) return;
  throw new Error(`${name} must be one of ${allowed}`);
}

/** The text, or both its ends if it is longer than `limit`. `total` is how long it once was. */
function keepEnds(text: string, limit: number, total = text.length): string {
  if (text.length <= limit) return text;
  const half = Math.ceil(limit / 2);
  const leftOut = total - 2 * half;
  return `${text.slice(0, half)}\n… ${leftOut} characters left out …\n${text.slice(-half)}`;
}

/**
 * The real path of `name` below `root`; the file need not exist. Throws on path traversal: if it
 * leads outside by "..", as an absolute path, into a sibling "root2", or by a symbolic link.
 */
export function safePath(name: string, root: string): string {
  const base = fs.realpathSync.native(root);
  const target = path.resolve(base, name);
  const existing = nearestExisting(target);
  // A link that leads nowhere makes realpath throw, and it should: writing creates its target.
  const real = path.join(fs.realpathSync.native(existing), path.relative(existing, target));
  const inside = path.relative(base, real);
  const [first = ""] = inside.split(path.sep);
  if (first === ".." || path.isAbsolute(inside))
    throw new Error(`${name} is outside the workspace`);
  if (first.toLowerCase() === ".state") throw new Error(`${name} belongs to the program itself`);
  return real;
}

/** The path itself, or the nearest folder above it that exists. */
function nearestExisting(target: string): string {
  let existing = target;
  while (!fs.lstatSync(existing, { throwIfNoEntry: false })) existing = path.dirname(existing);
  return existing;
}

// The file tools are synchronous on purpose. The calls of one reply run at the same time, so two
// edits of one file could otherwise both read it before either writes, and one edit would be lost.

function readText(file: string): string {
  const stat = fs.statSync(file);
  if (!stat.isFile()) throw new Error("not a file"); // for example a pipe, which may never end
  if (stat.size > 10_000_000)
    throw new Error(`${stat.size} bytes are too many: look at parts with bash`);
  const bytes = fs.readFileSync(file);
  const content = bytes.toString("utf8");
  // A file in another encoding would be damaged when it is written back.
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** The text with the line ends of `sample`, because a model writes "\n" whatever the file has. */
function withLineEnds(text: string, sample: string): string {
  const lineEnd = sample.includes("\r\n") ? "\r\n" : "\n";
  return text.replace(/\r?\n/g, lineEnd);
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
  const parts = content.split(old); // what stands between the places where it occurs
  const times = old === "" ? 0 : parts.length - 1;
  if (times !== 1)
    throw new Error(`old_text occurs ${times} times in ${name}; it must occur exactly once`);
  fs.writeFileSync(file, parts.join(withLineEnds(newText, content)));
  return `edited ${name}`;
}

// bash runs in the workspace but is not confined to it: it can read whatever you can, also .env.
// Its environment holds no keys and tokens, so that the output of `env` does not show them to the
// model. That helps against accidents; against intent only a sandbox helps, or no bash at all.
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";

/** Runs a script for at most `seconds`, and gives its output. Throws if it fails or is stopped. */
async function bash(script: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const child = startShell(script);
  const output = new CommandOutput();
  child.stdout.setEncoding("utf8").on("data", (piece) => output.add(piece));
  child.stderr.setEncoding("utf8").on("data", (piece) => output.add(piece));
  let stopped = ""; // why we stopped it
  const stop = (why: string) => {
    stopped = why;
    killGroup(child.pid);
    // A process that left the group may hold the pipes open, and we don't wait for it.
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const interrupt = () => stop("interrupted by the user");
  const limit = Math.min(Math.max(seconds, 1), 600);
  const timer = setTimeout(() => stop(`stopped after ${limit} s`), limit * 1000);
  signal?.addEventListener("abort", interrupt);
  try {
    const [code, killer] = await once(child, "close");
    if (code === 0) return output.toString();
    throw new Error(`${stopped || `exit code ${code ?? killer}`}\n${output}`);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", interrupt);
  }
}

/** Starts a script in the workspace. When it exits, what it left in the background is ended. */
function startShell(script: string) {
  const names = SAFE_ENV.split(" ");
  const child = spawn(script, {
    shell: WINDOWS || "bash",
    cwd: WORKSPACE,
    env: Object.fromEntries(names.map((name) => [name, process.env[name]])),
    detached: !WINDOWS, // a process group of its own, which can be killed as one
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  if (!WINDOWS) child.on("exit", () => killGroup(child.pid));
  return child;
}

/** What a script prints. Only both ends will be shown, so the middle of a flood is not kept. */
class CommandOutput {
  #kept = "";
  #total = 0; // characters

  add(piece: string): void {
    this.#total += piece.length;
    this.#kept += piece;
    if (this.#kept.length < 10 * OUTPUT_LIMIT) return;
    this.#kept = this.#kept.slice(0, OUTPUT_LIMIT) + this.#kept.slice(-OUTPUT_LIMIT);
  }

  toString(): string {
    // There must be room for the line that says why the script failed.
    return keepEnds(this.#kept, OUTPUT_LIMIT - 200, this.#total);
  }
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return; // it could not be started
  if (WINDOWS) {
    spawn("taskkill", ["/pid", String(pid), "/t", "/f"]);
    return;
  }
  try {
    process.kill(-pid, "SIGKILL"); // a negative number means the whole group
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
 * Middleware, as in Koa or Hono: a layer round every turn. `next` runs everything further in. A
 * layer may change the options, catch what `next` throws, or call it again. Since all that was said
 * and done is stored, the turn then goes on from there, and no tool runs twice.
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
  // From the inside out, because each layer needs the one inside it as its `next`.
  for (const layer of MIDDLEWARE.toReversed()) {
    const next = run;
    run = (given) => layer(conversation, given, next);
  }
  return run(options);
}

// Helpers: hashes, JSON, and files that a crash leaves whole.

const sha256 = (data: string) => crypto.createHash("sha256").update(data);

/** The object in `json`. Undefined if it is no JSON, or another value, such as `null` or a list. */
function parseObject(json: string): object | undefined {
  try {
    const value: unknown = JSON.parse(json);
    if (typeof value !== "object" || value === null || Array.isArray(value)) return undefined;
    return value;
  } catch {
    return undefined;
  }
}

/**
 * Writes a small file so that a crash leaves the old one or the new one, never half of it. When
 * it returns, file and name are on the disk, and survive a power cut, too.
 */
function replaceFile(file: string, content: string): void {
  // Flushed first, because the new name must never stand for content that is not on the disk yet.
  fs.writeFileSync(`${file}.tmp`, content, { flush: true });
  fs.renameSync(`${file}.tmp`, file);
  if (WINDOWS) return; // where a folder can't be flushed
  const folder = fs.openSync(path.dirname(file), "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/**
 * Quarantine: a file that can't be used is renamed and reported, so that it neither stops the
 * program nor gets lost. Because a part of the name is random, no older file is overwritten.
 */
function quarantine(file: string, why: string): void {
  const name = `${file}.${crypto.randomUUID().slice(0, 8)}.quarantined`;
  fs.renameSync(file, name);
  warn(`${file} is quarantined (renamed to ${path.basename(name)}): ${why}`);
}

// A session file is an append-only log: lines are added at its end, and none is ever changed or
// removed. What makes the history shorter is one more line, which says what to leave out at replay.
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        as the API gave it
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                step 1 of the guard
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"Ada …","keepFrom":5}}       step 2: lines 2 to 4 go

/** One line. The first has key and label; each other one has a message, a compaction, or ids. */
interface LogRecord {
  at?: string;
  key?: string;
  label?: string;
  message?: Message;
  inboxId?: string;
  compaction?: { summary: string; keepFrom: number };
  shorten?: { toolUseIds: string[] };
}

/**
 * An append-only log in JSON Lines: one record a line, added at the end. Nothing that is in the
 * file is written again, so a crash can damage at most the line that is being added.
 */
class JsonlFile {
  readonly file: string;
  lines = 0; // how many it has
  #isTorn = false; // whether the last line lacks its end

  constructor(file: string) {
    this.file = file;
  }

  /** Every readable line, with its number. The others stay in the file, and are reported. */
  read(): { line: number; record: object }[] {
    if (!fs.existsSync(this.file)) return [];
    const lines = fs.readFileSync(this.file, "utf8").split("\n");
    // Behind the last line end there is nothing, unless a crash has torn the last line.
    this.#isTorn = lines.at(-1) !== "";
    if (!this.#isTorn) lines.pop();
    this.lines = lines.length;
    const records: { line: number; record: object }[] = [];
    for (const [index, json] of lines.entries()) {
      const line = index + 1;
      const record = parseObject(json);
      if (record) records.push({ line, record });
      else warn(`${this.file}, line ${line}: not readable, skipped. It stays in the file.`);
    }
    return records;
  }

  /** Adds a record with the time, and gives the number of its line. */
  append(record: object): number {
    const json = JSON.stringify({ at: new Date().toISOString(), ...record });
    // Behind a torn line the record would be unreadable, too, so a line end comes first.
    const lineEnd = this.#isTorn ? "\n" : "";
    // If appending fails, half of the line may be in the file, which then counts as a line.
    this.#isTorn = true;
    this.lines += 1;
    fs.appendFileSync(this.file, `${lineEnd}${json}\n`);
    this.#isTorn = false;
    return this.lines;
  }
}

/** A conversation on disk. Its file has all that was ever said, and the list what replay gives. */
export class Session extends Conversation {
  readonly id: string;
  header = { key: "", label: "", at: "" };
  summary = ""; // of the messages that compaction took out of the list
  rewritten = 0; // how many messages at the start have changed since the API counted their tokens
  #log: JsonlFile;
  #lineOf = new Map<Message, number>(); // where each message is in the file
  #inboxIds = new Set<string>();

  /** Replays the file. */
  constructor(file: string) {
    super();
    this.id = path.basename(file, ".jsonl");
    this.#log = new JsonlFile(file);
    for (const { line, record } of this.#log.read()) this.#replay(record, line);
  }

  #replay(record: LogRecord, line: number): void {
    const { key = "", label = "", at = "" } = record;
    if (line === 1) this.header = { key, label, at };
    if (Array.isArray(record.message?.content)) this.#add(record.message, line);
    if (record.inboxId) this.#inboxIds.add(record.inboxId);
    if (record.compaction) this.#compact(record.compaction.summary, record.compaction.keepFrom);
    if (record.shorten) this.#shorten(new Set(record.shorten.toolUseIds));
  }

  /** Writes the message to disk before it is in the list, so what the model was told is stored. */
  override append(message: Message, about: { inboxId?: string } = {}): void {
    // Appending is idempotent: after a crash the inbox brings a message again that is here already.
    if (about.inboxId && this.#inboxIds.has(about.inboxId)) return;
    this.#add(message, this.#log.append({ message, ...about }));
    if (about.inboxId) this.#inboxIds.add(about.inboxId);
  }

  #add(message: Message, line: number): void {
    super.append(message);
    this.#lineOf.set(message, line);
  }

  /** Compaction: from now on the history is the summary, and the messages from `kept` on. */
  compact(summary: string, kept: Message | undefined): void {
    const line = kept === undefined ? undefined : this.#lineOf.get(kept);
    const keepFrom = line ?? this.#log.lines + 1; // without a line nothing is kept
    this.#log.append({ compaction: { summary, keepFrom } });
    this.#compact(summary, keepFrom);
  }

  #compact(summary: string, keepFrom: number): void {
    const kept = this.messages.filter((message) => (this.#lineOf.get(message) ?? 0) >= keepFrom);
    const told = `Summary of our conversation so far:\n${summary}`;
    const noted = [{ type: "text", text: "I have read the summary.", citations: null }];
    this.summary = summary;
    this.messages = [
      { role: "user", content: [{ type: "text", text: told }] },
      // Without a reply between them, the summary and the next question would become one message,
      // and if the model refused the question, both would be left out.
      { role: "assistant", content: noted, stop_reason: null } as Anthropic.Message,
      ...kept,
    ];
    this.rewritten = this.messages.length;
  }

  /** From now on only both ends are left of the results of these calls. */
  shorten(toolUseIds: string[]): void {
    this.#log.append({ shorten: { toolUseIds } });
    this.#shorten(new Set(toolUseIds));
  }

  #shorten(ids: Set<string>): void {
    for (const block of this.messages.flatMap(resultsIn)) {
      // It is changed in place, because #lineOf knows the message only as this object.
      if (ids.has(block.tool_use_id)) block.content = shortened(block);
    }
    this.rewritten = this.messages.length;
  }
}

// A key says who talks to whom, and a session is one of their conversations. No file lists all
// sessions, because it could come to disagree with the folders. The folders are the list.

/** All sessions, in `dir`: a folder for each key, and in it a file for each session. */
export class SessionStore {
  #dir: string;
  #loaded = new Map<string, Session>(); // the current session of each key that was used

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** The session that this key is in; a new one, if it has none yet. */
  current(key: string): Session {
    const session = this.#loaded.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#loaded.set(key, session);
    return session;
  }

  /** Begins a new session for this key, and makes it the current one. */
  create(key: string, label = ""): Session {
    const id = crypto.randomUUID().slice(0, 8);
    const header = { v: 1, id, key, label, at: new Date().toISOString() };
    fs.mkdirSync(this.#folder(key), { recursive: true });
    fs.writeFileSync(this.#file(key, id), `${JSON.stringify(header)}\n`, { flag: "wx" });
    return this.#makeCurrent(key, new Session(this.#file(key, id)));
  }

  /** The sessions of this key, the newest last. */
  list(key: string): Session[] {
    return this.#sessionsIn(this.#folder(key));
  }

  #sessionsIn(folder: string): Session[] {
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
    const files = fs.readdirSync(folder).filter((name) => name.endsWith(".jsonl"));
    const sessions = files.map((name) => new Session(path.join(folder, name)));
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /** Every session of every key. */
  all(): Session[] {
    const folders = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    return folders.flatMap((name) => this.#sessionsIn(path.join(this.#dir, name)));
  }

  /** Goes back to the session whose id begins with `prefix`. Throws unless there is exactly one. */
  switch(key: string, prefix: string): Session {
    const found = prefix === "" ? [] : this.list(key).filter(({ id }) => id.startsWith(prefix));
    const [session] = found;
    if (session && found.length === 1) return this.#makeCurrent(key, session);
    throw new Error(`${found.length} sessions begin with "${prefix}"; /list shows them`);
  }

  #makeCurrent(key: string, session: Session): Session {
    replaceFile(path.join(this.#folder(key), "current"), session.id);
    this.#loaded.set(key, session);
    return session;
  }

  /** The session that the file "current" names; the newest one, if it names none. */
  #stored(key: string): Session | undefined {
    const pointer = path.join(this.#folder(key), "current");
    if (!fs.existsSync(pointer)) return this.list(key).at(-1);
    const id = fs.readFileSync(pointer, "utf8");
    // The id becomes part of a path, so it may hold no "/", for example.
    const isSession = /^[\w-]+$/.test(id) && fs.existsSync(this.#file(key, id));
    if (isSession) return new Session(this.#file(key, id));
    quarantine(pointer, t("it names no session. The newest one is used instead."));
    return this.list(key).at(-1);
  }

  /** Deletes the sessions of all keys that begin with `prefix`, but for the last `keep` keys. */
  prune(prefix: string, keep: number): void {
    const names = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    // The keys end with a time, so the newest come last.
    const found = names.filter((name) => name.startsWith(encodeURIComponent(prefix))).sort();
    for (const name of found.slice(0, -keep)) {
      fs.rmSync(path.join(this.#dir, name), { recursive: true });
      this.#loaded.delete(decodeURIComponent(name));
    }
  }

  #folder(key: string): string {
    // Windows allows no "*" in a name, but encodeURIComponent leaves it as it is.
    const name = encodeURIComponent(key.toLowerCase()).replaceAll("*", "%2A");
    if (name.length <= 200) return path.join(this.#dir, name); // most file systems allow 255
    return path.join(this.#dir, sha256(name).digest("hex"));
  }

  #file(key: string, id: string): string {
    return path.join(this.#folder(key), `${id}.jsonl`);
  }
}

/**
 * Locks `dir` until this process exits, because the lines of two processes that append to one
 * session would get mixed up. Throws if another process has the lock.
 */
export function lockFolder(dir: string): void {
  const file = path.join(dir, "lock");
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 }); // only this user may read what people said
  if (fs.existsSync(file)) removeStaleLock(file, path.dirname(dir));
  // "wx" fails if the file exists, so of two processes that come this far only one gets the lock.
  fs.writeFileSync(file, `${process.pid} ${crypto.randomUUID()}`, { flag: "wx" });
  process.on("exit", () => fs.rmSync(file, { force: true }));
}

/** Removes the lock that a killed process left behind. Throws if its process is alive. */
function removeStaleLock(file: string, workspace: string): void {
  const before = fs.readFileSync(file, "utf8");
  const pid = Number.parseInt(before, 10);
  const who = `process ${pid} is using ${workspace}`;
  if (isAlive(pid)) throw new Error(`${who}: stop it, set CLAW0_WORKSPACE, or delete ${file}`);
  // Another process may have found the same stale lock, and may have put its own there since. Only
  // one of them can rename a file, so we rename it, look at it again, and give back a new one.
  const taken = `${file}.${process.pid}`;
  fs.renameSync(file, taken);
  if (fs.readFileSync(taken, "utf8") !== before) fs.renameSync(taken, file);
  fs.rmSync(taken, { force: true });
}

function isAlive(pid: number): boolean {
  if (!(pid > 0)) return false; // the file does not begin with a number
  // In a container each start can have the same pid, so our own is that of an earlier start.
  if (pid === process.pid) return false;
  try {
    return process.kill(pid, 0); // signal 0 is not delivered; it only tests the process
  } catch (error) {
    // EPERM means that the process is alive but belongs to another user.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** About how many tokens a text has: one for four characters, but in CJK scripts one for each. */
export function estimateTokens(text: string): number {
  const cjk = text.match(/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu) ?? [];
  return cjk.length + Math.ceil((text.length - cjk.length) / 4);
}

const tokensOf = (messages: Message[]) =>
  estimateTokens(JSON.stringify(messages.map(({ content }) => content)));

// When a conversation grows too long for the context window, big tool results are shortened first,
// because the model can read a file again. Turns can't be had again, so they are summarised. Both
// change only the history in memory; on disk they are one more line.

const BIG_RESULT = 2_000; // characters; half as many are left of a result that is shortened
const FULL = 0.85; // the share of the window that may be used, because the reply needs room, too
const KEPT = 0.3; // the share of the conversation that a compaction leaves as it is

// Names and ids matter most: if "src/a.ts" became "the file", the model would have to ask again.
const SUMMARISE =
  "Summarise this conversation for the assistant who will go on with it. Keep names, numbers, " +
  "paths and ids exactly, what was decided, what failed, and what the user still waits for. " +
  "Facts only, at most 400 words.";

/** Both ends of a result. */
const shortened = ({ content }: Anthropic.ToolResultBlockParam) =>
  keepEnds(String(content), BIG_RESULT / 2).toWellFormed();

/** Whether the request was too long. The API has no error type for it, so we look at the words. */
export function isOverflow(error: unknown): boolean {
  return error instanceof Anthropic.BadRequestError && /prompt is too long/i.test(error.message);
}

/** Middleware that keeps a conversation inside the context window. */
export class ContextGuard {
  readonly limit: number; // in tokens

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Tokens of the next request: the API's last count, and an estimate of what came after it. */
  size(conversation: Conversation): number {
    const { messages } = conversation;
    // A count from before a compaction is too high, and would bring one compaction after another.
    const start = conversation instanceof Session ? conversation.rewritten : 0;
    // A reply that was interrupted has no stop reason, and no count either.
    const counted = messages.findLastIndex((m, index) => index >= start && m.stop_reason);
    const last = messages[counted];
    const tail = tokensOf(messages.slice(counted + 1));
    if (last?.role !== "assistant")
      return tail + estimateTokens(JSON.stringify([buildSystemPrompt({}), TOOLS]));
    const { usage } = last;
    const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
    return usage.input_tokens + cached + usage.output_tokens + tail;
  }

  /** Runs `next`, and shortens the conversation when it is too long, in at most three steps. */
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
    // Our own count saves a request that would be too long. It matters only if a reply is due:
    // /compact, for example, makes room itself.
    const isFull = this.size(conversation) > this.limit * FULL;
    if (isFull && needsReply(conversation.messages.at(-1))) await takeStep(steps);
    while (true) {
      try {
        return await next(options);
      } catch (error) {
        if (!isOverflow(error)) throw error;
        const isShorter = await takeStep(steps);
        if (!isShorter)
          throw new Error("too long for the model, even shortened; /new begins a new session");
      }
    }
  }

  /** Step 1: shortens big tool results. False if there are none. */
  shortenResults(conversation: Conversation): boolean {
    const results = conversation.messages.flatMap(resultsIn);
    const big = results.filter(({ content }) => String(content).length > BIG_RESULT);
    if (big.length === 0 || !(conversation instanceof Session)) return false;
    conversation.shorten(big.map((block) => block.tool_use_id));
    info(`  (to make room: ${big.length} tool results shortened)`);
    return true;
  }

  /**
   * Steps 2 and 3: puts a summary in the place of the older turns. `keep` is the share of the
   * conversation that is left as it is. False if there are no older turns.
   */
  async summarise(conversation: Conversation, options: TurnOptions, keep: number) {
    if (!(conversation instanceof Session)) return false;
    const { messages } = conversation;
    // If the API says "too long" below our limit, the limit is wrong, so the size is what counts.
    const budget = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, budget * keep);
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const text = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    const summary = await askSummary(conversation, text, budget, options);
    conversation.compact(summary, messages[cut]);
    info(`  (to make room: ${old.length} messages summarised)`);
    return true;
  }
}

/** Takes steps until one makes the conversation shorter. False if none does. */
async function takeStep(steps: (() => boolean | Promise<boolean>)[]): Promise<boolean> {
  while (steps.length > 0) {
    const step = steps.shift();
    if (await step?.()) return true;
  }
  return false;
}

/** Asks for a summary of as much of the text as the model can read. */
async function askSummary(session: Session, text: string, tokens: number, options: TurnOptions) {
  let budget = tokens;
  while (true) {
    try {
      return await requestSummary(session, newestThatFits(text, budget), options);
    } catch (error) {
      if (!isOverflow(error) || budget < 100) throw error;
      budget /= 2; // our estimate was too low
    }
  }
}

/** The end of the text, about so many tokens long. */
function newestThatFits(text: string, tokens: number): string {
  const share = Math.min(1, tokens / estimateTokens(text));
  return text.slice(-Math.ceil(text.length * share)).toWellFormed(); // the cut may halve a character
}

/** Asks the model for one summary. Throws if it gives none. */
async function requestSummary(session: Session, text: string, options: TurnOptions) {
  const content = `Summary so far: ${session.summary || "none"}\n\nSince then:\n${text}`;
  const messages = [{ role: "user" as const, content }];
  const request = {
    model: options.model ?? MODEL,
    max_tokens: 2048,
    system: SUMMARISE,
    messages,
  };
  const response = await callModel(request, { ...options, onText: undefined });
  options.signal?.throwIfAborted(); // half a summary would be worse than none
  const summary = wordsIn(response);
  if (response.stop_reason !== "refusal" && summary.trim()) return summary;
  throw new Error("the model gave no summary; /new begins a new session");
}

/**
 * Where the kept part begins: at the start of a turn, as early as `tokens` allow. Anywhere else
 * the cut could separate a call from its result, and no request would be valid again.
 */
function cutPoint(messages: Message[], tokens: number): number {
  let cut = messages.length;
  let size = 0;
  for (const [index, message] of [...messages.entries()].reverse()) {
    size += tokensOf([message]);
    if (size > tokens) break;
    if (startsTurn(message)) cut = index;
  }
  if (!needsReply(messages.at(-1))) return cut;
  // The turn that is under way is kept whole: without the question no answer would make sense.
  return Math.min(cut, messages.findLastIndex(startsTurn));
}

/** A message as text, with its tool calls and results in brackets. */
function wordsIn({ content }: Message): string {
  const words = content.map((block) => {
    if (block.type === "text") return block.text;
    if (block.type === "tool_use") return `[${block.name} ${JSON.stringify(block.input)}]`;
    if (block.type === "tool_result") return `[result: ${shortened(block)}]`;
    return "";
  });
  return words.join("\n");
}

const GUARD = new ContextGuard(CONTEXT_TOKENS);
MIDDLEWARE.push((conversation, options, next) => GUARD.run(conversation, options, next));

TOOLS.push(
  tool("list_directory", "List a folder of the workspace.", { path: PATH }, ["path"]),
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

/** A slash command. `run` gets what follows the name, and gives the text or lines to show. */
export interface Command {
  help: string;
  run(args: string, app: App, options: TurnOptions): string | string[] | Promise<string>;
}

/** The slash commands, by name. To add a command, call `command` in the region of its section. */
export const COMMANDS: Record<string, Command> = {};

function command(name: string, help: string, run: Command["run"]): void {
  COMMANDS[name] = { help, run };
}

/** Runs a line such as "/switch 668c", and gives what to show. */
async function runCommand(line: string, app: App, options: TurnOptions): Promise<string> {
  const [name = "", ...rest] = line.slice(1).split(" ");
  const found = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!found) return t(`There is no command /${name}. /help lists them.`);
  const shown = await found.run(rest.join(" ").trim(), app, options);
  return typeof shown === "string" ? shown : shown.join("\n");
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
  const formatSession = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(formatSession);
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

// From here on the program owes something to people who don't sit in front of it. Two promises:
// what was accepted is not lost, and in a conversation one message is answered after the other.
// The first is kept by a file that is written before the platform hears "got it"; the second by
// a chain of promises for each conversation.

/** What every platform's message becomes. `peerId` is where the answer goes, `at` is in ms. */
export interface InboundMessage {
  id: string;
  channel: string;
  accountId: string; // which of our own accounts it came to
  peerId: string; // the chat
  senderId: string; // the person
  guildId?: string; // what the chat belongs to: a supergroup, a company
  isGroup: boolean;
  text: string;
  media: { kind: string; id: string }[];
  at: number;
  part?: string; // messages with the same mark are one: an album, a text that was cut
  attempts?: number; // how often the work on it was begun, counted by the inbox
}

/** A message with its place: whose conversation it belongs to. Settled once, when it comes in. */
export interface Routed extends InboundMessage {
  sessionKey: string;
}

/** When it returns, the message is on disk. `done` gives what was answered, when it was. */
export type Accept = (message: InboundMessage, signal?: AbortSignal) => { done: Promise<string> };

/** A platform: it gives us messages, and takes texts of at most `limit` UTF-16 units. */
export interface Channel {
  readonly name: string;
  readonly limit: number;
  start(accept: Accept): Promise<void>; // resolves when ready, rejects if it never will be
  send(to: string, text: string): Promise<void>; // throws SendError
  stop(): Promise<void>;
  typing?(to: string): Promise<unknown>;
  stream?(to: string, delta: string): void; // for a channel that shows a reply while it is made
}

/** Why a text was not sent. `permanent`: it never will be. `retryAfter`: seconds to wait. */
export class SendError extends Error {
  permanent = false;
  retryAfter?: number;
}

const sendError = (why: string, permanent: boolean, retryAfter?: number) =>
  Object.assign(new SendError(why), { permanent, retryAfter });

export interface App {
  inbox: Inbox;
  channels: ChannelManager;
}

export interface TurnOptions {
  message?: InboundMessage; // what is being answered
}

// Whoever may write to the bot may not yet run programs on this machine.
// Reading stays: the workspace is shared on purpose. REMOTE_TOOLS=1 gives them everything.
const OWNER_TOOLS = ["bash", "write_file", "edit_file"];

function toolsFor({ message }: TurnOptions): Anthropic.Tool[] {
  const trusted = !message || message.channel === "cli" || env("REMOTE_TOOLS") === "1";
  return trusted ? TOOLS : TOOLS.filter(({ name }) => !OWNER_TOOLS.includes(name));
}

/**
 * What was accepted and is not answered yet: a file for each message. And the ids of those that
 * are done, since a platform that heard no confirmation sends a message again, most often after
 * the very crash that would make us forget it.
 */
export class Inbox {
  #dir: string;
  #log: JsonlFile;
  #processed: Set<string>;
  #open = new Map<string, { file: string; message: Routed }>();
  #next = 1;

  constructor(dir: string) {
    this.#dir = dir;
    fs.mkdirSync(dir, { recursive: true });
    this.#log = new JsonlFile(path.join(dir, "processed.jsonl"));
    // We wrote them, so they have an id.
    this.#processed = new Set(this.#log.read().map(({ record }) => (record as { id: string }).id));
    for (const name of fs.readdirSync(dir).sort()) if (/^\d+\.json$/.test(name)) this.#load(name);
  }

  #load(name: string): void {
    const file = path.join(this.#dir, name);
    this.#next = Number.parseInt(name, 10) + 1;
    const message = parseObject(fs.readFileSync(file, "utf8")) as Routed | undefined; // ours
    if (message && this.#processed.has(message.id)) {
      fs.rmSync(file);
    } else if (message?.id && (message.attempts ?? 0) < 3) {
      this.#open.set(message.id, { file, message });
    } else {
      fs.renameSync(file, `${file}.${crypto.randomUUID().slice(0, 8)}.quarantined`);
      warn(
        `${name} of the inbox is quarantined: unreadable, or attempted three times without success.`,
      );
    }
  }

  /** In the order in which they were accepted. */
  pending = () => [...this.#open.values()].map(({ message }) => message);

  /** Keeps a message. False if it was here before: it is answered already, or will be. */
  add(message: Routed): boolean {
    if (this.#processed.has(message.id) || this.#open.has(message.id)) return false;
    const file = path.join(this.#dir, `${String(this.#next++).padStart(12, "0")}.json`);
    replaceFile(file, JSON.stringify(message));
    this.#open.set(message.id, { file, message });
    return true;
  }

  /**
   * Counts the attempts, before each one. A message that kills the program would otherwise come
   * back at every start and kill it again.
   */
  countAttempt(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages)) {
      message.attempts = (message.attempts ?? 0) + 1;
      replaceFile(file, JSON.stringify(message));
    }
  }

  /** The answer is sent: the files go, the ids stay. The first part goes last: its id counts. */
  acknowledge(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages).reverse()) {
      // The id first. A crash in between leaves a file, but one that is known to be done.
      this.#log.append({ id: message.id });
      this.#processed.add(message.id);
      this.#open.delete(message.id);
      fs.rmSync(file);
    }
  }

  #find = (messages: Routed[]) => messages.flatMap(({ id }) => this.#open.get(id) ?? []);
}

// A promise for each conversation that is at work: the end of what has been put in line so far.
const tails = new Map<string, Promise<unknown>>();

/** Runs the tasks of one conversation one after the other, those of different ones side by side. */
export function runExclusive<T>(sessionKey: string, task: () => Promise<T>): Promise<T> {
  // The second `task`: also if the one before failed, which is not our affair.
  const result = (tails.get(sessionKey) ?? Promise.resolve()).then(task, task);
  tails.set(sessionKey, result);
  // The last one out clears the place, or the map would keep every conversation there ever was.
  const forget = () => tails.get(sessionKey) === result && tails.delete(sessionKey);
  result.then(forget, forget);
  return result;
}

/** Whose conversation a message belongs to. */
export function route(message: InboundMessage, app: App, agent?: Agent): Routed {
  const isTerminal = message.channel === "cli";
  const chosen = isTerminal ? app.terminalAgent : agent?.id;
  const agentId = chosen ?? app.bindings.resolve(message).agentId;
  const key = buildSessionKey(agentId, message, app.agents.find(agentId).dmScope);
  return { ...message, agentId, sessionKey: isTerminal ? app.key : key };
}

/** The door. Synchronous: when it returns, the platform may forget the message. */
export function accept(app: App, message: InboundMessage, signal?: AbortSignal) {
  const routed = route(message, app);
  rememberOwner(app, message);
  // A line of the terminal is not kept: after a crash nobody waits for the answer.
  if (message.channel !== "cli" && !app.inbox.add(routed)) return { done: Promise.resolve("") };
  return { done: enqueue(app, routed, signal) };
}

// Telegram sends the pictures of an album one by one, and its apps cut a long text in pieces. To
// answer each would be silly. So the first part takes the place in line, and waits for the others
// there; meanwhile each of them is in the inbox, in a file of its own.
const PART_GAP = 600; // ms without another part, and a message in parts is whole
const groups = new Map<string, { parts: Routed[]; last: number; done: Promise<string> }>();

/** Puts a message in line; a part of one joins the parts before it, if they still wait. */
function enqueue(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  const { sessionKey, channel } = message;
  if (channel === "cron") return runExclusive(channel, () => runJob(app, message, signal));
  if (!message.part) return runExclusive(sessionKey, () => handle(app, [message], signal));
  // What was begun before a crash is on record as it is; a part that came later is not in it.
  const mark = `${message.part} ${(message.attempts ?? 0) > 0}`;
  const group = groups.get(mark) ?? { parts: [], last: 0, done: Promise.resolve("") };
  group.parts.push(message);
  group.last = Date.now();
  if (groups.has(mark)) return group.done;
  groups.set(mark, group);
  group.done = runExclusive(sessionKey, async () => {
    for (let left = PART_GAP; left > 0; left = group.last + PART_GAP - Date.now())
      await sleep(left);
    groups.delete(mark);
    return handle(app, group.parts, signal);
  });
  return group.done;
}

/**
 * One turn for one message, or for the parts of one: from the inbox to the reply. Whatever happens
 * in it, it ends, and the person hears something. Only the death of the program brings it back.
 */
export async function handle(app: App, parts: Routed[], signal?: AbortSignal): Promise<string> {
  // There is at least one part; the turn has the first one's id.
  const message = { ...parts[0], text: parts.map((part) => part.text).join("\n") } as Routed;
  const channel = app.channels.get(message.channel);
  const showTyping = () => channel?.typing?.(message.peerId).catch(() => {});
  const timer = setInterval(showTyping, 4_000); // the platforms show it for 5 s
  const onText = (piece: string) => channel?.stream?.(message.peerId, piece);
  let answer: string;
  let about: InboundMessage = message;
  try {
    showTyping();
    app.inbox.countAttempt(parts);
    const agent = app.agents.get(message.agentId);
    answer = await answerTo(message, app, { message, signal, onText, agent });
  } catch (error) {
    if (message.channel === "cli") throw error; // the terminal says it
    warn(`${message.sessionKey}: ${error}`);
    answer = t("I could not answer that. Try again in a moment, or begin anew with /new.");
    about = { ...message, id: `${message.id}!` }; // a crash later there may be an answer after all
  } finally {
    clearInterval(timer);
  }
  if (!channel?.stream) await reply(app, about, answer);
  app.inbox.acknowledge(parts);
  return answer;
}

/** What is said to a message: by the model, or by one of the two commands for everybody. */
async function answerTo(message: Routed, app: App, options: TurnOptions): Promise<string> {
  const [, name] = /^\/(new|help)\b/.exec(message.text) ?? [];
  if (message.channel === "cli" || message.isGroup || !name) {
    // Half a character, which a client can send, would spoil this request and all that follow.
    const session = app.store.current(message.sessionKey);
    return trackTurn(runTurn(session, message.text.toWellFormed(), { ...options, app }));
  }
  if (name === "help") return t("/new begins a new conversation.");
  return runCommand(message.text, { ...app, key: message.sessionKey }, options);
}

/**
 * Puts the answer in line, in pieces that the platform takes; when it returns, they are on disk.
 * After a crash the same answer comes again, with the same ids: it is in line once.
 */
export async function reply(app: App, { id, channel, peerId: to }: InboundMessage, answer: string) {
  const target = app.channels.get(channel);
  const words = answer.trim() || t("(There is nothing to say.)");
  if (!target || target.stream) return target?.send(to, words);
  const rest = {
    channel,
    to,
    enqueuedAt: Date.now(),
    nextAttemptAt: Date.now(),
    failures: 0,
    unfinished: 0,
  };
  for (const [part, piece] of chunkMessage(words, target.limit).entries())
    app.queue.add({ id: `${id}#${part}`, text: piece, ...rest });
  app.delivery.wake(`${channel} ${to}`);
}

/** The channels of a running program, by name. One that is down does not stop the others. */
export class ChannelManager extends Map<string, Channel> {
  readonly states = new Map<string, string>();

  /** Resolves when all are ready or have failed; after 3 s at the latest. */
  async start(accept: Accept): Promise<void> {
    const starts = [...this.values()].map(async (channel) => {
      this.states.set(channel.name, t("starting"));
      const state = await channel.start(accept).then(() => t("ready"), String);
      this.states.set(channel.name, state);
      info(`${channel.name}: ${state}`);
    });
    await Promise.race([Promise.all(starts), sleep(3_000)]);
    const late = [...this.states].filter(([, state]) => state === t("starting"));
    for (const [name] of late) warn(`${name}: not ready yet, still trying`);
  }

  /** Resolves when all have stopped, or after 3 s: a platform out of reach can't be told. */
  async stop(): Promise<void> {
    const stops = [...this.values()].map((channel) => channel.stop().catch(() => {}));
    await Promise.race([Promise.all(stops), sleep(3_000)]);
  }
}

/** The terminal, as one channel among others. Its person sees a reply while it is made. */
export class CliChannel implements Channel {
  readonly name = "cli";
  readonly limit = Number.MAX_SAFE_INTEGER;
  closed = Promise.resolve(); // until it is started; then when the person leaves
  #command: (line: string, options: TurnOptions) => Promise<string>;

  constructor(command: (line: string, options: TurnOptions) => Promise<string>) {
    this.#command = command;
  }

  async start(accept: Accept): Promise<void> {
    const from = { channel: "cli", accountId: "local", peerId: "owner", senderId: "owner" };
    this.closed = new Terminal().run(async (line, signal) => {
      if (line.startsWith("/")) return info(await this.#command(line, { signal }));
      const rest = { isGroup: false, text: line, media: [], at: Date.now() };
      return accept({ id: `cli:${crypto.randomUUID()}`, ...from, ...rest }, signal).done;
    });
  }

  stream(_to: string, delta: string): void {
    say(delta);
  }

  async send(_to: string, line: string): Promise<void> {
    info(line);
  }

  async stop(): Promise<void> {}
}

// A bot can be found by anyone, and each answer costs money. So nobody is admitted by default.
const strangers = new Set<string>();

/** Lets a message in, if `allowed` has its chat. A stranger hears once what the owner can do. */
function admit(channel: Channel, message: InboundMessage, allowed: string, accept: Accept): void {
  const [chat = ""] = message.peerId.split(":topic:");
  if (allowed.split(/[\s,]+/).includes(chat)) {
    // As JSON, so that nobody can draw on our terminal with control characters.
    info(`[${channel.name} ${message.peerId}] ${JSON.stringify(message.text.slice(0, 80))}`);
    accept(message).done.catch((error) => warn(`${message.id}: ${error}`));
  } else if (!strangers.has(chat)) {
    strangers.add(chat); // once: otherwise a stranger could make us send as much as they like
    warn(`A stranger wrote. ${channel.name.toUpperCase()}_ALLOWED_CHATS=${chat} lets them in.`);
    const words = t(`I don't know this chat. Its id is ${chat}: my owner can let it in.`);
    channel.send(message.peerId, words).catch(() => {});
  }
}

const MEDIA = ["photo", "video", "animation", "document", "audio", "voice", "sticker"] as const;
const CUT_AT = 4_000; // the apps cut a text at 4096 units, or between two words before that

/** Node's fetch. grammY stops it by a signal of its own make, and that of Node 24 takes no such. */
const fetchForGrammy: typeof fetch = (url, init) => {
  const control = new AbortController();
  if (init?.signal?.aborted) control.abort();
  init?.signal?.addEventListener("abort", () => control.abort());
  return fetch(url, { ...init, signal: control.signal });
};

/** Telegram, by long polling. Asking for new messages confirms the old: so they are kept first. */
export class TelegramChannel implements Channel {
  readonly name = "telegram";
  readonly limit = 4096;
  #setting: Setting;
  #bot: Bot;
  #stopped = false;
  #cut = new Map<string, { next: number; part: string }>();
  #ours = new Set<string>(); // marks of parts that were let in

  constructor(setting: Setting) {
    this.#setting = setting;
    this.#bot = this.#newBot();
  }

  #newBot(): Bot {
    const apiRoot = this.#setting("TELEGRAM_API_ROOT") || "https://api.telegram.org";
    // Node's own fetch: the one that grammY brings does not go through a proxy.
    const client = { apiRoot, timeoutSeconds: 60, fetch: fetchForGrammy };
    return new Bot(this.#setting("TELEGRAM_BOT_TOKEN"), { client });
  }

  /** Rejects if the token is wrong. */
  async start(accept: Accept): Promise<void> {
    await this.#bot.init();
    void this.#poll(accept);
  }

  /** Asks for new messages until it is stopped. grammY itself waits out a server that is down. */
  async #poll(accept: Accept): Promise<void> {
    while (!this.#stopped) {
      this.#bot.on("message", ({ message }) => {
        const inbound = this.#read(message);
        if (inbound) admit(this, inbound, this.#setting("TELEGRAM_ALLOWED_CHATS"), accept);
      });
      // accept is synchronous, so when this returns, the message is on disk, and grammY may ask for
      // the next ones. If it could not be kept (a full disk, say), nothing may be confirmed: the
      // error ends this bot, and a new one gets the same messages again.
      this.#bot.catch(({ error }) => Promise.reject(error));
      try {
        await this.#bot.start({ allowed_updates: ["message"] });
      } catch (error) {
        if (!this.#stopped) warn(`telegram: ${error}. Trying again in 5 s.`);
        await sleep(5_000);
        this.#bot = this.#newBot();
      }
    }
  }

  /** Undefined for what is not for us: other bots, service messages, talk in a group. */
  #read(message: TelegramMessage): InboundMessage | undefined {
    const { chat, from, message_id, reply_to_message: answered } = message;
    const { id: me, username } = this.#bot.botInfo;
    const kind = MEDIA.find((name) => message[name]);
    const file = kind && [message[kind]].flat().at(-1); // of a picture the largest of its sizes
    const words = message.text ?? message.caption ?? "";
    if (!from || from.is_bot || (!words && !kind)) return undefined;
    // "@bot", and also "/command@bot". In a group only those who mean us are answered.
    const name = new RegExp(`@${username}\\b`, "gi");
    const isGroup = chat.type !== "private";
    const part = this.#partOf(message, words);
    const isMeant = name.test(words) || answered?.from?.id === me;
    // Of an album, only one picture has the caption that mentions us.
    if (isGroup && !isMeant && !this.#ours.has(part ?? "")) return undefined;
    if (part) this.#ours.add(part);
    const topic = message.is_topic_message ? `:topic:${message.message_thread_id}` : "";
    return {
      id: `telegram:${me}:${chat.id}:${message_id}`,
      channel: "telegram",
      accountId: String(me),
      peerId: `${chat.id}${topic}`,
      senderId: String(from.id),
      guildId: topic ? String(chat.id) : undefined,
      isGroup,
      text: `${kind ? `[${kind}] ` : ""}${words.replaceAll(name, "")}`.trim() || words,
      media: kind && file ? [{ kind, id: file.file_id }] : [],
      at: message.date * 1000,
      part,
    };
  }

  /** The mark of an album, or of a long text that was cut: its pieces have adjoining numbers. */
  #partOf({ chat, from, message_id, media_group_id }: TelegramMessage, words: string) {
    if (media_group_id) return `telegram ${chat.id} ${media_group_id}`;
    const sender = `telegram ${chat.id} ${from?.id}`;
    const cut = this.#cut.get(sender);
    const before = cut?.next === message_id ? cut.part : undefined;
    // Shorter than that it is the last piece, if it is one at all.
    if (words.length < CUT_AT) return before;
    const part = before ?? `${sender} ${message_id}`;
    this.#cut.set(sender, { next: message_id + 1, part });
    return part;
  }

  async send(to: string, words: string): Promise<void> {
    const { chat, thread } = telegramPlace(to);
    try {
      await this.#bot.api.sendMessage(chat, words, thread);
    } catch (error) {
      if (!(error instanceof GrammyError)) throw sendError(String(error), false);
      // 403: the bot was blocked; 400: no such chat. Trying again would not help.
      const { error_code: code, description, parameters } = error;
      throw sendError(description, code < 500 && code !== 429, parameters.retry_after);
    }
  }

  typing(to: string): Promise<unknown> {
    const { chat, thread } = telegramPlace(to);
    return this.#bot.api.sendChatAction(chat, "typing", thread);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#bot.stop();
  }
}

/** A topic of a forum is a place of its own: "<chat>:topic:<thread>". */
function telegramPlace(to: string) {
  const [chat = "", thread] = to.split(":topic:");
  return { chat, thread: thread ? { message_thread_id: Number(thread) } : {} };
}

// Feishu does not wait to be asked: it calls us. That needs a server, and a server needs care,
// since anyone who finds the address can send anything.

type Answer = { status: number; body: object };
/** What can be asked of our HTTP server: "POST /path". The body comes byte by byte as sent. */
export const ROUTES: Record<string, (body: Buffer, headers: http.IncomingHttpHeaders) => Answer> =
  {};

async function answerHttp(request: http.IncomingMessage): Promise<Answer> {
  const place = `${request.method} ${request.url?.split("?")[0]}`;
  const route = Object.hasOwn(ROUTES, place) && ROUTES[place];
  if (!route) return { status: 404, body: { error: "not found" } };
  const chunks: Buffer[] = [];
  let left = 1_000_000; // bytes: whoever this is, they have not shown a token yet
  for await (const chunk of request) {
    left -= chunk.length;
    if (left < 0) return { status: 413, body: { error: "too large" } };
    chunks.push(chunk);
  }
  return route(Buffer.concat(chunks), request.headers);
}

/** The one HTTP server, on loopback: what is to be reached from outside comes by a tunnel. */
async function startHttp(port: number): Promise<http.Server> {
  const server = http.createServer(async (request, response) => {
    const { status, body } = await answerHttp(request).catch((error) => {
      warn(`http: ${error}`);
      return { status: 500, body: { error: "internal error" } }; // and not a word about why
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  try {
    await once(server.listen(port, "127.0.0.1"), "listening");
    // It listens on TCP, so its address has a port.
    info(`http: listening on 127.0.0.1:${(server.address() as { port: number }).port}`);
  } catch (error) {
    warn(`http: ${error}. Choose another HTTP_PORT; the rest runs.`);
  }
  return server;
}

type Strings<Name extends string> = Partial<Record<Name, string>>;

/** What we read of an event. Anyone can post here, so any of it may be missing. */
type FeishuEvent = Strings<"encrypt" | "type" | "token" | "challenge"> & {
  header?: Strings<"event_type" | "token" | "tenant_key">;
  event?: {
    sender?: Strings<"sender_type"> & { sender_id?: Strings<"open_id"> };
    message?: Strings<"chat_id" | "chat_type" | "message_type" | "content" | "create_time"> & {
      mentions?: { key: string; name: string; id?: Strings<"open_id"> }[];
    };
  };
};

const FEISHU_BUSY = [99991400, 230020, 11232]; // too many requests
const FEISHU_EXPIRED = [99991661, 99991663, 99991664]; // our access token is too old

/** Feishu, and Lark: events come by HTTP and are confirmed at once; the work is done later. */
export class FeishuChannel implements Channel {
  readonly name = "feishu";
  readonly limit = 4000;
  #setting: Setting;
  #api: string;
  #access = { token: "", until: 0 };

  /** Throws at a setting that makes no sense. */
  constructor(setting: Setting) {
    this.#setting = setting;
    const missing = ["FEISHU_APP_SECRET", "FEISHU_VERIFICATION_TOKEN"].find((it) => !setting(it));
    if (missing) throw new Error(`${missing} is not set, and FEISHU_APP_ID needs it`);
    const domain = setting("FEISHU_DOMAIN") || "feishu";
    if (domain !== "feishu" && domain !== "lark") throw new Error("FEISHU_DOMAIN: feishu or lark");
    const host = domain === "lark" ? "open.larksuite.com" : "open.feishu.cn";
    this.#api = setting("FEISHU_API_BASE") || `https://${host}`;
  }

  /** Rejects if the app's id or secret is wrong. */
  async start(accept: Accept): Promise<void> {
    ROUTES["POST /feishu/events"] = (body, headers) => this.#receive(body, headers, accept);
    await this.#accessToken();
  }

  /** Answers at once: after 3 s Feishu gives up and sends the event again. */
  #receive(body: Buffer, headers: http.IncomingHttpHeaders, accept: Accept): Answer {
    const event = this.#decrypt(body);
    const token = event?.header?.token ?? event?.token;
    const refused = { status: 401, body: { error: "this does not come from Feishu" } };
    if (!event || token !== this.#setting("FEISHU_VERIFICATION_TOKEN")) return refused;
    if (event.type === "url_verification")
      return { status: 200, body: { challenge: event.challenge } };
    if (!this.#isSigned(body, headers)) return refused;
    const inbound = this.#read(event);
    if (inbound) admit(this, inbound, this.#setting("FEISHU_ALLOWED_CHATS"), accept);
    return { status: 200, body: {} };
  }

  /** Undefined if it makes no sense; also if it is in the clear and should not be. */
  #decrypt(body: Buffer): FeishuEvent | undefined {
    const event: FeishuEvent | undefined = parseObject(body.toString());
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey || !event) return event;
    const key = sha256(encryptKey).digest();
    const bytes = Buffer.from(String(event.encrypt), "base64");
    try {
      const cipher = crypto.createDecipheriv("aes-256-cbc", key, bytes.subarray(0, 16));
      // Joined as bytes: between two blocks there may be half a character.
      return parseObject(`${Buffer.concat([cipher.update(bytes.subarray(16)), cipher.final()])}`);
    } catch {
      return undefined; // another key, or no encryption at all
    }
  }

  /** A hash over the body and a key that only Feishu and we have. */
  #isSigned(body: Buffer, headers: http.IncomingHttpHeaders): boolean {
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey) return true; // what is not encrypted is not signed; the token was right
    const time = headers["x-lark-request-timestamp"];
    const hash = sha256(`${time}${headers["x-lark-request-nonce"]}${encryptKey}${body}`);
    const fresh = Math.abs(Date.now() / 1000 - Number(time)) < 3600; // an old one is a replay
    return fresh && headers["x-lark-signature"] === hash.digest("hex");
  }

  /** Undefined for what is no message, or not for us. */
  #read({ header, event }: FeishuEvent): InboundMessage | undefined {
    const { sender, message } = event ?? {};
    if (header?.event_type !== "im.message.receive_v1" || !message?.chat_id) return undefined;
    if (sender?.sender_type !== "user") return undefined;
    const { chat_id: peerId, create_time, content = "" } = message;
    const mentions = message.mentions ?? [];
    const accountId = this.#setting("FEISHU_APP_ID");
    const isMe = ({ id }: { id?: Strings<"open_id"> }) =>
      id?.open_id === (this.#setting("FEISHU_BOT_OPEN_ID") || null);
    const isGroup = message.chat_type !== "p2p";
    if (isGroup && !mentions.some(isMe)) return undefined;
    const senderId = sender.sender_id?.open_id ?? "";
    const { words, media } = readFeishu(message.message_type ?? "", content);
    let out = words;
    // Backwards: "@_user_1" also begins "@_user_10".
    for (const m of mentions.toReversed()) out = out.split(m.key).join(isMe(m) ? "" : `@${m.name}`);
    // A redelivery may have a new message id, but never another sender, time or content.
    const same = JSON.stringify([senderId, peerId, create_time, content]);
    const id = `feishu:${accountId}:${sha256(same).digest("hex")}`;
    const who = { channel: "feishu", accountId, peerId, senderId, guildId: header.tenant_key };
    return { id, ...who, isGroup, text: out.trim() || words, media, at: Number(create_time) };
  }

  async send(to: string, words: string, again = false): Promise<void> {
    const place = "/open-apis/im/v1/messages?receive_id_type=chat_id";
    const body = { receive_id: to, msg_type: "text", content: JSON.stringify({ text: words }) };
    const { code, msg } = await this.#post(place, body, await this.#accessToken());
    if (FEISHU_EXPIRED.includes(code) && !again) {
      this.#access.until = 0;
      return this.send(to, words, true);
    }
    if (code !== 0) throw sendError(`${code} ${msg}`, !FEISHU_BUSY.includes(code));
  }

  /** Good for about two hours; asked for again a minute before its end. */
  async #accessToken(): Promise<string> {
    if (Date.now() < this.#access.until) return this.#access.token;
    const [app_id, app_secret] = ["FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(this.#setting);
    const place = "/open-apis/auth/v3/tenant_access_token/internal";
    const answer = await this.#post(place, { app_id, app_secret });
    if (answer.code !== 0) throw sendError(`${answer.code} ${answer.msg}`, true);
    const { tenant_access_token: token = "", expire = 0 } = answer;
    this.#access = { token, until: Date.now() + (expire - 60) * 1000 };
    return token;
  }

  async #post(place: string, body: object, token = ""): Promise<FeishuAnswer> {
    const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
    const signal = AbortSignal.timeout(10_000);
    const request = { method: "POST", headers, body: JSON.stringify(body), signal };
    try {
      const response = await fetch(this.#api + place, request);
      if (response.status === 429 || response.status >= 500) throw new Error(response.statusText);
      return (await response.json()) as FeishuAnswer; // the refusals, too, have this form
    } catch (error) {
      throw sendError(String(error), false);
    }
  }

  stop = async () => void delete ROUTES["POST /feishu/events"];
}

type FeishuAnswer = { code: number; msg: string; expire?: number; tenant_access_token?: string };

/** The words of a message, with its links; and the pictures and files in it. */
function readFeishu(type: string, json: string) {
  const media: { kind: string; id: string }[] = [];
  const wordsOf = (item: Fields | null): string => {
    const id = item?.file_key ?? item?.image_key;
    if (!id) return `${item?.text ?? item?.user_id ?? ""}${item?.href ? ` (${item.href})` : ""}`;
    media.push({ kind: type === "post" ? "image" : type, id: String(id) });
    return `[${media.at(-1)?.kind}]`;
  };
  const content = (parseObject(json) ?? {}) as Fields; // what it says is looked at field by field
  if (type !== "post") return { words: wordsOf(content).trim() || `[${type}]`, media };
  const lines = Array.isArray(content.content) ? content.content : [];
  const words = lines.map((line: Fields[]) => [line ?? []].flat().map(wordsOf).join(""));
  return { words: [content.title, ...words].filter(Boolean).join("\n").trim() || "[post]", media };
}

command("channels", "the channels, and how they are", (_args, { channels }) =>
  [...channels.states].map(([name, state]) => `${name.padEnd(10)} ${state}`),
);

command("accounts", "our accounts on the platforms", () => {
  const shown = (name: string) => `${name}  ${(env(name) || "-").slice(0, 6)}`; // not all of it
  return ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(shown);
});

// ---- s05 · Gateway and routing ----

// Two questions for each message. Which agent answers it? And whose conversation does it belong
// to? The bindings settle the first, the agent's dmScope the second, once, before the message is
// put into the inbox: what is decided later about others does not move it.

/** `dmScope` says who shares a conversation in direct chats: all, or one person, or finer yet. */
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

/** Who can answer. The first one does where no binding says otherwise. */
export const AGENTS: Agent[] = [
  { id: "luna", system: LUNA, dmScope: "per-channel-peer" },
  { id: "sage", system: SAGE, dmScope: "per-channel-peer" },
];

/** The agents by id. */
export class AgentManager extends Map<string, Agent> {
  /** Throws, naming those that there are. */
  find(id: string): Agent {
    const agent = this.get(id);
    if (!agent) throw new Error(`no such agentId: ${id}; there are ${[...this.keys()].join(", ")}`);
    return agent;
  }
}

// The tiers, the most particular first: a chat, what it belongs to, our account, the platform.
const TIERS = ["peerId", "guildId", "accountId", "channel", "default"] as const;

/** "What comes from there is answered by this agent." Within a tier the higher priority wins. */
export interface Binding {
  agentId: string;
  tier: number; // 1 to 5
  matchKey: (typeof TIERS)[number];
  matchValue: string; // of a peer also "telegram:1001"
  priority: number;
}

export const BINDINGS: Omit<Binding, "tier">[] = [
  { agentId: "luna", matchKey: "default", matchValue: "*", priority: 0 },
];

/**
 * The bindings, found by look-up in a map for each tier: what a message costs does not grow with
 * their number. They last until the program ends.
 */
export class BindingTable {
  #byKey = new Map<string, Map<string, Binding>>(TIERS.map((key) => [key, new Map()]));

  constructor(bindings: Omit<Binding, "tier">[]) {
    for (const binding of bindings) this.set(binding);
  }

  /** Replaces a binding with the same key and value. */
  set(binding: Omit<Binding, "tier">): Binding {
    const complete = { ...binding, tier: TIERS.indexOf(binding.matchKey) + 1 };
    this.#byKey.get(binding.matchKey)?.set(binding.matchValue.toLowerCase(), complete);
    return complete;
  }

  remove(matchKey: string, matchValue: string): boolean {
    return this.#byKey.get(matchKey)?.delete(matchValue.toLowerCase()) ?? false;
  }

  list(): Binding[] {
    return [...this.#byKey.values()].flatMap((bindings) => [...bindings.values()]);
  }

  /**
   * The agent for a message, and why: the first tier that has a binding decides. A peer may be
   * bound as "telegram:1001", since another platform may have the same number.
   */
  resolve(message: InboundMessage): { agentId: string; binding?: Binding } {
    for (const key of TIERS) {
      const value = key === "default" ? "*" : message[key];
      if (!value) continue;
      const values = key === "peerId" ? [`${message.channel}:${value}`, value] : [value];
      const found = values.flatMap((one) => this.#byKey.get(key)?.get(one.toLowerCase()) ?? []);
      const [binding] = found.sort((a, b) => b.priority - a.priority);
      if (binding) return { agentId: binding.agentId, binding };
    }
    return { agentId: AGENTS[0]?.id ?? "" };
  }
}

/**
 * Whose conversation this is. In lower case, since platforms differ about case and file systems
 * do too. Throws if the key gets longer than any honest one.
 */
export function buildSessionKey(agentId: string, message: InboundMessage, dmScope: DmScope) {
  const { channel, accountId, peerId, isGroup } = message;
  // "main" puts everybody who writes directly into one conversation. That is for an agent with one
  // owner: with two people, each would read what the other said.
  const direct = {
    main: "main",
    "per-peer": `direct:${peerId}`,
    "per-channel-peer": `${channel}:direct:${peerId}`,
    "per-account-channel-peer": `${channel}:${accountId}:direct:${peerId}`,
  };
  const place = isGroup ? `${channel}:group:${peerId}` : direct[dmScope];
  const rest = channel === "cron" ? message.id : place; // a run has a conversation of its own
  const key = `agent:${agentId}:${rest}`.toLowerCase();
  if (key.length > 150) throw new Error(`peerId is too long: ${key.length} characters in the key`);
  return key;
}

/** An error of JSON-RPC 2.0: -32700 not JSON, -32600 no request, -32601 no such method, … */
class RpcError extends Error {
  code = 0;
}

const rpcError = (code: number, why: string) => Object.assign(new RpcError(why), { code });

/** Who asks: a peer of its own, and a way to tell it something before the answer is there. */
export interface Connection {
  peerId: string;
  notify(method: string, params: object): void;
}

export type Method = (params: Fields, app: App, connection: Connection) => unknown;
/** What a client can ask of the gateway. */
export const METHODS: Record<string, Method> = {};

/** Adds a method whose parameters are checked like the input of a tool. */
function method(name: string, properties: object, optional: string[], run: Method): void {
  const schema = objectSchema(properties, optional);
  METHODS[name] = (params, app, connection) => {
    const fields = orInvalidParams(() => checkInput(schema, params));
    return run(fields, app, connection);
  };
}

/** Runs a check of what a client has sent: what is wrong with it is the client's to mend. */
function orInvalidParams<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw rpcError(-32602, error instanceof Error ? error.message : String(error));
  }
}

const MAX_FRAME = 1024 * 1024; // bytes: of one message, and of what may pile up for a slow client

/**
 * JSON-RPC 2.0 over WebSocket, on the one HTTP server. Whoever has the token can do what a person
 * on a channel can, and change the bindings. They are not the owner: bash is not offered to them.
 */
export class GatewayServer {
  address = ""; // once it is attached
  #token: string;
  readonly sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME });

  constructor(token: string) {
    this.#token = token;
  }

  /** Takes over what asks for a WebSocket at "/". */
  attach(server: http.Server, app: App): void {
    const address = server.address();
    if (typeof address === "object" && address) this.address = `ws://127.0.0.1:${address.port}/`;
    server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => {}); // gone before we answered
      const refused = this.#refusal(request);
      if (refused) socket.end(`HTTP/1.1 ${refused}\r\nConnection: close\r\n\r\n`);
      else this.sockets.handleUpgrade(request, socket, head, (client) => this.#serve(client, app));
    });
  }

  /** Before the handshake: after it, anyone could send. "" lets it in. */
  #refusal({ url = "", headers, socket }: http.IncomingMessage): string {
    const [place, query] = url.split("?");
    if (place !== "/") return "404 Not Found";
    // Pages in the owner's browser reach loopback too. They can't hide where they come from.
    const own = [`http://localhost:${socket.localPort}`, `http://127.0.0.1:${socket.localPort}`];
    if (headers.origin && !own.includes(headers.origin)) return "403 Forbidden";
    const asked = headers.authorization?.replace(/^Bearer /i, "");
    const token = asked ?? new URLSearchParams(query).get("token") ?? "";
    // Comparing hashes takes the same time however much of a guess is right.
    const same = crypto.timingSafeEqual(sha256(token).digest(), sha256(this.#token).digest());
    return same ? "" : "401 Unauthorized";
  }

  #serve(socket: WebSocket, app: App): void {
    const peerId = crypto.randomUUID();
    const push = (message: object) => {
      if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message));
      // A client that doesn't read would have us keep everything for it.
      if (socket.bufferedAmount > MAX_FRAME) socket.terminate();
    };
    socket.on("error", (error) => info(`gateway: ${error.message}`)); // a frame over the limit, say
    socket.on("message", async (data) => {
      const answer = await answerRpc(String(data), app, { peerId, push });
      if (answer) push(answer);
    });
  }
}

type Client = { peerId: string; push(message: object): void };

/** The answer to a request or to a batch of them; none, if it has only notifications. */
async function answerRpc(json: string, app: App, client: Client) {
  let message: unknown;
  try {
    message = JSON.parse(json);
  } catch {
    return { jsonrpc: "2.0", id: null, error: { code: -32700, message: "this is not JSON" } };
  }
  if (!Array.isArray(message) || message.length === 0) return callMethod(message, app, client);
  const answers = await Promise.all(message.map((one) => callMethod(one, app, client)));
  const said = answers.filter((answer) => answer !== undefined);
  return said.length > 0 ? said : undefined;
}

/**
 * The answer to one request; none to a notification, whatever comes of it. Requests don't wait for
 * each other: "status" is answered while a "send" is still with the model.
 */
async function callMethod(message: unknown, app: App, { peerId, push }: Client) {
  const fields = typeof message === "object" && !Array.isArray(message) ? message : {};
  const { jsonrpc, id, method, params = {} } = { ...fields } as Fields; // looked at one by one
  const isId = id === null || typeof id === "string" || typeof id === "number";
  const isRequest = jsonrpc === "2.0" && typeof method === "string" && (isId || id === undefined);
  const answer = { jsonrpc: "2.0", id: isId ? id : null };
  const notify = (about: string, more: object) => {
    if (isId) push({ jsonrpc: "2.0", method: about, params: { id, ...more } });
  };
  try {
    if (!isRequest) throw rpcError(-32600, "this is no request of JSON-RPC 2.0");
    const run = Object.hasOwn(METHODS, method) ? METHODS[method] : undefined;
    if (!run) throw rpcError(-32601, `there is no method ${method}`);
    const result = await run(params as Fields, app, { peerId, notify }); // run checks them
    return isId ? { ...answer, result } : undefined;
  } catch (error) {
    if (isRequest && !isId) return undefined; // a notification: nobody asked to be told
    if (error instanceof RpcError) {
      return { ...answer, error: { code: error.code, message: error.message } };
    }
    warn(`gateway: ${method}: ${error}`);
    return { ...answer, error: { code: -32603, message: "internal error" } };
  }
}

const FROM = { channel: string("telegram, …"), peerId: string("the chat"), agentId: string("who") };
const SEND = { text: string("…"), ...FROM };

// A send does not enter the inbox. After a crash its connection is gone, and nobody waits for the
// answer; what was said is in the session all the same.
method("send", SEND, Object.keys(FROM), async (params, app, connection) => {
  const { text, channel = "ws", peerId = connection.peerId, agentId } = params;
  const id = `ws:${crypto.randomUUID()}`;
  const from = { accountId: "local", senderId: connection.peerId, isGroup: false, media: [] };
  const place = { channel: String(channel).toLowerCase(), peerId: String(peerId) };
  const inbound = { id, ...from, ...place, text: String(text).trim(), at: Date.now() };
  // Whoever comes by the network is not the owner, whatever they say they are.
  const isTheirs = /^(?!(cli|cron|heartbeat)$)\w+$/.test(place.channel);
  if (!isTheirs) throw rpcError(-32602, "channel: not this one");
  if (!inbound.text) throw rpcError(-32602, "text is empty");
  const agent =
    agentId === undefined ? agentId : orInvalidParams(() => app.agents.find(String(agentId)));
  const message = orInvalidParams(() => route(inbound, app, agent));
  connection.notify("typing", {});
  const onText = (piece: string) => piece && connection.notify("delta", { text: piece });
  const turn = () =>
    answerTo(message, app, { message, onText, agent: app.agents.get(message.agentId) });
  try {
    const reply = await runExclusive(message.sessionKey, turn);
    return { agentId: message.agentId, sessionKey: message.sessionKey, reply };
  } catch (error) {
    throw rpcError(-32000, `the turn failed: ${error}`);
  }
});

const MATCH = { matchKey: { type: "string", enum: TIERS }, matchValue: string("…") };
const BINDING = { agentId: string("who"), ...MATCH, priority: { type: "integer" } };

method("bindings.set", BINDING, ["priority"], (params, app) => {
  const { agentId, matchKey, matchValue, priority = 0 } = params;
  const agent = orInvalidParams(() => app.agents.find(String(agentId)));
  const key = TIERS.find((tier) => tier === matchKey) ?? "default";
  const rest = { matchKey: key, matchValue: String(matchValue), priority: Number(priority) };
  return app.bindings.set({ agentId: agent.id, ...rest });
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
  const rest = { id: "", senderId: "", isGroup: false, text: "", media: [], at: 0 };
  const message = { channel, peerId, accountId, guildId, ...rest };
  const { binding } = app.bindings.resolve(message);
  const { agentId, sessionKey } = route(message, app);
  return `${agentId}  ${sessionKey}  (${binding?.tier ?? 5} ${binding?.matchKey ?? "default"})`;
});

command("agents", "the agents", (_args, { agents }) =>
  [...agents.values()].map(({ id, dmScope, system }) => `${id}  ${dmScope}  ${system}`),
);

command("agent", "<id>|off: who answers you here", (id, app) => {
  app.terminalAgent = id === "off" ? undefined : app.agents.find(id).id;
  app.key = TERMINAL_KEY.replace("luna", app.terminalAgent ?? "luna"); // a conversation of its own
  return t(`From now on: ${app.terminalAgent ?? "as the bindings say"}.`);
});

command("sessions", "all conversations", (_args, { store }) =>
  store.all().map(({ id, header: { key, label } }) => `${id}  ${key}  ${label}`),
);

command("gateway", "where programs can connect", (_args, { gateway }) =>
  t(`${gateway.address || "(not listening)"}  ${gateway.sockets.clients.size} connected`),
);

/**
 * The token of the settings, or one that we make and keep. Loopback is no protection: every program
 * and every page on this machine can reach it.
 */
function gatewayToken(): string {
  const file = path.join(STATE, "gateway-token");
  const kept = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
  if (env("GATEWAY_TOKEN") || /^[\w-]{32}$/.test(kept)) return env("GATEWAY_TOKEN") || kept;
  const token = crypto.randomBytes(24).toString("base64url");
  fs.writeFileSync(file, token, { mode: 0o600 }); // only this user may read it
  return token;
}

// ---- s06 · Intelligence ----

// The agent's character is in files, and so is what it knows. The prompt is put together from them
// anew for every call, and comes out the same, byte by byte, until a file changes. That is worth
// money: the API keeps what it has read and asks a tenth for it, but only for an exact beginning.

export interface TurnOptions {
  mode?: "full" | "minimal" | "none"; // the prompt: all; for a job without a person; one line
}

export interface App {
  memory: MemoryStore;
}

/** The owner is whoever sits at the terminal, and the direct chat listed first for a channel. */
export function isOwner({ message }: TurnOptions): boolean {
  if (!message || ["cli", "heartbeat"].includes(message.channel)) return true;
  // A job is the owner's; but what it says may be for others.
  const { channel, to } = message.job?.deliver ?? { channel: "cli", to: "" };
  if (message.job) return isOwner({ message: { ...message, job: undefined, channel, peerId: to } });
  const listed = env(`${message.channel.toUpperCase()}_ALLOWED_CHATS`).split(/[\s,]+/);
  // Telegram's groups are below zero.
  const first = listed.find((chat) => chat && !chat.startsWith("-"));
  // A client of the gateway can name any peer. That does not make it one.
  return !message.isGroup && !message.id.startsWith("ws:") && message.peerId === first;
}

const PRIVATE = ["MEMORY.md", "USER.md"];
const PRIVATE_FILES = PRIVATE.map((name) => path.join(WORKSPACE, name));

/** What is the owner's is not for others, by whatever path or link they ask for it. */
function checkPrivate({ path: asked }: Fields, turn: Turn): void {
  if (typeof asked !== "string" || isOwner(turn)) return;
  const real = safePath(asked, WORKSPACE);
  const isPrivate = [asked, real].some((one) => /^(memory|user)\.md$/i.test(path.basename(one)));
  const files = PRIVATE_FILES.filter((one) => fs.existsSync(one)); // they may be links themselves
  if (isPrivate || files.some((one) => fs.realpathSync.native(one) === real))
    throw new Error(`${asked} is the owner's`);
}

const complained = new Set<string>();

/** What `read` gives; if it throws, that is said once, and `otherwise` is given. */
function readOrSay<T>(file: string, otherwise: T, read: (file: string) => T): T {
  try {
    return fs.existsSync(file) ? read(file) : otherwise;
  } catch (error) {
    if (!complained.has(`${file} ${error}`)) warn(`${file} is left out: ${error}`);
    complained.add(`${file} ${error}`);
    return otherwise;
  }
}

const FILE_LIMIT = 20_000; // characters of one file in the prompt
const ALL_LIMIT = 60_000; // and of all together

/**
 * An agent's files, by name: its own where it has them, else the common ones. Long ones lose their
 * middle. `names` in the order in which they get their share of the room that there is.
 */
export function loadBootstrap(agentId: string, names: string[], root = WORKSPACE) {
  let left = ALL_LIMIT;
  const files = new Map<string, string>();
  for (const name of names) {
    const places = [path.join(root, "agents", agentId, name), path.join(root, name)];
    // Not "the file is there": an empty one of its own would leave the agent without any.
    const [found = ""] = places.flatMap((file) => readOrSay(file, "", readText).trim() || []);
    const kept = left > 0 ? keepEnds(found, Math.min(left, FILE_LIMIT)) : "";
    files.set(name, kept);
    left -= kept.length;
  }
  return files;
}

/** `file` is relative to the workspace: the model reads the rest there, when it needs it. */
export type Skill = { name: string; description: string; file: string };

/** The skills in some folders. Of two with one name, the one in the earlier folder counts. */
export class SkillsManager {
  #folders: string[];

  constructor(folders: string[]) {
    this.#folders = folders;
  }

  list(): Skill[] {
    const skills = new Map<string, Skill>();
    for (const folder of this.#folders) {
      for (const name of readOrSay(folder, [], (it) => fs.readdirSync(it)).sort()) {
        const skill = readOrSay(path.join(folder, name, "SKILL.md"), undefined, readSkill);
        if (skill && !skills.has(skill.name)) skills.set(skill.name, skill);
      }
    }
    return [...skills.values()];
  }
}

// Also without control characters: what a stranger wrote may come to be shown on our terminal.
const oneLine = (words: unknown) => `${words}`.replace(/[\s\p{Cc}]+/gu, " ").trim();
const SKILL = objectSchema({ name: string("…"), description: string("…") });

/** Throws if it is no skill: then the others are loaded all the same. */
function readSkill(file: string): Skill {
  const [, front = "{}"] = /^\uFEFF?---\r?\n([\s\S]{0,20000}?)\r?\n---/.exec(readText(file)) ?? [];
  // In YAML a thing can be named once and used often. A few lines of that can fill all memory.
  const fields: unknown = parseYaml(front, { maxAliasCount: 20, logLevel: "error" });
  const { name, description } = checkInput(SKILL, fields);
  if (!oneLine(name)) throw new Error("name is empty");
  const short = path.relative(WORKSPACE, file).split(path.sep).join("/");
  return { name: oneLine(name), description: oneLine(description), file: short };
}

type Parts = { agent: Agent; message?: InboundMessage; files: Map<string, string> };

const fromFiles =
  (...names: string[]) =>
  ({ files }: Parts) =>
    names.flatMap((name) => files.get(name) || []).join("\n\n");

/** The layers of the prompt, in order. */
export const PROMPT_LAYERS: { name: string; text(parts: Parts): string }[] = [
  { name: "identity", text: ({ agent, files }) => files.get("IDENTITY.md") || agent.system },
  { name: "soul", text: fromFiles("SOUL.md") },
  { name: "tools", text: fromFiles("TOOLS.md") },
  { name: "skills", text: skillsText },
  { name: "memory", text: fromFiles(...PRIVATE) },
  { name: "bootstrap", text: fromFiles("AGENTS.md", "BOOTSTRAP.md") },
  { name: "runtime", text: ({ agent }) => `# Runtime\n\nYour id: ${agent.id}` },
  { name: "channel", text: channelText },
];

const MINIMAL = ["identity", "tools", "runtime", "channel"]; // for a job without a person

function channelText({ message }: Parts): string {
  return `# Channel\n\n${message?.channel ?? "cli"}, ${message?.isGroup ? "a group" : "one person"}`;
}

function skillsText({ agent }: Parts): string {
  const folders = [`agents/${agent.id}/skills`, "skills"].map((one) => path.join(WORKSPACE, one));
  const skills = new SkillsManager(folders).list();
  const lines = skills.map((skill) => `- ${skill.name}: ${skill.description} (${skill.file})`);
  const all = ["# Skills\n\nRead the file before you use one.\n", ...lines].join("\n");
  return lines.length > 0 ? keepEnds(all, FILE_LIMIT) : "";
}

/** Each layer with its text. Nothing in it changes from turn to turn: no time, no counters. */
export function promptLayers(options: TurnOptions) {
  const { agent = AGENTS[0] as Agent, message, mode = "full" } = options; // there is at least one
  const names = ["IDENTITY.md", "SOUL.md", "TOOLS.md", "AGENTS.md", "BOOTSTRAP.md"];
  const files = loadBootstrap(agent.id, isOwner(options) ? [...names, ...PRIVATE] : names);
  if (mode === "none") return [{ name: "identity", text: agent.system }];
  const layers = PROMPT_LAYERS.filter(({ name }) => mode === "full" || MINIMAL.includes(name));
  return layers.map(({ name, text }) => ({ name, text: text({ agent, message, files }) }));
}

const CACHE_BREAKPOINT = { cache_control: { type: "ephemeral" as const } }; // "keep all up to here"

/** The system prompt, with a mark for the cache at its end. */
export function buildSystemPrompt(options: TurnOptions): Anthropic.TextBlockParam[] {
  const texts = promptLayers(options).flatMap(({ text }) => text || []);
  // Where a long file was cut, half a character may be left.
  return [{ type: "text", text: texts.join("\n\n").toWellFormed(), ...CACHE_BREAKPOINT }];
}

/** Puts the other mark on the last block: the next request begins with all of this one. */
function withCacheBreakpoint(request: Entry[]): Entry[] {
  const last = request.at(-1);
  const block = last?.content.at(-1);
  if (!last || !block) return request;
  const marked = { ...block, ...CACHE_BREAKPOINT } as Anthropic.ContentBlockParam; // the same, and the mark
  return [...request.slice(0, -1), { ...last, content: [...last.content.slice(0, -1), marked] }];
}

/** Something to be found. Without `at` (ms) it never ages; without a key it is the owner's. */
export type Memory = { text: string; source: string; at?: number; sessionKey?: string };
/** `terms`: word → how often. `vector`: bucket → weight. */
type Indexed = Memory & { terms: Map<string, number>; size: number; vector: Map<number, number> };
export type Hit = Memory & { score: number }; // 0 to 1

const SEGMENTS = new Intl.Segmenter("und", { granularity: "word" });
const WIDE = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/u;
// In a small store these are rare, and would count for as much as a name.
const FILLERS =
  /^(an?|and|are|at|did|do|does|for|how|i|in|is|it|my|of|on|the|to|wh(at|en|ere|o|y))$/;
// Only so much of a text: the words of a megabyte, which anyone may send, would fill all memory.
const folded = (content: string) => content.slice(0, 4_000).normalize("NFKC").toLowerCase();

/** The words of a text. Chinese and Japanese have no spaces: there a dictionary finds them. */
function termsOf(content: string): string[] {
  return [...SEGMENTS.segment(folded(content))].flatMap(({ segment }) => {
    if (!/[\p{L}\p{N}]/u.test(segment) || FILLERS.test(segment)) return [];
    // "teas" is "tea". More of grammar than that is left to the letters below.
    return WIDE.test(segment) ? segment : segment.replace(/(?<=\p{L}{3})s$/u, "");
  });
}

/**
 * A text as a vector of length 1: its runs of three letters (two, in Chinese and Japanese), hashed
 * into buckets. It finds "allergies" by "allergic", and knows nothing of meanings. A real
 * embedding, made by a model, goes here and nowhere else.
 */
function embed(content: string): Map<number, number> {
  const vector = new Map<number, number>();
  for (const run of folded(content).match(/[\p{L}\p{N}]+/gu) ?? []) {
    const [size, word] = WIDE.test(run) ? [2, run] : [3, ` ${run} `];
    for (let start = 0; start === 0 || start + size <= word.length; start++) {
      let hash = 0x811c9dc5; // FNV-1a: the same number in every process
      for (const unit of word.slice(start, start + size))
        hash = Math.imul(hash ^ (unit.codePointAt(0) ?? 0), 0x01000193);
      vector.set(hash >>> 19, (vector.get(hash >>> 19) ?? 0) + 1);
    }
  }
  const length = Math.hypot(...vector.values()) || 1;
  return new Map([...vector].map(([bucket, weight]) => [bucket, weight / length]));
}

const WEIGHTS = { words: 0.6, shape: 0.4 };
const [K1, B] = [1.2, 0.75]; // BM25: how soon a repeated word is enough, how much length counts
const HALF_LIFE = 30 * 24 * 3600 * 1000; // ms
const MIN_RECENCY = 0.8; // what is left of the score of an entry, however old it is

/**
 * What was noted from day to day, and the owner's MEMORY.md and USER.md. Each word and each bucket
 * leads to the entries that have it: a search looks at those, and at no file.
 */
export class MemoryStore {
  #dir: string;
  #files: string[];
  #now: () => number;
  #entries = new Set<Indexed>();
  #having = new Map<string | number, Set<Indexed>>();
  #words = 0; // in all entries
  #read = new Map<string, { changed: number; entries: Indexed[] }>();
  #logs = new Map<string, JsonlFile>();

  /** `dir`: of the daily logs. `files`: what the owner writes; those that change are read again. */
  constructor(dir: string, files: string[], now = Date.now) {
    this.#dir = dir;
    this.#files = files;
    this.#now = now;
    fs.mkdirSync(dir, { recursive: true });
    for (const name of fs.readdirSync(dir).filter((one) => one.endsWith(".jsonl"))) {
      const log = new JsonlFile(path.join(dir, name));
      this.#logs.set(name, log);
      for (const { record } of log.read()) this.#load({ ...record }, name);
    }
  }

  /** Only what is whole: a line written by hand may lack anything. */
  #load({ content, sessionKey, at, category }: Fields, name: string): void {
    if (typeof content !== "string" || typeof sessionKey !== "string") return;
    const source = `${name} ${category}`;
    this.#add({ text: content, source, at: Date.parse(String(at)) || 0, sessionKey });
  }

  /** Notes something for one conversation. On disk when it returns. */
  write(content: string, category: string, sessionKey: string): void {
    const at = new Date(this.#now()).toISOString();
    const name = `${at.slice(0, 10)}.jsonl`;
    const log = this.#logs.get(name) ?? new JsonlFile(path.join(this.#dir, name));
    this.#logs.set(name, log);
    log.append({ at, content, category, sessionKey });
    this.#load({ at, content, category, sessionKey }, name);
  }

  #add(memory: Memory): Indexed {
    const list = termsOf(memory.text);
    const terms = new Map<string, number>();
    for (const term of list) terms.set(term, (terms.get(term) ?? 0) + 1);
    const entry = { ...memory, terms, size: list.length, vector: embed(memory.text) };
    for (const key of [...terms.keys(), ...entry.vector.keys()])
      this.#having.set(key, (this.#having.get(key) ?? new Set()).add(entry));
    this.#entries.add(entry);
    this.#words += entry.size;
    return entry;
  }

  #remove(entry: Indexed): void {
    for (const key of [...entry.terms.keys(), ...entry.vector.keys()])
      this.#having.get(key)?.delete(entry);
    this.#entries.delete(entry);
    this.#words -= entry.size;
  }

  /** Takes in those of the owner's files that have changed, a line a fact. */
  #refresh(): void {
    for (const file of this.#files) {
      const changed = fs.statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
      const before = this.#read.get(file) ?? { changed: 0, entries: [] };
      if (before.changed === changed) continue;
      for (const entry of before.entries) this.#remove(entry);
      const lines = `\n${readOrSay(file, "", readText)}`.split(/\r?\n[-*\s]*/);
      // No headings or comments, and no "Name:" that nobody has filled in.
      const facts = lines.filter((line) => /^[^#<].*[^\s:]\s*$/.test(line));
      const entries = facts.map((text) => this.#add({ text, source: path.basename(file) }));
      this.#read.set(file, { changed, entries });
    }
  }

  /** The best of one conversation's entries; and of the owner's files, if the owner asks. */
  search(query: string, { sessionKey = "", owner = false, topK = 5, weights = WEIGHTS } = {}) {
    this.#refresh();
    const scores = new Map<Indexed, number>();
    // Whose an entry is, is looked at before it is counted: nothing of others can get this far. Of
    // theirs only how rare a word is comes in.
    const count = (entry: Indexed, points: number) => {
      const isTheirs = entry.sessionKey === undefined ? owner : entry.sessionKey === sessionKey;
      if (isTheirs) scores.set(entry, (scores.get(entry) ?? 0) + points);
    };
    const terms = new Map(termsOf(query).map((term) => [term, this.#rarity(term)]));
    // What an entry would score that has nothing but these words, again and again.
    const most = [...terms.values()].reduce((sum, rarity) => sum + rarity, 0) * (K1 + 1);
    for (const [term, rarity] of terms) {
      for (const entry of this.#having.get(term) ?? []) {
        const often = entry.terms.get(term) ?? 0;
        const long = 1 - B + (B * entry.size * this.#entries.size) / this.#words;
        count(entry, (weights.words * rarity * often * (K1 + 1)) / (often + K1 * long) / most);
      }
    }
    for (const [bucket, weight] of embed(query)) {
      for (const entry of this.#having.get(bucket) ?? [])
        count(entry, weights.shape * weight * (entry.vector.get(bucket) ?? 0));
    }
    const hits = [...scores].map(([it, points]) => ({ it, score: points * this.#youth(it) }));
    return diversify(hits, topK);
  }

  /** BM25: a word that few entries have says more than one that all have. */
  #rarity(term: string): number {
    const having = this.#having.get(term)?.size ?? 0;
    return Math.log(1 + (this.#entries.size - having + 0.5) / (having + 0.5));
  }

  /** Of two that fit as well, the younger one. But a name told two months ago is still a name. */
  #youth({ at = this.#now() }: Memory): number {
    return MIN_RECENCY + (1 - MIN_RECENCY) * 0.5 ** (Math.max(0, this.#now() - at) / HALF_LIFE);
  }
}

const DUPLICATE = 0.8; // of its words are another's: then it is nearly the same entry

/** Maximal marginal relevance, bluntly: the best, but none that nearly repeats a better one. */
function diversify(hits: { it: Indexed; score: number }[], topK: number): Hit[] {
  const taken: typeof hits = [];
  for (const hit of hits.sort((a, b) => b.score - a.score)) {
    if (taken.length >= Math.min(topK, 50)) break; // each is compared with all that are taken
    if (taken.every(({ it }) => jaccard(it, hit.it) < DUPLICATE)) taken.push(hit);
  }
  return taken.map(({ it: { terms, size, vector, ...memory }, score }) => ({ ...memory, score }));
}

function jaccard(a: Indexed, b: Indexed): number {
  const shared = [...a.terms.keys()].filter((term) => b.terms.has(term)).length;
  return shared / (a.terms.size + b.terms.size - shared || 1);
}

const MIN_SCORE = 0.17; // below it a score says more about our hash than about the question

/**
 * What goes before the person's words and is stored with them: the time, and what we remember. In
 * the system prompt it would change the beginning of every request, and nothing would be cached.
 */
function contextFor(conversation: Conversation, input: string, options: TurnOptions): string {
  // What a heartbeat asks is the same each time, and not a person's question.
  const topK = options.message?.channel === "heartbeat" ? 0 : 3;
  const about = { ...memoryScope(conversation, options), topK };
  const hits = options.app?.memory.search(input, about) ?? [];
  const found = hits.flatMap((hit) => (hit.score < MIN_SCORE ? [] : keepEnds(hit.text, 1_000)));
  if (found.length > 0) info(`  (remembered: ${oneLine(found.join(" · "))})`);
  const lines = [`It is ${new Date()}.`, ...found.map((one) => `You remember: ${one}`)];
  return `<context>\n${lines.join("\n").toWellFormed()}\n</context>`;
}

const memoryScope = (conversation: Conversation, options: TurnOptions) => ({
  sessionKey: conversation instanceof Session ? conversation.header.key : "",
  owner: isOwner(options),
});

const formatHits = (hits: Hit[]) =>
  hits.map((hit) => `${hit.score.toFixed(2)}  ${hit.source}  ${oneLine(hit.text.slice(0, 80))}`);

const COUNT = { type: "integer", description: "How many at most; 5 if left out." };
const FACT = { content: string("One full sentence."), category: string("One word.") };
TOOLS.push(
  tool("memory_write", "Remember a fact for later conversations.", FACT),
  tool("memory_search", "Search what you remember.", { query: string("…"), topK: COUNT }, ["topK"]),
);

Object.assign(HANDLERS, {
  memory_write: ({ content, category }, { app, conversation, ...options }) => {
    app?.memory.write(
      String(content),
      String(category),
      memoryScope(conversation, options).sessionKey,
    );
    return "remembered";
  },
  memory_search: ({ query, topK = 5 }, { app, conversation, ...options }) => {
    const about = { ...memoryScope(conversation, options), topK: Number(topK) };
    return formatHits(app?.memory.search(String(query), about) ?? []).join("\n") || "nothing found";
  },
} satisfies Record<string, Handler>);

const SEARCH = { query: string("…"), topK: COUNT, sessionKey: string("whose memory") };
method("memory.search", SEARCH, ["topK", "sessionKey"], (params, app) => {
  const { query, topK = 5, sessionKey = "" } = params;
  return app.memory.search(String(query), { topK: Number(topK), sessionKey: String(sessionKey) });
});

const layersOf = (app: App) => promptLayers({ agent: app.agents.get(app.terminalAgent ?? "luna") });
const layerOf = (app: App, it: string) => layersOf(app).find((l) => l.name === it)?.text || "-";

command("soul", "how it talks", (_args, app) => layerOf(app, "soul"));
command("skills", "what it has learned to do", (_args, app) => layerOf(app, "skills"));
command("memory", "what it always knows of you", (_args, app) => layerOf(app, "memory"));
command("bootstrap", "how it works", (_args, app) => layerOf(app, "bootstrap"));
command("search", "<words>: what it remembers, the best first", (query, { memory, key }) =>
  formatHits(memory.search(query, { sessionKey: key, owner: true })),
);
command("prompt", "the layers of its prompt, in characters", (_args, app) =>
  layersOf(app).map((it, i) => `${i + 1} ${it.name.padEnd(10)} ${it.text.length}`),
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
    about = { ...message, id: `${message.id}!` }; // no answer, and not to be taken for one
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

// Until here a reply that could not be sent was lost. Now it is written down first, and crossed off
// when the platform has taken it. A crash between the two sends it again: "at least once". Nobody
// has "exactly once" without the platform's help; but we can know that it may be so, and say it.

/** A part of a reply, on its way. Times in ms. */
export interface Delivery {
  id: string; // of the message that it answers, "#", and the number of the part
  channel: string;
  to: string;
  text: string;
  enqueuedAt: number;
  nextAttemptAt: number; // not before
  failures: number;
  unfinished: number; // sends that began and did not come to an end
  error?: string; // it failed for good
}

export interface App {
  queue: DeliveryQueue;
  delivery: DeliveryRunner;
}

const DIGITS = { type: "integer" };
const PLACE = { id: WORDS, channel: WORDS, to: WORDS, text: WORDS };
const DELIVERY = objectSchema({
  ...PLACE,
  enqueuedAt: DIGITS,
  nextAttemptAt: DIGITS,
  failures: DIGITS,
  unfinished: DIGITS,
});

// Order counts for each recipient: nobody sees whether somebody else's reply came first. And the
// parts of one reply belong together. Their ids say which: they are that of the message answered.
const recipientOf = ({ channel, to }: Delivery) => `${channel} ${to}`;
const replyOf = ({ id }: Delivery) => id.replace(/#\d+$/, "");

/** The delivery in a file. One that makes no sense is set aside, and the others go on. */
function readDelivery(file: string): Delivery[] {
  try {
    return [
      checkInput(DELIVERY, parseObject(fs.readFileSync(file, "utf8"))) as unknown as Delivery,
    ];
  } catch (error) {
    fs.renameSync(file, `${file}.quarantined`);
    warn(`${file} is quarantined: ${error}`);
    return [];
  }
}

/** The files in a folder that are ours and whole: "….json.tmp" may be half of one. */
const numbered = (folder: string) =>
  fs
    .readdirSync(folder)
    .filter((name) => /^\d+\.json$/.test(name))
    .sort();

/**
 * What is to be sent, by recipient, the oldest first; and a file for each. Of what was sent the ids
 * are kept: by them a reply that is made a second time, after a crash, is known.
 */
export class DeliveryQueue {
  readonly waiting = new Map<string, Delivery[]>();
  readonly files = new Map<string, string>(); // id → file
  #dir: string;
  #failed: string;
  #log: JsonlFile;
  #processed: Set<string>;
  #next: number;

  constructor(dir: string) {
    this.#dir = dir;
    this.#failed = path.join(dir, "failed");
    fs.mkdirSync(this.#failed, { recursive: true });
    this.#log = new JsonlFile(path.join(dir, "processed.jsonl"));
    this.#processed = new Set(this.#log.read().map(({ record }) => (record as Delivery).id)); // ours
    const names = [...numbered(dir), ...numbered(this.#failed)].sort();
    this.#next = Number.parseInt(names.at(-1) ?? "0", 10) + 1;
    for (const file of numbered(dir).map((name) => path.join(dir, name))) {
      for (const delivery of readDelivery(file)) this.#keep(delivery, file);
    }
  }

  #keep(delivery: Delivery, file: string): void {
    // The crash came between its id and its file: it is done. Or somebody has copied a file.
    if (this.#processed.has(delivery.id) || this.files.has(delivery.id))
      return void fs.rmSync(file);
    const line = this.waiting.get(recipientOf(delivery)) ?? [];
    line.push(delivery);
    this.waiting.set(recipientOf(delivery), line);
    this.files.set(delivery.id, file);
  }

  /** On disk when it returns. What was here before, and may have been sent, is not taken again. */
  add(delivery: Delivery): void {
    if (this.#processed.has(delivery.id) || this.files.has(delivery.id)) return;
    const file = path.join(this.#dir, `${String(this.#next++).padStart(12, "0")}.json`);
    replaceFile(file, JSON.stringify(delivery));
    this.#keep(delivery, file);
  }

  save(delivery: Delivery): void {
    replaceFile(this.#fileOf(delivery), JSON.stringify(delivery));
  }

  #fileOf({ id }: Delivery): string {
    return this.files.get(id) ?? "";
  }

  /** It was sent: the first of its recipient. The id first: a file without it is sent again. */
  acknowledge(delivery: Delivery): void {
    this.#log.append({ id: delivery.id });
    this.#processed.add(delivery.id);
    fs.rmSync(this.#fileOf(delivery));
    this.#forget(recipientOf(delivery), [delivery]);
  }

  /** It can't be sent. Without this part the rest of the reply makes no sense: it goes too. */
  deadLetter(delivery: Delivery, why: string): Delivery[] {
    const line = this.waiting.get(recipientOf(delivery)) ?? [];
    const parts = line.filter((one) => replyOf(one) === replyOf(delivery));
    // From the end: after a crash in here the first part is still there, and takes the rest along.
    for (const part of parts.toReversed()) {
      this.save(Object.assign(part, { error: why }));
      const file = this.#fileOf(part);
      fs.renameSync(file, path.join(this.#failed, path.basename(file)));
    }
    this.#forget(recipientOf(delivery), parts);
    return parts;
  }

  #forget(recipient: string, gone: Delivery[]): void {
    const line = this.waiting.get(recipient) ?? [];
    for (const delivery of gone) {
      this.files.delete(delivery.id);
      line.splice(line.indexOf(delivery), 1); // most often the first
    }
    if (line.length === 0) this.waiting.delete(recipient);
  }

  /** What failed for good. */
  deadLetters(): Delivery[] {
    return numbered(this.#failed).flatMap((name) => readDelivery(path.join(this.#failed, name)));
  }

  /** Puts all that failed in line again, as if it were new. Gives how many. */
  retry(now: number): number {
    const names = numbered(this.#failed);
    for (const file of names.map((name) => path.join(this.#failed, name))) {
      const anew = {
        enqueuedAt: now,
        nextAttemptAt: now,
        failures: 0,
        unfinished: 0,
        error: undefined,
      };
      for (const old of readDelivery(file)) this.add({ ...old, ...anew });
      fs.rmSync(file, { force: true });
    }
    return names.length;
  }
}

const BACKOFF = [5, 25, 120, 600]; // s, after the first failure, the second, …; the fifth is the last
const EXPIRES = 24 * 3600 * 1000; // ms: older than that, it would only puzzle people

/** Sends what waits: in order for each recipient, and side by side for different ones. */
export class DeliveryRunner {
  readonly stats = { sent: 0, retried: 0, failed: 0 };
  #queue: DeliveryQueue;
  #channels: ChannelManager;
  #now: () => number;
  #timers = new Map<string, NodeJS.Timeout>();
  #taken = new Set<string>(); // by the platform, and not yet crossed off

  constructor(queue: DeliveryQueue, channels: ChannelManager, now = Date.now) {
    this.#queue = queue;
    this.#channels = channels;
    this.#now = now;
  }

  /** Begins with all that waits. What is for a channel that is not set up now waits on. */
  start(): void {
    for (const [recipient, [first]] of this.#queue.waiting)
      if (first && this.#channels.has(first.channel)) this.wake(recipient);
  }

  /** Goes on with one recipient. However much waits behind the first: it is one timer. */
  wake(recipient: string): void {
    clearTimeout(this.#timers.get(recipient));
    this.#timers.delete(recipient);
    runExclusive(`delivery ${recipient}`, () => this.#work(recipient)).catch((error) => {
      warn(`delivery: ${error}`); // a full disk, say
      this.#wakeLater(recipient, 60_000);
    });
  }

  #wakeLater(recipient: string, ms: number): void {
    clearTimeout(this.#timers.get(recipient));
    this.#timers.set(
      recipient,
      setTimeout(() => this.wake(recipient), ms),
    );
  }

  async #work(recipient: string): Promise<void> {
    // Always the first, and nothing else: if it has to wait for its next try, all behind it wait.
    // A second part that overtakes the first is worse than one that is late.
    for (;;) {
      const [first] = this.#queue.waiting.get(recipient) ?? [];
      if (!first) return;
      const now = this.#now();
      // The clock was put back: it is due. And what gets too old need not wait for its turn.
      const wait =
        first.enqueuedAt > now
          ? 0
          : Math.min(first.nextAttemptAt, first.enqueuedAt + EXPIRES + 1) - now;
      if (wait > 0) return this.#wakeLater(recipient, wait);
      if (!this.#taken.has(first.id) && !(await this.#deliver(first))) continue;
      // If it can't be crossed off, the disk being full, it comes by here again, and is not sent.
      this.#queue.acknowledge(first);
      this.#taken.delete(first.id);
      this.stats.sent++;
    }
  }

  /** Whether the platform has taken it. If not, it waits, or is given up. */
  async #deliver(delivery: Delivery): Promise<boolean> {
    const { id, channel, to, enqueuedAt: at, unfinished: begun } = delivery;
    if (this.#now() - at > EXPIRES) return this.#fail(delivery, "older than 24 hours");
    if (begun > 1) return this.#fail(delivery, "the program ended twice while this was sent");
    if (begun > 0) warn(`${id}: the program ended while this was sent. It may arrive twice.`);
    this.#queue.save({ ...delivery, unfinished: begun + 1 });
    delivery.unfinished++; // not before: if the disk is full, nothing has begun
    try {
      const target = this.#channels.get(channel);
      if (!target || isSimulated("delivery"))
        throw sendError(target ? "simulated" : "no channel", false);
      await target.send(to, delivery.text);
      this.#taken.add(id);
      return true;
    } catch (error) {
      const known = error instanceof SendError ? error : sendError(`${error}`, false);
      return this.#postpone(delivery, known);
    }
  }

  #postpone(delivery: Delivery, { message, permanent, retryAfter = 0 }: SendError): false {
    const wait = BACKOFF[delivery.failures++];
    if (permanent || !wait) return this.#fail(delivery, message);
    // Not all at once, when a platform is back: each waits up to a quarter longer.
    const seconds = Math.ceil(Math.max(wait * (1 + Math.random() / 4), retryAfter));
    delivery.unfinished = 0;
    delivery.nextAttemptAt = this.#now() + seconds * 1000;
    this.#queue.save(delivery);
    this.stats.retried++;
    warn(`${delivery.id}: not sent: ${message}. Again in ${seconds} s.`);
    return false;
  }

  #fail(delivery: Delivery, why: string): false {
    const parts = this.#queue.deadLetter(delivery, why);
    this.stats.failed += parts.length;
    warn(
      `${delivery.id}: not sent for good, ${parts.length} in failed/: ${why}. /retry sends them again.`,
    );
    return false;
  }
}

/** Resolves when nobody is left in any line. A turn that ends puts its reply in one: look again. */
async function drained(): Promise<void> {
  while (tails.size > 0) await Promise.allSettled(tails.values());
}

const FENCE = /^ {0,3}(`{3,8}(?!.*`)|~{3,8})/; // "```code``` and so on" is none
const MIN_FENCED = 60; // in less room than that, code blocks are cut like everything else
const ENDS = [/\n\s*\n/g, /\n/g, /[.!?](?=\s)|[。！？…]/g, /\s/g]; // where to cut, the best first
const GRAPHEMES = new Intl.Segmenter("und", { granularity: "grapheme" });

/**
 * Cuts a text into pieces of at most `limit` UTF-16 units: between paragraphs, else lines, else
 * sentences, else words, and never within what people see as one character. A code block that is
 * cut is closed, and opened again in the next piece.
 */
export function chunkMessage(words: string, limit: number): string[] {
  const chunks: string[] = [];
  const spare = limit < MIN_FENCED ? 0 : 9; // to close a code block
  let open = ""; // the line that opened the code block that we are in
  let isCut = false; // the last piece ended in the middle of a line
  for (let rest = words; rest.trim(); ) {
    const head = open && `${open}\n`;
    const fits = head.length + rest.length <= limit;
    const piece = rest.slice(0, fits ? rest.length : cutAt(rest, limit - head.length - spare));
    rest = rest.slice(piece.length);
    // What was cut off does not stand at the beginning of its line: it opens no code block.
    for (const line of `${isCut ? "." : ""}${piece}`.split("\n"))
      open = fenceAfter(open, line, limit);
    isCut = !piece.endsWith("\n");
    const close = open && rest ? `\n${FENCE.exec(open)?.[1]}` : "";
    if (head || piece.trim()) chunks.push(`${head}${piece.trimEnd()}${close}`);
    // Between two pieces nobody needs an empty line; but code keeps its own.
    if (!open) rest = rest.replace(isCut ? /^\s*\n|^ / : /^\s*\n/, "");
  }
  return chunks;
}

/** The fence that is open after a line. */
function fenceAfter(open: string, line: string, limit: number): string {
  const marks = FENCE.exec(line)?.[1];
  if (!marks || limit < MIN_FENCED) return open;
  if (!open) return line.length < 30 ? line : marks; // a long one would leave no room
  return line.trim() === marks && marks.startsWith(FENCE.exec(open)?.[1] ?? "") ? "" : open;
}

/**
 * How much of a text to take: `room` at most, but at least one character. A better place to cut is
 * of no use near the beginning: one line in a message, and the rest in the next.
 */
function cutAt(words: string, room: number): number {
  const head = words.slice(0, room);
  for (const end of ENDS) {
    const last = [...head.matchAll(end)].at(-1);
    const size = last ? last.index + last[0].length : 0;
    if (size > room / 3) return size; // else the piece would be too small
  }
  const size = GRAPHEMES.segment(words.slice(0, room + 50)).containing(room)?.index || room;
  // A family of emoji may be longer than a very short limit. Then at least no half of one.
  return /[\ud800-\udbff]$/.test(words.slice(0, size)) ? size - 1 || 2 : size;
}

/** Failures that somebody asked for: how many are left of each kind. */
const simulated = new Map([["delivery", 0]]);

function isSimulated(kind: string): boolean {
  const left = simulated.get(kind) ?? 0;
  if (left > 0) simulated.set(kind, left - 1);
  return left > 0;
}

method("delivery.status", {}, [], (_params, { queue, delivery }) => ({
  ...delivery.stats,
  waiting: queue.files.size,
  recipients: queue.waiting.size,
  inFailed: queue.deadLetters().length,
}));

const formatDelivery = ({
  id,
  to,
  failures: tries,
  nextAttemptAt: next,
  text,
  error: why,
}: Delivery) =>
  `${id}  ${to}  ${tries}  ${why ?? formatTime(next)}  ${JSON.stringify(text.slice(0, 40))}`;

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
  const stats = { ...delivery.stats, waiting: queue.files.size };
  return Object.entries(stats).map(([name, count]) => `${name.padEnd(8)} ${count}`);
});

command("simulate-failure", "<kind> [times]: the next ones fail", (args) => {
  const [kind = "", times = "1"] = args.split(/\s+/);
  if (!simulated.has(kind)) throw new Error(`kind: one of ${[...simulated.keys()].join(", ")}`);
  if (!/^\d{1,3}$/.test(times)) throw new Error("times: a number from 0 to 999");
  simulated.set(kind, Number(times));
  return t(`The next ${simulated.get(kind)} of ${kind} will fail.`);
});

// ---- s09 · Resilience ----

// Until here the SDK tried again by itself, twice, whatever the key, and we never saw it. Now it
// does not: one attempt of ours is one request, and what to do after a failure is settled here, in
// one place. Each new attempt goes on from what is stored, so no tool runs a second time.

/** Why an attempt failed. "invalid": the request itself is wrong, and will be with any key. */
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

/** By the API's type and by status. What is not in here is "unknown": a 500, say. */
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

/** By the API's own type, else by the status: an error inside a stream has none. Never by words. */
export function classifyFailure(error: unknown): Reason {
  if (isOverflow(error)) return "overflow";
  // Both are also API errors, without type and status. An abort is our own watch's, see below.
  const { APIConnectionError, APIUserAbortError, APIError, AnthropicError } = Anthropic;
  if (error instanceof APIConnectionError || error instanceof APIUserAbortError) return "timeout";
  if (error instanceof APIError)
    return REASONS.get(error.type) ?? REASONS.get(error.status) ?? "unknown";
  return error instanceof AnthropicError ? "timeout" : "unknown"; // a stream that ended too early
}

// A limit passes in seconds. A bill that is not paid, or a key that was revoked, is for somebody to
// mend; but nobody will tell us when it is done, so even these are tried again, ever more seldom.

/** Seconds of rest after the first failure in a row, doubling, and at most. The others get none. */
const COOLDOWNS: Partial<Record<Reason, [first: number, cap: number]>> = {
  rate_limit: [5, 300],
  overloaded: [2, 60],
  timeout: [1, 60],
  unknown: [1, 60],
  model: [600, 3600],
  auth: [600, 3600],
  billing: [600, 86_400],
};

/** A key, under the name of its setting. */
export type AuthProfile = { name: string; key: string };
/** Times in ms. `count`: failures in a row. */
type Cooldown = { reason: Reason; since: number; until: number; count: number };

/** The keys and how they are. What must rest is in a file: a restart is no reason to try again. */
export class ProfileManager {
  readonly profiles: AuthProfile[];
  readonly cooldowns: Map<string, Cooldown>;
  #file: string;
  #now: () => number;
  #current = 0; // we stay with a key as long as it works: what it has cached is cheap

  constructor(profiles: AuthProfile[], file: string, now = Date.now) {
    this.profiles = profiles;
    this.#file = file;
    this.#now = now;
    // A file edited by hand may hold anything. No rest is longer than a day.
    const isSound = ([, one]: [string, Cooldown]) =>
      one?.count > 0 && one.until - one.since <= 86_400_000;
    this.cooldowns = new Map(Object.entries(readState(file)).filter(isSound));
  }

  /** When a key or a model can be used again, in ms; 0 if it can be now. */
  readyAt(id: string): number {
    const { since = 0, until = 0 } = this.cooldowns.get(id) ?? {};
    const now = this.#now();
    return since <= now && until > now ? until : 0; // since > now: the clock was put back
  }

  /** The first that can be used: all keys for a model, then the next model. `at`: when. */
  choose(models: string[]) {
    const { profiles } = this;
    const order = [...profiles.slice(this.#current), ...profiles.slice(0, this.#current)];
    const choices = models.flatMap((model) =>
      order.map((profile) => {
        const at = Math.max(this.readyAt(model), this.readyAt(cooldownId(profile)));
        return { model, profile, at };
      }),
    );
    // The sort is stable: of those that are ready, the better model and our own key stay first.
    const [best] = choices.sort((a, b) => a.at - b.at);
    if (!best) throw new Error("there is no key");
    this.#current = profiles.indexOf(best.profile);
    return best;
  }

  /** Puts a key or a model to rest. One that rests already is not put to rest for longer. */
  fail(id: string, reason: Reason, retryAfter = 0): void {
    const now = this.#now();
    const [first, cap] = COOLDOWNS[reason] ?? [0, 0];
    if (this.readyAt(id)) return; // another turn was quicker
    const before = this.cooldowns.get(id);
    const count = before?.reason === reason ? before.count + 1 : 1;
    const seconds = Math.max(Math.min(first * 2 ** (count - 1), cap), retryAfter);
    this.cooldowns.set(id, { reason, since: now, until: now + seconds * 1000, count });
    this.#save();
  }

  /** It works: what was is forgotten. If it rests by now, another turn knows better, and later. */
  succeed(ids: string[]): void {
    const gone = ids.filter((id) => !this.readyAt(id) && this.cooldowns.delete(id));
    if (gone.length > 0) this.#save();
  }

  clear(): void {
    this.cooldowns.clear();
    this.#save();
  }

  #save(): void {
    replaceFile(this.#file, JSON.stringify(Object.fromEntries(this.cooldowns)));
  }
}

/** Another key under the same name is another one, and fresh. The key itself is in no file. */
const cooldownId = ({ name, key }: AuthProfile) =>
  `${name} ${sha256(key).digest("hex").slice(0, 8)}`;

// ms that a turn may spend in all on waiting and on what failed. With two keys one of them is
// always ready again when the other has been silent for a minute: without an end to this, a turn
// would have none.
const RETRY_BUDGET = 120_000;

export interface TurnOptions {
  client?: Anthropic;
  model?: string;
}

export interface App {
  profiles: ProfileManager;
  resilience: ResilienceRunner;
}

/** Layer 1 of the onion: tries keys and models until one works, or nothing helps. */
export class ResilienceRunner {
  readonly fallbacks: string[]; // models, the best first
  #profiles: ProfileManager;
  #now: () => number;

  constructor(profiles: ProfileManager, fallbacks: string[], now = Date.now) {
    this.#profiles = profiles;
    this.fallbacks = fallbacks;
    this.#now = now;
  }

  /** Runs `inner` with a key and a model, again and again. Throws what can't be mended here. */
  async run(options: TurnOptions, inner: (options: TurnOptions) => Promise<void>): Promise<void> {
    let patience = RETRY_BUDGET;
    const models = [options.agent?.model ?? MODEL, ...this.fallbacks];
    for (let failed: unknown; ; ) {
      const { profile, model, at } = this.#profiles.choose(models);
      const wait = Math.max(0, at - this.#now());
      if (wait > patience) throw failed ?? new Error(`nothing is ready before ${formatTime(at)}`);
      if (wait > 0) info(`  (waiting ${Math.ceil(wait / 1000)} s)`);
      // Ctrl+C ends this, and then callModel, too.
      if (wait > 0) await sleep(wait, undefined, { signal: options.signal }).catch(() => {});
      const began = this.#now();
      const client = new Anthropic({ apiKey: profile.key });
      try {
        await inner({ ...options, client, model });
        // After Ctrl+C nobody knows whether it would have worked.
        if (!options.signal?.aborted) this.#profiles.succeed([cooldownId(profile), model]);
        return;
      } catch (error) {
        const reason = classifyFailure(error);
        // Also what is not the API's, like a full disk: another key would not help.
        if (!(error instanceof Anthropic.AnthropicError) || !COOLDOWNS[reason]) throw error;
        failed = error;
        patience -= wait + Math.min(this.#now() - began, IDLE_TIMEOUT); // tools may have run for long
        info(`  (${reason}: ${profile.name}, ${model})`);
        // Too much to do at their end is nobody's key: it is the model that rests.
        const id = ["overloaded", "model"].includes(reason) ? model : cooldownId(profile);
        this.#profiles.fail(id, reason, retryAfterOf(error));
      }
    }
  }
}

// The outermost layer: what is too long for one model is shortened further in, before another key
// is tried. `app` is missing only in tests that run a turn without a program round it.
MIDDLEWARE.unshift((_conversation, options, next) =>
  options.app ? options.app.resilience.run(options, next) : next(options),
);

/** What the API asks us to wait, in seconds. */
function retryAfterOf(error: unknown): number {
  return error instanceof Anthropic.APIError ? Number(error.headers?.get("retry-after")) || 0 : 0;
}

const IDLE_TIMEOUT = 60_000; // ms without a byte: a stream that is stuck never ends by itself

/**
 * A fetch that tells of every piece that arrives. The SDK has events for that, but none for a ping,
 * and pings may be all there is while the model writes a long file.
 */
function withIdleTimeout(tell: () => void): typeof fetch {
  return async (...request) => {
    const response = await fetch(...request);
    const ear = new TransformStream<Uint8Array, Uint8Array>({
      transform(piece, to) {
        tell();
        to.enqueue(piece);
      },
    });
    return new Response(response.body?.pipeThrough(ear), response);
  };
}

const ERRORS: Record<string, [status: number, type: string, message: string]> = {
  rate_limit: [429, "rate_limit_error", "simulated"],
  overloaded: [529, "overloaded_error", "simulated"],
  auth: [401, "authentication_error", "simulated"],
  billing: [402, "billing_error", "simulated"],
  timeout: [504, "timeout_error", "simulated"],
  overflow: [400, "invalid_request_error", "prompt is too long: simulated"],
  unknown: [500, "api_error", "simulated"],
};
for (const kind of Object.keys(ERRORS)) simulated.set(kind, 0);

/**
 * Throws what was asked for by /simulate-failure. It is the SDK's own error, made by the SDK, so
 * whatever tells failures apart is tried, and not a word that only we would know.
 */
function throwSimulated(): void {
  for (const [kind, [status, type, message]] of Object.entries(ERRORS)) {
    const body = { type: "error", error: { type, message } };
    if (isSimulated(kind))
      throw Anthropic.APIError.generate(status, body, undefined, new Headers());
  }
}

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

command("cooldowns", "[clear]: what rests, and why", (args, { profiles }) => {
  if (args === "clear") profiles.clear();
  const resting = [...profiles.cooldowns].filter(([id]) => profiles.readyAt(id));
  return resting.map(([id, { reason, until }]) => `${id}  ${reason}  ${formatTime(until)}`);
});

command("fallback", "the models that are tried, in order", (_args, { resilience }) => [
  MODEL,
  ...resilience.fallbacks,
]);

/** All keys of the settings: ANTHROPIC_API_KEY, and ANTHROPIC_API_KEY_2 to _9. */
function profilesFrom(setting: Setting): AuthProfile[] {
  const names = ["", 2, 3, 4, 5, 6, 7, 8, 9].map((n) => `ANTHROPIC_API_KEY${n && `_${n}`}`);
  const profiles = names.map((name) => ({ name, key: setting(name) })).filter(({ key }) => key);
  // What was pasted with an "…" in it could not even be sent.
  const odd = profiles.find(({ key }) => !/^[\x21-\x7e]+$/.test(key));
  if (odd) throw new Error(`${odd.name} has a character that is in no key: copy it again`);
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
  const profiles = new ProfileManager(profilesFrom(env), path.join(STATE, "profiles.json"));
  const fallbackModels = env("FALLBACK_MODELS").match(/[^\s,]+/g) ?? [];
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
    inbox: new Inbox(path.join(STATE, "inbox")),
    channels,
    agents: new AgentManager(AGENTS.map((agent) => [agent.id, agent])),
    bindings: new BindingTable(BINDINGS),
    gateway: new GatewayServer(gatewayToken()),
    memory: new MemoryStore(path.join(STATE, "memory"), PRIVATE_FILES),
    cron: new CronService(WORKSPACE, (job, due) => enqueueJob(app, job, due)),
    heartbeat: new HeartbeatRunner(path.join(STATE, "heartbeat.json")),
    queue,
    delivery: new DeliveryRunner(queue, channels),
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
