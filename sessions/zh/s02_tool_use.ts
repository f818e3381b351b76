// 工具
//
// 工具就是一个名字加一个函数，名字由模型说，函数由我们运行：
// schema 列表随请求发出去，处理函数表留在本地。
//
//   callModel ──► 回复 ── stop_reason 是 "tool_use"？ ──否──► 结束
//      ▲                          │ 是
//      │                          ▼
//      └──── 追加结果 ◄────── runTool ◄── HANDLERS[name](input)
//
// 本节新增：bash、read_file、write_file、edit_file；围住它们的几道墙；还有一条规矩：
// 每次工具调用都有且只有一个结果，不管中间出了什么事。
// 运行：    npm start -- s02 --lang zh               离线，用练习模型
//           npx tsx sessions/zh/s02_tool_use.ts      用 .env 里的密钥
// 有意不做：执行命令前先问人、给 bash 套沙箱、后台任务、大文件分页读。

// 本文件由英文版和 code.po 生成，不要直接改：改 code.po，再运行 npm run translate。

import { spawn } from "node:child_process";
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
