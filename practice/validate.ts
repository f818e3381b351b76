/**
 * Refuses what the Messages API refuses, with the same kind of sentence, and nothing else.
 *
 * The wording follows answers of the real API (version 2026-10-21) as people quote them in public
 * bug reports; where no quotation was found, the sentence has the API's usual form. Stricter rules
 * of this project belong in tests over the request log and not here: with a model that is stricter
 * than the API readers would learn rules that do not exist, and one that is laxer would hide bugs.
 */

import { checkCacheBreakpoints } from "./cache-breakpoints.ts";
import {
  checkFields,
  checkString,
  isObject,
  type Json,
  Refusal,
  refuse,
} from "./validate-fields.ts";
import { checkConversation, checkMessages } from "./validate-messages.ts";

/** The API's sentence about what is wrong with this request, or undefined if nothing is. */
export function validate(request: unknown): string | undefined {
  try {
    checkRequest(request);
    return undefined;
  } catch (error) {
    if (error instanceof Refusal) return error.message;
    throw error;
  }
}

const FIELDS = `model messages max_tokens system tools tool_choice stream stop_sequences metadata
  thinking cache_control container diagnostics inference_geo output_config service_tier speed`;

function checkRequest(request: unknown): void {
  if (!isObject(request)) refuse("Input should be a valid dictionary");
  // FIELDS lacks temperature, top_p and top_k, because this version of the API has removed them.
  checkFields(request, "", FIELDS);
  checkString(request, "", "model");
  checkMaxTokens(request.max_tokens);
  checkSystem(request.system);
  checkTools(request.tools);
  checkToolChoice(request.tool_choice, request.tools);
  checkStopSequences(request.stop_sequences);
  if (request.stream !== undefined && typeof request.stream !== "boolean") {
    refuse("stream: Input should be a valid boolean");
  }
  const messages = checkMessages(request.messages);
  checkCacheBreakpoints(request);
  checkConversation(messages, String(request.model));
}

function checkMaxTokens(value: unknown): void {
  if (value === undefined) refuse("max_tokens: Field required");
  if (!Number.isInteger(value)) refuse("max_tokens: Input should be a valid integer");
  // 0 is allowed, because it fills the prompt cache without an answer.
  if (Number(value) < 0) refuse("max_tokens: Input should be greater than or equal to 0");
}

function checkSystem(system: unknown): void {
  if (system === undefined || typeof system === "string") return;
  if (!Array.isArray(system)) refuse("system: Input should be a valid string or a valid list");
  for (const [index, block] of system.entries()) {
    const at = `system.${index}`;
    if (!isObject(block)) refuse(`${at}: Input should be a valid dictionary`);
    if (block.type !== "text") refuse(`${at}.type: Input should be 'text'`);
    checkFields(block, `${at}.`, "type text cache_control citations");
    checkString(block, `${at}.`, "text", 0);
    if (block.text === "") refuse("system: text content blocks must be non-empty");
  }
}

const TOOL_FIELDS = `type name description input_schema cache_control strict defer_loading
  eager_input_streaming input_examples allowed_callers`;

function checkTools(tools: unknown): void {
  if (tools === undefined) return;
  if (!Array.isArray(tools)) refuse("tools: Input should be a valid list");
  for (const [index, tool] of tools.entries()) {
    if (!isObject(tool)) refuse(`tools.${index}: Input should be a valid dictionary`);
    // A tool of another type runs on the API's side, so the request has no schema for it.
    if (tool.type === undefined || tool.type === null || tool.type === "custom") {
      checkCustomTool(tool, `tools.${index}.custom.`);
    }
  }
  const names = tools.map((tool: Json) => tool.name);
  if (new Set(names).size < names.length) refuse("tools: Tool names must be unique.");
}

function checkCustomTool(tool: Json, at: string): void {
  checkFields(tool, at, TOOL_FIELDS);
  checkString(tool, at, "name", 1, /^[a-zA-Z0-9_-]{1,128}$/);
  if (tool.description !== undefined) checkString(tool, at, "description", 0);
  const schema = tool.input_schema;
  if (schema === undefined) refuse(`${at}input_schema: Field required`);
  if (!isObject(schema)) refuse(`${at}input_schema: Input should be a valid dictionary`);
  if (schema.type === undefined) refuse(`${at}input_schema.type: Field required`);
  if (schema.type !== "object") refuse(`${at}input_schema.type: Input should be 'object'`);
  if (schema.oneOf !== undefined || schema.allOf !== undefined || schema.anyOf !== undefined) {
    const names = "oneOf, allOf, or anyOf";
    refuse(`${at}input_schema: input_schema does not support ${names} at the top level`);
  }
  for (const key of Object.keys(isObject(schema.properties) ? schema.properties : {})) {
    if (!/^[a-zA-Z0-9_.-]{1,64}$/.test(key)) {
      const pattern = "'^[a-zA-Z0-9_.-]{1,64}$'";
      refuse(`${at}input_schema.properties: Property keys should match pattern ${pattern}`);
    }
  }
}

function checkToolChoice(choice: unknown, tools: unknown): void {
  if (choice === undefined) return;
  if (!isObject(choice)) refuse("tool_choice: Input should be a valid dictionary");
  const types = ["auto", "any", "tool", "none"];
  if (!types.includes(String(choice.type))) {
    const tags = types.map((type) => `'${type}'`).join(", ");
    const found = `Input tag '${String(choice.type)}' found using 'type'`;
    refuse(`tool_choice: ${found} does not match any of the expected tags: ${tags}`);
  }
  if (choice.type !== "any" && choice.type !== "tool") return;
  const known: Json[] = Array.isArray(tools) ? tools : [];
  if (known.length === 0) refuse("tool_choice may only be specified while providing tools");
  if (choice.type === "any") return;
  checkString(choice, "tool_choice.tool.", "name");
  if (!known.some((tool) => tool.name === choice.name)) {
    refuse(`Tool '${String(choice.name)}' not found in provided tools`);
  }
}

function checkStopSequences(sequences: unknown): void {
  if (sequences === undefined || sequences === null) return;
  if (!Array.isArray(sequences)) refuse("stop_sequences: Input should be a valid list");
  if (sequences.some((text) => typeof text !== "string" || !text.trim())) {
    refuse("stop_sequences: each stop sequence must contain non-whitespace");
  }
}
