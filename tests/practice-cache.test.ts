import Anthropic from "@anthropic-ai/sdk";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type PracticeModel, startModel } from "../practice/model.ts";
import { minimumFor } from "../practice/prompt-cache.ts";
import { countRequest } from "../practice/reply.ts";

type Params = Anthropic.MessageCreateParamsNonStreaming;
type Block = Anthropic.ContentBlockParam;

const MINUTE = 60_000;
const MARK = { cache_control: { type: "ephemeral" as const } };
const HOUR = { cache_control: { type: "ephemeral" as const, ttl: "1h" as const } };

let model: PracticeModel;
let clock: number;

beforeEach(async () => {
  clock = 1_000_000;
  model = await startModel({ now: () => clock });
});
afterEach(() => model.close());

/** About so many tokens that say which text they are. */
const long = (name: string, tokens = 1000) => name.padEnd(tokens * 4, ` ${name}`);
const text = (value: string, more = {}) => ({ type: "text" as const, text: value, ...more });
const tool = (name: string, more = {}) => ({
  name,
  description: long(name),
  input_schema: { type: "object" as const },
  ...more,
});
const user = (...content: Block[]) => ({ role: "user" as const, content });
const assistant = (...content: Block[]) => ({ role: "assistant" as const, content });
const call = (id: string) => ({ type: "tool_use" as const, id, name: "a", input: {} });
const result = (id: string, more = {}) => ({
  type: "tool_result" as const,
  tool_use_id: id,
  content: "ok",
  ...more,
});

function request(more: Partial<Params> = {}): Params {
  const messages = [user(text("hi"))];
  return { model: "claude-sonnet-5-5", max_tokens: 100, messages, ...more };
}

const withSystem = (name: string, more: Partial<Params> = {}) =>
  request({ system: [text(long(name), MARK)], ...more });

const clientOf = (apiKey: string) => new Anthropic({ apiKey, baseURL: model.url, maxRetries: 0 });

/** Sends it; gives the three counts, which always add up to the whole prompt. */
async function send(params: Params, key = "key") {
  const { usage } = await clientOf(key).messages.create(params);
  const read = usage.cache_read_input_tokens ?? 0;
  const written = usage.cache_creation_input_tokens ?? 0;
  const { ephemeral_5m_input_tokens: short = 0, ephemeral_1h_input_tokens: hour = 0 } =
    usage.cache_creation ?? {};
  expect(short + hour).toBe(written);
  expect(usage.input_tokens + read + written).toBe(countRequest(params));
  return { read, written, fresh: usage.input_tokens, hour };
}

/** The sentence with which the model refuses it. */
async function refusal(params: unknown): Promise<string> {
  const body = { ...(params as Params) }; // wrong on purpose: the server is asked, not the types
  const error = await clientOf("key")
    .messages.create(body)
    .catch((thrown: unknown) => thrown);
  if (!(error instanceof Anthropic.BadRequestError)) throw new Error("this should be a 400");
  expect(error.type).toBe("invalid_request_error");
  const { error: inner } = error.error as { error: { message: string } }; // the API's error body
  return inner.message;
}

describe("hit and miss", () => {
  it("writes at the first request and reads at the second", async () => {
    const first = await send(withSystem("a"));
    expect(first.read).toBe(0);
    expect(first.written).toBeGreaterThan(1000);
    expect(first.written).toBeLessThan(1020);
    expect(first.fresh).toBeLessThan(20);
    const second = await send(withSystem("a"));
    expect(second).toEqual({ ...first, read: first.written, written: 0 });
  });

  it("without a mark nothing is written, and nothing is read", async () => {
    const plain = request({ system: [text(long("a"))] });
    expect(await send(plain)).toMatchObject({ read: 0, written: 0 });
    await send(withSystem("a"));
    expect(await send(plain)).toMatchObject({ read: 0, written: 0 });
  });

  it("a changed byte at the beginning of the system prompt misses everything", async () => {
    const conversation = { messages: [user(text(long("x"), MARK))] };
    const first = await send(withSystem("a", conversation));
    const changed = [text(`A${long("a").slice(1)}`, MARK)];
    const second = await send(request({ system: changed, ...conversation }));
    expect(second).toEqual(first);
  });

  it("a changed last message reads all before it", async () => {
    const ask = (last: string) =>
      withSystem("a", { messages: [user(text(long("x"), MARK)), user(text(last, MARK))] });
    const first = await send(ask("one"));
    const second = await send(ask("two"));
    expect(second.read).toBeGreaterThan(2000);
    expect(second.written).toBeLessThan(20);
    expect(second.read + second.written).toBe(first.written);
  });

  it("a changed system prompt still reads the tools", async () => {
    const ask = (name: string) => withSystem(name, { tools: [tool("a"), tool("b", MARK)] });
    const first = await send(ask("x"));
    const second = await send(ask("y"));
    expect(second.read).toBeGreaterThan(2000);
    expect(second.written).toBeGreaterThan(1000);
    expect(second.read + second.written).toBe(first.written);
  });

  it.each([
    ["changed", [tool("c"), tool("b")]],
    ["in another order", [tool("b"), tool("a")]],
    ["one more, at the end", [tool("a"), tool("b"), tool("c")]],
  ])("tools: %s, and everything misses", async (_name, tools) => {
    const messages = [user(text(long("x"), MARK))];
    await send(withSystem("a", { messages, tools: [tool("a"), tool("b")] }));
    const second = await send(withSystem("a", { messages, tools }));
    expect(second.read).toBe(0);
    expect(second.written).toBeGreaterThan(3900);
  });

  it("a conversation reads all of the request before and writes only what is new", async () => {
    const messages: Anthropic.MessageParam[] = [];
    let stored = 0;
    for (const turn of ["one", "two", "three"]) {
      const marked = [...messages, user(text(long(turn), MARK))];
      const { read, written } = await send(withSystem("a", { messages: marked }));
      expect(read).toBe(stored);
      expect(written).toBeGreaterThan(900);
      stored = read + written;
      // The mark moves on, and what was a block with a mark is now one without.
      messages.push(user(text(long(turn))), assistant(text(`Answer to ${turn}.`)));
    }
    expect(stored).toBeGreaterThan(4000);
  });

  it("a string and one text block are the same prompt, and marks are no part of it", async () => {
    const last = user(text("end", MARK));
    const first = await send(
      request({ messages: [user(text(long("x"), MARK)), assistant(text("Yes.")), last] }),
    );
    const second = await send(
      request({
        messages: [
          { role: "user", content: long("x") },
          { role: "assistant", content: "Yes." },
          last,
        ],
      }),
    );
    expect(second).toMatchObject({ read: first.written, written: 0 });
  });

  it.each<[string, Partial<Params>]>([
    ["thinking", { thinking: { type: "disabled" } }],
    ["the choice of a tool", { tool_choice: { type: "none" } }],
    ["effort", { output_config: { effort: "low" } }],
  ])("another %s misses the messages and reads the system prompt", async (_name, change) => {
    const ask = (more: Partial<Params>) =>
      withSystem("a", { tools: [tool("a")], messages: [user(text(long("x"), MARK))], ...more });
    await send(ask({}));
    const { read, written } = await send(ask(change));
    expect(read).toBeGreaterThan(2000);
    expect(read).toBeLessThan(2100);
    expect(written).toBeGreaterThan(1000);
  });
});

describe("whose it is", () => {
  it("one key does not read what another one wrote", async () => {
    const first = await send(withSystem("a"), "one");
    expect(await send(withSystem("a"), "two")).toEqual(first);
    expect((await send(withSystem("a"), "one")).read).toBe(first.written);
  });

  it("one model does not read what another one wrote", async () => {
    const first = await send(withSystem("a"));
    const other = { model: "claude-opus-5-5" };
    expect(await send(withSystem("a", other))).toEqual(first);
    expect((await send(withSystem("a", other))).read).toBe(first.written);
  });
});

describe("the minimum", () => {
  it("below it nothing is stored, and nothing is said", async () => {
    const short = request({ system: [text(long("a", 480), MARK)] });
    expect(await send(short)).toMatchObject({ read: 0, written: 0 });
    expect(await send(short)).toMatchObject({ read: 0, written: 0 });
    const enough = request({ system: [text(long("a", 520), MARK)] });
    expect((await send(enough)).written).toBeGreaterThan(520);
  });

  it("counts all before the mark, not the marked block alone", async () => {
    const { written } = await send(request({ system: [text(long("a")), text("end", MARK)] }));
    expect(written).toBeGreaterThan(1000);
  });

  it("is the model's own", async () => {
    const ask = (name: string) => withSystem("a", { model: name });
    expect((await send(ask("claude-haiku-4-5"))).written).toBe(0);
    expect((await send(ask("claude-sonnet-5-5"))).written).toBeGreaterThan(0);
  });

  it.each([
    ["claude-sonnet-5-5", 512],
    ["claude-haiku-5-5", 512],
    ["claude-opus-5", 512],
    ["claude-fable-5-1", 512],
    ["claude-sonnet-5", 1024],
    ["claude-sonnet-4-6", 1024],
    ["claude-opus-4-8", 1024],
    ["claude-opus-4-20250514", 1024],
    ["claude-opus-4-7", 2048],
    ["claude-3-5-haiku-20241022", 2048],
    ["claude-opus-4-5-20251101", 4096],
    ["claude-haiku-4-5-20251001", 4096],
    ["another-model", 1024],
  ])("%s: %i", (name, tokens) => {
    expect(minimumFor(name)).toBe(tokens);
  });
});

describe("the search back from a mark", () => {
  /** A long block with a mark, and then so many blocks, the last one with a mark. */
  const ask = (blocks: number, more: Block[] = []) => {
    const between = Array.from({ length: blocks }, (_, n) => text(`${n}`));
    const marked = blocks > 0 ? [...between.slice(0, -1), text("end", MARK)] : [];
    const first = text(long("x"), blocks > 0 ? {} : MARK);
    return request({ messages: [user(first, ...more, ...marked)] });
  };

  it("finds what is 19 blocks before the mark", async () => {
    const first = await send(ask(0));
    expect((await send(ask(19))).read).toBe(first.written);
  });

  it("does not find what is 20 blocks before it", async () => {
    await send(ask(0));
    expect((await send(ask(20))).read).toBe(0);
  });

  it("a second mark on the way finds it", async () => {
    const first = await send(ask(0));
    const { read } = await send(ask(20, [text("between", MARK)]));
    expect(read).toBe(first.written);
  });

  it.each(["tools", "system"] as const)("blocks of %s count too", async (part) => {
    const many = (count: number) => {
      const marks = (n: number) => (n === 0 && count === 1 ? MARK : {});
      const tools = Array.from({ length: count }, (_, n) => tool(`t${n}`, marks(n)));
      const system = Array.from({ length: count }, (_, n) => text(long(`t${n}`), marks(n)));
      const last = user(text("end", MARK));
      return request({ ...(part === "tools" ? { tools } : { system }), messages: [last] });
    };
    const first = await send(many(1));
    expect(first.written).toBeGreaterThan(1000);
    expect((await send(many(19))).read).toBeGreaterThan(900);
    clock += 60 * MINUTE;
    await send(many(1));
    expect((await send(many(20))).read).toBe(0);
  });

  it("calls in a row are one position, and so are results", async () => {
    const ids = Array.from({ length: 30 }, (_, n) => `call_${n}`);
    const start = (more = {}) => user(text(long("x"), more));
    const first = await send(request({ messages: [start(MARK)] }));
    const results = ids.map((id, n) => result(id, n === 29 ? MARK : {}));
    const together = [start(), assistant(...ids.map(call)), user(...results)];
    expect((await send(request({ messages: together }))).read).toBe(first.written);
    const oneByOne = ids.slice(0, 10).flatMap((id, n) => {
      return [assistant(call(id)), user(result(id, n === 9 ? MARK : {}))];
    });
    clock += 60 * MINUTE;
    await send(request({ messages: [start(MARK)] }));
    expect((await send(request({ messages: [start(), ...oneByOne] }))).read).toBe(0);
  });
});

describe("how long it lives", () => {
  it("five minutes, from the last use", async () => {
    const { written } = await send(withSystem("a"));
    for (let i = 0; i < 3; i++) {
      clock += 5 * MINUTE - 1;
      expect((await send(withSystem("a"))).read).toBe(written);
    }
    clock += 5 * MINUTE;
    expect(await send(withSystem("a"))).toMatchObject({ read: 0, written });
  });

  it("an hour where the mark says so", async () => {
    const ask = request({ system: [text(long("a"), HOUR)] });
    const { written, hour } = await send(ask);
    expect(hour).toBe(written);
    clock += 60 * MINUTE - 1;
    expect((await send(ask)).read).toBe(written);
    clock += 60 * MINUTE;
    expect((await send(ask)).read).toBe(0);
  });

  it("both in one request: each part is counted for its own", async () => {
    const system = [text(long("a"), HOUR)];
    const ask = request({ system, messages: [user(text(long("x", 2000), MARK))] });
    const first = await send(ask);
    expect(first.hour).toBeGreaterThan(1000);
    expect(first.hour).toBeLessThan(1020);
    expect(first.written - first.hour).toBeGreaterThan(2000);
    expect(await send(ask)).toMatchObject({ read: first.written, written: 0, hour: 0 });
    clock += 6 * MINUTE;
    const second = await send(ask);
    expect(second).toMatchObject({ read: first.hour, hour: 0 });
    expect(second.written).toBe(first.written - first.hour);
  });

  it("a read of the whole refreshes the beginning too", async () => {
    const ask = (name: string) => withSystem("a", { messages: [user(text(long(name), MARK))] });
    await send(ask("x"));
    clock += 4 * MINUTE;
    await send(ask("x"));
    clock += 4 * MINUTE;
    expect((await send(ask("y"))).read).toBeGreaterThan(1000);
  });

  it("is counted from the start of a request, not from its end", async () => {
    const held = model.hold();
    const slow = send(withSystem("a"));
    await held.waiting;
    clock += 4 * MINUTE;
    held.release();
    await slow;
    clock += 2 * MINUTE;
    expect((await send(withSystem("a"))).read).toBe(0);
  });

  it("requests at the same time do not read from each other", async () => {
    const holds = [model.hold(), model.hold()];
    const both = [send(withSystem("a")), send(withSystem("a"))];
    await Promise.all(holds.map(({ waiting }) => waiting));
    for (const { release } of holds) release();
    const [one, two] = await Promise.all(both);
    expect(one).toEqual(two);
    expect(one?.written).toBeGreaterThan(1000);
    expect((await send(withSystem("a"))).read).toBe(one?.written);
  });

  it("a request that failed has written nothing", async () => {
    model.fail("529");
    await expect(send(withSystem("a"))).rejects.toThrow("Overloaded");
    expect((await send(withSystem("a"))).read).toBe(0);
  });
});

describe("where the counts are", () => {
  it("in message_start and message_delta of a stream", async () => {
    const { written } = await send(withSystem("a"));
    const found: unknown[] = [];
    const params = { ...withSystem("a"), stream: true as const };
    for await (const event of await clientOf("key").messages.create(params)) {
      if (event.type === "message_start") found.push(event.message.usage);
      if (event.type === "message_delta") found.push(event.usage);
    }
    const counts = { cache_read_input_tokens: written, cache_creation_input_tokens: 0 };
    const input_tokens = countRequest(params) - written;
    expect(found).toMatchObject([
      { ...counts, input_tokens, cache_creation: { ephemeral_5m_input_tokens: 0 } },
      { ...counts, input_tokens },
    ]);
  });

  it("in the log", async () => {
    const { written, fresh } = await send(withSystem("a"));
    expect(model.log[0]?.usage).toMatchObject({
      input_tokens: fresh,
      cache_creation_input_tokens: written,
      cache_read_input_tokens: 0,
    });
  });
});

describe("the automatic mark of a whole request", () => {
  const automatic = (content: Block[], mark = MARK) =>
    request({ ...mark, messages: [user(...content)] });

  it("is on the last block", async () => {
    const first = await send(automatic([text(long("x"))]));
    expect(first.written).toBeGreaterThan(1000);
    const second = await send(automatic([text(long("x")), text("more")]));
    expect(second.read).toBe(first.written);
    expect(second.written).toBeGreaterThan(0);
  });

  it("is one with a mark that is there already, and does not count twice", async () => {
    const system = [1, 2, 3].map((n) => text(long(`${n}`), MARK));
    const params = { ...automatic([text("end", MARK)]), system };
    expect((await send(params)).written).toBeGreaterThan(3000);
    const fifth = { ...automatic([text("4", MARK), text("end")]), system };
    expect(await refusal(fifth)).toBe(
      "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    );
  });

  it("has to live as long as the one that is there", async () => {
    expect(await refusal(automatic([text("x", MARK)], HOUR))).toBe(
      "Top-level cache_control has ttl='1h' but the target block already has cache_control with " +
        "ttl='5m'. When both are specified on the same block, they must have matching TTLs.",
    );
  });
});

describe("marks that the API refuses", () => {
  const thinking = { type: "thinking", thinking: "Hm.", signature: "s" };
  const ephemeral = (more: object) => ({ cache_control: { type: "ephemeral", ...more } });
  const in1 = (...content: unknown[]) => ({ messages: [{ role: "user", content }] });

  it.each<[string, object, string]>([
    [
      "five of them",
      {
        tools: [tool("a", MARK)],
        system: [text("s", MARK)],
        ...in1(...[1, 2, 3].map((n) => text(`${n}`, MARK))),
      },
      "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ],
    [
      "one on thinking",
      {
        messages: [
          user(text("a")),
          { role: "assistant", content: [{ ...thinking, ...MARK }, text("b")] },
          user(text("c")),
        ],
      },
      "messages.1.content.0.thinking.cache_control: Extra inputs are not permitted",
    ],
    [
      "one on an empty text",
      in1(text("", MARK)),
      "messages.0.content.0.text: cache_control cannot be set for empty text blocks",
    ],
    [
      "an hour after five minutes",
      { system: [text("s", MARK)], ...in1(text("a"), text("b", HOUR)) },
      "messages.0.content.1.cache_control.ttl: a ttl='1h' cache_control block must not come after " +
        "a ttl='5m' cache_control block. Note that blocks are processed in the following order: " +
        "`tools`, `system`, `messages`.",
    ],
    [
      "another time",
      in1(text("a", ephemeral({ ttl: "10m" }))),
      "messages.0.content.0.text.cache_control.ephemeral.ttl: Input should be '5m' or '1h'",
    ],
    [
      "another field",
      { system: [text("a", ephemeral({ scope: "global" }))] },
      "system.0.cache_control.ephemeral.scope: Extra inputs are not permitted",
    ],
    [
      "another kind",
      { tools: [tool("a", { cache_control: { type: "for ever" } })] },
      "tools.0.custom.cache_control: Input tag 'for ever' found using 'type' does not match any of " +
        "the expected tags: 'ephemeral'",
    ],
  ])("%s", async (_name, wrong, sentence) => {
    expect(await refusal({ ...request(), ...wrong })).toBe(sentence);
  });

  it("takes four, on a tool, the system prompt, a call and a result", async () => {
    const params = request({
      tools: [tool("a", MARK)],
      system: [text(long("s"), MARK)],
      messages: [user(text("x")), assistant({ ...call("c1"), ...MARK }), user(result("c1", MARK))],
    });
    const first = await send(params);
    expect(first.written).toBeGreaterThan(2000);
    expect((await send(params)).read).toBe(first.written);
  });

  it("takes a mark that is null as none", async () => {
    const none = request({ system: [text(long("s"), { cache_control: null })] });
    expect((await send(none)).written).toBe(0);
  });
});
