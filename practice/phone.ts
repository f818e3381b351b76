/**
 * `npm run phone -- telegram alice [--group]`: a second terminal that is a person's phone. What is
 * typed is said to the bot, and what the bot sends there is shown.
 */

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import { type PhoneEvent, type PhoneInput, watchPhone } from "./web.ts";
import { requireWorld, UserError } from "./world.ts";

const HELP = `npm run phone -- telegram alice           alice writes to the bot
npm run phone -- telegram alice --group   alice writes in the group "family", where the bot
                                          answers to @practice_bot, and to /reply
npm run phone -- feishu bob               the same on Feishu

/photo [caption]  /album [caption]  /long (a text of several messages)  /reply <text>  quit`;

/** In a pipe the prompt waits for the bot: for a sign of it, while it types, for another part. */
const WAITS = { start: 2000, typing: 10_000, sent: 300 };

const { stdin, stdout } = process;
const inTerminal = stdin.isTTY === true && stdout.isTTY === true;
const terminal = createInterface({ input: stdin, output: stdout, terminal: inTerminal });
const lines = terminal[Symbol.asyncIterator](); // at once: it keeps what comes before we read

let name = "";
let typing = false;
let closed = false;
terminal.once("close", () => (closed = true));
/** Runs while the prompt waits. */
let timer: NodeJS.Timeout | undefined;
let quiet = (): void => {};

function wait(ms: number): void {
  clearTimeout(timer);
  timer = setTimeout(() => quiet(), ms);
}

/** In a pipe the input may be at its end, which the interface would not forgive. */
function prompt(): void {
  if (!inTerminal) stdout.write(`${name} > `);
  else if (!closed) terminal.prompt(true);
}

/** Prints above the line that is being typed, which may have wrapped. */
function print(text: string): void {
  if (timer) return void stdout.write(`${text}\n`);
  const { rows } = inTerminal ? terminal.getCursorPos() : { rows: 0 };
  const start = inTerminal ? `${rows > 0 ? `\x1b[${rows}A` : ""}\r\x1b[J` : "\n";
  stdout.write(`${start}${text}\n${"\n".repeat(rows)}`);
  prompt();
}

function show(event: PhoneEvent): void {
  if (event.type === "sent") print(`bot > ${event.text}`);
  else if (!typing) print("bot is typing …");
  typing = event.type === "typing";
  if (timer) wait(WAITS[event.type]);
}

/** A line as what it stands for: a text, or one of the few commands. */
function read(line: string): Omit<PhoneInput, "person" | "group"> {
  const [, command = "", rest = ""] = /^\/(photo|album|long|reply)\b\s*(.*)$/s.exec(line) ?? [];
  const text = command === "long" ? "This text is very long. ".repeat(250) : command ? rest : line;
  return { text, photos: { photo: 1, album: 3 }[command], reply: command === "reply" };
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
    if (line.trim()) await say(url, { person, group, ...read(line) });
    prompt();
  }
  closed = true;
  stream.destroy();
}

async function say(url: string, input: PhoneInput): Promise<void> {
  typing = false;
  const answered = new Promise<void>((resolve) => (quiet = resolve));
  if (!inTerminal) wait(WAITS.start);
  const body = JSON.stringify(input);
  const answer = await fetch(`${url}/_practice/say`, { method: "POST", body });
  const { error } = (await answer.json()) as { error?: string }; // our own server's form
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
