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

let atLineStart = true; // whether what was printed last ended a line

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
  for (const message of withoutRefusedTurns(history)) {
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
  return { model: MODEL, max_tokens: 8192, system: SYSTEM, messages: toRequest(messages) };
}

/** 调用一次，返回回复；中途中止就返回已经收到的部分。API 的错误照样抛出。 */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // SDK 自己从环境变量里读 ANTHROPIC_API_KEY 和 ANTHROPIC_BASE_URL。
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

/** 把这一轮跑完。返回用户说话之后模型说的全部内容。 */
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

// ---- 组装起来 ----

/** Checks the settings. Without an API key two lines say what to do, and the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("没有设置 ANTHROPIC_API_KEY：把 .env.example 复制成 .env，填上你的密钥。");
    fail("没有密钥？`npm start -- --lang zh` 可以离线运行同一个程序，由练习模型来回答。");
    process.exit(1);
  }
}

async function main(): Promise<void> {
  checkSettings();
  info(`正在和 ${MODEL} 对话。Ctrl+C 中断回复，输入 quit 退出。`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
