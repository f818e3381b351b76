/** How `npm run practice -- log` prints a request to the model. */

import { hasBreakpoints, promptBlocks } from "./cache-breakpoints.ts";
import { keyNumber } from "./fault-injection.ts";
import type { LoggedRequest } from "./model.ts";

/** One line. `hasKeys` says whether there were several keys, so that the line names its key. */
export function formatEntry(entry: LoggedRequest, hasKeys: boolean): string {
  const time = new Date(entry.at).toTimeString().slice(0, 8);
  const count = entry.request.messages?.length ?? 0;
  const ending = entry.aborted ? "stopped by the client" : (entry.stopReason ?? "under way");
  const result = entry.problem ?? entry.error ?? ending;
  const messages = `${count} message${count === 1 ? "" : "s"}`;
  const key = hasKeys ? [`key ${keyNumber(entry.key)}`] : [];
  return [time, entry.model, ...key, messages, ...cacheUseOf(entry), result].join("  ");
}

/** What became of the tokens of a request with cache breakpoints. */
function cacheUseOf({ request, usage }: LoggedRequest): string[] {
  if (!usage || !hasBreakpoints(promptBlocks(request))) return [];
  const { cache_read_input_tokens: cached, cache_creation_input_tokens: written } = usage;
  return [`${cached} cached, ${written} written, ${usage.input_tokens} fresh`];
}
