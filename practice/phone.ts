/**
 * `npm run phone -- telegram alice [--group]`: a second terminal that is a person's phone. What is
 * typed is said to the bot, and what the bot sends there is shown.
 */

import { get } from "node:http";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import type { PhoneEvent, PhoneInput } from "./web.ts";
import { Trouble, theWorld } from "./world.ts";

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

let typing = false;
/** Runs while the prompt waits. */
let timer: NodeJS.Timeout | undefined;
let quiet = (): void => {};

function wait(ms: number): void {
  clearTimeout(timer);
  timer = setTimeout(() => quiet(), ms);
}

/** Prints above the line that is being typed, which may have wrapped. */
function print(text: string): void {
  if (timer) return void stdout.write(`${text}\n`);
  const { rows } = inTerminal ? terminal.getCursorPos() : { rows: 0 };
  const start = inTerminal ? `${rows > 0 ? `\x1b[${rows}A` : ""}\r\x1b[J` : "\n";
  stdout.write(`${start}${text}\n${"\n".repeat(rows)}`);
  terminal.prompt(true);
}

function show(event: PhoneEvent): void {
  if (event.type === "sent") print(`bot > ${event.text}`);
  else if (!typing) print("bot is typing …");
  typing = event.type === "typing";
  if (timer) wait(WAITS[event.type]);
}

/** What the bot sends comes as lines of JSON, for as long as the world is there. */
function listen(url: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const request = get(url, (response) => {
      const events = createInterface({ input: response.setEncoding("utf8") });
      events.on("line", (line) => show(JSON.parse(line)));
      for (const source of [events, response]) source.on("error", () => {}); // close says it, too
      response.once("close", () => {
        print("The practice world has ended.");
        process.exit();
      });
      resolve();
    });
    request.once("error", reject);
  });
}

/** A line as what it stands for: a text, or one of the few commands. */
function read(line: string): Omit<PhoneInput, "person" | "group"> {
  const [, command = "", rest = ""] = /^\/(photo|album|long|reply)\b\s*(.*)$/s.exec(line) ?? [];
  if (command === "photo") return { text: rest, photos: 1 };
  if (command === "album") return { text: rest, photos: 3 };
  if (command === "long") return { text: "This text is very long. ".repeat(250) };
  return command === "reply" ? { text: rest, reply: true } : { text: line };
}

async function main(): Promise<void> {
  const options = { group: { type: "boolean" }, help: { type: "boolean", short: "h" } } as const;
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const [platform = "", person = ""] = positionals;
  const isRight = ["telegram", "feishu"].includes(platform) && /^[a-z]\w*$/i.test(person);
  if (values.help || !isRight) throw new Trouble(HELP);
  const world = theWorld();
  const url = platform === "telegram" ? world.telegram : world.feishu;
  if (!url) throw new Trouble(`${world.user} has no channels yet: npm start -- s04 has.`);
  const group = values.group ? "family" : undefined;
  await listen(`${url}/_practice/stream?person=${person}${group ? `&group=${group}` : ""}`);
  terminal.setPrompt(`${person} > `);
  terminal.prompt();
  for await (const line of lines) {
    if (["quit", "exit"].includes(line.trim())) break;
    if (line.trim()) await say(url, { person, group, ...read(line) });
    terminal.prompt();
  }
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
  process.exit(); // the stream would keep it running
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
