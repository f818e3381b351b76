/**
 * A request as the prompt cache sees it: a list of blocks (tools, then system, then messages), some
 * of them with a cache breakpoint. Also what the API refuses about breakpoints; prompt-cache.ts
 * names the sources.
 */

import { countTokensIn } from "./tokens.ts";
import { checkFields, isObject, type Json, refuse } from "./validate-fields.ts";

/** The fields that are read here. The request is valid except, perhaps, for its breakpoints. */
export interface Prompt {
  tools?: unknown;
  system?: unknown;
  messages?: unknown;
  cache_control?: unknown;
}

export interface PromptBlock {
  part: "tools" | "system" | "messages";
  type: string;
  /**
   * What has to be the same for a hit: the role of the message and the block without breakpoints.
   */
  content: string;
  tokens: number;
  breakpoints: Breakpoint[];
}

interface Breakpoint {
  /** The path, such as "messages.0.content.1"; "" for the automatic one of the whole request. */
  at: string;
  /** What the API puts between the path and the field when the field itself is wrong. */
  tag: string;
  value: unknown;
}

/** The types of blocks that can't have a breakpoint. */
const UNCACHEABLE = ["thinking", "redacted_thinking"];

/**
 * All blocks in the order of the prompt. An automatic breakpoint stands at the block that it marks.
 */
export function promptBlocks(prompt: Prompt): PromptBlock[] {
  const blocks = [...toolBlocks(prompt.tools), ...systemBlocks(prompt.system)];
  for (const [index, message] of listOf(prompt.messages).entries()) {
    blocks.push(...messageBlocks(message, index));
  }
  const target = automaticTarget(blocks);
  if (target?.breakpoints.length === 0 && isObject(prompt.cache_control)) {
    target.breakpoints.push({ at: "", tag: "", value: prompt.cache_control });
  }
  return blocks;
}

/** How long the entry of a breakpoint lives. */
export function ttlOf(breakpoint: Breakpoint): "5m" | "1h" {
  return isObject(breakpoint.value) && breakpoint.value.ttl === "1h" ? "1h" : "5m";
}

/** Whether any block has a breakpoint. */
export function hasBreakpoints(blocks: PromptBlock[]): boolean {
  return blocks.some(({ breakpoints }) => breakpoints.length > 0);
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

/** The tokens of a message's own structure are counted with its first block. */
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

/** A string as content is short for a list of one text block, so it has the same size. */
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
  const breakpoints = listOf(block.content).map((value, index) => {
    const path = `${at}.${tag}.content.${index}`;
    return { at: path, tag: String(value.type), value: value.cache_control };
  });
  breakpoints.push({ at, tag, value: block.cache_control });
  const present = breakpoints.filter(({ value }) => value !== undefined && value !== null);
  const tokensOfBreakpoints = countTokensIn(present.map(({ value }) => value)) - 1;
  const content = role + JSON.stringify(plain(block));
  return {
    part,
    type: part === "tools" ? "tool" : String(block.type),
    content,
    tokens: frame + countTokensIn(block) - tokensOfBreakpoints,
    breakpoints: present,
  };
}

/**
 * The block without breakpoints and with its own fields sorted, because the API makes the prompt
 * from the fields whatever their order. What is inside them, such as a tool's schema or a call's
 * input, goes into the prompt as it was sent, so its order stays.
 */
function plain(block: Json): Json {
  const names = Object.keys(block).filter((name) => name !== "cache_control");
  const entries = names.sort().map((name) => {
    const value = block[name];
    if (name !== "content" || !Array.isArray(value)) return [name, value];
    return [name, value.map((part) => (isObject(part) ? plain(part) : part))];
  });
  return Object.fromEntries(entries.filter(([, value]) => value !== null));
}

function listOf(value: unknown): Json[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

function automaticTarget(blocks: PromptBlock[]): PromptBlock | undefined {
  return blocks.findLast((block) => !UNCACHEABLE.includes(block.type));
}

/** Refuses more than four breakpoints, wrong forms, and one for an hour after one for 5 minutes. */
export function checkCacheBreakpoints(prompt: Prompt): void {
  checkForm(prompt.cache_control, "cache_control");
  const blocks = promptBlocks(prompt);
  const breakpoints = blocks.flatMap((block) => block.breakpoints);
  for (const { at, tag, value } of breakpoints) {
    if (at) checkForm(value, [at, tag, "cache_control"].filter(Boolean).join("."));
  }
  checkAutomatic(prompt.cache_control, automaticTarget(blocks));
  if (breakpoints.length > 4) {
    refuse(
      `A maximum of 4 blocks with cache_control may be provided. Found ${breakpoints.length}.`,
    );
  }
  const short = breakpoints.findIndex((breakpoint) => ttlOf(breakpoint) === "5m");
  const late =
    short < 0
      ? undefined
      : breakpoints.slice(short).find((breakpoint) => ttlOf(breakpoint) === "1h");
  if (!late) return;
  refuse(
    `${late.at ? `${late.at}.` : ""}cache_control.ttl: a ttl='1h' cache_control block must not ` +
      "come after a ttl='5m' cache_control block. Note that blocks are processed in the following " +
      "order: `tools`, `system`, `messages`.",
  );
}

function checkForm(breakpoint: unknown, at: string): void {
  if (breakpoint === undefined || breakpoint === null) return;
  if (!isObject(breakpoint)) refuse(`${at}: Input should be a valid dictionary`);
  if (breakpoint.type === undefined) refuse(`${at}.type: Field required`);
  if (breakpoint.type !== "ephemeral") {
    const found = `Input tag '${String(breakpoint.type)}' found using 'type'`;
    refuse(`${at}: ${found} does not match any of the expected tags: 'ephemeral'`);
  }
  checkFields(breakpoint, `${at}.ephemeral.`, "type ttl");
  if (!["5m", "1h"].includes(String(breakpoint.ttl ?? "5m"))) {
    refuse(`${at}.ephemeral.ttl: Input should be '5m' or '1h'`);
  }
}

/** An automatic breakpoint on a block that has one of its own must have the same lifetime. */
function checkAutomatic(automatic: unknown, target: PromptBlock | undefined): void {
  const there = target?.breakpoints.at(-1);
  if (!isObject(automatic) || !there) return;
  const ttl = ttlOf({ at: "", tag: "", value: automatic });
  if (ttl === ttlOf(there)) return;
  refuse(
    `Top-level cache_control has ttl='${ttl}' but the target block already has cache_control with ` +
      `ttl='${ttlOf(there)}'. When both are specified on the same block, they must have matching ` +
      "TTLs.",
  );
}
