// Tools
//
// A tool is a function that we run when the model asks for it. We send the model a list of schemas
// that describe the tools; a table maps each name to the handler that does the work.
//
//   callModel ──► reply ── stop_reason "tool_use"? ──no──► done
//      ▲                          │ yes
//      │                          ▼
//      └── append results ◄── runTool ◄── HANDLERS[name](input)
//
// New here: bash, read_file, write_file, edit_file; the checks that keep the file tools inside the
// workspace; and the rule that every tool call gets exactly one result, whatever happened to it.
// Run it:   npm start -- s02                         offline, with a practice model
//           npx tsx sessions/en/s02_tool_use.ts      with your key in .env
// Left out on purpose: asking the person before a command runs, a sandbox for bash, background
// jobs, reading a file page by page.

// The Chinese and Japanese files are made from this one and from code.po: npm run translate.

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import Anthropic from "@anthropic-ai/sdk";
import dotenv from "dotenv";

// ---- Configuration ----

// Importing this file must do nothing, so .env is read only when the file itself is being run.
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");

// ---- Terminal ----

let atLineStart = true; // whether what was printed last ended a line

/** Prints what the model says, piece by piece. */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** Lines of the program itself: dim what it reports, and red what failed. */
export const info = (line: string) => sayLine(tint(2, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** What an error says. One of the API also has it without status and JSON, as `apiMessage`. */
const whyFailed = (e: { message: string; apiMessage?: string }) => e.apiMessage ?? e.message;
/** Gives the sentence back. By this call the translation tool finds what is printed elsewhere. */
export const t = (sentence: string) => sentence;

/** Reads lines from a person or a pipe, and hands them to `onLine`, one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line that is being answered. At the prompt it leaves. */
  async run(onLine: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    const terminal = stdin.isTTY && stdout.isTTY;
    // readline echoes keys. So it is paused during a reply, and the keys wait in this stream.
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    if (terminal) reader.on("line", () => reader.pause());
    let turn: AbortController | undefined; // of the line that is being answered
    const interrupt = () => (turn ? turn.abort() : reader.close());
    process.on("SIGINT", interrupt);
    forwardKeys(keys, interrupt);
    const prompt = () => (terminal ? reader.prompt() : stdout.write("You > "));
    prompt();
    for await (const entered of reader) {
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await onLine(line, turn.signal).catch((e) => fail(`Failed: ${whyFailed(e)}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
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

  append(message: Message): void {
    this.messages.push(message);
  }
}

/** How one turn is to run. Later sections declare the interface again, which adds fields to it. */
export interface TurnOptions {
  onText?(piece: string): void; // gets the reply as it arrives
  signal?: AbortSignal; // stops the turn
}

/** If one of these holds for a reply, the model has more to do. (s02 adds replies with calls.) */
const CONTINUE_IF = [(m?: Message) => m?.stop_reason === "pause_turn"];
/** After these a person is told something. The usual ones, such as "end_turn", need no words. */
const STOP_NOTES: Record<string, string> = {
  max_tokens: t("\n(The reply was cut off: it reached its limit of tokens.)"),
  refusal: t("\n(The model refused. From now on it will not see this turn.)"),
  model_context_window_exceeded: t("\n(Cut off: the model can read no more than this.)"),
};
const stopNote = (m: Message) => (needsReply(m) ? "" : (STOP_NOTES[m.stop_reason ?? ""] ?? ""));

/** A turn starts where a person says something. Results of tools have the role "user", too. */
const startsTurn = (m: Entry) => m.role === "user" && m.content[0]?.type !== "tool_result";

/** What was refused once would be refused again, so the whole turn that led to it is left out. */
function withoutRefusedTurns(history: Message[]): Message[] {
  const refusal = history.findIndex((message) => message.stop_reason === "refusal");
  if (refusal < 0) return history;
  const start = Math.max(0, history.slice(0, refusal).findLastIndex(startsTurn));
  return withoutRefusedTurns(history.toSpliced(start, refusal + 1 - start));
}

/** The history as the API accepts it: nothing blank or refused, user and assistant in turn. */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  for (const message of answerCalls(withoutRefusedTurns(history))) {
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    while (content.at(-1)?.type.endsWith("thinking")) content.pop(); // it was cut off
    const last = request.at(-1);
    if (last?.role === message.role) last.content.push(...content);
    else if (content.length > 0) request.push({ role: message.role, content });
  }
  return request;
}

/** Everything that one call needs. */
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return {
    model: MODEL,
    max_tokens: 8192,
    system: SYSTEM,
    tools: TOOLS,
    messages: toRequest(messages),
  };
}

/** One call. Gives the reply, or what had arrived of it when it was aborted. Throws API errors. */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL from the environment.
  const client = new Anthropic();
  const stream = client.messages.stream(request, { signal: options.signal });
  const finished: Anthropic.ContentBlock[] = [];
  stream.on("text", (piece) => options.onText?.(piece));
  stream.on("contentBlock", (block) => finished.push(block));
  stream.on("streamEvent", inputReader());
  try {
    return await stream.finalMessage();
  } catch (error) {
    if (lacksUsage(error) && stream.currentMessage) return stream.currentMessage;
    if (!options.signal?.aborted) throw error;
    options.onText?.(" (interrupted)");
    // Half a text is worth keeping, but half a tool call or half a thought is of no use.
    const arrived = stream.currentMessage?.content ?? [];
    const kept = arrived.filter((block) => block.type === "text" || finished.includes(block));
    const content = [...kept, { type: "text", text: "(interrupted)", citations: null }];
    // The API gave no stop reason, no id and no usage, so these are missing here.
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  }
}

/** The agent loop. It decides only by what is stored, so it can go on after an error or a crash. */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    checkRounds(conversation);
    const response = await callModel(buildRequest(conversation, options), options);
    conversation.append(response);
    options.onText?.(stopNote(response));
    const calls = callsToRun(response);
    if (calls.length === 0) continue;
    const turn = { ...options, conversation };
    const results = await Promise.all(calls.map((call) => runTool(call, turn)));
    conversation.append({ role: "user", content: results });
  }
}

const needsReply = (m?: Message) => m?.role === "user" || CONTINUE_IF.some((test) => test(m));

/** Brings the turn to its end. Gives all that the model said since the person spoke. */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  await continueTurn(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(textOf).filter(Boolean).join("\n\n");
}

const textOf = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + stopNote(message);

/** Runs one turn. The person's words are stored first, so they stay if the model fails. */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  conversation.append({ role: "user", content: [{ type: "text", text: input }] });
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

// What counts is the calls and not the stop reason. Servers that translate the replies of other
// models send a call with "end_turn" or no reason, and others "tool_use" without a call.
CONTINUE_IF.push((m) => callsToRun(m).length > 0);
STOP_NOTES.tool_use = t("\n(The model wanted to call a tool, but no call came.)");
const MAX_ROUNDS = 50; // calls of the model in one turn
const OUTPUT_LIMIT = 30_000; // characters of one result, half of them from each end

/**
 * A listener that reads the inputs of calls in place of the SDK. If an input is no JSON, the SDK
 * throws, or leaves out what it can't read. Here it stays a text, so that the model hears of it.
 */
function inputReader() {
  let written = ""; // of the input that is arriving, piece by piece
  return (event: Anthropic.MessageStreamEvent, message: Anthropic.Message) => {
    if (event.type === "content_block_start") written = "";
    if (event.type !== "content_block_delta" || event.delta.type !== "input_json_delta") return;
    written += event.delta.partial_json;
    const block = message.content.at(-1);
    if (block === undefined || written === "") return;
    // With each piece the SDK makes the block anew. It reads this property after the last piece.
    const get = () => parsedOrRaw(written);
    Object.defineProperty(block, "input", { get, enumerable: true, configurable: true });
  };
}

/** The value that is written as JSON, or the text itself if it is no JSON. */
function parsedOrRaw(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return json;
  }
}

/**
 * Whether the SDK failed because a server sends no count of tokens. The count comes with the end of
 * a reply, so all of the reply is there.
 */
const lacksUsage = (error: unknown) => String(error).includes("output_tokens");

/** Throws after too many rounds, because a model that repeats itself costs money until it stops. */
function checkRounds({ messages }: Conversation): void {
  const turn = messages.slice(messages.findLastIndex(startsTurn));
  const replies = turn.filter(({ role }) => role === "assistant");
  if (replies.length < MAX_ROUNDS) return;
  throw new Error(`stopped after ${MAX_ROUNDS} rounds of tool calls; say "go on" to go on`);
}

// Stop reasons after which no call is run: the last one may be half a call, and a refused reply is
// left out with its calls.
const UNFINISHED = ["max_tokens", "model_context_window_exceeded", "refusal"];

/** Whether Ctrl+C stopped the reply: only callModel ends one so, and without a stop reason. */
function isInterrupted({ content, stop_reason }: Message): boolean {
  const last = content.at(-1);
  return !stop_reason && last?.type === "text" && last.text === "(interrupted)";
}

/** The calls of a reply that are to be run: all of them, or none if the reply is not complete. */
function callsToRun(message: Message | undefined) {
  if (message === undefined || isInterrupted(message)) return [];
  return UNFINISHED.includes(message.stop_reason ?? "") ? [] : callsIn(message);
}

/** The tool calls of a reply. */
const callsIn = (message: Message) =>
  message.role === "assistant" ? message.content.filter((block) => block.type === "tool_use") : [];
/** The tool results of a user's message. */
const resultsIn = (entry: Entry | undefined) =>
  entry?.role === "user" ? entry.content.filter((block) => block.type === "tool_result") : [];

// The history holds each reply as the model gave it, and a crash, Ctrl+C or an error may have come
// between a call and its result. The API takes it back only if every call has an id of its own, and
// exactly one result, in the next message. So answerCalls puts this right, anew for each request.

/** The history as the API takes it back. */
function answerCalls(history: Message[]): Entry[] {
  const ids = new Set<unknown>(); // of all calls so far
  const valid = history.map(withValidBlocks);
  const answered: Entry[] = [];
  for (const [index, message] of valid.entries()) {
    if (message.role === "assistant") {
      const results = resultsIn(valid[index + 1]);
      answered.push(message, { role: "user", content: answersTo(message, results, ids) });
    } else {
      // Its results are behind their calls already. toRequest joins the two messages of the user.
      const content = message.content.filter(({ type }) => type !== "tool_result");
      answered.push({ role: "user", content });
    }
  }
  const filled = answered.filter(isFilled);
  return withUserLast(withoutOpenServerCalls(filled, ids).filter(isFilled));
}

const isFilled = ({ content }: Entry) => content.length > 0;
type Block = Anthropic.ContentBlockParam;

/** A copy of the message, in which each block is valid. The others are left out. */
function withValidBlocks(message: Message): Message {
  const blocks: Block[] = message.content;
  const usable = blocks.filter((block) => canBeSentBack(block, message.role));
  // Replies and requests have the same blocks, but the SDK has two types for each of them.
  return { ...message, content: usable.map(validBlock) } as Message;
}

/** Whether a block can be sent back. The API only gives such blocks, but other servers don't. */
function canBeSentBack(block: Block | null, role: Message["role"]): boolean {
  if (typeof block?.type !== "string") return false;
  if (block.type === "text") return typeof block.text === "string";
  if (block.type === "tool_result") return role === "user";
  if (block.type !== "thinking") return true;
  // The signature proves that the API wrote this thought, so a thought can't be mended.
  const isWhole = typeof block.thinking === "string" && block.thinking.isWellFormed();
  return isWhole && typeof block.signature === "string" && block.signature !== "";
}

/** The block in whole characters; a call has a name that is allowed, and an object as its input. */
function validBlock(block: Block): Block {
  const whole = wellFormed(block) as Block; // with the same fields
  if (whole.type !== "tool_use" && whole.type !== "server_tool_use") return whole;
  const name = String(whole.name).replaceAll(/[^\w-]/g, "_");
  // What was wrong with the input, the result of the call says.
  const input = isObject(whole.input) ? whole.input : {};
  // The API's own tools have names of a narrower type.
  return { ...whole, name: name.slice(0, 64) || "unnamed", input } as Block;
}

/**
 * The value without halves of surrogate pairs, also in the names of fields, because the API refuses
 * them. A model makes one if, for example, its limit of tokens falls into the middle of an emoji.
 */
function wellFormed(value: unknown): unknown {
  if (typeof value === "string") return value.toWellFormed();
  if (Array.isArray(value)) return value.map(wellFormed);
  if (!isObject(value)) return value;
  const fields = Object.entries(value);
  return Object.fromEntries(fields.map(([key, field]) => [key.toWellFormed(), wellFormed(field)]));
}

const isObject = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * The results of the calls in a reply, in their order. A call without one gets an error. Calls
 * whose ids are not valid get other ids.
 */
function answersTo(message: Message, results: Anthropic.ToolResultBlockParam[], ids: Set<unknown>) {
  const answers: Anthropic.ToolResultBlockParam[] = [];
  for (const call of callsIn(message)) {
    // If two calls share an id, their results are in the order of the calls.
    const found = results.findIndex(({ tool_use_id }) => tool_use_id === call.id);
    const [result] = found < 0 ? [] : results.splice(found, 1);
    call.id = isFree(call.id, ids) ? call.id : freeId(ids);
    ids.add(call.id);
    if (result) answers.push({ ...result, tool_use_id: call.id });
    else answers.push(toolResult(call.id, whyOpen(message), true));
  }
  return answers;
}

/** Whether a call can keep its id: the API takes letters, digits, "_" and "-", and no id twice. */
const isFree = (id: unknown, ids: Set<unknown>) =>
  typeof id === "string" && /^[\w-]+$/.test(id) && !ids.has(id);

/** An id for a call whose own one can't be sent. It is the same in each request. */
function freeId(ids: Set<unknown>): string {
  let id = `call_${ids.size}`;
  while (ids.has(id)) id += "_";
  return id;
}

/** Why a call of this reply has no result. The model acts on it, so it must be true. */
function whyOpen(message: Message): string {
  // Calls begin when a reply is complete, so if Ctrl+C stopped the reply, none of them began.
  if (isInterrupted(message)) return "interrupted; it was not run";
  const isCut = UNFINISHED.includes(message.stop_reason ?? "");
  return isCut ? "cut off; it was not run" : "interrupted; it may have run";
}

/** A result of a tool that the API runs itself, for example "web_search_tool_result". */
const isServerResult = (block: Block): block is Extract<Block, { tool_use_id: string }> =>
  block.type.endsWith("_tool_result");
const isServerBlock = (block: Block) => block.type === "server_tool_use" || isServerResult(block);

/**
 * The API runs some tools itself, for example its web search. Then call and result both are in its
 * replies. If one of them is missing after an error, nobody can give it, so the other is left out.
 */
function withoutOpenServerCalls(messages: Entry[], ids: Set<unknown>): Entry[] {
  const open = new Map<unknown, Block>(); // the calls that have no result so far, by id
  const usable = new Set<Block>();
  const read = (block: Block) => {
    if (block.type === "server_tool_use" && isFree(block.id, ids)) {
      ids.add(block.id);
      open.set(block.id, block);
    }
    const call = isServerResult(block) ? open.get(block.tool_use_id) : undefined;
    if (call?.type !== "server_tool_use") return;
    usable.add(call).add(block);
    open.delete(call.id);
  };
  for (const { role, content } of messages) {
    if (role === "user") open.clear(); // a result that comes after that is too late
    for (const block of content) read(block);
  }
  // If the last reply was paused during a call, the API goes on with it.
  const waiting = [...open.values()];
  const isPaused = waiting.at(-1) === messages.at(-1)?.content.at(-1);
  if (isPaused) {
    for (const call of waiting) usable.add(call);
  }
  return messages.map(({ role, content }) => {
    return { role, content: content.filter((block) => !isServerBlock(block) || usable.has(block)) };
  });
}

/**
 * The API would take a reply at the end for the beginning of its answer, and newer models refuse
 * that. Only if it is paused in a tool of the API, the API goes on. Else we ask for that in words.
 */
function withUserLast(messages: Entry[]): Entry[] {
  const last = messages.at(-1);
  const end = last?.content.at(-1);
  if (last?.role !== "assistant" || (end && isServerBlock(end))) return messages;
  return [...messages, { role: "user", content: [{ type: "text", text: "Go on." }] }];
}

/** Runs one call. Never throws: what goes wrong becomes a result, so that the model can react. */
export async function runTool(call: Anthropic.ToolUseBlock, turn: Turn) {
  info(`  ${call.name} ${previewOf(call.input)}`);
  try {
    const offered = TOOLS.find(({ name }) => name === call.name);
    const handler = HANDLERS[call.name];
    if (!offered || !handler) throw new Error(`there is no tool ${call.name}`);
    const input = checkInput(offered.input_schema, call.input);
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

/** The beginning of a value as JSON; "undefined" for undefined, which JSON does not have. */
const previewOf = (value: unknown) => String(JSON.stringify(value)).slice(0, 100);

/** Gives the input as fields, if it fits the schema. Otherwise throws, naming the field. */
export function checkInput(schema: Anthropic.Tool.InputSchema, input: unknown): Fields {
  // The error shows it, because the model will see {} in its place when its call is sent back.
  if (!isObject(input))
    throw new Error(`the input must be an object, but it was ${previewOf(input)}`);
  checkRequired(input, schema.required ?? []);
  // The SDK leaves the properties open, but the schemas in this file have only such properties.
  const properties = (schema.properties ?? {}) as Record<string, Property>;
  for (const [name, property] of Object.entries(properties)) {
    const value = input[name];
    if (value === undefined) continue;
    checkType(name, value, property.type);
    checkEnum(name, value, property.enum);
  }
  return input;
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

/**
 * The text, or both its ends if it is longer than `limit`. `total` is its whole length, if a part
 * of its middle is gone already.
 */
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
  if (isState(first)) throw new Error(`${name} belongs to the program itself`);
  return real;
}

/**
 * Whether an entry of the workspace is .state, where the program keeps its own files, or a copy of
 * it, as ".state.old". Some file systems also take ".STATE", ".state. " or ".state::" for it.
 */
const isState = (entry: string) => /^\.state([.: ]|$)/iu.test(entry);

/** The path itself, or the nearest folder above it that exists. */
function nearestExisting(target: string): string {
  let existing = target;
  while (!isThere(existing)) existing = path.dirname(existing);
  return existing;
}

/** Whether there is an entry of this name. A link that leads nowhere is one, too. */
const isThere = (file: string) => fs.lstatSync(file, { throwIfNoEntry: false }) !== undefined;

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

/** The text with these line ends, because a model writes "\n" whatever the file has. */
const withLineEnds = (text: string, lineEnd: string) => text.replace(/\r?\n/g, lineEnd);

function writeText(name: string, content: string): string {
  const file = safePath(name, WORKSPACE);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  // A file keeps its line ends. A new one gets those that the model wrote.
  const example = fs.existsSync(file) ? readText(file) : content;
  fs.writeFileSync(file, withLineEnds(content, example.includes("\r\n") ? "\r\n" : "\n"));
  return `wrote ${content.length} characters to ${name}`;
}

function editText(name: string, oldText: string, newText: string): string {
  const file = safePath(name, WORKSPACE);
  const content = readText(file);
  const places = placesOf(oldText, content);
  const [place] = places;
  const times = places.length;
  if (place === undefined || times > 1)
    throw new Error(`old_text occurs ${times} times in ${name}; it must occur exactly once`);
  const text = withLineEnds(newText, lineEndAt(place.start, content));
  fs.writeFileSync(file, content.slice(0, place.start) + text + content.slice(place.end));
  return `edited ${name}`;
}

/** Where a passage stands in the content, whatever the line ends of both. */
function placesOf(passage: string, content: string): { start: number; end: number }[] {
  if (passage === "") return [];
  const lines = passage.split(/\r?\n/).map((line) => line.replace(/[$()*+.?[\\\]^{|}]/g, "\\$&"));
  // Without the look-behind, a "\n" alone would also match the second half of a "\r\n".
  const pattern = lines.join("(?:\\r\\n|(?<!\\r)\\n)");
  // Only a look-ahead finds both places of "aa" in "aaa", because they overlap.
  return [...content.matchAll(new RegExp(`(?=(${pattern}))`, "g"))].map((match) => {
    return { start: match.index, end: match.index + (match[1] ?? "").length };
  });
}

/** The line end at a place, as a file may have both kinds: the next one, else the one before. */
function lineEndAt(index: number, content: string): string {
  const before = content.slice(0, index).match(/\r?\n/g) ?? [];
  return /\r?\n/.exec(content.slice(index))?.[0] ?? before.at(-1) ?? "\n";
}

// bash runs in the workspace but is not confined to it: it can read whatever you can, also .env.
// Its environment holds no keys and tokens, so that the output of `env` does not show them to the
// model. That helps against accidents; against intent only a sandbox helps, or no bash at all.
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";
const PIPE_GRACE = 500; // ms after the end of a script, to read what it printed last

/** Runs a script for at most `seconds`, and gives its output. Throws if it fails or is stopped. */
async function bash(script: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const child = startShell(script);
  const output = new CommandOutput();
  child.stdout.setEncoding("utf8").on("data", (piece) => output.add(piece));
  child.stderr.setEncoding("utf8").on("data", (piece) => output.add(piece));
  // A process that left the group may hold the pipes open, and we don't wait for it.
  const closePipes = () => {
    child.stdout.destroy();
    child.stderr.destroy();
  };
  let stopped = ""; // why we stopped it
  const stop = (why: string) => {
    stopped = why;
    killGroup(child.pid);
    closePipes();
  };
  child.on("exit", () => setTimeout(closePipes, PIPE_GRACE).unref());
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
    // To cut at each piece would copy all of it each time.
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

// ---- All of it together ----

/** Checks the settings. Without an API key two lines say what to do, and the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEY is not set: copy .env.example to .env and put your key there.");
    fail("No key? `npm start` runs the same program offline, with a practice model.");
    process.exit(1);
  }
}

async function main(): Promise<void> {
  checkSettings();
  info(`Talking to ${MODEL}. Ctrl+C stops a reply, "quit" leaves.`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
