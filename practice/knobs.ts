/**
 * `npm run practice` controls the practice world that `npm start` has started in another terminal.
 * Without an argument it says which world is running. If none is, it starts a model alone and
 * prints the settings with which a section uses it.
 */

import { parseArgs } from "node:util";
import {
  duration,
  FAIL_HELP,
  FAIL_KINDS,
  FAIL_OPTIONS,
  readFail,
  wholeNumber,
} from "./fail-command.ts";
import { formatEntry } from "./log-format.ts";
import type { LoggedRequest } from "./model.ts";
import { isAlive, readWorld, requireWorld, startWorld, UserError, worldPath } from "./world.ts";

const HELP = `npm run practice                         says which world runs; if none, starts a model
${FAIL_HELP}
npm run practice -- drop                 the next request loses its connection
npm run practice -- slow 5s              wait before every event of a reply; slow off: no more
npm run practice -- log                  the last requests; --last 50: more of them

${FAIL_KINDS}`;

async function main(): Promise<void> {
  const { values, positionals } = readArguments();
  const [command, ...words] = positionals;
  if (values.help) console.log(HELP);
  else if (command === undefined) await showOrStartModel();
  else if (command === "fail") await fail(words, values);
  else if (command === "drop") await fail(["drop"], values);
  else if (command === "slow") await slow(words[0]);
  else if (command === "log") await showLog(wholeNumber(values.last ?? "20", "--last"));
  else throw new UserError(`There is no "${command}".\n\n${HELP}`);
}

function readArguments() {
  const help = { type: "boolean", short: "h" } as const;
  const options = { ...FAIL_OPTIONS, last: { type: "string" }, help } as const;
  try {
    return parseArgs({ allowPositionals: true, options });
  } catch (error) {
    throw new UserError(`${error instanceof Error ? error.message : error}\n\n${HELP}`);
  }
}

async function showOrStartModel(): Promise<void> {
  const world = readWorld();
  if (world && isAlive(world.pid)) {
    console.log(
      `${world.user} is running in process ${world.pid}, with the model at ${world.url}.`,
    );
    console.log("npm run practice -- --help shows what you can turn.");
    return;
  }
  if (world) console.log(`(${worldPath()} is left from process ${world.pid}, which is gone.)`);
  const started = await startWorld("A model by itself");
  console.log("The practice model is running; Ctrl+C ends it. A section uses it with:\n");
  for (const name of ["ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"]) {
    console.log(`${name}=${started.settings[name]}`);
  }
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => void started.stop());
  }
}

async function fail(...args: Parameters<typeof readFail>): Promise<void> {
  const { where, failure, said } = readFail(...args);
  await send("fail", failure, where);
  console.log(said);
}

async function slow(argument = ""): Promise<void> {
  const ms = argument === "off" ? 0 : duration(argument, "slow", ", or slow off");
  await send("slow", { ms });
  console.log(ms > 0 ? `A wait of ${ms / 1000} s before every event.` : "No waits.");
}

async function showLog(last: number): Promise<void> {
  const log = await send<LoggedRequest[]>("log");
  if (log.length === 0) console.log("No requests yet.");
  const hasKeys = new Set(log.map(({ key }) => key)).size > 1;
  for (const entry of log.slice(-last)) console.log(formatEntry(entry, hasKeys));
}

type Server = "model" | "telegram" | "feishu";

/** Sends a command to a server of the running world and gives its answer. */
async function send<Answer>(path: string, body?: object, to: Server = "model"): Promise<Answer> {
  const method = body ? "POST" : "GET";
  const world = requireWorld();
  const address = to === "model" ? world.url : world[to];
  if (!address) throw new UserError(`${world.user} has no channels yet: npm start -- s04 has.`);
  const url = `${address}/_practice/${path}`;
  const answer = await fetch(url, { method, body: body && JSON.stringify(body) });
  const result = (await answer.json()) as Answer & { error?: string }; // handleControl sends it
  if (!answer.ok) throw new UserError(result.error ?? `The practice world said ${answer.status}.`);
  return result;
}

try {
  await main();
} catch (error) {
  if (!(error instanceof UserError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
