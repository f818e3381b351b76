/**
 * `npm run phone -- telegram alice [--group]` makes a second terminal a person's phone. What is
 * typed goes to the bot, and what the bot sends to this chat is shown.
 */

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { readPhoneLine } from "./phone-line.ts";
import { type PhoneEvent, type PhoneInput, watchPhone } from "./web.ts";
import { requireWorld, UserError } from "./world.ts";

const HELP = `npm run phone -- telegram alice           alice writes to the bot
npm run phone -- telegram alice --group   alice writes in the group "family", where the bot
                                          answers to @practice_bot, and to /reply
npm run phone -- feishu bob               the same on Feishu

/photo [caption]  /album [caption]  /long (a text of several messages)  /reply <text>  quit`;

/** In a pipe: ms to wait for a sign of the bot, while it types, and for one more part. */
const TIMEOUTS = { start: 2000, typing: 10_000, sent: 300 };

const { stdin, stdout } = process;
const inTerminal = stdin.isTTY === true && stdout.isTTY === true;
const terminal = createInterface({ input: stdin, output: stdout, terminal: inTerminal });
// Created at once, because the iterator keeps the lines that come before they are read.
const lines = terminal[Symbol.asyncIterator]();

let name = "";
let typing = false;
let closed = false;
terminal.once("close", () => {
  closed = true;
});
/** Runs while the prompt waits for the bot. */
let timer: NodeJS.Timeout | undefined;
let onTimeout = (): void => {};

function startTimer(ms: number): void {
  clearTimeout(timer);
  timer = setTimeout(() => onTimeout(), ms);
}

/** In a pipe the input may have ended, and then the readline interface would throw. */
function prompt(): void {
  if (!inTerminal) stdout.write(`${name} > `);
  else if (!closed) terminal.prompt(true);
}

/** Prints above the line that is being typed, which may have wrapped. */
function print(text: string): void {
  if (timer) {
    stdout.write(`${text}\n`);
    return;
  }
  const { rows } = inTerminal ? terminal.getCursorPos() : { rows: 0 };
  const up = rows > 0 ? `\x1b[${rows}A` : "";
  const clear = inTerminal ? `${up}\r\x1b[J` : "\n";
  stdout.write(`${clear}${text}\n${"\n".repeat(rows)}`);
  prompt();
}

function show(event: PhoneEvent): void {
  if (event.type === "sent") print(`bot > ${event.text}`);
  else if (!typing) print("bot is typing …");
  typing = event.type === "typing";
  if (timer) startTimer(TIMEOUTS[event.type]);
}

async function main(): Promise<void> {
  const options = { group: { type: "boolean" } } as const;
  const { values, positionals } = parseArgs({ options, allowPositionals: true, strict: false });
  const [platform = "", person = ""] = positionals;
  if (!/^(telegram|feishu) [a-z]\w*$/i.test(`${platform} ${person}`)) throw new UserError(HELP);
  const world = requireWorld();
  const url = platform === "telegram" ? world.telegram : world.feishu;
  if (!url) throw new UserError(`${world.user} has no channels yet: npm start -- s04 has.`);
  const group = values.group ? "family" : undefined;
  const query = new URLSearchParams({ person, ...(group && { group }) });
  const stream = await watchPhone(`${url}/_practice/stream?${query}`, show);
  stream.once("close", () => {
    if (!closed) stdout.write("\nThe practice world has ended.\n");
    terminal.close();
  });
  name = person;
  terminal.setPrompt(`${name} > `);
  prompt();
  for await (const line of lines) {
    if (["quit", "exit"].includes(line.trim())) break;
    if (line.trim()) await say(url, { person, group, ...readPhoneLine(line) });
    prompt();
  }
  closed = true;
  stream.destroy();
}

async function say(url: string, input: PhoneInput): Promise<void> {
  typing = false;
  const answered = new Promise<void>((resolve) => {
    onTimeout = resolve;
  });
  if (!inTerminal) startTimer(TIMEOUTS.start);
  const body = JSON.stringify(input);
  const answer = await fetch(`${url}/_practice/say`, { method: "POST", body });
  const { error } = (await answer.json()) as { error?: string }; // handleControl sends it
  if (error) print(error);
  else if (!inTerminal) await answered;
  clearTimeout(timer);
  timer = undefined;
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  terminal.close();
}
