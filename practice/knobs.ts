/**
 * `npm run practice` controls the practice world, which stays when a section ends. Without a
 * command it says which section and which world are running.
 */

import { readDuration, readOptions, runTool, wholeNumber } from "./command-line.ts";
import { FAIL_OPTIONS, failHelp, readFail } from "./fail-command.ts";
import { formatEntry } from "./log-format.ts";
import type { LoggedRequest } from "./model.ts";
import type { Texts } from "./texts.ts";
import { UserError } from "./world.ts";
import { findWorld, requireWorld, send, whenGone } from "./world-client.ts";
import type { RunningSection } from "./world-server.ts";

const text = { type: "string" } as const;
const OPTIONS = {
  ...FAIL_OPTIONS,
  last: text,
  lang: text,
  help: { type: "boolean", short: "h" },
} as const;

const helpFor = (texts: Texts): string => `${texts.practice.help}\n\n${failHelp(texts)}`;

function readCommand(args: string[], texts: Texts) {
  return readOptions(args, OPTIONS, texts, texts.practice.help);
}

async function main(args: string[], texts: Texts): Promise<void> {
  const { values, positionals } = readCommand(args, texts);
  const [command, ...words] = positionals;
  if (values.help) console.log(helpFor(texts));
  else if (command === undefined) await showStatus(texts);
  else if (command === "fail") await fail(words, values, texts);
  else if (command === "drop") await fail(["drop"], values, texts);
  else if (command === "slow") await slow(words[0] ?? "", texts);
  else if (command === "log") {
    await showLog(wholeNumber(values.last ?? "20", "--last", texts), texts);
  } else if (command === "kill") await kill(texts);
  else if (command === "stop") await stop(texts);
  else throw new UserError(`${texts.practice.noCommand(command)}\n\n${texts.practice.help}`);
}

async function showStatus(texts: Texts): Promise<void> {
  const { practice } = texts;
  const { section, pid, model } = await requireWorld(texts);
  console.log(section ? practice.section(section.user, section.pid) : practice.noSection);
  console.log(practice.world(pid, model));
  console.log(`${practice.byHand}ANTHROPIC_API_KEY=practice ANTHROPIC_BASE_URL=${model}`);
  console.log(practice.more);
}

async function fail(
  words: string[],
  values: ReturnType<typeof readCommand>["values"],
  texts: Texts,
): Promise<void> {
  const { where, failure, said } = readFail(words, values, texts);
  const world = await requireWorld(texts);
  await send(world[where], "fail", failure, texts);
  console.log(said);
}

async function slow(given: string, texts: Texts): Promise<void> {
  const ms = given === "off" ? 0 : readDuration(given);
  if (ms === undefined) throw new UserError(texts.practice.slowWhat(given));
  const world = await requireWorld(texts);
  await send(world.model, "slow", { ms }, texts);
  console.log(texts.practice.slow(ms / 1000));
}

async function showLog(last: number, texts: Texts): Promise<void> {
  const world = await requireWorld(texts);
  const log = await send<LoggedRequest[]>(world.model, "log", {}, texts);
  if (log.length === 0) console.log(texts.practice.noRequests);
  const hasKeys = new Set(log.map(({ key }) => key)).size > 1;
  for (const entry of log.slice(-last)) console.log(formatEntry(entry, hasKeys, texts));
}

async function kill(texts: Texts): Promise<void> {
  const world = await findWorld(texts);
  if (!world) throw new UserError(texts.practice.noWorld);
  const { section } = await send<{ section?: RunningSection }>(world.url, "kill", {}, texts);
  if (!section) throw new UserError(texts.practice.noSection);
  console.log(texts.practice.killed(section.user, section.pid ?? 0));
}

/** Says so when it is over, so that a start right behind it gets a new world. */
async function stop(texts: Texts): Promise<void> {
  const world = await findWorld(texts);
  if (!world) throw new UserError(texts.practice.noWorld);
  const { section } = await send<{ section?: RunningSection }>(world.url, "end", {}, texts);
  await whenGone(world);
  console.log(texts.practice.ended(section?.user));
}

await runTool(main);
