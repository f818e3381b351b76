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
const startsTurn = ({ role }: Entry) => role === "user";

/** APIが受け付ける形にした履歴。空のものと拒否されたものを外し、役割を交互に並べる。 */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
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
  return { model: MODEL, max_tokens: 8192, system: SYSTEM, messages: toRequest(messages) };
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
    const reply = await callModel(buildRequest(conversation, options), options);
    conversation.append(reply);
    options.onText?.(noteOf(reply));
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
