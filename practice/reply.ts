/** Turns what the model says into what is sent: a message, or the events of a stream. */

import { createHash } from "node:crypto";
import type Anthropic from "@anthropic-ai/sdk";
import { hasBreakpoints, promptBlocks } from "./cache-breakpoints.ts";
import type { CacheUse } from "./prompt-cache.ts";
import { countTokensIn } from "./tokens.ts";

export type PracticeRequest = Anthropic.MessageCreateParams;

export type ScriptedBlock =
  | { type: "text"; text: string }
  | { type: "tool_use"; name: string; input: unknown; id?: string }
  | { type: "thinking"; thinking: string; signature?: string }
  | Record<string, unknown>;

/** One scripted answer; any field may be left out. */
export interface Scripted {
  content?: ScriptedBlock[];
  /** Default: "tool_use" if the content has a tool_use, else "end_turn". */
  stopReason?: string | null;
  /** Each block comes in its first event, as it is. Some servers of others do that. */
  wholeBlocks?: boolean;
  /** The inputs of the calls as they are written, by their order: they need not be JSON. */
  writtenInputs?: string[];
  /** Where the counts of tokens are missing. Some servers of others send none. */
  withoutUsage?: "start" | "end" | "both";
  /** The request is refused, before any stream. */
  error?: { status: number; type: string; message: string; headers?: Record<string, string> };
  /** The connection breaks after so many events. */
  breakAfter?: number;
  /** An `error` event inside the stream, after so many events. */
  errorAfter?: { events: number; type: string; message: string };
  /** After so many events the stream waits until release(), or until the client hangs up. */
  holdAfter?: number;
  usage?: { input_tokens?: number; output_tokens?: number };
  /** The JSON of the last call's input stops in the middle, as at max_tokens inside a tool call. */
  cutToolInput?: boolean;
}

type Block = Record<string, unknown>;
export type StreamEvent = { type: string } & Record<string, unknown>;

export interface Reply {
  message: Record<string, unknown> & { content: Block[]; stop_reason: string | null; usage: Usage };
  cutToolInput: boolean;
  scripted: Scripted;
}

/** Tokens as the API counts them: input_tokens does not include what the cache read or wrote. */
export interface Usage extends Record<string, unknown> {
  input_tokens: number;
  output_tokens: number;
  cache_creation_input_tokens: number;
  cache_read_input_tokens: number;
}

/**
 * Completes what was scripted with ids, signatures, usage and the fields that the API always sends.
 */
export function makeReply(
  request: PracticeRequest,
  scripted: Scripted,
  number: number,
  cache: CacheUse,
): Reply {
  const id = idMaker(request, number);
  const content = finishServerCall(request, scripted.content ?? []).map(
    (block) => completeBlock(block as Block, id), // every kind of ScriptedBlock is a plain object
  );
  const hasCalls = content.some((block) => block.type === "tool_use");
  const cut = scripted.cutToolInput === true && hasCalls;
  const usual = defaultStopReason(hasCalls, cut);
  const stopReason = scripted.stopReason === undefined ? usual : scripted.stopReason;
  const written = cache.written5m + cache.written1h;
  const fresh = Math.max(0, countRequest(request) - cache.read - written);
  const message = {
    id: `msg_${id()}`,
    type: "message",
    role: "assistant",
    model: String(request.model),
    content,
    stop_reason: stopReason,
    stop_sequence: null,
    stop_details:
      stopReason === "refusal" ? { type: "refusal", category: null, explanation: null } : null,
    container: null,
    diagnostics: null,
    usage: {
      input_tokens: scripted.usage?.input_tokens ?? fresh,
      output_tokens: scripted.usage?.output_tokens ?? Math.max(1, countTokensIn(content)),
      cache_creation_input_tokens: written,
      cache_read_input_tokens: cache.read,
      cache_creation: {
        ephemeral_5m_input_tokens: cache.written5m,
        ephemeral_1h_input_tokens: cache.written1h,
      },
      output_tokens_details: null,
      server_tool_use: null,
      service_tier: "standard",
      inference_geo: null,
      speed: null,
    },
  };
  return { message, cutToolInput: cut, scripted };
}

/**
 * All tokens of the prompt, cached or not. With cache breakpoints they are counted by blocks, so
 * that a breakpoint costs nothing, and a string as much as the block that it is short for.
 */
export function countRequest(request: PracticeRequest): number {
  const blocks = promptBlocks(request);
  if (hasBreakpoints(blocks)) return blocks.reduce((sum, { tokens }) => sum + tokens, 1);
  return countTokensIn([request.system, request.tools, request.messages]);
}

/**
 * Makes ids from the request and not from a counter, because a stored conversation that goes on
 * with a newly started model must not get an id that it already has. The same test gets the same
 * ids.
 */
function idMaker(request: PracticeRequest, number: number): () => string {
  let made = 0;
  // The time is left out, which a message says from s06 on: a second later the ids are the same.
  const asked = JSON.stringify(request.messages).replace(/It is \w+ \w+ \d+ \d+ [\d:]+/g, "");
  const base = createHash("sha256").update(asked).digest("hex");
  return () => {
    const hash = createHash("sha256").update(`${base} ${number} ${made}`).digest("base64");
    made += 1;
    return `01${hash.replace(/[^a-zA-Z0-9]/g, "").slice(0, 22)}`;
  };
}

function defaultStopReason(hasCalls: boolean, cut: boolean): string {
  if (cut) return "max_tokens";
  return hasCalls ? "tool_use" : "end_turn";
}

function completeBlock(block: Block, id: () => string): Block {
  const caller = { type: "direct" };
  if (block.type === "text") return { citations: null, ...block };
  if (block.type === "tool_use") return { id: `toolu_${id()}`, caller, ...block };
  if (block.type === "server_tool_use") return { id: `srvtoolu_${id()}`, caller, ...block };
  if (block.type === "thinking") return { signature: `practice${id()}`, ...block };
  return block;
}

/** The reply after a paused one begins with the result of the call that the API was running. */
function finishServerCall(request: PracticeRequest, content: ScriptedBlock[]): ScriptedBlock[] {
  const last = request.messages.at(-1);
  const open = Array.isArray(last?.content) ? last.content.at(-1) : undefined;
  if (last?.role !== "assistant" || open?.type !== "server_tool_use") return content;
  if (/_tool_result$/.test(String(content[0]?.type))) return content;
  const type = `${open.name}_tool_result`;
  const caller = { type: "direct" };
  return [{ type, tool_use_id: open.id, content: [], caller }, ...content];
}

/** The events of a stream, in the order in which the API sends them. */
export function toEvents(reply: Reply): StreamEvent[] {
  const { message, scripted } = reply;
  const { usage } = message;
  const written = [...(scripted.writtenInputs ?? [])];
  const start = {
    ...message,
    content: [],
    stop_reason: null,
    stop_details: null,
    usage: { ...usage, output_tokens: 1 },
  };
  const lastCall = message.content.findLastIndex((block) => block.type === "tool_use");
  const blocks = message.content.flatMap((block, index) => {
    const cut = reply.cutToolInput && index === lastCall;
    const whole = { empty: block, deltas: [] };
    if (scripted.wholeBlocks) return blockEvents(whole, index);
    const json = block.type === "tool_use" ? written.shift() : undefined;
    return blockEvents(splitIntoDeltas(block, cut, json), index);
  });
  const delta = {
    stop_reason: message.stop_reason,
    stop_sequence: null,
    stop_details: message.stop_details,
    container: null,
  };
  const end: StreamEvent = {
    type: "message_delta",
    delta,
    usage: {
      input_tokens: usage.input_tokens,
      output_tokens: usage.output_tokens,
      cache_creation_input_tokens: usage.cache_creation_input_tokens,
      cache_read_input_tokens: usage.cache_read_input_tokens,
      output_tokens_details: null,
      server_tool_use: null,
    },
  };
  if (scripted.withoutUsage !== undefined && scripted.withoutUsage !== "end")
    Reflect.deleteProperty(start, "usage");
  if (scripted.withoutUsage !== undefined && scripted.withoutUsage !== "start") delete end.usage;
  const begin: StreamEvent[] = [{ type: "message_start", message: start }, { type: "ping" }];
  return [...begin, ...blocks, end, { type: "message_stop" }];
}

/** The events of one block: it starts empty, grows by deltas, and stops. */
function blockEvents({ empty, deltas }: Growth, index: number): StreamEvent[] {
  return [
    { type: "content_block_start", index, content_block: empty },
    ...deltas.map((delta) => ({ type: "content_block_delta", index, delta })),
    { type: "content_block_stop", index },
  ];
}

/** A block as it is when it starts, and the deltas that complete it. */
interface Growth {
  empty: Block;
  deltas: Block[];
}

/** `json` is the input of a call as it is written, if it is not what JSON.stringify gives. */
function splitIntoDeltas(block: Block, cut: boolean, json = inputOf(block)): Growth {
  if (block.type === "text") {
    const deltas = pieces(String(block.text)).map((text) => ({ type: "text_delta", text }));
    return { empty: { ...block, text: "" }, deltas };
  }
  if (block.type === "thinking") {
    const deltas: Block[] = pieces(String(block.thinking)).map((thinking) => ({
      type: "thinking_delta",
      thinking,
    }));
    deltas.push({ type: "signature_delta", signature: block.signature });
    return { empty: { ...block, thinking: "", signature: "" }, deltas };
  }
  if (block.type === "tool_use" || block.type === "server_tool_use") {
    const parts = pieces(cut ? json.slice(0, Math.ceil(json.length / 2)) : json);
    const deltas = ["", ...parts].map((part) => ({ type: "input_json_delta", partial_json: part }));
    return { empty: { ...block, input: {} }, deltas };
  }
  return { empty: block, deltas: [] };
}

const inputOf = (block: Block) => JSON.stringify(block.input ?? {});

/** Small parts of a text. As with tokens, a word may be cut, but never a character. */
function pieces(text: string): string[] {
  const characters = [...text];
  const size = Math.min(16, Math.max(1, Math.ceil(characters.length / 2)));
  const parts: string[] = [];
  for (let i = 0; i < characters.length; i += size) {
    parts.push(characters.slice(i, i + size).join(""));
  }
  return parts;
}
