/** How `npm run practice -- log` prints a request to the model. */

import { hasBreakpoints, promptBlocks } from "./cache-breakpoints.ts";
import { keyNumber } from "./fault-injection.ts";
import type { LoggedRequest } from "./model.ts";
import type { Texts } from "./texts.ts";

/** One line. `hasKeys` says whether there were several keys, so that the line names its key. */
export function formatEntry(entry: LoggedRequest, hasKeys: boolean, { log }: Texts): string {
  const time = new Date(entry.at).toTimeString().slice(0, 8);
  const count = entry.request.messages?.length ?? 0;
  const ending = entry.aborted ? log.stopped : (entry.stopReason ?? log.underWay);
  const result = entry.problem ?? entry.error ?? ending;
  const key = hasKeys ? [log.key(keyNumber(entry.key))] : [];
  const cache = cacheUseOf(entry, log);
  return [time, entry.model, ...key, log.messages(count), ...cache, result].join("  ");
}

/** What became of the tokens of a request with cache breakpoints. */
function cacheUseOf({ request, usage }: LoggedRequest, log: Texts["log"]): string[] {
  if (!usage || !hasBreakpoints(promptBlocks(request))) return [];
  const { cache_read_input_tokens: cached, cache_creation_input_tokens: written } = usage;
  return [log.cache(cached, written, usage.input_tokens)];
}
