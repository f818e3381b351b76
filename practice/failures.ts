/** The failures that tests and people can order, each as the real service would show it. */

import type { Scripted } from "./reply.ts";

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

export const FAILURES = [...Object.keys(STATUSES), "overflow", "drop", ...Object.keys(ANSWERS)];

/** The answer of a failing service; "drop" stands for no answer at all. */
export function failure(kind: string, contextTokens: number): Scripted | "drop" {
  if (kind === "drop") return "drop";
  if (kind === "overflow") {
    const message = `prompt is too long: ${contextTokens + 1} tokens > ${contextTokens} maximum`;
    return { error: { status: 400, type: "invalid_request_error", message } };
  }
  const answer = ANSWERS[kind];
  if (answer) return answer;
  const error = STATUSES[kind];
  if (!error) throw new Error(`There is no failure "${kind}"; there are: ${FAILURES.join(", ")}.`);
  const headers = kind === "429" ? { "retry-after": "1" } : undefined;
  return { error: { status: Number(kind), ...error, headers } };
}
