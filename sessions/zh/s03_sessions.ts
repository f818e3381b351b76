// 会话
//
// 一段对话就是一个只会变长的文件。从头重放一遍，历史就回来了，
// 重启之后如此，崩溃之后也如此。
//
//   append(message) ──► <key>/<id>.jsonl 多一行 ──► 内存里也加上
//   启动            ──► 重放每一行 ──► 还是那份历史
//   太长？          ──► 截短工具结果 ──► 做摘要 ──► 告诉用户
//
// 本节新增：会话存储、斜杠命令，还有守卫，有它在，长对话也不会超出模型的上下文窗口。
// 运行：    npm start -- s03 --lang zh               离线，用练习模型
//           npx tsx sessions/zh/s03_sessions.ts      用 .env 里的密钥
// 有意不做：数据库、给对话开分支、删除旧会话、压缩前先把要点写进记忆。

// 本文件由英文版和 code.po 生成，不要直接改：改 code.po，再运行 npm run translate。

import { spawn, spawnSync } from "node:child_process";
import crypto from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import Anthropic from "@anthropic-ai/sdk";
import dotenv from "dotenv";

// ---- 配置 ----

// 导入本文件不能有任何副作用：直接运行它时才读 .env。
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // 程序自己用的数据
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);

// ---- 终端 ----

let atLineStart = true; // whether what was printed last ended a line

/** 把模型说的话一段一段打印出来。 */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** 程序自己的输出：灰色、黄色和红色。 */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** What an error says. One of the API also has it without status and JSON, as `apiMessage`. */
const whyFailed = (e: { message: string; apiMessage?: string }) => e.apiMessage ?? e.message;
/** Gives the sentence back. By this call the translation tool finds what is printed elsewhere. */
export const t = (sentence: string) => sentence;

/** 从键盘或管道读入，一次交出一行。 */
export class Terminal {
  /** 正在回答时按 Ctrl+C，中止这一行的 signal；在提示符下按，退出程序。 */
  async run(onLine: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    const terminal = stdin.isTTY && stdout.isTTY;
    // 回复还在流式输出时，readline 会把按键回显到文字中间。所以这段时间暂停 readline，
    // 按键先存在 keys 里，也就是键盘和 readline 之间。只有 Ctrl+C 立刻处理。
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
      if (line) await onLine(line, turn.signal).catch((e) => fail(`失败：${whyFailed(e)}`));
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

// ---- s01 · Agent 循环 ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** 回复按 API 给的原样保存，id、停止原因和 usage 都在。 */
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
  max_tokens: t("\n（回复断在这里：到了 token 上限。）"),
  refusal: t("\n（模型拒绝回答。从现在起，它不会再看到这一轮。）"),
  model_context_window_exceeded: t("\n（断在这里：上下文窗口满了，模型读不下更多内容。）"),
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

/** 把历史整理成 API 接受的样子：去掉空白，去掉遭到拒绝的内容，让角色交替。 */
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

/** 一次调用要带上的全部内容。 */
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return {
    model: MODEL,
    max_tokens: 8192,
    system: SYSTEM,
    tools: TOOLS,
    messages: toRequest(messages),
  };
}

/** 调用一次，返回回复；中途中止就返回已经收到的部分。API 的错误照样抛出。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // SDK 自己从环境变量里读 ANTHROPIC_API_KEY 和 ANTHROPIC_BASE_URL。
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

/** 把这一轮跑完。返回用户说话之后模型说的全部内容。 */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  // 重启之后，可能该说的都说完了。那就用不着密钥，没有密钥也行。
  if (needsReply(conversation.messages.at(-1))) await runMiddleware(conversation, options);
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

// ---- s02 · 使用工具 ----

/** 处理函数能知道的：这次调用属于哪一轮。 */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

/** The fields of an object that came from outside, so nobody knows the types of their values. */
type Fields = Record<string, unknown>;

/** 收到的输入已经符合工具的 schema。返回输出；抛出的错误会给模型看。 */
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
STOP_NOTES.tool_use = t("\n(模型想调用工具，但没有发来调用。)");
const MAX_ROUNDS = 50; // calls of the model in one turn
const OUTPUT_LIMIT = 30_000; // 一个结果最多这么多字符，首尾各留一半

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

/** 运行一次调用。从不抛错：出了任何问题，都变成模型能处理的结果。 */
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
 * `root` 里某个文件的真实路径，文件可以还不存在。跑到 `root` 外面就抛错，
 * 不管用的是 ".."、绝对路径、旁边的目录 "root2"，还是符号链接。
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
  // 不是 UTF-8 的文件，读进来再写回去就坏了。
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** 把 `words` 的换行符改成和文件一致：不管原来是什么，模型只会写 "\n"。 */
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

// bash 在工作区里启动，但出得去：你能读的，它都能读，包括 .env。
// 环境变量里不给它密钥和令牌，免得随手一个 `env` 就让模型看见了。
// 这道栅栏只防意外。要防存心的，只能上沙箱，或者不提供这个工具。
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
  // 离开了进程组的子进程可能还占着管道，不等了。
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
    detached: !WINDOWS, // 自成一个进程组，可以一起杀掉
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  if (!WINDOWS) child.on("exit", () => killGroup(child.pid));
  return child;
}

/** 输出太多。反正只显示首尾，中间的不用留。 */
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
    // 组里已经没有进程了。
  }
}

// ---- s03 · 会话 ----

/** 程序运行时的各个部件，每一节都会加上自己的。 */
export interface App {
  store: SessionStore;
  key: string; // 终端正在用的会话 key
}

/** Each section that needs to know more about a turn adds it to these options. */
export interface TurnOptions {
  app?: App; // for middleware and tools; the turns that need it are given it
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

/**
 * Runs `task` with the layers round it. The first one gets the others and the task as `next`. It is
 * keepLoaded, which is not in MIDDLEWARE, so that no later section can put a layer round it.
 */
function runMiddleware(
  conversation: Conversation,
  options: TurnOptions,
  task = continueTurn,
  layers = [keepLoaded, ...MIDDLEWARE],
): Promise<void> {
  const [layer, ...inner] = layers;
  if (layer === undefined) return task(conversation, options);
  return layer(conversation, options, (given) => runMiddleware(conversation, given, task, inner));
}

// Helpers: hashes, JSON, and files that a crash leaves whole.

/** Gives a hash to which more can be added before `digest` ends it. */
const sha256 = (data: string) => crypto.createHash("sha256").update(data);

/** The object in `json`. Undefined if it is no JSON, or another value, such as `null` or a list. */
function parseObject(json: string): object | undefined {
  const value = parsedOrRaw(json);
  return isObject(value) ? value : undefined;
}

/**
 * 写一个小文件。就算中途崩溃，留下的也是完整的旧文件或新文件，不会是半个。
 * 返回时已经真的落盘，而不是还在系统的内存里：断电也不会丢。
 */
function replaceFile(file: string, content: string): void {
  // Flushed first, because the new name must never stand for content that is not on the disk yet.
  fs.writeFileSync(`${file}.tmp`, content, { flush: true });
  fs.renameSync(`${file}.tmp`, file);
  flushFolder(path.dirname(file));
}

/** Flushes the names in a folder. Without that, a power cut can take a new file with it. */
function flushFolder(dir: string): void {
  if (WINDOWS) return; // Windows 没法对文件夹做 fsync
  const folder = fs.openSync(dir, "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/**
 * Quarantine: a file or folder that can't be used is renamed and reported, so that it neither stops
 * the program nor gets lost. If that is impossible, it is said, and the program goes on.
 */
function quarantine(file: string, why: string): void {
  const name = `${file}.${crypto.randomUUID().slice(0, 8)}.quarantined`;
  if (isThere(name)) {
    quarantine(file, why); // under another name, because renaming would overwrite what is there
    return;
  }
  try {
    fs.renameSync(file, name);
    warn(`${file} 已隔离（改名为 ${path.basename(name)}）：${why}`);
  } catch (error) {
    warn(`${file} 无法使用，改名也失败了（${error}）：${why}`);
  }
}

/**
 * What `read` gives for a file or folder in .state. If it can't be read, for example because it is
 * a folder in place of a file, it is quarantined. Then there is none, and the result is undefined.
 */
function readOrQuarantine<T>(file: string, read: (file: string) => T): T | undefined {
  try {
    return read(file);
  } catch (error) {
    // If too many files are open, no file can be read, so this one need not be bad.
    if (["EMFILE", "ENFILE"].includes(String(codeOf(error)))) throw error;
    if (isThere(file)) quarantine(file, String(error));
    return undefined;
  }
}

/** The names in a folder of .state. Undefined if there is no such folder. */
const namesIn = (dir: string) => readOrQuarantine(dir, (folder) => fs.readdirSync(folder));

/** Makes a folder of .state, if it isn't there. */
function makeFolder(dir: string): void {
  if (namesIn(dir)) return;
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 }); // only this user may read what people said
  flushFolder(path.dirname(dir));
}

/** The code that Node gives an error of the system, such as "EEXIST". */
const codeOf = (error: unknown) => (error instanceof Error && "code" in error ? error.code : "");

const DISK_ERRORS = "ENOSPC EDQUOT EROFS EACCES EPERM EIO EMFILE ENFILE".split(" ");

/** Whether the file system refused: it is full or read-only, for example, and may not stay so. */
export const isDiskError = (error: unknown) => DISK_ERRORS.includes(String(codeOf(error)));

// 会话文件，一行一行看。里面的内容从不修改，也不删除：
// 想让历史变短，就再加一行，写明重放时略去什么。
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        API 给的原样
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                守卫的第 1 步
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"小林 …","keepFrom":5}}      第 2 步：略去第 2 到 4 行

/** One line. The first has key and label; each other one has a message, a compaction, or ids. */
interface LogRecord {
  at?: string;
  key?: string;
  label?: string;
  message?: Message;
  compaction?: { summary: string; keepFrom: number };
  shorten?: { toolUseIds: string[] };
}

/** Whether replay can use a record, whose fields may be anything if somebody edited the file. */
function canBeReplayed({ message, compaction, shorten }: LogRecord): boolean {
  if (message && !["user", "assistant"].includes(message.role)) return false;
  if (message && !(Array.isArray(message.content) && message.content.every(isObject))) return false;
  if (shorten && !Array.isArray(shorten.toolUseIds)) return false;
  return !compaction || (typeof compaction.summary === "string" && compaction.keepFrom > 0);
}

/**
 * An append-only log in JSON Lines: one record a line, added at the end. Nothing that is in the
 * file is written again, so a crash can damage at most the line that is being added.
 */
class JsonlFile {
  readonly file: string;
  lines = 0; // how many it has
  #isTorn = false; // whether the last line lacks its end
  #sizeBefore: number | undefined; // of the file before the last append, if that one failed

  constructor(file: string) {
    this.file = file;
  }

  /** Every readable line, with its number. The others stay in the file, and are reported. */
  read(): { line: number; record: object }[] {
    const text = readOrQuarantine(this.file, (file) => fs.readFileSync(file, "utf8"));
    if (text === undefined) return [];
    const lines = text.split("\n");
    // Behind the last line end there is nothing, unless a crash has torn the last line.
    this.#isTorn = lines.at(-1) !== "";
    if (!this.#isTorn) lines.pop();
    this.lines = lines.length;
    const records: { line: number; record: object }[] = [];
    const bad = text === "" ? [1] : []; // an empty file has lost its first line
    for (const [index, json] of lines.entries()) {
      const record = parseObject(json);
      if (record) records.push({ line: index + 1, record });
      else bad.push(index + 1);
    }
    this.skip(bad);
    return records;
  }

  /** Reports lines that can't be used. They stay in the file. */
  skip(lines: number[]): void {
    // A file of another kind may have thousands of them.
    const shown = lines.length > 10 ? `${lines.slice(0, 10).join(", ")}, …` : lines.join(", ");
    if (shown) warn(`${this.file} 第 ${shown} 行无法解析，已跳过。内容仍保留在文件里。`);
  }

  /** 加上时间，写进文件之后才返回。返回值是行号。 */
  append(record: object): number {
    const json = JSON.stringify({ at: new Date().toISOString(), ...record });
    // Behind a torn line the record would be unreadable, too, so a line end comes first.
    const lineEnd = this.#isTorn ? "\n" : "";
    const file = fs.openSync(this.file, "a");
    try {
      // A full disk may have taken a part of the last record, which nobody counts as stored.
      if (this.#sizeBefore !== undefined) fs.ftruncateSync(file, this.#sizeBefore);
      this.#sizeBefore = fs.fstatSync(file).size;
      fs.appendFileSync(file, `${lineEnd}${json}\n`);
      fs.fsyncSync(file);
      if (this.lines === 0) flushFolder(path.dirname(this.file)); // the file is new
      this.#sizeBefore = undefined;
    } finally {
      fs.closeSync(file);
    }
    this.#isTorn = false;
    this.lines += 1;
    return this.lines;
  }
}

/** 存在磁盘上的对话：列表还是那个列表，背后的文件记着它的全部经过。 */
export class Session extends Conversation {
  readonly id: string;
  header = { key: "", label: "", at: "" };
  summary = ""; // 压缩时从列表里拿掉的内容，写成了这段摘要
  // In replies before this index the API's count of tokens is that of a longer history.
  countsValidFrom = 0;
  turns = 0; // that are running
  usedAt = Date.now();
  #log: JsonlFile;
  #lineOf = new Map<Message, number>(); // where each message is in the file

  /** Replays the file. The folder says whose it is (`key`), because its first line may be torn. */
  constructor(file: string, key = "") {
    super();
    this.id = path.basename(file, ".jsonl");
    this.header.key = key;
    this.#log = new JsonlFile(file);
    const bad: number[] = [];
    for (const { line, record } of this.#log.read()) {
      if (canBeReplayed(record)) this.#replay(record, line);
      else bad.push(line);
    }
    this.#log.skip(bad);
  }

  /** Does what a line of the file says. */
  #replay(record: LogRecord, line: number): void {
    const { key = "", label = "", at = "", message, compaction, shorten } = record;
    if (line === 1) {
      const known = this.header.key || key;
      this.header = { key: known, label: String(label), at: String(at) };
    }
    if (message) {
      super.append(message);
      this.#lineOf.set(message, line);
    }
    if (compaction) this.#compact(compaction.summary, compaction.keepFrom);
    if (shorten) this.#shorten(new Set(shorten.toolUseIds));
  }

  /**
   * Adds a line, and then does with it what a replay does. So what the model is told is on disk
   * before, and after a restart the history is the same.
   */
  #write(record: LogRecord): void {
    this.#replay(record, this.#log.append(record));
  }

  override append(message: Message): void {
    this.#write({ message });
  }

  /** 从现在起，历史就是这段摘要，加上从 `kept` 开始的内容。 */
  compact(summary: string, kept: Message | undefined): void {
    const nextLine = this.#log.lines + 1; // that of the compaction, so no message has it
    const keepFrom = (kept && this.#lineOf.get(kept)) ?? nextLine;
    this.#write({ compaction: { summary, keepFrom } });
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
    this.countsValidFrom = this.messages.length;
  }

  /** 从现在起，这些调用的结果只留首尾。 */
  shorten(toolUseIds: string[]): void {
    this.#write({ shorten: { toolUseIds } });
  }

  #shorten(ids: Set<string>): void {
    for (const block of this.messages.flatMap(resultsIn)) {
      // It is changed in place, because #lineOf knows the message only as this object.
      if (ids.has(block.tool_use_id)) block.content = shortened(block);
    }
    this.countsValidFrom = this.messages.length;
  }
}

// key 说明是谁和谁在说话；会话是他们之间的一段对话。所有会话的总表没有另存成文件：
// 文件夹本身就是总表，不会有对不上的时候。

/**
 * Keeps a session in memory while a turn runs in it. If it were dropped and loaded again meanwhile,
 * there would be two of it, and neither would know what the other one appends.
 */
const keepLoaded: Middleware = async (conversation, options, next) => {
  if (!(conversation instanceof Session)) return next(options);
  conversation.turns += 1;
  try {
    await next(options);
  } finally {
    conversation.turns -= 1;
    conversation.usedAt = Date.now();
  }
};

const MAX_IDLE = 3_600_000; // ms, after which a session is dropped from memory

/** `dir` 下的所有会话：每个 key 一个文件夹，里面每个会话一个文件。 */
export class SessionStore {
  #dir: string;
  #loaded = new Map<string, Session>(); // the current session of each key that is in use

  constructor(dir: string) {
    this.#dir = dir;
    makeFolder(dir);
    setInterval(() => this.#forgetIdle(), 60_000).unref(); // unref: it keeps no program running
  }

  /** Without this, memory would grow with each new person. What is in the files stays there. */
  #forgetIdle(): void {
    for (const [key, { turns, usedAt }] of this.#loaded) {
      if (turns === 0 && Date.now() - usedAt > MAX_IDLE) this.#loaded.delete(key);
    }
  }

  /** 这个 key 当前的会话；还没有就新建。 */
  current(key: string): Session {
    const session = this.#loaded.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#loaded.set(key, session);
    session.usedAt = Date.now();
    return session;
  }

  /** 给这个 key 新建一个会话，并切换过去。 */
  create(key: string, label = ""): Session {
    const id = crypto.randomUUID().slice(0, 8);
    const file = this.#file(key, id);
    makeFolder(this.#folder(key));
    try {
      new JsonlFile(file).append({ v: 1, id, key, label });
    } catch (error) {
      fs.rmSync(file, { force: true }); // each new attempt on a full disk would leave one more
      throw error;
    }
    return this.#makeCurrent(key, new Session(file, key));
  }

  /** 这个 key 的所有会话，最新的在最后。 */
  list(key: string): Session[] {
    return this.#sessionsIn(this.#folder(key), key);
  }

  #sessionsIn(folder: string, key?: string): Session[] {
    const files = (namesIn(folder) ?? []).filter((name) => name.endsWith(".jsonl"));
    const opened = files.map((name) => this.#open(path.join(folder, name), key));
    const sessions = opened.filter((session) => session !== undefined);
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /** 回到 id 以 `prefix` 开头的会话。必须正好有一个，否则抛错。 */
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

  /** "current" 文件指向的会话。要是指错了，就用最新的会话：什么都不会丢。 */
  #stored(key: string): Session | undefined {
    const folder = this.#folder(key);
    if (namesIn(folder) === undefined) return undefined;
    const pointer = path.join(folder, "current");
    const id = readOrQuarantine(pointer, readText);
    if (id === undefined) return this.list(key).at(-1);
    // The id becomes part of a path, so it may hold no "/", for example.
    const session = /^[\w-]+$/.test(id) ? this.#open(this.#file(key, id), key) : undefined;
    if (session) return session;
    quarantine(pointer, t("里面没有有效的会话 id。改用最新的会话。"));
    return this.list(key).at(-1);
  }

  /** The session in a file. Undefined if there is none. */
  #open(file: string, key?: string): Session | undefined {
    const session = new Session(file, key);
    // We look only now, because a file that can't be read was quarantined by the line above.
    return fs.existsSync(file) ? session : undefined;
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
  makeFolder(dir);
  const file = path.join(dir, "lock");
  const mine = `${process.pid} ${startTime(process.pid)}`;
  const takeover = beginTakeover(`${file}.takeover`);
  try {
    checkUnlocked(file, path.dirname(dir));
    fs.writeFileSync(file, mine); // not flushed, since a power cut ends this process as well
  } finally {
    fs.rmSync(takeover, { force: true });
  }
  const isOurs = () => readOrQuarantine(file, readText) === mine;
  process.on("exit", () => {
    if (isOurs()) fs.rmSync(file);
  });
  // While Ctrl+Z had stopped this process, a person may have deleted its lock to start another one.
  process.on("SIGCONT", () => {
    if (isOurs()) return;
    fail(`这个进程已不再占用 ${dir}，因此退出。`);
    process.exit(1);
  });
}

const TAKEOVER_LIMIT = 5_000; // ms, after which the process of a takeover must be dead

/**
 * Gives an exclusive file. Whoever has it is the only process that looks at the lock and takes it:
 * otherwise two could find the same stale lock, and the second would take away the first one's new
 * lock. That needs a moment, for which the others wait.
 */
function beginTakeover(name: string): string {
  let number = 1;
  while (true) {
    const file = `${name}.${number}`;
    try {
      fs.writeFileSync(file, "", { flag: "wx" }); // "wx" fails if the file exists
      return file;
    } catch (error) {
      if (codeOf(error) !== "EEXIST") throw error;
    }
    // It may be gone by now.
    const { mtimeMs = Date.now() } = fs.lstatSync(file, { throwIfNoEntry: false }) ?? {};
    // After a crash the file stays for ever, and the next number is used. If it were removed, one
    // who has looked at the old file just now could remove a new one in its place.
    if (Math.abs(Date.now() - mtimeMs) > TAKEOVER_LIMIT) number += 1;
    else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20); // sleeps for 20 ms
  }
}

/** Throws if another living process has the lock. */
function checkUnlocked(file: string, workspace: string): void {
  const lock = readOrQuarantine(file, readText);
  if (lock === undefined) return;
  const [, digits, started] = /^([1-9]\d*)(?: (.*))?$/.exec(lock) ?? [];
  if (digits === undefined) {
    quarantine(file, t("里面没有进程号，不是有效的锁。"));
    return;
  }
  const pid = Number(digits);
  // In a container each start can have the same pid, so our own is that of an earlier start.
  if (pid === process.pid || !isAlive(pid)) return;
  // The process that wrote the lock may be dead, and another program may have its pid by now. Then
  // the times differ. Where the system gives no time, the pid alone must do.
  const time = startTime(pid);
  if (time !== "" && time !== started) return;
  const who = `process ${pid} is using ${workspace}`;
  throw new Error(`${who}: stop it, set CLAW0_WORKSPACE, or delete ${file}`);
}

/** When a process started, as the system writes it; "" if it is dead, or if nobody knows. */
function startTime(pid: number): string {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8");
    // It is field 22. Field 2 is the name of the program in brackets, which may hold spaces.
    return stat.slice(stat.lastIndexOf(")")).split(" ")[20] ?? "";
  } catch {
    // Two processes may have other settings, but must read the same time.
    const neutral = { ...process.env, LC_ALL: "C", TZ: "UTC" };
    const options = { env: neutral, encoding: "utf8" } as const;
    const ps = spawnSync("ps", ["-o", "lstart=", "-p", String(pid)], options);
    return (ps.stdout ?? "").trim(); // Windows has no ps
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0); // signal 0 is not delivered; it only tests the process
  } catch (error) {
    // EPERM means that the process is alive but belongs to another user.
    return codeOf(error) === "EPERM";
  }
}

/** About how many tokens a text has: one for four characters, but in CJK scripts one for each. */
export function estimateTokens(text: string): number {
  const cjk = text.match(/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu) ?? [];
  return cjk.length + Math.ceil((text.length - cjk.length) / 4);
}

const tokensOf = (messages: Message[]) =>
  estimateTokens(JSON.stringify(messages.map(({ content }) => content)));

// 对话太长时怎么办。工具结果丢了最不可惜：模型可以再读一次文件。
// 对话本身更宝贵，所以写成摘要，而不是扔掉。
// 改动的都是内存里的历史；磁盘上的文件只会多几行。

const BIG_RESULT = 2_000; // 字符数；截短后留一半
const FULL = 0.85; // 占窗口的比例：还要给回复留地方
const KEPT = 0.3; // the share of the conversation that a compaction leaves as it is

// 名字和 id 最要紧：把 "src/a.ts" 写成“那个文件”，模型就得再问一遍。
const SUMMARISE =
  "Summarise this conversation for the assistant who will go on with it. Keep names, numbers, " +
  "paths and ids exactly, what was decided, what failed, and what the user still waits for. " +
  "Facts only, at most 400 words.";

/** Both ends of a result. */
const shortened = ({ content }: Anthropic.ToolResultBlockParam) =>
  keepEnds(String(content), BIG_RESULT / 2).toWellFormed();

// How a server says that a request is too long: by a type (the first one is that of the API, which
// has the status 413; the second one is llama.cpp's), or by 413 alone, if a proxy sends a page.
const OVERFLOW_TYPES: unknown[] = ["request_too_large", "exceed_context_size_error"];
// Usually the API answers with the type and status of any bad request, so only the words are left:
// two sentences of the API, and one of compatible servers.
const OVERFLOW_WORDS = /prompt is too long|exceed context limit|maximum context length/i;

/** Whether the request was too long for the model. */
export function isOverflow(error: unknown): boolean {
  if (!(error instanceof Anthropic.APIError)) return false;
  if (error.status === 413 || OVERFLOW_TYPES.includes(error.type)) return true;
  // An error inside a stream has no status. The words count only in a bad request, because a rate
  // limit may speak of a prompt that is too long for it, too.
  const isBadRequest = error.status === 400 || error.type === "invalid_request_error";
  return isBadRequest && OVERFLOW_WORDS.test(error.message);
}

/** An interrupted reply has no count of tokens, and some servers send none, or only zeros. */
const isCounted = (m: Message) => m.role === "assistant" && m.usage?.input_tokens > 0;

/** 洋葱的第 2 层：让对话不超出上下文窗口。 */
export class ContextGuard {
  readonly limit: number; // 单位是 token

  constructor(limit: number) {
    this.limit = limit;
  }

  /** 下一个请求的 token 数：API 自己报的数字，加上对后面内容的估算。 */
  size(conversation: Conversation): number {
    const { messages } = conversation;
    // A count from before a compaction is too high, and would bring one compaction after another.
    const start = conversation instanceof Session ? conversation.countsValidFrom : 0;
    const counted = messages.findLastIndex((m, index) => index >= start && isCounted(m));
    const last = messages[counted];
    const tail = tokensOf(messages.slice(counted + 1));
    // The API's count holds the system prompt and the tools as well, but ours must add them.
    if (last?.role !== "assistant") return tail + estimateTokens(JSON.stringify([SYSTEM, TOOLS]));
    const { usage } = last;
    const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
    return usage.input_tokens + cached + (usage.output_tokens ?? 0) + tail;
  }

  /** 运行 `inner`；对话放不下就缩短，最多三步。 */
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

  /** 第 1 步：截短大的工具结果。没有可截的就返回 false。 */
  shortenResults(conversation: Conversation): boolean {
    const results = conversation.messages.flatMap(resultsIn);
    const big = results.filter(({ content }) => String(content).length > BIG_RESULT);
    if (big.length === 0 || !(conversation instanceof Session)) return false;
    conversation.shorten(big.map((block) => block.tool_use_id));
    info(`  （为腾出空间，截短了 ${big.length} 个工具结果）`);
    return true;
  }

  /** 第 2、3 步：用摘要替换较早的轮。没有可替换的就返回 false。 */
  async summarise(conversation: Conversation, options: TurnOptions, keep: number) {
    if (!(conversation instanceof Session)) return false;
    const { messages } = conversation;
    // 没到我们的上限 API 就说“太长”，说明上限设错了：按实际的大小来。
    const capacity = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, capacity * keep);
    // The first two messages hold the summary so far, which the request has in any case.
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const text = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    const summary = await askSummary(conversation, text, capacity, options);
    conversation.compact(summary, messages[cut]);
    info(`  （为腾出空间，把 ${old.length} 条消息写成了摘要）`);
    return true;
  }
}

/**
 * Takes the next steps until one makes the conversation shorter. False if none does. A step that
 * was taken is removed from the list, so no step is taken twice in a turn.
 */
async function takeStep(steps: (() => boolean | Promise<boolean>)[]): Promise<boolean> {
  const step = steps.shift();
  if (step === undefined) return false;
  return (await step()) || takeStep(steps);
}

/** 只给最新的、放得下的那部分做摘要；要是还太长，就减半再试。 */
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
  return text.slice(-Math.ceil(text.length * share)).toWellFormed(); // the cut may split a pair
}

/** Asks the model for one summary. Throws if it gives none. */
async function requestSummary(session: Session, text: string, options: TurnOptions) {
  const content = `Summary so far: ${session.summary.toWellFormed() || "none"}\n\nSince then:\n${text}`;
  const messages = [{ role: "user" as const, content }];
  const request = { model: MODEL, max_tokens: 2048, system: SUMMARISE, messages };
  const response = await callModel(request, { ...options, onText: undefined });
  options.signal?.throwIfAborted(); // 这时回复只有半段摘要，还不如没有
  const summary = wordsIn(response);
  if (response.stop_reason !== "refusal" && summary.trim()) return summary;
  throw new Error("the model gave no summary; /new begins a new session");
}

/**
 * 保留的部分从哪里开始：一轮的开头，在 `tokens` 之内尽量早。切在别处，
 * 可能会把调用和它的结果切开，以后的请求就全都无效了。
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
  // 还没走完的一轮要留完整：少了提问，后面的回答就看不懂了。
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
    const visible = entries.filter(({ name }) => !isState(name));
    const names = visible.map((entry) => entry.name + (entry.isDirectory() ? "/" : ""));
    return names.sort().join("\n");
  },
  get_current_time: () => new Date().toString(),
} satisfies Record<string, Handler>);

/** 人在斜杠后面输入的命令。`run` 拿到这一行剩下的部分，返回要显示的几行。 */
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
  if (!found) return t(`没有 /${name} 这个命令。/help 列出所有命令。`);
  const shown = await found.run(rest.join(" ").trim(), app, options);
  const lines = typeof shown === "string" ? shown : shown.join("\n");
  return lines || t("没有可显示的内容。");
}

command("help", "这里可以输入什么", () =>
  Object.entries(COMMANDS).map(([name, { help }]) => `/${name.padEnd(10)} ${help}`),
);

command("new", "[标签]：新建一个会话", (label, { store, key }) => {
  const { id } = store.create(key, label);
  return t(`新会话 ${id} 开好了。旧会话还在，/list 可以看到。`);
});

command("list", "列出这里的所有会话", (_args, { store, key }) => {
  const current = store.current(key).id;
  const formatSession = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(formatSession);
});

command("switch", "<id>：回到某个会话，id 只写开头几位就行", (id, app) => {
  const session = app.store.switch(app.key, id);
  return t(`已切换到会话 ${session.id}，${session.messages.length} 条消息。`);
});

command("context", "上下文窗口用了多少", (_args, { store, key }) => {
  const size = GUARD.size(store.current(key));
  const percent = Math.round((size / GUARD.limit) * 100);
  return t(`大约 ${size} token，上限 ${GUARD.limit}（${percent}%）。`);
});

command("compact", "把较早的轮换成摘要", async (_args, app, options) => {
  let done = false; // a layer gives nothing back, so the result goes this way
  // The request for the summary can fail as a turn can. So the layers stand round it, too, and
  // `summarise` takes the place of `continueTurn` inside them.
  await runMiddleware(app.store.current(app.key), { ...options, app }, async (session, given) => {
    done = await GUARD.summarise(session, given, KEPT);
  });
  return done ? t("好了。") : t("现在还没有可以做摘要的内容。");
});

const TERMINAL_KEY = "agent:luna:cli:direct:owner"; // agent、名字、渠道、类型、对方

// ---- 组装起来 ----

/** Checks the settings. Throws, naming one that is wrong; without an API key the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("没有设置 ANTHROPIC_API_KEY：把 .env.example 复制成 .env，填上你的密钥。");
    fail("没有密钥？`npm start -- --lang zh` 可以离线运行同一个程序，由练习模型来回答。");
    process.exit(1);
  }
  if (!(CONTEXT_TOKENS >= 1000)) throw new Error("CONTEXT_TOKENS must be a number from 1000 up");
}

/** Creates the parts of the program from what is on disk. Nothing is running yet. */
function createApp(): App {
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
  };
  return app;
}

function greet({ store, key }: App): void {
  const { id, messages } = store.current(key);
  info(`正在和 ${MODEL} 对话。Ctrl+C 中断回复，输入 quit 退出。`);
  info(`会话 ${id}，${messages.length} 条消息。/help 列出所有命令。`);
}

/** Answers lines and runs commands until the person at the terminal leaves. */
async function runTerminal(app: App): Promise<void> {
  await new Terminal().run(async (line, signal) => {
    if (line.startsWith("/")) return info(await runCommand(line, app, { signal }));
    return runTurn(app.store.current(app.key), line, { onText: say, signal });
  });
}

async function main(): Promise<void> {
  checkSettings();
  lockFolder(STATE);
  const app = createApp();
  greet(app);
  await runTerminal(app);
}

if (RUN) {
  await main().catch((error) => {
    fail(error.message);
    process.exit(1);
  });
}
