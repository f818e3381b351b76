import { describe, expect, it } from "vitest";
import { validate } from "../practice/validate.ts";

type Messages = Record<string, unknown>[];

/** A right request that each case changes in one place. */
function request(changes: Record<string, unknown> = {}): Record<string, unknown> {
  const messages = [{ role: "user", content: "hi" }];
  return { model: "claude-sonnet-5-5", max_tokens: 100, messages, ...changes };
}

const without = (field: string) => {
  const { [field]: _, ...rest } = request();
  return rest;
};
const messages = (...list: Messages) => request({ messages: list });
const user = (content: unknown) => ({ role: "user", content });
const assistant = (content: unknown) => ({ role: "assistant", content });
const text = (value: string) => ({ type: "text", text: value });
const use = (id: string, more = {}) => ({ type: "tool_use", id, name: "bash", input: {}, ...more });
const result = (id: string, more = {}) => ({
  type: "tool_result",
  tool_use_id: id,
  content: "ok",
  ...more,
});
const serverUse = (id: string) => ({ type: "server_tool_use", id, name: "web_search", input: {} });
const serverResult = (id: string) => ({
  type: "web_search_tool_result",
  tool_use_id: id,
  content: [],
});
const tool = (changes = {}) => ({ name: "bash", input_schema: { type: "object" }, ...changes });
const mark = { cache_control: { type: "ephemeral" } };

const open = (at: number, ids: string) =>
  `messages.${at}: \`tool_use\` ids were found without \`tool_result\` blocks immediately after: ` +
  `${ids}. Each \`tool_use\` block must have a corresponding \`tool_result\` block in the next message.`;
const unexpected = (at: string, id: string) =>
  `${at}: unexpected \`tool_use_id\` found in \`tool_result\` blocks: ${id}. Each \`tool_result\` ` +
  "block must have a corresponding `tool_use` block in the previous message.";
const PREFILL =
  "This model does not support assistant message prefill. The conversation must end with a user message.";
const EXTRA = "Extra inputs are not permitted";
const NO_CONTENT =
  "all messages must have non-empty content except for the optional final assistant message";

describe("what the API refuses: the request", () => {
  it.each<[string, unknown, string]>([
    ["not an object", [], "Input should be a valid dictionary"],
    ["no model", without("model"), "model: Field required"],
    ["an empty model", request({ model: "" }), "model: String should have at least 1 character"],
    ["a model that is no string", request({ model: 5 }), "model: Input should be a valid string"],
    ["no max_tokens", without("max_tokens"), "max_tokens: Field required"],
    [
      "max_tokens below 0",
      request({ max_tokens: -1 }),
      "max_tokens: Input should be greater than or equal to 0",
    ],
    [
      "max_tokens not whole",
      request({ max_tokens: 1.5 }),
      "max_tokens: Input should be a valid integer",
    ],
    [
      "max_tokens as text",
      request({ max_tokens: "9" }),
      "max_tokens: Input should be a valid integer",
    ],
    ["no messages", without("messages"), "messages: Field required"],
    ["messages not a list", request({ messages: {} }), "messages: Input should be a valid list"],
    ["no message in messages", messages(), "messages: at least one message is required"],
    ["an unknown field", request({ foo: 1 }), `foo: ${EXTRA}`],
    ["temperature, gone in this API version", request({ temperature: 1 }), `temperature: ${EXTRA}`],
    ["stream not a boolean", request({ stream: "yes" }), "stream: Input should be a valid boolean"],
    [
      "a blank stop sequence",
      request({ stop_sequences: [" "] }),
      "stop_sequences: each stop sequence must contain non-whitespace",
    ],
    [
      "system of a wrong type",
      request({ system: 5 }),
      "system: Input should be a valid string or a valid list",
    ],
    [
      "an empty block in system",
      request({ system: [text("")] }),
      "system: text content blocks must be non-empty",
    ],
    [
      "another block in system",
      request({ system: [result("a")] }),
      "system.0.type: Input should be 'text'",
    ],
    [
      "an unknown field in system",
      request({ system: [{ ...text("x"), id: 1 }] }),
      `system.0.id: ${EXTRA}`,
    ],
    [
      "five cache marks",
      request({
        system: [{ ...text("a"), ...mark }],
        tools: [tool(mark)],
        messages: [1, 2, 3].map((n) => user([{ ...text(`${n}`), ...mark }])),
      }),
      "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ],
  ])("%s", (_name, wrong, sentence) => {
    expect(validate(wrong)).toBe(sentence);
  });
});

describe("what the API refuses: tools", () => {
  const tools = (...list: unknown[]) => request({ tools: list });
  const pattern = "^[a-zA-Z0-9_-]{1,128}$";
  it.each<[string, unknown, string]>([
    ["tools not a list", request({ tools: {} }), "tools: Input should be a valid list"],
    ["two of one name", tools(tool(), tool()), "tools: Tool names must be unique."],
    ["no name", tools(tool({ name: undefined })), "tools.0.custom.name: Field required"],
    [
      "a name with a dot",
      tools(tool({ name: "a.b" })),
      `tools.0.custom.name: String should match pattern '${pattern}'`,
    ],
    [
      "no schema",
      tools(tool({ input_schema: undefined })),
      "tools.0.custom.input_schema: Field required",
    ],
    [
      "a schema without type",
      tools(tool({ input_schema: {} })),
      "tools.0.custom.input_schema.type: Field required",
    ],
    [
      "a schema of another type",
      tools(tool({ input_schema: { type: "array" } })),
      "tools.0.custom.input_schema.type: Input should be 'object'",
    ],
    ["an unknown field", tools(tool({ parameters: {} })), `tools.0.custom.parameters: ${EXTRA}`],
    [
      "a choice at the top of the schema",
      tools(tool({ input_schema: { type: "object", anyOf: [] } })),
      "tools.0.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level",
    ],
    [
      "tool_choice with an unknown tool",
      request({ tools: [tool()], tool_choice: { type: "tool", name: "x" } }),
      "Tool 'x' not found in provided tools",
    ],
    [
      "tool_choice without tools",
      request({ tool_choice: { type: "any" } }),
      "tool_choice may only be specified while providing tools",
    ],
    [
      "tool_choice of an unknown kind",
      request({ tools: [tool()], tool_choice: { type: "x" } }),
      "tool_choice: Input tag 'x' found using 'type' does not match any of the expected tags: 'auto', 'any', 'tool', 'none'",
    ],
  ])("%s", (_name, wrong, sentence) => {
    expect(validate(wrong)).toBe(sentence);
  });
});

describe("what the API refuses: messages and blocks", () => {
  it.each<[string, unknown, string]>([
    [
      "a message that is no object",
      request({ messages: ["hi"] }),
      "messages.0: Input should be a valid dictionary",
    ],
    ["no role", messages({ content: "hi" }), "messages.0.role: Field required"],
    [
      "an unknown role",
      messages({ role: "tool", content: "hi" }),
      "messages.0.role: Input should be 'user', 'assistant' or 'system'",
    ],
    ["no content", messages({ role: "user" }), "messages.0.content: Field required"],
    [
      "content of a wrong type",
      messages(user(5)),
      "messages.0.content: Input should be a valid list",
    ],
    [
      "a reply sent back with its id",
      messages({ ...user("hi"), id: "msg_1" }),
      `messages.0.id: ${EXTRA}`,
    ],
    ["an empty string", messages(user("")), `messages.0: ${NO_CONTENT}`],
    ["an empty list", messages(user([])), `messages.0: ${NO_CONTENT}`],
    [
      "an empty reply in the middle",
      messages(user("a"), assistant([]), user("b")),
      `messages.1: ${NO_CONTENT}`,
    ],
    [
      "an empty text block",
      messages(user([text("a"), text("")])),
      "messages: text content blocks must be non-empty",
    ],
    [
      "only blanks",
      messages(user(" \n")),
      "messages: text content blocks must contain non-whitespace text",
    ],
    [
      "only blank blocks",
      messages(user([text(" "), text("\t")])),
      "messages: text content blocks must contain non-whitespace text",
    ],
    [
      "a block without type",
      messages(user([{ text: "a" }])),
      "messages.0.content.0.type: Field required",
    ],
    [
      "text that is no string",
      messages(user([{ type: "text", text: 5 }])),
      "messages.0.content.0.text.text: Input should be a valid string",
    ],
    [
      "an unknown field in a block",
      messages(user([{ ...text("a"), parsed: null }])),
      `messages.0.content.0.text.parsed: ${EXTRA}`,
    ],
    [
      "a cache mark on an empty text",
      messages(user([{ ...text(""), ...mark }])),
      "messages.0.content.0.text: cache_control cannot be set for empty text blocks",
    ],
    [
      "thinking without signature",
      messages(user("a"), assistant([{ type: "thinking", thinking: "hm" }, text("b")]), user("c")),
      "messages.1.content.0.thinking.signature: Field required",
    ],
    [
      "a reply that ends with thinking",
      messages(
        user("a"),
        assistant([text("b"), { type: "thinking", thinking: "hm", signature: "s" }]),
        user("c"),
      ),
      "messages.1: The final block in an assistant message cannot be `thinking`.",
    ],
    [
      "thinking in a user's message",
      messages(user([{ type: "thinking", thinking: "hm", signature: "s" }, text("a")])),
      "messages.0.content.0: `thinking` blocks can only be in `assistant` messages",
    ],
    ["a reply at the end", messages(user("a"), assistant("b")), PREFILL],
    ["an empty reply at the end", messages(user("a"), assistant([])), PREFILL],
    [
      "blanks after a prefill, with a model that allows prefill",
      { ...messages(user("a"), assistant("b ")), model: "claude-haiku-4-5" },
      "messages: final assistant content cannot end with trailing whitespace",
    ],
    [
      "a system message with an older model",
      { ...messages(user("a"), { role: "system", content: "b" }), model: "claude-opus-4-6" },
      "role 'system' is not supported on this model",
    ],
    [
      "a system message at the start",
      messages({ role: "system", content: "b" }, user("a")),
      "messages.0: a `system` message must follow a `user` message",
    ],
  ])("%s", (_name, wrong, sentence) => {
    expect(validate(wrong)).toBe(sentence);
  });

  it("an unknown kind of block", () => {
    const sentence = validate(messages(user([{ type: "foo" }])));
    expect(sentence).toMatch(
      /^messages\.0\.content\.0: Input tag 'foo' found using 'type' does not/,
    );
  });
});

describe("what the API refuses: calls and their results", () => {
  const ID = "String should match pattern '^[a-zA-Z0-9_-]+$'";
  it.each<[string, unknown, string]>([
    ["a call that is never answered", messages(user("a"), assistant([use("x")])), open(1, "x")],
    [
      "a call answered with words",
      messages(user("a"), assistant([use("x")]), user("b")),
      open(1, "x"),
    ],
    [
      "one of two calls not answered",
      messages(user("a"), assistant([use("x"), use("y")]), user([result("x")])),
      open(1, "y"),
    ],
    [
      "two calls not answered",
      messages(user("a"), assistant([use("x"), use("y")]), user("b")),
      open(1, "x, y"),
    ],
    [
      "a result after a text",
      messages(user("a"), assistant([use("x")]), user([text("b"), result("x")])),
      open(1, "x"),
    ],
    [
      "a text between two results",
      messages(
        user("a"),
        assistant([use("x"), use("y")]),
        user([result("x"), text("b"), result("y")]),
      ),
      open(1, "y"),
    ],
    [
      "a text in a message before the result's",
      messages(user("a"), assistant([use("x")]), user("b"), user([result("x")])),
      open(1, "x"),
    ],
    [
      "a call answered one message too late",
      messages(user("a"), assistant([use("x")]), user("b"), assistant("c"), user([result("x")])),
      open(1, "x"),
    ],
    [
      "a result without a call",
      messages(user([result("x")])),
      unexpected("messages.0.content.0", "x"),
    ],
    [
      "a result after a reply without calls",
      messages(user("a"), assistant("b"), user([result("x")])),
      unexpected("messages.2.content.0", "x"),
    ],
    [
      "a result beside the right one",
      messages(user("a"), assistant([use("x")]), user([result("x"), result("z")])),
      unexpected("messages.2.content.1", "z"),
    ],
    [
      "the same result again, later",
      messages(
        user("a"),
        assistant([use("x")]),
        user([result("x")]),
        assistant("b"),
        user([result("x")]),
      ),
      unexpected("messages.4.content.0", "x"),
    ],
    [
      "two results for one call",
      messages(user("a"), assistant([use("x")]), user([result("x"), result("x")])),
      "messages.2.content.1: each tool_use must have a single result. Found multiple `tool_result` blocks with id: x",
    ],
    [
      "two calls with one id",
      messages(user("a"), assistant([use("x"), use("x")]), user([result("x")])),
      "messages.1.content.1: `tool_use` ids must be unique",
    ],
    [
      "an id used again later",
      messages(
        user("a"),
        assistant([use("x")]),
        user([result("x")]),
        assistant([use("x")]),
        user([result("x")]),
      ),
      "messages.3.content.0: `tool_use` ids must be unique",
    ],
    [
      "a call in a user's message",
      messages(user([use("x")])),
      "messages.0.content.0: `tool_use` blocks can only be in `assistant` messages",
    ],
    [
      "a result in a reply",
      messages(user("a"), assistant([result("x")]), user("b")),
      "messages.1.content.0: `tool_result` blocks can only be in `user` messages",
    ],
    [
      "bad characters in a call's id",
      messages(user("a"), assistant([use("a b")]), user([result("a b")])),
      `messages.1.content.0.tool_use.id: ${ID}`,
    ],
    [
      "bad characters in a result's id",
      messages(user("a"), assistant([use("x")]), user([result("a.b")])),
      `messages.2.content.0.tool_result.tool_use_id: ${ID}`,
    ],
    [
      "a call without id",
      messages(user("a"), assistant([use("x", { id: undefined })])),
      "messages.1.content.0.tool_use.id: Field required",
    ],
    [
      "a call without input",
      messages(user("a"), assistant([use("x", { input: undefined })])),
      "messages.1.content.0.tool_use.input: Field required",
    ],
    [
      "input that is no object",
      messages(user("a"), assistant([use("x", { input: "{}" })]), user([result("x")])),
      "messages.1.content.0.tool_use.input: Input should be a valid dictionary",
    ],
    [
      "a result of a wrong type",
      messages(user("a"), assistant([use("x")]), user([result("x", { content: 5 })])),
      "messages.2.content.0.tool_result.content: Input should be a valid string or a valid list",
    ],
    [
      "an error without words",
      messages(
        user("a"),
        assistant([use("x")]),
        user([result("x", { content: "", is_error: true })]),
      ),
      "messages.2.content.0.tool_result: content cannot be empty if `is_error` is true",
    ],
    [
      "an empty text in a result",
      messages(user("a"), assistant([use("x")]), user([result("x", { content: [text("")] })])),
      "messages: text content blocks must be non-empty",
    ],
    [
      "an unknown field in a result's block",
      messages(
        user("a"),
        assistant([use("x")]),
        user([result("x", { content: [{ ...text("b"), id: 1 }] })]),
      ),
      `messages.2.content.0.tool_result.content.0.text.id: ${EXTRA}`,
    ],
    [
      "a server's call without its result",
      messages(user("a"), assistant([serverUse("s")]), user("b")),
      "messages.1: `web_search` tool use with id `s` was found without a corresponding `web_search_tool_result` block",
    ],
    [
      "a server's result without its call",
      messages(user("a"), assistant([serverResult("s"), text("b")]), user("c")),
      "messages.1.content.0: unexpected `tool_use_id` found in `web_search_tool_result` blocks: s. " +
        "Each `web_search_tool_result` block must have a corresponding `server_tool_use` block before it.",
    ],
  ])("%s", (_name, wrong, sentence) => {
    expect(validate(wrong)).toBe(sentence);
  });
});

describe("what the API accepts", () => {
  const thinking = { type: "thinking", thinking: "hm", signature: "s" };
  it.each<[string, unknown]>([
    ["the least there can be", request()],
    ["max_tokens 0, which fills the cache", request({ max_tokens: 0 })],
    ["several messages of the user", messages(user("a"), user("b"), user([text("c")]))],
    ["several replies", messages(user("a"), assistant("b"), assistant("c"), user("d"))],
    ["a reply first", messages(assistant("a"), user("b"))],
    [
      "a result, then text",
      messages(user("a"), assistant([use("x")]), user([result("x"), text("b")])),
    ],
    [
      "a result, then text, in two messages",
      messages(user("a"), assistant([use("x")]), user([result("x")]), user("b")),
    ],
    [
      "parallel calls, answered in another order",
      messages(user("a"), assistant([use("x"), use("y")]), user([result("y"), result("x")])),
    ],
    [
      "parallel calls, answered in two messages",
      messages(
        user("a"),
        assistant([use("x"), use("y")]),
        user([result("x")]),
        user([result("y")]),
      ),
    ],
    [
      "calls in two replies in a row",
      messages(
        user("a"),
        assistant([use("x")]),
        assistant([use("y")]),
        user([result("x"), result("y")]),
      ),
    ],
    [
      "text after a call",
      messages(user("a"), assistant([use("x"), text("b")]), user([result("x")])),
    ],
    [
      "a call of a tool that is not offered",
      messages(user("a"), assistant([use("x", { name: "gone" })]), user([result("x")])),
    ],
    [
      "a result without content",
      messages(user("a"), assistant([use("x")]), user([{ type: "tool_result", tool_use_id: "x" }])),
    ],
    [
      "an empty result",
      messages(user("a"), assistant([use("x")]), user([result("x", { content: "" })])),
    ],
    [
      "a failed result",
      messages(user("a"), assistant([use("x")]), user([result("x", { is_error: true })])),
    ],
    [
      "thinking before a call",
      messages(user("a"), assistant([thinking, text("b"), use("x")]), user([result("x")])),
    ],
    [
      "redacted thinking",
      messages(
        user("a"),
        assistant([{ type: "redacted_thinking", data: "d" }, text("b")]),
        user("c"),
      ),
    ],
    [
      "fields of the API's own replies",
      messages(
        user("a"),
        assistant([{ ...text("b"), citations: null }, use("x", { caller: { type: "direct" } })]),
        user([result("x")]),
      ),
    ],
    ["a paused reply at the end", messages(user("a"), assistant([text("b"), serverUse("s")]))],
    [
      "a paused reply and what came after it",
      messages(
        user("a"),
        assistant([serverUse("s")]),
        assistant([serverResult("s"), text("b")]),
        user("c"),
      ),
    ],
    [
      "a server's call beside one of ours",
      messages(
        user("a"),
        assistant([serverUse("s"), use("x")]),
        user([result("x")]),
        assistant([serverResult("s"), text("b")]),
        user("c"),
      ),
    ],
    ["a blank block beside a real one", messages(user([text(" "), text("a")]))],
    ["system as text", request({ system: "You are Luna." })],
    ["an empty system text", request({ system: "" })],
    [
      "four cache marks",
      request({
        system: [{ ...text("a"), ...mark }],
        tools: [tool(mark)],
        messages: [user([{ ...text("b"), ...mark }]), user([{ ...text("c"), ...mark }])],
      }),
    ],
    [
      "a word cache_control in a tool's input",
      messages(
        user("a"),
        assistant([use("x", { input: { cache_control: {} } })]),
        user([result("x")]),
      ),
    ],
    [
      "tools and a choice",
      request({ tools: [tool()], tool_choice: { type: "tool", name: "bash" } }),
    ],
    [
      "a tool of the API",
      request({ tools: [{ type: "web_search_20260318", name: "web_search" }] }),
    ],
    [
      "a system message in the middle",
      messages(user("a"), { role: "system", content: "b" }, assistant("c"), user("d")),
    ],
    [
      "a prefill, with a model that allows it",
      { ...messages(user("a"), assistant("b")), model: "claude-haiku-4-5" },
    ],
    [
      "an image",
      messages(user([{ type: "image", source: { type: "url", url: "https://a.b/c.png" } }])),
    ],
  ])("%s", (_name, right) => {
    expect(validate(right)).toBeUndefined();
  });
});
