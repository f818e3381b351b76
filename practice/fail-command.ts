/**
 * The command line of `npm run practice -- fail …`: which server fails, how, how often, for whom.
 */

import { duration, readOptions, wholeNumber } from "./command-line.ts";
import type { Failure } from "./fault-injection.ts";
import { FEISHU_FAILURES } from "./feishu.ts";
import { MODEL_FAILURES } from "./model-failures.ts";
import { TELEGRAM_FAILURES } from "./telegram.ts";
import { TEXTS, type Texts } from "./texts.ts";
import { UserError } from "./world.ts";

const KINDS_BY_SERVER = {
  model: MODEL_FAILURES,
  telegram: TELEGRAM_FAILURES,
  feishu: FEISHU_FAILURES,
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

/** The kinds of failures of each server, for the help. */
export function failHelp({ practice, comma }: Texts): string {
  const of = (server: Server): string => KINDS_BY_SERVER[server].join(comma);
  return `model: ${of("model")}\n${practice.kinds}\ntelegram: ${of("telegram")}\nfeishu: ${of("feishu")}`;
}

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
export function readFail(words: string[], values: Values = {}, texts = TEXTS.en): FailCommand {
  const where = serverOf(words[0]);
  const [kind = where === "model" ? "529" : "500", surplus] =
    where === "model" ? words : words.slice(1);
  const { practice } = texts;
  if (surplus) throw new UserError(practice.oneFailure(surplus));
  if (kind === "off") return { where, failure: {}, said: practice.noMoreFailures };
  checkKind(kind, where, texts);
  checkOptions(values, where, texts);
  const failure = readFailure(kind, values, texts);
  const { times, seconds } = failure;
  const count = times ?? (seconds === undefined ? 1 : Infinity);
  return { where, failure, said: practice.failure({ ...failure, server: where, count }) };
}

/** The model is meant if the first word names no platform. */
function serverOf(word: string | undefined): Server {
  return word === "telegram" || word === "feishu" ? word : "model";
}

function checkKind(kind: string, where: Server, { practice, comma }: Texts): void {
  const kinds = KINDS_BY_SERVER[where];
  if (kinds.includes(kind)) return;
  throw new UserError(practice.noFailure(kind, kinds.join(comma)));
}

function checkOptions({ key, model, chat }: Values, where: Server, { practice }: Texts): void {
  if (where === "model" && chat) throw new UserError(practice.chatOption);
  if (where !== "model" && (key || model)) throw new UserError(practice.modelOptions);
}

function readFailure(kind: string, values: Values, texts: Texts): Failure {
  const read = (name: keyof Values, parse: typeof wholeNumber) =>
    values[name] === undefined ? undefined : parse(values[name], `--${name}`, texts);
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
export function readFailLine(line: string, texts = TEXTS.en): FailCommand {
  const { values, positionals } = readOptions(line.split(" "), FAIL_OPTIONS, texts);
  return readFail(positionals, values, texts);
}
