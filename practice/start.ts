/**
 * `npm start [-- s02] [--lang zh] [--fresh]` runs a section of the tutorial. Without a key it runs
 * in the practice world: the section uses the real SDK and the real wire format, but a practice
 * model answers.
 */

import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { parse } from "dotenv";
import { readOptions, runTool, wholeNumber } from "./command-line.ts";
import { type Choice, choose } from "./menu.ts";
import { runSection } from "./section-process.ts";
import { TEXTS, type Texts } from "./texts.ts";
import { copyWorkspace } from "./workspace.ts";
import { FIRST_WITH, ROOT, SETTINGS, UserError } from "./world.ts";
import { type Answer, explain, requireWorld, send, type World } from "./world-client.ts";

/** The key of .env.example. Whoever copied the file and did not fill it in has no key. */
const PLACEHOLDER = "sk-ant-your-key-here";

const text = { type: "string" } as const;
const flag = { type: "boolean" } as const;
const OPTIONS = {
  lang: text,
  fresh: flag,
  serve: flag,
  context: text,
  set: { ...text, multiple: true },
  help: { ...flag, short: "h" },
} as const;

async function main(args: string[], machineTexts: Texts): Promise<number> {
  const { help } = machineTexts.start;
  const { values, positionals } = readOptions(args, OPTIONS, machineTexts, help);
  if (values.help) {
    console.log(help);
    return 0;
  }
  const own = readSettings(values.set ?? [], values.context, machineTexts);
  // It starts while the person chooses.
  const world = hasKey(machineTexts) ? undefined : requireWorld(machineTexts);
  world?.catch(() => {}); // the person may leave first, and `await` below throws it again
  const choice = await choose(positionals[0], args);
  if (!choice) return 0;
  const texts = TEXTS[choice.language];
  const file = join(ROOT, "sessions", choice.language, `${choice.section}.ts`);
  const words = values.serve ? ["--serve"] : [];
  if (!world) {
    if (values.fresh) console.log(texts.start.freshWithKey);
    return (await runSection({ file, words, settings: own })).code;
  }
  const fresh = values.fresh ?? false;
  return await practise(await world, choice, { file, words, own, fresh }, texts);
}

/** The settings of --set and --context. */
function readSettings(given: string[], context: string | undefined, texts: Texts) {
  const settings = given.map((one): [string, string] => {
    const [, name = "", value = ""] = /^(\w+)=(.*)$/s.exec(one) ?? [];
    if (SETTINGS.includes(name)) return [name, value];
    throw new UserError(texts.start.badSetting(one, SETTINGS.join(texts.comma)));
  });
  if (context === undefined) return Object.fromEntries(settings);
  const tokens = wholeNumber(context, "--context", texts);
  return { ...Object.fromEntries(settings), CONTEXT_TOKENS: String(tokens) };
}

/**
 * Whether there is a key. As in the sections, the environment beats .env, and empty is unset. Throws
 * if .env is in UTF-16, as Windows PowerShell writes it: every second of its bytes is 0, and dotenv
 * finds nothing in it.
 */
function hasKey({ start }: Texts): boolean {
  const path = join(ROOT, ".env");
  const content = existsSync(path) ? readFileSync(path) : Buffer.alloc(0);
  if (content.includes(0)) throw new UserError(start.envInUtf16);
  const file = parse(content);
  const key = process.env.ANTHROPIC_API_KEY ?? file.ANTHROPIC_API_KEY ?? "";
  return key.trim() !== "" && key.trim() !== PLACEHOLDER;
}

interface Run {
  file: string;
  words: string[];
  own: Record<string, string>;
  fresh: boolean;
}

/** Runs a section in the practice world. */
async function practise(world: World, choice: Choice, run: Run, texts: Texts): Promise<number> {
  const short = choice.section.slice(0, 3);
  const number = Number(short.slice(1));
  const user = `${short} (${choice.language})`;
  const { settings, leave } = await takeSeat(world, { user, number }, texts);
  copyWorkspace(choice.language, run.fresh);
  for (const line of texts.start.offline) console.log(line);
  if (number >= FIRST_WITH.channels) console.log(texts.start.phone);
  console.log();
  const { code, isKilled } = await runSection({
    file: run.file,
    words: run.words,
    // A proxy must not come between a section and its practice world.
    settings: { ...settings, ...withoutProxy(), ...run.own },
    onStart: (pid) => send(world.url, "running", { pid }, texts),
  });
  leave();
  if (isKilled) console.log(`\n${texts.start.killed(user, `npm start -- ${short}`)}`);
  return code;
}

function withoutProxy(): Record<string, string> {
  return { NO_PROXY: ["127.0.0.1,localhost", process.env.NO_PROXY].filter(Boolean).join(",") };
}

/**
 * Asks the world for the workspace and for settings. The connection stays open as long as this
 * process lives, which keeps other sections out.
 */
async function takeSeat({ url }: World, section: { user: string; number: number }, texts: Texts) {
  const call = request(`${url}/_practice/take`, { method: "POST" });
  call.end(JSON.stringify(section));
  const [response] = (await once(call, "response")) as [IncomingMessage]; // the event has one argument
  const lines = createInterface({ input: response.setEncoding("utf8") });
  for (const source of [lines, response]) source.on("error", () => {}); // the world may end first
  const [line] = (await once(lines, "line")) as [string];
  const answer = JSON.parse(line) as Record<string, string> & Answer; // world-server.ts sends it
  if (response.statusCode !== 200) throw new UserError(explain(answer, texts));
  return { settings: answer, leave: () => response.destroy() };
}

await runTool(main);
