/** The failures of the model that can be ordered, each as the real service would show it. */

import type { Failure } from "./orders.ts";
import type { PracticeRequest, Scripted } from "./reply.ts";
import { answer } from "./rules.ts";

/** What the API sends with each status. */
const STATUSES: Record<string, { type: string; message: string }> = {
  "400": { type: "invalid_request_error", message: "This request was refused because you asked." },
  "401": { type: "authentication_error", message: "invalid x-api-key" },
  "402": { type: "billing_error", message: "Your credit balance is too low to use the API." },
  "403": { type: "permission_error", message: "Your API key may not use this resource." },
  "404": { type: "not_found_error", message: "model: this model does not exist" },
  "413": { type: "request_too_large", message: "Request exceeds the maximum size" },
  "429": { type: "rate_limit_error", message: "This request would exceed your rate limit." },
  "500": { type: "api_error", message: "Internal server error" },
  "504": { type: "timeout_error", message: "The request timed out while processing" },
  "529": { type: "overloaded_error", message: "Overloaded" },
};

const CUT = "This answer was cut off by a failure that you ordered, so you will not read its end.";

/** Answers of another kind; `content` missing means: whatever the model would have said. */
const ANSWERS: Record<string, Scripted> = {
  break: { content: [{ type: "text", text: CUT }], breakAfter: 5 },
  "stream-error": {
    content: [{ type: "text", text: CUT }],
    errorAfter: { events: 5, type: "overloaded_error", message: "Overloaded" },
  },
  empty: { content: [], stopReason: "end_turn" },
  max_tokens: {
    content: [{ type: "text", text: "This answer reached the limit of" }],
    stopReason: "max_tokens",
  },
  refusal: { content: [], stopReason: "refusal" },
  window: {
    content: [{ type: "text", text: "This answer filled the context window" }],
    stopReason: "model_context_window_exceeded",
  },
  pause: {
    content: [
      { type: "text", text: "Let me search for that." },
      { type: "server_tool_use", name: "web_search", input: { query: "practice" } },
    ],
    stopReason: "pause_turn",
  },
};

/** These are done to the connection. */
const BROKEN = ["drop", "empty-body"] as const;

/** All failures that come to an end by themselves. */
export const FAILURES = [
  ...Object.keys(STATUSES),
  "overflow",
  ...BROKEN,
  "break-tool",
  ...Object.keys(ANSWERS),
];

/** And those that last until release() or until the client hangs up. */
export const MODEL_FAILURES = [...FAILURES, "hang", "silent"];

/** What the failing service does: an answer of some kind, or something to the connection. */
export function failure(
  { kind, retryAfter = 1 }: Failure,
  contextTokens: number,
  request: PracticeRequest,
): Scripted | (typeof BROKEN)[number] | "hang" {
  const broken = [...BROKEN, "hang" as const].find((one) => one === kind);
  if (broken) return broken;
  if (kind === "overflow") {
    const message = `prompt is too long: ${contextTokens + 1} tokens > ${contextTokens} maximum`;
    return { error: { status: 400, type: "invalid_request_error", message } };
  }
  if (kind === "silent") return { content: [{ type: "text", text: CUT }], holdAfter: 5 };
  if (kind === "break-tool") return breakInCall(request);
  const error = STATUSES[kind];
  if (!error) return ANSWERS[kind] ?? {};
  const headers = kind === "429" ? { "retry-after": String(retryAfter) } : undefined;
  return { error: { status: Number(kind), ...error, headers } };
}

/** Breaks off in the middle of a call's input: of the call that the model would have made. */
function breakInCall(request: PracticeRequest): Scripted {
  const wanted = answer(request).content?.find((block) => block.type === "tool_use");
  const [offered] = (request.tools ?? []).flatMap((tool) => ("name" in tool ? tool.name : []));
  const call = wanted ?? { type: "tool_use", name: offered ?? "bash", input: {} };
  return { content: [call], breakAfter: 5 };
}
