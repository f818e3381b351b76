// ハートビートとcron
//
// 頼まれなくても動く。ジョブは決まった時刻に動き、エージェントはときどき、持ち主に知らせることが
// ないかを見て回る。そのために人を待たせることはない。
//
//   タイマー、60秒以内 ─┬─► CRON.json：時刻の来たジョブは？ ──► accept ──► Inbox ──► 1つずつ動かす
//                       └─► ハートビートの時刻？ ──► 見送るか、尋ねる ──► "HEARTBEAT_OK"なら黙る
//   人 ──► … ──► 誰かに答えている間、ジョブは待ち、ハートビートは見送る
//
// この章で加わるもの：時計を見直すタイマー、タイムゾーン付きのcron、ハートビート。
// 動かし方：  npm start -- s07 --lang ja    オフライン
//             npx tsx sessions/ja/s07_heartbeat_cron.ts [--serve]    .envのキーを使う
// 省いたもの：エージェントがジョブを作ること、全実行の記録、失敗のたびに間隔を広げること、
// エージェントごとのハートビート、時刻をとうに過ぎたジョブを捨てること。
//
// 領域：設定 · ターミナル · s01 エージェントループ · s02 ツール · s03 セッション ·
//       s04 チャネル · s05 ゲートウェイとルーティング · s06 知性 ·
//       s07 ハートビートとcron · 全体をつなぐ

// このファイルは英語版とcode.poから作られる。文を直すときはcode.poを編集し、npm run translate。

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

// ---- 設定 ----

// importしただけでは何も起きないようにする。.envを読むのは、直接実行されたときだけ。
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // プログラム自身の保存場所
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);
type Setting = (name: string) => string; // 未設定なら""
const env: Setting = (name) => process.env[name] ?? "";

// ---- ターミナル ----

let atLineStart = true;

/** モデルの言葉を、届いた分から表示する。 */
export function say(piece: string) {
  if (typing && piece) return sayAbove(typing, piece);
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** プログラム自身が出す行。淡色、黄、赤。 */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** その場では表示しないが、人に見せる文。翻訳の対象だという目印。 */
export const text = (sentence: string) => sentence;

let typing: Interface | undefined; // プロンプトで人が入力しているかもしれない間だけ入る

/**
 * 入力中の行の上に表示する。行はターミナルの幅で折り返しているかもしれない。そこで、行の1段目まで
 * 戻って全部消し、表示し、同じ段数だけ空けて、入力中の行を描き直させる。
 */
function sayAbove(reader: Interface, lines: string): void {
  const { rows } = reader.getCursorPos();
  process.stdout.write(`\r${rows ? `\x1b[${rows}A` : ""}\x1b[J${lines}${"\n".repeat(rows)}`);
  reader.prompt(true);
}

/** 人やパイプから行を読み、1行ずつ渡す。 */
export class Terminal {
  /** Ctrl+Cは、処理中の行のsignalを中断する。プロンプトで押せば終了する。 */
  async run(handle: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    // readlineに任せると、ストリーミング中の応答にキー入力のエコーが混ざる。応答中は止めておき、
    // 入力はキーボードとreadlineの間に溜める。すぐに拾うのはCtrl+Cだけ。
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
    // 1行ずつ流す。readlineは止められても、受け取った分は最後まで処理してしまう。
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
      if (line) await handle(line, turn.signal).catch((e) => fail(`エラー：${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    typing = undefined;
    stdin.destroy();
    say("\n");
  }
}

// ---- s01 · エージェントループ ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** 応答はAPIが返したまま残す。id、停止理由、usageもそのまま。 */
export type Message = Anthropic.Message | (Entry & { role: "user" });

/** モデルは前の呼び出しを覚えていない。モデルが知っているのは、このリストにあることだけ。 */
export class Conversation {
  messages: Message[] = [];

  append(message: Message, _about: { inboxId?: string } = {}): void {
    this.messages.push(message);
  }
}

/** 1ターンの動かし方。届いた応答をどこへ流すか、何で止められるか。 */
export interface TurnOptions {
  onText?(piece: string): void;
  signal?: AbortSignal;
}

/** この理由で止まったら、まだ続きがある。ほかなら終わりで、そのとき人に見せる文が下の表。 */
const GO_ON = new Set(["pause_turn"]);
const STOP_NOTES: Record<string, string> = {
  end_turn: "",
  stop_sequence: "",
  max_tokens: text("\n（応答がトークン数の上限に達し、途中で切れました）"),
  refusal: text("\n（モデルが回答を断りました。このターンは以後モデルに送りません）"),
  model_context_window_exceeded: text("\n（モデルが一度に読める量を超えたため、途中で切れました）"),
};
const noteOf = (m: Message) => ("stop_reason" in m && STOP_NOTES[m.stop_reason ?? ""]) || "";
const startsTurn = (entry: Entry) => entry.role === "user" && resultsIn(entry).length === 0;

/** APIが受け付ける形にした履歴。空のものと拒否されたものを外し、役割を交互に並べる。 */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  history = answerCalls(history);
  for (const message of history) {
    const last = request.at(-1);
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    // 応答の末尾がthinkingであってはならない。そうなっていたら、思考の途中で切れている。
    while (content.at(-1)?.type.endsWith("thinking")) content.pop();
    // 一度拒否された発言は、何度送っても拒否される。後ろに続くものも巻き添えになる。
    const refused = "stop_reason" in message && message.stop_reason === "refusal";
    if (refused) request.splice(request.findLastIndex(startsTurn));
    else if (last?.role === message.role) last.content.push(...content);
    else if (content.length > 0) request.push({ role: message.role, content });
  }
  return request;
}

/** 1回の呼び出しに必要なものすべて。 */
export function buildRequest({ messages }: Conversation, options: TurnOptions) {
  return {
    model: options.agent?.model ?? MODEL,
    max_tokens: 8192,
    system: buildSystemPrompt(options),
    tools: toolsFor(options),
    messages: markLast(toRequest(messages)),
  };
}

/** 1回の呼び出し。応答か、中断されたときは届いていた分を返す。APIのエラーは投げる。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // ANTHROPIC_API_KEYとANTHROPIC_BASE_URLは、SDKが環境変数から読む。
  const stream = new Anthropic().messages.stream(request, { signal: options.signal });
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
    // 止めたのはこちらなので停止理由はない。idとusageはAPIしか付けられない。
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  }
}

/** ループ本体。保存された会話だけを見て進むので、どこからでも入り直せる。 */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    checkRounds(conversation);
    const reply = await callModel(buildRequest(conversation, options), options);
    conversation.append(reply);
    options.onText?.(noteOf(reply));
    if (reply.stop_reason !== "tool_use") continue;
    const turn = { ...options, conversation };
    const results = await Promise.all(callsIn(reply).map((call) => runTool(call, turn)));
    conversation.append({ role: "user", content: results });
  }
}

const needsReply = (last?: Message) => last?.role === "user" || GO_ON.has(last?.stop_reason ?? "");

/** ターンを最後まで進め、人の発言のあとにモデルが話したことをまとめて返す。 */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  await GUARD.run(conversation, options, () => continueTurn(conversation, options));
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(spoken).filter(Boolean).join("\n\n");
}

const spoken = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + noteOf(message);

/** 1ターン。人の発言はモデルに尋ねる前に記録し、あとで消すこともない。 */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  const about = { inboxId: options.message?.id };
  const texts = [contextFor(conversation, input, options), input];
  const content = texts.map((text) => ({ type: "text" as const, text }));
  conversation.append({ role: "user", content }, about);
  return finishTurn(conversation, options);
}

// ---- s02 · ツール ----

/** ハンドラーに渡す、処理中のターンの情報。 */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

type Fields = Record<string, unknown>; // 外から来た値

/** スキーマに合った入力を受け取り、出力を返す。投げたエラーはモデルが読む。 */
export type Handler = (input: Fields, turn: Turn) => string | Promise<string>;

const string = (description: string) => ({ type: "string", description });
const file = string("The path, relative to the workspace.");

function tool(name: string, description: string, properties: object, optional: string[] = []) {
  const required = Object.keys(properties).filter((field) => !optional.includes(field));
  return { name, description, input_schema: { type: "object" as const, properties, required } };
}

/** モデルに見せる説明。モデルにとって、ツールはこの文面がすべて。 */
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

/** モデルがその名前を呼んだとき、手元で動く関数。 */
export const HANDLERS: Record<string, Handler> = {
  bash: (input, turn) => bash(String(input.command), Number(input.seconds ?? 60), turn.signal),
  read_file: (input) => readText(safePath(String(input.path), WORKSPACE)),
  write_file: (input) => writeText(String(input.path), String(input.content)),
  edit_file: (input) =>
    editText(String(input.path), String(input.old_text), String(input.new_text)),
};

GO_ON.add("tool_use");
const MAX_ROUNDS = 50;
const OUTPUT_LIMIT = 30_000; // 結果1つあたりの文字数。先頭と末尾を半分ずつ残す

/** 堂々めぐりするモデルは、誰かが気づくまで料金を食い続ける。 */
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
 * すべての呼び出しの直後に結果を1つずつ置いた履歴。APIがそう要求する。結果のない呼び出しは、
 * クラッシュやCtrl+C、入力途中の`max_tokens`で生まれる。API側で動くツールの呼び出しも、
 * 一時停止中のエラーで結果のないまま残ることがある。その呼び出しは履歴から外す。
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
    const reply = { ...message, content } as Anthropic.Message; // 元のブロックか、その一部
    // 拒否されたターンは丸ごと外れるので、呼び出しに結果は要らない。
    if (open.length === 0 || message.stop_reason === "refusal") return [reply];
    const cut = message.stop_reason === "max_tokens";
    const why = cut ? "cut off; it was not run" : "interrupted; it may have run";
    return [reply, { role: "user", content: open.map(({ id }) => result(id, why, true)) }];
  });
}

/** 呼び出しを1つ実行する。例外は投げない。失敗も、モデルが次の手を考えられる結果にする。 */
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
  // 出力を切った端に文字の片割れ（サロゲート）が残ると、リクエスト全体が無効になる。
  const content = keepEnds(output, OUTPUT_LIMIT).toWellFormed() || "(no output)";
  return { type: "tool_result", tool_use_id: id, content, ...(failed && { is_error: true }) };
}

type Property = { type?: string; enum?: unknown[] };

/** 必須項目がそろい、型も合っていれば入力を返す。だめなら項目名を添えてエラーにする。 */
export function checkInput(schema: Anthropic.Tool.InputSchema, input: unknown) {
  if (typeof input !== "object" || input === null) throw new Error("the input must be an object");
  const fields: Fields = { ...input };
  const properties = (schema.properties ?? {}) as Record<string, Property>; // 自前の値
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

/** 文字列をそのまま返す。`limit`より長ければ両端だけ。`lost`は、すでに捨てた文字数。 */
function keepEnds(whole: string, limit: number, lost = 0): string {
  if (whole.length <= limit) return whole;
  const half = Math.ceil(limit / 2);
  const left = whole.length - 2 * half + lost;
  return `${whole.slice(0, half)}\n… ${left} characters left out …\n${whole.slice(-half)}`;
}

/**
 * `root`以下にあるファイルの実際のパス。ファイルはまだなくてもよい。外に出るならエラー。
 * ".."でも、絶対パスでも、隣の"root2"でも、シンボリックリンク経由でも同じ。
 */
export function safePath(file: string, root: string): string {
  const base = fs.realpathSync.native(root);
  const target = path.resolve(base, file);
  let existing = target;
  while (!fs.lstatSync(existing, { throwIfNoEntry: false })) existing = path.dirname(existing);
  // 行き先のないリンクではrealpathが失敗する。それでよい。書き込むと行き先ができてしまう。
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

// ファイルのツールはわざと同期にしてある。呼び出しは並行して動くが、編集の読み込みと
// 書き込みの間には誰も割り込めない。

function readText(file: string): string {
  const stat = fs.statSync(file);
  if (!stat.isFile()) throw new Error("not a file"); // パイプを読むと永遠に待つ
  if (stat.size > 10_000_000)
    throw new Error(`${stat.size} bytes are too many: look at parts with bash`);
  const bytes = fs.readFileSync(file);
  const content = bytes.toString("utf8");
  // ほかの文字コードのファイルは、書き戻すと壊れる。
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** `words`の改行をファイルに合わせる。元の改行が何であれ、モデルは"\n"と書いてくる。 */
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

// bashはワークスペースで始まるが、閉じ込められてはいない。あなたが読めるものは.envでも読める。
// 環境変数にキーやトークンがないので、うっかり`env`を実行してもモデルには見えない。ただし
// これは事故よけの柵。悪意に効くのはサンドボックスか、ツールを渡さないことだけ。
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";

async function bash(command: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const env = Object.fromEntries(SAFE_ENV.split(" ").map((name) => [name, process.env[name]]));
  const child = spawn(command, {
    shell: WINDOWS || "bash",
    cwd: WORKSPACE,
    env,
    detached: !WINDOWS, // 独立したプロセスグループにして、まとめて終了できるようにする
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  let output = "";
  let lost = 0;
  const collect = (piece: string) => {
    output += piece;
    if (output.length < 10 * OUTPUT_LIMIT) return;
    // 出力が多すぎる。見せるのは両端だけなので、中ほどは捨ててよい。
    lost += output.length - 2 * OUTPUT_LIMIT;
    output = output.slice(0, OUTPUT_LIMIT) + output.slice(-OUTPUT_LIMIT);
  };
  child.stdout.setEncoding("utf8").on("data", collect);
  child.stderr.setEncoding("utf8").on("data", collect);
  let stopped = "";
  const stop = (why: string) => {
    stopped = why;
    killGroup(child.pid);
    // グループを抜けた子プロセスがパイプを握っているかもしれないので、待たずに閉じる。
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const interrupt = () => stop("interrupted by the user");
  const limit = Math.min(Math.max(seconds, 1), 600);
  const timer = setTimeout(() => stop(`stopped after ${limit} s`), limit * 1000);
  signal?.addEventListener("abort", interrupt);
  child.on("exit", () => WINDOWS || killGroup(child.pid)); // バックグラウンドの残りも終了させる
  try {
    const [code, killer] = await once(child, "close");
    output = keepEnds(output, OUTPUT_LIMIT - 200, lost); // 下で足す文のために空けておく
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
    // グループにはもう誰もいない。
  }
}

// ---- s03 · セッション ----

/** 動いているプログラムの部品。各章が自分の分を足す。 */
export interface App {
  store: SessionStore;
  key: string; // ターミナルで開いている会話のキー
}

// セッションファイルの中身。書いた行は変えも消しもしない。履歴を縮めるときも1行足すだけで、
// リプレイのとき何を外すかは、その行に書いてある。
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        APIが返したまま
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                ガードの手順1
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"葵 …","keepFrom":5}}        手順2：2〜4行目が外れる

/** セッションファイルの1行。どの種類の行もこの型。 */
interface LogRecord {
  at?: string;
  message?: Message;
  inboxId?: string;
  compaction?: { summary: string; keepFrom: number };
  shorten?: { toolUseIds: string[] };
}

/**
 * 追記しかしないJSON Linesファイル。クラッシュで途中までになった行など、読めない行が
 * あっても、行番号を知らせてそのまま残し、ほかの行は読む。
 */
class Log {
  readonly file: string;
  lines = 0;
  #torn = false;

  constructor(file: string) {
    this.file = file;
  }

  /** 読める行をすべて、行番号付きで返す。 */
  read(): { line: number; record: object }[] {
    if (!fs.existsSync(this.file)) return [];
    const lines = fs.readFileSync(this.file, "utf8").split("\n");
    this.#torn = lines.at(-1) !== "";
    if (!this.#torn) lines.pop();
    this.lines = lines.length;
    return lines.flatMap((content, index) => {
      const record = parseObject(content);
      if (record) return [{ line: index + 1, record }];
      warn(`${this.file}の${index + 1}行目が読めないので飛ばします。行はファイルに残ります。`);
      return [];
    });
  }

  /** 時刻を添えて追記し、行番号を返す。戻ったときには、もうファイルに書かれている。 */
  append(record: object): number {
    const json = JSON.stringify({ at: new Date().toISOString(), ...record });
    // 書きかけの行が残っていると、この行がその続きになってしまう。先に改行を入れる。
    const line = `${this.#torn ? "\n" : ""}${json}\n`;
    this.#torn = true; // 失敗したら半端な行か空行が残る。それも1行に数える
    this.lines++;
    fs.appendFileSync(this.file, line);
    this.#torn = false;
    return this.lines;
  }
}

/** `json`が表すオブジェクト。読めないときも、`null`などオブジェクトでないときもundefined。 */
function parseObject(json: string): object | undefined {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === "object" && !Array.isArray(value) ? (value ?? undefined) : undefined;
  } catch {
    return undefined;
  }
}

/** ディスクに残る会話。リストは元のままで、その裏に、すべてを記録したファイルがある。 */
export class Session extends Conversation {
  readonly id: string;
  header = { key: "", label: "", at: "" };
  summary = ""; // 圧縮でリストから外れた分の要約
  rewritten = 0; // 先頭からこの件数までは、APIの数えたトークン数が古い
  #log: Log;
  #lines = new Map<Message, number>();
  #inboxIds = new Set<string>();

  /** ファイルをリプレイする。 */
  constructor(file: string) {
    super();
    this.id = path.basename(file, ".jsonl");
    this.#log = new Log(file);
    for (const { line, record } of this.#log.read()) this.#replay(record, line);
  }

  #replay(record: LogRecord, line: number): void {
    if (line === 1) Object.assign(this.header, record);
    if (Array.isArray(record.message?.content)) this.#add(record.message, line);
    if (record.inboxId) this.#inboxIds.add(record.inboxId);
    if (record.compaction) this.#compact(record.compaction.summary, record.compaction.keepFrom);
    if (record.shorten) this.#shorten(new Set(record.shorten.toolUseIds));
  }

  /** リストより先にディスクへ。だから、モデルに見せたものは必ず残っている。 */
  override append(message: Message, about: { inboxId?: string } = {}): void {
    // クラッシュのあと、受信箱は同じ発言をもう一度渡してくる。発言はもう記録にあり、応答も途中まで
    // あるかもしれない。
    if (about.inboxId && this.#inboxIds.has(about.inboxId)) return;
    this.#add(message, this.#log.append({ message, ...about }));
    if (about.inboxId) this.#inboxIds.add(about.inboxId);
  }

  #add(message: Message, line: number): void {
    super.append(message);
    this.#lines.set(message, line);
  }

  /** 以後の履歴は、要約と、`kept`から先のメッセージになる。 */
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
      // Ctrl+Cのときと同じ、自前の応答。要約を次のターンから切り離しておく。次のターンが
      // 拒否されて外れても、要約は残る。
      { role: "assistant", content: noted, stop_reason: null } as Anthropic.Message,
      ...kept,
    ];
    this.rewritten = this.messages.length;
  }

  /** 以後、これらの呼び出しの結果は両端だけになる。 */
  shorten(toolUseIds: string[]): void {
    this.#log.append({ shorten: { toolUseIds } });
    this.#shorten(new Set(toolUseIds));
  }

  #shorten(ids: Set<string>): void {
    for (const block of this.messages.flatMap(resultsIn)) {
      // メッセージは作り直さず、中身だけ換える。行番号との対応を保つため。
      if (ids.has(block.tool_use_id)) block.content = shortened(block);
    }
    this.rewritten = this.messages.length;
  }
}

const sha256 = (data: string) => crypto.createHash("sha256").update(data);

// キーは誰が誰と話すかを表し、セッションはその間の会話1つを指す。全セッションを並べた索引は
// 作らない。フォルダーがそのまま一覧なので、食い違いようがない。

/** `dir`にある全セッション。キーごとにフォルダーがあり、その中にセッションのファイルが並ぶ。 */
export class SessionStore {
  #dir: string;
  #open = new Map<string, Session>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** このキーの現在のセッション。なければ新しく作る。 */
  current(key: string): Session {
    const open = this.#open.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#open.set(key, open);
    return open;
  }

  /** このキーで新しいセッションを始め、現在のセッションにする。 */
  create(key: string, label = ""): Session {
    const id = crypto.randomUUID().slice(0, 8);
    const header = { v: 1, id, key, label, at: new Date().toISOString() };
    fs.mkdirSync(this.#folder(key), { recursive: true });
    fs.writeFileSync(this.#file(key, id), `${JSON.stringify(header)}\n`, { flag: "wx" });
    return this.#enter(key, new Session(this.#file(key, id)));
  }

  /** このキーのセッション。新しいものが後ろ。 */
  list(key: string): Session[] {
    return this.#in(this.#folder(key));
  }

  #in(folder: string): Session[] {
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
    const files = fs.readdirSync(folder).filter((name) => name.endsWith(".jsonl"));
    const sessions = files.map((name) => new Session(path.join(folder, name)));
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /** すべてのキーの、すべてのセッション。 */
  all(): Session[] {
    const folders = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    return folders.flatMap((name) => this.#in(path.join(this.#dir, name)));
  }

  /** idが`prefix`で始まるセッションに戻る。1つに絞れなければエラー。 */
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

  /** ファイル"current"が指すセッション。おかしければ最新のもの。何も失われない。 */
  #stored(key: string): Session | undefined {
    const pointer = path.join(this.#folder(key), "current");
    if (!fs.existsSync(pointer)) return this.list(key).at(-1);
    const id = fs.readFileSync(pointer, "utf8");
    if (/^[\w-]+$/.test(id) && fs.existsSync(this.#file(key, id)))
      return new Session(this.#file(key, id));
    fs.renameSync(pointer, `${pointer}.broken`);
    warn(`${pointer}の指すセッションがありません。ファイルを.brokenに改名し、最新のセッションで続けます。`);
    return this.list(key).at(-1);
  }

  /** キーが`prefix`で始まる会話を消す。最後の`keep`個は残す。 */
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
    if (name.length <= 200) return path.join(this.#dir, name); // ファイルシステムの上限は255
    return path.join(this.#dir, sha256(name).digest("hex"));
  }

  #file(key: string, id: string): string {
    return path.join(this.#folder(key), `${id}.jsonl`);
  }
}

/**
 * 小さなファイルを書く。クラッシュしても残るのは新旧どちらかで、半端なものは残らない。戻ったとき
 * には、OSのメモリではなくディスクに書かれているので、停電にも耐える。
 */
function replaceFile(file: string, content: string): void {
  fs.writeFileSync(`${file}.tmp`, content, { flush: true }); // 改名より先に、中身をディスクへ
  fs.renameSync(`${file}.tmp`, file);
  if (WINDOWS) return; // Windowsではフォルダーを書き出せない
  const folder = fs.openSync(path.dirname(file), "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/** 2つのプログラムが同じセッションに追記すると壊れる。ほかが`dir`を使っていればエラー。 */
export function lockFolder(dir: string): void {
  const file = path.join(dir, "lock");
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 }); // 会話を他人に読ませない
  if (fs.existsSync(file)) {
    const before = fs.readFileSync(file, "utf8");
    const pid = Number.parseInt(before, 10);
    const who = `process ${pid} is using ${path.dirname(dir)}`;
    if (isAlive(pid)) throw new Error(`${who}: stop it, set CLAW0_WORKSPACE, or delete ${file}`);
    // 同時に起動した2つが同じ古いロックを見つけ、相手がもう新しいロックを置いているかもしれない。
    // そこで、まず改名して手元に移す（成功するのは一方だけ）。中を見直し、別物なら戻す。
    const taken = `${file}.${process.pid}`;
    fs.renameSync(file, taken);
    if (fs.readFileSync(taken, "utf8") !== before) fs.renameSync(taken, file);
    fs.rmSync(taken, { force: true });
  }
  // wx：ファイルがあれば失敗する。同時にここまで来ても、通るのは一方だけ。
  fs.writeFileSync(file, `${process.pid} ${crypto.randomUUID()}`, { flag: "wx" });
  process.on("exit", () => fs.rmSync(file, { force: true })); // SIGKILLでは残る（上を参照）
}

function isAlive(pid: number): boolean {
  // 前回の起動が残した、自分と同じ番号。コンテナの中では毎回同じになる。
  if (!(pid > 0) || pid === process.pid) return false;
  try {
    return process.kill(pid, 0); // シグナル0は確かめるだけ
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // 動いているが別ユーザーのもの
  }
}

/** 文字列のおおよそのトークン数。4文字で1つ、ただし中国語・日本語・韓国語は1文字で1つ。 */
export function estimateTokens(words: string): number {
  const wide = words.match(/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu) ?? [];
  return wide.length + Math.ceil((words.length - wide.length) / 4);
}

const tokensOf = (messages: Message[]) =>
  estimateTokens(JSON.stringify(messages.map(({ content }) => content)));

// 会話が長くなりすぎたときの対処。捨てていちばん惜しくないのはツールの結果で、ファイルなら
// 読み直せる。ターンは惜しいので、捨てずに要約する。縮むのはメモリの中の履歴だけで、
// ディスクでは行が増えるだけ。

const BIG_RESULT = 2_000; // 文字数。短縮した結果はこの半分になる
const FULL = 0.85; // ウィンドウに対する割合。残りは応答の分
const KEPT = 0.3; // 会話（多ければ上限）のうち、圧縮後もそのまま残す割合

// いちばん大事なのは名前とid。"src/a.ts"が「あのファイル」になると、モデルは聞き直すしかない。
const SUMMARISE =
  "Summarise this conversation for the assistant who will go on with it. Keep names, numbers, " +
  "paths and ids exactly, what was decided, what failed, and what the user still waits for. " +
  "Facts only, at most 400 words.";

const shortened = ({ content }: Anthropic.ToolResultBlockParam) =>
  keepEnds(String(content), BIG_RESULT / 2).toWellFormed();

/** 長すぎることを表すエラー型がAPIにはない。文面で見分けるエラーは、これ1つだけ。 */
export function isOverflow(error: unknown): boolean {
  return error instanceof Anthropic.BadRequestError && /prompt is too long/i.test(error.message);
}

/** 玉ねぎ構造の2層目。会話をコンテキストウィンドウに収める。 */
export class ContextGuard {
  readonly limit: number; // トークン数

  constructor(limit: number) {
    this.limit = limit;
  }

  /** 次のリクエストのトークン数。APIが数えた値に、そのあと増えた分の見積もりを足す。 */
  size(conversation: Conversation): number {
    const { messages } = conversation;
    // 圧縮前の値を信じると、圧縮しても「長すぎる」のままで、いつまでも終わらない。
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

  /** `inner`を実行する。会話が長すぎるときは、最大3段階で縮める。 */
  async run(conversation: Conversation, options: TurnOptions, inner: () => Promise<void>) {
    const steps = [
      () => this.shortenResults(conversation),
      () => this.summarise(conversation, options, KEPT),
      () => this.summarise(conversation, options, 0),
    ];
    const shrink = async () => {
      for (let step = steps.shift(); step; step = steps.shift()) if (await step()) return true;
      return false;
    };
    // 呼ぶ前は、費用のかからない自前の計算で決める。呼んだあとはAPIの言うことに従う。
    // 再起動後は、応答がもうそろっていて、呼ぶ必要がないこともある。そのときは縮めない。
    const isFull = this.size(conversation) > this.limit * FULL;
    if (isFull && needsReply(conversation.messages.at(-1))) await shrink();
    for (;;) {
      try {
        return await inner();
      } catch (error) {
        if (!isOverflow(error)) throw error;
        if (await shrink()) continue;
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
    const budget = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, budget * keep);
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const words = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    conversation.compact(await askSummary(conversation, words, budget, options), messages[cut]);
    info(`  （空きを作るため、メッセージ${old.length}件を要約しました）`);
    return true;
  }
}

/** 新しいほうから収まるだけ渡して要約を頼む。多すぎたら半分にする。 */
async function askSummary(session: Session, old: string, tokens: number, options: TurnOptions) {
  // 1回のリクエストに収まらなかった会話なので、全部は見せられない。
  for (let fit = tokens; ; fit /= 2) {
    const newest = old.slice(-Math.ceil((old.length * fit) / estimateTokens(old))).toWellFormed();
    const content = `Summary so far: ${session.summary || "none"}\n\nSince then:\n${newest}`;
    const messages = [{ role: "user" as const, content }];
    const request = { model: MODEL, max_tokens: 2048, system: SUMMARISE, messages };
    try {
      const reply = await callModel(request, { ...options, onText: undefined });
      options.signal?.throwIfAborted(); // 途中で切れた要約なら、ないほうがまし
      if (reply.stop_reason !== "refusal" && wordsIn(reply).trim()) return wordsIn(reply);
      throw new Error("the model gave no summary; /new begins a new session");
    } catch (error) {
      if (!isOverflow(error) || fit < 100) throw error;
    }
  }
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
  // 途中のターンは丸ごと残す。質問が消えると、答えの意味がわからなくなる。
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

/** 人がスラッシュに続けて打つもの。`run`は行の残りを受け取り、表示する行を返す。 */
export interface Command {
  help: string;
  run(args: string, app: App, options: TurnOptions): string | string[] | Promise<string>;
}

export const COMMANDS: Record<string, Command> = {};

function command(name: string, help: string, run: Command["run"]): void {
  COMMANDS[name] = { help, run };
}

/** "/name 残り"を実行し、表示する文を返す。 */
async function runCommand(line: string, app: App, options: TurnOptions): Promise<string> {
  const [name = "", ...rest] = line.slice(1).split(" ");
  const found = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!found) return text(`/${name}というコマンドはありません。一覧は/helpで見られます。`);
  return [await found.run(rest.join(" ").trim(), app, options)].flat().join("\n");
}

command("help", "使えるコマンドの一覧", () =>
  Object.entries(COMMANDS).map(([name, { help }]) => `/${name.padEnd(10)} ${help}`),
);

command("new", "[ラベル]：新しいセッションを始める", (label, { store, key }) => {
  const { id } = store.create(key, label);
  return text(`セッション${id}を始めます。前のセッションも残っています（/listで一覧）。`);
});

command("list", "この会話のセッション一覧", (_args, { store, key }) => {
  const current = store.current(key).id;
  const line = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(line);
});

command("switch", "<id>：前のセッションに戻る。idは先頭の数文字でよい", (id, app) => {
  const session = app.store.switch(app.key, id);
  return text(`セッション${session.id}に切り替えました。メッセージは${session.messages.length}件あります。`);
});

command("context", "コンテキストウィンドウの埋まり具合", (_args, { store, key }) => {
  const size = GUARD.size(store.current(key));
  const percent = Math.round((size / GUARD.limit) * 100);
  return text(`${GUARD.limit}トークン中、約${size}トークン（${percent}%）です。`);
});

command("compact", "古いターンを要約に置き換える", async (_args, app, options) => {
  const done = await GUARD.summarise(app.store.current(app.key), options, KEPT);
  return done ? text("要約しました。") : text("要約するものがまだありません。");
});

const TERMINAL_KEY = "agent:luna:cli:direct:owner"; // エージェント、名前、チャネル、種別、相手

// ---- s04 · チャネル ----

// ここから先、プログラムは、目の前にいない人にも責任を負う。約束は2つ。受け付けたものを失わない
// こと、1つの会話ではメッセージに1つずつ順番に答えること。1つ目は、プラットフォームに受信確認を
// 返す前に書くファイルで守る。2つ目は、会話ごとにPromiseをつないで守る。

/** どのプラットフォームのメッセージも、この形になる。`peerId`は返信の宛先、`at`の単位はミリ秒。 */
export interface InboundMessage {
  id: string;
  channel: string;
  accountId: string; // こちらのどのアカウントに届いたか
  peerId: string; // チャット
  senderId: string; // 送り主
  guildId?: string; // チャットが属するもの：スーパーグループや会社
  isGroup: boolean;
  text: string;
  media: { kind: string; id: string }[];
  at: number;
  part?: string; // 印が同じものは1つのメッセージ：アルバム、分割された長文
  begun?: number; // 処理を始めた回数。受信箱が数える
}

/** 誰の会話に入るかが決まったメッセージ。決めるのは、届いたときの一度だけ。 */
export interface Routed extends InboundMessage {
  sessionKey: string;
}

/** 戻ったときには、メッセージはディスクにある。`done`は、答え終わったときにその答えを渡す。 */
export type Accept = (message: InboundMessage, signal?: AbortSignal) => { done: Promise<string> };

/** プラットフォーム。メッセージを届けてくる。1通で送れるテキストは、UTF-16で`limit`単位まで。 */
export interface Channel {
  readonly name: string;
  readonly limit: number;
  start(accept: Accept): Promise<void>; // 準備できたらresolve、見込みがなければreject
  send(to: string, text: string): Promise<void>; // SendErrorを投げる
  stop(): Promise<void>;
  typing?(to: string): Promise<unknown>;
  stream?(to: string, delta: string): void; // 作りかけの応答を見せるチャネル用
}

/** テキストを送れなかった理由。`permanent`なら何度やっても送れない。`retryAfter`は待つ秒数。 */
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
  message?: InboundMessage; // いま答えているメッセージ
}

// ボットに話しかけてよい人でも、このマシンでプログラムを動かしてよいとは限らない。
// 読むのは構わない。ワークスペースはあえて共有している。REMOTE_TOOLS=1なら全部使える。
const OWNER_TOOLS = ["bash", "write_file", "edit_file"];

function toolsFor({ message }: TurnOptions): Anthropic.Tool[] {
  const trusted = !message || message.channel === "cli" || env("REMOTE_TOOLS") === "1";
  return trusted ? TOOLS : TOOLS.filter(({ name }) => !OWNER_TOOLS.includes(name));
}

/**
 * 受け付けて、まだ答えていないもの。メッセージごとに1つのファイル。済んだもののidも持っておく。
 * 受信確認をもらえなかったプラットフォームは、メッセージを送り直してくる。いちばん起こりやすいのは
 * クラッシュのあとで、idがメモリにしかなければ、そのクラッシュで忘れている。
 */
export class Inbox {
  #dir: string;
  #log: Log;
  #done: Set<string>;
  #open = new Map<string, { file: string; message: Routed }>();
  #next = 1;

  constructor(dir: string) {
    this.#dir = dir;
    fs.mkdirSync(dir, { recursive: true });
    this.#log = new Log(path.join(dir, "done.jsonl"));
    // 自分で書いたものなので、idは必ずある。
    this.#done = new Set(this.#log.read().map(({ record }) => (record as { id: string }).id));
    for (const name of fs.readdirSync(dir).sort()) if (/^\d+\.json$/.test(name)) this.#load(name);
  }

  #load(name: string): void {
    const file = path.join(this.#dir, name);
    this.#next = Number.parseInt(name, 10) + 1;
    const message = parseObject(fs.readFileSync(file, "utf8")) as Routed | undefined; // 自前の値
    if (message && this.#done.has(message.id)) {
      fs.rmSync(file);
    } else if (message?.id && (message.begun ?? 0) < 3) {
      this.#open.set(message.id, { file, message });
    } else {
      fs.renameSync(file, `${file}.${crypto.randomUUID().slice(0, 8)}.aside`);
      warn(`受信箱の${name}を隔離しました。読めないか、3回始めて一度も終わらなかったものです。`);
    }
  }

  /** 受け付けた順に並ぶ。 */
  pending = () => [...this.#open.values()].map(({ message }) => message);

  /** メッセージを残す。前にも来ていればfalse。答えはもう出したか、これから出す。 */
  add(message: Routed): boolean {
    if (this.#done.has(message.id) || this.#open.has(message.id)) return false;
    const file = path.join(this.#dir, `${String(this.#next++).padStart(12, "0")}.json`);
    replaceFile(file, JSON.stringify(message));
    this.#open.set(message.id, { file, message });
    return true;
  }

  /**
   * 処理を始めるたびに、その前に回数を増やす。増やさないと、プログラムを落とすメッセージは、起動の
   * たびに戻ってきてまた落とす。
   */
  begin(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages)) {
      message.begun = (message.begun ?? 0) + 1;
      replaceFile(file, JSON.stringify(message));
    }
  }

  /** 返信を送り終えた。ファイルは消し、idは残す。ターンのidは1通目のものなので、1通目は最後に。 */
  finish(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages).reverse()) {
      // 先にidを書く。間でクラッシュするとファイルは残るが、済んだものだとわかる。
      this.#log.append({ id: message.id });
      this.#done.add(message.id);
      this.#open.delete(message.id);
      fs.rmSync(file);
    }
  }

  #find = (messages: Routed[]) => messages.flatMap(({ id }) => this.#open.get(id) ?? []);
}

// 処理中の会話ごとに、Promiseが1つ。これまで順番待ちに並んだものの最後を指す。
const tails = new Map<string, Promise<unknown>>();

/** 同じ会話のタスクは1つずつ順番に、違う会話のタスクは並行して動かす。 */
export function inOrder<T>(sessionKey: string, task: () => Promise<T>): Promise<T> {
  // 2つ目の`task`は、前のタスクが失敗したときのため。前の失敗は、次のタスクには関係ない。
  const result = (tails.get(sessionKey) ?? Promise.resolve()).then(task, task);
  tails.set(sessionKey, result);
  // 最後に終わったものが片付ける。片付けないと、Mapに過去のすべての会話が残り続ける。
  const forget = () => tails.get(sessionKey) === result && tails.delete(sessionKey);
  result.then(forget, forget);
  return result;
}

/** メッセージが誰の会話に入るか。 */
export function route(message: InboundMessage, app: App, agent?: Agent): Routed {
  const isTerminal = message.channel === "cli";
  const chosen = isTerminal ? app.terminalAgent : agent?.id;
  const agentId = chosen ?? app.bindings.resolve(message).agentId;
  const key = buildSessionKey(agentId, message, app.agents.find(agentId).dmScope);
  return { ...message, agentId, sessionKey: isTerminal ? app.key : key };
}

/** 入口。同期関数で、戻ったときにはディスクにある。プラットフォームはもう忘れてよい。 */
export function accept(app: App, message: InboundMessage, signal?: AbortSignal) {
  const routed = route(message, app);
  noteOwner(app, message);
  // ターミナルの行は残さない。クラッシュのあと、答えを待つ人はいない。
  if (message.channel !== "cli" && !app.inbox.add(routed)) return { done: Promise.resolve("") };
  return { done: enqueue(app, routed, signal) };
}

// Telegramはアルバムの写真を1枚ずつ送ってくる。アプリは長文を何通かに分割する。1通ごとに答えたら
// おかしい。そこで、1通目が順番待ちに並び、順番が来たら残りを待つ。その間も、届いたものは1通ずつ
// ファイルになって受信箱に入る。
const QUIET = 600; // ミリ秒。この間に続きが来なければ、全部そろったとみなす
const groups = new Map<string, { parts: Routed[]; last: number; done: Promise<string> }>();

/** 順番待ちに並べる。分割されたうちの1通なら、先に来た分がまだ待っていれば合流する。 */
function enqueue(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  const { sessionKey, channel } = message;
  if (channel === "cron") return inOrder(channel, () => runJob(app, message, signal));
  if (!message.part) return inOrder(sessionKey, () => handle(app, [message], signal));
  // クラッシュの前に始めた分は、始めたときの形で記録に残っている。あとから来た1通は入っていない。
  const mark = `${message.part} ${(message.begun ?? 0) > 0}`;
  const group = groups.get(mark) ?? { parts: [], last: 0, done: Promise.resolve("") };
  group.parts.push(message);
  group.last = Date.now();
  if (groups.has(mark)) return group.done;
  groups.set(mark, group);
  group.done = inOrder(sessionKey, async () => {
    for (let left = QUIET; left > 0; left = group.last + QUIET - Date.now()) await sleep(left);
    groups.delete(mark);
    return handle(app, group.parts, signal);
  });
  return group.done;
}

/**
 * 1つのメッセージ（分割されていれば全部）に1ターン。受信箱から返信まで進める。何が起きてもターンは
 * 終わり、相手には何かが届く。同じメッセージがもう一度来るのは、プログラムが落ちたときだけ。
 */
export async function handle(app: App, parts: Routed[], signal?: AbortSignal): Promise<string> {
  // 少なくとも1通はある。ターンのidは1通目のもの。
  const message = { ...parts[0], text: parts.map((part) => part.text).join("\n") } as Routed;
  const channel = app.channels.get(message.channel);
  const showTyping = () => channel?.typing?.(message.peerId).catch(() => {});
  const timer = setInterval(showTyping, 4_000); // プラットフォームの表示は5秒で消える
  const onText = (piece: string) => channel?.stream?.(message.peerId, piece);
  let answer: string;
  try {
    showTyping();
    app.inbox.begin(parts);
    const agent = app.agents.get(message.agentId);
    answer = await answerTo(message, app, { message, signal, onText, agent });
  } catch (error) {
    if (message.channel === "cli") throw error; // 表示はターミナルに任せる
    warn(`${message.sessionKey}: ${error}`);
    answer = text("うまく答えられませんでした。少し待ってからもう一度送るか、/newで新しい会話を始めてください。");
  } finally {
    clearInterval(timer);
  }
  if (!channel?.stream) await reply(app, message, answer);
  app.inbox.finish(parts);
  return answer;
}

/** メッセージへの答え。モデルか、誰でも使える2つのコマンドのどちらかが答える。 */
async function answerTo(message: Routed, app: App, options: TurnOptions): Promise<string> {
  const [, name] = /^\/(new|help)\b/.exec(message.text) ?? [];
  if (message.channel === "cli" || message.isGroup || !name) {
    // 文字の片割れ（サロゲートの半分）を送れるクライアントもある。そのまま残すと、このリクエストも
    // 以後のリクエストもすべて通らなくなる。
    const session = app.store.current(message.sessionKey);
    return counted(runTurn(session, message.text.toWellFormed(), { ...options, app }));
  }
  if (name === "help") return text("/newで新しい会話を始められます。");
  return runCommand(message.text, { ...app, key: message.sessionKey }, options);
}

/**
 * 答えを、プラットフォームが受け取れる長さに分けて送る。失敗はここで知らせるが、相手には届かない
 * ままになる。そうしないためには、返信専用のキューが要る。
 */
export async function reply(app: App, { channel, peerId }: InboundMessage, answer: string) {
  const target = app.channels.get(channel);
  // 上限はUTF-16の単位で数える。1文字は最大2単位。
  const size = Math.floor((target?.limit ?? 2) / 2);
  const words = answer.trim() || text("（返す内容がありません）");
  const pieces = words.match(new RegExp(`[^]{1,${size}}`, "gu")) ?? [];
  try {
    for (const piece of pieces) await target?.send(peerId, piece);
  } catch (error) {
    warn(`${channel} ${peerId}: 返信を送れませんでした：${error}`);
  }
}

/** 動いているプログラムのチャネル。名前で引く。1つが落ちても、ほかは止まらない。 */
export class ChannelManager extends Map<string, Channel> {
  readonly states = new Map<string, string>();

  /** 全部が準備できたか失敗したらresolve。遅くとも3秒後にresolve。 */
  async start(accept: Accept): Promise<void> {
    const starts = [...this.values()].map(async (channel) => {
      this.states.set(channel.name, text("起動中"));
      const state = await channel.start(accept).then(() => text("準備完了"), String);
      this.states.set(channel.name, state);
      info(`${channel.name}: ${state}`);
    });
    await Promise.race([Promise.all(starts), sleep(3_000)]);
    const late = [...this.states].filter(([, state]) => state === text("起動中"));
    for (const [name] of late) warn(`${name}: まだ準備できていません。接続を試み続けます。`);
  }

  /** 全部が止まるか3秒たてばresolve。つながらないプラットフォームには、終わりを伝えようがない。 */
  async stop(): Promise<void> {
    const stops = [...this.values()].map((channel) => channel.stop().catch(() => {}));
    await Promise.race([Promise.all(stops), sleep(3_000)]);
  }
}

/** ターミナルも、チャネルの1つにする。使う人には、応答が届いた分から見える。 */
export class CliChannel implements Channel {
  readonly name = "cli";
  readonly limit = Number.MAX_SAFE_INTEGER;
  closed = Promise.resolve(); // 始まるまでは完了済み。始まったら、人が終了したときに完了
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

// ボットは誰にでも見つけられ、答えるたびに料金がかかる。だから、既定では誰も許可しない。
const strangers = new Set<string>();

/** チャットが`allowed`にあれば通す。知らない人には、持ち主が何をすればよいかを一度だけ伝える。 */
function admit(channel: Channel, message: InboundMessage, allowed: string, accept: Accept): void {
  const [chat = ""] = message.peerId.split(":topic:");
  if (allowed.split(/[\s,]+/).includes(chat)) {
    // JSONにしておく。制御文字でターミナルを荒らされないように。
    info(`[${channel.name} ${message.peerId}] ${JSON.stringify(message.text.slice(0, 80))}`);
    accept(message).done.catch((error) => warn(`${message.id}: ${error}`));
  } else if (!strangers.has(chat)) {
    strangers.add(chat); // 一度だけ。さもないと、知らない人に好きなだけ送信させられてしまう
    warn(`知らない人からメッセージが届きました。${channel.name.toUpperCase()}_ALLOWED_CHATS=${chat}で許可できます。`);
    const words = text(`このチャットは許可されていません。idは${chat}です。ボットの持ち主が許可すれば話せます。`);
    channel.send(message.peerId, words).catch(() => {});
  }
}

const MEDIA = ["photo", "video", "animation", "document", "audio", "voice", "sticker"] as const;
const CUT_AT = 4_000; // アプリは4096単位か、その手前の単語の切れ目で分割する

/** Node自身のfetch。grammYは独自の中断シグナルを渡すが、Node 24のfetchはそれを受け付けない。 */
const fetchForGrammy: typeof fetch = (url, init) => {
  const control = new AbortController();
  if (init?.signal?.aborted) control.abort();
  init?.signal?.addEventListener("abort", () => control.abort());
  return fetch(url, { ...init, signal: control.signal });
};

/** Telegram。ロングポーリングを使う。次を求めると前の分の受信確認になるので、先に残しておく。 */
export class TelegramChannel implements Channel {
  readonly name = "telegram";
  readonly limit = 4096;
  #setting: Setting;
  #bot: Bot;
  #stopped = false;
  #cut = new Map<string, { next: number; part: string }>();
  #ours = new Set<string>(); // 通してよい分割メッセージの印

  constructor(setting: Setting) {
    this.#setting = setting;
    this.#bot = this.#newBot();
  }

  #newBot(): Bot {
    const apiRoot = this.#setting("TELEGRAM_API_ROOT") || "https://api.telegram.org";
    // Nodeのfetchを使う。grammYに付いてくるfetchはプロキシを通らない。
    const client = { apiRoot, timeoutSeconds: 60, fetch: fetchForGrammy };
    return new Bot(this.#setting("TELEGRAM_BOT_TOKEN"), { client });
  }

  /** トークンが違えばreject。 */
  async start(accept: Accept): Promise<void> {
    await this.#bot.init();
    void this.#poll(accept);
  }

  /** 止められるまで、新しいメッセージを求め続ける。サーバーが落ちていれば、grammYが復旧を待つ。 */
  async #poll(accept: Accept): Promise<void> {
    while (!this.#stopped) {
      this.#bot.on("message", ({ message }) => {
        const inbound = this.#read(message);
        if (inbound) admit(this, inbound, this.#setting("TELEGRAM_ALLOWED_CHATS"), accept);
      });
      // acceptは同期的なので、この関数が戻ればメッセージはディスクにあり、grammYは次を求めてよい。
      // 残せなかったとき（ディスクが一杯など）は、何も受信確認してはならない。エラーでこのボットを
      // 終わらせると、次のボットが同じメッセージを受け取り直す。
      this.#bot.catch(({ error }) => Promise.reject(error));
      try {
        await this.#bot.start({ allowed_updates: ["message"] });
      } catch (error) {
        if (!this.#stopped) warn(`telegram: ${error}。5秒後にもう一度試します。`);
        await sleep(5_000);
        this.#bot = this.#newBot();
      }
    }
  }

  /** こちら宛てでなければundefined：ほかのボット、サービスメッセージ、グループでの雑談。 */
  #read(message: TelegramMessage): InboundMessage | undefined {
    const { chat, from, message_id, reply_to_message: answered } = message;
    const { id: me, username } = this.#bot.botInfo;
    const kind = MEDIA.find((name) => message[name]);
    const file = kind && [message[kind]].flat().at(-1); // 写真なら、いちばん大きなサイズ
    const words = message.text ?? message.caption ?? "";
    if (!from || from.is_bot || (!words && !kind)) return undefined;
    // "@bot"のほか、"/command@bot"もある。グループでは、ボットに向けたものにだけ答える。
    const name = new RegExp(`@${username}\\b`, "gi");
    const isGroup = chat.type !== "private";
    const part = this.#partOf(message, words);
    const isMeant = name.test(words) || answered?.from?.id === me;
    // アルバムでは、メンションの入った説明文が付くのは1枚だけ。
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

  /** アルバムの印、または分割された長文の印。長文なら、分割された1通ずつの番号が続いている。 */
  #partOf({ chat, from, message_id, media_group_id }: TelegramMessage, words: string) {
    if (media_group_id) return `telegram ${chat.id} ${media_group_id}`;
    const sender = `telegram ${chat.id} ${from?.id}`;
    const cut = this.#cut.get(sender);
    const before = cut?.next === message_id ? cut.part : undefined;
    // これより短ければ最後の1通。そもそも分割されていないこともある。
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
      // 403はブロックされたとき、400はチャットがないとき。もう一度試しても変わらない。
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

/** フォーラムのトピックは、それぞれ別の宛先："<chat>:topic:<thread>"。 */
function telegramPlace(to: string) {
  const [chat = "", thread] = to.split(":topic:");
  return { chat, thread: thread ? { message_thread_id: Number(thread) } : {} };
}

// Feishuは聞かれるのを待たず、向こうから呼び出してくる。だからサーバーが要り、サーバーには用心が
// 要る。アドレスを見つけた人なら、誰でも何でも送れるからだ。

type Answer = { status: number; body: object };
/** HTTPサーバーが受けるもの："POST /path"。本文は、送られてきたバイト列のまま渡す。 */
export const ROUTES: Record<string, (body: Buffer, headers: http.IncomingHttpHeaders) => Answer> =
  {};

async function answerHttp(request: http.IncomingMessage): Promise<Answer> {
  const place = `${request.method} ${request.url?.split("?")[0]}`;
  const route = Object.hasOwn(ROUTES, place) && ROUTES[place];
  if (!route) return { status: 404, body: { error: "not found" } };
  const chunks: Buffer[] = [];
  let left = 1_000_000; // バイト数。相手が誰であれ、まだトークンを見せていない
  for await (const chunk of request) {
    left -= chunk.length;
    if (left < 0) return { status: 413, body: { error: "too large" } };
    chunks.push(chunk);
  }
  return route(Buffer.concat(chunks), request.headers);
}

/** ただ1つのHTTPサーバー。ループバックで待つ。外から届かせたいものは、トンネルを通す。 */
async function startHttp(port: number): Promise<http.Server> {
  const server = http.createServer(async (request, response) => {
    const { status, body } = await answerHttp(request).catch((error) => {
      warn(`http: ${error}`);
      return { status: 500, body: { error: "internal error" } }; // 理由は一言も書かない
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  try {
    await once(server.listen(port, "127.0.0.1"), "listening");
    // TCPで待ち受けているので、アドレスにはポートがある。
    info(`http: 127.0.0.1:${(server.address() as { port: number }).port}で待ち受けています`);
  } catch (error) {
    warn(`http: ${error}。HTTP_PORTを変えてください。ほかは動き続けます。`);
  }
  return server;
}

type Strings<Name extends string> = Partial<Record<Name, string>>;

/** イベントのうち、こちらで読むもの。誰でも送りつけられるので、どれも欠けていることがある。 */
type FeishuEvent = Strings<"encrypt" | "type" | "token" | "challenge"> & {
  header?: Strings<"event_type" | "token" | "tenant_key">;
  event?: {
    sender?: Strings<"sender_type"> & { sender_id?: Strings<"open_id"> };
    message?: Strings<"chat_id" | "chat_type" | "message_type" | "content" | "create_time"> & {
      mentions?: { key: string; name: string; id?: Strings<"open_id"> }[];
    };
  };
};

const FEISHU_BUSY = [99991400, 230020, 11232]; // リクエストが多すぎる
const FEISHU_EXPIRED = [99991661, 99991663, 99991664]; // アクセストークンの期限切れ

/** FeishuとLark。イベントはHTTPで届き、受信確認はすぐに返す。処理はそのあと。 */
export class FeishuChannel implements Channel {
  readonly name = "feishu";
  readonly limit = 4000;
  #setting: Setting;
  #api: string;
  #access = { token: "", until: 0 };

  /** 設定がおかしければエラーを投げる。 */
  constructor(setting: Setting) {
    this.#setting = setting;
    const missing = ["FEISHU_APP_SECRET", "FEISHU_VERIFICATION_TOKEN"].find((it) => !setting(it));
    if (missing) throw new Error(`${missing} is not set, and FEISHU_APP_ID needs it`);
    const domain = setting("FEISHU_DOMAIN") || "feishu";
    if (domain !== "feishu" && domain !== "lark") throw new Error("FEISHU_DOMAIN: feishu or lark");
    const host = domain === "lark" ? "open.larksuite.com" : "open.feishu.cn";
    this.#api = setting("FEISHU_API_BASE") || `https://${host}`;
  }

  /** アプリのidかシークレットが違えばreject。 */
  async start(accept: Accept): Promise<void> {
    ROUTES["POST /feishu/events"] = (body, headers) => this.#receive(body, headers, accept);
    await this.#accessToken();
  }

  /** すぐに答える。3秒を過ぎるとFeishuはあきらめ、イベントを送り直す。 */
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

  /** 読めなければundefined。暗号化されているはずのものが平文で来たときも同じ。 */
  #decrypt(body: Buffer): FeishuEvent | undefined {
    const event: FeishuEvent | undefined = parseObject(body.toString());
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey || !event) return event;
    const key = sha256(encryptKey).digest();
    const bytes = Buffer.from(String(event.encrypt), "base64");
    try {
      const cipher = crypto.createDecipheriv("aes-256-cbc", key, bytes.subarray(0, 16));
      // バイト列のままつなぐ。ブロックの境目が、文字の途中にあたることもある。
      return parseObject(`${Buffer.concat([cipher.update(bytes.subarray(16)), cipher.final()])}`);
    } catch {
      return undefined; // キーが違うか、暗号化されていない
    }
  }

  /** 本文と、Feishuとこちらだけが持つキーから作るハッシュ。 */
  #isSigned(body: Buffer, headers: http.IncomingHttpHeaders): boolean {
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey) return true; // 暗号化しないものには署名もない。トークンは合っていた
    const time = headers["x-lark-request-timestamp"];
    const hash = sha256(`${time}${headers["x-lark-request-nonce"]}${encryptKey}${body}`);
    const fresh = Math.abs(Date.now() / 1000 - Number(time)) < 3600; // 古ければリプレイ攻撃
    return fresh && headers["x-lark-signature"] === hash.digest("hex");
  }

  /** メッセージでないもの、こちら宛てでないものはundefined。 */
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
    // 後ろから置き換える。"@_user_1"は"@_user_10"の先頭でもある。
    for (const m of mentions.toReversed()) out = out.split(m.key).join(isMe(m) ? "" : `@${m.name}`);
    // 再配信では、メッセージのidが変わることがある。送り主、時刻、内容は変わらない。
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

  /** 使えるのは約2時間。切れる1分前になったら取り直す。 */
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
      return (await response.json()) as FeishuAnswer; // 断られたときも、この形で返る
    } catch (error) {
      throw sendError(String(error), false);
    }
  }

  stop = async () => void delete ROUTES["POST /feishu/events"];
}

type FeishuAnswer = { code: number; msg: string; expire?: number; tenant_access_token?: string };

/** メッセージの文章とリンク。それに、中にある画像とファイル。 */
function readFeishu(type: string, json: string) {
  const media: { kind: string; id: string }[] = [];
  const wordsOf = (item: Fields | null): string => {
    const id = item?.file_key ?? item?.image_key;
    if (!id) return `${item?.text ?? item?.user_id ?? ""}${item?.href ? ` (${item.href})` : ""}`;
    media.push({ kind: type === "post" ? "image" : type, id: String(id) });
    return `[${media.at(-1)?.kind}]`;
  };
  const content = (parseObject(json) ?? {}) as Fields; // 中身はフィールドごとに確かめる
  if (type !== "post") return { words: wordsOf(content).trim() || `[${type}]`, media };
  const lines = Array.isArray(content.content) ? content.content : [];
  const words = lines.map((line: Fields[]) => [line ?? []].flat().map(wordsOf).join(""));
  return { words: [content.title, ...words].filter(Boolean).join("\n").trim() || "[post]", media };
}

command("channels", "チャネルの一覧と状態", (_args, { channels }) =>
  [...channels.states].map(([name, state]) => `${name.padEnd(10)} ${state}`),
);

command("accounts", "プラットフォームで使うアカウントの一覧", () => {
  const shown = (name: string) => `${name}  ${(env(name) || "-").slice(0, 6)}`; // 全部は見せない
  return ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(shown);
});

// ---- s05 · ゲートウェイとルーティング ----

// メッセージごとに、決めることが2つある。どのエージェントが答えるか。誰の会話に入るか。1つ目は
// バインディング、2つ目はエージェントのdmScopeで決まる。決めるのは受信箱に入れる前の一度だけ。
// あとから設定を変えても、もう入っているメッセージの行き先は変わらない。

/** `dmScope`は、1対1のチャットを誰と誰で共有するか。全員か、1人ずつか、さらに細かく分けるか。 */
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

/** 答えられるエージェント。バインディングで決まらなければ、先頭のものが答える。 */
export const AGENTS: Agent[] = [
  { id: "luna", system: LUNA, dmScope: "per-channel-peer" },
  { id: "sage", system: SAGE, dmScope: "per-channel-peer" },
];

/** エージェント。idで引く。 */
export class AgentManager extends Map<string, Agent> {
  /** なければ、どれがあるかを挙げて投げる。 */
  find(id: string): Agent {
    const agent = this.get(id);
    if (!agent) throw new Error(`no such agentId: ${id}; there are ${[...this.keys()].join(", ")}`);
    return agent;
  }
}

// 段階。絞り込みの細かい順に、チャット、チャットが属するもの、こちらのアカウント、チャネル。
const TIERS = ["peerId", "guildId", "accountId", "channel", "default"] as const;

/** 「ここから来たら、このエージェントが答える」。同じ段階なら、priorityの大きいほうが勝つ。 */
export interface Binding {
  agentId: string;
  tier: number; // 1〜5
  matchKey: (typeof TIERS)[number];
  matchValue: string; // peerIdなら"telegram:1001"とも書ける
  priority: number;
}

export const BINDINGS: Omit<Binding, "tier">[] = [
  { agentId: "luna", matchKey: "default", matchValue: "*", priority: 0 },
];

/**
 * バインディングの表。段階ごとのMapを引くので、バインディングが増えても、メッセージ1つあたりの
 * 手間は増えない。プログラムが終わると消える。
 */
export class BindingTable {
  #byKey = new Map<string, Map<string, Binding>>(TIERS.map((key) => [key, new Map()]));

  constructor(bindings: Omit<Binding, "tier">[]) {
    for (const binding of bindings) this.set(binding);
  }

  /** キーも値も同じバインディングがあれば置き換える。 */
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
   * メッセージに答えるエージェントと、その根拠。最初にバインディングが見つかった段階で決まる。
   * peerIdは"telegram:1001"とも書ける。別のプラットフォームに同じ番号があるかもしれないから。
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
 * 誰の会話か。大文字と小文字の扱いは、プラットフォームごとにもファイルシステムごとにも違うので、
 * 小文字にそろえる。まともなキーではありえない長さになったら投げる。
 */
export function buildSessionKey(agentId: string, message: InboundMessage, dmScope: DmScope) {
  const { channel, accountId, peerId, isGroup } = message;
  // "main"だと、1対1で話しかけた全員が1つの会話に入る。持ち主だけが使うエージェント向け。
  // 2人で使えば、互いの話が相手に読まれてしまう。
  const direct = {
    main: "main",
    "per-peer": `direct:${peerId}`,
    "per-channel-peer": `${channel}:direct:${peerId}`,
    "per-account-channel-peer": `${channel}:${accountId}:direct:${peerId}`,
  };
  const place = isGroup ? `${channel}:group:${peerId}` : direct[dmScope];
  const rest = channel === "cron" ? message.id : place; // 実行ごとに会話を分ける
  const key = `agent:${agentId}:${rest}`.toLowerCase();
  if (key.length > 150) throw new Error(`peerId is too long: ${key.length} characters in the key`);
  return key;
}

/** JSON-RPC 2.0のエラー。-32700はJSONでない、-32600はリクエストでない、-32601はメソッドがない、… */
class RpcError extends Error {
  code = 0;
}

const rpcError = (code: number, why: string) => Object.assign(new RpcError(why), { code });

/** 尋ねてきた相手。接続ごとのpeerIdと、答えの前に知らせを送る手段を持つ。 */
export interface Connection {
  peerId: string;
  notify(method: string, params: object): void;
}

export type Method = (params: Fields, app: App, connection: Connection) => unknown;
/** クライアントがゲートウェイに頼めること。 */
export const METHODS: Record<string, Method> = {};

/** メソッドを加える。パラメーターは、ツールの入力と同じように検査する。 */
function method(name: string, properties: object, optional: string[], run: Method): void {
  const schema = tool(name, "", properties, optional).input_schema;
  METHODS[name] = (params, app, connection) => {
    const fields = asked(() => checkInput(schema, params));
    return run(fields, app, connection);
  };
}

/** クライアントが送ってきたものを検査する。おかしければ、直すのはクライアントの側。 */
function asked<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw rpcError(-32602, error instanceof Error ? error.message : String(error));
  }
}

const MAX_FRAME = 1024 * 1024; // バイト数。メッセージ1つの上限。遅い相手に溜めてよい量も同じ

/**
 * 1つのHTTPサーバーに載せた、WebSocket上のJSON-RPC 2.0。トークンがあれば、チャネルで話す人と
 * 同じことができ、バインディングも変えられる。持ち主ではないので、bashは使わせない。
 */
export class GatewayServer {
  address = ""; // attachしたら入る
  #token: string;
  readonly sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME });

  constructor(token: string) {
    this.#token = token;
  }

  /** "/"でWebSocketを求めてきたものを引き受ける。 */
  attach(server: http.Server, app: App): void {
    const address = server.address();
    if (typeof address === "object" && address) this.address = `ws://127.0.0.1:${address.port}/`;
    server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => {}); // こちらが答える前に切れた
      const refused = this.#refusal(request);
      if (refused) socket.end(`HTTP/1.1 ${refused}\r\nConnection: close\r\n\r\n`);
      else this.sockets.handleUpgrade(request, socket, head, (client) => this.#serve(client, app));
    });
  }

  /** ハンドシェイクの前に調べる。あとでは、誰でも送れてしまう。""なら通す。 */
  #refusal({ url = "", headers, socket }: http.IncomingMessage): string {
    const [place, query] = url.split("?");
    if (place !== "/") return "404 Not Found";
    // 持ち主のブラウザーで開いたページもループバックに届く。ただし、どこから来たかは隠せない。
    const own = [`http://localhost:${socket.localPort}`, `http://127.0.0.1:${socket.localPort}`];
    if (headers.origin && !own.includes(headers.origin)) return "403 Forbidden";
    const asked = headers.authorization?.replace(/^Bearer /i, "");
    const token = asked ?? new URLSearchParams(query).get("token") ?? "";
    // ハッシュで比べれば、推測がどこまで当たっていても、かかる時間は同じ。
    const same = crypto.timingSafeEqual(sha256(token).digest(), sha256(this.#token).digest());
    return same ? "" : "401 Unauthorized";
  }

  #serve(socket: WebSocket, app: App): void {
    const peerId = crypto.randomUUID();
    const push = (message: object) => {
      if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message));
      // 読まないクライアントに付き合うと、何もかも溜め込むことになる。
      if (socket.bufferedAmount > MAX_FRAME) socket.terminate();
    };
    socket.on("error", (error) => info(`gateway: ${error.message}`)); // 上限を超えたフレームなど
    socket.on("message", async (data) => {
      const answer = await answerRpc(String(data), app, { peerId, push });
      if (answer) push(answer);
    });
  }
}

type Client = { peerId: string; push(message: object): void };

/** リクエスト、またはそのバッチへの答え。通知しかなければ、答えはない。 */
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
 * リクエスト1つへの答え。通知なら、結果がどうなっても答えない。リクエストは互いに待たない。
 * "send"がまだモデルを待っている間にも、"status"には答える。
 */
async function callMethod(message: unknown, app: App, { peerId, push }: Client) {
  const fields = typeof message === "object" && !Array.isArray(message) ? message : {};
  const { jsonrpc, id, method, params = {} } = { ...fields } as Fields; // 1つずつ確かめる
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
    const result = await run(params as Fields, app, { peerId, notify }); // 検査はrunがする
    return isId ? { ...answer, result } : undefined;
  } catch (error) {
    if (isRequest && !isId) return undefined; // 通知なので、知らせを待つ人はいない
    if (error instanceof RpcError) {
      return { ...answer, error: { code: error.code, message: error.message } };
    }
    warn(`gateway: ${method}: ${error}`);
    return { ...answer, error: { code: -32603, message: "internal error" } };
  }
}

const FROM = { channel: string("telegram, …"), peerId: string("the chat"), agentId: string("who") };
const SEND = { text: string("…"), ...FROM };

// sendは受信箱に入れない。クラッシュすれば接続も切れ、答えを待つ人はいない。それでも、話したことは
// セッションに残っている。
method("send", SEND, Object.keys(FROM), async (params, app, connection) => {
  const { text, channel = "ws", peerId = connection.peerId, agentId } = params;
  const id = `ws:${crypto.randomUUID()}`;
  const from = { accountId: "local", senderId: connection.peerId, isGroup: false, media: [] };
  const place = { channel: String(channel).toLowerCase(), peerId: String(peerId) };
  const inbound = { id, ...from, ...place, text: String(text).trim(), at: Date.now() };
  // ネットワーク越しに来た相手は、何と名乗ろうと持ち主ではない。
  const isTheirs = /^(?!(cli|cron|heartbeat)$)\w+$/.test(place.channel);
  if (!isTheirs) throw rpcError(-32602, "channel: not this one");
  if (!inbound.text) throw rpcError(-32602, "text is empty");
  const agent = agentId === undefined ? agentId : asked(() => app.agents.find(String(agentId)));
  const message = asked(() => route(inbound, app, agent));
  connection.notify("typing", {});
  const onText = (piece: string) => piece && connection.notify("delta", { text: piece });
  const turn = () =>
    answerTo(message, app, { message, onText, agent: app.agents.get(message.agentId) });
  try {
    const reply = await inOrder(message.sessionKey, turn);
    return { agentId: message.agentId, sessionKey: message.sessionKey, reply };
  } catch (error) {
    throw rpcError(-32000, `the turn failed: ${error}`);
  }
});

const MATCH = { matchKey: { type: "string", enum: TIERS }, matchValue: string("…") };
const BINDING = { agentId: string("who"), ...MATCH, priority: { type: "integer" } };

method("bindings.set", BINDING, ["priority"], (params, app) => {
  const { agentId, matchKey, matchValue, priority = 0 } = params;
  const agent = asked(() => app.agents.find(String(agentId)));
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
  uptime: Math.round(process.uptime()), // 秒
  channels: Object.fromEntries(app.channels.states),
  connections: app.gateway.sockets.clients.size,
  conversations: tails.size, // いま処理中
  waiting: app.inbox.pending().length,
}));

command("bindings", "バインディングの一覧（何に誰が答えるか）", (_args, { bindings }) =>
  bindings.list().map((one) => `${one.matchKey} ${one.matchValue} → ${one.agentId}`),
);

command("route", "<channel> <peer> [account] [guild]：誰が答えるか、なぜか", (args, app) => {
  const [channel = "", peerId = "", accountId = "", guildId] = args.split(/\s+/);
  const rest = { id: "", senderId: "", isGroup: false, text: "", media: [], at: 0 };
  const message = { channel, peerId, accountId, guildId, ...rest };
  const { binding } = app.bindings.resolve(message);
  const { agentId, sessionKey } = route(message, app);
  return `${agentId}  ${sessionKey}  (${binding?.tier ?? 5} ${binding?.matchKey ?? "default"})`;
});

command("agents", "エージェントの一覧", (_args, { agents }) =>
  [...agents.values()].map(({ id, dmScope, system }) => `${id}  ${dmScope}  ${system}`),
);

command("agent", "<id>|off：ここで答えるエージェントを選ぶ", (id, app) => {
  app.terminalAgent = id === "off" ? undefined : app.agents.find(id).id;
  app.key = TERMINAL_KEY.replace("luna", app.terminalAgent ?? "luna"); // 会話は別になる
  return text(`これからは${app.terminalAgent ?? "バインディングで決まるエージェント"}が答えます。`);
});

command("sessions", "すべての会話", (_args, { store }) =>
  store.all().map(({ id, header: { key, label } }) => `${id}  ${key}  ${label}`),
);

command("gateway", "ほかのプログラムの接続先", (_args, { gateway }) =>
  text(`${gateway.address || "（待ち受けていません）"}  接続中：${gateway.sockets.clients.size}`),
);

/**
 * 設定のトークン。なければ作り、取っておく。ループバックだけでは守りにならない。このマシンの
 * どのプログラムからも、どのページからも届く。
 */
function gatewayToken(): string {
  const file = path.join(STATE, "gateway-token");
  const kept = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
  if (env("GATEWAY_TOKEN") || /^[\w-]{32}$/.test(kept)) return env("GATEWAY_TOKEN") || kept;
  const token = crypto.randomBytes(24).toString("base64url");
  fs.writeFileSync(file, token, { mode: 0o600 }); // 読めるのはこのユーザーだけ
  return token;
}

// ---- s06 · 知性 ----

// エージェントの性格も、知っていることも、ファイルにある。プロンプトは呼び出しのたびにファイルから
// 組み立て直し、ファイルが変わらない限り1バイトも変わらない。それが料金に効く。APIは読んだものを
// 取っておき、次からは10分の1の料金で読む。ただし、先頭から一字一句同じ部分だけ。

export interface TurnOptions {
  app?: App;
  mode?: "full" | "minimal" | "none"; // プロンプトの量：全部、人のいないジョブ用、1行だけ
}

export interface App {
  memory: MemoryStore;
}

/** 持ち主とは、ターミナルの前にいる人と、各チャネルの一覧の最初にある1対1のチャットの相手。 */
export function isOwner({ message }: TurnOptions): boolean {
  if (!message || ["cli", "heartbeat"].includes(message.channel)) return true;
  // ジョブは持ち主のもの。ただし、その文がほかの人に届くことはある。
  const { channel, to } = message.job?.deliver ?? { channel: "cli", to: "" };
  if (message.job) return isOwner({ message: { ...message, job: undefined, channel, peerId: to } });
  const listed = env(`${message.channel.toUpperCase()}_ALLOWED_CHATS`).split(/[\s,]+/);
  // Telegramのグループのidは負の数。
  const first = listed.find((chat) => chat && !chat.startsWith("-"));
  // ゲートウェイのクライアントは、どの相手の名前でも名乗れる。名乗っただけでは本人にならない。
  return !message.isGroup && !message.id.startsWith("ws:") && message.peerId === first;
}

const PRIVATE = ["MEMORY.md", "USER.md"];
const PRIVATE_FILES = PRIVATE.map((name) => path.join(WORKSPACE, name));

/** 持ち主のものは、どんなパスやリンクで頼まれても、ほかの人には渡さない。 */
function checkPrivate({ path: asked }: Fields, turn: Turn): void {
  if (typeof asked !== "string" || isOwner(turn)) return;
  const real = safePath(asked, WORKSPACE);
  const isPrivate = [asked, real].some((one) => /^(memory|user)\.md$/i.test(path.basename(one)));
  const files = PRIVATE_FILES.filter((one) => fs.existsSync(one)); // これ自体がリンクかもしれない
  if (isPrivate || files.some((one) => fs.realpathSync.native(one) === real))
    throw new Error(`${asked} is the owner's`);
}

const complained = new Set<string>();

/** `read`が返すものを返す。例外なら一度だけ知らせ、`otherwise`を返す。 */
function readOrSay<T>(file: string, otherwise: T, read: (file: string) => T): T {
  try {
    return fs.existsSync(file) ? read(file) : otherwise;
  } catch (error) {
    if (!complained.has(`${file} ${error}`)) warn(`${file}を飛ばします：${error}`);
    complained.add(`${file} ${error}`);
    return otherwise;
  }
}

const FILE_LIMIT = 20_000; // プロンプトに載せるファイル1つの文字数の上限
const ALL_LIMIT = 60_000; // 全部合わせた文字数の上限

/**
 * エージェントのファイルを名前で引けるようにする。専用のものがあればそれを、なければ共通のものを
 * 使う。長いものは中ほどを省く。文字数の余りは`names`の順に割り当てる。
 */
export function loadBootstrap(agentId: string, names: string[], root = WORKSPACE) {
  let left = ALL_LIMIT;
  const files = new Map<string, string>();
  for (const name of names) {
    const places = [path.join(root, "agents", agentId, name), path.join(root, name)];
    // 「ファイルがあるか」では決めない。専用のファイルが空だと、何もなくなってしまう。
    const [found = ""] = places.flatMap((file) => readOrSay(file, "", readText).trim() || []);
    const kept = left > 0 ? keepEnds(found, Math.min(left, FILE_LIMIT)) : "";
    files.set(name, kept);
    left -= kept.length;
  }
  return files;
}

/** `file`はワークスペースからの相対パス。要るときに、モデルがここから続きを読む。 */
export type Skill = { name: string; description: string; file: string };

/** いくつかのフォルダーにあるスキル。名前が重なれば、先に挙げたフォルダーのものを使う。 */
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

// 制御文字も取り除く。知らない人の書いたものが、ターミナルに表示されることもある。
const oneLine = (words: unknown) => `${words}`.replace(/[\s\p{Cc}]+/gu, " ").trim();
const SKILL = tool("", "", { name: string("…"), description: string("…") }).input_schema;

/** スキルになっていなければ投げる。それでも、ほかのスキルは読み込まれる。 */
function readSkill(file: string): Skill {
  const [, front = "{}"] = /^\uFEFF?---\r?\n([\s\S]{0,20000}?)\r?\n---/.exec(readText(file)) ?? [];
  // YAMLでは、一度名付けたものを何度でも使い回せる。重ねれば、数行でメモリを食い尽くせる。
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

/** プロンプトの層。この順に並ぶ。 */
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

const MINIMAL = ["identity", "tools", "runtime", "channel"]; // 人のいないジョブ用

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

/** 各層とその文章。時刻やカウンターなど、ターンごとに変わるものは入れない。 */
export function promptLayers(options: TurnOptions) {
  const { agent = AGENTS[0] as Agent, message, mode = "full" } = options; // 必ず1つはある
  const names = ["IDENTITY.md", "SOUL.md", "TOOLS.md", "AGENTS.md", "BOOTSTRAP.md"];
  const files = loadBootstrap(agent.id, isOwner(options) ? [...names, ...PRIVATE] : names);
  if (mode === "none") return [{ name: "identity", text: agent.system }];
  const layers = PROMPT_LAYERS.filter(({ name }) => mode === "full" || MINIMAL.includes(name));
  return layers.map(({ name, text }) => ({ name, text: text({ agent, message, files }) }));
}

const MARK = { cache_control: { type: "ephemeral" as const } }; // 「ここまで取っておく」

/** システムプロンプト。末尾にキャッシュの目印を付ける。 */
export function buildSystemPrompt(options: TurnOptions): Anthropic.TextBlockParam[] {
  const texts = promptLayers(options).flatMap(({ text }) => text || []);
  // 長いファイルを切った端に、文字の片割れが残ることがある。
  return [{ type: "text", text: texts.join("\n\n").toWellFormed(), ...MARK }];
}

/** もう1つの目印を最後のブロックに付ける。次のリクエストは、これと丸ごと同じ内容で始まる。 */
function markLast(request: Entry[]): Entry[] {
  const last = request.at(-1);
  const block = last?.content.at(-1);
  if (!last || !block) return request;
  const marked = { ...block, ...MARK } as Anthropic.ContentBlockParam; // 目印を足しただけ
  return [...request.slice(0, -1), { ...last, content: [...last.content.slice(0, -1), marked] }];
}

/** 検索で見つかるもの。`at`（ミリ秒）がなければ古びず、キーがなければ持ち主のもの。 */
export type Memory = { text: string; source: string; at?: number; sessionKey?: string };
/** `terms`は単語→回数。`vector`はバケット→重み。 */
type Indexed = Memory & { terms: Map<string, number>; size: number; vector: Map<number, number> };
export type Hit = Memory & { score: number }; // 0〜1

const SEGMENTS = new Intl.Segmenter("und", { granularity: "word" });
const WIDE = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/u;
// 記憶が少ないうちは、こうした語も珍しい。除かないと、名前と同じ重みになる。
const FILLERS =
  /^(an?|and|are|at|did|do|does|for|how|i|in|is|it|my|of|on|the|to|wh(at|en|ere|o|y))$/;
// 長い文章は、先頭だけを使う。1MBの文章は誰でも送れるが、全部を単語にするとメモリがあふれる。
const folded = (content: string) => content.slice(0, 4_000).normalize("NFKC").toLowerCase();

/** 文章を単語に分ける。中国語と日本語には空白がないので、辞書で切り分ける。 */
function termsOf(content: string): string[] {
  return [...SEGMENTS.segment(folded(content))].flatMap(({ segment }) => {
    if (!/[\p{L}\p{N}]/u.test(segment) || FILLERS.test(segment)) return [];
    // "teas"は"tea"とみなす。それ以上の語形変化は、下の文字の並びに任せる。
    return WIDE.test(segment) ? segment : segment.replace(/(?<=\p{L}{3})s$/u, "");
  });
}

/**
 * 文章を長さ1のベクトルにする。3文字（中国語と日本語は2文字）の並びをハッシュで各バケットに
 * 振り分ける。"allergies"は"allergic"でも見つかるが、意味は何も知らない。モデルが作る本物の
 * 埋め込み（embedding）を入れるなら、差し替えるのはここだけ。
 */
function embed(content: string): Map<number, number> {
  const vector = new Map<number, number>();
  for (const run of folded(content).match(/[\p{L}\p{N}]+/gu) ?? []) {
    const [size, word] = WIDE.test(run) ? [2, run] : [3, ` ${run} `];
    for (let start = 0; start === 0 || start + size <= word.length; start++) {
      let hash = 0x811c9dc5; // FNV-1a：どのプロセスでも同じ値になる
      for (const unit of word.slice(start, start + size))
        hash = Math.imul(hash ^ (unit.codePointAt(0) ?? 0), 0x01000193);
      vector.set(hash >>> 19, (vector.get(hash >>> 19) ?? 0) + 1);
    }
  }
  const length = Math.hypot(...vector.values()) || 1;
  return new Map([...vector].map(([bucket, weight]) => [bucket, weight / length]));
}

const WEIGHTS = { words: 0.6, shape: 0.4 };
const [K1, B] = [1.2, 0.75]; // BM25：同じ単語の繰り返しがどこで頭打ちになるか、長さをどれだけ見るか
const HALF_LIFE = 30 * 24 * 3600 * 1000; // ミリ秒
const OLD = 0.8; // どんなに古い項目でも、スコアのこの割合は残る

/**
 * 日々のメモと、持ち主のMEMORY.mdとUSER.md。単語とバケットから、それを含む項目を引ける。検索では
 * 引いた項目だけを見て、ファイルは読まない。
 */
export class MemoryStore {
  #dir: string;
  #files: string[];
  #now: () => number;
  #entries = new Set<Indexed>();
  #having = new Map<string | number, Set<Indexed>>();
  #words = 0; // 全項目の合計
  #read = new Map<string, { changed: number; entries: Indexed[] }>();
  #logs = new Map<string, Log>();

  /** `dir`は日ごとのログの置き場。`files`は持ち主が書くもので、変わっていれば読み直す。 */
  constructor(dir: string, files: string[], now = Date.now) {
    this.#dir = dir;
    this.#files = files;
    this.#now = now;
    fs.mkdirSync(dir, { recursive: true });
    for (const name of fs.readdirSync(dir).filter((one) => one.endsWith(".jsonl"))) {
      const log = new Log(path.join(dir, name));
      this.#logs.set(name, log);
      for (const { record } of log.read()) this.#load({ ...record }, name);
    }
  }

  /** 欠けのないものだけ。人が手で書いた行なら、何が抜けていてもおかしくない。 */
  #load({ content, sessionKey, at, category }: Fields, name: string): void {
    if (typeof content !== "string" || typeof sessionKey !== "string") return;
    const source = `${name} ${category}`;
    this.#add({ text: content, source, at: Date.parse(String(at)) || 0, sessionKey });
  }

  /** 1つの会話のためにメモを残す。戻ったときには、もうディスクにある。 */
  write(content: string, category: string, sessionKey: string): void {
    const at = new Date(this.#now()).toISOString();
    const name = `${at.slice(0, 10)}.jsonl`;
    const log = this.#logs.get(name) ?? new Log(path.join(this.#dir, name));
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

  /** 持ち主のファイルのうち、変わったものを取り込む。1行が1つの事実。 */
  #refresh(): void {
    for (const file of this.#files) {
      const changed = fs.statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
      const before = this.#read.get(file) ?? { changed: 0, entries: [] };
      if (before.changed === changed) continue;
      for (const entry of before.entries) this.#remove(entry);
      const lines = `\n${readOrSay(file, "", readText)}`.split(/\r?\n[-*\s]*/);
      // 見出しとコメント、それに埋められていない"Name:"の類いは除く。
      const facts = lines.filter((line) => /^[^#<].*[^\s:]\s*$/.test(line));
      const entries = facts.map((text) => this.#add({ text, source: path.basename(file) }));
      this.#read.set(file, { changed, entries });
    }
  }

  /** その会話の項目からよく合うものを返す。持ち主が尋ねたなら、持ち主のファイルからも返す。 */
  search(query: string, { sessionKey = "", owner = false, topK = 5, weights = WEIGHTS } = {}) {
    this.#refresh();
    const scores = new Map<Indexed, number>();
    // 誰の項目かは、スコアを数える前に確かめる。だから、ほかの人の項目はここで止まる。影響が
    // あるとすれば、単語の珍しさを数えるときだけ。
    const count = (entry: Indexed, points: number) => {
      const isTheirs = entry.sessionKey === undefined ? owner : entry.sessionKey === sessionKey;
      if (isTheirs) scores.set(entry, (scores.get(entry) ?? 0) + points);
    };
    const terms = new Map(termsOf(query).map((term) => [term, this.#rarity(term)]));
    // 質問の単語だけを延々と繰り返した項目なら取れるスコア。
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

  /** BM25：わずかな項目にしかない単語は、どの項目にもある単語よりも手がかりになる。 */
  #rarity(term: string): number {
    const having = this.#having.get(term)?.size ?? 0;
    return Math.log(1 + (this.#entries.size - having + 0.5) / (having + 0.5));
  }

  /** 同じくらい合うなら、新しいほう。ただし、2か月前に聞いた名前も、名前に変わりはない。 */
  #youth({ at = this.#now() }: Memory): number {
    return OLD + (1 - OLD) * 0.5 ** (Math.max(0, this.#now() - at) / HALF_LIFE);
  }
}

const REPEAT = 0.8; // 単語のこの割合が重なれば、ほとんど同じ項目とみなす

/** MMR（maximal marginal relevance）を大ざっぱに：スコアの高い順に取り、ほぼ同じものは外す。 */
function diversify(hits: { it: Indexed; score: number }[], topK: number): Hit[] {
  const taken: typeof hits = [];
  for (const hit of hits.sort((a, b) => b.score - a.score)) {
    if (taken.length >= Math.min(topK, 50)) break; // 1件ごとに、採ったものすべてと比べる
    if (taken.every(({ it }) => likeness(it, hit.it) < REPEAT)) taken.push(hit);
  }
  return taken.map(({ it: { terms, size, vector, ...memory }, score }) => ({ ...memory, score }));
}

function likeness(a: Indexed, b: Indexed): number {
  const shared = [...a.terms.keys()].filter((term) => b.terms.has(term)).length;
  return shared / (a.terms.size + b.terms.size - shared || 1);
}

const RECALL_FROM = 0.17; // これより低いスコアは、たいていハッシュの偶然で出たもの

/**
 * 人の発言の前に置き、発言と一緒に保存するもの：時刻と、思い出したこと。システムプロンプトに
 * 入れると、どのリクエストも先頭から変わり、キャッシュが何も効かない。
 */
function contextFor(conversation: Conversation, input: string, options: TurnOptions): string {
  // ハートビートの問いは毎回同じで、人の質問ではない。
  const topK = options.message?.channel === "heartbeat" ? 0 : 3;
  const about = { ...whose(conversation, options), topK };
  const hits = options.app?.memory.search(input, about) ?? [];
  const found = hits.flatMap((hit) => (hit.score < RECALL_FROM ? [] : keepEnds(hit.text, 1_000)));
  if (found.length > 0) info(`  （思い出したこと：${oneLine(found.join(" · "))}）`);
  const lines = [`It is ${new Date()}.`, ...found.map((one) => `You remember: ${one}`)];
  return `<context>\n${lines.join("\n").toWellFormed()}\n</context>`;
}

const whose = (conversation: Conversation, options: TurnOptions) => ({
  sessionKey: conversation instanceof Session ? conversation.header.key : "",
  owner: isOwner(options),
});

const shown = (hits: Hit[]) =>
  hits.map((hit) => `${hit.score.toFixed(2)}  ${hit.source}  ${oneLine(hit.text.slice(0, 80))}`);

const COUNT = { type: "integer", description: "How many at most; 5 if left out." };
const FACT = { content: string("One full sentence."), category: string("One word.") };
TOOLS.push(
  tool("memory_write", "Remember a fact for later conversations.", FACT),
  tool("memory_search", "Search what you remember.", { query: string("…"), topK: COUNT }, ["topK"]),
);

Object.assign(HANDLERS, {
  memory_write: ({ content, category }, { app, conversation, ...options }) => {
    app?.memory.write(String(content), String(category), whose(conversation, options).sessionKey);
    return "remembered";
  },
  memory_search: ({ query, topK = 5 }, { app, conversation, ...options }) => {
    const about = { ...whose(conversation, options), topK: Number(topK) };
    return shown(app?.memory.search(String(query), about) ?? []).join("\n") || "nothing found";
  },
} satisfies Record<string, Handler>);

const SEARCH = { query: string("…"), topK: COUNT, sessionKey: string("whose memory") };
method("memory.search", SEARCH, ["topK", "sessionKey"], (params, app) => {
  const { query, topK = 5, sessionKey = "" } = params;
  return app.memory.search(String(query), { topK: Number(topK), sessionKey: String(sessionKey) });
});

const layersOf = (app: App) => promptLayers({ agent: app.agents.get(app.terminalAgent ?? "luna") });
const layerOf = (app: App, it: string) => layersOf(app).find((l) => l.name === it)?.text || "-";

command("soul", "話し方", (_args, app) => layerOf(app, "soul"));
command("skills", "使えるスキル", (_args, app) => layerOf(app, "skills"));
command("memory", "あなたについて、いつも知っていること", (_args, app) => layerOf(app, "memory"));
command("bootstrap", "仕事の進め方", (_args, app) => layerOf(app, "bootstrap"));
command("search", "<言葉>：覚えていることを、よく合う順に", (query, { memory, key }) =>
  shown(memory.search(query, { sessionKey: key, owner: true })),
);
command("prompt", "プロンプトの層と、それぞれの文字数", (_args, app) =>
  layersOf(app).map((it, i) => `${i + 1} ${it.name.padEnd(10)} ${it.text.length}`),
);

// ---- s07 · ハートビートとcron ----

// プログラムが、ひとりでに動くようになる。誰も話しかけていなくても、仕事を始める。邪魔者にならない
// よう、決まりを2つ置く。人を待たせないこと。予定の時刻は、実行をファイルに書いてから消し込むこと。
// これで、クラッシュしても、ノートPCがスリープしても、実行は失われない。

/** CRON.jsonのジョブ。ファイルを書くのは持ち主で、このプログラムは読むだけ。 */
export interface Job {
  id: string;
  name?: string;
  enabled: boolean;
  schedule: Schedule;
  payload: { kind: "agent_turn" | "system_event"; message?: string; text?: string };
  deliver?: { channel: string; to: string };
  deleteAfterRun?: boolean;
}

/** 一度だけ、`anchor`から数えて何秒ごと、またはcronの書式。時刻はISO 8601。 */
export type Schedule =
  | { kind: "at"; at: string }
  | { kind: "every"; everySeconds: number; anchor?: string }
  | { kind: "cron"; expr: string; tz?: string };

export interface InboundMessage {
  job?: { isEvent: boolean; deliver?: Job["deliver"] }; // チャネル"cron"のメッセージに付く
}

export interface App {
  cron: CronService;
  heartbeat: HeartbeatRunner;
}

const shape = (fields: object, optional?: string[]) => tool("", "", fields, optional).input_schema;
const [WORDS, FLAG, OBJECT] = ["string", "boolean", "object"].map((type) => ({ type }));
const MORE = { name: WORDS, deliver: OBJECT, deleteAfterRun: FLAG };
const NEEDED = { id: WORDS, enabled: FLAG, schedule: OBJECT, payload: OBJECT };
const JOB = shape({ ...NEEDED, ...MORE }, Object.keys(MORE));
const KINDS = new Map<unknown, Anthropic.Tool.InputSchema>([
  ["schedule at", shape({ at: WORDS })],
  ["schedule every", shape({ everySeconds: { type: "number" }, anchor: WORDS }, ["anchor"])],
  ["schedule cron", shape({ expr: WORDS, tz: WORDS }, ["tz"])],
  ["payload agent_turn", shape({ message: WORDS })],
  ["payload system_event", shape({ text: WORDS })],
]);

const HOUR = 3600 * 1000; // ミリ秒

/** 動かせるジョブでなければ、フィールド名を挙げて投げる。 */
function checkJob(raw: unknown): Job {
  const job = checkInput(JOB, raw) as unknown as Job; // 続いて、その中身：
  for (const part of ["schedule", "payload"] as const) {
    const kind = KINDS.get(`${part} ${job[part]?.kind}`);
    if (!kind) throw new Error(`${part}.kind: there is no ${job[part]?.kind}`);
    checkInput(kind, job[part]);
  }
  if (job.deliver) checkInput(shape({ channel: WORDS, to: WORDS }), job.deliver);
  if (!/^[a-z\d_-]{1,64}$/.test(job.id)) throw new Error("id: a to z, 0 to 9, - and _, at most 64");
  nextRun(job.schedule, 0, 0); // おかしければ投げる
  return job;
}

/**
 * `now`（ミリ秒）より後の、最初の時刻。"every"は`anchor`から、なければ`since`から数えるので、
 * ずれていかない。"at"の時刻は、過ぎていてもそのまま返す。
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
  return start + Math.max(steps, schedule.anchor ? 0 : steps) * step; // anchorより前にはしない
}

// 夏時間で時計が動く土地では、ある時刻が抜けたり、2回来たりする。ライブラリはそこでつまずく。
// だから、ライブラリには夏時間のない時計で計算させ、それが実際のいつに当たるかはこちらで決める。
function nextCron(expr: string, timeZone: string | undefined, now: number): number {
  // フィールドが足りないとライブラリが勝手に補い、"H"は見るたびに別の時刻になる。
  if (!/^(?!.*\bH\b)(\S+\s+){4,5}\S+$/.test(expr.trim()))
    throw new Error(`expr: "${expr}" has not the 5 fields of cron`);
  // その土地の時計が指す時刻を、UTCとみなした値。
  const wall = (at: number) => Date.parse(`${new Date(at).toLocaleString("sv", { timeZone })}Z`);
  const times = CronExpressionParser.parse(expr, { currentDate: wall(now), tz: "UTC" });
  const isHourly = expr.trim().split(/\s+/).at(-4)?.startsWith("*");
  for (;;) {
    const shown = times.next().getTime();
    const left = shown - wall(now);
    // 1時間ごとのものは、2回来る1時間の2回目にも動かす。ほかは動かさない。
    const at = isHourly && left <= HOUR ? now - (now % 1000) + left : timeOf(shown, wall);
    if (at > now) return at;
  }
}

/** 時計が初めてその時刻を指す瞬間。指さない時刻なら、時計が進まなければ指していた瞬間。 */
function timeOf(shown: number, wall: (at: number) => number): number {
  const before = shown - (wall(shown - 24 * HOUR) - (shown - 24 * HOUR)); // 1日前の時差で
  const after = shown - (wall(before) - before); // その瞬間の時差で
  return wall(before) !== shown && wall(after) === shown ? after : before;
}

/** プログラムが持つ小さなファイル。読めなければ隔離し、まっさらな状態から始める。 */
function readState(file: string): object {
  const state = fs.existsSync(file) ? parseObject(fs.readFileSync(file, "utf8")) : {};
  if (state) return state;
  fs.renameSync(file, `${file}.broken`);
  warn(`${file}が読めないので隔離しました。`);
  return {};
}

/**
 * ジョブについて覚えておくこと。`entry`はジョブの中身で、いまと違っていれば、まっさらから始める。
 * 時刻はミリ秒。`due`は、もう動かないジョブにはない。`from`は、`due`を計算したときの時刻。
 * `errors`は続けて失敗した回数。
 */
type JobState = { entry: string; since: number; due?: number; from?: number; errors: number };
const MAX_ERRORS = 5;

/** CRON.jsonのジョブと、それぞれの予定の時刻。 */
export class CronService {
  jobs: Job[] = [];
  #file: string;
  readonly #stateFile: string;
  #states: Map<string, JobState>;
  #begin: (job: Job, due: number) => boolean;
  #now: () => number;
  #changed = 0;

  /** `begin`は実行をファイルに残し、知っている実行なら捨てる。falseなら、いまは始めない。 */
  constructor(workspace: string, begin: (job: Job, due: number) => boolean, now = Date.now) {
    this.#file = path.join(workspace, "CRON.json");
    this.#stateFile = path.join(workspace, ".state/cron.json");
    const states = Object.entries(readState(this.#stateFile));
    this.#states = new Map(states.filter(([, one]) => (one?.due ?? 0) >= 0)); // {"due":"soon"}以外
    this.#begin = begin;
    this.#now = now;
  }

  /** 時刻の来たものを始める。例外は投げない。始められないものが1つあっても、ほかは止まらない。 */
  tick(): void {
    for (const job of this.read()) {
      try {
        this.#beginIfDue(job);
      } catch (error) {
        warn(`cron: ${job.id}: ${error}`); // ディスクが一杯など
      }
    }
  }

  /** 予定の時刻を消し込むのは、実行がファイルに入ったときだけ。ほかの場所では消し込まない。 */
  #beginIfDue(job: Job): void {
    const state = this.stateOf(job);
    if (!job.enabled || !state.due || state.due > this.#now()) return;
    if (!this.#begin(job, state.due)) return;
    // `due`からではなく、いまから数える。1週間分を逃しても、取り戻すのは1回だけ。
    const isLast = job.schedule.kind === "at" || job.deleteAfterRun;
    state.from = this.#now();
    state.due = isLast ? undefined : nextRun(job.schedule, state.from, state.since);
    this.#save();
  }

  /** 次のジョブの時刻。ミリ秒。 */
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
    // 時計が戻されると、覚えている時刻では遅すぎることがある。もう動いたものは`begin`が知っている
    // ので、二度は始まらない。（見るたびに計算し直すと、2回来る1時間でもう一度動いてしまう。）
    if (due > now && now < from)
      Object.assign(state, { due: Math.min(due, nextRun(job.schedule, now, since)), from: now });
    this.#states.set(job.id, state);
    return state;
  }

  #save(): void {
    replaceFile(this.#stateFile, JSON.stringify(Object.fromEntries(this.#states)));
  }

  /** ファイルにある、いまのジョブ。おかしなファイルなら、前の状態のままにする。 */
  read(): Job[] {
    const changed = fs.statSync(this.#file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
    if (changed === this.#changed) return this.jobs;
    this.#changed = changed;
    const parse = (it: string): Fields => ({ ...JSON.parse(readText(it).replace(/^\uFEFF/, "")) });
    const { jobs } = readOrSay(this.#file, { jobs: changed ? this.jobs : [] }, parse);
    const list: unknown[] = Array.isArray(jobs) ? jobs : this.jobs;
    if (list !== jobs) warn(`${this.#file}: "jobs"は一覧でなければなりません。前のジョブを続けます。`);
    const checked = new Map<string, Job>();
    for (const [index, raw] of list.entries()) {
      try {
        const job = checkJob(raw);
        if (checked.has(job.id)) throw new Error(`id: ${job.id} is there twice`);
        checked.set(job.id, job);
      } catch (error) {
        warn(`${this.#file}の${index + 1}番目のジョブを飛ばします：${error}`);
      }
    }
    this.jobs = [...checked.values()];
    // 消えたジョブの状態も残す。エディターは、ファイルをいったん消してから書き戻すことがある。
    for (const job of this.jobs) this.stateOf(job);
    this.#save();
    return this.jobs;
  }

  /** 結果を数え、持ち主に伝える文を返す。伝えるのは、失敗してもう動かないときだけ。 */
  report(id: string, error?: unknown): string {
    const state = this.#states.get(id);
    if (!state) return "";
    state.errors = error ? state.errors + 1 : 0;
    if (error) warn(`cron: ${id}が失敗しました（続けて${state.errors}回目）：${error}`);
    if (state.errors >= MAX_ERRORS) state.due = undefined;
    this.#save();
    if (!error || state.due !== undefined) return "";
    return text(`ジョブ${id}を止めました（続けて${state.errors}回失敗）。CRON.jsonの中身を直せば、また動きます。`);
  }
}

// 進行中の、人のターン。1つでもある間は、こちらの仕事を始めない。
const serving = new Set<Promise<unknown>>();

function counted<T>(turn: Promise<T>): Promise<T> {
  serving.add(turn);
  turn.catch(() => {}).then(() => serving.delete(turn));
  return turn;
}

/** 誰も書いていないメッセージ。 */
const ownMessage = (channel: string, peerId: string, words: string, at: number) => ({
  id: `${channel}:${peerId}:${new Date(at).toISOString()}`,
  ...{ channel, accountId: "local", peerId, senderId: "owner", isGroup: false, media: [], at },
  text: words,
});

/** 実行も、ほかのメッセージと同じ道を通る。idに予定の時刻が入っているので、動くのは一度だけ。 */
function beginJob(app: App, { id, payload, deliver }: Job, due: number): boolean {
  const isRun = ({ channel, peerId }: Routed) => channel === "cron" && peerId === id;
  if (app.inbox.pending().some(isRun)) return false; // 遅いジョブが溜まると、料金もかさむ
  const words = payload.message ?? payload.text ?? "";
  const job = { isEvent: payload.kind === "system_event", deliver };
  const { done } = accept(app, { ...ownMessage("cron", id, words, due), job });
  done.catch((error) => warn(`cron: ${id}: ${error}`));
  return true;
}

const KEPT_RUNS = 20;

/** ジョブを動かす。失敗はエラーであって答えではない。回数を数え、誰にも送らない。 */
async function runJob(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  const { sessionKey, peerId: id, job } = message;
  const options = { message, agent: app.agents.get(message.agentId), mode: "minimal" as const };
  const run = async (signal?: AbortSignal) => {
    while (serving.size > 0) await Promise.allSettled(serving);
    app.inbox.begin([message]);
    if (job?.isEvent) return message.text;
    return runAlone(sessionKey, message.text, app, { ...options, signal });
  };
  let answer: string;
  try {
    answer = await run(signal);
    app.cron.report(id);
  } catch (error) {
    answer = app.cron.report(id, error);
  }
  if (answer) await tellOwner(app, message, answer, job?.deliver);
  app.inbox.finish([message]);
  return answer;
}

/** 誰も待っていないターン。止められたり拒否されたりしたら投げる。それは答えではない。 */
async function runAlone(key: string, input: string, app: App, options: TurnOptions) {
  app.store.prune(key.slice(0, -"2026-11-22T08:00:00.000Z".length), KEPT_RUNS - 1);
  const session = app.store.current(key);
  const answer = await runTurn(session, input.toWellFormed(), { ...options, app });
  const last = session.messages.at(-1);
  const reason = last && "stop_reason" in last ? last.stop_reason : "";
  if (reason && reason !== "refusal") return answer;
  throw new Error(`the model gave no answer: ${reason || "stopped"}`);
}

const OWNER_FILE = path.join(STATE, "owner.json"); // 持ち主が最後に話しかけてきた場所

/** 持ち主がどこにいるかを覚えておく。 */
function noteOwner({ channels }: App, message: InboundMessage): void {
  const { channel, peerId: to } = message;
  if (channel === "cli" || !channels.has(channel) || !isOwner({ message })) return;
  const place = JSON.stringify({ channel, to });
  if (JSON.stringify(readState(OWNER_FILE)) !== place) replaceFile(OWNER_FILE, place);
}

/** ジョブの指定した宛先か、持ち主が最後に話しかけてきた場所に伝える。なければターミナルに出す。 */
async function tellOwner(app: App, about: InboundMessage, words: string, deliver?: Job["deliver"]) {
  const { channel, to } = { channel: "", to: "", ...(deliver ?? readState(OWNER_FILE)) };
  const message = { ...about, job: undefined, channel, peerId: to };
  // 設定で持ち主でなくなった人は、ファイルに何と書いてあっても持ち主ではない。
  if (!app.channels.has(channel) || !(deliver || isOwner({ message }))) return info(words);
  await reply(app, message, words);
}

const BLANK = /^\s*(#.*|[-*+]\s*(\[.?\])?\s*|```.*)?$/; // 見出し、空の項目、コードの囲み
const AROUND = String.raw`(?:</?\w+>|[^<\p{L}\p{N}])*`; // 太字やコードにしたがるので
const OK = new RegExp(`^${AROUND}HEARTBEAT_OK\\b${AROUND}|\\bHEARTBEAT_OK${AROUND}$`, "gu");

/** ハートビートへの答えのうち、人に伝える分。短い言葉で異状なしと言っていれば、何も伝えない。 */
export function heartbeatText(answer: string): string {
  const rest = answer.trim().replace(OK, "").trim();
  return rest.length < answer.trim().length && rest.length <= 300 ? "" : rest;
}

/** 持ち主に知らせることがないか、エージェントにときどき尋ねる。 */
export class HeartbeatRunner {
  last = ""; // 前回の結果
  readonly settings: { interval: number; start: number; end: number }; // 秒、時
  #at: number;
  #file: string;
  #now: () => number;

  /** 設定がおかしければエラーを投げる。 */
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

  /** いま見送る理由。なければ""。`forced`は手動のとき。時刻を問わない。 */
  #reason(tasks: string, forced: boolean): string {
    const { start, end } = this.settings;
    const hour = new Date(this.#now()).getHours();
    const isActive = start < end ? hour >= start && hour < end : hour >= start || hour < end;
    if (tails.has("heartbeat")) return "under-way";
    if (!forced && this.next() > this.#now()) return "not-due";
    if (!forced && !isActive) return "quiet-hours";
    if (serving.size > 0) return "requests-in-flight";
    if (tails.has("cron")) return "cron-in-progress";
    const lines = tasks.replace(/<!--[\s\S]*?-->/g, "").split("\n");
    return lines.every((line) => BLANK.test(line)) ? "empty-heartbeat-file" : "";
  }

  /** 結果を返す。例外は投げない。 */
  async run(app: App, forced = false, signal?: AbortSignal): Promise<string> {
    const at = this.#now();
    this.#at = Math.min(this.#at, at); // 時計が戻されたとき
    const [agent = AGENTS[0] as Agent] = app.agents.values(); // 必ず1つはある
    const tasks = loadBootstrap(agent.id, ["HEARTBEAT.md"]).get("HEARTBEAT.md") ?? "";
    const reason = this.#reason(tasks, forced);
    if (reason) return reason;
    this.#at = at;
    const ask = `${tasks}\n\nIf nothing needs the owner, answer HEARTBEAT_OK and nothing else.`;
    const options = { message: ownMessage("heartbeat", "owner", ask, at), signal, agent };
    return inOrder("heartbeat", () => this.#ask(app, options)).catch((error) => {
      warn(`heartbeat: ${error}`);
      return "failed";
    });
  }

  async #ask(app: App, options: { message: InboundMessage; agent: Agent; signal?: AbortSignal }) {
    const { message, agent } = options;
    const key = `agent:${agent.id}:heartbeat:${time(message.at)}`.toLowerCase();
    const said = heartbeatText(await runAlone(key, message.text, app, options));
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
 * ただ1つのタイマー。眠るのは長くても1分で、起きるたびに時計とCRON.jsonを見直す。これで、
 * ノートPCのスリープにも、時計合わせにも、ファイルの編集にも対応できる。24.8日を超えて待つことも
 * なくなる。そんな時間を渡すと、setTimeoutはすぐに発火してしまう。
 */
function startTimer(app: App): void {
  const began = Date.now(); // 見ている間に時刻が来たものは、次の回で拾う
  let waits: number[] = [];
  try {
    app.cron.tick();
    void app.heartbeat.tick(app);
    waits = [app.cron.next(), app.heartbeat.next()].map((at) => at - began);
  } catch (error) {
    warn(`timer: ${error}`); // 何が起きても、タイマーは続ける
  }
  setTimeout(startTimer, Math.min(60_000, ...waits.filter((ms) => ms > 0)), app);
}

const time = (at = Infinity) => (at < 8.64e15 ? new Date(at).toISOString() : "never");

const statusOf = ({ heartbeat }: App) => {
  return { ...heartbeat.settings, next: time(heartbeat.next()), last: heartbeat.last };
};

const jobsOf = ({ cron }: App) =>
  cron.read().map((job) => {
    const { due, errors } = cron.stateOf(job);
    return { ...job, due: time(job.enabled ? due : undefined), errors };
  });

method("cron.list", {}, [], (_params, app) => jobsOf(app));
method("heartbeat.status", {}, [], (_params, app) => statusOf(app));

command("heartbeat", "ハートビートの予定と、前回の結果", (_args, app) =>
  Object.entries(statusOf(app)).map(([name, value]) => `${name.padEnd(9)} ${value}`),
);

command("trigger", "いますぐハートビートを1回", (_, app, { signal }) => app.heartbeat.run(app, true, signal));

command("cron", "ジョブの一覧", (_args, app) =>
  jobsOf(app).map((job) => `${job.id}  ${job.due}  ${job.errors}  ${job.name ?? ""}`),
);

command("cron-trigger", "<id>：ジョブをいますぐ動かす", (id, app) => {
  const job = app.cron.read().find((one) => one.id === id);
  if (!job) throw new Error(`there is no job "${id}"; /cron shows them`);
  beginJob(app, job, Date.now());
  return text(`${id}を順番待ちに入れました。`);
});

/** 設定の数値。おかしければ投げる。 */
function wholeNumber(name: string, otherwise: number, max: number): number {
  const value = Number(env(name) || otherwise);
  if (Number.isInteger(value) && value >= 0 && value <= max) return value;
  throw new Error(`${name} must be a whole number from 0 to ${max}`);
}

// ---- 全体をつなぐ ----

async function main(): Promise<void> {
  // .env.exampleの見本をコピーしただけの値も、キーなしとみなす。
  if (!process.env.ANTHROPIC_API_KEY?.replace("sk-ant-your-key-here", "")) {
    fail("ANTHROPIC_API_KEYが設定されていません。.env.exampleを.envにコピーし、キーを書いてください。");
    fail("キーがなくても、`npm start`なら同じプログラムを練習用モデルとオフラインで動かせます。");
    process.exit(1);
  }
  if (!(CONTEXT_TOKENS >= 1000)) throw new Error("CONTEXT_TOKENS must be a number from 1000 up");
  setGlobalDispatcher(new EnvHttpProxyAgent()); // HTTPS_PROXYは、こちらの通信すべてに効く
  lockFolder(STATE);
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
    inbox: new Inbox(path.join(STATE, "inbox")),
    channels: new ChannelManager(),
    agents: new AgentManager(AGENTS.map((agent) => [agent.id, agent])),
    bindings: new BindingTable(BINDINGS),
    gateway: new GatewayServer(gatewayToken()),
    memory: new MemoryStore(path.join(STATE, "memory"), PRIVATE_FILES),
    cron: new CronService(WORKSPACE, (job, due) => beginJob(app, job, due)),
    heartbeat: new HeartbeatRunner(path.join(STATE, "heartbeat.json")),
  };
  const cli = new CliChannel((line, options) => runCommand(line, app, options));
  if (env("TELEGRAM_BOT_TOKEN")) app.channels.set("telegram", new TelegramChannel(env));
  if (env("FEISHU_APP_ID")) app.channels.set("feishu", new FeishuChannel(env));
  const { id, messages } = app.store.current(app.key);
  for (const { agentId } of BINDINGS) app.agents.find(agentId); // なければ名前を挙げて投げる
  info(`モデルは${MODEL}です。Ctrl+Cで応答を中断、quitで終了します。`);
  info(`セッション${id}、メッセージ${messages.length}件。コマンドの一覧は/helpで見られます。`);
  const port = wholeNumber("HTTP_PORT", 8765, 65535);
  // ポートがなければイベントは届かない。そのときFeishuは使わない。
  const server = await startHttp(port);
  if (!server.listening) app.channels.delete("feishu");
  app.gateway.attach(server, app);
  const isOurs = app.gateway.address && !env("GATEWAY_TOKEN");
  if (isOurs) info(`gateway: ${app.gateway.address}?token=${gatewayToken()}`);
  // 残っていた分から始める。順番が入れ替わらないように。いま設定されていないチャネルの
  // メッセージは、また設定されるまで受信箱に残る。
  for (const one of app.inbox.pending()) if (app.channels.has(one.channel)) void enqueue(app, one);
  for (const one of app.inbox.pending()) if (one.channel === "cron") void enqueue(app, one);
  const serve = process.argv.includes("--serve");
  const stopped = serve && Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  await app.channels.start((message, signal) => accept(app, message, signal));
  startTimer(app);
  if (serve) {
    await stopped; // タイマーがあるので、Nodeは終了しない
  } else {
    app.channels.set("cli", cli);
    await cli.start((message, signal) => accept(app, message, signal));
    await cli.closed;
  }
  await app.channels.stop();
  // 答えている途中なら、最大10秒待つ。終わらなかった分は、起動し直したときに片付ける。
  if (serve || process.stdin.isTTY)
    await Promise.race([Promise.allSettled(tails.values()), sleep(10_000)]);
  process.stdout.write("", () => process.exit(0)); // パイプの相手が全部受け取ったら
}

if (RUN) {
  await main().catch((error) => {
    fail(error.message);
    process.exit(1);
  });
}
