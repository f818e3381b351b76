// 网关
//
// 一个程序，几个 Agent，许多人：每条消息只路由一次，定下归哪个 Agent 回答、属于谁的对话。
// 别的程序通过 WebSocket 连进来。
//
//   Telegram ──┐               哪个 Agent？     谁的对话？
//   飞书 ──────┼──► accept ──► BindingTable ──► buildSessionKey ──► Inbox ──► inOrder ──► …
//   终端 ──────┘                     ▲
//   WebSocket ── JSON-RPC "send" ────┘            （"status" 谁都不用等）
//
// 本节新增：Agent、分五个层级的绑定、会话 key，还有一个 JSON-RPC 2.0 网关。
// 运行：    npm start -- s05 --lang zh      离线；另开终端运行 `npm run rpc -- status`
//           npx tsx sessions/zh/s05_gateway.ts [--serve]      用 .env 里的密钥
// 有意不做：程序退出后还在的绑定；客户端的角色和配对；给事件编号（客户端好知道漏了哪条）；
// 清理已离开的客户端留下的会话；TLS。
//
// 各区：配置 · 终端 · s01 Agent 循环 · s02 使用工具 · s03 会话 ·
//       s04 渠道 · s05 网关和路由 · 组装起来

// 本文件由英文版和 code.po 生成，不要直接改：改 code.po，再运行 npm run translate。

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
import dotenv from "dotenv";
import { Bot, GrammyError } from "grammy";
import type { Message as TelegramMessage } from "grammy/types";
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";
import { type WebSocket, WebSocketServer } from "ws";

// ---- 配置 ----

// 导入本文件不能有任何副作用：直接运行它时才读 .env。
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";
const WORKSPACE = process.env.CLAW0_WORKSPACE || path.join(import.meta.dirname, "../../workspace");
const STATE = path.join(WORKSPACE, ".state"); // 程序自己用的数据
const CONTEXT_TOKENS = Number(process.env.CONTEXT_TOKENS || 180_000);
type Setting = (name: string) => string; // 没有设置的，返回 ""
const env: Setting = (name) => process.env[name] ?? "";

// ---- 终端 ----

let atLineStart = true;

/** 把模型说的话一段一段打印出来。 */
export function say(piece: string) {
  if (typing && piece) return sayAbove(typing, piece);
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** 程序自己的输出：灰色、黄色和红色。 */
export const info = (line: string) => sayLine(tint(2, line));
export const warn = (line: string) => sayLine(tint(33, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** 标出给人看的句子：不在这里打印，但翻译时要找得到。 */
export const text = (sentence: string) => sentence;

let typing: Interface | undefined; // 停在提示符、有人可能正在输入时才有值

/**
 * 打印在正在输入的那一行上方。那一行可能比终端还宽，占了好几行，所以：先回到它的第一行，
 * 从这里往下清掉，打印，再留出同样多的行，让 readline 重画。
 */
function sayAbove(reader: Interface, lines: string): void {
  const { rows } = reader.getCursorPos();
  process.stdout.write(`\r${rows ? `\x1b[${rows}A` : ""}\x1b[J${lines}${"\n".repeat(rows)}`);
  reader.prompt(true);
}

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
    const prompt = () => {
      if (!terminal) return say("You > ");
      typing = reader;
      reader.prompt();
    };
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
      typing = undefined;
      atLineStart = true;
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`失败：${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    typing = undefined;
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

  append(message: Message, _about: { inboxId?: string } = {}): void {
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
const startsTurn = (entry: Entry) => entry.role === "user" && resultsIn(entry).length === 0;

/** 把历史整理成 API 接受的样子：去掉空白，去掉遭到拒绝的内容，让角色交替。 */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  history = answerCalls(history);
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
export function buildRequest({ messages }: Conversation, options: TurnOptions) {
  return {
    model: options.agent?.model ?? MODEL,
    max_tokens: 8192,
    system: options.agent?.system ?? SYSTEM,
    tools: toolsFor(options),
    messages: toRequest(messages),
  };
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

/** 把这一轮跑完。返回用户说话之后模型说的全部内容。 */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  await GUARD.run(conversation, options, () => continueTurn(conversation, options));
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(spoken).filter(Boolean).join("\n\n");
}

const spoken = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + noteOf(message);

/** 一轮。用户的话先记下来，再去问模型；不管成不成功，记下的都留着。 */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  const about = { inboxId: options.message?.id };
  conversation.append({ role: "user", content: [{ type: "text", text: input }] }, about);
  return finishTurn(conversation, options);
}

// ---- s02 · 使用工具 ----

/** 处理函数能知道的：这次调用属于哪一轮。 */
export interface Turn extends TurnOptions {
  conversation: Conversation;
}

type Fields = Record<string, unknown>; // 外面传进来的，里面可能是任何东西

/** 收到的输入已经符合工具的 schema。返回输出；抛出的错误会给模型看。 */
export type Handler = (input: Fields, turn: Turn) => string | Promise<string>;

const string = (description: string) => ({ type: "string", description });
const file = string("The path, relative to the workspace.");

function tool(name: string, description: string, properties: object, optional: string[] = []) {
  const required = Object.keys(properties).filter((field) => !optional.includes(field));
  return { name, description, input_schema: { type: "object" as const, properties, required } };
}

/** 告诉模型的就是这些。模型对一个工具的了解，仅限于这几句话。 */
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

/** 模型说出名字，这里就运行对应的函数。 */
export const HANDLERS: Record<string, Handler> = {
  bash: (input, turn) => bash(String(input.command), Number(input.seconds ?? 60), turn.signal),
  read_file: (input) => readText(safePath(String(input.path), WORKSPACE)),
  write_file: (input) => writeText(String(input.path), String(input.content)),
  edit_file: (input) =>
    editText(String(input.path), String(input.old_text), String(input.new_text)),
};

GO_ON.add("tool_use");
const MAX_ROUNDS = 50;
const OUTPUT_LIMIT = 30_000; // 一个结果最多这么多字符，首尾各留一半

/** 模型要是原地打转，没人看着就一直烧钱。 */
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
 * 补全后的历史：每个调用后面紧跟一个结果，这是 API 的要求。崩溃、Ctrl+C，或者参数写到一半
 * 碰上 `max_tokens`，都会留下没有结果的调用。API 自己运行的工具，如果暂停途中出错，
 * 也没有结果；这种调用直接去掉。
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
    const reply = { ...message, content } as Anthropic.Message; // 还是原来的块，可能少几个
    // 拒绝过的一轮会整轮去掉，里面的调用不用补结果。
    if (open.length === 0 || message.stop_reason === "refusal") return [reply];
    const cut = message.stop_reason === "max_tokens";
    const why = cut ? "cut off; it was not run" : "interrupted; it may have run";
    return [reply, { role: "user", content: open.map(({ id }) => result(id, why, true)) }];
  });
}

/** 运行一次调用。从不抛错：出了任何问题，都变成模型能处理的结果。 */
export async function runTool(call: Anthropic.ToolUseBlock, turn: Turn) {
  info(`  ${call.name} ${JSON.stringify(call.input).slice(0, 100)}`);
  try {
    const tool = toolsFor(turn).find(({ name }) => name === call.name);
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
  // 输出截断后可能留下半个字符，整个请求都会因此无效。
  const content = keepEnds(output, OUTPUT_LIMIT).toWellFormed() || "(no output)";
  return { type: "tool_result", tool_use_id: id, content, ...(failed && { is_error: true }) };
}

type Property = { type?: string; enum?: unknown[] };

/** 检查必填字段和类型，没问题就返回输入；否则抛错，并指出字段名。 */
export function checkInput(schema: Anthropic.Tool.InputSchema, input: unknown) {
  if (typeof input !== "object" || input === null) throw new Error("the input must be an object");
  const fields: Fields = { ...input };
  const properties = (schema.properties ?? {}) as Record<string, Property>; // 自己写的
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

/** 返回原文；比 `limit` 长就只留首尾。`lost` 是之前已经丢掉的字符数。 */
function keepEnds(whole: string, limit: number, lost = 0): string {
  if (whole.length <= limit) return whole;
  const half = Math.ceil(limit / 2);
  const left = whole.length - 2 * half + lost;
  return `${whole.slice(0, half)}\n… ${left} characters left out …\n${whole.slice(-half)}`;
}

/**
 * `root` 里某个文件的真实路径，文件可以还不存在。跑到 `root` 外面就抛错，
 * 不管用的是 ".."、绝对路径、旁边的目录 "root2"，还是符号链接。
 */
export function safePath(file: string, root: string): string {
  const base = fs.realpathSync.native(root);
  const target = path.resolve(base, file);
  let existing = target;
  while (!fs.lstatSync(existing, { throwIfNoEntry: false })) existing = path.dirname(existing);
  // 链接指向的地方不存在，realpath 就抛错。正合适：不然一写，就在那边建出文件来了。
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

// 文件工具特意写成同步的：几次调用会并行，而编辑时从读到写，
// 中间不能让别的调用插进来。

function readText(file: string): string {
  const stat = fs.statSync(file);
  if (!stat.isFile()) throw new Error("not a file"); // 读管道会一直等下去
  if (stat.size > 10_000_000)
    throw new Error(`${stat.size} bytes are too many: look at parts with bash`);
  const bytes = fs.readFileSync(file);
  const content = bytes.toString("utf8");
  // 不是 UTF-8 的文件，读进来再写回去就坏了。
  if (!Buffer.from(content).equals(bytes)) throw new Error("not a text file in UTF-8");
  return content;
}

/** 把 `words` 的换行符改成和文件一致：不管原来是什么，模型只会写 "\n"。 */
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

// bash 在工作区里启动，但出得去：你能读的，它都能读，包括 .env。
// 环境变量里不给它密钥和令牌，免得随手一个 `env` 就让模型看见了。
// 这道栅栏只防意外。要防存心的，只能上沙箱，或者不提供这个工具。
const SAFE_ENV =
  "PATH HOME USER LANG TERM TZ TMPDIR TEMP TMP SystemRoot ComSpec PATHEXT USERPROFILE APPDATA";
const WINDOWS = process.platform === "win32";

async function bash(command: string, seconds: number, signal?: AbortSignal): Promise<string> {
  const env = Object.fromEntries(SAFE_ENV.split(" ").map((name) => [name, process.env[name]]));
  const child = spawn(command, {
    shell: WINDOWS || "bash",
    cwd: WORKSPACE,
    env,
    detached: !WINDOWS, // 自成一个进程组，可以一起杀掉
    stdio: ["ignore", "pipe", "pipe"],
    windowsHide: true,
  });
  let output = "";
  let lost = 0;
  const collect = (piece: string) => {
    output += piece;
    if (output.length < 10 * OUTPUT_LIMIT) return;
    // 输出太多。反正只显示首尾，中间的不用留。
    lost += output.length - 2 * OUTPUT_LIMIT;
    output = output.slice(0, OUTPUT_LIMIT) + output.slice(-OUTPUT_LIMIT);
  };
  child.stdout.setEncoding("utf8").on("data", collect);
  child.stderr.setEncoding("utf8").on("data", collect);
  let stopped = "";
  const stop = (why: string) => {
    stopped = why;
    killGroup(child.pid);
    // 离开了进程组的子进程可能还占着管道，不等了。
    child.stdout.destroy();
    child.stderr.destroy();
  };
  const interrupt = () => stop("interrupted by the user");
  const limit = Math.min(Math.max(seconds, 1), 600);
  const timer = setTimeout(() => stop(`stopped after ${limit} s`), limit * 1000);
  signal?.addEventListener("abort", interrupt);
  child.on("exit", () => WINDOWS || killGroup(child.pid)); // 结束还留在后台的进程
  try {
    const [code, killer] = await once(child, "close");
    output = keepEnds(output, OUTPUT_LIMIT - 200, lost); // 给下面那句话留地方
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
    // 组里已经没有进程了。
  }
}

// ---- s03 · 会话 ----

/** 程序运行时的各个部件，每一节都会加上自己的。 */
export interface App {
  store: SessionStore;
  key: string; // 终端正在用的会话 key
}

// 会话文件，一行一行看。里面的内容从不修改，也不删除：
// 想让历史变短，就再加一行，写明重放时略去什么。
//
//   1  {"v":1,"id":"668cefd2","key":"agent:luna:cli:direct:owner","label":"","at":…}
//   2  {"at":…,"message":{"role":"user",…}}
//   3  {"at":…,"message":{"role":"assistant",…,"usage":{…}}}        API 给的原样
//   4  {"at":…,"shorten":{"toolUseIds":["toolu_1"]}}                守卫的第 1 步
//   5  {"at":…,"message":{"role":"user",…}}
//   6  {"at":…,"compaction":{"summary":"小林 …","keepFrom":5}}      第 2 步：略去第 2 到 4 行

/** 会话文件里的一行。是哪一种，看它有哪个字段。 */
interface LogRecord {
  at?: string;
  message?: Message;
  inboxId?: string;
  compaction?: { summary: string; keepFrom: number };
  shorten?: { toolUseIds: string[] };
}

/**
 * 一行一条 JSON 的文件，只追加。读不出来的行（可能是崩溃时只写了一半）留在原处，
 * 报出行号，不影响其他行。
 */
class Log {
  readonly file: string;
  lines = 0;
  #torn = false;

  constructor(file: string) {
    this.file = file;
  }

  /** 所有读得出来的行，带行号。 */
  read(): { line: number; record: object }[] {
    if (!fs.existsSync(this.file)) return [];
    const lines = fs.readFileSync(this.file, "utf8").split("\n");
    this.#torn = lines.at(-1) !== "";
    if (!this.#torn) lines.pop();
    this.lines = lines.length;
    return lines.flatMap((content, index) => {
      const record = parseObject(content);
      if (record) return [{ line: index + 1, record }];
      warn(`${this.file} 第 ${index + 1} 行：读不出来，已跳过。这一行仍留在文件里。`);
      return [];
    });
  }

  /** 加上时间，写进文件之后才返回。返回值是行号。 */
  append(record: object): number {
    const json = JSON.stringify({ at: new Date().toISOString(), ...record });
    // 不先换行的话，这一行会接在上次没写完的半行后面，一起作废。
    const line = `${this.#torn ? "\n" : ""}${json}\n`;
    this.#torn = true; // 写失败会留下半行或者空行，那也算一行
    this.lines++;
    fs.appendFileSync(this.file, line);
    this.#torn = false;
    return this.lines;
  }
}

/** `json` 里的对象；解析不了，或者解析出来不是对象（比如 `null`），都返回 undefined。 */
function parseObject(json: string): object | undefined {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === "object" && !Array.isArray(value) ? (value ?? undefined) : undefined;
  } catch {
    return undefined;
  }
}

/** 存在磁盘上的对话：列表还是那个列表，背后的文件记着它的全部经过。 */
export class Session extends Conversation {
  readonly id: string;
  header = { key: "", label: "", at: "" };
  summary = ""; // 压缩时从列表里拿掉的内容，写成了这段摘要
  rewritten = 0; // 开头这么多条消息，API 报过的数字已经对不上了
  #log: Log;
  #lines = new Map<Message, number>();
  #inboxIds = new Set<string>();

  /** 重放整个文件。 */
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

  /** 先写进文件，再放进列表：告诉过模型的，一定已经存下来了。 */
  override append(message: Message, about: { inboxId?: string } = {}): void {
    // 崩溃之后，收件箱会把消息再送来一次。这里已经有了，说不定回答也有了一半。
    if (about.inboxId && this.#inboxIds.has(about.inboxId)) return;
    this.#add(message, this.#log.append({ message, ...about }));
    if (about.inboxId) this.#inboxIds.add(about.inboxId);
  }

  #add(message: Message, line: number): void {
    super.append(message);
    this.#lines.set(message, line);
  }

  /** 从现在起，历史就是这段摘要，加上从 `kept` 开始的内容。 */
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
      // 这条回复是我们自己写的，和 Ctrl+C 时一样。有这条隔着，
      // 下一轮要是模型拒绝回答，去掉的只是那一轮，摘要还在。
      { role: "assistant", content: noted, stop_reason: null } as Anthropic.Message,
      ...kept,
    ];
    this.rewritten = this.messages.length;
  }

  /** 从现在起，这些调用的结果只留首尾。 */
  shorten(toolUseIds: string[]): void {
    this.#log.append({ shorten: { toolUseIds } });
    this.#shorten(new Set(toolUseIds));
  }

  #shorten(ids: Set<string>): void {
    for (const block of this.messages.flatMap(resultsIn)) {
      // 原地修改，这样消息还对得上行号。
      if (ids.has(block.tool_use_id)) block.content = shortened(block);
    }
    this.rewritten = this.messages.length;
  }
}

const sha256 = (data: string) => crypto.createHash("sha256").update(data);

// key 说明是谁和谁在说话；会话是他们之间的一段对话。所有会话的总表没有另存成文件：
// 文件夹本身就是总表，不会有对不上的时候。

/** `dir` 下的所有会话：每个 key 一个文件夹，里面每个会话一个文件。 */
export class SessionStore {
  #dir: string;
  #open = new Map<string, Session>();

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** 这个 key 当前的会话；还没有就新建。 */
  current(key: string): Session {
    const open = this.#open.get(key) ?? this.#stored(key) ?? this.create(key);
    this.#open.set(key, open);
    return open;
  }

  /** 给这个 key 新建一个会话，并切换过去。 */
  create(key: string, label = ""): Session {
    const id = crypto.randomUUID().slice(0, 8);
    const header = { v: 1, id, key, label, at: new Date().toISOString() };
    fs.mkdirSync(this.#folder(key), { recursive: true });
    fs.writeFileSync(this.#file(key, id), `${JSON.stringify(header)}\n`, { flag: "wx" });
    return this.#enter(key, new Session(this.#file(key, id)));
  }

  /** 这个 key 的所有会话，最新的在最后。 */
  list(key: string): Session[] {
    return this.#in(this.#folder(key));
  }

  #in(folder: string): Session[] {
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
    const files = fs.readdirSync(folder).filter((name) => name.endsWith(".jsonl"));
    const sessions = files.map((name) => new Session(path.join(folder, name)));
    return sessions.sort((a, b) => (a.header.at < b.header.at ? -1 : 1));
  }

  /** 所有 key 的所有会话。 */
  all(): Session[] {
    const folders = fs.existsSync(this.#dir) ? fs.readdirSync(this.#dir) : [];
    return folders.flatMap((name) => this.#in(path.join(this.#dir, name)));
  }

  /** 回到 id 以 `prefix` 开头的会话。必须正好有一个，否则抛错。 */
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

  /** "current" 文件指向的会话。要是指错了，就用最新的会话：什么都不会丢。 */
  #stored(key: string): Session | undefined {
    const pointer = path.join(this.#folder(key), "current");
    if (!fs.existsSync(pointer)) return this.list(key).at(-1);
    const id = fs.readFileSync(pointer, "utf8");
    if (/^[\w-]+$/.test(id) && fs.existsSync(this.#file(key, id)))
      return new Session(this.#file(key, id));
    fs.renameSync(pointer, `${pointer}.broken`);
    warn(`${pointer} 指向的会话不存在，已改名放到一边；接着用最新的会话。`);
    return this.list(key).at(-1);
  }

  #folder(key: string): string {
    const name = encodeURIComponent(key.toLowerCase()).replaceAll("*", "%2A");
    if (name.length <= 200) return path.join(this.#dir, name); // 文件系统的上限是 255
    return path.join(this.#dir, sha256(name).digest("hex"));
  }

  #file(key: string, id: string): string {
    return path.join(this.#folder(key), `${id}.jsonl`);
  }
}

/**
 * 写一个小文件。就算中途崩溃，留下的也是完整的旧文件或新文件，不会是半个。
 * 返回时已经真的落盘，而不是还在系统的内存里：断电也不会丢。
 */
function replaceFile(file: string, content: string): void {
  fs.writeFileSync(`${file}.tmp`, content, { flush: true }); // 先落盘，再换成正式的名字
  fs.renameSync(`${file}.tmp`, file);
  if (WINDOWS) return; // Windows 没法对文件夹做 fsync
  const folder = fs.openSync(path.dirname(file), "r");
  fs.fsyncSync(folder);
  fs.closeSync(folder);
}

/** 两个程序往同一个会话里追加，会把它写坏。`dir` 已经有别的程序在用就抛错。 */
export function lockFolder(dir: string): void {
  const file = path.join(dir, "lock");
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 }); // 聊天内容，不给系统里的别人看
  if (fs.existsSync(file)) {
    const before = fs.readFileSync(file, "utf8");
    const pid = Number.parseInt(before, 10);
    const who = `process ${pid} is using ${path.dirname(dir)}`;
    if (isAlive(pid)) throw new Error(`${who}: stop it, set CLAW0_WORKSPACE, or delete ${file}`);
    // 两个同时启动的程序可能看到同一把失效的锁，而对方说不定已经换上了自己的锁。
    // 所以先把锁拿走（只有一个拿得到），再看一眼；如果还有效，就放回去。
    const taken = `${file}.${process.pid}`;
    fs.renameSync(file, taken);
    if (fs.readFileSync(taken, "utf8") !== before) fs.renameSync(taken, file);
    fs.rmSync(taken, { force: true });
  }
  // wx：文件已存在就失败。两个程序同时走到这里，总有一个进不来。
  fs.writeFileSync(file, `${process.pid} ${crypto.randomUUID()}`, { flag: "wx" });
  process.on("exit", () => fs.rmSync(file, { force: true })); // SIGKILL 会把它留下，见上文
}

function isAlive(pid: number): boolean {
  // 和我们的进程号一样，是上次运行留下的锁：在容器里，进程号每次都一样。
  if (!(pid > 0) || pid === process.pid) return false;
  try {
    return process.kill(pid, 0); // 信号 0 只问进程在不在
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // 还活着，只是属于别的用户
  }
}

/** 一段文字的 token 数，粗略估算：四个字符算一个，中日韩文字一个字算一个。 */
export function estimateTokens(words: string): number {
  const wide = words.match(/[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/gu) ?? [];
  return wide.length + Math.ceil((words.length - wide.length) / 4);
}

const tokensOf = (messages: Message[]) =>
  estimateTokens(JSON.stringify(messages.map(({ content }) => content)));

// 对话太长时怎么办。工具结果丢了最不可惜：模型可以再读一次文件。
// 对话本身更宝贵，所以写成摘要，而不是扔掉。
// 改动的都是内存里的历史；磁盘上的文件只会多几行。

const BIG_RESULT = 2_000; // 字符数；截短后留一半
const FULL = 0.85; // 占窗口的比例：还要给回复留地方
const KEPT = 0.3; // 压缩后原样保留多少，占原来的比例

// 名字和 id 最要紧：把 "src/a.ts" 写成“那个文件”，模型就得再问一遍。
const SUMMARISE =
  "Summarise this conversation for the assistant who will go on with it. Keep names, numbers, " +
  "paths and ids exactly, what was decided, what failed, and what the user still waits for. " +
  "Facts only, at most 400 words.";

const shortened = ({ content }: Anthropic.ToolResultBlockParam) =>
  keepEnds(String(content), BIG_RESULT / 2).toWellFormed();

/** API 没有给这个错误单独的类型。只有这一个错误，我们靠文字来认。 */
export function isOverflow(error: unknown): boolean {
  return error instanceof Anthropic.BadRequestError && /prompt is too long/i.test(error.message);
}

/** 洋葱的第 2 层：让对话不超出上下文窗口。 */
export class ContextGuard {
  readonly limit: number; // 单位是 token

  constructor(limit: number) {
    this.limit = limit;
  }

  /** 下一个请求的 token 数：API 自己报的数字，加上对后面内容的估算。 */
  size(conversation: Conversation): number {
    const { messages } = conversation;
    // 压缩之后，旧数字照样显示“太长”，就会没完没了地压缩。
    const old = conversation instanceof Session ? conversation.rewritten : 0;
    const at = messages.findLastIndex((m, i) => i >= old && m.role !== "user" && m.stop_reason);
    const last = messages[at];
    const tail = tokensOf(messages.slice(at + 1));
    if (last?.role !== "assistant") return tail + estimateTokens(JSON.stringify([SYSTEM, TOOLS]));
    const { usage } = last;
    const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
    return usage.input_tokens + cached + usage.output_tokens + tail;
  }

  /** 运行 `inner`；对话放不下就缩短，最多三步。 */
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
    // 调用之前看自己的估算，不花钱；调用之后看 API 怎么说。
    // 刚重启时可能没有调用要发：该说的话都已经在了。
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
    const budget = Math.min(this.limit, this.size(conversation));
    const cut = cutPoint(messages, budget * keep);
    const old = messages.slice(conversation.summary ? 2 : 0, cut);
    if (old.length === 0) return false;
    const words = old.map((message) => `${message.role}: ${wordsIn(message)}`).join("\n");
    conversation.compact(await askSummary(conversation, words, budget, options), messages[cut]);
    info(`  （为腾出空间，把 ${old.length} 条消息写成了摘要）`);
    return true;
  }
}

/** 只给最新的、放得下的那部分做摘要；要是还太长，就减半再试。 */
async function askSummary(session: Session, old: string, tokens: number, options: TurnOptions) {
  // 要做摘要的内容本来就太长，一个请求放不下，没法全给模型看。
  for (let fit = tokens; ; fit /= 2) {
    const newest = old.slice(-Math.ceil((old.length * fit) / estimateTokens(old))).toWellFormed();
    const content = `Summary so far: ${session.summary || "none"}\n\nSince then:\n${newest}`;
    const messages = [{ role: "user" as const, content }];
    const request = { model: MODEL, max_tokens: 2048, system: SUMMARISE, messages };
    try {
      const reply = await callModel(request, { ...options, onText: undefined });
      options.signal?.throwIfAborted(); // 这时回复只有半段摘要，还不如没有
      if (reply.stop_reason !== "refusal" && wordsIn(reply).trim()) return wordsIn(reply);
      throw new Error("the model gave no summary; /new begins a new session");
    } catch (error) {
      if (!isOverflow(error) || fit < 100) throw error;
    }
  }
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
  // 还没走完的一轮要留完整：少了提问，后面的回答就看不懂了。
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

/** 人在斜杠后面输入的命令。`run` 拿到这一行剩下的部分，返回要显示的几行。 */
export interface Command {
  help: string;
  run(args: string, app: App, options: TurnOptions): string | string[] | Promise<string>;
}

export const COMMANDS: Record<string, Command> = {};

function command(name: string, help: string, run: Command["run"]): void {
  COMMANDS[name] = { help, run };
}

/** 执行 "/name 剩下的部分"。返回要显示的内容。 */
async function runCommand(line: string, app: App, options: TurnOptions): Promise<string> {
  const [name = "", ...rest] = line.slice(1).split(" ");
  const found = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!found) return text(`没有 /${name} 这个命令。/help 列出所有命令。`);
  return [await found.run(rest.join(" ").trim(), app, options)].flat().join("\n");
}

command("help", "这里可以输入什么", () =>
  Object.entries(COMMANDS).map(([name, { help }]) => `/${name.padEnd(10)} ${help}`),
);

command("new", "[标签]：新建一个会话", (label, { store, key }) => {
  const { id } = store.create(key, label);
  return text(`新会话 ${id} 开好了。旧会话还在，/list 可以看到。`);
});

command("list", "列出这里的所有会话", (_args, { store, key }) => {
  const current = store.current(key).id;
  const line = ({ id, messages, header: { at, label } }: Session) =>
    `${id === current ? "*" : " "} ${id}  ${at}  ${messages.length}  ${label}`;
  return store.list(key).map(line);
});

command("switch", "<id>：回到某个会话，id 只写开头几位就行", (id, app) => {
  const session = app.store.switch(app.key, id);
  return text(`已切换到会话 ${session.id}，${session.messages.length} 条消息。`);
});

command("context", "上下文窗口用了多少", (_args, { store, key }) => {
  const size = GUARD.size(store.current(key));
  const percent = Math.round((size / GUARD.limit) * 100);
  return text(`大约 ${size} token，上限 ${GUARD.limit}（${percent}%）。`);
});

command("compact", "把较早的轮换成摘要", async (_args, app, options) => {
  const done = await GUARD.summarise(app.store.current(app.key), options, KEPT);
  return done ? text("好了。") : text("现在还没有可以做摘要的内容。");
});

const TERMINAL_KEY = "agent:luna:cli:direct:owner"; // agent、名字、渠道、类型、对方

// ---- s04 · 渠道 ----

// 从这里开始，等回答的人不一定坐在程序面前，程序得守住对他们的两个承诺：
// 收下的消息不会丢；同一段对话里，答完一条再答下一条。
// 前一个靠文件：先写好文件，再对平台说“收到了”。后一个靠 promise：每段对话连成一条链。

/** 每个平台的消息都变成这个样子。`peerId` 是回答要发去的地方，`at` 的单位是毫秒。 */
export interface InboundMessage {
  id: string;
  channel: string;
  accountId: string; // 发给了我们的哪个账号
  peerId: string; // 聊天
  senderId: string; // 发消息的人
  guildId?: string; // 聊天归谁所有：超级群，或者企业
  isGroup: boolean;
  text: string;
  media: { kind: string; id: string }[];
  at: number;
  part?: string; // 标记相同的几条其实是一条：相册，或者切开的长文字
  begun?: number; // 开始处理过几次，由收件箱来数
}

/** 定好归属的消息：属于谁的对话。消息进来时定一次，以后不再变。 */
export interface Routed extends InboundMessage {
  sessionKey: string;
}

/** 返回时，消息已经落盘。等有了回答，`done` 会给出回答的内容。 */
export type Accept = (message: InboundMessage, signal?: AbortSignal) => { done: Promise<string> };

/** 一个平台：给我们送来消息，替我们发出文字。一次最多发 `limit` 个 UTF-16 码元。 */
export interface Channel {
  readonly name: string;
  readonly limit: number;
  start(accept: Accept): Promise<void>; // 就绪就 resolve，没法就绪就 reject
  send(to: string, text: string): Promise<void>; // 失败抛 SendError
  stop(): Promise<void>;
  typing?(to: string): Promise<unknown>;
  stream?(to: string, delta: string): void; // 边生成边显示回复的渠道才有
}

/** 为什么没发出去。`permanent`：再试也没用。`retryAfter`：过多少秒再试。 */
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
  message?: InboundMessage; // 正在回答的消息
}

// 能给机器人发消息，不等于能在这台机器上运行程序。
// 读文件不受限：工作区本来就是共用的。设置 REMOTE_TOOLS=1，就什么工具都给。
const OWNER_TOOLS = ["bash", "write_file", "edit_file"];

function toolsFor({ message }: TurnOptions): Anthropic.Tool[] {
  const trusted = !message || message.channel === "cli" || env("REMOTE_TOOLS") === "1";
  return trusted ? TOOLS : TOOLS.filter(({ name }) => !OWNER_TOOLS.includes(name));
}

/**
 * 收下了、还没回答的消息，一条一个文件。处理完的消息也要记住 id：平台等不到确认就会重发，
 * 而等不到确认，多半是因为我们崩溃了。偏偏内存里的东西，一崩溃就忘光了。
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
    // 是我们自己写的，所以都有 id。
    this.#done = new Set(this.#log.read().map(({ record }) => (record as { id: string }).id));
    for (const name of fs.readdirSync(dir).sort()) if (/^\d+\.json$/.test(name)) this.#load(name);
  }

  #load(name: string): void {
    const file = path.join(this.#dir, name);
    this.#next = Number.parseInt(name, 10) + 1;
    const message = parseObject(fs.readFileSync(file, "utf8")) as Routed | undefined; // 自己写的
    if (message && this.#done.has(message.id)) {
      fs.rmSync(file);
    } else if (message?.id && (message.begun ?? 0) < 3) {
      this.#open.set(message.id, { file, message });
    } else {
      fs.renameSync(file, `${file}.${crypto.randomUUID().slice(0, 8)}.aside`);
      warn(`收件箱里的 ${name} 已改名放到一边：读不出来，或者开始处理了三次都没有做完。`);
    }
  }

  /** 按收下的先后排列。 */
  pending = () => [...this.#open.values()].map(({ message }) => message);

  /** 存下一条消息。以前收过就返回 false：要么已经回答，要么迟早会回答。 */
  add(message: Routed): boolean {
    if (this.#done.has(message.id) || this.#open.has(message.id)) return false;
    const file = path.join(this.#dir, `${String(this.#next++).padStart(12, "0")}.json`);
    replaceFile(file, JSON.stringify(message));
    this.#open.set(message.id, { file, message });
    return true;
  }

  /**
   * 每次处理之前，先把次数加一。不然，一条能让程序崩溃的消息，每次启动都会再来，
   * 每次都让程序再崩一回。
   */
  begin(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages)) {
      message.begun = (message.begun ?? 0) + 1;
      replaceFile(file, JSON.stringify(message));
    }
  }

  /** 回答已经发出：删掉文件，留下 id。一组消息里的第一条最后删：认的是它的 id。 */
  finish(messages: Routed[]): void {
    for (const { file, message } of this.#find(messages).reverse()) {
      // 先写 id。要是中间崩溃，文件会留下来，但已经知道它处理完了。
      this.#log.append({ id: message.id });
      this.#done.add(message.id);
      this.#open.delete(message.id);
      fs.rmSync(file);
    }
  }

  #find = (messages: Routed[]) => messages.flatMap(({ id }) => this.#open.get(id) ?? []);
}

// 每段有活在干的对话各有一个 promise，也就是目前的队尾。
const tails = new Map<string, Promise<unknown>>();

/** 同一段对话的任务一个接一个地跑，不同对话的并行。 */
export function inOrder<T>(sessionKey: string, task: () => Promise<T>): Promise<T> {
  // 第二个 `task`：前一个任务失败了也照样跑，它的失败不归我们管。
  const result = (tails.get(sessionKey) ?? Promise.resolve()).then(task, task);
  tails.set(sessionKey, result);
  // 最后一个走的负责清掉位置，不然所有有过的对话都会留在 Map 里。
  const forget = () => tails.get(sessionKey) === result && tails.delete(sessionKey);
  result.then(forget, forget);
  return result;
}

/** 一条消息属于谁的对话。 */
export function route(message: InboundMessage, app: App, agent?: Agent): Routed {
  const isTerminal = message.channel === "cli";
  const chosen = isTerminal ? app.terminalAgent : agent?.id;
  const agentId = chosen ?? app.bindings.resolve(message).agentId;
  const key = buildSessionKey(agentId, message, app.agents.find(agentId).dmScope);
  return { ...message, agentId, sessionKey: isTerminal ? app.key : key };
}

/** 入口。同步函数：返回之后，平台就可以忘掉这条消息了。 */
export function accept(app: App, message: InboundMessage, signal?: AbortSignal) {
  const routed = route(message, app);
  // 终端里输入的行不存：崩溃之后，没有人在等回答。
  if (message.channel !== "cli" && !app.inbox.add(routed)) return { done: Promise.resolve("") };
  return { done: enqueue(app, routed, signal) };
}

// 相册里的图，Telegram 一张一张发来；长文字，它的客户端会切成几条。要是逐条回答，就太傻了。
// 所以只由第一条去排队，排到了，再在那里等后面几条。等的时候，每一条都已经进了收件箱，
// 各有各的文件。
const QUIET = 600; // 毫秒；这么久没有再来，这组消息就齐了
const groups = new Map<string, { parts: Routed[]; last: number; done: Promise<string> }>();

/** 让一条消息去排队。同组的前几条要是还在等，就并进去。 */
function enqueue(app: App, message: Routed, signal?: AbortSignal): Promise<string> {
  const { sessionKey } = message;
  if (!message.part) return inOrder(sessionKey, () => handle(app, [message], signal));
  // 崩溃前开始处理过的，会话里记的是什么样就是什么样；那之后才到的，不在其中。
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
 * 处理一条消息或者一组消息，从收件箱到回复，算一轮。中间不管出什么事，这一轮都会结束，
 * 对方也总能收到一句话。只有整个程序死掉，消息才会再来一次。
 */
export async function handle(app: App, parts: Routed[], signal?: AbortSignal): Promise<string> {
  // 至少有一条；这一轮用的是第一条的 id。
  const message = { ...parts[0], text: parts.map((part) => part.text).join("\n") } as Routed;
  const channel = app.channels.get(message.channel);
  const showTyping = () => channel?.typing?.(message.peerId).catch(() => {});
  const timer = setInterval(showTyping, 4_000); // 平台只显示 5 秒
  const onText = (piece: string) => channel?.stream?.(message.peerId, piece);
  let answer: string;
  try {
    showTyping();
    app.inbox.begin(parts);
    const agent = app.agents.get(message.agentId);
    answer = await answerTo(message, app, { message, signal, onText, agent });
  } catch (error) {
    if (message.channel === "cli") throw error; // 终端自己会说
    warn(`${message.sessionKey}: ${error}`);
    answer = text("这条消息我没能回答。过一会儿再试，或者发 /new 重新开始。");
  } finally {
    clearInterval(timer);
  }
  if (!channel?.stream) await reply(app, message, answer);
  app.inbox.finish(parts);
  return answer;
}

/** 一条消息得到什么回答：模型说的，或者人人能用的那两个命令给的。 */
async function answerTo(message: Routed, app: App, options: TurnOptions): Promise<string> {
  const [, name] = /^\/(new|help)\b/.exec(message.text) ?? [];
  if (message.channel === "cli" || message.isGroup || !name) {
    // 客户端可能发来半个字符，不处理掉，这次请求和以后的请求就全毁了。
    return runTurn(app.store.current(message.sessionKey), message.text.toWellFormed(), options);
  }
  if (name === "help") return text("发 /new 可以新开一段对话。");
  return runCommand(message.text, { ...app, key: message.sessionKey }, options);
}

/**
 * 把回答切成平台收得下的几段，发出去。发送失败只在这里说一声，对方就收不到了：
 * 要想不丢，回复得有自己的队列。
 */
export async function reply(app: App, { channel, peerId }: InboundMessage, answer: string) {
  const target = app.channels.get(channel);
  // 上限数的是 UTF-16 码元，一个字符最多占两个。
  const size = Math.floor((target?.limit ?? 2) / 2);
  const words = answer.trim() || text("（没有什么可说的。）");
  const pieces = words.match(new RegExp(`[^]{1,${size}}`, "gu")) ?? [];
  try {
    for (const piece of pieces) await target?.send(peerId, piece);
  } catch (error) {
    warn(`${channel} ${peerId}: 有一条回复没发出去：${error}`);
  }
}

/** 运行中的程序有哪些渠道，按名字查。一个渠道坏了，其他的照常。 */
export class ChannelManager extends Map<string, Channel> {
  readonly states = new Map<string, string>();

  /** 所有渠道都就绪或者失败了才 resolve；最多等 3 秒。 */
  async start(accept: Accept): Promise<void> {
    const starts = [...this.values()].map(async (channel) => {
      this.states.set(channel.name, text("正在启动"));
      const state = await channel.start(accept).then(() => text("就绪"), String);
      this.states.set(channel.name, state);
      info(`${channel.name}: ${state}`);
    });
    await Promise.race([Promise.all(starts), sleep(3_000)]);
    const late = [...this.states].filter(([, state]) => state === text("正在启动"));
    for (const [name] of late) warn(`${name}: 还没就绪，还在试`);
  }

  /** 全部停下时 resolve，最多等 3 秒：连不上的平台，想通知也通知不到。 */
  async stop(): Promise<void> {
    const stops = [...this.values()].map((channel) => channel.stop().catch(() => {}));
    await Promise.race([Promise.all(stops), sleep(3_000)]);
  }
}

/** 终端也是一个渠道。在终端里，回复边生成边显示。 */
export class CliChannel implements Channel {
  readonly name = "cli";
  readonly limit = Number.MAX_SAFE_INTEGER;
  closed = Promise.resolve(); // 启动之前就是这个值；启动之后，人离开时才 resolve
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

// 机器人谁都找得到，而每次回答都要花钱。所以默认谁都不让进。
const strangers = new Set<string>();

/** 消息所在的聊天在 `allowed` 里，就放行。陌生人会收到一句话，说主人可以怎么做，只说一次。 */
function admit(channel: Channel, message: InboundMessage, allowed: string, accept: Accept): void {
  const [chat = ""] = message.peerId.split(":topic:");
  if (allowed.split(/[\s,]+/).includes(chat)) {
    // 打印成 JSON，免得有人用控制字符在我们的终端上乱画。
    info(`[${channel.name} ${message.peerId}] ${JSON.stringify(message.text.slice(0, 80))}`);
    accept(message).done.catch((error) => warn(`${message.id}: ${error}`));
  } else if (!strangers.has(chat)) {
    strangers.add(chat); // 只说一次：不然陌生人要我们发多少，我们就得发多少
    warn(`有陌生人发来消息，设置 ${channel.name.toUpperCase()}_ALLOWED_CHATS=${chat} 可以放行。`);
    const words = text(`我不认识这个聊天，它的 id 是 ${chat}。要和我说话，得先请我的主人放行。`);
    channel.send(message.peerId, words).catch(() => {});
  }
}

const MEDIA = ["photo", "video", "animation", "document", "audio", "voice", "sticker"] as const;
const CUT_AT = 4_000; // 客户端满 4096 个码元就切，也可能提前在两个词之间切

/** Node 自带的 fetch。grammY 用自己的信号来中止它，而 Node 24 的 fetch 不认这种信号。 */
const fetchForGrammy: typeof fetch = (url, init) => {
  const control = new AbortController();
  if (init?.signal?.aborted) control.abort();
  init?.signal?.addEventListener("abort", () => control.abort());
  return fetch(url, { ...init, signal: control.signal });
};

/** Telegram，用长轮询。去取新消息，就等于确认旧消息收到了：所以要先把旧的存好。 */
export class TelegramChannel implements Channel {
  readonly name = "telegram";
  readonly limit = 4096;
  #setting: Setting;
  #bot: Bot;
  #stopped = false;
  #cut = new Map<string, { next: number; part: string }>();
  #ours = new Set<string>(); // 放行过的那些组的标记

  constructor(setting: Setting) {
    this.#setting = setting;
    this.#bot = this.#newBot();
  }

  #newBot(): Bot {
    const apiRoot = this.#setting("TELEGRAM_API_ROOT") || "https://api.telegram.org";
    // 用 Node 自己的 fetch：grammY 自带的那个不走代理。
    const client = { apiRoot, timeoutSeconds: 60, fetch: fetchForGrammy };
    return new Bot(this.#setting("TELEGRAM_BOT_TOKEN"), { client });
  }

  /** 令牌不对就 reject。 */
  async start(accept: Accept): Promise<void> {
    await this.#bot.init();
    void this.#poll(accept);
  }

  /** 一直去取新消息，直到停止。服务器连不上时，grammY 自己会等它恢复。 */
  async #poll(accept: Accept): Promise<void> {
    while (!this.#stopped) {
      this.#bot.on("message", ({ message }) => {
        const inbound = this.#read(message);
        if (inbound) admit(this, inbound, this.#setting("TELEGRAM_ALLOWED_CHATS"), accept);
      });
      // accept 是同步函数，所以这里返回时，消息已经落盘，grammY 可以去取下一批了。
      // 要是没存下来（比如磁盘满了），那就什么都不能确认：这个 Bot 作废，
      // 再建一个新的，同样的消息会再来一遍。
      this.#bot.catch(({ error }) => Promise.reject(error));
      try {
        await this.#bot.start({ allowed_updates: ["message"] });
      } catch (error) {
        if (!this.#stopped) warn(`telegram: ${error}。5 秒后再试。`);
        await sleep(5_000);
        this.#bot = this.#newBot();
      }
    }
  }

  /** 不是给我们的，就返回 undefined：别的机器人、服务消息、群里的闲聊。 */
  #read(message: TelegramMessage): InboundMessage | undefined {
    const { chat, from, message_id, reply_to_message: answered } = message;
    const { id: me, username } = this.#bot.botInfo;
    const kind = MEDIA.find((name) => message[name]);
    const file = kind && [message[kind]].flat().at(-1); // 图片取尺寸最大的
    const words = message.text ?? message.caption ?? "";
    if (!from || from.is_bot || (!words && !kind)) return undefined;
    // "@bot"，还有 "/command@bot"。在群里，只回答指名找我们的消息。
    const name = new RegExp(`@${username}\\b`, "gi");
    const isGroup = chat.type !== "private";
    const part = this.#partOf(message, words);
    const isMeant = name.test(words) || answered?.from?.id === me;
    // 一个相册里，只有一张图的说明文字会提到我们。
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

  /** 相册的标记，或者切开的长文字的标记：切出来的几条，编号是连着的。 */
  #partOf({ chat, from, message_id, media_group_id }: TelegramMessage, words: string) {
    if (media_group_id) return `telegram ${chat.id} ${media_group_id}`;
    const sender = `telegram ${chat.id} ${from?.id}`;
    const cut = this.#cut.get(sender);
    const before = cut?.next === message_id ? cut.part : undefined;
    // 比这短的，就算真是切出来的，也是最后一条。
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
      // 403：机器人被拉黑；400：没有这个聊天。再试也没用。
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

/** 论坛群里的每个话题单独算一个地方："<chat>:topic:<thread>"。 */
function telegramPlace(to: string) {
  const [chat = "", thread] = to.split(":topic:");
  return { chat, thread: thread ? { message_thread_id: Number(thread) } : {} };
}

// 飞书不等我们去取，是它来调用我们。这就需要服务端，而服务端要多加小心：
// 谁找到了地址，谁就能随便往这里发东西。

type Answer = { status: number; body: object };
/** 我们的 HTTP 服务端接受哪些请求："POST /path"。请求体是原样的字节，一个都没动过。 */
export const ROUTES: Record<string, (body: Buffer, headers: http.IncomingHttpHeaders) => Answer> =
  {};

async function answerHttp(request: http.IncomingMessage): Promise<Answer> {
  const place = `${request.method} ${request.url?.split("?")[0]}`;
  const route = Object.hasOwn(ROUTES, place) && ROUTES[place];
  if (!route) return { status: 404, body: { error: "not found" } };
  const chunks: Buffer[] = [];
  let left = 1_000_000; // 字节；不管来的是谁，到这时还没有出示令牌
  for await (const chunk of request) {
    left -= chunk.length;
    if (left < 0) return { status: 413, body: { error: "too large" } };
    chunks.push(chunk);
  }
  return route(Buffer.concat(chunks), request.headers);
}

/** 唯一的 HTTP 服务端，只监听回环地址：要让外面访问，就走隧道。 */
async function startHttp(port: number): Promise<http.Server> {
  const server = http.createServer(async (request, response) => {
    const { status, body } = await answerHttp(request).catch((error) => {
      warn(`http: ${error}`);
      return { status: 500, body: { error: "internal error" } }; // 原因不往外说
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  try {
    await once(server.listen(port, "127.0.0.1"), "listening");
    // 它监听的是 TCP，所以地址里有端口。
    info(`http: 正在监听 127.0.0.1:${(server.address() as { port: number }).port}`);
  } catch (error) {
    warn(`http: ${error}。请换一个 HTTP_PORT，其余部分照常运行。`);
  }
  return server;
}

type Strings<Name extends string> = Partial<Record<Name, string>>;

/** 事件里我们会读的部分。谁都可以往这里 POST，所以哪个字段都可能没有。 */
type FeishuEvent = Strings<"encrypt" | "type" | "token" | "challenge"> & {
  header?: Strings<"event_type" | "token" | "tenant_key">;
  event?: {
    sender?: Strings<"sender_type"> & { sender_id?: Strings<"open_id"> };
    message?: Strings<"chat_id" | "chat_type" | "message_type" | "content" | "create_time"> & {
      mentions?: { key: string; name: string; id?: Strings<"open_id"> }[];
    };
  };
};

const FEISHU_BUSY = [99991400, 230020, 11232]; // 请求太频繁
const FEISHU_EXPIRED = [99991661, 99991663, 99991664]; // 我们的 access token 过期了

/** 飞书，还有 Lark：事件从 HTTP 来，马上确认，活留到之后再干。 */
export class FeishuChannel implements Channel {
  readonly name = "feishu";
  readonly limit = 4000;
  #setting: Setting;
  #api: string;
  #access = { token: "", until: 0 };

  /** 设置不合理就抛错。 */
  constructor(setting: Setting) {
    this.#setting = setting;
    const missing = ["FEISHU_APP_SECRET", "FEISHU_VERIFICATION_TOKEN"].find((it) => !setting(it));
    if (missing) throw new Error(`${missing} is not set, and FEISHU_APP_ID needs it`);
    const domain = setting("FEISHU_DOMAIN") || "feishu";
    if (domain !== "feishu" && domain !== "lark") throw new Error("FEISHU_DOMAIN: feishu or lark");
    const host = domain === "lark" ? "open.larksuite.com" : "open.feishu.cn";
    this.#api = setting("FEISHU_API_BASE") || `https://${host}`;
  }

  /** App ID 或者 App Secret 不对，就 reject。 */
  async start(accept: Accept): Promise<void> {
    ROUTES["POST /feishu/events"] = (body, headers) => this.#receive(body, headers, accept);
    await this.#accessToken();
  }

  /** 马上应答：超过 3 秒，飞书就不等了，会把事件再发一遍。 */
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

  /** 看不懂就返回 undefined；该加密却是明文，也一样。 */
  #decrypt(body: Buffer): FeishuEvent | undefined {
    const event: FeishuEvent | undefined = parseObject(body.toString());
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey || !event) return event;
    const key = sha256(encryptKey).digest();
    const bytes = Buffer.from(String(event.encrypt), "base64");
    try {
      const cipher = crypto.createDecipheriv("aes-256-cbc", key, bytes.subarray(0, 16));
      // 按字节拼起来：一个字符可能正好跨在两块中间。
      return parseObject(`${Buffer.concat([cipher.update(bytes.subarray(16)), cipher.final()])}`);
    } catch {
      return undefined; // 密钥不对，或者根本没有加密
    }
  }

  /** 签名是一个哈希，由请求体和只有飞书跟我们知道的密钥一起算出来。 */
  #isSigned(body: Buffer, headers: http.IncomingHttpHeaders): boolean {
    const encryptKey = this.#setting("FEISHU_ENCRYPT_KEY");
    if (!encryptKey) return true; // 没有加密就没有签名；token 已经对过了
    const time = headers["x-lark-request-timestamp"];
    const hash = sha256(`${time}${headers["x-lark-request-nonce"]}${encryptKey}${body}`);
    const fresh = Math.abs(Date.now() / 1000 - Number(time)) < 3600; // 太旧的，是重放攻击
    return fresh && headers["x-lark-signature"] === hash.digest("hex");
  }

  /** 不是消息，或者不是给我们的，就返回 undefined。 */
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
    // 从后往前换："@_user_10" 的开头也是 "@_user_1"。
    for (const m of mentions.toReversed()) out = out.split(m.key).join(isMe(m) ? "" : `@${m.name}`);
    // 重发时，消息 id 可能会变，但发送者、时间和内容不会。
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

  /** 有效期大约两小时；到期前一分钟重新去取。 */
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
      return (await response.json()) as FeishuAnswer; // 拒绝时的应答也是这个格式
    } catch (error) {
      throw sendError(String(error), false);
    }
  }

  stop = async () => void delete ROUTES["POST /feishu/events"];
}

type FeishuAnswer = { code: number; msg: string; expire?: number; tenant_access_token?: string };

/** 一条消息的文字，连同里面的链接；还有里面的图片和文件。 */
function readFeishu(type: string, json: string) {
  const media: { kind: string; id: string }[] = [];
  const wordsOf = (item: Fields | null): string => {
    const id = item?.file_key ?? item?.image_key;
    if (!id) return `${item?.text ?? item?.user_id ?? ""}${item?.href ? ` (${item.href})` : ""}`;
    media.push({ kind: type === "post" ? "image" : type, id: String(id) });
    return `[${media.at(-1)?.kind}]`;
  };
  const content = (parseObject(json) ?? {}) as Fields; // 里面的内容逐个字段检查
  if (type !== "post") return { words: wordsOf(content).trim() || `[${type}]`, media };
  const lines = Array.isArray(content.content) ? content.content : [];
  const words = lines.map((line: Fields[]) => [line ?? []].flat().map(wordsOf).join(""));
  return { words: [content.title, ...words].filter(Boolean).join("\n").trim() || "[post]", media };
}

command("channels", "有哪些渠道，现在怎么样", (_args, { channels }) =>
  [...channels.states].map(([name, state]) => `${name.padEnd(10)} ${state}`),
);

command("accounts", "我们在各个平台上的账号", () => {
  const shown = (name: string) => `${name}  ${(env(name) || "-").slice(0, 6)}`; // 只露开头
  return ["TELEGRAM_BOT_TOKEN", "FEISHU_APP_ID", "FEISHU_APP_SECRET"].map(shown);
});

// ---- s05 · 网关和路由 ----

// 每条消息要问两件事：归哪个 Agent 回答？属于谁的对话？第一件由绑定来定，
// 第二件由那个 Agent 的 dmScope 来定。两件都在消息放进收件箱之前问，只问一次：
// 以后绑定再怎么改，已经进来的消息不受影响。

/** `dmScope` 决定单聊里谁和谁共用一段对话：所有人共用、一人一段，还是分得更细。 */
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
  terminalAgent?: string; // 由 /agent 设置
}

const LUNA = "You are Luna, a warm and brief assistant. Answer plainly.";
const SAGE = "You are Sage, a calm and thorough assistant. Give your reasons.";

/** 可以回答的 Agent。没有绑定另作安排时，由第一个回答。 */
export const AGENTS: Agent[] = [
  { id: "luna", system: LUNA, dmScope: "per-channel-peer" },
  { id: "sage", system: SAGE, dmScope: "per-channel-peer" },
];

/** 按 id 查 Agent。 */
export class AgentManager extends Map<string, Agent> {
  /** 没有就抛错，并说出有哪些。 */
  find(id: string): Agent {
    const agent = this.get(id);
    if (!agent) throw new Error(`no such agentId: ${id}; there are ${[...this.keys()].join(", ")}`);
    return agent;
  }
}

// 各个层级，最具体的排在前面：聊天、聊天的归属、我们的账号、平台。
const TIERS = ["peerId", "guildId", "accountId", "channel", "default"] as const;

/** “从那里来的消息，归这个 Agent 回答。”在同一层级里，priority 大的优先。 */
export interface Binding {
  agentId: string;
  tier: number; // 1 到 5
  matchKey: (typeof TIERS)[number];
  matchValue: string; // 聊天也可以写成 "telegram:1001"
  priority: number;
}

export const BINDINGS: Omit<Binding, "tier">[] = [
  { agentId: "luna", matchKey: "default", matchValue: "*", priority: 0 },
];

/**
 * 所有绑定，每个层级一张 Map，查表就能找到：绑定再多，一条消息的开销也不会变大。
 * 程序一退出，绑定就没了。
 */
export class BindingTable {
  #byKey = new Map<string, Map<string, Binding>>(TIERS.map((key) => [key, new Map()]));

  constructor(bindings: Omit<Binding, "tier">[]) {
    for (const binding of bindings) this.set(binding);
  }

  /** matchKey 和 matchValue 都相同的，新的替换旧的。 */
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
   * 一条消息归哪个 Agent，为什么：从上往下，第一个有绑定的层级说了算。
   * 聊天可以写成 "telegram:1001" 来绑定，因为别的平台上可能也有这个号码。
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
 * 这是谁的对话。一律小写，因为要不要区分大小写，各平台不一样，各文件系统也不一样。
 * 正常的 key 没有这么长，超过上限就抛错。
 */
export function buildSessionKey(agentId: string, message: InboundMessage, dmScope: DmScope) {
  const { channel, accountId, peerId, isGroup } = message;
  // "main" 把所有人的单聊放进同一段对话。这适合只有主人一个人用的 Agent：
  // 要是有两个人，就会互相看到对方说的话。
  const direct = {
    main: "main",
    "per-peer": `direct:${peerId}`,
    "per-channel-peer": `${channel}:direct:${peerId}`,
    "per-account-channel-peer": `${channel}:${accountId}:direct:${peerId}`,
  };
  const rest = isGroup ? `${channel}:group:${peerId}` : direct[dmScope];
  const key = `agent:${agentId}:${rest}`.toLowerCase();
  if (key.length > 150) throw new Error(`peerId is too long: ${key.length} characters in the key`);
  return key;
}

/** JSON-RPC 2.0 的错误：-32700 不是 JSON，-32600 请求无效，-32601 没有这个方法，…… */
class RpcError extends Error {
  code = 0;
}

const rpcError = (code: number, why: string) => Object.assign(new RpcError(why), { code });

/** 谁在问：有自己的 peerId；答案还没出来的时候，可以用 notify 先告诉它一些事。 */
export interface Connection {
  peerId: string;
  notify(method: string, params: object): void;
}

export type Method = (params: Fields, app: App, connection: Connection) => unknown;
/** 客户端可以调用的方法。 */
export const METHODS: Record<string, Method> = {};

/** 加一个方法，参数像工具的输入那样检查。 */
function method(name: string, properties: object, optional: string[], run: Method): void {
  const schema = tool(name, "", properties, optional).input_schema;
  METHODS[name] = (params, app, connection) => {
    const fields = asked(() => checkInput(schema, params));
    return run(fields, app, connection);
  };
}

/** 检查客户端发来的内容：哪里不对，得由客户端去改。 */
function asked<T>(check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw rpcError(-32602, error instanceof Error ? error.message : String(error));
  }
}

const MAX_FRAME = 1024 * 1024; // 字节；一条消息的上限，也是替慢客户端积压的上限

/**
 * WebSocket 上的 JSON-RPC 2.0，就用那个唯一的 HTTP 服务端。有令牌的，能做渠道上的人能做的事，
 * 还能改绑定。但不算主人：不给它用 bash。
 */
export class GatewayServer {
  address = ""; // attach 之后才有
  #token: string;
  readonly sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_FRAME });

  constructor(token: string) {
    this.#token = token;
  }

  /** 有人要在 "/" 上开 WebSocket，就接过来。 */
  attach(server: http.Server, app: App): void {
    const address = server.address();
    if (typeof address === "object" && address) this.address = `ws://127.0.0.1:${address.port}/`;
    server.on("upgrade", (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      socket.on("error", () => {}); // 还没应答，对方就走了
      const refused = this.#refusal(request);
      if (refused) socket.end(`HTTP/1.1 ${refused}\r\nConnection: close\r\n\r\n`);
      else this.sockets.handleUpgrade(request, socket, head, (client) => this.#serve(client, app));
    });
  }

  /** 在握手之前检查：握手之后，谁都能发东西过来。返回 "" 就是放行。 */
  #refusal({ url = "", headers, socket }: http.IncomingMessage): string {
    const [place, query] = url.split("?");
    if (place !== "/") return "404 Not Found";
    // 主人浏览器里的网页也够得到回环地址。好在它们瞒不住自己是从哪里来的。
    const own = [`http://localhost:${socket.localPort}`, `http://127.0.0.1:${socket.localPort}`];
    if (headers.origin && !own.includes(headers.origin)) return "403 Forbidden";
    const asked = headers.authorization?.replace(/^Bearer /i, "");
    const token = asked ?? new URLSearchParams(query).get("token") ?? "";
    // 比较的是哈希，所以不管猜对多少，花的时间都一样。
    const same = crypto.timingSafeEqual(sha256(token).digest(), sha256(this.#token).digest());
    return same ? "" : "401 Unauthorized";
  }

  #serve(socket: WebSocket, app: App): void {
    const peerId = crypto.randomUUID();
    const push = (message: object) => {
      if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message));
      // 客户端要是一直不读，发给它的东西就全得由我们存着。
      if (socket.bufferedAmount > MAX_FRAME) socket.terminate();
    };
    socket.on("error", (error) => info(`gateway: ${error.message}`)); // 比如超过上限的帧
    socket.on("message", async (data) => {
      const answer = await answerRpc(String(data), app, { peerId, push });
      if (answer) push(answer);
    });
  }
}

type Client = { peerId: string; push(message: object): void };

/** 一个或一批请求的应答；要是里面只有通知，就没有应答。 */
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
 * 一个请求的应答；通知不管结果如何，都没有应答。请求之间互不等待：
 * "send" 还在等模型的时候，"status" 就有了应答。
 */
async function callMethod(message: unknown, app: App, { peerId, push }: Client) {
  const fields = typeof message === "object" && !Array.isArray(message) ? message : {};
  const { jsonrpc, id, method, params = {} } = { ...fields } as Fields; // 下面逐个检查
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
    const result = await run(params as Fields, app, { peerId, notify }); // 由 run 来检查
    return isId ? { ...answer, result } : undefined;
  } catch (error) {
    if (isRequest && !isId) return undefined; // 是通知：没有人要听结果
    if (error instanceof RpcError) {
      return { ...answer, error: { code: error.code, message: error.message } };
    }
    warn(`gateway: ${method}: ${error}`);
    return { ...answer, error: { code: -32603, message: "internal error" } };
  }
}

const FROM = { channel: string("telegram, …"), peerId: string("the chat"), agentId: string("who") };
const SEND = { text: string("…"), ...FROM };

// send 不进收件箱。崩溃之后连接也没了，没有人在等回答；
// 说过的话照样存在会话里。
method("send", SEND, Object.keys(FROM), async (params, app, connection) => {
  const { text, channel = "ws", peerId = connection.peerId, agentId } = params;
  const id = `ws:${crypto.randomUUID()}`;
  const from = { accountId: "local", senderId: connection.peerId, isGroup: false, media: [] };
  const place = { channel: String(channel).toLowerCase(), peerId: String(peerId) };
  const inbound = { id, ...from, ...place, text: String(text).trim(), at: Date.now() };
  // 从网络上来的都不算主人，不管自称是谁。
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
  conversations: tails.size, // 此刻正在处理的
  waiting: app.inbox.pending().length,
}));

command("bindings", "哪里来的消息归谁回答", (_args, { bindings }) =>
  bindings.list().map((one) => `${one.matchKey} ${one.matchValue} → ${one.agentId}`),
);

command("route", "<channel> <peer> [account] [guild]：会归谁回答，为什么", (args, app) => {
  const [channel = "", peerId = "", accountId = "", guildId] = args.split(/\s+/);
  const rest = { id: "", senderId: "", isGroup: false, text: "", media: [], at: 0 };
  const message = { channel, peerId, accountId, guildId, ...rest };
  const { binding } = app.bindings.resolve(message);
  const { agentId, sessionKey } = route(message, app);
  return `${agentId}  ${sessionKey}  (${binding?.tier ?? 5} ${binding?.matchKey ?? "default"})`;
});

command("agents", "有哪些 Agent", (_args, { agents }) =>
  [...agents.values()].map(({ id, dmScope, system }) => `${id}  ${dmScope}  ${system}`),
);

command("agent", "<id>|off：在终端里由谁回答你", (id, app) => {
  app.terminalAgent = id === "off" ? undefined : app.agents.find(id).id;
  app.key = TERMINAL_KEY.replace("luna", app.terminalAgent ?? "luna"); // 换到它自己的对话
  return text(`从现在起回答你的：${app.terminalAgent ?? "绑定里指定的 Agent"}。`);
});

command("sessions", "所有 key 的会话", (_args, { store }) =>
  store.all().map(({ id, header: { key, label } }) => `${id}  ${key}  ${label}`),
);

command("gateway", "程序可以连到哪里", (_args, { gateway }) =>
  text(`${gateway.address || "（没有监听）"}  ${gateway.sockets.clients.size} 个连接`),
);

/**
 * 设置里的令牌；没有设置，就用我们生成、存下来的那个。回环地址不等于安全：
 * 这台机器上的每个程序、每个网页都够得到它。
 */
function gatewayToken(): string {
  const file = path.join(STATE, "gateway-token");
  const kept = fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "";
  if (env("GATEWAY_TOKEN") || /^[\w-]{32}$/.test(kept)) return env("GATEWAY_TOKEN") || kept;
  const token = crypto.randomBytes(24).toString("base64url");
  fs.writeFileSync(file, token, { mode: 0o600 }); // 只有这个用户能读
  return token;
}

// ---- 组装起来 ----

async function main(): Promise<void> {
  // 从 .env.example 抄过来没改的示例，也不算密钥。
  if (!process.env.ANTHROPIC_API_KEY?.replace("sk-ant-your-key-here", "")) {
    fail("没有设置 ANTHROPIC_API_KEY：把 .env.example 复制成 .env，填上你的密钥。");
    fail("没有密钥？`npm start -- --lang zh` 可以离线运行同一个程序，由练习模型来回答。");
    process.exit(1);
  }
  if (!(CONTEXT_TOKENS >= 1000)) throw new Error("CONTEXT_TOKENS must be a number from 1000 up");
  setGlobalDispatcher(new EnvHttpProxyAgent()); // HTTPS_PROXY 对我们发出的请求都生效
  lockFolder(STATE);
  const app: App = {
    store: new SessionStore(path.join(STATE, "sessions")),
    key: TERMINAL_KEY,
    inbox: new Inbox(path.join(STATE, "inbox")),
    channels: new ChannelManager(),
    agents: new AgentManager(AGENTS.map((agent) => [agent.id, agent])),
    bindings: new BindingTable(BINDINGS),
    gateway: new GatewayServer(gatewayToken()),
  };
  const cli = new CliChannel((line, options) => runCommand(line, app, options));
  if (env("TELEGRAM_BOT_TOKEN")) app.channels.set("telegram", new TelegramChannel(env));
  if (env("FEISHU_APP_ID")) app.channels.set("feishu", new FeishuChannel(env));
  const { id, messages } = app.store.current(app.key);
  for (const { agentId } of BINDINGS) app.agents.find(agentId); // 没有就抛错，并指出名字
  info(`正在和 ${MODEL} 对话。Ctrl+C 中断回复，输入 quit 退出。`);
  info(`会话 ${id}，${messages.length} 条消息。/help 列出所有命令。`);
  const port = Number(env("HTTP_PORT") || 8765);
  if (!(port >= 0 && port < 65536)) throw new Error("HTTP_PORT must be a number from 0 to 65535");
  // 没有端口，事件就进不来：那就当没有飞书这个渠道。
  const server = await startHttp(port);
  if (!server.listening) app.channels.delete("feishu");
  app.gateway.attach(server, app);
  const isOurs = app.gateway.address && !env("GATEWAY_TOKEN");
  if (isOurs) info(`gateway: ${app.gateway.address}?token=${gatewayToken()}`);
  // 上次剩下的排在最前面，免得回答乱了次序。
  // 渠道要是这次没有设置，它的消息就留在收件箱里，等设置了再说。
  for (const one of app.inbox.pending()) if (app.channels.has(one.channel)) void enqueue(app, one);
  const serve = process.argv.includes("--serve");
  const stopped = serve && Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")]);
  await app.channels.start((message, signal) => accept(app, message, signal));
  if (serve) {
    setInterval(() => {}, 60_000); // 光是等信号，Node 会自己退出
    await stopped;
  } else {
    app.channels.set("cli", cli);
    await cli.start((message, signal) => accept(app, message, signal));
    await cli.closed;
  }
  await app.channels.stop();
  // 正在回答的，最多再给 10 秒；到时还没做完的，重启之后再做。
  if (serve || process.stdin.isTTY)
    await Promise.race([Promise.allSettled(tails.values()), sleep(10_000)]);
  process.stdout.write("", () => process.exit(0)); // 等管道那头全部读走再退出
}

if (RUN) {
  await main().catch((error) => {
    fail(error.message);
    process.exit(1);
  });
}
