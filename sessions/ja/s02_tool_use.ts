// ツール
//
// ツールとは、モデルが呼び出せる名前と、こちらで動かす関数の組である。スキーマの一覧を送り、
// ハンドラーの表を手元に置く。
//
//   callModel ──► 応答 ── stop_reason "tool_use"? ──いいえ──► 終わり
//      ▲                         │ はい
//      │                         ▼
//      └────── 結果を追加 ◄── runTool ◄── HANDLERS[name](input)
//
// この章で加わるもの：bash、read_file、write_file、edit_file。ツールの周りの柵。そして、
// 何が起きても、どのツール呼び出しにも結果がちょうど1つ付くという決まり。
// 動かし方：  npm start -- s02 --lang ja               オフライン、練習用モデルを使う
//             npx tsx sessions/ja/s02_tool_use.ts      .envのキーを使う
// 省いたもの：コマンドを実行する前の確認、bashのサンドボックス、バックグラウンドジョブ、
// ファイルを少しずつ読むこと。

// このファイルは英語版とcode.poから作られる。文を直すときはcode.poを編集し、npm run translate。

import { spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import Anthropic from "@anthropic-ai/sdk";
import dotenv from "dotenv";

// ---- 設定 ----

// importしただけでは何も起きないようにする。.envを読むのは、直接実行されたときだけ。
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");

// ---- ターミナル ----

let atLineStart = true;

/** モデルの言葉を、届いた分から表示する。 */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** プログラム自身が出す行。淡色と赤。 */
export const info = (line: string) => sayLine(tint(2, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** その場では表示しないが、人に見せる文。翻訳の対象だという目印。 */
export const text = (sentence: string) => sentence;

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
    const prompt = () => (terminal ? reader.prompt() : stdout.write("You > "));
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
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`エラー：${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
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

  append(message: Message): void {
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
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return {
    model: MODEL,
    max_tokens: 8192,
    system: SYSTEM,
    tools: TOOLS,
    messages: toRequest(messages),
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
  await continueTurn(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(spoken).filter(Boolean).join("\n\n");
}

const spoken = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + noteOf(message);

/** 1ターン。人の発言はモデルに尋ねる前に記録し、あとで消すこともない。 */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  conversation.append({ role: "user", content: [{ type: "text", text: input }] });
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

// ---- 全体をつなぐ ----

async function main(): Promise<void> {
  // .env.exampleの見本をコピーしただけの値も、キーなしとみなす。
  if (!process.env.ANTHROPIC_API_KEY?.replace("sk-ant-your-key-here", "")) {
    fail("ANTHROPIC_API_KEYが設定されていません。.env.exampleを.envにコピーし、キーを書いてください。");
    fail("キーがなくても、`npm start`なら同じプログラムを練習用モデルとオフラインで動かせます。");
    process.exit(1);
  }
  info(`モデルは${MODEL}です。Ctrl+Cで応答を中断、quitで終了します。`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
