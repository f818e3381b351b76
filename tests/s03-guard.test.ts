/** s03: the guard round the loop, which keeps a long conversation inside the context window. */

import path from "node:path";
import type Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it } from "vitest";
import type { LoggedRequest, PracticeModel, Scripted } from "../practice/model.ts";
import { countRequest } from "../practice/reply.ts";
import {
  blocks,
  breaches,
  calls,
  load,
  onStreamEvent,
  outline,
  practice,
  results,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  withoutContext,
} from "./helper.ts";

const KEY = "agent:luna:cli:direct:owner";
const OVERFLOW: Scripted = {
  error: {
    status: 400,
    type: "invalid_request_error",
    message: "prompt is too long: 200001 tokens > 200000 maximum",
  },
};

const failure = (status: number, type: string, message: string): Scripted => ({
  error: { status, type, message },
});

async function open(section: SectionFile, model: PracticeModel, more = {}) {
  const given = settings(model, more);
  const module = await load("s03", section, given);
  const dir = path.join(String(given.CLAW0_WORKSPACE), ".state", "sessions");
  const restart = () => new module.SessionStore(dir).current(KEY);
  const session = restart();
  const give = (name: string, run: (typeof module.HANDLERS)[string]) => {
    module.TOOLS.push({ name, description: name, input_schema: { type: "object" } });
    module.HANDLERS[name] = run;
  };
  const turn = (input: string, signal?: AbortSignal) => module.runTurn(session, input, { signal });
  /** What a request costs that has only the system prompt and the tools. */
  const bare = () => {
    const request = module.buildRequest(new module.Conversation(), {});
    return countRequest({ ...request, messages: [{ role: "user", content: "" }] });
  };
  return { ...module, session, restart, give, turn, bare, model };
}

/** Whether a request asks for a summary: that one needs no tools. */
const isSummary = ({ request }: LoggedRequest) => (request.tools ?? []).length === 0;
const kinds = (model: PracticeModel) =>
  model.log.map((entry) => {
    const kind = isSummary(entry) ? "summary" : "turn";
    return entry.error?.includes("too long") ? `${kind} too long` : kind;
  });
/** The messages of a request as one text, without the mark for the cache, which moves. */
const wordsOf = (entry: LoggedRequest | undefined) =>
  JSON.stringify(entry?.request.messages ?? [], (name, value) =>
    name === "cache_control" ? undefined : value,
  );

/** What a person says, about 500 tokens long. */
const filler = (name: string, times = 260) => `${name} ${"filler ".repeat(times)}${name}-end`;

async function chat(opened: Awaited<ReturnType<typeof open>>, ...names: string[]) {
  for (const name of names) {
    opened.model.script(say(`Answer to ${name}.`));
    await opened.turn(filler(name));
  }
}

type Opened = Awaited<ReturnType<typeof open>>;
type Session = Opened["session"];
type Message = Session["messages"][number];

/** That a history cut before `start` begins with a person's message and makes a valid request. */
function expectWholeTurns({ toRequest }: Opened, messages: Session["messages"], start: Message) {
  const from = messages.indexOf(start);
  expect(messages[from]?.role).toBe("user");
  expect(withoutContext(blocks(messages[from]))).toMatchObject([{ type: "text" }]);
  const problems = breaches({ messages: toRequest(messages.slice(from)) });
  expect(problems.filter((what) => !what.includes("last message"))).toEqual([]);
}

describe.each(sectionsFrom("s03"))("$name", (section) => {
  const scripted = (contextTokens?: number) =>
    practice({ rules: false, ...(contextTokens && { contextTokens }) });

  describe("the size", () => {
    it.each([
      ["four letters", "abcd".repeat(100), 100],
      ["Chinese", "你好世界", 4],
      ["Japanese", "こんにちはカタカナ", 9],
      ["Korean", "안녕하세요", 5],
      ["both", `${"abcd".repeat(10)}你好`, 12],
      ["nothing", "", 0],
    ])("of %s", async (_what, text, tokens) => {
      const { estimateTokens } = await open(section, await scripted());
      expect(estimateTokens(text)).toBe(tokens);
    });

    it("is the API's own figure, with the cache, plus what came after it", async () => {
      const opened = await open(section, await scripted());
      const guard = new opened.ContextGuard(100_000);
      opened.model.script(say("Hello.", { usage: { input_tokens: 1000, output_tokens: 50 } }));
      await opened.turn("hi");
      expect(guard.size(opened.session)).toBeGreaterThanOrEqual(1050);
      expect(guard.size(opened.session)).toBeLessThan(1055);
      const reply = opened.session.messages[1];
      if (reply?.role !== "assistant") throw new Error("the reply is missing");
      reply.usage.cache_read_input_tokens = 200;
      reply.usage.cache_creation_input_tokens = 30;
      opened.session.append({
        role: "user",
        content: [{ type: "text", text: "你好".repeat(200) }],
      });
      expect(guard.size(opened.session)).toBeGreaterThanOrEqual(1280 + 400);
      expect(guard.size(opened.session)).toBeLessThan(1280 + 450);
    });

    it.each([
      ["is missing", undefined],
      ["is null", null],
      ["is empty", {}],
      ["is zero", { input_tokens: 0, output_tokens: 0 }],
      ["lacks the request", { output_tokens: 7 }],
    ])("is estimated if the usage of a reply %s", async (_kind, usage) => {
      const { ContextGuard, session } = await open(section, await scripted());
      const told = { type: "text", text: "Hello. ".repeat(1000) };
      const reply = { role: "assistant", content: [told], stop_reason: "end_turn", usage };
      session.append({ role: "user", content: [{ type: "text", text: "hi" }] });
      session.append(reply as unknown as Anthropic.Message); // as some other servers send it
      const size = new ContextGuard(100_000).size(session);
      expect(size).toBeGreaterThan(1500);
      expect(size).toBeLessThan(10_000);
    });

    it("without a figure it counts the tools and the system prompt too", async () => {
      const opened = await open(section, await scripted());
      const size = new opened.ContextGuard(100_000).size(opened.session);
      expect(size).toBeGreaterThan(opened.bare() / 2);
      expect(size).toBeLessThan(opened.bare() * 2);
    });

    it("a reply that was interrupted has no figure", async () => {
      const opened = await open(section, await scripted());
      await opened.turn("hi", AbortSignal.abort());
      expect(new opened.ContextGuard(100_000).size(opened.session)).toBeGreaterThan(50);
    });
  });

  describe("when the API says that it is too long", () => {
    it("first shortens big results of tools, to both their ends", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      opened.give("big", () => `begin ${"x".repeat(25_000)} end`);
      opened.give("small", () => "small output");
      model.script(calls(["big", {}], ["small", {}]), OVERFLOW, say("I have read it."));
      expect(await opened.turn("read")).toContain("I have read it.");
      expect(kinds(model)).toEqual(["turn", "turn too long", "turn"]);
      const [big, small] = results(model.log[2]);
      expect(String(big?.content)).toMatch(/^begin x+[\s\S]*x+ end$/);
      expect(String(big?.content).length).toBeLessThan(3000);
      expect(small?.content).toBe("small output");
      // It stays short after a restart.
      const again = opened.restart();
      expect(opened.toRequest(again.messages)).toEqual(opened.toRequest(opened.session.messages));
    });

    it("then summarises the older turns, and keeps the newest as they were", async () => {
      const probe = await open(section, await scripted());
      const model = await scripted(probe.bare() + 2150);
      const opened = await open(section, model);
      await chat(opened, "one", "two", "three", "four");
      model.script(say("Their names are Ada and Bob."), say("Here."));
      expect(await opened.turn(filler("five"))).toBe("Here.");
      expect(kinds(model).slice(4)).toEqual(["turn too long", "summary", "turn"]);
      const asked = wordsOf(model.log[5]);
      expect(asked).toContain("one-end");
      expect(asked).not.toContain("five-end");
      const last = wordsOf(model.log[6]);
      expect(last).toContain("Ada and Bob");
      expect(last).not.toContain("one-end");
      expect(last).toContain("five-end");
      expect(outline(model.log[6])[0]).toContain("Ada and Bob");
      expect(JSON.stringify(opened.restart().messages)).toContain("Ada and Bob");
      // The next turn is asked after a restart, and has the same history.
      const again = opened.restart();
      model.script(say("Yes."));
      await opened.runTurn(again, "still there?", {});
      expect(wordsOf(model.log[7]).startsWith(last.slice(0, -1))).toBe(true);
    });

    it("keeps some of the newest turns, if the model allows", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      const size = { usage: { input_tokens: 4000, output_tokens: 10 } };
      for (const name of ["one", "two", "three", "four", "five", "six"]) {
        model.script(say(`Answer to ${name}.`, size));
        await opened.turn(filler(name));
      }
      model.script(OVERFLOW, say("A summary."), say("Here."));
      await opened.turn("and now?");
      expect(wordsOf(model.log.at(-1))).toContain("six-end");
      expect(wordsOf(model.log.at(-1))).not.toContain("two-end");
    });

    it("then summarises all but the turn that is under way, and then says what to do", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      opened.give("big", () => "y".repeat(20_000));
      model.script(calls(["big", {}]), say("Read."));
      await opened.turn("read");
      await chat(opened, "one", "two");
      model.script(say("Short."), say("Short."));
      await opened.turn(filler("kept", 10));
      await opened.turn(filler("too", 10));
      const before = model.log.length;
      const answers = [
        OVERFLOW,
        OVERFLOW,
        say("First summary."),
        OVERFLOW,
        say("Second."),
        OVERFLOW,
      ];
      model.script(...answers);
      await expect(opened.turn(filler("three", 10))).rejects.toThrow(/too long.*\/new/);
      expect(kinds(model).slice(before)).toEqual([
        "turn too long",
        "turn too long", // its results shortened
        "summary",
        "turn too long",
        "summary",
        "turn too long",
      ]);
      const [once, summary, twice] = model.log.slice(-3).map(wordsOf);
      expect(once).toContain("kept-end");
      expect(once).not.toContain("two-end");
      expect(summary).toContain("First summary.");
      expect(summary).toContain("kept-end");
      expect(twice).not.toContain("kept-end");
      expect(twice).toContain("three-end");
      // The user's message is kept, and the next turn is a valid one.
      model.script(say("Now it fits."));
      await opened.turn("again");
      expect(wordsOf(model.log.at(-1))).toContain("three-end");
      expect(wordsOf(model.log.at(-1))).toContain("Second.");
    });

    it.each<[how: string, answer: Scripted]>([
      [
        "prompt and reply",
        failure(
          400,
          "invalid_request_error",
          "input length and `max_tokens` exceed context limit: 194000 + 8192 > 200000",
        ),
      ],
      ["413", failure(413, "request_too_large", "Request exceeds the maximum size")],
      ["413 of a proxy", failure(413, "entity_too_large", "Request Entity Too Large")],
      [
        "a compatible server",
        failure(400, "BadRequestError", "This model's maximum context length is 4096 tokens."),
      ],
      ["llama.cpp", failure(400, "exceed_context_size_error", "try increasing it")],
      [
        "in the stream",
        {
          content: [],
          errorAfter: { events: 1, type: "invalid_request_error", message: "prompt is too long" },
        },
      ],
    ])("in other words: %s", async (_how, answer) => {
      const model = await scripted();
      const opened = await open(section, model);
      await chat(opened, "one", "two", "three");
      model.script(answer, say("A summary."), say("Here."));
      expect(await opened.turn("and now?")).toBe("Here.");
      expect(model.log.map(isSummary)).toEqual([false, false, false, false, true, false]);
    });

    it("but not when the words are in another failure", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      await chat(opened, "one", "two");
      model.script(failure(403, "permission_error", "maximum context length: prompt is too long"));
      await expect(opened.turn("and now?")).rejects.toThrow(/maximum context length/);
      expect(model.log.map(isSummary)).toEqual([false, false, false]);
    });

    it("with nothing to shorten says so at once", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      model.script(OVERFLOW);
      await expect(opened.turn("a very long question")).rejects.toThrow(/too long/);
      expect(model.log).toHaveLength(1);
      expect(opened.session.messages).toHaveLength(1);
    });

    it("in the middle of the tool loop: the turn stays whole, and no tool runs twice", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      await chat(opened, "one", "two");
      let ran = 0;
      opened.give("look", () => `look ${++ran}`);
      model.script(
        calls(["look", {}]),
        OVERFLOW,
        say("A summary."),
        calls(["look", {}]),
        say("Done."),
      );
      expect(await opened.turn("look around")).toContain("Done.");
      expect(ran).toBe(2);
      const last = outline(model.log.at(-1));
      expect(last.slice(-5)).toEqual([
        "user: look around",
        "assistant: tool_use",
        "user: tool_result",
        "assistant: tool_use",
        "user: tool_result",
      ]);
      expect(last[0]).toContain("A summary.");
    });

    it("also when the request for the summary is too long: it asks for less, of the newest", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      await chat(opened, "one", "two", "three", "four");
      const before = model.log.length;
      model.script(OVERFLOW, OVERFLOW, OVERFLOW, say("A summary."), say("Here."));
      expect(await opened.turn("and now?")).toBe("Here.");
      expect(kinds(model).slice(before)).toEqual([
        "turn too long",
        "summary too long",
        "summary too long",
        "summary",
        "turn",
      ]);
      const asked = model.log.filter(isSummary).map(wordsOf);
      const lengths = asked.map((words) => words.length);
      expect(lengths).toEqual([...lengths].sort((a, b) => b - a));
      expect(new Set(lengths).size).toBe(3);
      expect(asked[2]).toContain("three-end"); // the fourth turn is kept as it is
      expect(asked[2]).not.toContain("one-end");
    });

    it("and gives up if no summary is short enough", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      await chat(opened, "one", "two", "three", "four");
      const before = model.log.length;
      model.script(...Array.from({ length: 60 }, () => OVERFLOW));
      await expect(opened.turn("and now?")).rejects.toThrow();
      expect(model.log.length - before).toBeLessThan(20);
      expect(JSON.stringify(opened.session.messages)).toContain("and now?");
      expect(opened.session.summary).toBe("");
    });
  });

  describe("before the API says it", () => {
    it("it is shortened by our own count, Chinese counted as it is", async () => {
      const model = await scripted();
      const opened = await open(section, model, { CONTEXT_TOKENS: "8000" });
      const chinese = "我们今天讨论这个项目的下一步计划。".repeat(60); // about 1,000 tokens
      const guard = new opened.ContextGuard(8000);
      while (guard.size(opened.session) < 4900) {
        model.script(say("好的。"));
        await opened.turn(chinese);
      }
      expect(guard.size(opened.session)).toBeLessThan(6200);
      expect(kinds(model)).not.toContain("summary");
      // It is full at 6,800. Counted as length / 4 this would still be small.
      model.script(
        say("一个总结。"),
        say("好的。", { usage: { input_tokens: 3000, output_tokens: 5 } }),
      );
      await opened.turn(chinese.repeat(2));
      expect(kinds(model).slice(-2)).toEqual(["summary", "turn"]);
    });

    it("a figure from before a compaction does not make it compact again", async () => {
      const model = await scripted();
      const opened = await open(section, model, { CONTEXT_TOKENS: "20000" });
      model.script(say("One."), say("Two.", { usage: { input_tokens: 19_000, output_tokens: 5 } }));
      await opened.turn("one");
      await opened.turn("two");
      // The kept turn still has its old figure; the call after the compaction fails, so there is no new one.
      model.script(say("A summary."));
      model.script({ error: { status: 500, type: "api_error", message: "Internal server error" } });
      await expect(opened.turn("three")).rejects.toThrow();
      model.script(say("Four."), say("Five."));
      await opened.turn("four");
      await opened.turn("five");
      expect(kinds(model).filter((kind) => kind === "summary")).toHaveLength(1);
      // Nor after a restart.
      const again = opened.restart();
      model.script(say("Six."));
      await opened.runTurn(again, "six", {});
      expect(kinds(model).filter((kind) => kind === "summary")).toHaveLength(1);
    });

    it("shortened results bring no compaction, if they are enough", async () => {
      const model = await scripted();
      const opened = await open(section, model, { CONTEXT_TOKENS: "20000" });
      opened.give("big", () => "z".repeat(29_000));
      model.script(
        calls(["big", {}]),
        say("Read.", { usage: { input_tokens: 19_000, output_tokens: 5 } }),
      );
      await opened.turn("read");
      model.script(say("Here."), say("Here."));
      await opened.turn("and?");
      await opened.turn("and then?");
      expect(kinds(model)).toEqual(["turn", "turn", "turn", "turn"]);
      expect(wordsOf(model.log[3]).length).toBeLessThan(6000);
    });
  });

  describe("a summary", () => {
    async function full() {
      const model = await scripted();
      const opened = await open(section, model, { CONTEXT_TOKENS: "20000" });
      model.script(say("One."));
      await opened.turn("one");
      model.script(say("Two.", { usage: { input_tokens: 19_000, output_tokens: 5 } }));
      await opened.turn("two");
      return { ...opened, model };
    }

    it("includes the one before", async () => {
      const opened = await full();
      const { model } = opened;
      const much = { usage: { input_tokens: 19_000, output_tokens: 5 } };
      model.script(say("SUMMARY-1"), say("Three.", much), say("SUMMARY-2"), say("Four."));
      await opened.turn("three");
      await opened.turn("four");
      const [, second] = model.log.filter(isSummary);
      expect(wordsOf(second)).toContain("SUMMARY-1");
      expect(wordsOf(model.log.at(-1))).toContain("SUMMARY-2");
      expect(wordsOf(model.log.at(-1))).not.toContain("SUMMARY-1");
      expect(JSON.stringify(opened.restart().messages)).toContain("SUMMARY-2");
    });

    it("that is stopped by Ctrl+C is none, and the next turn works", async () => {
      const opened = await full();
      const { model } = opened;
      const stop = new AbortController();
      model.script(say("Half a summary that nobody may use", { holdAfter: 4 }));
      onStreamEvent((count) => count === 3 && stop.abort());
      await expect(opened.turn("three", stop.signal)).rejects.toThrow();
      expect(kinds(model)).toEqual(["turn", "turn", "summary"]);
      expect(opened.session.summary).toBe("");
      expect(opened.restart().summary).toBe("");
      expect(JSON.stringify(opened.session.messages)).toContain("three");
      model.script(say("A summary."), say("Four."));
      expect(await opened.turn("four")).toBe("Four.");
      expect(wordsOf(model.log.at(-2))).toContain("three"); // it was never answered
    });

    it.each([
      ["that is refused", say("I can't do", { stopReason: "refusal" })],
      ["that is empty", { content: [], stopReason: "end_turn" }],
      ["that is blank", { content: [{ type: "text", text: " \n" }] }],
      [
        "that fails",
        { error: { status: 500, type: "api_error", message: "Internal server error" } },
      ],
    ])("%s loses nothing", async (_how, answer) => {
      const opened = await full();
      const { model } = opened;
      model.script(answer);
      await expect(opened.turn("three")).rejects.toThrow();
      const history = JSON.stringify(opened.restart().messages);
      for (const word of ["one", "two", "three", "One.", "Two."]) expect(history).toContain(word);
    });

    it("stays when the turn right after it is refused", async () => {
      const opened = await full();
      const { model } = opened;
      model.script(say("SUMMARY-1"), { content: [], stopReason: "refusal" }, say("Four."));
      await opened.turn("something bad");
      await opened.turn("four");
      const last = outline(model.log.at(-1));
      expect(last[0]).toContain("SUMMARY-1");
      expect(last.join("\n")).not.toContain("something bad");
      expect(last.at(-1)).toBe("user: four");
    });

    it("stays when the turn right after it fails, and the next one is refused", async () => {
      const opened = await full();
      const { model } = opened;
      model.script(say("SUMMARY-1"));
      model.script({ error: { status: 500, type: "api_error", message: "Internal server error" } });
      await expect(opened.turn("three")).rejects.toThrow();
      model.script({ content: [], stopReason: "refusal" }, say("Five."));
      await opened.turn("something bad");
      await opened.turn("five");
      expect(outline(model.log.at(-1))[0]).toContain("SUMMARY-1");
    });

    it("never cuts between a call and its result, wherever the newest turns begin", async () => {
      const model = await scripted();
      const opened = await open(section, model);
      opened.give("look", () => "seen ".repeat(300));
      for (let i = 0; i < 4; i++) {
        model.script(calls(["look", {}], ["look", {}]), calls(["look", {}]), say(`Seen ${i}.`));
        await opened.turn(`look ${i}`);
      }
      const whole = opened.session.messages.length;
      for (let limit = 1200; limit <= 40_000; limit += 1300) {
        const session = opened.restart();
        expect(session.messages).toHaveLength(whole);
        // Not on disk: each limit begins with the whole history.
        session.append = (message) => void session.messages.push(message);
        const kept: unknown[] = [];
        session.compact = (_summary, from) => {
          kept.push(from);
        };
        model.script(say("A summary."));
        await new opened.ContextGuard(limit).summarise(session, {}, 0.3);
        const starts = kept.filter((start) => start !== undefined);
        for (const start of starts) expectWholeTurns(opened, session.messages, start as Message); // it is one
        model.script();
      }
      expect(blocks(model.log.at(-1)?.request.messages[0])).toHaveLength(1);
    });
  });
});
