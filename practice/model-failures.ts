/** The failures of the model that can be injected, each as the real service would show it. */

import type { Failure } from "./fault-injection.ts";
import type { PracticeRequest, Scripted } from "./reply.ts";
import { answer } from "./rules.ts";

/** The API's error for each HTTP status. */
const HTTP_ERRORS: Record<string, { type: string; message: string }> = {
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

const CUT_TEXT =
  "This answer was cut off by a failure that you ordered, so you will not read its end.";

/** Failures that are a reply: one that breaks off, is empty, or stops for an unusual reason. */
const FAILED_REPLIES: Record<string, Scripted> = {
  break: { content: [{ type: "text", text: CUT_TEXT }], breakAfter: 5 },
  "stream-error": {
    content: [{ type: "text", text: CUT_TEXT }],
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

/** Failures of the connection, which are not a reply of any kind. */
const CONNECTION_FAILURES = ["drop", "empty-body"] as const;

/** All failures that come to an end by themselves. */
export const FAILURES = [
  ...Object.keys(HTTP_ERRORS),
  "overflow",
  ...CONNECTION_FAILURES,
  "break-tool",
  ...Object.keys(FAILED_REPLIES),
];

/** All failures, also those that last until release() or until the client hangs up. */
export const MODEL_FAILURES = [...FAILURES, "hang", "silent"];

/** What the failing service does: it sends a reply, or does something to the connection. */
export function failureResponse(
  { kind, retryAfter = 1 }: Failure,
  contextTokens: number,
  request: PracticeRequest,
): Scripted | (typeof CONNECTION_FAILURES)[number] | "hang" {
  const connectionFailure = [...CONNECTION_FAILURES, "hang" as const].find((one) => one === kind);
  if (connectionFailure) return connectionFailure;
  if (kind === "overflow") {
    const message = `prompt is too long: ${contextTokens + 1} tokens > ${contextTokens} maximum`;
    return { error: { status: 400, type: "invalid_request_error", message } };
  }
  if (kind === "silent") return { content: [{ type: "text", text: CUT_TEXT }], holdAfter: 5 };
  if (kind === "break-tool") return breakInCall(request);
  const error = HTTP_ERRORS[kind];
  if (!error) return FAILED_REPLIES[kind] ?? {};
  const headers = kind === "429" ? { "retry-after": String(retryAfter) } : undefined;
  return { error: { status: Number(kind), ...error, headers } };
}

/**
 * Breaks off in the middle of a call's input. It is the call that the model would have made, or,
 * if it would have made none, one of the first tool that is offered.
 */
function breakInCall(request: PracticeRequest): Scripted {
  const wanted = answer(request).content?.find((block) => block.type === "tool_use");
  const [offered] = (request.tools ?? []).flatMap((tool) => ("name" in tool ? tool.name : []));
  const call = wanted ?? { type: "tool_use", name: offered ?? "bash", input: {} };
  return { content: [call], breakAfter: 5 };
}
