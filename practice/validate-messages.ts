/** The messages of a request: the form of each block, and how messages follow each other. */

import { checkFields, checkString, isObject, type Json, refuse } from "./validate-fields.ts";

const TOOL_ID = /^[a-zA-Z0-9_-]+$/;
const TOOL_NAME = /^[a-zA-Z0-9_-]{1,128}$/;

/** The fields of the blocks that the sections use. The fields of other blocks are not checked. */
const BLOCK_FIELDS: Record<string, string> = {
  text: "type text cache_control citations",
  thinking: "type thinking signature",
  redacted_thinking: "type data",
  tool_use: "type id name input cache_control caller toolset_name",
  server_tool_use: "type id name input cache_control caller",
  tool_result: "type tool_use_id content is_error cache_control toolset_name",
};

const OTHER_BLOCKS = `image document search_result container_upload web_search_tool_result
  web_fetch_tool_result code_execution_tool_result bash_code_execution_tool_result
  text_editor_code_execution_tool_result tool_search_tool_result`.split(/\s+/);

const RESULT_BLOCKS = ["text", "image", "document", "search_result", "tool_reference"];

export interface ReadMessage {
  role: string;
  blocks: Json[];
}

/** Checks the form of every message and gives them with their content as blocks. */
export function checkMessages(messages: unknown): ReadMessage[] {
  if (messages === undefined) refuse("messages: Field required");
  if (!Array.isArray(messages)) refuse("messages: Input should be a valid list");
  if (messages.length === 0) refuse("messages: at least one message is required");
  return messages.map((message, index) => checkMessage(message, `messages.${index}`));
}

function checkMessage(message: unknown, at: string): ReadMessage {
  if (!isObject(message)) refuse(`${at}: Input should be a valid dictionary`);
  if (message.role === undefined) refuse(`${at}.role: Field required`);
  if (!["user", "assistant", "system"].includes(String(message.role))) {
    refuse(`${at}.role: Input should be 'user', 'assistant' or 'system'`);
  }
  if (message.content === undefined) refuse(`${at}.content: Field required`);
  checkFields(message, `${at}.`, "role content");
  const role = String(message.role);
  if (typeof message.content === "string") {
    // A string is short for one text block, but the API treats "" as no content at all.
    const text = message.content;
    return { role, blocks: text === "" ? [] : [{ type: "text", text }] };
  }
  if (!Array.isArray(message.content)) refuse(`${at}.content: Input should be a valid list`);
  const blocks = message.content.map((block, i) => checkBlock(block, `${at}.content.${i}`));
  return { role, blocks };
}

function checkBlock(block: unknown, at: string, known?: string[]): Json {
  if (!isObject(block)) refuse(`${at}: Input should be a valid dictionary`);
  if (block.type === undefined) refuse(`${at}.type: Field required`);
  const type = String(block.type);
  const types = known ?? [...Object.keys(BLOCK_FIELDS), ...OTHER_BLOCKS];
  if (!types.includes(type)) {
    const tags = types.map((name) => `'${name}'`).join(", ");
    const found = `Input tag '${type}' found using 'type'`;
    refuse(`${at}: ${found} does not match any of the expected tags: ${tags}`);
  }
  const fields = BLOCK_FIELDS[type];
  if (fields) checkFields(block, `${at}.${type}.`, fields);
  BLOCK_CHECKS[type]?.(block, `${at}.${type}`);
  return block;
}

/** The check of each type of block; a type without one is let through. */
const BLOCK_CHECKS: Record<string, (block: Json, at: string) => void> = {
  text(block, at) {
    checkString(block, `${at}.`, "text", 0);
    if (block.text === "" && isObject(block.cache_control)) {
      refuse(`${at}: cache_control cannot be set for empty text blocks`);
    }
  },
  thinking(block, at) {
    checkString(block, `${at}.`, "thinking", 0);
    checkString(block, `${at}.`, "signature");
  },
  redacted_thinking: (block, at) => checkString(block, `${at}.`, "data", 0),
  tool_use: checkToolCall,
  server_tool_use: checkToolCall,
  tool_result: checkToolResult,
  image: checkSource,
  document: checkSource,
};

function checkToolCall(block: Json, at: string): void {
  checkString(block, `${at}.`, "id", 1, TOOL_ID);
  checkString(block, `${at}.`, "name", 1, TOOL_NAME);
  if (block.input === undefined) refuse(`${at}.input: Field required`);
  if (!isObject(block.input)) refuse(`${at}.input: Input should be a valid dictionary`);
}

function checkSource(block: Json, at: string): void {
  if (block.source === undefined) refuse(`${at}.source: Field required`);
}

function checkToolResult(block: Json, at: string): void {
  checkString(block, `${at}.`, "tool_use_id", 1, TOOL_ID);
  const content = block.content ?? "";
  if (Array.isArray(content)) {
    for (const [index, part] of content.entries()) {
      checkBlock(part, `${at}.content.${index}`, RESULT_BLOCKS);
      if (part.text === "") refuse("messages: text content blocks must be non-empty");
    }
  } else if (typeof content !== "string") {
    refuse(`${at}.content: Input should be a valid string or a valid list`);
  }
  if (block.is_error !== undefined && typeof block.is_error !== "boolean") {
    refuse(`${at}.is_error: Input should be a valid boolean`);
  }
  if (block.is_error && content.length === 0) {
    refuse(`${at}: content cannot be empty if \`is_error\` is true`);
  }
}

/** Checks how blocks and messages follow each other. The form of each was checked before. */
export function checkConversation(messages: ReadMessage[], model: string): void {
  messages.forEach((message, index) => {
    checkContent(message, index, index === messages.length - 1);
    checkRoles(message, index);
  });
  checkSystemMessages(messages, model);
  const turns = combine(messages);
  checkUniqueIds(turns);
  turns.forEach((turn, index) => {
    if (turn.role === "assistant") checkCalls(turn, turns[index + 1]);
    else checkResults(turn, turns[index - 1]);
  });
  checkServerCalls(turns);
  const last = turns.at(-1);
  if (last?.role === "assistant") checkLastReply(last, model);
}

function checkContent(message: ReadMessage, index: number, last: boolean): void {
  if (message.blocks.length === 0 && !(last && message.role === "assistant")) {
    const rule = "all messages must have non-empty content except for the optional final";
    refuse(`messages.${index}: ${rule} assistant message`);
  }
  const texts = message.blocks.filter((block) => block.type === "text");
  if (texts.some((block) => block.text === "")) {
    refuse("messages: text content blocks must be non-empty");
  }
  // As others have measured, a blank block passes beside one with text, but not alone.
  if (texts.length > 0 && texts.every((block) => String(block.text).trim() === "")) {
    refuse("messages: text content blocks must contain non-whitespace text");
  }
  if (message.role === "assistant" && /thinking$/.test(String(message.blocks.at(-1)?.type))) {
    const type = String(message.blocks.at(-1)?.type);
    refuse(`messages.${index}: The final block in an assistant message cannot be \`${type}\`.`);
  }
}

/** Which blocks may be in a message of which role. */
function checkRoles(message: ReadMessage, index: number): void {
  const onlyIn: Record<string, string> = {
    tool_use: "assistant",
    server_tool_use: "assistant",
    thinking: "assistant",
    redacted_thinking: "assistant",
    tool_result: "user",
    document: "user",
  };
  for (const [position, block] of message.blocks.entries()) {
    const type = String(block.type);
    const owner = onlyIn[type];
    if (owner && owner !== message.role) {
      const at = `messages.${index}.content.${position}`;
      refuse(`${at}: \`${type}\` blocks can only be in \`${owner}\` messages`);
    }
    if (message.role === "user" && Array.isArray(block.citations) && block.citations.length > 0) {
      const at = `messages.${index}.content.${position}.text.citations`;
      refuse(`${at}: citations are not permitted in \`user\` messages`);
    }
  }
}

/** Newer models accept a system message in the middle of a conversation, after a user's. */
function checkSystemMessages(messages: ReadMessage[], model: string): void {
  messages.forEach((message, index) => {
    if (message.role !== "system") return;
    if (version(model) < 4.8) refuse("role 'system' is not supported on this model");
    if (messages[index - 1]?.role !== "user") {
      refuse(`messages.${index}: a \`system\` message must follow a \`user\` message`);
    }
  });
}

interface Turn {
  role: string;
  blocks: { at: string; message: number; block: Json }[];
}

/**
 * The API joins consecutive messages of one role to one turn; system messages are not part of it.
 */
function combine(messages: ReadMessage[]): Turn[] {
  const turns: Turn[] = [];
  messages.forEach(({ role, blocks }, message) => {
    if (role === "system") return;
    const before = turns.at(-1);
    const turn = before?.role === role ? before : { role, blocks: [] };
    if (turn !== before) turns.push(turn);
    blocks.forEach((block, position) => {
      turn.blocks.push({ at: `messages.${message}.content.${position}`, message, block });
    });
  });
  return turns;
}

function checkUniqueIds(turns: Turn[]): void {
  const seen = new Set<unknown>();
  for (const { at, block } of turns.flatMap((turn) => turn.blocks)) {
    if (block.type !== "tool_use" && block.type !== "server_tool_use") continue;
    if (seen.has(block.id)) refuse(`${at}: \`tool_use\` ids must be unique`);
    seen.add(block.id);
  }
}

/** Every tool call is answered at the beginning of the next message, before any other block. */
function checkCalls(turn: Turn, next: Turn | undefined): void {
  const calls = turn.blocks.filter(({ block }) => block.type === "tool_use");
  const answers = next?.blocks ?? [];
  const end = answers.findIndex(({ block }) => block.type !== "tool_result");
  const leading = end < 0 ? answers : answers.slice(0, end);
  const answered = new Set(leading.map(({ block }) => block.tool_use_id));
  const open = calls.filter(({ block }) => !answered.has(block.id));
  const first = open[0];
  if (!first) return;
  const ids = open.map(({ block }) => String(block.id)).join(", ");
  refuse(
    `messages.${first.message}: \`tool_use\` ids were found without \`tool_result\` blocks ` +
      `immediately after: ${ids}. Each \`tool_use\` block must have a corresponding ` +
      "`tool_result` block in the next message.",
  );
}

/** Every result answers a call of the message before, once. */
function checkResults(turn: Turn, before: Turn | undefined): void {
  const calls = (before?.blocks ?? []).filter(({ block }) => block.type === "tool_use");
  const ids = new Set(calls.map(({ block }) => block.id));
  const seen = new Set<unknown>();
  for (const { at, block } of turn.blocks) {
    if (block.type !== "tool_result") continue;
    const id = String(block.tool_use_id);
    if (!ids.has(id)) {
      refuse(
        `${at}: unexpected \`tool_use_id\` found in \`tool_result\` blocks: ${id}. Each ` +
          "`tool_result` block must have a corresponding `tool_use` block in the previous message.",
      );
    }
    if (seen.has(id)) {
      const rule = "each tool_use must have a single result";
      refuse(`${at}: ${rule}. Found multiple \`tool_result\` blocks with id: ${id}`);
    }
    seen.add(id);
  }
}

/** A call that the API itself runs is answered by it in the same turn, unless the reply paused. */
function checkServerCalls(turns: Turn[]): void {
  const called = new Set<unknown>();
  turns.forEach((turn, index) => {
    for (const { at, block } of turn.blocks) {
      if (block.type === "server_tool_use") called.add(block.id);
      if (!isServerResult(block) || called.has(block.tool_use_id)) continue;
      const type = String(block.type);
      refuse(
        `${at}: unexpected \`tool_use_id\` found in \`${type}\` blocks: ` +
          `${String(block.tool_use_id)}. Each \`${type}\` block must have a corresponding ` +
          "`server_tool_use` block before it.",
      );
    }
    // If the turn also calls a tool of the program, the API ends its own call after the results.
    const mixed = turn.blocks.some(({ block }) => block.type === "tool_use");
    const open = openServerCall(turn);
    if (!open || mixed || index === turns.length - 1) return;
    const name = String(open.block.name);
    refuse(
      `messages.${open.message}: \`${name}\` tool use with id \`${String(open.block.id)}\` was ` +
        `found without a corresponding \`${name}_tool_result\` block`,
    );
  });
}

function openServerCall(turn: Turn) {
  const done = new Set(turn.blocks.map(({ block }) => block.tool_use_id));
  return turn.blocks.find(({ block }) => block.type === "server_tool_use" && !done.has(block.id));
}

function isServerResult(block: Json): boolean {
  return block.type !== "tool_result" && /_tool_result$/.test(String(block.type));
}

/** A request ends with a user's message. Only a reply that the API paused may be last instead. */
function checkLastReply(turn: Turn, model: string): void {
  const last = turn.blocks.at(-1)?.block;
  if (last && (last.type === "server_tool_use" || isServerResult(last))) return;
  if (version(model) >= 4.6) {
    refuse(
      "This model does not support assistant message prefill. " +
        "The conversation must end with a user message.",
    );
  }
  if (last?.type === "text" && /\s$/.test(String(last.text))) {
    refuse("messages: final assistant content cannot end with trailing whitespace");
  }
}

/**
 * 5.5 for claude-sonnet-5-5, 4 for claude-sonnet-4-20250514, Infinity for names of another form.
 */
function version(model: string): number {
  const match = /^claude-(?:[a-z]+-)?(\d+)(?:-(\d)(?!\d))?/.exec(model);
  return match ? Number(`${match[1]}.${match[2] ?? 0}`) : Number.POSITIVE_INFINITY;
}
