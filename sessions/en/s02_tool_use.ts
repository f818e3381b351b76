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
/** Marks a sentence that is printed elsewhere, so that the translation tool finds it. */
export const t = (sentence: string) => sentence;

/** Reads lines from a person or a pipe, and hands them to `handle`, one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line that is being answered. At the prompt it leaves. */
  async run(handle: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
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
    const prompt = () => (terminal ? reader.prompt() : stdout.write("You > "));
    prompt();
    for await (const entered of reader) {
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`Failed: ${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    stdin.destroy();
    say("\n");
  }
}

/** Passes on what is typed. Only Ctrl+C, which is "\x03", does not wait. */
function forwardKeys(keys: PassThrough, interrupt: () => void): void {
  process.stdin.setEncoding("utf8").on("end", () => keys.end());
  process.stdin.on("data", (typed: string) => {
    if (typed.includes("\x03")) return interrupt();
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

/** A turn starts where a person says something, which is always text. */
const startsTurn = ({ role, content }: Entry) => role === "user" && content[0]?.type === "text";
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
  }
}

/** The agent loop. It decides only by what is stored, so it can go on after an error or a crash. */
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
    const tool = TOOLS.find(({ name }) => name === call.name);
    const handler = HANDLERS[call.name];
    if (!tool || !handler) throw new Error(`there is no tool ${call.name}`);
    const input = checkInput(tool.input_schema, call.input);
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

async function main(): Promise<void> {
  requireApiKey();
  info(`Talking to ${MODEL}. Ctrl+C stops a reply, "quit" leaves.`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
