// The agent loop
//
// An agent is a loop around one question to a language model: what comes next?
//
//   You > hi ──► append ──► callModel ──► append ──► why did the model stop?
//                               ▲                         │
//                               └──── not done yet ◄──────┤
//                                                         └──► done: back to You >
//
// New here: a conversation (a list that we own), the loop, the stop reasons, a terminal.
// Run it:   npm start -- s01                           offline, with a practice model
//           npx tsx sessions/en/s01_agent_loop.ts      with your key in .env
// Left out on purpose: keeping the conversation after the program ends (s03), and trying again
// with another key or another model (s09).

// The Chinese and Japanese files are made from this one and from code.po: npm run translate.

import fs from "node:fs";
import { createInterface } from "node:readline";
import { PassThrough } from "node:stream";
import Anthropic from "@anthropic-ai/sdk";
import dotenv from "dotenv";

// ---- Configuration ----

// Importing this file must do nothing, so .env is read only when the file itself is being run.
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";

// ---- Terminal ----

let atLineStart = true; // whether what was printed last ended a line

/** Prints what the model says, piece by piece. */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** Lines of the program itself: dim what it reports, and red what failed. */
export const info = (line: string) => sayLine(tint(2, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** What an error says. One of the API also has it without status and JSON, as `apiMessage`. */
const whyFailed = (e: { message: string; apiMessage?: string }) => e.apiMessage ?? e.message;
/** Gives the sentence back. By this call the translation tool finds what is printed elsewhere. */
export const t = (sentence: string) => sentence;

/** Reads lines from a person or a pipe, and hands them to `onLine`, one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line that is being answered. At the prompt it leaves. */
  async run(onLine: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    const terminal = stdin.isTTY && stdout.isTTY;
    // readline echoes keys. So it is paused during a reply, and the keys wait in this stream.
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
      if (line) await onLine(line, turn.signal).catch((e) => fail(`Failed: ${whyFailed(e)}`));
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

// ---- s01 · The agent loop ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** A reply is kept exactly as the API gave it, with its id, its stop reason and its usage. */
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
  max_tokens: t("\n(The reply was cut off: it reached its limit of tokens.)"),
  refusal: t("\n(The model refused. From now on it will not see this turn.)"),
  model_context_window_exceeded: t("\n(Cut off: the model can read no more than this.)"),
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

/** The history as the API accepts it: nothing blank or refused, user and assistant in turn. */
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

/** Everything that one call needs. */
export function buildRequest({ messages }: Conversation, _options: TurnOptions) {
  return { model: MODEL, max_tokens: 8192, system: SYSTEM, messages: toRequest(messages) };
}

/** One call. Gives the reply, or what had arrived of it when it was aborted. Throws API errors. */
export async function callModel(request: Anthropic.MessageStreamParams, options: TurnOptions) {
  // The SDK reads ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL from the environment.
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

/** Brings the turn to its end. Gives all that the model said since the person spoke. */
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

// ---- All of it together ----

/** Checks the settings. Without an API key two lines say what to do, and the program ends. */
function checkSettings(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEY is not set: copy .env.example to .env and put your key there.");
    fail("No key? `npm start` runs the same program offline, with a practice model.");
    process.exit(1);
  }
}

async function main(): Promise<void> {
  checkSettings();
  info(`Talking to ${MODEL}. Ctrl+C stops a reply, "quit" leaves.`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
