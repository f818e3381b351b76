/**
 * Replies as they should not be: servers that translate other models send them. Whatever a reply
 * holds, the next request is valid, and the turn ends.
 */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Scripted, ScriptedBlock } from "../practice/model.ts";
import {
  blocks,
  load,
  outline,
  practice,
  results,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  wrongIn,
} from "./helper.ts";

const MAX_ROUNDS = 50;
const TIMEOUT = { timeout: 30_000 + 200 * (Number(process.env.RANDOM_RUNS) || 0) };

async function open(section: SectionFile) {
  const model = await practice({ rules: false });
  const module = await load("s02", section, settings(model));
  const ran: unknown[] = [];
  module.TOOLS.push({ name: "note", description: "note", input_schema: { type: "object" } });
  module.HANDLERS.note = (input) => {
    ran.push(input);
    return `noted ${JSON.stringify(input)}`;
  };
  const talk = () => {
    const conversation = new module.Conversation();
    const turn = (input: string) => module.runTurn(conversation, input, {});
    return { conversation, turn };
  };
  return { model, ran, talk, ...talk() };
}

/** A call as it stands in a reply, with any of its fields wrong or missing. */
const note = (fields: object): ScriptedBlock => ({
  type: "tool_use",
  id: "toolu_1",
  name: "note",
  input: {},
  ...fields,
});
const whole = (content: ScriptedBlock[], more: Scripted = {}): Scripted => ({
  content,
  wholeBlocks: true,
  ...more,
});

/** The calls in the message before the last one of a request. */
function callsBefore(entry: Parameters<typeof results>[0]) {
  const before = blocks(entry?.request.messages.at(-2));
  return before.flatMap((block) => (block.type === "tool_use" ? [block] : []));
}

describe.each(sectionsFrom("s02"))("$name", (section) => {
  describe('"tool_use" without a call ends the turn', () => {
    it("and the text is the answer, with a sentence", async () => {
      const { model, turn } = await open(section);
      model.script(whole([{ type: "text", text: "Let me look." }], { stopReason: "tool_use" }));
      expect(await turn("hi")).toMatch(/^Let me look\.\n[（(].+[）)]$/);
      expect(model.log).toHaveLength(1);
      model.script(say("Still here."));
      expect(await turn("and now?")).toBe("Still here.");
    });

    it("and without a text there is the sentence alone", async () => {
      const { model, turn } = await open(section);
      model.script(whole([], { stopReason: "tool_use" }));
      expect(await turn("hi")).toMatch(/^\n[（(].+[）)]$/);
      model.script(say("Still here."));
      expect(await turn("and now?")).toBe("Still here.");
      expect(model.log).toHaveLength(2);
    });
  });

  it.each([
    ["missing", undefined],
    ["null", null],
    ["a string", "2026"],
    ["a list", ["a"]],
    ["a number", 7],
  ])("an input that is %s gets an error result, and is an object then", async (_kind, input) => {
    const { model, turn, ran } = await open(section);
    model.script(whole([note({ input })]), say("I see."), say("Still here."));
    expect(await turn("note")).toBe("I see.");
    expect(ran).toEqual([]);
    const wrong = `the input must be an object, but it was ${JSON.stringify(input)}`;
    expect(results(model.log[1])).toMatchObject([{ content: wrong, is_error: true }]);
    expect(callsBefore(model.log[1])).toMatchObject([{ id: "toolu_1", input: {} }]);
    expect(await turn("and now?")).toBe("Still here.");
  });

  it("what is stored stays as the model gave it", async () => {
    const { model, turn, conversation } = await open(section);
    const call = note({ id: "a b", input: ["a"] });
    model.script(whole([call]), say("I see."));
    await turn("note");
    expect(conversation.messages[1]?.content).toMatchObject([call]);
  });

  it.each(["end_turn", "stop_sequence", "pause_turn", "something_new", null])(
    "a call under the stop reason %s is run",
    async (stopReason) => {
      const { model, turn, ran } = await open(section);
      const text = { type: "text", text: "I note it." };
      model.script(whole([text, note({ input: { n: 1 } })], { stopReason }), say("Done."));
      expect(await turn("note")).toBe("I note it.\n\nDone.");
      expect(ran).toEqual([{ n: 1 }]);
      expect(results(model.log[1])).toMatchObject([{ content: 'noted {"n":1}' }]);
    },
  );

  it("a call in a reply that reached the end of the window is not run, and that is said", async () => {
    const { model, turn, ran } = await open(section);
    model.script(whole([note({})], { stopReason: "model_context_window_exceeded" }));
    await turn("note");
    model.script(say("Still here."));
    await turn("and now?");
    expect(ran).toEqual([]);
    expect(results(model.log[1])).toMatchObject([{ content: "cut off; it was not run" }]);
  });

  it("two calls with one id are both run, and each has its own result", async () => {
    const { model, turn } = await open(section);
    model.script(whole([note({ input: { n: 1 } }), note({ input: { n: 2 } })]), say("Done."));
    expect(await turn("note")).toBe("Done.");
    const contents = results(model.log[1]).map(({ content }) => content);
    expect(contents).toEqual(['noted {"n":1}', 'noted {"n":2}']);
    expect(results(model.log[1]).map((block) => block.tool_use_id)).toEqual(
      callsBefore(model.log[1]).map(({ id }) => id),
    );
  });

  it("an id that comes again in a later reply gets another one, the same in each request", async () => {
    const { model, turn } = await open(section);
    model.script(whole([note({ input: { n: 1 } })]), whole([note({ input: { n: 2 } })]));
    model.script(say("Done."), say("Still here."));
    await turn("note");
    await turn("and now?");
    const ids = (index: number) =>
      (model.log[index]?.request.messages ?? [])
        .flatMap(blocks)
        .flatMap((block) => (block.type === "tool_use" ? [block.id] : []));
    expect(ids(2)[0]).toBe("toolu_1");
    expect(new Set(ids(2)).size).toBe(2);
    expect(ids(3)).toEqual(ids(2));
    expect(results(model.log[2])).toMatchObject([{ content: 'noted {"n":2}' }]);
  });

  it.each([[""], ["a b"], ["toolu:1"], ["ü"], ["\ud83d"], [undefined], [null], [7]])(
    "the id %j gets a valid one, and so does its result",
    async (id) => {
      const { model, turn, ran } = await open(section);
      model.script(whole([note({ id })]), say("Done."));
      expect(await turn("note")).toBe("Done.");
      expect(ran).toHaveLength(1);
      expect(results(model.log[1])).toMatchObject([{ content: "noted {}" }]);
    },
  );

  it.each([[""], ["a b"], ["n".repeat(200)], ["functions.note"], ["x\ud83d"], [undefined], [null]])(
    "the name %j gets an error result, and is a valid name then",
    async (name) => {
      const { model, turn } = await open(section);
      model.script(whole([note({ name })]), say("I see."));
      expect(await turn("note")).toBe("I see.");
      expect(results(model.log[1])).toMatchObject([{ is_error: true }]);
      expect(results(model.log[1])[0]?.content).toMatch(/^there is no tool/);
    },
  );

  it("half characters become whole ones, also in the input, and in the names of its fields", async () => {
    const { model, turn } = await open(section);
    const input = { "k\ud83d": ["v\ude00", { deep: "\ud83d" }] };
    model.script(whole([{ type: "text", text: "half \ud83d" }, note({ input })]), say("Done."));
    expect(await turn("note")).toContain("Done.");
    expect(callsBefore(model.log[1])).toMatchObject([
      { input: { "k\ufffd": ["v\ufffd", { deep: "\ufffd" }] } },
    ]);
  });

  it.each([
    ["a thought without a signature", { type: "thinking", thinking: "Hm.", signature: "" }],
    ["half a character in a thought", { type: "thinking", thinking: "\ud83d", signature: "c2ln" }],
    ["a result", { type: "tool_result", tool_use_id: "toolu_1", content: "mine" }],
    ["a result of the API without a call", { type: "web_search_tool_result", tool_use_id: "s1" }],
    ["a text without text", { type: "text" }],
    ["a block without a type", {}],
  ])("%s is left out", async (_kind, block) => {
    const { model, turn } = await open(section);
    model.script(whole([block, note({})]), say("Done."), say("Still here."));
    await turn("note");
    expect(await turn("and now?")).toBe("Still here.");
    expect(outline(model.log[1])[1]).toBe("assistant: tool_use");
  });

  it.each([
    ["a bad escape", '{"n":"a\\d"}'],
    ["a raw line break", '{"n":"a\nb"}'],
    ["an unescaped quote", '{"n":"a "b" c"}'],
    ["cut short", '{"n":"a'],
    ["nothing but a brace", "{"],
    ["words", "the file"],
    ["two objects", "{}{}"],
    ["a comma too many", '{"n":1,}'],
    ["no object", "[1]"],
  ])("an input with %s gets an error result, and the others run", async (_kind, json) => {
    const { model, turn, ran } = await open(section);
    const two = [note({ id: "a" }), note({ id: "b", input: { n: 2 } })];
    model.script({ content: two, writtenInputs: [json] }, say("I see."), say("Still here."));
    expect(await turn("note")).toBe("I see.");
    expect(ran).toEqual([{ n: 2 }]);
    const wrong = expect.stringMatching(/^the input must be an object, but it was /);
    expect(results(model.log[1])).toMatchObject([
      { tool_use_id: "a", content: wrong, is_error: true },
      { tool_use_id: "b", content: 'noted {"n":2}' },
    ]);
    expect(callsBefore(model.log[1])).toMatchObject([{ input: {} }, { input: { n: 2 } }]);
    expect(await turn("and now?")).toBe("Still here.");
  });

  it("an input that is written as nothing at all is empty", async () => {
    const { model, turn, ran } = await open(section);
    model.script({ content: [note({})], writtenInputs: [""] }, say("Done."));
    expect(await turn("note")).toBe("Done.");
    expect(ran).toEqual([{}]);
  });

  it.each(["start", "end", "both"] as const)(
    "a reply whose count of tokens is missing at the %s is whole",
    async (withoutUsage) => {
      for (const stopReason of [undefined, null]) {
        const { model, turn, ran } = await open(section);
        model.script({ content: [note({})], withoutUsage, stopReason });
        model.script(say("Done.", { withoutUsage }), say("Still here."));
        expect(await turn("note")).toBe("Done.");
        expect(ran).toEqual([{}]);
        expect(await turn("and now?")).toBe("Still here.");
        expect(model.log).toHaveLength(3);
      }
    },
  );

  it("a pause without a call of the API is asked to go on", async () => {
    const { model, turn } = await open(section);
    const paused = whole([{ type: "text", text: "Wait." }], { stopReason: "pause_turn" });
    model.script(paused, say("Done."));
    expect(await turn("hi")).toBe("Wait.\n\nDone.");
    expect(outline(model.log[1]).slice(1)).toEqual(["assistant: Wait.", "user: Go on."]);
  });

  it("a pause without an end is counted by the limit of rounds", async () => {
    if (section.lang !== "en") return; // many requests, and the same code in all languages
    const { model, turn } = await open(section);
    model.script(...Array.from({ length: 60 }, () => whole([], { stopReason: "pause_turn" })));
    await expect(turn("hi")).rejects.toThrow(/rounds/);
    expect(model.log).toHaveLength(MAX_ROUNDS);
  });

  it("makes only valid requests, and ends, whatever the replies hold", TIMEOUT, async () => {
    const { model, talk } = await open(section);
    let coming: Scripted[] = [];
    const next = (): Scripted => {
      model.script(next); // one is always waiting
      return coming.shift() ?? say("Done.");
    };
    model.script(next);
    const some = fc.array(fc.oneof({ weight: 3, arbitrary: replies }, streamed), {
      minLength: 1,
      maxLength: 4,
    });
    const property = fc.asyncProperty(some, async (sequence) => {
      const before = model.log.length;
      const { turn } = talk();
      coming = [...sequence];
      const isCut = sequence.some(({ breakAfter }) => breakAfter !== undefined);
      // A stream that breaks fails the turn. The next turn must go on nevertheless.
      await turn("hi").catch((error) => expect(isCut, String(error)).toBe(true));
      coming = [];
      expect(await turn("are you there?")).toContain("Done.");
      const requests = model.log.slice(before);
      expect(wrongIn(requests)[0]).toBeUndefined();
      expect(requests.length).toBeLessThanOrEqual(sequence.length + 2);
      // Nothing died in the middle of a call, so of each call it is known whether it was run.
      expect(JSON.stringify(requests.map(({ request }) => request))).not.toContain("may have run");
      model.log.splice(0); // all of it was looked at
    });
    const seed = Number(process.env.RANDOM_SEED) || Number(section.id.slice(1));
    await fc.assert(property, { seed, numRuns: section.lang === "en" ? RUNS : RUNS / 10 });
  });
});

// Each run tries 2 or 3 replies. By hand: RANDOM_RUNS=2500 TEST_ONLY=en npx vitest run s02-replies
const RUNS = Number(process.env.RANDOM_RUNS) || 100;

// ---- Replies at random ----

const words = fc.constantFrom("Hello.", "", " ", "\ud83d", "a\ude00b", "(interrupted)", "👋");
const ids = fc.constantFrom(
  "a",
  "a",
  "b",
  "call_1_0",
  "",
  "a b",
  "ü",
  "\ud83d",
  null,
  undefined,
  7,
);
const names = fc.constantFrom(
  "note",
  "note",
  "",
  "a.b",
  "x".repeat(200),
  "\ude00",
  null,
  undefined,
);
const inputs = fc.oneof(
  fc.constantFrom<unknown>({}, null, undefined, "2026", ["a"], 7, true, { "\ud83d": "\ude00" }),
  fc.dictionary(fc.string({ unit: "binary", maxLength: 3 }), fc.jsonValue(), { maxKeys: 2 }),
);
const called = fc.record({ type: fc.constant("tool_use"), id: ids, name: names, input: inputs });
const searched = fc.record({
  type: fc.constant("server_tool_use"),
  id: ids,
  name: fc.constant("web_search"),
  input: inputs,
});
const found = fc.record({
  type: fc.constant("web_search_tool_result"),
  tool_use_id: ids,
  content: fc.constant([]),
});
const thought = fc.record({
  type: fc.constant("thinking"),
  thinking: words,
  signature: fc.constantFrom("c2ln", "", undefined),
});
const answered = fc.record({
  type: fc.constant("tool_result"),
  tool_use_id: ids,
  content: words,
});
const spoken = fc.record({ type: fc.constant("text"), text: words });
const empty = fc.constantFrom({ type: "text" }, {});
const replies: fc.Arbitrary<Scripted> = fc.record({
  content: fc.array(
    fc.oneof(called, called, called, spoken, spoken, searched, found, thought, answered, empty),
    { maxLength: 5 },
  ) as fc.Arbitrary<ScriptedBlock[]>, // the wrong ones, too, which is what is tried
  stopReason: fc.constantFrom(
    "tool_use",
    "tool_use",
    "end_turn",
    "stop_sequence",
    "max_tokens",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
    "something_new",
    null,
  ),
  wholeBlocks: fc.constant(true),
});
/** Replies in pieces: whole blocks of the usual shape, but inputs that may be no JSON, and cuts. */
const streamed: fc.Arbitrary<Scripted> = fc.record(
  {
    content: fc.array(
      fc.oneof(
        fc.record({ type: fc.constant("tool_use"), id: ids, name: names }),
        fc.record({ type: fc.constant("text"), text: words }),
      ),
      { maxLength: 4 },
    ) as fc.Arbitrary<ScriptedBlock[]>,
    writtenInputs: fc.array(
      fc.oneof(
        fc.json({ maxDepth: 1 }),
        fc.constantFrom(
          "",
          "{",
          '{"a":"\\d"}',
          '{"a":"b\nc"}',
          '{"a":"b"c"}',
          '{"a":"\\ud83d"}',
          "{}",
        ),
      ),
      { maxLength: 4 },
    ),
    stopReason: fc.constantFrom("tool_use", "tool_use", "end_turn", "max_tokens", "refusal", null),
    withoutUsage: fc.constantFrom("start" as const, "end" as const, "both" as const),
    breakAfter: fc.nat(12),
  },
  { requiredKeys: ["content", "writtenInputs", "stopReason"] },
);
