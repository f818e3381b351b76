/** `npm run practice -- fail …` in words: which server is to fail, how, how often and for whom. */

import { parseArgs } from "node:util";
import { MODEL_FAILURES } from "./failures.ts";
import { FEISHU_FAILURES } from "./feishu.ts";
import type { Failure } from "./orders.ts";
import { TELEGRAM_FAILURES } from "./telegram.ts";
import { Trouble } from "./world.ts";

const KINDS = { model: MODEL_FAILURES, telegram: TELEGRAM_FAILURES, feishu: FEISHU_FAILURES };
const PLACES = { model: "request", telegram: "message on Telegram", feishu: "message on Feishu" };

const text = { type: "string" } as const;
/** What may follow, for parseArgs. */
export const FAIL_OPTIONS = {
  times: text,
  for: text,
  "retry-after": text,
  key: text,
  model: text,
  chat: text,
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

export interface FailOrder {
  where: keyof typeof KINDS;
  /** What the server is to obey; without a kind, all orders end. */
  failure: Partial<Failure>;
  /** The same for people. */
  said: string;
}

type Values = Partial<Record<keyof typeof FAIL_OPTIONS, string>>;

/** `words` are those behind "fail". */
export function readFail(words: string[], values: Values = {}): FailOrder {
  const first = words[0] ?? "";
  const where = first === "telegram" || first === "feishu" ? first : "model";
  const [kind = where === "model" ? "529" : "500", more] =
    where === "model" ? words : words.slice(1);
  if (more) throw new Trouble(`What is "${more}"? Say one failure at a time.`);
  if (kind === "off") return { where, failure: {}, said: "No more failures." };
  if (!KINDS[where].includes(kind)) {
    throw new Trouble(`There is no failure "${kind}"; there are: ${KINDS[where].join(", ")}.`);
  }
  const { key, model, chat } = values;
  if (where === "model" && chat) throw new Trouble("--chat is for telegram and feishu.");
  if (where !== "model" && (key || model)) throw new Trouble("--key and --model are the model's.");
  const read = (name: keyof Values, how: (given: string, name: string) => number) =>
    values[name] === undefined ? undefined : how(values[name], `--${name}`);
  const ms = read("for", duration);
  const failure = {
    kind,
    times: read("times", wholeNumber),
    seconds: ms === undefined ? undefined : ms / 1000,
    retryAfter: read("retry-after", wholeNumber),
    ...{ key, model, chat },
  };
  return { where, failure, said: `${sentence(failure, PLACES[where])}: ${kind}.` };
}

/** The same from one line. */
export function readFailLine(line: string): FailOrder {
  const args = line.split(" ");
  const options = FAIL_OPTIONS;
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options });
  return readFail(positionals, values);
}

function sentence({ times, seconds, key, model, chat }: Failure, what: string): string {
  const count = times ?? (seconds === undefined ? 1 : Infinity);
  const many = what.replace(/^\w+/, "$&s");
  const next = count === 1 ? `next ${what}` : `next ${count} ${many}`;
  const which = [
    key && `with key ${key}`,
    model && `for ${model}`,
    chat && `to ${chat}`,
    seconds !== undefined && `within ${seconds} s`,
  ].filter(Boolean);
  return ["The", count === Infinity ? many : next, ...which].join(" ");
}

export function wholeNumber(given: string, name: string): number {
  if (/^[1-9]\d*$/.test(given)) return Number(given);
  throw new Trouble(`${name} wants a whole number, not "${given}".`);
}

/** "5s", "200ms" or "1m" in ms. */
export function duration(given: string, name: string, or = ""): number {
  const [, number, unit = "s"] = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(given) ?? [];
  if (number === undefined) throw new Trouble(`${name} ${given}? Say ${name} 5s${or}.`);
  return Number(number) * ({ ms: 1, s: 1000, m: 60_000 }[unit] ?? 1000);
}
