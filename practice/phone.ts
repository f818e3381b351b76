/**
 * `npm run phone -- telegram alice [--group]` makes a second terminal a person's phone. What is
 * typed goes to the bot, and what the bot sends to this chat is shown.
 */

import { readOptions, runTool } from "./command-line.ts";
import { readPhoneLine } from "./phone-line.ts";
import { PhoneScreen } from "./phone-screen.ts";
import type { Texts } from "./texts.ts";
import { type PhoneEvent, type PhoneInput, watchPhone } from "./web.ts";
import { FIRST_WITH, UserError } from "./world.ts";
import { type Answer, explain, findWorld, requireWorld, type World } from "./world-client.ts";

const screen = new PhoneScreen();
let isTyping = false;

function show(event: PhoneEvent, { phone }: Texts): void {
  if (event.type === "past") screen.print(`${event.from} > ${event.text}`);
  if (event.type === "sent") screen.print(`${phone.bot} > ${event.text}`);
  if (event.type === "typing" && !isTyping) screen.print(phone.typing);
  isTyping = event.type === "typing";
  if (event.type === "typing" || event.type === "sent") screen.heard(event.type);
}

/** Whether a section runs that has channels. If not, says that messages wait. */
function hasListener(world: World | undefined, { phone }: Texts): boolean {
  const { section } = world ?? {};
  if (section && section.number >= FIRST_WITH.channels) return true;
  screen.print(phone.waits(section?.user));
  return false;
}

async function main(args: string[], texts: Texts): Promise<void> {
  const { help } = texts.phone;
  const flag = { type: "boolean" } as const;
  const options = { group: flag, help: flag, lang: { type: "string" } } as const;
  const { values, positionals } = readOptions(args, options, texts, help);
  const [platform = "", person = ""] = positionals;
  const isPhone = /^(telegram|feishu) [a-z]\w*$/i.test(`${platform} ${person}`);
  if (!isPhone || values.help) throw new UserError(help);
  const world = await requireWorld(texts);
  const url = platform === "telegram" ? world.telegram : world.feishu;
  const group = values.group ? "family" : undefined;
  const query = new URLSearchParams({ person, ...(group && { group }), bot: texts.phone.bot });
  const stream = await watchPhone(`${url}/_practice/stream?${query}`, (event) =>
    show(event, texts),
  );
  stream.once("close", () => {
    if (!screen.isClosed) process.stdout.write(`\n${texts.phone.ended}\n`);
    screen.close();
  });
  hasListener(world, texts);
  screen.begin(person);
  for await (const line of screen.lines) {
    if (["quit", "exit"].includes(line.trim())) break;
    if (line.trim()) await say(url, { person, group, line, ...readPhoneLine(line) }, texts);
    screen.prompt();
  }
  screen.isClosed = true;
  stream.destroy();
}

async function say(url: string, input: PhoneInput, texts: Texts): Promise<void> {
  isTyping = false;
  const world = await findWorld(texts);
  await screen.whileAnswered(async () => {
    const isHeard = hasListener(world, texts);
    const body = JSON.stringify(input);
    const response = await fetch(`${url}/_practice/say`, { method: "POST", body });
    const answer = (await response.json()) as Answer; // handleControl sends it
    // Without a section nobody takes the event, and that was said.
    const isNews = answer.error !== undefined && (isHeard || answer.code !== "notTaken");
    if (isNews) screen.print(explain(answer, texts));
    return isHeard && answer.error === undefined;
  });
}

await runTool(main);
screen.close();
