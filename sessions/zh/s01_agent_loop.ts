// Agent 循环
//
// Agent 就是一个循环，反复问模型同一个问题：下一步做什么？
//
//   You > hi ──► append ──► callModel ──► append ──► 为什么停下？
//                               ▲                         │
//                               └──────── 继续 ◄──────────┤
//                                                         └──► 说完了：回到 You >
//
// 本节新增：对话（一个由我们自己保管的列表）、循环、停止原因、终端。
// 运行：    npm start -- s01 --lang zh                 离线，用练习模型
//           npx tsx sessions/zh/s01_agent_loop.ts      用 .env 里的密钥
// 有意不做：程序退出后还记得聊过什么；出错时换密钥、换模型再试。
// 这两件事后面几节会做，到时这里的代码几乎不用动。

// 本文件由英文版和 code.po 生成，不要直接改：改 code.po，再运行 npm run translate。

import fs from "node:fs";
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

// ---- 终端 ----

let atLineStart = true;

/** 把模型说的话一段一段打印出来。 */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** 程序自己的输出：灰色和红色。 */
export const info = (line: string) => sayLine(tint(2, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** 标出给人看的句子：不在这里打印，但翻译时要找得到。 */
export const text = (sentence: string) => sentence;

/** 从键盘或管道读入，一次交出一行。 */
export class Terminal {
  /** 正在回答时按 Ctrl+C，中止这一行的 signal；在提示符下按，退出程序。 */
  async run(handle: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    // 回复还在流式输出时，readline 会把按键回显到文字中间。所以这段时间暂停 readline，
    // 按键先存在 keys 里，也就是键盘和 readline 之间。只有 Ctrl+C 立刻处理。
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const terminal = stdin.isTTY && stdout.isTTY;
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    const prompt = () => (terminal ? reader.prompt() : stdout.write("You > "));
    let turn: AbortController | undefined;
    const interrupt = () => (turn ? turn.abort() : reader.close());
    process.on("SIGINT", interrupt);
    reader.on("SIGINT", interrupt).on("line", () => terminal && reader.pause());
    // 一行一行地喂：readline 就算暂停了，已经拿到的那一段还是会处理完。
    const put = (typed: string) => typed.split(/(?<=\r(?!\n))/).map((line) => keys.write(line));
    stdin.setEncoding("utf8").on("end", () => keys.end());
    stdin.on("data", (typed) => (turn && typed.includes("\x03") ? turn.abort() : put(`${typed}`)));
    prompt();
    for await (const entered of reader) {
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`失败：${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    stdin.destroy();
    say("\n");
  }
}

// ---- s01 · Agent 循环 ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** 回复按 API 给的原样保存，id、停止原因和 usage 都在。 */
export type Message = Anthropic.Message | (Entry & { role: "user" });

/** 两次调用之间，模型什么都不记得。它知道的一切都在这个列表里。 */
export class Conversation {
  messages: Message[] = [];

  append(message: Message): void {
    this.messages.push(message);
  }
}

/** 一轮怎么跑：回复陆续到达时交给谁，用什么来中止。 */
export interface TurnOptions {
  onText?(piece: string): void;
  signal?: AbortSignal;
}

/** GO_ON 里的原因表示模型还没说完；其余的都算说完，表里写的是该告诉用户的话。 */
const GO_ON = new Set(["pause_turn"]);
const STOP_NOTES: Record<string, string> = {
  end_turn: "",
  stop_sequence: "",
  max_tokens: text("\n（回复断在这里：到了 token 上限。）"),
  refusal: text("\n（模型拒绝回答。从现在起，它不会再看到这一轮。）"),
  model_context_window_exceeded: text("\n（断在这里：上下文窗口满了，模型读不下更多内容。）"),
};
const noteOf = (m: Message) => ("stop_reason" in m && STOP_NOTES[m.stop_reason ?? ""]) || "";
const startsTurn = ({ role }: Entry) => role === "user";

/** 把历史整理成 API 接受的样子：去掉空白，去掉遭到拒绝的内容，让角色交替。 */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  for (const message of history) {
    const last = request.at(-1);
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    // 回复不能以 thinking 结尾；真以它结尾，说明思考只到了一半。
    while (content.at(-1)?.type.endsWith("thinking")) content.pop();
    // 模型拒绝过的内容，再发还是拒绝，连带后面的也一起拒绝。
    const refused = "stop_reason" in message && message.stop_reason === "refusal";
    if (refused) request.splice(request.findLastIndex(startsTurn));
    else if (last?.role === message.role) last.content.push(...content);
    else if (content.length > 0) request.push({ role: message.role, content });
  }
  return request;
}

/** 一次调用要带上的全部内容。 */
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return { model: MODEL, max_tokens: 8192, system: SYSTEM, messages: toRequest(messages) };
}

/** 调用一次，返回回复；中途中止就返回已经收到的部分。API 的错误照样抛出。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // SDK 自己从环境变量里读 ANTHROPIC_API_KEY 和 ANTHROPIC_BASE_URL。
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
    // 没有停止原因，因为是我们让它停的。id 和 usage 只有 API 才给得出。
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  }
}

/** 循环。只看存下来的内容，所以从哪里都能接着跑。 */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    const reply = await callModel(buildRequest(conversation, options), options);
    conversation.append(reply);
    options.onText?.(noteOf(reply));
  }
}

const needsReply = (last?: Message) => last?.role === "user" || GO_ON.has(last?.stop_reason ?? "");

/** 把这一轮跑完。返回用户说话之后模型说的全部内容。 */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  await continueTurn(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(spoken).filter(Boolean).join("\n\n");
}

const spoken = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + noteOf(message);

/** 一轮。用户的话先记下来，再去问模型；不管成不成功，记下的都留着。 */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  conversation.append({ role: "user", content: [{ type: "text", text: input }] });
  return finishTurn(conversation, options);
}

// ---- 组装起来 ----

async function main(): Promise<void> {
  // 从 .env.example 抄过来没改的示例，也不算密钥。
  if (!process.env.ANTHROPIC_API_KEY?.replace("sk-ant-your-key-here", "")) {
    fail("没有设置 ANTHROPIC_API_KEY：把 .env.example 复制成 .env，填上你的密钥。");
    fail("没有密钥？`npm start -- --lang zh` 可以离线运行同一个程序，由练习模型来回答。");
    process.exit(1);
  }
  info(`正在和 ${MODEL} 对话。Ctrl+C 中断回复，输入 quit 退出。`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
