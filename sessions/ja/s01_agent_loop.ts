// エージェントループ
//
// エージェントとは、モデルに「次はどうする？」と尋ね続けるループである。
//
//   You > やあ ──► append ──► callModel ──► append ──► なぜ止まった？
//                                 ▲                        │
//                                 └─────── 続ける ◄────────┤
//                                                          └──► 終わり：You > に戻る
//
// この章で加わるもの：会話（こちらで持つリスト）、ループ、停止理由、ターミナル。
// 動かし方：  npm start -- s01 --lang ja                 オフライン、練習用モデルを使う
//             npx tsx sessions/ja/s01_agent_loop.ts      .envのキーを使う
// 省いたもの：プログラムが終わったあとも覚えておくこと、別のキーや別のモデルでのやり直し。
// どちらもあとの章で加わるが、ここのコードはほとんど変わらない。

// このファイルは英語版とcode.poから作られる。文を直すときはcode.poを編集し、npm run translate。

import fs from "node:fs";
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

// ---- ターミナル ----

let atLineStart = true; // whether what was printed last ended a line

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
/** What an error says. One of the API also has it without status and JSON, as `apiMessage`. */
const whyFailed = (e: { message: string; apiMessage?: string }) => e.apiMessage ?? e.message;
/** Gives the sentence back. By this call the translation tool finds what is printed elsewhere. */
export const t = (sentence: string) => sentence;

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
      if (line) await onLine(line, turn.signal).catch((e) => fail(`エラー：${whyFailed(e)}`));
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

// ---- s01 · エージェントループ ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** 応答はAPIが返したまま残す。id、停止理由、usageもそのまま。 */
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
  for (const message of withoutRefusedTurns(history)) {
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    while (content.at(-1)?.type.endsWith("thinking")) content.pop(); // it was cut off
    const last = request.at(-1);
    if (last?.role === message.role) last.content.push(...content);
    else if (content.length > 0) request.push({ role: message.role, content });
  }
  return request;
}

/** 1回の呼び出しに必要なものすべて。 */
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return { model: MODEL, max_tokens: 8192, system: SYSTEM, messages: toRequest(messages) };
}

/** 1回の呼び出し。応答か、中断されたときは届いていた分を返す。APIのエラーは投げる。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // ANTHROPIC_API_KEYとANTHROPIC_BASE_URLは、SDKが環境変数から読む。
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
    const response = await callModel(buildRequest(conversation, options), options);
    conversation.append(response);
    options.onText?.(stopNote(response));
  }
}

const needsReply = (m?: Message) => m?.role === "user" || CONTINUE_IF.some((test) => test(m));

/** ターンを最後まで進め、人の発言のあとにモデルが話したことをまとめて返す。 */
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

// ---- 全体をつなぐ ----

/** Checks the settings. Without an API key two lines say what to do, and the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEYが設定されていません。.env.exampleを.envにコピーし、キーを書いてください。");
    fail("キーがなくても、`npm start`なら同じプログラムを練習用モデルとオフラインで動かせます。");
    process.exit(1);
  }
}

async function main(): Promise<void> {
  checkSettings();
  info(`モデルは${MODEL}です。Ctrl+Cで応答を中断、quitで終了します。`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
