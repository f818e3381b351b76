/**
 * The command line of `npm run practice -- fail …`: which server fails, how, how often, for whom.
 */

import { parseArgs } from "node:util";
import type { Failure } from "./fault-injection.ts";
import { FEISHU_FAILURES } from "./feishu.ts";
import { MODEL_FAILURES } from "./model-failures.ts";
import { TELEGRAM_FAILURES } from "./telegram.ts";
import { UserError } from "./world.ts";

const KINDS_BY_SERVER = {
  model: MODEL_FAILURES,
  telegram: TELEGRAM_FAILURES,
  feishu: FEISHU_FAILURES,
};
const REQUEST_NAMES = {
  model: "request",
  telegram: "message on Telegram",
  feishu: "message on Feishu",
};

const withValue = { type: "string" } as const;
/** The options of the command, as parseArgs wants them. */
export const FAIL_OPTIONS = {
  times: withValue,
  for: withValue,
  "retry-after": withValue,
  key: withValue,
  model: withValue,
  chat: withValue,
} as const;

export const FAIL_HELP = `npm run practice -- fail 529             the next request fails; --times 3: the next three
    --for 60s        all of them, for a minute
    --key 2          only with the second key; --model NAME: only for this model
    --retry-after 7  what a 429 says, in seconds
npm run practice -- fail telegram 429    the next message to people; or feishu; --chat alice
npm run practice -- fail off             no more failures; also fail telegram off`;

export const FAIL_KINDS = `Failures: ${MODEL_FAILURES.join(" ")}
    (hang: not a byte comes; silent: a stream stops coming; break and break-tool: it breaks off,
    in a text or in a tool call; empty: a reply of nothing; empty-body: not even that)
  on Telegram: ${TELEGRAM_FAILURES.join(" ")}
  on Feishu: ${FEISHU_FAILURES.join(" ")}`;

type Server = keyof typeof KINDS_BY_SERVER;

export interface FailCommand {
  where: Server;
  /** What the server is sent. Without a kind, it ends all failures. */
  failure: Partial<Failure>;
  /** The sentence that tells the person what will happen. */
  said: string;
}

type Values = Partial<Record<keyof typeof FAIL_OPTIONS, string>>;

/** Reads the words behind "fail" and the options. Throws a UserError if they make no sense. */
export function readFail(words: string[], values: Values = {}): FailCommand {
  const where = serverOf(words[0]);
  const [kind = where === "model" ? "529" : "500", surplus] =
    where === "model" ? words : words.slice(1);
  if (surplus) throw new UserError(`What is "${surplus}"? Say one failure at a time.`);
  if (kind === "off") return { where, failure: {}, said: "No more failures." };
  checkKind(kind, where);
  checkOptions(values, where);
  const failure = readFailure(kind, values);
  return { where, failure, said: `${sentence(failure, REQUEST_NAMES[where])}: ${kind}.` };
}

/** The model is meant if the first word names no platform. */
function serverOf(word: string | undefined): Server {
  return word === "telegram" || word === "feishu" ? word : "model";
}

function checkKind(kind: string, where: Server): void {
  const kinds = KINDS_BY_SERVER[where];
  if (kinds.includes(kind)) return;
  throw new UserError(`There is no failure "${kind}"; there are: ${kinds.join(", ")}.`);
}

function checkOptions({ key, model, chat }: Values, where: Server): void {
  if (where === "model" && chat) throw new UserError("--chat is for telegram and feishu.");
  if (where !== "model" && (key || model)) {
    throw new UserError("--key and --model are the model's.");
  }
}

function readFailure(kind: string, values: Values): Failure {
  const read = (name: keyof Values, parse: (given: string, name: string) => number) =>
    values[name] === undefined ? undefined : parse(values[name], `--${name}`);
  const { key, model, chat } = values;
  const ms = read("for", duration);
  return {
    kind,
    times: read("times", wholeNumber),
    seconds: ms === undefined ? undefined : ms / 1000,
    retryAfter: read("retry-after", wholeNumber),
    key,
    model,
    chat,
  };
}

/** Reads the command from one line, as the lessons have it: "529 --times 3". */
export function readFailLine(line: string): FailCommand {
  const args = line.split(" ");
  const options = FAIL_OPTIONS;
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options });
  return readFail(positionals, values);
}

/** For example "The next 3 requests with key 2", if `request` is "request". */
function sentence(failure: Failure, request: string): string {
  const { times, seconds, key, model, chat } = failure;
  const count = times ?? (seconds === undefined ? 1 : Infinity);
  const requests = request.replace(/^\w+/, "$&s");
  const next = count === 1 ? `next ${request}` : `next ${count} ${requests}`;
  const conditions = [
    key && `with key ${key}`,
    model && `for ${model}`,
    chat && `to ${chat}`,
    seconds !== undefined && `within ${seconds} s`,
  ].filter(Boolean);
  return ["The", count === Infinity ? requests : next, ...conditions].join(" ");
}

/** A positive whole number. Throws a UserError that names the option. */
export function wholeNumber(given: string, name: string): number {
  if (/^[1-9]\d*$/.test(given)) return Number(given);
  throw new UserError(`${name} wants a whole number, not "${given}".`);
}

/**
 * "5s", "200ms" or "1m" in ms; a number without a unit is in seconds. Throws a UserError that names
 * the option and, in `or`, what else could be said.
 */
export function duration(given: string, name: string, or = ""): number {
  const [, number, unit = "s"] = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(given) ?? [];
  if (number === undefined) throw new UserError(`${name} ${given}? Say ${name} 5s${or}.`);
  return Number(number) * ({ ms: 1, s: 1000, m: 60_000 }[unit] ?? 1000);
}
