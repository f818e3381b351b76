/** What the tools have in common: they read options, and end with a sentence if one is wrong. */

import { parseArgs } from "node:util";
import { textsFor } from "./language.ts";
import type { Texts } from "./texts.ts";
import { UserError } from "./world.ts";

type Options = NonNullable<NonNullable<Parameters<typeof parseArgs>[0]>["options"]>;

/** Reads the options of a tool. Throws a UserError with the tool's help if one is wrong. */
export function readOptions<T extends Options>(
  args: string[],
  options: T,
  texts: Texts,
  help = "",
) {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    const { code, message } = error as { code?: string; message: string }; // parseArgs throws such
    const [, option = ""] = /'(?:-\w, )?(--?[^\s'=]+)/.exec(message) ?? [];
    const isUnknown = code === "ERR_PARSE_ARGS_UNKNOWN_OPTION";
    throw new UserError(
      isUnknown ? texts.unknownOption(option, help) : texts.noValue(option, help),
    );
  }
}

/** A positive whole number. Throws a UserError that names the option. */
export function wholeNumber(given: string, name: string, texts: Texts): number {
  if (/^[1-9]\d*$/.test(given)) return Number(given);
  throw new UserError(texts.wholeNumber(name, given));
}

/**
 * "5s", "200ms" or "1m" in ms; a number without a unit is in seconds. Throws a UserError that names
 * the option.
 */
export function duration(given: string, name: string, texts: Texts): number {
  const ms = readDuration(given);
  if (ms === undefined) throw new UserError(texts.duration(name, given));
  return ms;
}

/** The same, but undefined for what is no duration. */
export function readDuration(given: string): number | undefined {
  const [, number, unit = "s"] = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(given) ?? [];
  if (number === undefined) return undefined;
  return Number(number) * ({ ms: 1, s: 1000, m: 60_000 }[unit] ?? 1000);
}

/**
 * Runs a tool with its command line and with texts in the person's language. A UserError is printed
 * without a stack. The tool gives its exit code, or anything else for 0.
 */
export async function runTool(
  tool: (args: string[], texts: Texts) => Promise<unknown>,
): Promise<void> {
  const args = process.argv.slice(2);
  // With `| head -1` nobody reads the rest.
  process.stdout.on("error", () => process.exit());
  try {
    const code = await tool(args, textsFor(args));
    if (typeof code === "number") process.exitCode = code;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}
