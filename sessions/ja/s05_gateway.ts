// ゲートウェイ
//
// 1つのプログラム、複数のエージェント、大勢の人。どのメッセージも、どのエージェントのどの会話に
// 入るかを一度だけ決める。ほかのプログラムはWebSocketで接続する。
//
//   Telegram ────┐            どのエージェントか    誰の会話か
//   Feishu ──────┼──► accept ──► BindingTable ──► buildSessionKey ──► Inbox ──► inOrder ──► …
//   ターミナル ──┘                     ▲
//   WebSocket ─── JSON-RPC "send" ─────┘            （"status"は何も待たない）
//
// この章で加わるもの：エージェント、5段階のバインディング、セッションキー、JSON-RPC 2.0の
// ゲートウェイ。
// 動かし方：  npm start -- s05 --lang ja    オフライン。隣で`npm run rpc -- status`
//             npx tsx sessions/ja/s05_gateway.ts [--serve]    .envのキーを使う
// 省いたもの：プログラムの終了後も残るバインディング、クライアントの役割とペアリング、番号付きの
// イベント（抜けたことがクライアントにわかる）、いなくなったクライアントのセッションを忘れること、
// TLS。
//
// 領域：設定 · ターミナル · s01 エージェントループ · s02 ツール · s03 セッション ·
//       s04 チャネル · s05 ゲートウェイとルーティング · 全体をつなぐ

// このファイルは英語版とcode.poから作られる。文を直すときはcode.poを編集し、npm run translate。

import type { ChildProcess } from "node:child_process";
import { spawn, spawnSync } from "node:child_process";
import crypto from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import { homedir } from "node:os";
import path from "node:path";
import type { Interface } from "node:readline";
import { createInterface } from "node:readline";
import { type Duplex, PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import Anthropic from "@anthropic-ai/sdk";
import dotenv from "dotenv";
import { Bot, GrammyError } from "grammy";
import type { Message as TelegramMessage, UserFromGetMe } from "grammy/types";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
import { type WebSocket, WebSocketServer } from "ws";

// ---- 設定 ----

// importしただけでは何も起きないようにする。.envを読むのは、直接実行されたときだけ。
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";
// In a command the shell replaces "~" by the home folder, but in .env nobody does.
const TILDE = /^~(?=[\\/]|$)/;
if (RUN) process.env.CLAW0_WORKSPACE &&= process.env.CLAW0_WORKSPACE.replace(TILDE, homedir);
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // プログラム自身の保存場所
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);
const SERVING = RUN && process.argv.includes("--serve"); // then nobody sits at the terminal
/** Looks up a setting. Gives "" for one that is not set. */
type Setting = (name: string) => string;
const env: Setting = (name) => process.env[name] ?? "";

/** A setting that is a whole number from 0 to `max`. Throws, naming the setting and its range. */
function wholeNumber(name: string, otherwise: number, max: number): number {
  const value = Number(env(name) || otherwise);
  if (Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new Error(`${name} must be a whole number from 0 to ${max}`);
}

// ---- ターミナル ----

let atLineStart = true; // whether what was printed last ended a line

// With these characters whoever writes to us, and the model, could move the cursor, overwrite lines
// or turn them round: the control characters (C0, DEL, C1), except for the tab and the line end,
// and the marks that change the direction of writing.
const CONTROLS = /(?![\t\n])[\p{Cc}\p{Bidi_Control}]/gu;
const withoutControls = (text: string) => text.replaceAll(CONTROLS, "");

/** モデルの言葉を、届いた分から表示する。 */
export const say = (piece: string) => print(withoutControls(piece));

function print(piece: string) {
  if (typing && piece) return sayAbove(typing, piece);
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

// With --serve the output is a log, so each of its lines begins with the time.
const stamp = () => (SERVING ? `${new Date().toISOString()} ` : "");

function tint(code: number, line: string): string {
  const shown = withoutControls(line).replace(/^/gm, stamp);
  return process.stdout.isTTY ? `\x1b[${code}m${shown}\x1b[0m` : shown;
}
const sayLine = (line: string) => print(`${atLineStart ? "" : "\n"}${line}\n`);

/** プログラム自身が出す行。淡色、黄、赤。 */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** What an error says. One of the API also has it without status and JSON, as `apiMessage`. */
const whyFailed = (e: { message: string; apiMessage?: string }) => e.apiMessage ?? e.message;
/** Gives the sentence back. By this call the translation tool finds what is printed elsewhere. */
export const t = (sentence: string) => sentence;

/** プロンプトで人が入力しているかもしれない間だけ入る */
let typing: Interface | undefined;

/**
 * 入力中の行の上に表示する。行はターミナルの幅で折り返しているかもしれない。そこで、行の1段目まで
 * 戻って全部消し、表示し、同じ段数だけ空けて、入力中の行を描き直させる。
 */
function sayAbove(reader: Interface, lines: string): void {
  const { rows } = reader.getCursorPos(); // how far the cursor is below the first row
  const up = rows > 0 ? `\x1b[${rows}A` : ""; // not for 0, which would mean 1
  const room = "\n".repeat(rows); // readline goes up by so many rows before it draws
  process.stdout.write(`\r${up}\x1b[J${lines}${room}`);
  reader.prompt(true);
}

/** 人やパイプから行を読み、1行ずつ渡す。 */
export class Terminal {
  /** Ctrl+Cは、処理中の行のsignalを中断する。プロンプトで押せば終了する。 */
  async run(onLine: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    const terminal = stdin.isTTY && stdout.isTTY;
    // readlineに任せると、ストリーミング中の応答にキー入力のエコーが混ざる。応答中は止めておき、
    // 入力はキーボードとreadlineの間に溜める。すぐに拾うのはCtrl+Cだけ。
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    if (terminal) reader.on("line", () => reader.pause());
    if (terminal) stdout.write(ASK_FOR_PASTE_MARKS);
    let turn: AbortController | undefined; // of the line that is being answered
    let stoppedAt = 0; // when Ctrl+C stopped a reply
    const interrupt = () => {
      if (turn) {
        stoppedAt = Date.now();
        return turn.abort();
      }
      // Whoever presses Ctrl+C twice to be sure that a reply stops does not want to leave as well.
      if (Date.now() - stoppedAt >= 1000) reader.close();
    };
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
      stoppedAt = 0;
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await onLine(line, turn.signal).catch((e) => fail(`エラー：${whyFailed(e)}`));
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
  const joinPasted = pasteJoiner();
  process.stdin.setEncoding("utf8").on("end", () => keys.end());
  process.stdin.on("data", (typed: string) => {
    if (process.stdin.isTTY && typed.includes("\x03")) return interrupt();
    if (process.stdin.isTTY && typed.includes("\x1a")) return suspend(); // Ctrl+Z
    // Line by line, because readline finishes what it has been given before it pauses.
    for (const line of joinPasted(typed).match(/[^\r]*\r\n?|[^\r]+/g) ?? []) keys.write(line);
  });
}

/** Ctrl+Z stops the job, so that the shell comes back; the shell's command `fg` goes on with it. */
function suspend(): void {
  if (WINDOWS) return; // there it does not exist
  process.stdin.setRawMode(false);
  process.once("SIGCONT", () => {
    process.stdin.setRawMode(true);
    process.stdout.write(ASK_FOR_PASTE_MARKS);
    typing?.prompt(true);
  });
  process.kill(0, "SIGTSTP"); // 0 means the whole job, because npm may have started this process
}

// Bracketed paste: a terminal that is asked for it puts marks around what is pasted, so that a line
// end in a pasted text can be told from Enter. Otherwise each pasted line would be a message.
const ASK_FOR_PASTE_MARKS = "\x1b[?2004h";
const PASTE_MARK = /(\p{Cc}\[20[01]~)/u; // \p{Cc} is Escape here
const PASTED_LINE_END = "␤"; // stands in the line that is being typed where the message has "\n"

/** Gives a function that takes what was typed, and puts PASTED_LINE_END for pasted line ends. */
function pasteJoiner(): (typed: string) => string {
  let isPasting = false;
  return (typed) => {
    let line = "";
    for (const piece of typed.split(PASTE_MARK)) {
      if (PASTE_MARK.test(piece)) isPasting = piece.endsWith("200~");
      else line += isPasting ? piece.replace(/\r\n?|\n/g, PASTED_LINE_END) : piece;
    }
    return line;
  };
}

// ---- s01 · エージェントループ ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** 応答はAPIが返したまま残す。id、停止理由、usageもそのまま。 */
export type Message = Anthropic.Message | (Entry & { role: "user"; stop_reason?: undefined });

/** The API is stateless: the model knows nothing but what is in this list. */
export class Conversation {
  messages: Message[] = [];

  append(message: Message, _about: { inboxId?: string } = {}): void {
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
  max_tokens: t("\n（応答がトークン数の上限に達し、途中で切れました）"),
  refusal: t("\n（モデルが回答を断りました。このターンは以後モデルに送りません）"),
  model_context_window_exceeded: t("\n（モデルが一度に読める量を超えたため、途中で切れました）"),
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

/** APIが受け付ける形にした履歴。空のものと拒否されたものを外し、役割を交互に並べる。 */
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

/** 1回の呼び出しに必要なものすべて。 */
export function buildRequest({ messages }: Conversation, options: TurnOptions) {
  return {
    model: options.agent?.model ?? MODEL,
    max_tokens: 8192,
    system: options.agent?.system ?? SYSTEM,
    tools: toolsFor(options),
    messages: toRequest(messages),
  };
}

/** 1回の呼び出し。応答か、中断されたときは届いていた分を返す。APIのエラーは投げる。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // ANTHROPIC_API_KEYとANTHROPIC_BASE_URLは、SDKが環境変数から読む。
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
    await untilStored(() => conversation.append(response), options.signal);
    options.onText?.(stopNote(response));
    const calls = callsToRun(response);
    if (calls.length === 0) continue;
    const turn = { ...options, conversation };
    const results = await Promise.all(calls.map((call) => runTool(call, turn)));
    // If the disk is full, the results wait here, since a tool must not run again to get them.
    const answered: Message = { role: "user", content: results };
    await untilStored(() => conversation.append(answered), options.signal);
  }
}

const needsReply = (m?: Message) => m?.role === "user" || CONTINUE_IF.some((test) => test(m));

/** Brings the turn to its end. Gives all that the model said in it. */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  const earlier = earlierTurn(conversation, options.message);
  if (earlier) return earlier.slice(1).map(textOf).filter(Boolean).join("\n\n");
  // 再起動後は、応答がもうそろっていることもある。そのときキーは要らず、なくても困らない。
  if (needsReply(conversation.messages.at(-1))) await runMiddleware(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(textOf).filter(Boolean).join("\n\n");
}

const textOf = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + stopNote(message);

/** Runs one turn. The person's words are stored first, so they stay if the model fails. */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  const about = { inboxId: options.message?.id };
  const texts = [input, ...attributionOf(options.message)];
  const content = texts.map((text) => ({ type: "text" as const, text }));
  conversation.append({ role: "user", content }, about);
  return finishTurn(conversation, options);
}

// ---- s02 · ツール ----

/** ハンドラーに渡す、処理中のターンの情報。 */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

/** The fields of an object that came from outside, so nobody knows the types of their values. */
type Fields = Record<string, unknown>;

/** スキーマに合った入力を受け取り、出力を返す。投げたエラーはモデルが読む。 */
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
STOP_NOTES.tool_use = t("\n(モデルはツールを呼び出そうとしましたが、呼び出しが届きませんでした。)");
const MAX_ROUNDS = 50; // calls of the model in one turn
const OUTPUT_LIMIT = 30_000; // 結果1つあたりの文字数。先頭と末尾を半分ずつ残す

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

/** 呼び出しを1つ実行する。例外は投げない。失敗も、モデルが次の手を考えられる結果にする。 */
export async function runTool(call: Anthropic.ToolUseBlock, turn: Turn) {
  info(`  ${call.name} ${previewOf(call.input)}`);
  try {
    const offered = toolsFor(turn).find(({ name }) => name === call.name);
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
 * `root`以下にあるファイルの実際のパス。ファイルはまだなくてもよい。外に出るならエラー。
 * ".."でも、絶対パスでも、隣の"root2"でも、シンボリックリンク経由でも同じ。
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
  // ほかの文字コードのファイルは、書き戻すと壊れる。
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** `words`の改行をファイルに合わせる。元の改行が何であれ、モデルは"\n"と書いてくる。 */
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

// bashはワークスペースで始まるが、閉じ込められてはいない。あなたが読めるものは.envでも読める。
// 環境変数にキーやトークンがないので、うっかり`env`を実行してもモデルには見えない。ただし
// これは事故よけの柵。悪意に効くのはサンドボックスか、ツールを渡さないことだけ。
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";
const PIPE_GRACE = 500; // ms after the end of a script, to read what it printed last

const SHELLS = new Set<ChildProcess>(); // that are running

/** Runs a script for at most `seconds`, and gives its output. Throws if it fails or is stopped. */
async function bash(script: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const child = startShell(script);
  const output = new CommandOutput();
  child.stdout.setEncoding("utf8").on("data", (piece) => output.add(piece));
  child.stderr.setEncoding("utf8").on("data", (piece) => output.add(piece));
  // グループを抜けた子プロセスがパイプを握っているかもしれないので、待たずに閉じる。
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
    detached: !WINDOWS, // 独立したプロセスグループにして、まとめて終了できるようにする
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  if (!WINDOWS) child.on("exit", () => killGroup(child.pid));
  SHELLS.add(child);
  child.on("close", () => SHELLS.delete(child));
  return child;
}

/** 出力が多すぎる。見せるのは両端だけなので、中ほどは捨ててよい。 */
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
    // グループにはもう誰もいない。
  }
}

// ---- s03 · セッション ----

/** 動いているプログラムの部品。各章が自分の分を足す。 */
export interface App {
  store: SessionStore;
  key: string; // ターミナルで開いている会話のキー
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
 * 小さなファイルを書く。クラッシュしても残るのは新旧どちらかで、半端なものは残らない。戻ったとき
 * には、OSのメモリではなくディスクに書かれているので、停電にも耐える。
 */
function replaceFile(file: string, content: string): void {
  // Flushed first, because the new name must never stand for content that is not on the disk yet.
  fs.writeFileSync(`${file}.tmp`, content, { flush: true });
  fs.renameSync(`${file}.tmp`, file);
  flushFolder(path.dirname(file));
}

/** Flushes the names in a folder. Without that, a power cut can take a new file with it. */
function flushFolder(dir: string): void {
  if (WINDOWS) return; // Windowsではフォルダーを書き出せない
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
    warn(`${file}を隔離しました（${path.basename(name)}に改名）：${why}`);
  } catch (error) {
    warn(`${file}は使えず、改名もできませんでした（${error}）：${why}`);
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

// セッションファイルの中身。書いた行は変えも消しもしない。履歴を縮めるときも1行足すだけで、
// リプレイのとき何を外すかは、その行に書いてある。
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        APIが返したまま
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                ガードの手順1
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"葵 …","keepFrom":5}}        手順2：2〜4行目が外れる

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
    if (shown) warn(`${this.file}の${shown}行目：読み取れないため、飛ばします。内容はファイルに残ります。`);
  }

  /** 時刻を添えて追記し、行番号を返す。戻ったときには、もうファイルに書かれている。 */
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

/** A turn: the message that began it, and all up to the next turn. [] if it is not in the list. */
function turnOf(messages: Message[], first: Message | undefined): Message[] {
  const start = first ? messages.indexOf(first) : -1;
  if (start < 0) return [];
  const length = messages.slice(start + 1).findIndex(startsTurn) + 1;
  return length === 0 ? messages.slice(start) : messages.slice(start, start + length);
}

/** The stored turn of a message, if other turns have followed it: then it can't be continued. */
function earlierTurn(conversation: Conversation, message?: InboundMessage): Message[] | undefined {
  if (!message || !(conversation instanceof Session)) return undefined;
  const turn = turnOf(conversation.messages, conversation.asked.get(message.id));
  const isLast = turn.at(-1) === conversation.messages.at(-1);
  return turn.length === 0 || isLast ? undefined : turn;
}

/** ディスクに残る会話。リストは元のままで、その裏に、すべてを記録したファイルがある。 */
export class Session extends Conversation {
  readonly id: string;
  readonly key: string;
  header = { label: "", at: "" };
  summary = ""; // 圧縮でリストから外れた分の要約
  // In replies before this index the API's count of tokens is that of a longer history.
  countsValidFrom = 0;
  turns = 0; // that are running
  usedAt = Date.now();
  #log: JsonlFile;
  #lineOf = new Map<Message, number>(); // where each message is in the file
  readonly asked = new Map<string, Message>(); // by inbox id: the message that it is the id of

  /** Replays the file. The folder says whose it is (`key`), because its first line may be torn. */
  constructor(file: string, key: string) {
    super();
    this.id = path.basename(file, ".jsonl");
    this.key = key;
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
    const { label = "", at = "", message, compaction, shorten } = record;
    if (line === 1) this.header = { label: String(label), at: String(at) };
    if (message) {
      super.append(message);
      this.#lineOf.set(message, line);
    }
    if (message && record.inboxId) this.asked.set(record.inboxId, message);
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

  override append(message: Message, about: { inboxId?: string } = {}): void {
    // Appending is idempotent: after a crash the inbox brings a message again that is here already.
    if (about.inboxId && this.#isAsked(about.inboxId)) return;
    this.#write({ message, ...about });
  }

  /** Whether a message is here, and its answer is here as well or can still be given. */
  #isAsked(inboxId: string): boolean {
    const last = turnOf(this.messages, this.asked.get(inboxId)).at(-1);
    if (!last) return false;
    // A turn that was never answered can't be finished when another one has followed it, because
    // the model answers what comes last. So the message is asked once more, at the end.
    return last === this.messages.at(-1) || !needsReply(last);
  }

  /** 以後の履歴は、要約と、`kept`から先のメッセージになる。 */
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

  /** 以後、これらの呼び出しの結果は両端だけになる。 */
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

/** The record in the first line of a log; undefined if it has none. Rejects if the disk refuses. */
async function firstRecord(file: string): Promise<LogRecord | undefined> {
  const pieces = fs.createReadStream(file, "utf8");
  // The first piece is 64 KiB, which is more than a first line has.
  for await (const piece of pieces) return parseObject(String(piece).split("\n")[0] ?? "");
}

/** The paths of the session files in a folder. */
const logsIn = (folder: string) =>
  (namesIn(folder) ?? [])
    .filter((name) => name.endsWith(".jsonl"))
    .map((name) => path.join(folder, name));

// キーは誰が誰と話すかを表し、セッションはその間の会話1つを指す。全セッションを並べた索引は
// 作らない。フォルダーがそのまま一覧なので、食い違いようがない。

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

/** `dir`にある全セッション。キーごとにフォルダーがあり、その中にセッションのファイルが並ぶ。 */
export class SessionStore {
  #dir: string;
  #loaded = new Map<string, Session>(); // the current session of each key that is in use
  #badFiles = new Set<string>(); // that `headers` has reported

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

  /** このキーの現在のセッション。なければ新しく作る。 */
  current(key: string): Session {
    const session = this.#loaded.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#loaded.set(key, session);
    session.usedAt = Date.now();
    return session;
  }

  /** このキーで新しいセッションを始め、現在のセッションにする。 */
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

  /** このキーのセッション。新しいものが後ろ。 */
  list(key: string): Session[] {
    const opened = logsIn(this.#folder(key)).map((file) => this.#open(file, key));
    const sessions = opened.filter((session) => session !== undefined);
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /**
   * What the first lines of all sessions say, with their ids. There may be thousands, so the files
   * are read one after the other, and the program goes on meanwhile.
   */
  async headers(): Promise<{ id: string; key: string; label: string; at: string }[]> {
    const headers = [];
    const folders = namesIn(this.#dir)?.filter((name) => !name.endsWith(".quarantined")) ?? [];
    for (const folder of folders) {
      for (const file of logsIn(path.join(this.#dir, folder))) {
        const record = (await firstRecord(file).catch(() => undefined)) ?? this.#nameBadFile(file);
        const { key = "", label = "", at = "" } = record;
        if (isThere(file)) headers.push({ id: path.basename(file, ".jsonl"), key, label, at });
      }
    }
    return headers;
  }

  /** Reads the whole log, which reports its bad lines, or quarantines it; once for each file. */
  #nameBadFile(file: string): LogRecord {
    if (!this.#badFiles.has(file)) new JsonlFile(file).read();
    this.#badFiles.add(file);
    return {};
  }

  /** idが`prefix`で始まるセッションに戻る。1つに絞れなければエラー。 */
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

  /** ファイル"current"が指すセッション。おかしければ最新のもの。何も失われない。 */
  #stored(key: string): Session | undefined {
    const folder = this.#folder(key);
    if (namesIn(folder) === undefined) return undefined;
    const pointer = path.join(folder, "current");
    const id = readOrQuarantine(pointer, readText);
    if (id === undefined) return this.list(key).at(-1);
    // The id becomes part of a path, so it may hold no "/", for example.
    const session = /^[\w-]+$/.test(id) ? this.#open(this.#file(key, id), key) : undefined;
    if (session) return session;
    quarantine(pointer, t("セッションを指していません。代わりに最新のセッションを使います。"));
    return this.list(key).at(-1);
  }

  /** The session in a file. Undefined if there is none. */
  #open(file: string, key: string): Session | undefined {
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
    fail(`このプロセスは${dir}のロックを失ったため、終了します。`);
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
    quarantine(file, t("プロセス番号がないため、ロックとして使えません。"));
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

// 会話が長くなりすぎたときの対処。捨てていちばん惜しくないのはツールの結果で、ファイルなら
// 読み直せる。ターンは惜しいので、捨てずに要約する。縮むのはメモリの中の履歴だけで、
// ディスクでは行が増えるだけ。

const BIG_RESULT = 2_000; // 文字数。短縮した結果はこの半分になる
const FULL = 0.85; // ウィンドウに対する割合。残りは応答の分
const KEPT = 0.3; // the share of the conversation that a compaction leaves as it is

// いちばん大事なのは名前とid。"src/a.ts"が「あのファイル」になると、モデルは聞き直すしかない。
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

/** 玉ねぎ構造の2層目。会話をコンテキストウィンドウに収める。 */
export class ContextGuard {
  readonly limit: number; // トークン数

  constructor(limit: number) {
    this.limit = limit;
  }

  /** 次のリクエストのトークン数。APIが数えた値に、そのあと増えた分の見積もりを足す。 */
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

  /** `inner`を実行する。会話が長すぎるときは、最大3段階で縮める。 */
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

  /** 手順1：大きなツールの結果を切り詰める。1つもなければfalse。 */
  shortenResults(conversation: Conversation): boolean {
    const results = conversation.messages.flatMap(resultsIn);
    const big = results.filter(({ content }) => String(content).length > BIG_RESULT);
    if (big.length === 0 || !(conversation instanceof Session)) return false;
    conversation.shorten(big.map((block) => block.tool_use_id));
    info(`  （空きを作るため、ツールの結果を${big.length}件短縮しました）`);
    return true;
  }

  /** 手順2と3：古いターンを要約に置き換える。古いターンがなければfalse。 */
  async summarise(conversation: Conversation, options: TurnOptions, keep: number) {
    if (!(conversation instanceof Session)) return false;
    const { messages } = conversation;
    // こちらの上限より先にAPIが長すぎると言ったなら、上限のほうがおかしい。実際の量を基準にする。
    const capacity = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, capacity * keep);
    // The first two messages hold the summary so far, which the request has in any case.
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const text = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    const summary = await askSummary(conversation, text, capacity, options);
    conversation.compact(summary, messages[cut]);
    info(`  （空きを作るため、メッセージ${old.length}件を要約しました）`);
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

/** 新しいほうから収まるだけ渡して要約を頼む。多すぎたら半分にする。 */
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
  options.signal?.throwIfAborted(); // 途中で切れた要約なら、ないほうがまし
  const summary = wordsIn(response);
  if (response.stop_reason !== "refusal" && summary.trim()) return summary;
  throw new Error("the model gave no summary; /new begins a new session");
}

/**
 * どこから残すか。`tokens`に収まる範囲で、いちばん古いターンの先頭から。ほかの場所で切ると
 * 呼び出しと結果の間に当たることがあり、以後のリクエストがすべて無効になる。
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
  // 途中のターンは丸ごと残す。質問が消えると、答えの意味がわからなくなる。
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

/** 人がスラッシュに続けて打つもの。`run`は行の残りを受け取り、表示する行を返す。 */
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
  if (!found) return t(`/${name}というコマンドはありません。一覧は/helpで見られます。`);
  const shown = await found.run(rest.join(" ").trim(), app, options);
  const lines = typeof shown === "string" ? shown : shown.join("\n");
  return lines || t("表示するものはありません。");
}

command("help", "使えるコマンドの一覧", () =>
  Object.entries(COMMANDS).map(([name, { help }]) => `/${name.padEnd(10)} ${help}`),
);

command("new", "[ラベル]：新しいセッションを始める", (label, { store, key }) => {
  const { id } = store.create(key, label);
  return t(`セッション${id}を始めます。前のセッションも残っています（/listで一覧）。`);
});

command("list", "この会話のセッション一覧", (_args, { store, key }) => {
  const current = store.current(key).id;
  const formatSession = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(formatSession);
});

command("switch", "<id>：前のセッションに戻る。idは先頭の数文字でよい", (id, app) => {
  const session = app.store.switch(app.key, id);
  return t(`セッション${session.id}に切り替えました。メッセージは${session.messages.length}件あります。`);
});

command("context", "コンテキストウィンドウの埋まり具合", (_args, { store, key }) => {
  const size = GUARD.size(store.current(key));
  const percent = Math.round((size / GUARD.limit) * 100);
  return t(`${GUARD.limit}トークン中、約${size}トークン（${percent}%）です。`);
});

command("compact", "古いターンを要約に置き換える", async (_args, app, options) => {
  let done = false; // a layer gives nothing back, so the result goes this way
  // The request for the summary can fail as a turn can. So the layers stand round it, too, and
  // `summarise` takes the place of `continueTurn` inside them.
  await runMiddleware(app.store.current(app.key), { ...options, app }, async (session, given) => {
    done = await GUARD.summarise(session, given, KEPT);
  });
  return done ? t("要約しました。") : t("要約するものがまだありません。");
});

const TERMINAL_KEY = "agent:luna:cli:direct:owner"; // エージェント、名前、チャネル、種別、相手

// ---- s04 · チャネル ----

// ここから先、プログラムは、目の前にいない人にも責任を負う。約束は2つ。受け付けたものを失わない
// こと、1つの会話ではメッセージに1つずつ順番に答えること。1つ目は、プラットフォームに受信確認を
// 返す前に書くファイルで守る。2つ目は、会話ごとにPromiseをつないで守る。

// -- 1 · One envelope --

/** What every platform's message becomes, so that the rest of the program knows no platform. */
export interface InboundMessage {
  id: string; // the idempotency key: a message that a platform sends twice has the same id twice
  channel: string;
  accountId: string; // こちらのどのアカウントに届いたか
  peerId: string; // the chat, which is where the answer goes
  senderId: string; // the person, or the channel or group in whose name a person writes
  senderName?: string; // as the person chose it, so it may pretend to be anybody's
  guildId?: string; // チャットが属するもの：スーパーグループや会社
  isGroup: boolean;
  text: string; // "" if it is of a kind that we can't read
  quoted?: string; // what it answers
  media: { kind: string; id: string }[];
  at: number; // when it was sent, in ms
  part?: string; // all parts of one message share it: the pictures of an album, say
  // How often the program died while it answered this, counted by the inbox. It is missing until
  // the first attempt begins, and 0 if an orderly stop or /inbox retry has taken that back.
  attempts?: number;
}

/** 誰の会話に入るかが決まったメッセージ。決めるのは、届いたときの一度だけ。 */
export interface Routed extends InboundMessage {
  sessionKey: string;
}

/** メッセージが誰の会話に入るか。 */
export function route(message: InboundMessage, app: App, agent?: Agent): Routed {
  const isTerminal = message.channel === "cli";
  const chosen = isTerminal ? app.terminalAgent : agent?.id;
  const agentId = chosen ?? app.bindings.resolve(message).agentId;
  const key = buildSessionKey(agentId, message, app.agents.find(agentId).dmScope);
  return { ...message, agentId, sessionKey: isTerminal ? app.key : key };
}

/**
 * Takes a message from a channel. When it returns, the message is on disk. `done` resolves to the
 * answer, and to "" for a message without one of its own: a duplicate, or a part that is answered
 * together with another. It is wrapped in an object, because an adapter that writes `await
 * onMessage(…)` would wait for a bare promise, which means for the model. The platform would hear
 * only then that the message arrived.
 */
export type Accept = (message: InboundMessage, signal?: AbortSignal) => { done: Promise<string> };

/** プラットフォーム。メッセージを届けてくる。1通で送れるテキストは、UTF-16で`limit`単位まで。 */
export interface Channel {
  readonly name: string;
  readonly limit: number;
  start(onMessage: Accept): Promise<void>; // 準備できたらresolve、見込みがなければreject
  send(to: string, text: string): Promise<void>; // rejects with SendError
  stop(): Promise<void>;
  typing?(to: string): Promise<unknown>;
  stream?(to: string, delta: string): void; // 作りかけの応答を見せるチャネル用
}

/** Why a text was not sent. s08 decides by these fields whether, and when, it tries again. */
export class SendError extends Error {
  permanent = false; // no attempt will ever succeed
  retryAfter?: number; // APIが待つように言ってきた秒数。
  isUnknown = false; // the platform refused, and we don't know whether an attempt can succeed

  constructor(why: string, how: Partial<Omit<SendError, keyof Error>> = {}) {
    super(why);
    Object.assign(this, how);
  }
}

export interface App {
  channels: ChannelManager;
  inbox: Inbox;
}

export interface TurnOptions {
  message?: InboundMessage; // いま答えているメッセージ
}

// ボットに話しかけてよい人でも、このマシンでプログラムを動かしてよいとは限らない。
// 読むのは構わない。ワークスペースはあえて共有している。REMOTE_TOOLS=1なら全部使える。
const OWNER_TOOLS = ["bash", "write_file", "edit_file"];

/** The tools that the model is offered. A turn without a message is the program's own. */
function toolsFor({ message }: TurnOptions): Anthropic.Tool[] {
  const isTrusted = !message || message.channel === "cli" || env("REMOTE_TOOLS") === "1";
  return isTrusted ? TOOLS : TOOLS.filter(({ name }) => !OWNER_TOOLS.includes(name));
}

/** At most so many characters of a quoted message are repeated to the model. */
const MAX_QUOTE = 2_000;

/**
 * What the model is told about the person's words: in a group who wrote them, and what they answer.
 * It is a block of its own behind them, because if it were in theirs, a person could write the same
 * words and pose as somebody else. Because it is JSON, a name can't end its quotation marks;
 * because "<" is escaped, it can't end the block. The id tells two people with the same name apart.
 * Gives one block or none.
 */
function attributionOf(message?: InboundMessage): string[] {
  const { isGroup, senderId: id, senderName = "", quoted } = message ?? {};
  const lines: string[] = [];
  const toJson = (value: unknown) => JSON.stringify(value).replaceAll("<", "\\u003c");
  if (isGroup) {
    const name = withoutControls(senderName).replace(/\s+/g, " ").slice(0, 100);
    lines.push(`The words above are from ${toJson({ name: name || undefined, id })}.`);
  }
  if (quoted) lines.push(`They answer this message: ${toJson(keepEnds(quoted, MAX_QUOTE))}`);
  return lines.length > 0 ? [`<context>\n${lines.join("\n")}\n</context>`] : [];
}

// In objects of platforms these fields hold words that a person reads, not ids or sizes.
const WORD_FIELDS = (
  "title name first_name last_name phone_number address latitude longitude emoji value question " +
  "text description topic options"
).split(" ");

/** The words in an object from a platform, such as a poll, at any depth, in their order. */
function wordsOf(value: unknown, isWord = false): string[] {
  // The items of a list are what the name of its field says: "options" is a list of words.
  if (Array.isArray(value)) return value.flatMap((item) => wordsOf(item, isWord));
  if (isObject(value)) {
    const fields = Object.entries(value);
    return fields.flatMap(([name, inner]) => wordsOf(inner, WORD_FIELDS.includes(name)));
  }
  const isReadable = typeof value === "number" || (typeof value === "string" && value !== "");
  return isWord && isReadable ? [String(value)] : [];
}

/** A message that is more than a text, for the model: its kind in brackets, and its words. */
const describeKind = (kind: string, ...words: string[]) => [`[${kind}]`, ...words].join(" ").trim();

/**
 * The command in a direct chat on a platform, and the label that follows it; undefined for other
 * words. In a group it is plain text, because otherwise anybody there could end the conversation of
 * all the others. Telegram's apps add the name of the bot, as in "/new@our_bot".
 */
function publicCommand({ channel, isGroup, text }: Routed) {
  if (channel === "cli" || isGroup) return undefined;
  const [, name, label = ""] = /^\/(new|help)(?:@\w+)?(?:\s+(.*))?$/s.exec(text) ?? [];
  return name === undefined ? undefined : { name, label: label.trim() };
}

/** メッセージへの答え。モデルか、誰でも使える2つのコマンドのどちらかが答える。 */
async function answerTo(message: Routed, app: App, options: TurnOptions): Promise<string> {
  if (message.text === "") return t("この種類のメッセージは読み取れません。");
  const { name, label } = publicCommand(message) ?? {};
  if (name === "help") return t("/newで新しい会話を始められます。");
  if (name === "new") {
    app.store.create(message.sessionKey, label);
    return t("新しい会話を始めました。");
  }
  const session = app.store.current(message.sessionKey);
  // 文字の片割れ（サロゲートの半分）を送れるクライアントもある。そのまま残すと、このリクエストも
  // 以後のリクエストもすべて通らなくなる。
  return runTurn(session, message.text.toWellFormed(), options);
}

const CHANNEL_PATIENCE = 3_000; // ms that start and stop wait for a platform that is out of reach

/** 動いているプログラムのチャネル。名前で引く。1つが落ちても、ほかは止まらない。 */
export class ChannelManager extends Map<string, Channel> {
  readonly states = new Map<string, string>();

  /** 全部が準備できたか失敗したらresolve。遅くとも3秒後にresolve。 */
  async start(onMessage: Accept): Promise<void> {
    const starts = [...this.values()].map((channel) => this.#start(channel, onMessage));
    await Promise.race([Promise.all(starts), sleep(CHANNEL_PATIENCE)]);
    for (const [name, state] of this.states) {
      if (state === t("起動中")) warn(`${name}: まだ準備できていません。接続を試み続けます。`);
    }
  }

  async #start(channel: Channel, onMessage: Accept): Promise<void> {
    this.states.set(channel.name, t("起動中"));
    const ready = channel.start(onMessage).then(() => t("準備完了"));
    const state = await ready.catch((error) => String(error));
    this.states.set(channel.name, state);
    info(`${channel.name}: ${state}`);
  }

  /** Resolves when all have stopped, or after 3 s. What fails here no longer matters. */
  async stop(): Promise<void> {
    const stops = [...this.values()].map((channel) => channel.stop());
    await Promise.race([Promise.allSettled(stops), sleep(CHANNEL_PATIENCE)]);
  }
}

/** ターミナルも、チャネルの1つにする。使う人には、応答が届いた分から見える。 */
export class CliChannel implements Channel {
  readonly name = "cli";
  readonly limit = Number.MAX_SAFE_INTEGER;
  closed = Promise.resolve(); // `start` replaces it: that one resolves when the person leaves
  #app: App;

  constructor(app: App) {
    this.#app = app;
  }

  async start(onMessage: Accept): Promise<void> {
    this.closed = new Terminal().run(async (line, signal) => {
      if (line.startsWith("/")) return info(await runCommand(line, this.#app, { signal }));
      const text = line.replaceAll(PASTED_LINE_END, "\n");
      return onMessage(this.#read(text), signal).done;
    });
  }

  #read(text: string): InboundMessage {
    return {
      id: `cli:${crypto.randomUUID()}`,
      channel: "cli",
      accountId: "local",
      peerId: "owner",
      senderId: "owner",
      isGroup: false,
      text,
      media: [],
      at: Date.now(),
    };
  }

  stream(_to: string, delta: string): void {
    say(delta);
  }

  /** For what comes unasked. A reply is streamed instead. */
  async send(_to: string, line: string): Promise<void> {
    info(line);
  }

  async stop(): Promise<void> {}
}

/** Runs a turn, and shows "typing" in its chat until it has ended. */
function whileTyping<T>(channel: Channel | undefined, peerId: string, turn: () => Promise<T>) {
  const show = () => channel?.typing?.(peerId).catch(() => {});
  show();
  const timer = setInterval(show, 4_000); // プラットフォームの表示は5秒で消える
  return turn().finally(() => clearInterval(timer));
}

// Blanks, control and zero-width characters, and the Braille pattern without a dot.
const INVISIBLE = /^[\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]*$/u;

/** Whether a person sees anything of a text. No platform takes one of which they would not. */
const canBeSeen = (text: string) => !INVISIBLE.test(text);

/** What `reply` has to know of the message that is answered. */
type Answered = Pick<InboundMessage, "id" | "channel" | "peerId">;

/**
 * Sends the answer in pieces that the platform takes. If a piece can't be sent, that is reported,
 * and the person gets neither it nor the pieces after it, because replies have no queue yet.
 */
export async function reply(app: App, { channel, peerId: to }: Answered, answer: string) {
  const target = app.channels.get(channel);
  const text = canBeSeen(answer) ? answer.trim() : t("（返す内容がありません）");
  if (!target) return warn(`${channel} ${to}：返信を送れませんでした：このチャネルは設定されていません`);
  // 上限はUTF-16の単位で数える。1文字は最大2単位。
  const pieces = text.match(new RegExp(`[^]{1,${Math.floor(target.limit / 2)}}`, "gu")) ?? [];
  try {
    for (const piece of pieces) await target.send(to, piece);
  } catch (error) {
    warn(`${channel} ${to}：返信を送れませんでした：${error}`);
  }
}

// -- 2 · Nothing lost --

const numberOf = (file: string) => Number.parseInt(path.basename(file), 10);

/** フォルダーの中の、自分で書き終えたファイル。"….json.tmp"は書きかけかもしれない。 */
function numberedFiles(folder: string): string[] {
  const names = (namesIn(folder) ?? []).filter((name) => /^\d+\.json$/.test(name));
  const files = names.map((name) => path.join(folder, name));
  const canBeCounted = (file: string) => Number.isSafeInteger(numberOf(file));
  for (const file of files) {
    // A number with 22 digits plus 1 is the same number, so there would be no next one.
    if (!canBeCounted(file)) quarantine(file, t("番号が大きすぎます"));
  }
  return files.filter(canBeCounted).sort((a, b) => numberOf(a) - numberOf(b));
}

/**
 * Reads the entry of a file. The schema names only the fields that the program can't do without.
 * The others we trust, because we wrote the file.
 */
const parseEntry = <T>(file: string, schema: Anthropic.Tool.InputSchema) =>
  checkInput(schema, parseObject(fs.readFileSync(file, "utf8"))) as T;

/** The same, but undefined for a missing file, and for a bad one, which is quarantined. */
const readEntry = <T>(file: string, schema: Anthropic.Tool.InputSchema) =>
  readOrQuarantine(file, (found) => parseEntry<T>(found, schema));

const MAX_REMEMBERED = 1_000;

/** Drops the oldest entry of a map or a set if it has too many, so that none grows for ever. */
function forgetOldest(entries: Map<string, unknown> | Set<string>): void {
  const [oldest] = entries.keys();
  if (entries.size > MAX_REMEMBERED && oldest !== undefined) entries.delete(oldest);
}

/**
 * A folder of entries that still have to be worked on, each in a numbered file of its own. It is a
 * write-ahead log: an entry is flushed to the disk before anybody acts on it. The ids of processed
 * entries stay for a while, which makes adding idempotent: an entry that comes again is not new.
 */
export class Spool<T extends { id: string }> {
  protected nextNumber = 1;
  protected readonly entries = new Map<string, { entry: T; file: string }>(); // by id, in order
  protected readonly dir: string;
  readonly #processed: ProcessedIds;

  /** Takes up what an earlier run has left in `dir`. The schema says what an entry has to have. */
  constructor(dir: string, schema: Anthropic.Tool.InputSchema) {
    this.dir = dir;
    makeFolder(dir);
    this.#processed = new ProcessedIds(path.join(dir, "processed"));
    for (const file of numberedFiles(dir)) {
      this.nextNumber = numberOf(file) + 1;
      const entry = readEntry<T>(file, schema);
      if (!entry) continue;
      // A file whose id is known is removed: either it was processed, and a crash in markProcessed
      // left it, or it is a second copy, from a restored backup.
      if (this.isKnown(entry.id)) fs.rmSync(file);
      else this.entries.set(entry.id, { entry, file });
    }
    // Not before the loop above, which still needs the ids: if the program was off for longer than
    // ids are kept, they would be gone, and an entry that was processed would be taken for new.
    this.#processed.forgetOld();
  }

  isKnown(id: string): boolean {
    return this.#processed.has(id) || this.entries.has(id);
  }

  /** The entries that are not processed yet, in the order in which they were added. */
  pending(): T[] {
    return [...this.entries.values()].map(({ entry }) => entry);
  }

  /** Keeps an entry, which is on disk when it returns. False if its id was added before. */
  add(entry: T): boolean {
    if (this.isKnown(entry.id)) return false;
    // The number is padded with zeros, so that a listing of the folder has them in order.
    const name = `${String(this.nextNumber).padStart(12, "0")}.json`;
    const file = path.join(this.dir, name);
    replaceFile(file, JSON.stringify(entry));
    this.nextNumber += 1; // last, so that attempts on a full disk don't leave a ".tmp" each
    this.entries.set(entry.id, { entry, file });
    return true;
  }

  /** Removes an entry and remembers its id. One that is not here is left alone. */
  protected markProcessed(id: string): void {
    const kept = this.entries.get(id);
    if (!kept) return;
    // The id is written first, so that a crash between the two steps leaves a file which the next
    // start removes. In the other order nothing would know the id when the entry comes again.
    if (!this.#processed.has(id)) this.#processed.add(id);
    fs.rmSync(kept.file, { force: true });
    this.entries.delete(id);
  }
}

/** For a schema: properties of one type. */
const ofType = (type: string, ...names: string[]) =>
  Object.fromEntries(names.map((name) => [name, { type }]));

const ROUTED = objectSchema(ofType("string", "id", "channel", "peerId", "text", "sessionKey"));
const MAX_ATTEMPTS = 3;

/**
 * 受け付けて、まだ答えていないもの。メッセージごとに1つのファイル。済んだもののidも持っておく。
 * 受信確認をもらえなかったプラットフォームは、メッセージを送り直してくる。いちばん起こりやすいのは
 * クラッシュのあとで、idがメモリにしかなければ、そのクラッシュで忘れている。
 */
export class Inbox extends Spool<Routed> {
  // What this start has put into quarantine, by its `part`, if it has one, because a person who
  // sent an album wants to hear about it once, and not once for each picture.
  readonly newlyQuarantined = new Map<string, Routed>();
  readonly #attempted = new Set<Routed>(); // in this run, and not answered yet
  readonly refused = new Set<string>(); // conversations in which refuseMessage has said so
  #isStopping = false;

  constructor(dir: string) {
    super(dir, ROUTED);
    // A poison message kills the program, so without a limit it would do so at every start.
    for (const [id, { entry, file }] of this.entries) {
      if ((entry.attempts ?? 0) < MAX_ATTEMPTS) continue;
      quarantine(file, t("3回試みました。/inbox retryで処理し直せます"));
      this.entries.delete(id);
      this.newlyQuarantined.set(entry.part ?? id, entry);
    }
  }

  /**
   * Counts an attempt before it begins, because the message may kill the program during it. A
   * turn that begins again in the same run, because the disk was full, is still the same attempt.
   */
  countAttempt(messages: Routed[]): void {
    for (const message of messages) {
      if (this.#attempted.has(message)) continue;
      this.#setAttempts(message, (message.attempts ?? 0) + 1);
      this.#attempted.add(message);
    }
    // What begins during the shutdown is not counted. But it keeps the mark that it has begun, so
    // attempts is 0 and not undefined, because partsOf needs to know that.
    if (this.#isStopping) this.giveBack(messages);
  }

  /** The object changes after its file: if the disk is full, no attempt has been counted. */
  #setAttempts(message: Routed, attempts: number): void {
    const kept = this.entries.get(message.id);
    if (kept) replaceFile(kept.file, JSON.stringify({ ...message, attempts }));
    message.attempts = attempts;
  }

  /** These attempts don't count: they ended, or are about to end, without harm to the program. */
  giveBack(messages: Routed[]): void {
    for (const message of messages) {
      if (!this.#attempted.delete(message)) continue;
      const counted = message.attempts ?? 1; // countAttempt has set it
      try {
        this.#setAttempts(message, counted - 1);
      } catch (error) {
        warn(`${message.id}: ${error}`);
      }
    }
  }

  /** The program is about to end in an orderly way. What is under way does not count, then. */
  stopCounting(): void {
    this.#isStopping = true;
    this.giveBack([...this.#attempted]);
  }

  /** The messages in quarantine, each with its file. What can't be read as one is left out. */
  quarantined(): { file: string; message: Routed }[] {
    const found: { file: string; message: Routed }[] = [];
    for (const name of (namesIn(this.dir) ?? []).sort()) {
      if (!/^\d+\.json\..+\.quarantined$/.test(name)) continue;
      const file = path.join(this.dir, name);
      try {
        found.push({ file, message: parseEntry<Routed>(file, ROUTED) });
      } catch {
        // It is in quarantine because it can't be read as a message, so it is left out.
      }
    }
    return found;
  }

  /**
   * Takes the messages out of quarantine, as if they had not been attempted. Gives how many. Each
   * is resumed as soon as it is stored, so that none is left lying if the disk is full at a later
   * one. Then this throws, and what is still in quarantine stays there for the next /inbox retry.
   */
  retry(resumeOne: (message: Routed) => void): number {
    let count = 0;
    for (const { file, message } of this.quarantined()) {
      const retried = { ...message, attempts: 0 };
      if (this.add(retried)) {
        resumeOne(retried);
        count += 1;
      }
      fs.rmSync(file);
    }
    return count;
  }

  /**
   * The messages that are parts of the same one as `message`; none if it is answered already.
   *
   * After a crash some parts may have been attempted and others not. Those that were attempted may
   * be in the session already, where `handle` joined them into one message, which can't grow any
   * more. So they are answered again together, and the others form a message of their own.
   */
  partsOf(message: Routed): Routed[] {
    if (!this.entries.has(message.id)) return [];
    const isAttempted = ({ attempts }: Routed) => attempts !== undefined;
    return this.pending()
      .filter(({ part, sessionKey }) => part === message.part && sessionKey === message.sessionKey)
      .filter((other) => isAttempted(other) === isAttempted(message));
  }

  /**
   * The messages are answered. A session knows joined parts only by the id of the first one (see
   * `handle`), so the first one is removed last: if the program dies halfway, the first is still
   * in the inbox, and Session.append recognises its id. In the other order only later parts would
   * be left, whose ids the session does not know, and they would be appended as a new message.
   */
  acknowledge(messages: Routed[]): void {
    for (const message of messages.toReversed()) {
      this.markProcessed(message.id);
      this.#attempted.delete(message);
    }
  }
}

// -- 3 · In order --

const DISK_RETRY = 60_000; // ミリ秒

/**
 * Takes one step of a message's path. If the disk refuses it, being full for example, the step is
 * taken again every minute, so it has to be idempotent. What came later in the conversation waits
 * for it, because this happens inside runExclusive. The signal ends the wait: then this throws.
 */
export async function untilStored<T>(step: () => T | Promise<T>, signal?: AbortSignal): Promise<T> {
  let isReported = false;
  while (true) {
    try {
      return await step();
    } catch (error) {
      if (!isDiskError(error) || signal?.aborted) throw error;
      if (!isReported) warn(`${error}. ${t("内容は失われていません。1分ごとに再試行します。")}`);
      isReported = true;
    }
    await sleep(DISK_RETRY, undefined, { signal }).catch(() => {}); // rejected by the signal
  }
}

// 処理中の会話ごとに、Promiseが1つ。これまで順番待ちに並んだものの最後を指す。
const tails = new Map<string, Promise<unknown>>();

/** 同じ会話のタスクは1つずつ順番に、違う会話のタスクは並行して動かす。 */
export function runExclusive<T>(sessionKey: string, task: () => Promise<T>): Promise<T> {
  const previous = tails.get(sessionKey) ?? Promise.resolve();
  // `task` stands here twice because it must also run if the task before it has failed.
  const latest = previous.then(task, task);
  tails.set(sessionKey, latest);
  // 最後に終わったものが片付ける。片付けないと、Mapに過去のすべての会話が残り続ける。
  const forget = () => {
    if (tails.get(sessionKey) === latest) tails.delete(sessionKey);
  };
  latest.then(forget, forget);
  return latest;
}

const MAX_WAITING = 100; // messages of one conversation, so that nobody can fill the disk

/** How many messages of a conversation have not begun to be answered. */
function waitingIn(inbox: Inbox, sessionKey: string): number {
  const isWaiting = (one: Routed) => one.sessionKey === sessionKey && one.attempts === undefined;
  return inbox.pending().filter(isWaiting).length;
}

/** Tells a person that a message is not taken. It is not said again until none waits any more. */
async function refuseMessage(app: App, message: Routed): Promise<string> {
  const { refused } = app.inbox;
  const wasTold = refused.has(message.sessionKey);
  refused.add(message.sessionKey);
  forgetOldest(refused);
  const text = t(`すでに${MAX_WAITING}件のメッセージが処理待ちのため、このメッセージは受け付けられません。しばらくしてから送ってください。`);
  if (!wasTold) await reply(app, message, text);
  return "";
}

/**
 * The entry point of every message. It is synchronous, so when it returns, a platform may forget
 * the message. Delivery is at-least-once: what a crash interrupts is done again.
 */
export function accept(app: App, message: InboundMessage, signal?: AbortSignal) {
  const routed = route(message, app);
  // ターミナルの行は残さない。クラッシュのあと、答えを待つ人はいない。
  const isKept = message.channel !== "cli";
  const waiting = waitingIn(app.inbox, routed.sessionKey);
  if (waiting === 0) app.inbox.refused.delete(routed.sessionKey);
  const isTooMany = waiting >= MAX_WAITING && !app.inbox.isKnown(routed.id);
  if (isKept && isTooMany) return { done: refuseMessage(app, routed) };
  if (isKept && !app.inbox.add(routed)) return { done: Promise.resolve("") };
  return { done: enqueue(app, routed, signal) };
}

const PART_GAP = 600; // ミリ秒。この間に続きが来なければ、全部そろったとみなす

/**
 * Telegram sends the pictures of an album one by one, and its apps cut a long text in pieces, but a
 * person expects one answer. This is a debounce: if parts arrive during a wait, it waits again.
 */
async function allPartsOf(message: Routed, inbox: Inbox): Promise<Routed[]> {
  let parts = inbox.partsOf(message);
  let mayBeMore = parts.length > 0;
  while (mayBeMore) {
    await sleep(PART_GAP);
    const partsNow = inbox.partsOf(message);
    mayBeMore = partsNow.length > parts.length;
    parts = partsNow;
  }
  return parts;
}

/**
 * Puts a message into the queue of its conversation. Gives the answer. Of several parts, the task
 * of the first one holds up the queue until all have come: meanwhile `accept` puts the others into
 * the inbox, where allPartsOf finds them, and they are answered with the first. Each of them has a
 * task in the queue, too, but when that runs, allPartsOf finds nothing, and there is nothing to do.
 */
function enqueue(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  return runExclusive(message.sessionKey, async () => {
    const parts = message.part ? await allPartsOf(message, app.inbox) : [message];
    return parts.length > 0 ? handle(app, parts, signal) : "";
  });
}

/** What a person hears of a turn that failed. In a group /new would be plain text. */
const failureText = ({ isGroup }: InboundMessage) =>
  isGroup
    ? t("うまく答えられませんでした。少し待ってからもう一度送ってください。")
    : t("うまく答えられませんでした。少し待ってからもう一度送るか、/newで新しい会話を始めてください。");

/**
 * 1つのメッセージ（分割されていれば全部）に1ターン。受信箱から返信まで進める。何が起きてもターンは
 * 終わり、相手には何かが届く。同じメッセージがもう一度来るのは、プログラムが落ちたときだけ。
 */
export async function handle(app: App, parts: Routed[], signal?: AbortSignal): Promise<string> {
  const text = parts.map((part) => part.text).join("\n");
  const media = parts.flatMap((part) => part.media);
  // All else, such as the id, is that of the first part. (There is one: `parts` is never empty.)
  const message = { ...parts[0], text, media } as Routed;
  const channel = app.channels.get(message.channel);
  const onText = (piece: string) => channel?.stream?.(message.peerId, piece);
  let answer: string;
  try {
    const agent = app.agents.get(message.agentId);
    answer = await untilStored(() => {
      app.inbox.countAttempt(parts);
      const options = { message, signal, onText, agent };
      return whileTyping(channel, message.peerId, () => answerTo(message, app, options));
    }, signal);
  } catch (error) {
    if (message.channel === "cli") throw error; // 表示はターミナルに任せる
    warn(`${message.sessionKey}: ${error}`);
    answer = failureText(message);
  }
  // A channel that streams has shown the answer already.
  if (!channel?.stream) await untilStored(() => reply(app, message, answer));
  await untilStored(() => app.inbox.acknowledge(parts));
  return answer;
}

// -- 4 · Telegram: what a message says --

/** A map that survives the program. It is kept in a file of .state, as one JSON object. */
class StoredMap extends Map<string, string> {
  readonly #file: string;

  constructor(name: string) {
    super();
    this.#file = path.join(STATE, name);
    const stored = readEntry<Fields>(this.#file, objectSchema({})) ?? {};
    for (const [key, value] of Object.entries(stored)) {
      if (typeof value === "string") super.set(key, value);
      else warn(`${this.#file}: ${key}: ${t("使えないため、飛ばします")}`);
    }
  }

  /** The file is written first, so if the disk is full, the map does not change either. */
  override set(key: string, value: string): this {
    makeFolder(path.dirname(this.#file)); // somebody may have deleted it
    replaceFile(this.#file, JSON.stringify(Object.fromEntries([...this, [key, value]])));
    super.set(key, value);
    forgetOldest(this);
    return this;
  }
}

const ID_DAYS = 7; // how long the id of a processed entry is kept

/**
 * The ids of processed entries, in a file for each day. They are not kept for ever, because a
 * platform repeats a message for 24 hours at most.
 */
class ProcessedIds {
  readonly #dir: string;
  readonly #days = new Map<string, { log: JsonlFile; ids: Set<string> }>(); // as "2026-01-31"

  constructor(dir: string) {
    this.#dir = dir;
    makeFolder(dir);
    const names = fs.readdirSync(dir).filter((name) => /^\d{4}-\d\d-\d\d\.jsonl$/.test(name));
    for (const name of names) this.#open(path.basename(name, ".jsonl"));
  }

  #open(day: string) {
    const log = new JsonlFile(path.join(this.#dir, `${day}.jsonl`));
    const ids = new Set(log.read().map(({ record }) => (record as { id: string }).id)); // see `add`
    const opened = { log, ids };
    this.#days.set(day, opened);
    return opened;
  }

  has(id: string): boolean {
    return [...this.#days.values()].some(({ ids }) => ids.has(id));
  }

  add(id: string): void {
    this.forgetOld();
    const today = new Date().toISOString().slice(0, 10);
    const { log, ids } = this.#days.get(today) ?? this.#open(today);
    log.append({ id });
    ids.add(id);
  }

  forgetOld(): void {
    const oldest = new Date(Date.now() - ID_DAYS * 86_400_000).toISOString().slice(0, 10);
    for (const [day, { log }] of this.#days) {
      if (day >= oldest) continue;
      fs.rmSync(log.file, { force: true });
      this.#days.delete(day);
    }
  }
}

/** Separates chat and thread in the peerId of a topic, as in "-1001:topic:7". */
const TOPIC = ":topic:";

/** フォーラムのトピックは、それぞれ別の宛先："<chat>:topic:<thread>"。 */
function peerOf({ chat, is_topic_message, message_thread_id }: TelegramMessage): string {
  return is_topic_message ? `${chat.id}${TOPIC}${message_thread_id}` : String(chat.id);
}

/** The reverse of peerOf: what the Bot API has to be told to send something there. */
function telegramAddress(peerId: string) {
  const [chat = "", thread] = peerId.split(TOPIC);
  return { chat, options: thread ? { message_thread_id: Number(thread) } : {} };
}

/** The chat that a topic of Telegram or a thread of Feishu belongs to. */
const chatOf = (peerId: string) => peerId.replace(/:(?:topic|thread):.*/, "");

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
  admit(channel: Channel, message: InboundMessage, onMessage: Accept) {
    // The owner lists a forum once, by the id of its chat, and that admits all of its topics.
    const chat = chatOf(message.peerId);
    if (!this.#chats.includes(chat)) return this.#inform(channel, message.peerId, chat);
    // JSON escapes control characters, with which a sender could overwrite lines of our terminal.
    const line = `[${channel.name} ${message.peerId}] ${JSON.stringify(message.text.slice(0, 80))}`;
    // Only what was stored is logged. While the disk is full, onMessage throws, and the platform
    // sends the same message again and again.
    onMessage(message).done.catch((error) => warn(`${message.id}: ${error}`));
    info(line);
  }

  /** Tells a stranger the id of the chat, and the owner the setting that would admit it. */
  #inform(channel: Channel, peerId: string, chat: string): void {
    // Only the first message of a chat is answered, because otherwise strangers could make the bot
    // send as much as they like.
    if (this.#informed.has(chat)) return;
    this.#informed.add(chat);
    forgetOldest(this.#informed);
    const setting = `${channel.name.toUpperCase()}_ALLOWED_CHATS`;
    warn(`許可していないチャットからメッセージが届きました。許可するには、${chat}を${setting}の一覧に追加してください。`);
    const words = t(`このチャットは許可されていません。idは${chat}です。ボットの持ち主が許可すれば話せます。`);
    channel.send(peerId, words).catch(() => {}); // the owner has read the id in the log already
  }
}

/**
 * Who wrote a message. An anonymous admin, or somebody who writes as a channel, comes with a bot of
 * Telegram's own as `from`, and a channel's post without one; `sender_chat` says as whom they
 * write. Undefined for other bots, because two bots could answer each other for ever.
 */
function senderOf({ from, sender_chat, author_signature }: TelegramMessage) {
  if (sender_chat) return { id: sender_chat.id, name: author_signature ?? sender_chat.title };
  if (!from || from.is_bot) return undefined;
  return { id: from.id, name: [from.first_name, from.last_name].filter(Boolean).join(" ") };
}

/**
 * The words of a message, which are called its caption under a picture or a file. A link behind a
 * word is followed by its address, since the text alone does not have it.
 */
function telegramText(message: TelegramMessage): string {
  let words = message.text ?? message.caption ?? "";
  // From the last one on, because what is put in moves all that stands behind it.
  for (const entity of entitiesOf(message).toReversed()) {
    if (entity.type !== "text_link") continue;
    const end = entity.offset + entity.length;
    words = `${words.slice(0, end)} (${entity.url})${words.slice(end)}`;
  }
  return words;
}

/** The marked places of a text or a caption: links, mentions, and so on. */
const entitiesOf = ({ entities, caption_entities }: TelegramMessage) =>
  entities ?? caption_entities ?? [];

// The first kind that a message has counts. Telegram also sets `document` for an animation, `photo`
// for a live photo and `location` for a venue, so those three stand behind what brings them along.
const KINDS = (
  "animation live_photo photo document audio voice video video_note sticker paid_media story " +
  "venue location contact dice game poll checklist invoice giveaway giveaway_winners gift " +
  "unique_gift"
).split(" ");

/** What a message has besides its text. Its ids are Telegram's: we download nothing. */
function attachmentOf(message: object) {
  const fields: Fields = { ...message };
  const kind = KINDS.find((one) => fields[one] !== undefined);
  if (!kind) return undefined;
  const content = [fields[kind]].flat().at(-1); // 写真なら、いちばん大きなサイズ
  const id = isObject(content) ? content.file_id : undefined;
  // A file has a caption. The words in its other fields only describe it, as those of a sticker.
  if (id !== undefined) return { kind, words: [], media: [{ kind, id: String(id) }] };
  return { kind, words: wordsOf(content), media: [] };
}

/** Finds "@our_bot", also in "/help@our_bot". A new one each time, since `g` keeps a position. */
const mentionOf = (bot: UserFromGetMe) => new RegExp(`@${bot.username}\\b`, "gi");

/** Whether a message is meant for the bot: in a group, only if it mentions or answers the bot. */
function isAddressedTo(bot: UserFromGetMe, message: TelegramMessage): boolean {
  if (message.chat.type === "private") return true;
  const answered = message.reply_to_message;
  // All that is written in a topic answers, for Telegram, the service message that it was created.
  if (answered?.from?.id === bot.id && !answered.forum_topic_created) return true;
  // In the app one can also choose the bot from a list, and then any name may stand in the text.
  const isTapped = entitiesOf(message).some(
    (entity) =>
      (entity.type === "text_mention" && entity.user.id === bot.id) ||
      (entity.type === "text_link" && entity.url === `tg://user?id=${bot.id}`),
  );
  return isTapped || mentionOf(bot).test(message.text ?? message.caption ?? "");
}

/** The kind of a message, if it is more than a text, and these words of it. */
function describe(message: object, words: string): string {
  const attachment = attachmentOf(message);
  return attachment ? describeKind(attachment.kind, ...attachment.words, words) : words;
}

/** A message as the model gets it, without our name. */
function describeMessage(bot: UserFromGetMe, message: TelegramMessage): string {
  const words = telegramText(message);
  const description = describe(message, words.replaceAll(mentionOf(bot), "").trim());
  return description || words; // "@our_bot" alone is kept, because an empty turn is not allowed
}

/** What a message answers: the part that the person chose, or all of it. */
function quotedBy({ quote, reply_to_message, external_reply }: TelegramMessage) {
  if (quote) return quote.text;
  if (reply_to_message) return describe(reply_to_message, telegramText(reply_to_message));
  return external_reply && describe(external_reply, ""); // of another chat we don't get the words
}

// A service message says what happened in a chat, and its field is named by that, for example
// "group_chat_created" or "pinned_message".
const SERVICE_FIELD =
  /(?:ed|set|hidden|sent|done|left|payment|data)$|^(?:new|left|delete)_chat|^(?:migrate|pinned)_/;
const isServiceMessage = (message: TelegramMessage) =>
  Object.keys(message).some((field) => SERVICE_FIELD.test(field));

// -- 5 · Telegram: polling --

/** Makes a SendError of a failed call, which says whether another attempt can succeed. */
function telegramError(error: unknown): SendError {
  // If Telegram itself did not answer, the network failed, and a later attempt may succeed.
  if (!(error instanceof GrammyError)) return new SendError(String(error));
  const { error_code: status, description, parameters } = error;
  // 403 says, for example, that the person blocked the bot, and 400 that there is no such chat.
  const permanent = status === 400 || status === 403;
  // 429 means that we send too fast. 401 says that the token is wrong, which the owner may mend.
  const isUnknown = !permanent && status !== 429 && status < 500;
  return new SendError(description, { permanent, isUnknown, retryAfter: parameters.retry_after });
}

/** Whether a call failed because its topic was closed or deleted. Telegram has no code for that. */
const isTopicGone = (error: unknown) =>
  error instanceof GrammyError && /thread not found|TOPIC_(CLOSED|DELETED)/.test(error.description);

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

// アプリは4096単位か、その手前の単語の切れ目で分割する
const MIN_CUT_LENGTH = 4_050;
const MAX_CUT_GAP = 1; // seconds between two pieces

/** The adapter for Telegram, which gets messages by long polling (see `#poll`). */
export class TelegramChannel implements Channel {
  readonly name = "telegram";
  readonly limit = 4096;
  readonly #bot: Bot;
  readonly #stopping = new AbortController();
  #offset = 0; // the number of the first update that we don't have yet
  // Groups that were upgraded to supergroups, by which Telegram gives them another id: the new ids
  // by the old ones. In the program such a group keeps its old id, so that its conversation, its
  // route and its place in the list of allowed chats stay the same. Only Telegram gets the new one.
  #movedChats = new StoredMap("moved.json");
  #allowed: AllowList;
  // The long pieces of texts that were cut, by conversation, sender and message id.
  #pieces = new Map<string, { part: string; date: number }>();
  // What was received lately, by what it is a part of: whether one of the parts is addressed to
  // us, and the parts that were not passed on, by their ids.
  #received = new Map<string, { isAddressed: boolean; held: Map<string, InboundMessage> }>();

  constructor(setting: Setting) {
    // The owner may know a group by its new id.
    const chats = setting("TELEGRAM_ALLOWED_CHATS");
    this.#allowed = new AllowList(chats.replace(/-\d+/g, (chat) => this.#oldId(chat)));
    const apiRoot = setting("TELEGRAM_API_ROOT") || "https://api.telegram.org";
    // By default grammY uses node-fetch, which would ignore the proxy that is set for this program.
    const client = { apiRoot, timeoutSeconds: 60, fetch: fetchForGrammy };
    this.#bot = new Bot(setting("TELEGRAM_BOT_TOKEN"), { client });
  }

  /** Resolves when Telegram has taken the token; rejects if it refuses it. */
  async start(onMessage: Accept): Promise<void> {
    await this.#bot.init();
    void this.#poll(onMessage);
  }

  /** Asks for messages until `stop` is called. A problem is said once, though it may last hours. */
  async #poll(onMessage: Accept): Promise<void> {
    let reported = "";
    while (!this.#stopping.signal.aborted) {
      try {
        await this.#receiveUpdates(onMessage);
        reported = "";
      } catch (error) {
        if (this.#stopping.signal.aborted) return;
        // Either Telegram is out of reach or refuses us, for example because another program polls
        // with the same token, or a message could not be stored.
        const problem = `telegram: ${error}. Trying again every 5 s.`;
        if (problem !== reported) warn(problem);
        reported = problem;
        await sleep(5_000);
      }
    }
  }

  /**
   * Long polling: Telegram holds the request open until there are updates. `offset` confirms all
   * before it, and Telegram forgets these. So an update has to be on disk before the offset goes
   * past it. If it can't be stored, this throws, and the same update comes again.
   */
  async #receiveUpdates(onMessage: Accept): Promise<void> {
    // Another program may have set a webhook for this bot, and then Telegram refuses getUpdates.
    if (this.#offset === 0) await this.#bot.api.deleteWebhook();
    const request = {
      offset: this.#offset,
      timeout: 30, // in seconds
      allowed_updates: ["message", "channel_post"] as const,
    };
    // The cast is safe, because grammY uses nothing of the signal that Node's signals don't have.
    const updates = await this.#bot.api.getUpdates(request, this.#stopping.signal as never);
    for (const { update_id, message, channel_post } of updates) {
      const received = message ?? channel_post;
      if (received) this.#receive(received, onMessage);
      this.#offset = update_id + 1;
    }
  }

  /**
   * Passes a message on, unless it is talk in a group that is not for us. Only one picture of an
   * album has the caption that mentions us. Those before it wait here for it, and those after it
   * follow it.
   */
  #receive(message: TelegramMessage, onMessage: Accept): void {
    const { chat, migrate_to_chat_id: newId } = message;
    if (newId) this.#movedChats.set(this.#oldId(String(chat.id)), String(newId));
    const inbound = this.#read(message);
    if (!inbound) return;
    const whole = inbound.part ?? inbound.id; // most messages have only one part, themselves
    const parts = this.#received.get(whole) ?? { isAddressed: false, held: new Map() };
    this.#received.set(whole, parts);
    forgetOldest(this.#received);
    parts.held.set(inbound.id, inbound);
    parts.isAddressed ||= isAddressedTo(this.#bot.botInfo, message);
    if (!parts.isAddressed) return;
    for (const [id, part] of parts.held) {
      this.#allowed.admit(this, part, onMessage);
      parts.held.delete(id); // only now, because `admit` throws if the part can't be stored
    }
  }

  #newId(chat: string): string {
    return this.#movedChats.get(chat) ?? chat;
  }

  /** The reverse of #newId. Moves are rare, so a search through all of them is quick enough. */
  #oldId(chat: string): string {
    const moves = [...this.#movedChats];
    return moves.find(([, newId]) => newId === chat)?.[0] ?? chat;
  }

  /** Undefined for other bots and for service messages. */
  #read(message: TelegramMessage): InboundMessage | undefined {
    const { chat, message_id } = message;
    const bot = this.#bot.botInfo;
    const sender = senderOf(message);
    const text = describeMessage(bot, message);
    if (!sender || (text === "" && isServiceMessage(message))) return undefined;
    return {
      id: `telegram:${bot.id}:${chat.id}:${message_id}`,
      channel: "telegram",
      accountId: String(bot.id),
      peerId: peerOf(message).replace(/^-\d+/, (group) => this.#oldId(group)),
      senderId: String(sender.id),
      senderName: sender.name,
      guildId: message.is_topic_message ? String(chat.id) : undefined,
      isGroup: chat.type !== "private",
      text,
      quoted: quotedBy(message),
      media: attachmentOf(message)?.media ?? [],
      at: message.date * 1000, // Telegram counts seconds
      part: this.#partOf(message),
    };
  }

  /**
   * The mark that all parts of one message share; undefined if it is whole. Telegram marks the
   * parts of an album. The pieces of a long text have ids in a row and come at once, and all but
   * the last are long: a long piece continues the previous text or starts a new one, and a short
   * piece ends the text. An update that could not be stored comes again and gets the same mark.
   */
  #partOf(message: TelegramMessage): string | undefined {
    const { chat, from, date, message_id: id, media_group_id } = message;
    if (media_group_id) return `telegram ${chat.id} ${media_group_id}`;
    const sender = `telegram ${peerOf(message)} ${from?.id}`;
    const previous = this.#pieces.get(`${sender} ${id - 1}`);
    const continues = previous !== undefined && date - previous.date <= MAX_CUT_GAP;
    const partOfPrevious = continues ? previous.part : undefined;
    if ((message.text ?? "").length < MIN_CUT_LENGTH) return partOfPrevious;
    const part = partOfPrevious ?? `${sender} ${id}`;
    this.#pieces.set(`${sender} ${id}`, { part, date });
    forgetOldest(this.#pieces);
    return part;
  }

  /** If the group has a new id by now, the text goes there; if its topic is gone, to the chat. */
  async send(to: string, text: string): Promise<void> {
    const { chat, options } = telegramAddress(to);
    try {
      await this.#bot.api.sendMessage(this.#newId(chat), text, options);
    } catch (error) {
      const newId = error instanceof GrammyError && error.parameters.migrate_to_chat_id;
      const isMoved = newId && String(newId) !== this.#newId(chat);
      if (isMoved) this.#movedChats.set(chat, String(newId));
      else if (!isTopicGone(error) || to === chat) throw telegramError(error);
      await this.send(isMoved ? to : chat, text);
    }
  }

  typing(to: string): Promise<unknown> {
    const { chat, options } = telegramAddress(to);
    return this.#bot.api.sendChatAction(this.#newId(chat), "typing", options);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    // This confirms what came last, which the next start would get again otherwise.
    await this.#bot.api.getUpdates({ offset: this.#offset, limit: 1, timeout: 0 });
  }
}

// -- 6 · A webhook, and who calls it --

// Feishu doesn't wait for us to ask. It calls a webhook, an address of ours to which it sends each
// event. Anyone who finds that address can send something there as well. So the server limits what
// it reads, and the channel checks by secrets, which only Feishu and we know, who sent an event.

/** What our HTTP server answers; the body is sent as JSON. */
type Answer = { status: number; body: object };

/** Gets the body byte for byte as it was sent, because a signature is a hash over these bytes. */
type HttpRoute = (body: Buffer, headers: http.IncomingHttpHeaders) => Answer;

/** To add a route to the HTTP server, set ROUTES["POST /path"] to a function of this type. */
export const ROUTES: Record<string, HttpRoute> = {};

const UNAUTHORIZED: Answer = { status: 401, body: { error: "this does not come from Feishu" } };

// What one request may take before we know who sends it: bytes in memory, and ms to send them.
const MAX_BODY = 65_536;
const MAX_REQUEST_TIME = 10_000;

/** Finds the route, reads the body, and lets the route answer. */
async function answerHttp(request: http.IncomingMessage): Promise<Answer> {
  const [pathname] = request.url?.split("?") ?? [];
  const handler = ROUTES[`${request.method} ${pathname}`];
  if (!handler) return { status: 404, body: { error: "not found" } };
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY) return { status: 413, body: { error: "too large" } };
    chunks.push(chunk);
  }
  return handler(Buffer.concat(chunks), request.headers);
}

/**
 * Starts the only HTTP server of the program. It listens on loopback, so Feishu reaches it through
 * a tunnel or a reverse proxy. If the port is taken, the server that this gives is not listening.
 */
async function startHttp(port: number): Promise<http.Server> {
  // Node looks from time to time for requests that take too long, and answers them with 408.
  const limits = { requestTimeout: MAX_REQUEST_TIME, connectionsCheckingInterval: 1_000 };
  const server = http.createServer(limits, async (request, response) => {
    const { status, body } = await answerHttp(request).catch((error) => {
      // What went wrong is in the log, and only there, because the sender may be anyone.
      warn(`http: ${error}`);
      return { status: 500, body: { error: "internal error" } };
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  try {
    await once(server.listen(port, "127.0.0.1"), "listening");
    // With HTTP_PORT=0 the system chooses the port, so we ask for it. The cast is safe: only a
    // server that listens on a pipe has an address without a port.
    info(`http: 127.0.0.1:${(server.address() as { port: number }).port}で待ち受けています`);
  } catch (error) {
    warn(`http: ${error}。HTTP_PORTを変えてください。ほかは動き続けます。`);
  }
  return server;
}

/** The fields of a value from outside. What is no object has none. */
const fieldsOf = (value: unknown): Fields => (isObject(value) ? value : {});

/** What a request of Feishu says. If it can't be read or decrypted, it says nothing. */
function openEvent(body: Buffer, encryptKey: string): Fields {
  const sent = fieldsOf(parseObject(body.toString()));
  if (!encryptKey) return sent;
  // An encrypted request has only the field `encrypt`, and the others are inside.
  const bytes = Buffer.from(String(sent.encrypt), "base64");
  const iv = bytes.subarray(0, 16);
  try {
    const decipher = crypto.createDecipheriv("aes-256-cbc", sha256(encryptKey).digest(), iv);
    // We join bytes, because one character may have its bytes in both pieces.
    const json = Buffer.concat([decipher.update(bytes.subarray(16)), decipher.final()]);
    return fieldsOf(parseObject(json.toString()));
  } catch {
    return {}; // it was encrypted with another key, or not at all
  }
}

/**
 * Compares two secrets. `===` stops at the first character that differs, so from the time that it
 * takes, a secret could be guessed one character after another. Hashes, because timingSafeEqual
 * needs equal lengths.
 */
function isSameSecret(given: string, secret: string): boolean {
  return crypto.timingSafeEqual(sha256(given).digest(), sha256(secret).digest());
}

const MAX_EVENT_AGE = 3600; // 秒

/**
 * Checks the signature, a hash over the body and a key that only Feishu and we have. Feishu signs
 * only what it encrypts, so without a key there is nothing to check: the token has to be enough.
 */
function isAuthentic(body: Buffer, headers: http.IncomingHttpHeaders, key: string): boolean {
  if (!key) return true;
  const time = headers["x-lark-request-timestamp"];
  const nonce = headers["x-lark-request-nonce"];
  const signature = sha256(`${time}${nonce}${key}`).update(body).digest("hex");
  // In a replay attack, somebody records a signed request and sends it again later. Its signature
  // is still right, but the time in it, which is signed as well, shows how old it is.
  const isFresh = Math.abs(Date.now() / 1000 - Number(time)) < MAX_EVENT_AGE;
  return isFresh && isSameSecret(String(headers["x-lark-signature"]), signature);
}

// -- 7 · Feishu: what a message says --

const fileKeyOf = ({ file_key, image_key }: Fields) => file_key ?? image_key;
const kindOf = ({ tag }: Fields) => (tag === "img" ? "image" : String(tag));

/**
 * The text of one element. A link is followed by its address. A mention has no text, and its
 * `user_id` is no id but a placeholder, "@_user_1", for which #nameMentions puts the name later.
 */
function textOfElement(element: Fields): string {
  if (fileKeyOf(element)) return `[${kindOf(element)}]`;
  const words = String(element.text ?? element.user_id ?? element.emoji_type ?? "");
  return element.href ? `${words} (${element.href})` : words;
}

/** The objects in a list from outside. What is no list has none. */
const objectsOf = (list: unknown) => (Array.isArray(list) ? list.map(fieldsOf) : []);

/**
 * A post is rich text: a title, and lines, each of which is a list of elements. It may be there
 * once for each language, under a key such as "zh_cn"; we take the first.
 */
function readPost(post: Fields) {
  const { title, content } =
    "content" in post ? post : fieldsOf(Object.values(post).find(isObject));
  const lines = Array.isArray(content) ? content.map(objectsOf) : [];
  const texts = lines.map((elements) => elements.map(textOfElement).join(""));
  const files = lines.flat().filter(fileKeyOf);
  const media = files.map((file) => ({ kind: kindOf(file), id: String(fileKeyOf(file)) }));
  return { text: [title, ...texts].filter(Boolean).join("\n"), media };
}

/**
 * Reads the content of a message: JSON, whose form depends on the type of the message. Gives the
 * words, and the pictures and files that came with them.
 */
function readFeishu(type: string, json: string) {
  const content = fieldsOf(parseObject(json));
  if (type === "post") return readPost(content);
  if (type === "text") return { text: textOfElement(content), media: [] }; // as in a post
  const key = fileKeyOf(content);
  if (key) return { text: `[${type}]`, media: [{ kind: type, id: String(key) }] };
  return { text: describeKind(type, ...wordsOf(content)), media: [] };
}

/** What Feishu's API answers. `code` is 0 if it did what we asked, else it says why not. */
type FeishuAnswer = {
  code: number;
  msg: string;
  retryAfter?: number; // seconds until we may ask again
  expire?: number;
  tenant_access_token?: string;
};

// Codes for what passes: too many requests, an error inside, a bot that is not active yet.
const FEISHU_BUSY = [99991400, 230020, 11232, 2200, 230006];
// Codes for what no attempt changes: the request is invalid, the bot is not in the chat or may not
// write there, the person has stopped it, the text is too long or not allowed.
const FEISHU_FINAL = [
  230001, 230002, 230013, 230018, 230022, 230025, 230028, 230034, 230035, 230053,
];
const FEISHU_EXPIRED = [99991661, 99991663, 99991664]; // codes for an access token that has expired
const FEISHU_GONE = [230011, 231003]; // codes for a message that was taken back or deleted

function feishuError({ code, msg, retryAfter }: FeishuAnswer): SendError {
  const permanent = FEISHU_FINAL.includes(code);
  const isUnknown = !permanent && !FEISHU_BUSY.includes(code);
  return new SendError(`${code} ${msg}`, { permanent, retryAfter, isUnknown });
}

// What the sender and the message of an event have to have, so that we can read it.
const FEISHU_MESSAGE = objectSchema(
  ofType("string", "sender_type", "chat_id", "message_type", "content"),
);

/**
 * What tells one message of Feishu from another. The message id does not: a redelivery, an event
 * that comes a second time, may have a new one. But its sender, time and content are the same. If
 * there is no time, only the message id tells two messages with the same words apart.
 */
function fingerprintOf(senderId: string, fields: Fields): string {
  const { create_time, chat_id, message_id, content } = fields;
  const origin = create_time ? [senderId, chat_id, create_time] : [message_id];
  return sha256(JSON.stringify([...origin, content])).digest("hex");
}

/** Separates chat and thread in the peerId of a Feishu topic, as in "oc_1:thread:omt_7". */
const THREAD = ":thread:";

// -- 8 · Feishu: in and out --

/** The adapter for Feishu, and for Lark, its international edition. Events come by a webhook. */
export class FeishuChannel implements Channel {
  readonly name = "feishu";
  readonly limit = 4000;
  #setting: Setting;
  #api: string;
  #allowed: AllowList;
  #access = { token: "", expiresAt: 0 };
  #stopped = false;
  // The first message of each topic, by the peerId of the topic. It is on disk, because after a
  // restart we still have to know which message an answer belongs under.
  #roots = new StoredMap("feishu-topics.json");

  /** 設定がおかしければエラーを投げる。 */
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

  /**
   * Resolves when Feishu has given us an access token, and rejects if it refuses. The route is set
   * before that, so that events are accepted while we wait for the token, and without one, too.
   */
  async start(onMessage: Accept): Promise<void> {
    ROUTES["POST /feishu/events"] = (body, headers) => this.#receive(body, headers, onMessage);
    while (!this.#stopped) {
      try {
        await this.#accessToken();
        return;
      } catch (error) {
        if (error instanceof SendError && (error.permanent || error.isUnknown)) throw error;
        await sleep(5_000); // the network is down, or Feishu is busy
      }
    }
  }

  /**
   * Answers as soon as the message is stored, without waiting for the model. If Feishu gets no
   * answer within 3 s, it sends the event again, which is called a redelivery.
   */
  #receive(body: Buffer, headers: http.IncomingHttpHeaders, onMessage: Accept): Answer {
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    const event = openEvent(body, encryptKey);
    const { token = event.token, event_type } = fieldsOf(event.header);
    const isToken = isSameSecret(String(token), this.#setting("FEISHU_VERIFICATION_TOKEN"));
    if (!isToken) return UNAUTHORIZED;
    // When the owner registers the webhook, Feishu tests it: we have to send the challenge back.
    // For this the token is enough, because the answer tells nobody anything new.
    if (event.type === "url_verification")
      return { status: 200, body: { challenge: event.challenge } };
    if (!isAuthentic(body, headers, encryptKey)) return UNAUTHORIZED;
    const isMessage = event_type === "im.message.receive_v1";
    const inbound = isMessage ? this.#tryToRead(event) : undefined;
    if (inbound) this.#allowed.admit(this, inbound, onMessage);
    return { status: 200, body: {} };
  }

  /** An event of odd shape is only reported: if we refused it, Feishu would send it again. */
  #tryToRead(event: Fields): InboundMessage | undefined {
    try {
      return this.#read(event);
    } catch (error) {
      if (isDiskError(error)) throw error; // then it has to come again
      warn(`feishu: 読み取れないイベントがありました：${error}`);
      return undefined;
    }
  }

  /** メッセージでないもの、こちら宛てでないものはundefined。 */
  #read({ header, event }: Fields): InboundMessage | undefined {
    const { sender, message } = fieldsOf(event);
    // In one object, because no name is in both.
    const fields = checkInput(FEISHU_MESSAGE, { ...fieldsOf(sender), ...fieldsOf(message) });
    const mentions = objectsOf(fields.mentions);
    const isGroup = fields.chat_type !== "p2p";
    const isForUs = !isGroup || mentions.some((mention) => this.#isBot(mention));
    if (fields.sender_type !== "user" || !isForUs) return undefined;
    const accountId = this.#setting("FEISHU_APP_ID");
    const senderId = String(fieldsOf(fields.sender_id).open_id ?? "");
    const type = String(fields.message_type);
    const { text, media } = readFeishu(type, String(fields.content));
    const words = text.trim() || `[${type}]`;
    return {
      id: `feishu:${accountId}:${fingerprintOf(senderId, fields)}`,
      channel: "feishu",
      accountId,
      peerId: this.#peerOf(fields),
      senderId,
      guildId: fieldsOf(header).tenant_key as string | undefined, // it is only compared
      isGroup,
      text: this.#nameMentions(words, mentions).trim() || words, // "@our_bot" alone is kept
      media,
      at: Number(fields.create_time) || Date.now(), // in ms already
    };
  }

  /** The conversation of a message. Each topic is a conversation of its own. */
  #peerOf({ chat_id, thread_id, root_id, message_id }: Fields): string {
    if (!thread_id) return String(chat_id);
    const peerId = `${chat_id}${THREAD}${thread_id}`;
    if (this.#roots.has(peerId)) return peerId;
    this.#roots.set(peerId, String(root_id || message_id)); // the first one has no root
    return peerId;
  }

  /** Whether we are mentioned. Without FEISHU_BOT_OPEN_ID never, so no group is answered. */
  #isBot(mention: Fields): boolean {
    const botId = this.#setting("FEISHU_BOT_OPEN_ID");
    return botId !== "" && fieldsOf(mention.id).open_id === botId;
  }

  /** Puts names where the text has "@_user_1", and nothing where it mentions the bot. */
  #nameMentions(text: string, mentions: Fields[]): string {
    const nameOf = (mention: Fields) => (this.#isBot(mention) ? "" : `@${mention.name}`);
    const names = new Map(mentions.map((mention) => [mention.key, nameOf(mention)]));
    return text.replace(/@_user_\d+/g, (key) => names.get(key) ?? key);
  }

  async send(to: string, text: string): Promise<void> {
    // Feishu turns <at user_id="all"> into a mention of everybody, which the model must not cause.
    const content = JSON.stringify({ text: text.replace(/<(?=\/?at\b)/gi, "< ") });
    const message = { msg_type: "text", content };
    let answer = await this.#postMessage(to, message);
    // An access token can become invalid early. One retry with a new token is enough: if Feishu
    // refuses that one, too, the token is not the problem.
    if (FEISHU_EXPIRED.includes(answer.code)) {
      this.#access.expiresAt = 0;
      answer = await this.#postMessage(to, message);
    }
    if (this.#roots.has(to) && FEISHU_GONE.includes(answer.code)) {
      this.#roots.delete(to); // so that this, and what comes later, goes to the chat instead
      answer = await this.#postMessage(to, message);
    }
    if (answer.code !== 0) throw feishuError(answer);
  }

  /** Writes to a chat. To a topic one can only write by answering one of its messages. */
  async #postMessage(to: string, message: object): Promise<FeishuAnswer> {
    const root = this.#roots.get(to);
    const call = root ? `/${encodeURIComponent(root)}/reply` : "?receive_id_type=chat_id";
    const target = root ? { reply_in_thread: true } : { receive_id: chatOf(to) };
    const token = await this.#accessToken();
    return this.#post(`/open-apis/im/v1/messages${call}`, { ...message, ...target }, token);
  }

  /** Gives the same token for about two hours, and gets a new one a minute before it expires. */
  async #accessToken(): Promise<string> {
    if (Date.now() < this.#access.expiresAt) return this.#access.token;
    const setting = this.#setting;
    const app = { app_id: setting("FEISHU_APP_ID"), app_secret: setting("FEISHU_APP_SECRET") };
    const answer = await this.#post("/open-apis/auth/v3/tenant_access_token/internal", app);
    if (answer.code !== 0) throw feishuError(answer);
    const { tenant_access_token: token = "", expire = 0 } = answer;
    this.#access = { token, expiresAt: Date.now() + (expire - 60) * 1000 };
    return token;
  }

  /** Gives what Feishu answers, also if it refuses. Throws SendError if there is no answer. */
  async #post(endpoint: string, body: object, token = ""): Promise<FeishuAnswer> {
    const headers = { "content-type": "application/json", authorization: `Bearer ${token}` };
    const signal = AbortSignal.timeout(10_000);
    const request = { method: "POST", headers, body: JSON.stringify(body), signal };
    let retryAfter = 0;
    try {
      const response = await fetch(this.#api + endpoint, request);
      retryAfter = Number(response.headers.get("x-ogw-ratelimit-reset"));
      if (response.status === 429 || response.status >= 500) throw new Error(response.statusText);
      const answer = (await response.json()) as FeishuAnswer; // 断られたときも、この形で返る
      return { ...answer, retryAfter };
    } catch (error) {
      throw new SendError(String(error), { retryAfter });
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    delete ROUTES["POST /feishu/events"];
  }
}

command("inbox", "[retry]：隔離したメッセージの一覧（retryで処理し直す）", (args, app) => {
  if (args === "retry") {
    const count = app.inbox.retry((message) => resume(app, message));
    return t(`${count}件のメッセージをキューに戻しました。`);
  }
  const lines = app.inbox.quarantined().map(({ message: { id, text } }) => {
    return `${id}  ${JSON.stringify(text.slice(0, 60))}`;
  });
  return lines.length > 0 ? lines : t("隔離したメッセージはありません。");
});

command("channels", "チャネルの一覧と状態", (_args, { channels }) =>
  [...channels.states].map(([name, state]) => `${name.padEnd(10)} ${state}`),
);

command("accounts", "プラットフォームで使うアカウントの一覧", () => {
  // Nothing of a secret is shown, because whoever knows it can act as the bot.
  const masked = (name: string) => `${name}  ${env(name) ? "***" : "-"}`;
  return ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(masked);
});

// ---- s05 · ゲートウェイとルーティング ----

// メッセージごとに、決めることが2つある。どのエージェントが答えるか。誰の会話に入るか。1つ目は
// バインディング、2つ目はエージェントのdmScopeで決まる。決めるのは受信箱に入れる前の一度だけ。
// あとから設定を変えても、もう入っているメッセージの行き先は変わらない。

/**
 * Who answers. With the `dmScope` "main" all direct chats with the agent are one conversation. Each
 * other value names what two messages must have in common to belong to the same one.
 */
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
  terminalAgent?: string; // /agentで決める
}

const LUNA = "You are Luna, a warm and brief assistant. Answer plainly.";
const SAGE = "You are Sage, a calm and thorough assistant. Give your reasons.";

/** Who can answer. The type asks for at least one, because the first is the default. */
export const AGENTS: [Agent, ...Agent[]] = [
  { id: "luna", system: LUNA, dmScope: "per-channel-peer" },
  { id: "sage", system: SAGE, dmScope: "per-channel-peer" },
];

/** エージェント。idで引く。 */
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

/** The name of a tier, which is also the field of a message that its bindings look at. */
type MatchKey = (typeof TIERS)[number];

/** 「ここから来たら、このエージェントが答える」。同じ段階なら、priorityの大きいほうが勝つ。 */
export interface Binding {
  agentId: string;
  tier: number; // its place in TIERS, from 1 to 5
  matchKey: MatchKey;
  matchValue: string; // "1001", or "telegram:1001" for a peer on one platform only
  priority: number;
}

/** The bindings at the start. Clients of the gateway can set others, until the program ends. */
export const BINDINGS: Omit<Binding, "tier">[] = [
  { agentId: "luna", matchKey: "default", matchValue: "*", priority: 0 },
];

/**
 * Finds the agent for a message. Each tier is a map from value to binding, because a look-up takes
 * the same time however many bindings there are.
 */
export class BindingTable {
  #byTier = new Map<string, Map<string, Binding>>(TIERS.map((key) => [key, new Map()]));

  constructor(bindings: Omit<Binding, "tier">[]) {
    for (const binding of bindings) this.set(binding);
  }

  /** キーも値も同じバインディングがあれば置き換える。 */
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

  /**
   * The agent for a message, and the binding that decided. We go through the tiers in order. The
   * first one with a binding that matches decides, and in it the one with the highest priority.
   */
  resolve(message: InboundMessage): { agentId: string; binding?: Binding } {
    for (const matchKey of TIERS) {
      const binding = this.#lookUp(matchKey, message);
      if (binding) return { agentId: binding.agentId, binding };
    }
    return { agentId: AGENTS[0].id };
  }

  #lookUp(matchKey: MatchKey, message: InboundMessage): Binding | undefined {
    const values = matchValues(matchKey, message).map((value) => value.toLowerCase());
    const found = values.map((value) => this.#byTier.get(matchKey)?.get(value));
    const bindings = found.filter((binding) => binding !== undefined);
    return bindings.sort((a, b) => b.priority - a.priority)[0];
  }
}

/** The values by which a binding with this key can apply to the message. */
function matchValues(matchKey: MatchKey, message: InboundMessage): string[] {
  if (matchKey === "default") return ["*"];
  const value = message[matchKey];
  if (!value) return [];
  // Two platforms may give the same number to two people, so a peer can be bound by both names:
  // "telegram:1001", or just "1001" for whoever has it.
  if (matchKey === "peerId") return [`${message.channel}:${value}`, value];
  return [value];
}

/**
 * 誰の会話か。大文字と小文字の扱いは、プラットフォームごとにもファイルシステムごとにも違うので、
 * 小文字にそろえる。まともなキーではありえない長さになったら投げる。
 */
export function buildSessionKey(agentId: string, message: InboundMessage, dmScope: DmScope) {
  const key = `agent:${agentId}:${conversationPlace(message, dmScope)}`.toLowerCase();
  if (key.length > 150) throw new Error(`peerId is too long: ${key.length} characters in the key`);
  return key;
}

/** Where the message was said, which is the part of its session key behind the agent. */
function conversationPlace(message: InboundMessage, dmScope: DmScope): string {
  const { channel, accountId, peerId, isGroup } = message;
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
 * What a method knows of the client that called it. `notify` sends it a notification before the
 * response is there, and does nothing if the request has no id that the notification could refer
 * to.
 */
export interface Connection {
  peerId: string; // 会話は別になる
  notify(method: string, params: object): void;
}

/** Gives the result. What it throws becomes the error of the response. */
export type Method = (params: Fields, app: App, connection: Connection) => unknown;

/**
 * What a client can ask of the gateway. To add a method, call `method` with its name, its
 * parameters, the names of those that may be left out, and a function that gives the result.
 */
export const METHODS: Record<string, Method> = {};

/** メソッドを加える。パラメーターは、ツールの入力と同じように検査する。 */
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

// バイト数。メッセージ1つの上限。遅い相手に溜めてよい量も同じ
const MAX_FRAME = 1024 * 1024;

/**
 * 1つのHTTPサーバーに載せた、WebSocket上のJSON-RPC 2.0。トークンがあれば、チャネルで話す人と
 * 同じことができ、バインディングも変えられる。持ち主ではないので、bashは使わせない。
 */
export class GatewayServer {
  address = ""; // "ws://…", once it is attached to a server that listens
  readonly sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME });
  readonly #token: string;
  readonly #conversations = new Map<string, Set<string>>(); // session keys by connection

  constructor(token: string) {
    this.#token = token;
  }

  /** The keys of the conversations in which a connection has said something. */
  conversationsOf({ peerId }: Connection): Set<string> {
    const keys = this.#conversations.get(peerId) ?? new Set();
    this.#conversations.set(peerId, keys);
    return keys;
  }

  /** From now on, whoever asks this server for a WebSocket at "/" talks to the gateway. */
  attach(server: http.Server, app: App): void {
    const address = server.address();
    if (typeof address === "object" && address) this.address = `ws://127.0.0.1:${address.port}/`;
    server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      // A client may be gone before we answer. Without a listener that error would end the program.
      socket.on("error", () => {});
      if (request.headers.upgrade?.toLowerCase() !== "websocket") {
        ignoreOffer(server, request, socket, head);
        return;
      }
      const refusal = this.#refusalOf(request);
      if (refusal) {
        socket.end(`HTTP/1.1 ${refusal}\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.sockets.handleUpgrade(request, socket, head, (client) => this.#listenTo(client, app));
    });
  }

  /**
   * A WebSocket begins with a handshake, which is an HTTP request to upgrade the connection. Gives
   * the status that refuses it. After the handshake it would be too late: the client could send.
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
    socket.on("close", () => this.#conversations.delete(client.peerId));
    socket.on("error", (error) => info(`gateway: ${error.message}`)); // 上限を超えたフレームなど
    socket.on("message", async (data) => {
      const response = await answerRpc(String(data), app, client);
      if (response) client.push(response);
    });
  }
}

/**
 * Some clients offer another protocol with a plain request, such as "Upgrade: h2c", and a server
 * may ignore that. But if it listens for upgrades, Node stops to read HTTP at every offer. So we
 * put the request back without the offer, and let the server begin with the connection anew.
 */
function ignoreOffer(
  server: http.Server,
  offer: http.IncomingMessage,
  socket: Duplex,
  head: Buffer,
): void {
  let request = `${offer.method} ${offer.url} HTTP/${offer.httpVersion}\r\n`;
  for (const [index, name] of offer.rawHeaders.entries()) {
    const isName = index % 2 === 0; // names and values take turns in this list
    if (!isName || name.toLowerCase() === "upgrade") continue;
    request += `${name}: ${offer.rawHeaders[index + 1]}\r\n`;
  }
  socket.unshift(Buffer.concat([Buffer.from(`${request}\r\n`, "latin1"), head]));
  server.emit("connection", socket);
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
 * Sends a message, if the client is still there. Backpressure: what a client does not read piles up
 * in our memory, so we drop a client that leaves too much of it unread. This is asked before we
 * send: a long list of sessions may itself be too much for one moment, but that proves nothing.
 */
function pushTo(socket: WebSocket, message: object): void {
  if (socket.bufferedAmount > MAX_FRAME) socket.terminate();
  if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message));
}

/** The other end of one WebSocket. Each of its requests gets a Connection made from this. */
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

const MAX_BATCH = 100; // requests, because all of them are worked on at the same time

/** リクエスト、またはそのバッチへの答え。通知しかなければ、答えはない。 */
async function answerBatch(batch: unknown[], app: App, client: Client) {
  if (batch.length > MAX_BATCH) {
    const words = `a batch has at most ${MAX_BATCH} requests`;
    return errorResponse(null, new RpcError(INVALID_REQUEST, words));
  }
  const all = await Promise.all(batch.map((message) => answerMessage(message, app, client)));
  const responses = all.filter((response) => response !== undefined);
  return responses.length > 0 ? responses : undefined;
}

/**
 * リクエスト1つへの答え。通知なら、結果がどうなっても答えない。リクエストは互いに待たない。
 * "send"がまだモデルを待っている間にも、"status"には答える。
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
  if (!isObject(message)) return invalidRequest(null);
  const { jsonrpc, id, method: name, params = {} } = message;
  const isId = id === null || typeof id === "string" || typeof id === "number";
  const hasGoodId = isId || id === undefined;
  const isRequest = jsonrpc === "2.0" && typeof name === "string" && hasGoodId;
  if (isRequest) return { id, method: name, params };
  return invalidRequest(isId ? id : null);
}

const invalidRequest = (id: RpcId) =>
  errorResponse(id, new RpcError(INVALID_REQUEST, "this is no request of JSON-RPC 2.0"));

/** Runs the method that a request names. It never rejects: an error becomes the response. */
async function dispatch(request: RpcRequest, app: App, client: Client) {
  const { id, method: name, params } = request;
  const notify = (notification: string, more: object) => {
    if (id !== undefined)
      client.push({ jsonrpc: "2.0", method: notification, params: { id, ...more } });
  };
  try {
    // Every object inherits "constructor" and "toString", and these are no methods of ours.
    const run = Object.hasOwn(METHODS, name) ? METHODS[name] : undefined;
    if (!run) throw new RpcError(METHOD_NOT_FOUND, `there is no method ${name}`);
    // `params` may still be anything. Each method checks it against its schema.
    const value = await run(params as Fields, app, { peerId: client.peerId, notify });
    return { jsonrpc: "2.0", id: id ?? null, result: value } satisfies ResultResponse;
  } catch (error) {
    if (error instanceof RpcError) return errorResponse(id ?? null, error);
    warn(`gateway: ${name}: ${error}`);
    return errorResponse(id ?? null, new RpcError(INTERNAL_ERROR, "internal error"));
  }
}

// Only the owner and the program itself write on these channels, so no client may name them. (Cron
// jobs and heartbeats come in s07.)
const INTERNAL_CHANNELS = ["cli", "cron", "heartbeat"];

const SENDER = {
  channel: string("The channel that decides about route and session key; ws if left out."),
  peerId: string("The chat on it; if left out, one that only this connection has."),
  agentId: string("The agent that answers; if left out, the bindings decide."),
};
const SEND = { text: string("What the person says."), ...SENDER };

// sendは受信箱に入れない。クラッシュすれば接続も切れ、答えを待つ人はいない。それでも、話したことは
// セッションに残っている。
method("send", SEND, Object.keys(SENDER), async (params, app, connection) => {
  const inbound = messageFromClient(params, connection);
  const agent = requestedAgent(params, app);
  const message = orInvalidParams(() => route(inbound, app, agent));
  const { agentId, sessionKey } = message;
  app.gateway.conversationsOf(connection).add(sessionKey);
  try {
    return { agentId, sessionKey, reply: await answerClient(message, app, connection) };
  } catch (error) {
    // The error may name files of this machine, which are not the client's affair.
    warn(`gateway: ${sessionKey}: ${error}`);
    throw new RpcError(SERVER_ERROR, "the turn failed; the log of the gateway says why");
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
  return runExclusive(message.sessionKey, () => {
    connection.notify("typing", {});
    return answerTo(message, app, options);
  });
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
    matchKey: matchKey as MatchKey, // the schema lets nothing else through
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

method("sessions.list", {}, [], (_params, app) => app.store.headers());

method("status", {}, [], (_params, app) => ({
  uptime: Math.round(process.uptime()), // 秒
  channels: Object.fromEntries(app.channels.states),
  connections: app.gateway.sockets.clients.size,
  conversations: tails.size, // queues with work: conversations, and (s07) jobs and heartbeat
  waiting: app.inbox.pending().length,
}));

// The commands that a client may run, for an owner who is not at the terminal. To add one, add how
// its line begins. What shows somebody's words or prompts does not belong here.
const REMOTE_COMMANDS = ["inbox retry"];

method("command", { line: string("Such as /inbox retry.") }, [], async ({ line }, app) => {
  const words = String(line).trim().replace(/^\//, "");
  const isRemote = REMOTE_COMMANDS.some((one) => `${words} `.startsWith(`${one} `));
  if (!isRemote) {
    throw new RpcError(INVALID_PARAMS, `line: only ${REMOTE_COMMANDS.join(", ")}`);
  }
  try {
    return { text: await runCommand(`/${words}`, app, {}) };
  } catch (error) {
    if (isDiskError(error)) throw error; // it names files, so only the log gets it
    throw new RpcError(INVALID_PARAMS, error instanceof Error ? error.message : String(error));
  }
});

command("bindings", "バインディングの一覧（何に誰が答えるか）", (_args, { bindings }) =>
  bindings.list().map((one) => `${one.matchKey} ${one.matchValue} → ${one.agentId}`),
);

command(
  "route",
  "<channel> <peer> [account] [guild] [group]：誰が答えるか、なぜか",
  (args, app) => {
    const words = args.split(/\s+/);
    const [channel = "", peerId = "", accountId = "", guildId] = words.filter((w) => w !== "group");
    // Telegram's groups have negative numbers. Elsewhere an id does not tell whose it is.
    const isGroup = words.includes("group") || peerId.startsWith("-");
    const nothingSaid = { id: "", senderId: "", text: "", media: [], at: 0 };
    const message = { ...nothingSaid, channel, peerId, accountId, guildId, isGroup };
    const { binding } = app.bindings.resolve(message);
    const { agentId, sessionKey } = route(message, app);
    return `${agentId}  ${sessionKey}  (${binding?.tier ?? 5} ${binding?.matchKey ?? "default"})`;
  },
);

command("agents", "エージェントの一覧", (_args, { agents }) =>
  [...agents.values()].map(({ id, dmScope, system }) => `${id}  ${dmScope}  ${system}`),
);

command("agent", "<id>|off：ここで答えるエージェントを選ぶ", (id, app) => {
  app.terminalAgent = id === "off" ? undefined : app.agents.find(id).id;
  // The agent is a part of the key, so with each agent the terminal has another conversation.
  // In TERMINAL_KEY "luna" stands where a session key has the id of the agent.
  app.key = TERMINAL_KEY.replace("luna", app.terminalAgent ?? "luna");
  return t(`これからは${app.terminalAgent ?? "バインディングで決まるエージェント"}が答えます。`);
});

command("sessions", "すべての会話", async (_args, { store }) => {
  const headers = await store.headers();
  return headers.map(({ id, key, label }) => `${id}  ${key}  ${label}`).join("\n");
});

command("gateway", "ほかのプログラムの接続先", (_args, { gateway }) =>
  t(`${gateway.address || "（待ち受けていません）"}  接続中：${gateway.sockets.clients.size}`),
);

const TOKEN_FILE = path.join(STATE, "gateway-token");
const MIN_TOKEN = 16; // characters; a shorter one could be guessed
const isLongEnough = (token = "") => token.length >= MIN_TOKEN;

/**
 * 設定のトークン。なければ作り、取っておく。ループバックだけでは守りにならない。このマシンの
 * どのプログラムからも、どのページからも届く。
 */
function gatewayToken(): string {
  const given = env("GATEWAY_TOKEN");
  if (given && !isLongEnough(given)) {
    throw new Error(`GATEWAY_TOKEN must have at least ${MIN_TOKEN} characters`);
  }
  const kept = readOrQuarantine(TOKEN_FILE, (file) => fs.readFileSync(file, "utf8").trim());
  const usable = [given, kept].find(isLongEnough);
  if (usable) return usable;
  if (kept !== undefined) quarantine(TOKEN_FILE, t("16文字以上のトークンがありません"));
  const token = crypto.randomBytes(24).toString("base64url"); // 32 characters
  fs.writeFileSync(TOKEN_FILE, token, { mode: 0o600 }); // 読めるのはこのユーザーだけ
  return token;
}

// ---- 全体をつなぐ ----

/** Checks the settings. Throws, naming one that is wrong; without an API key the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEYが設定されていません。.env.exampleを.envにコピーし、キーを書いてください。");
    fail("キーがなくても、`npm start`なら同じプログラムを練習用モデルとオフラインで動かせます。");
    process.exit(1);
  }
  if (!(CONTEXT_TOKENS >= 1000)) throw new Error("CONTEXT_TOKENS must be a number from 1000 up");
}

/**
 * The proxy that is set, as curl takes it: the scheme may be missing, and the name may be in small
 * letters. The password may have a "#", "/" or "?" in it, which in other addresses ends the host.
 */
function proxySetting(name: string): string | undefined {
  const value = env(name.toLowerCase()) || env(name);
  if (!value) return undefined;
  const withScheme = value.includes("://") ? value : `http://${value}`;
  const address = withScheme
    .replace(/^socks5h:/i, "socks5:") // undici lets the proxy look up names in either case
    .replace(/(?<=:\/\/.*)[#/?](?=.*@)/g, encodeURIComponent); // in the password, before the "@"
  if (/^(https?|socks5):/i.test(address) && URL.canParse(address)) return address;
  // Without the value, because there may be a password in it.
  throw new Error(`${name} must be the address of a proxy, such as http://127.0.0.1:7890`);
}

/** Throws if .env is in UTF-16, as Windows PowerShell writes it: dotenv finds nothing in it. */
function checkEnvFile(): void {
  const file = path.join(import.meta.dirname, "../../.env");
  const isUtf16 = fs.existsSync(file) && fs.readFileSync(file).includes(0);
  if (isUtf16) throw new Error(".env is in UTF-16: save it in UTF-8");
}

/** Checks an address, and takes off a "/" at its end, which would become "//" before a path. */
function checkAddress(name: string): void {
  const isAddress = /^https?:\/\//i.test(env(name)) && URL.canParse(env(name));
  if (!isAddress) throw new Error(`${name} must be an address, such as https://example.com`);
  process.env[name] = env(name).replace(/\/+$/, "");
}

/** Step 1 of main. Reads what was set for this run. A wrong value ends the program here. */
function readSettings() {
  checkEnvFile();
  checkSettings();
  ["ANTHROPIC_BASE_URL", "TELEGRAM_API_ROOT", "FEISHU_API_BASE"].filter(env).forEach(checkAddress);
  return {
    httpPort: wholeNumber("HTTP_PORT", 8765, 65535),
    httpProxy: proxySetting("HTTP_PROXY"),
    httpsProxy: proxySetting("HTTPS_PROXY"),
  };
}

/** Step 2 of main. Creates the parts of the program from what is on disk. Nothing runs yet. */
function createApp(): App {
  const channels = new ChannelManager();
  if (env("TELEGRAM_BOT_TOKEN")) channels.set("telegram", new TelegramChannel(env));
  if (env("FEISHU_APP_ID")) channels.set("feishu", new FeishuChannel(env));
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
    inbox: new Inbox(path.join(STATE, "inbox")),
    channels,
    agents: new AgentManager(AGENTS.map((agent) => [agent.id, agent])),
    bindings: new BindingTable(BINDINGS),
    gateway: new GatewayServer(gatewayToken()),
  };
  // A binding to an agent that does not exist throws here, and the error names the agent.
  for (const { agentId } of BINDINGS) app.agents.find(agentId);
  return app;
}

function greet({ store, key }: App): void {
  const { id, messages } = store.current(key);
  info(`モデルは${MODEL}です。Ctrl+Cで応答を中断、quitで終了します。`);
  info(`セッション${id}、メッセージ${messages.length}件。コマンドの一覧は/helpで見られます。`);
}

/** Step 3 of main. Starts everything that runs beside the terminal. */
async function startApp(app: App, settings: ReturnType<typeof readSettings>): Promise<void> {
  const { httpPort, httpProxy, httpsProxy } = settings;
  // From here on every fetch of this process goes through HTTPS_PROXY or HTTP_PROXY, if one is set.
  setGlobalDispatcher(new EnvHttpProxyAgent({ httpProxy, httpsProxy }));
  const server = await startHttp(httpPort);
  // Feishu's events come in over HTTP. If the port is taken, it could receive nothing, so the
  // channel is removed for this run, and its messages stay in the inbox.
  if (!server.listening) app.channels.delete("feishu");
  app.gateway.attach(server, app);
  // Whoever has set a token knows it, so the address is printed only with a token that we made. A
  // log is read by more people than a terminal, so there only the path of the token is printed.
  const isTokenMade = !env("GATEWAY_TOKEN");
  const token = SERVING ? `  token: ${TOKEN_FILE}` : `?token=${gatewayToken()}`;
  if (app.gateway.address && isTokenMade) info(`gateway: ${app.gateway.address}${token}`);
  // Before the channels receive anything new, so that nobody is answered out of order.
  resumeInbox(app);
  await app.channels.start((message, signal) => accept(app, message, signal));
}

/**
 * Goes on with the messages that an earlier run accepted and did not finish. One whose channel is
 * not set up in this run stays in the inbox until a run in which it is.
 */
function resumeInbox(app: App): void {
  for (const message of app.inbox.newlyQuarantined.values()) tellQuarantined(app, message);
  for (const message of app.inbox.pending()) resume(app, message);
}

/**
 * Puts a message in line again, unless its channel is not set up in this run. `handle` deals with a
 * turn that fails. If anything else fails, the inbox keeps the message.
 */
function resume(app: App, message: Routed): void {
  if (!app.channels.has(message.channel)) return;
  enqueue(app, message).catch((error) => warn(`${message.id}: ${error}`));
}

/** Tells the person, before the messages that they wrote later are answered. */
function tellQuarantined(app: App, message: Routed): void {
  const text = t("以前のメッセージに返信できませんでした。ボットの持ち主が再試行できます。");
  const tell = () => untilStored(() => reply(app, message, text));
  runExclusive(message.sessionKey, tell).catch((error) => warn(`${message.id}: ${error}`));
}

/** Answers lines and runs commands until the person at the terminal leaves. */
async function runTerminal(app: App): Promise<void> {
  const cli = new CliChannel(app);
  app.channels.set("cli", cli);
  await cli.start((message, signal) => accept(app, message, signal));
  await cli.closed;
}

/** Resolves when a service manager or a person asks the program to stop. */
async function stopSignal(): Promise<void> {
  // シグナルを待つだけでは、Nodeは終了してしまう
  if (SERVING) setInterval(() => {}, 60_000);
  // At the terminal, Ctrl+C (SIGINT) is for the reply. SIGHUP says that its window was closed.
  const signals = SERVING ? ["SIGTERM", "SIGINT"] : ["SIGTERM", "SIGHUP"];
  await Promise.race(signals.map((signal) => once(process, signal)));
}

/**
 * Step 4 of main is a graceful shutdown: no channel receives any more, and turns that are running
 * get up to 10 s. What is not done by then is in the inbox, so the next start goes on with it.
 */
async function shutDown(app: App): Promise<void> {
  app.inbox.stopCounting();
  await app.channels.stop();
  // If the input is a pipe, we don't wait: its lines are all answered by now, and messages of other
  // channels stay in the inbox.
  if (SERVING || process.stdin.isTTY)
    await Promise.race([Promise.allSettled(tails.values()), sleep(10_000)]);
  // A shell is a process group of its own, so it would go on after us.
  for (const shell of SHELLS) killGroup(shell.pid);
  // パイプの相手が全部受け取ったら
  process.stdout.write("", () => process.exit(0));
}

async function main(): Promise<void> {
  // If nobody reads the output any more (`--serve | head -n 1`), the gateway goes on without it.
  process.stdout.on("error", () => {});
  const settings = readSettings();
  lockFolder(STATE);
  const app = createApp();
  if (SERVING) info(`モデルは${MODEL}です。Ctrl+Cでプログラムを停止します。`);
  else greet(app);
  // We listen for signals from here on, because one may arrive while the channels are starting.
  const stopped = stopSignal();
  await startApp(app, settings);
  // With --serve only a signal ends the program. Without it, the person can leave as well.
  await (SERVING ? stopped : Promise.race([stopped, runTerminal(app)]));
  await shutDown(app);
}

if (RUN) {
  await main().catch((error) => {
    fail(error.message);
    process.exit(1);
  });
}
