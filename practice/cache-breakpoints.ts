/**
 * A request as the prompt cache sees it: one row of blocks (tools, then system, then messages),
 * some of them with a mark. And what the API refuses about marks; cache.ts says where from.
 */

import { countTokensIn } from "./tokens.ts";
import { checkFields, isObject, type Json, refuse } from "./validate-fields.ts";

/** The fields that matter here, read from a request that is valid but for its marks. */
export interface Prompt {
  tools?: unknown;
  system?: unknown;
  messages?: unknown;
  cache_control?: unknown;
}

export interface PromptBlock {
  part: "tools" | "system" | "messages";
  type: string;
  /** What has to be the same for a hit: the block without marks, and whose message it is in. */
  content: string;
  tokens: number;
  marks: Mark[];
}

interface Mark {
  /** Where it is: "messages.0.content.1"; "" for the automatic one of the whole request. */
  at: string;
  /** What the API puts between the place and the field when the field itself is wrong. */
  tag: string;
  value: unknown;
}

const UNMARKABLE = ["thinking", "redacted_thinking"];

/** All blocks in the order of the prompt. An automatic mark is on the block where it lands. */
export function promptBlocks(prompt: Prompt): PromptBlock[] {
  const blocks = [...toolBlocks(prompt.tools), ...systemBlocks(prompt.system)];
  for (const [index, message] of listOf(prompt.messages).entries()) {
    blocks.push(...messageBlocks(message, index));
  }
  const target = automaticTarget(blocks);
  if (target?.marks.length === 0 && isObject(prompt.cache_control)) {
    target.marks.push({ at: "", tag: "", value: prompt.cache_control });
  }
  return blocks;
}

export function ttlOf(mark: Mark): "5m" | "1h" {
  return isObject(mark.value) && mark.value.ttl === "1h" ? "1h" : "5m";
}

export function hasBreakpoints(blocks: PromptBlock[]): boolean {
  return blocks.some(({ marks }) => marks.length > 0);
}

function toolBlocks(tools: unknown): PromptBlock[] {
  return listOf(tools).map((tool, index) => {
    const tag = String(tool.type ?? "custom");
    return readBlock("tools", tool, `tools.${index}`, tag, index === 0 ? 1 : 0);
  });
}

function systemBlocks(system: unknown): PromptBlock[] {
  if (typeof system === "string") return system ? [textBlock("system", system, 0)] : [];
  return listOf(system).map((block, index) => {
    return readBlock("system", block, `system.${index}`, "", index === 0 ? 1 : 0);
  });
}

/** The frame of a message (and of the list) counts as part of its first block. */
function messageBlocks(message: Json, index: number): PromptBlock[] {
  const role = String(message.role);
  const frame = countTokensIn({ role }) + (index === 0 ? 1 : 0);
  if (typeof message.content === "string") {
    return message.content ? [textBlock("messages", message.content, frame, role)] : [];
  }
  return listOf(message.content).map((block, i) => {
    const at = `messages.${index}.content.${i}`;
    return readBlock("messages", block, at, String(block.type), i === 0 ? frame + 1 : 0, role);
  });
}

/** A string is short for a list of one text block: the prompt is the same, and so is its size. */
function textBlock(part: PromptBlock["part"], text: string, frame: number, role = ""): PromptBlock {
  return readBlock(part, { type: "text", text }, "", "", frame + 1, role);
}

function readBlock(
  part: PromptBlock["part"],
  block: Json,
  at: string,
  tag: string,
  frame: number,
  role = "",
): PromptBlock {
  const marks = listOf(block.content).map((value, index) => {
    const path = `${at}.${tag}.content.${index}`;
    return { at: path, tag: String(value.type), value: value.cache_control };
  });
  marks.push({ at, tag, value: block.cache_control });
  const set = marks.filter(({ value }) => value !== undefined && value !== null);
  const own = countTokensIn(set.map(({ value }) => value)) - 1;
  const content = role + JSON.stringify(plain(block));
  return {
    part,
    type: part === "tools" ? "tool" : String(block.type),
    content,
    tokens: frame + countTokensIn(block) - own,
    marks: set,
  };
}

/**
 * Without marks, and with the fields of the block itself in one order: the prompt is made from
 * them. What is inside them (a tool's schema, a call's input) goes into it as it came.
 */
function plain(block: Json): Json {
  const names = Object.keys(block).filter((name) => name !== "cache_control");
  const entries = names.sort().map((name) => {
    const value = block[name];
    const parts = name === "content" && Array.isArray(value);
    return [name, parts ? value.map((part) => (isObject(part) ? plain(part) : part)) : value];
  });
  return Object.fromEntries(entries.filter(([, value]) => value !== null));
}

function listOf(value: unknown): Json[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

function automaticTarget(blocks: PromptBlock[]): PromptBlock | undefined {
  return blocks.findLast((block) => !UNMARKABLE.includes(block.type));
}

/** At most four marks, of the right form, and those that live longer come first. */
export function checkCacheBreakpoints(prompt: Prompt): void {
  checkForm(prompt.cache_control, "cache_control");
  const blocks = promptBlocks(prompt);
  const marks = blocks.flatMap((block) => block.marks);
  for (const { at, tag, value } of marks) {
    if (at) checkForm(value, [at, tag, "cache_control"].filter(Boolean).join("."));
  }
  checkAutomatic(prompt.cache_control, automaticTarget(blocks));
  if (marks.length > 4) {
    refuse(`A maximum of 4 blocks with cache_control may be provided. Found ${marks.length}.`);
  }
  const short = marks.findIndex((mark) => ttlOf(mark) === "5m");
  const late = short < 0 ? undefined : marks.slice(short).find((mark) => ttlOf(mark) === "1h");
  if (!late) return;
  refuse(
    `${late.at ? `${late.at}.` : ""}cache_control.ttl: a ttl='1h' cache_control block must not ` +
      "come after a ttl='5m' cache_control block. Note that blocks are processed in the following " +
      "order: `tools`, `system`, `messages`.",
  );
}

function checkForm(mark: unknown, at: string): void {
  if (mark === undefined || mark === null) return;
  if (!isObject(mark)) refuse(`${at}: Input should be a valid dictionary`);
  if (mark.type === undefined) refuse(`${at}.type: Field required`);
  if (mark.type !== "ephemeral") {
    const found = `Input tag '${String(mark.type)}' found using 'type'`;
    refuse(`${at}: ${found} does not match any of the expected tags: 'ephemeral'`);
  }
  checkFields(mark, `${at}.ephemeral.`, "type ttl");
  if (!["5m", "1h"].includes(String(mark.ttl ?? "5m"))) {
    refuse(`${at}.ephemeral.ttl: Input should be '5m' or '1h'`);
  }
}

/** The automatic mark and one that is already there have to agree; then they are one. */
function checkAutomatic(automatic: unknown, target: PromptBlock | undefined): void {
  const there = target?.marks.at(-1);
  if (!isObject(automatic) || !there) return;
  const ttl = ttlOf({ at: "", tag: "", value: automatic });
  if (ttl === ttlOf(there)) return;
  refuse(
    `Top-level cache_control has ttl='${ttl}' but the target block already has cache_control with ` +
      `ttl='${ttlOf(there)}'. When both are specified on the same block, they must have matching ` +
      "TTLs.",
  );
}
