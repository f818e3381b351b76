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

// Importing this file must do nothing: .env is read only if it is the file being run.
const RUN = process.argv[1] && fs.realpathSync(process.argv[1]) === import.meta.filename;
if (RUN) dotenv.config({ path: `${import.meta.dirname}/../../.env`, quiet: true });

const MODEL = process.env.MODEL_ID || "claude-sonnet-5-5";
const SYSTEM = "You are a helpful assistant. Answer briefly and plainly.";

// ---- Terminal ----

let atLineStart = true;

/** Prints what the model says, piece by piece. */
export function say(piece: string) {
  process.stdout.write(piece);
  if (piece) atLineStart = piece.endsWith("\n");
}

const tint = (code: number, s: string) => (process.stdout.isTTY ? `\x1b[${code}m${s}\x1b[0m` : s);
const sayLine = (line: string) => say(`${atLineStart ? "" : "\n"}${line}\n`);

/** Lines of the program's own: dim, and red. */
export const info = (line: string) => sayLine(tint(2, line));
export const fail = (line: string) => sayLine(tint(31, line));
/** Marks a sentence for people that is not printed right here, so that it can be translated. */
export const t = (sentence: string) => sentence;

/** Reads lines from a person or a pipe, and hands them over one at a time. */
export class Terminal {
  /** Ctrl+C aborts the signal of the line being answered; at the prompt it leaves. */
  async run(handle: (line: string, signal: AbortSignal) => Promise<unknown>): Promise<void> {
    const { stdin, stdout } = process;
    // readline would echo keys into a reply that is streaming. So it is paused meanwhile, and
    // the keys wait here, between the keyboard and readline. Only Ctrl+C is seen at once.
    const keys = Object.assign(new PassThrough(), { setRawMode: stdin.setRawMode?.bind(stdin) });
    const terminal = stdin.isTTY && stdout.isTTY;
    const reader = createInterface({ input: keys, output: stdout, terminal, prompt: "You > " });
    const prompt = () => (terminal ? reader.prompt() : stdout.write("You > "));
    let turn: AbortController | undefined;
    const interrupt = () => (turn ? turn.abort() : reader.close());
    process.on("SIGINT", interrupt);
    reader.on("SIGINT", interrupt).on("line", () => terminal && reader.pause());
    // Line by line: when it pauses, readline still finishes the piece that it has.
    const put = (typed: string) => typed.split(/(?<=\r(?!\n))/).map((line) => keys.write(line));
    stdin.setEncoding("utf8").on("end", () => keys.end());
    stdin.on("data", (typed) => (turn && typed.includes("\x03") ? turn.abort() : put(`${typed}`)));
    prompt();
    for await (const entered of reader) {
      const line = entered.trim();
      if (line === "quit" || line === "exit") break;
      turn = new AbortController();
      if (line) await handle(line, turn.signal).catch((e) => fail(`Failed: ${e.apiMessage ?? e}`));
      turn = undefined;
      if (!atLineStart) say("\n");
      prompt();
    }
    stdin.destroy();
    say("\n");
  }
}

// ---- s01 · The agent loop ----

type Entry = { role: "user" | "assistant"; content: Anthropic.ContentBlockParam[] };
/** A reply is kept exactly as the API gave it: with its id, its stop reason and its usage. */
export type Message = Anthropic.Message | (Entry & { role: "user" });

/** The model remembers nothing from one call to the next. This list is all that it knows. */
export class Conversation {
  messages: Message[] = [];

  append(message: Message): void {
    this.messages.push(message);
  }
}

/** How one turn is to run: who hears the reply as it arrives, and what can stop it. */
export interface TurnOptions {
  onText?(piece: string): void;
  signal?: AbortSignal;
}

/** After these the model is not done; after the others it is, and here is what to tell a person. */
const CONTINUE_REASONS = new Set(["pause_turn"]);
const STOP_NOTES: Record<string, string> = {
  end_turn: "",
  stop_sequence: "",
  max_tokens: t("\n(The reply was cut off: it reached its limit of tokens.)"),
  refusal: t("\n(The model refused. From now on it will not see this turn.)"),
  model_context_window_exceeded: t("\n(Cut off: the model can read no more than this.)"),
};
const stopNote = (m: Message) => ("stop_reason" in m && STOP_NOTES[m.stop_reason ?? ""]) || "";
const startsTurn = ({ role }: Entry) => role === "user";

/** The history as the API accepts it: nothing blank, nothing refused, the roles in turn. */
export function toRequest(history: Message[]): Entry[] {
  const request: Entry[] = [];
  for (const message of history) {
    const last = request.at(-1);
    const content = message.content.filter((block) => block.type !== "text" || block.text.trim());
    // A reply may not end in thinking; if it does, the thinking was cut off.
    while (content.at(-1)?.type.endsWith("thinking")) content.pop();
    // What was refused once is refused again, together with all that follows it.
    const refused = "stop_reason" in message && message.stop_reason === "refusal";
    if (refused) request.splice(request.findLastIndex(startsTurn));
    else if (last?.role === message.role) last.content.push(...content);
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
  // The SDK finds ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL in the environment.
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
    // No stop reason, since nobody but us stopped it. id and usage only the API could give.
    return { role: "assistant", content, stop_reason: null } as Anthropic.Message;
  }
}

/** The loop. It goes by what is stored and nothing else, so it can be entered at any point. */
export async function continueTurn(conversation: Conversation, options: TurnOptions) {
  while (needsReply(conversation.messages.at(-1))) {
    const reply = await callModel(buildRequest(conversation, options), options);
    conversation.append(reply);
    options.onText?.(stopNote(reply));
  }
}

const needsReply = (last?: Message) =>
  last?.role === "user" || CONTINUE_REASONS.has(last?.stop_reason ?? "");

/** Brings the turn to its end. Gives all that was said since the person spoke. */
export async function finishTurn(conversation: Conversation, options: TurnOptions) {
  await continueTurn(conversation, options);
  const start = conversation.messages.findLastIndex(startsTurn) + 1;
  return conversation.messages.slice(start).map(textOf).filter(Boolean).join("\n\n");
}

const textOf = (message: Message) =>
  message.content.map((b) => (b.type === "text" ? b.text : "")).join("") + stopNote(message);

/** One turn. What the person said is on record before the model is asked, and stays there. */
export async function runTurn(conversation: Conversation, input: string, options: TurnOptions) {
  conversation.append({ role: "user", content: [{ type: "text", text: input }] });
  return finishTurn(conversation, options);
}

// ---- All of it together ----

/** Without an API key two lines say what to do, and the program ends with status 1. */
function requireApiKey(): void {
  const key = process.env.ANTHROPIC_API_KEY ?? "";
  // A copy of .env.example that nobody has filled in contains this placeholder, which is no key.
  if (key === "" || key === "sk-ant-your-key-here") {
    fail("ANTHROPIC_API_KEY is not set: copy .env.example to .env and put your key there.");
    fail("No key? `npm start` runs the same program offline, with a practice model.");
    process.exit(1);
  }
}

async function main(): Promise<void> {
  requireApiKey();
  info(`Talking to ${MODEL}. Ctrl+C stops a reply, "quit" leaves.`);
  const conversation = new Conversation();
  await new Terminal().run((line, signal) => runTurn(conversation, line, { onText: say, signal }));
}

if (RUN) await main();
