import Anthropic from "@anthropic-ai/sdk";
import { afterEach, describe, expect, it } from "vitest";
import { type ModelOptions, type PracticeModel, startModel } from "../practice/model.ts";
import { answer } from "../practice/rules.ts";
import { validate } from "../practice/validate.ts";

type Params = Anthropic.MessageCreateParamsNonStreaming;

interface ErrorBody {
  error?: { type: string; message: string };
  request_id?: string;
}

let model: PracticeModel;
afterEach(() => model.close());

/** A model and the real SDK as its client, without retries unless a test wants them. */
async function start(options?: ModelOptions, retries = 0): Promise<Anthropic> {
  model = await startModel(options);
  return new Anthropic({ apiKey: "key", baseURL: model.url, maxRetries: retries });
}

function ask(
  content: Anthropic.MessageParam["content"] = "hi",
  more: Partial<Params> = {},
): Params {
  const messages = [{ role: "user" as const, content }];
  return { model: "claude-sonnet-5-5", max_tokens: 1000, messages, ...more };
}

const text = (value: string) => ({ type: "text", text: value });
const call = (command: string) => ({ type: "tool_use", name: "bash", input: { command } });

/** The error that a promise rejects with. */
async function failing(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("this should have failed");
}

describe("streaming", () => {
  it("sends the events in the API's order", async () => {
    const client = await start();
    model.script({
      content: [
        { type: "thinking", thinking: "Hm, a directory." },
        text("Let me look at it."),
        call("ls -la"),
      ],
    });
    const types: string[] = [];
    for await (const event of await client.messages.create({ ...ask(), stream: true })) {
      if ("delta" in event && "type" in event.delta) types.push(event.delta.type);
      else types.push(event.type);
    }
    expect(types).toEqual([
      "message_start",
      "content_block_start",
      "thinking_delta",
      "thinking_delta",
      "signature_delta",
      "content_block_stop",
      "content_block_start",
      "text_delta",
      "text_delta",
      "content_block_stop",
      "content_block_start",
      "input_json_delta",
      "input_json_delta",
      "input_json_delta",
      "content_block_stop",
      "message_delta",
      "message_stop",
    ]);
  });

  it("names its events, and pings", async () => {
    await start();
    const response = await fetch(`${model.url}/v1/messages`, {
      method: "POST",
      headers: { "x-api-key": "key", "anthropic-version": "2026-10-21" },
      body: JSON.stringify({ ...ask(), stream: true }),
    });
    expect(response.headers.get("content-type")).toBe("text/event-stream");
    expect(response.headers.get("request-id")).toMatch(/^req_/);
    const events = (await response.text()).trim().split("\n\n");
    for (const event of events) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(event) ?? [];
      expect(JSON.parse(data ?? "").type).toBe(name);
    }
    expect(events[1]).toBe('event: ping\ndata: {"type":"ping"}');
  });

  it("gives the same message as a stream and as JSON", async () => {
    const client = await start();
    const scripted = { content: [text("Ich heiße 练习 🙂, really."), call("echo 你好")] };
    model.script(scripted, scripted);
    const streamed = await client.messages.stream(ask()).finalMessage();
    const whole = await client.messages.create(ask());
    expect(whole.stop_reason).toBe("tool_use");
    const plain = (message: Anthropic.Message) => ({
      stop: message.stop_reason,
      tokens: [message.usage.input_tokens, message.usage.output_tokens],
      content: message.content.map((block) => ("id" in block ? { ...block, id: "" } : block)),
    });
    expect(plain(streamed)).toEqual(plain(whole));
  });

  it("what the SDK gives back is accepted as history", async () => {
    const client = await start();
    model.script({ content: [{ type: "thinking", thinking: "Hm." }, text("One."), call("ls")] });
    const { content } = await client.messages.stream(ask()).finalMessage();
    const use = content.find((block) => block.type === "tool_use");
    const messages: Anthropic.MessageParam[] = [
      { role: "user", content: "hi" },
      { role: "assistant", content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: use?.id ?? "", content: "" }] },
    ];
    expect(validate(ask("", { messages }))).toBeUndefined();
    await client.messages.create(ask("", { messages }));
    expect(model.log.map((entry) => entry.problem)).toEqual([undefined, undefined]);
  });

  it("ids are unique in a conversation, also over two servers", async () => {
    const client = await start();
    model.script({ content: [call("a"), call("b")] }, { content: [call("c")] });
    const first = await client.messages.create(ask());
    const longer = ask("", {
      messages: [
        { role: "user", content: "hi" },
        { role: "assistant", content: "a" },
        { role: "user", content: "b" },
      ],
    });
    const second = await client.messages.create(longer);
    await model.close();
    const again = await start();
    model.script({ content: [call("d")] }, { content: [call("a"), call("b")] });
    const third = await again.messages.create(longer);
    const ids = [first, second, third].flatMap(({ content }) =>
      content.map((block) => ("id" in block ? block.id : "")),
    );
    expect(new Set(ids).size).toBe(4);
    for (const id of ids) expect(id).toMatch(/^toolu_[a-zA-Z0-9]+$/);
  });
});

describe("failures in the middle", () => {
  it("a stream that breaks off is no APIError", async () => {
    const client = await start();
    model.script({ content: [text("You will not read all of this.")], breakAfter: 4 });
    const stream = client.messages.stream(ask());
    let read = "";
    stream.on("text", (delta) => {
      read += delta;
    });
    const error = await failing(stream.finalMessage());
    expect(error).toBeInstanceOf(Anthropic.AnthropicError);
    expect(error).not.toBeInstanceOf(Anthropic.APIError);
    expect(read).toBe("You will not re");
    await model.idle();
    expect(model.log[0]).toMatchObject({ status: 200, error: "connection dropped" });
    expect(model.log[0]?.aborted).toBeUndefined();
    expect(model.log[0]?.stopReason).toBeUndefined();
  });

  it("an error event inside the stream has a type and no status", async () => {
    const client = await start();
    const errorAfter = { events: 4, type: "overloaded_error", message: "Overloaded" };
    model.script({ content: [text("You will not read all of this.")], errorAfter });
    const error = await failing(client.messages.stream(ask()).finalMessage());
    expect(error).toBeInstanceOf(Anthropic.APIError);
    expect(error).toMatchObject({ status: undefined, type: "overloaded_error" });
    expect(model.log[0]).toMatchObject({ status: 200, error: "overloaded_error: Overloaded" });
  });

  it("sees that the client hung up", async () => {
    const client = await start();
    model.script({ content: [text("You will not read all of this.")], holdAfter: 4 });
    const stream = client.messages.stream(ask());
    stream.once("text", () => stream.abort());
    expect(await failing(stream.finalMessage())).toBeInstanceOf(Anthropic.APIUserAbortError);
    await model.idle();
    expect(model.log[0]).toMatchObject({ status: 200, aborted: true });
    expect(model.log[0]?.stopReason).toBeUndefined();
  });

  it("a held stream goes on when it is released", async () => {
    const client = await start();
    model.script({ content: [text("Half and half.")], holdAfter: 4 });
    const stream = client.messages.stream(ask());
    stream.once("text", () => model.release());
    const message = await stream.finalMessage();
    expect(message.content).toMatchObject([text("Half and half.")]);
  });

  it("a held request is seen when it arrives, and answered when it is released", async () => {
    const client = await start();
    const { waiting, release } = model.hold();
    const reply = client.messages.create(ask("what is 2+3"));
    expect((await waiting).request.messages).toEqual(ask("what is 2+3").messages);
    expect(model.log[0]?.status).toBe(0);
    release();
    expect((await reply).content).toMatchObject([text("2+3 = 5")]);
  });

  it("a held request whose client hangs up is not answered", async () => {
    const client = await start();
    const { waiting } = model.hold();
    const stop = new AbortController();
    const reply = failing(client.messages.create(ask(), { signal: stop.signal }));
    await waiting;
    stop.abort();
    expect(await reply).toBeInstanceOf(Anthropic.APIUserAbortError);
    await model.idle();
    expect(model.log[0]).toMatchObject({ status: 0, aborted: true });
  });

  it("tool input cut by max_tokens is partial", async () => {
    const client = await start();
    const input = { path: "notes.txt", content: "a long text that does not arrive" };
    model.script({
      content: [{ type: "tool_use", name: "write_file", input }],
      cutToolInput: true,
    });
    const message = await client.messages.stream(ask()).finalMessage();
    expect(message.stop_reason).toBe("max_tokens");
    expect(message.content[0]).toMatchObject({ input: { path: "notes.txt" } });
    expect(message.content).not.toMatchObject([{ input }]);
  });
});

describe("refusals", () => {
  it("a wrong request gets the API's sentence, and the log has it", async () => {
    const client = await start();
    model.script({ content: [text("not used up by the refusal")] });
    const error = await failing(client.messages.create(ask("")));
    const sentence =
      "messages.0: all messages must have non-empty content except for the optional final assistant message";
    expect(error).toBeInstanceOf(Anthropic.BadRequestError);
    expect(error).toMatchObject({ status: 400, type: "invalid_request_error" });
    expect(String(error)).toContain(sentence);
    expect(model.log[0]).toMatchObject({ status: 400, problem: sentence });
    const next = await client.messages.create(ask());
    expect(next.content).toMatchObject([text("not used up by the refusal")]);
  });

  it("wants a key, the right one if there is a list", async () => {
    await start({ keys: ["one", "two"] });
    const statuses: unknown[] = [];
    const all: Record<string, string>[] = [
      {},
      { "x-api-key": "three" },
      { "x-api-key": "one" },
      { authorization: "Bearer two" },
    ];
    for (const headers of all) {
      const response = await fetch(`${model.url}/v1/messages`, {
        method: "POST",
        headers: { ...headers, "anthropic-version": "2026-10-21" },
        body: JSON.stringify(ask()),
      });
      const body = (await response.json()) as ErrorBody; // the API's form, if it is an error
      statuses.push([response.status, body.error?.type]);
      if (response.status === 401) expect(body.request_id).toBe(response.headers.get("request-id"));
    }
    const refused = [401, "authentication_error"];
    expect(statuses).toEqual([refused, refused, [200, undefined], [200, undefined]]);
    expect(model.log.map((entry) => entry.key)).toEqual(["", "three", "one", "two"]);
  });

  it("wants JSON, a version, and a known address", async () => {
    await start();
    const send = async (path: string, body: string, headers: Record<string, string>) => {
      const all = { "x-api-key": "key", ...headers };
      const response = await fetch(model.url + path, { method: "POST", body, headers: all });
      const { error } = (await response.json()) as ErrorBody; // the API's form
      return [response.status, error?.message];
    };
    const version = { "anthropic-version": "2026-10-21" };
    const json = JSON.stringify(ask());
    expect(await send("/v1/messages", "{", version)).toEqual([
      400,
      "The request body is not valid JSON",
    ]);
    expect(await send("/v1/messages", json, {})).toEqual([
      400,
      "anthropic-version: header is required",
    ]);
    expect(await send("/v1/other", json, version)).toEqual([404, "Not Found"]);
  });

  it("a prompt that is too long is a plain 400, by a count that knows wide characters", async () => {
    const client = await start({ contextTokens: 100 });
    await client.messages.create(ask("a".repeat(300)));
    const error = await failing(client.messages.create(ask("字".repeat(101))));
    expect(error).toMatchObject({ status: 400, type: "invalid_request_error" });
    expect(String(error)).toMatch(/prompt is too long: \d+ tokens > 100 maximum/);
    expect(model.log[1]?.problem).toBeUndefined();
  });

  it("a test without rules is told that its script ran out", async () => {
    const client = await start({ rules: false });
    expect(String(await failing(client.messages.create(ask())))).toContain("scripted no answer");
  });
});

describe("ordered failures", () => {
  it.each([
    ["400", Anthropic.BadRequestError, "invalid_request_error"],
    ["401", Anthropic.AuthenticationError, "authentication_error"],
    ["402", Anthropic.APIError, "billing_error"],
    ["429", Anthropic.RateLimitError, "rate_limit_error"],
    ["500", Anthropic.InternalServerError, "api_error"],
    ["529", Anthropic.APIError, "overloaded_error"],
    ["overflow", Anthropic.BadRequestError, "invalid_request_error"],
  ])("%s", async (kind, type, name) => {
    // The SDK would try again, were it not told that this is no use.
    const client = await start({}, 2);
    model.fail(kind, 2);
    for (const _ of [1, 2]) {
      const error = await failing(client.messages.create(ask()));
      expect(error).toBeInstanceOf(type);
      expect(error).toMatchObject({ type: name });
    }
    await client.messages.create(ask());
    expect(model.log.map((entry) => entry.status === 200)).toEqual([false, false, true]);
  });

  it("with noSdkRetry off, the SDK's own retries are seen", async () => {
    const client = await start({ noSdkRetry: false }, 1);
    const error = { status: 529, type: "overloaded_error", message: "Overloaded" };
    model.script({ error: { ...error, headers: { "retry-after-ms": "1" } } });
    await client.messages.create(ask());
    expect(model.log.map((entry) => entry.status)).toEqual([529, 200]);
  });

  it("drop and break lose the connection", async () => {
    const client = await start();
    model.fail("drop");
    const dropped = await failing(client.messages.create(ask()));
    expect(dropped).toBeInstanceOf(Anthropic.APIConnectionError);
    model.fail("break");
    const broken = await failing(client.messages.stream(ask()).finalMessage());
    expect(broken).toBeInstanceOf(Anthropic.AnthropicError);
    model.fail("stream-error");
    const error = await failing(client.messages.stream(ask()).finalMessage());
    expect(error).toMatchObject({ status: undefined, type: "overloaded_error" });
  });

  it("empty, max_tokens, refusal, window and pause are replies", async () => {
    const client = await start();
    const endings: unknown[] = [];
    for (const kind of ["empty", "max_tokens", "refusal", "window", "pause"]) {
      model.fail(kind);
      const { content, stop_reason } = await client.messages.stream(ask()).finalMessage();
      endings.push([stop_reason, content.map((block) => block.type)]);
    }
    expect(endings).toEqual([
      ["end_turn", []],
      ["max_tokens", ["text"]],
      ["refusal", []],
      ["model_context_window_exceeded", ["text"]],
      ["pause_turn", ["text", "server_tool_use"]],
    ]);
  });

  it("after a pause, the reply begins with the result that was missing", async () => {
    const client = await start();
    model.fail("pause");
    const paused = await client.messages.create(ask());
    const messages = [...ask().messages, { role: "assistant" as const, content: paused.content }];
    const resumed = await client.messages.create(ask("", { messages }));
    expect(resumed.content.map((block) => block.type)).toEqual(["web_search_tool_result", "text"]);
    messages.push({ role: "assistant", content: resumed.content });
    const next = [...messages, { role: "user" as const, content: "thanks" }];
    expect(validate(ask("", { messages: next }))).toBeUndefined();
  });

  it("uses up no scripted answer, and an unknown kind is said at once", async () => {
    const client = await start();
    model.script({ content: [text("kept")] });
    model.fail("529");
    await failing(client.messages.create(ask()));
    expect((await client.messages.create(ask())).content).toMatchObject([text("kept")]);
    expect(() => model.fail("418")).toThrow(/no failure "418"; there are: 400, 401/);
  });
});

describe("knobs over HTTP", () => {
  it("fail, slow and log; not for a page in a browser", async () => {
    const client = await start();
    const knob = (path: string, body?: object, headers = {}) =>
      fetch(`${model.url}/_practice/${path}`, {
        method: body ? "POST" : "GET",
        body: JSON.stringify(body),
        headers,
      });
    await knob("fail", { kind: "529", times: 1 });
    await knob("slow", { ms: 0 });
    await failing(client.messages.create(ask()));
    const log = await (await knob("log")).json();
    expect(log).toMatchObject([{ status: 529, model: "claude-sonnet-5-5" }]);
    expect((await knob("fail", { kind: "x" })).status).toBe(400);
    expect((await knob("log", undefined, { origin: "https://a.b" })).status).toBe(403);
    expect((await knob("nothing", {})).status).toBe(404);
  });
});

describe("what the model says", () => {
  const parameters = (...names: string[]) => ({
    type: "object" as const,
    properties: Object.fromEntries(names.map((name) => [name, { type: "string" }])),
  });
  const tool = (name: string, ...names: string[]) => ({ name, input_schema: parameters(...names) });
  const tools = [
    tool("bash", "command"),
    tool("read_file", "path"),
    tool("write_file", "file_path", "content"),
    tool("edit_file", "path", "old_string", "new_text"),
  ];
  const later = [
    tool("list_directory", "path"),
    tool("get_current_time"),
    tool("memory_write", "content"),
  ];
  const all = [...tools, ...later];

  /** The words, and the calls as [name, input]. */
  function say(line: string, more: Partial<Params> = {}) {
    const { content = [] } = answer(ask(line, more));
    const words = content.flatMap((block) => (block.type === "text" ? [String(block.text)] : []));
    const calls = content.flatMap((block) =>
      block.type === "tool_use" && "name" in block ? [[block.name, block.input]] : [],
    );
    return { words: words.join(" "), calls };
  }

  it.each([
    ["hello", /stand-in/],
    ["Hello, world!", /stand-in/],
    ["Are you a real model?", /no real language model/],
    ["who are you", /no real language model/],
    ["what is 2+3", /^2\+3 = 5$/],
    ["What is 2 plus 3 times 4?", /= 14$/],
    ["my name is Ada", /^Nice to meet you, Ada\.$/],
    ["What's my name?", /don't know your name/],
    ["count to 5", /^1 2 3 4 5$/],
    ["what is an agent loop?", /asks the model/],
    ["What is the capital of France?", /Paris/],
    ["say good night", /^good night$/],
    ["think about loops", /thought about loops/],
    ["colourless green ideas", /practice stand-in/],
    ["Reply HEARTBEAT_OK if nothing needs attention.", /^HEARTBEAT_OK$/],
    ["read SOUL.md", /no tools here/],
    ["what time is it?", /no clock/],
    ["remember that I like tea", /You like tea/],
  ])("without tools: %s", (line, words) => {
    const said = say(line);
    expect(said.words).toMatch(words);
    expect(said.calls).toEqual([]);
  });

  it.each<[string, unknown[]]>([
    ["read SOUL.md", [["read_file", { path: "SOUL.md" }]]],
    ["Could you please show me what is in SOUL.md?", [["read_file", { path: "SOUL.md" }]]],
    [
      "read SOUL.md and read USER.md",
      [
        ["read_file", { path: "SOUL.md" }],
        ["read_file", { path: "USER.md" }],
      ],
    ],
    [
      "read SOUL.md, USER.md and TOOLS.md",
      ["SOUL.md", "USER.md", "TOOLS.md"].map((path) => ["read_file", { path }]),
    ],
    ["read ../../etc/passwd", [["read_file", { path: "../../etc/passwd" }]]],
    ["run ls", [["bash", { command: "ls" }]]],
    ["run `echo a and run b`", [["bash", { command: "echo a and run b" }]]],
    ["use bash to run sleep 60", [["bash", { command: "sleep 60" }]]],
    ["write hello to notes.txt", [["write_file", { file_path: "notes.txt", content: "hello" }]]],
    [
      "create a file called notes.txt saying 'hello, you'",
      [["write_file", { file_path: "notes.txt", content: "hello, you" }]],
    ],
    [
      "replace a with b in notes.txt",
      [["edit_file", { path: "notes.txt", old_string: "a", new_text: "b" }]],
    ],
    ["list the files in the skills folder", [["list_directory", { path: "skills" }]]],
    ["What files are in the current directory?", [["list_directory", { path: "." }]]],
    ["what time is it?", [["get_current_time", {}]]],
    ["remember that I like tea", [["memory_write", { content: "I like tea" }]]],
  ])("with tools: %s", (line, calls) => {
    expect(say(line, { tools: all }).calls).toEqual(calls);
  });

  it("looks for another tool, or says what it has", () => {
    expect(say("list the files", { tools }).calls).toEqual([["bash", { command: "ls" }]]);
    expect(say("what time is it?", { tools }).calls).toEqual([["bash", { command: "date" }]]);
    const said = say("run ls", { tools: later });
    expect(said.calls).toEqual([]);
    expect(said.words).toMatch(
      /no tool for that here; I have list_directory, get_current_time and/,
    );
  });

  it("remembers what is in the messages, and only that", () => {
    const told = {
      role: "user" as const,
      content: "I'm Bob. my cat is called Tom and I live in Rome",
    };
    const messages = (line: string) => [told, { role: "user" as const, content: line }];
    expect(say("", { messages: messages("What is my name?") }).words).toBe("Your name is Bob.");
    expect(say("", { messages: messages("what is my cat called?") }).words).toBe(
      "Your cat is Tom.",
    );
    expect(say("", { messages: messages("where do I live?") }).words).toBe("You live in Rome.");
    expect(say("", { messages: messages("what is my job?") }).words).toMatch(/don't know/);
  });

  it("only the last text block counts", () => {
    const content = [text("read SOUL.md"), text("what is 2+3")] as Anthropic.TextBlockParam[];
    expect(answer(ask(content, { tools }))).toEqual({ content: [text("2+3 = 5")] });
  });

  /** A turn as a section has it: calls are answered until the model is done. */
  function play(line: string, results: Record<string, [string, boolean?]>, limit = 5) {
    const messages: Anthropic.MessageParam[] = [{ role: "user", content: line }];
    const rounds: unknown[][] = [];
    while (rounds.length < limit) {
      const scripted = answer(ask("", { messages, tools: all }));
      const content = (scripted.content ?? []).map((block, index) => {
        const id = `id_${rounds.length}_${index}`;
        return block.type === "tool_use" ? { ...block, id } : block;
      }) as (Anthropic.TextBlockParam | Anthropic.ToolUseBlockParam)[]; // nothing else is scripted
      const uses = content.filter((block) => block.type === "tool_use");
      if (uses.length === 0) return { rounds, end: say("", { messages, tools: all }).words };
      rounds.push(uses.map((block) => block.name));
      messages.push({ role: "assistant", content });
      const answers = uses.map((block) => {
        const [result = "ok", is_error = false] = results[block.name] ?? [];
        return { type: "tool_result" as const, tool_use_id: block.id, content: result, is_error };
      });
      messages.push({ role: "user", content: answers });
      expect(validate(ask("", { messages, tools: all }))).toBeUndefined();
    }
    return { rounds, end: "" };
  }

  it("reports what the tools said", () => {
    const results: Record<string, [string, boolean?]> = {
      read_file: ["no such file", true],
      bash: ["(no output)"],
      list_directory: ["a.txt\nb.txt"],
    };
    const { rounds, end } = play("read x.md and run `true` and list the files", results);
    expect(rounds).toEqual([["read_file", "bash", "list_directory"]]);
    expect(end).toBe(
      "That failed. read_file said: no such file\n\n`true` ran and printed nothing.\n\n" +
        "The workspace has:\n\na.txt\nb.txt",
    );
  });

  it("takes one step after the other when one needs the other", () => {
    expect(play("read SOUL.md and then run ls", {}).rounds).toEqual([["read_file"], ["bash"]]);
    expect(play("create a.js that prints hi and run it", {}).rounds).toEqual([
      ["write_file"],
      ["bash"],
    ]);
    expect(play("run `date` again and again", {}).rounds).toHaveLength(5);
  });

  it("summarises: names, files, the last requests; and knows them from the summary", () => {
    const messages = ["my name is Ada", "I live in Rome", "read SOUL.md", "count to 3"].map(
      (content) => ({ role: "user" as const, content }),
    );
    const wish = { role: "user" as const, content: "Summarise the conversation so far." };
    const summary = say("", { messages: [...messages, wish] }).words;
    expect(summary).toContain("The user's name is Ada.");
    expect(summary).toContain("Files mentioned: SOUL.md.");
    expect(summary).toContain("count to 3");
    const after = (line: string) => [
      { role: "user" as const, content: summary },
      { role: "user" as const, content: line },
    ];
    expect(say("", { messages: after("what is my name?") }).words).toBe("Your name is Ada.");
    expect(say("", { messages: after("where do I live?") }).words).toBe("You live in Rome.");
  });

  it("summarises a conversation that is written out in the request", () => {
    const lines = [
      "user: my name is Ada",
      "assistant: hello",
      "user: read notes.txt",
      "assistant: ok",
    ];
    const filler = Array.from({ length: 400 }, () => "assistant: and so on");
    const line = ["Summarise this conversation:", ...lines, ...filler].join("\n");
    expect(say(line, { tools: all })).toEqual({
      calls: [],
      words: expect.stringMatching(/name is Ada\..*notes\.txt.*my name is Ada; read notes\.txt/),
    });
  });

  it("a long story is long, unless max_tokens cuts it", () => {
    const story = say("tell me a long story").words;
    expect(story.split(" ").length).toBeGreaterThan(250);
    const cut = answer(ask("tell me a long story", { max_tokens: 10 }));
    expect(cut.stopReason).toBe("max_tokens");
    expect(cut.content).toEqual([text(story.slice(0, 40))]);
  });
});
