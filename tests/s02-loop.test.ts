/** s02: calls of tools in the loop. Every call gets one result, whatever happened to it. */

import { describe, expect, it } from "vitest";
import type { Scripted } from "../practice/model.ts";
import {
  attempts,
  blocks,
  call,
  calls,
  load,
  onStreamEvent,
  outline,
  practice,
  results,
  retryAtOnce,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  withoutContext,
} from "./helper.ts";

async function open(section: SectionFile) {
  const model = await practice({ rules: false });
  const module = await load("s02", section, settings(model));
  const conversation = new module.Conversation();
  /** A tool of the test's own: no file, no process, and it can do whatever the case needs. */
  const give = (name: string, run: (typeof module.HANDLERS)[string]) => {
    module.TOOLS.push({ name, description: name, input_schema: { type: "object" } });
    module.HANDLERS[name] = run;
  };
  const turn = (input: string, signal?: AbortSignal) =>
    module.runTurn(conversation, input, { signal });
  const next = async (input = "go on") => {
    model.script(say("Still here."));
    expect(await turn(input)).toContain("Still here.");
    return model.log.at(-1);
  };
  return { ...module, model, conversation, give, turn, next };
}

describe.each(sectionsFrom("s02"))("$name", (section) => {
  it("runs a tool and gives the model its result", async () => {
    const { model, give, turn, conversation } = await open(section);
    give("weather", ({ place }) => `sunny in ${place}`);
    model.script(
      { content: [{ type: "text", text: "Let me look." }, call("weather", { place: "Rome" })] },
      say("It is sunny."),
    );
    expect(await turn("How is Rome?")).toBe("Let me look.\n\nIt is sunny.");
    expect(model.log[0]?.request.tools?.map((tool) => "name" in tool && tool.name)).toContain(
      "weather",
    );
    expect(results(model.log[1])).toMatchObject([{ content: "sunny in Rome" }]);
    expect(results(model.log[1])[0]?.is_error).toBeFalsy();
    expect(conversation.messages.map(({ role }) => role)).toEqual([
      "user",
      "assistant",
      "user",
      "assistant",
    ]);
  });

  it("runs several calls side by side, and answers them together, in order", async () => {
    const { model, give, turn } = await open(section);
    let secondRan = () => {};
    const second = new Promise<void>((resolve) => {
      secondRan = resolve;
    });
    // The first one can only end when the second one has begun.
    give("first", () => second.then(() => "one"));
    give("second", () => {
      secondRan();
      return "two";
    });
    give("third", () => {
      throw new Error("three failed");
    });
    model.script(calls(["first", {}], ["second", {}], ["third", {}]), say("Done."));
    await turn("all");
    expect(results(model.log[1]).map(({ content, is_error }) => [content, !!is_error])).toEqual([
      ["one", false],
      ["two", false],
      ["three failed", true],
    ]);
  });

  it("goes on when a tool fails or does not exist", async () => {
    const { model, turn } = await open(section);
    model.script(calls(["no_such_tool", {}]), calls(["read_file", {}]), say("I see."));
    expect(await turn("try")).toContain("I see.");
    expect(results(model.log[1])[0]).toMatchObject({ is_error: true });
    expect(results(model.log[2])[0]).toMatchObject({ is_error: true });
  });

  it("stops after a number of rounds, says so, and can go on", async () => {
    if (section.lang !== "en") return; // many requests, and the same code in all languages
    const { model, give, turn } = await open(section);
    let again = true;
    give("again", () => "again");
    const answer = () => (again ? calls(["again", {}]) : say("That was it."));
    model.script(...Array.from({ length: 200 }, () => answer));
    await expect(turn("for ever")).rejects.toThrow(/rounds/);
    const rounds = model.log.length;
    expect(rounds).toBeGreaterThanOrEqual(20);
    expect(rounds).toBeLessThanOrEqual(100);
    // With the next line the count begins anew.
    onStreamEvent(() => {
      again = model.log.length < rounds + 10;
    });
    expect(await turn("go on")).toContain("That was it.");
    expect(model.log.length).toBeGreaterThan(rounds + 9);
  });

  it("a pause between calls goes on", async () => {
    const { model, give, turn } = await open(section);
    give("look", () => "seen");
    const search = { type: "server_tool_use", name: "web_search", input: {} };
    model.script(
      calls(["look", {}]),
      { content: [search], stopReason: "pause_turn" },
      calls(["look", {}]),
      say("Done."),
    );
    expect(await turn("look")).toContain("Done.");
    expect(model.log).toHaveLength(4);
  });

  // The API pauses in a call of a tool that it runs itself, and that it goes on with.
  describe("a pause", () => {
    const PAUSED: Scripted = {
      content: [
        { type: "text", text: "Let me search." },
        { type: "server_tool_use", name: "web_search", input: { query: "x" } },
      ],
      stopReason: "pause_turn",
    };

    it.each(["500", "break"])("and then an error (%s): the next turn works", async (kind) => {
      const { model, turn, next } = await open(section);
      model.script(PAUSED);
      // The failure is for the second request: it is ordered when the first one is answered.
      onStreamEvent((count) => count === 1 && model.log.length === 1 && model.fail(kind));
      await expect(turn("search")).rejects.toThrow();
      expect(outline(await next())).toEqual([
        "user: search",
        "assistant: Let me search.",
        "user: go on",
      ]);
    });

    it.each([
      ["before the search is answered", 2],
      ["after it", 4],
    ])("and then Ctrl+C, %s: the next turn works", async (_when, holdAfter) => {
      const { model, turn, next } = await open(section);
      const stop = new AbortController();
      model.script(PAUSED, say("Found it, and much more.", { holdAfter }));
      onStreamEvent((count) => {
        if (model.log.length === 2 && count === holdAfter - 1) stop.abort();
      });
      expect(await turn("search", stop.signal)).toContain("(interrupted)");
      expect(outline(await next()).at(-1)).toBe("user: go on");
    });

    it("Ctrl+C after the call, before the reply says that it pauses", async () => {
      const { model, turn, next } = await open(section);
      const stop = new AbortController();
      model.script({ ...PAUSED, holdAfter: 11 });
      onStreamEvent((count) => count === 10 && stop.abort());
      expect(await turn("search", stop.signal)).toContain("(interrupted)");
      expect(outline(await next()).at(-1)).toBe("user: go on");
    });

    it("a refusal after it: the whole turn is left out", async () => {
      const { model, turn, next } = await open(section);
      model.script(say("Hello."), PAUSED, { content: [], stopReason: "refusal" });
      await turn("hi");
      await turn("something bad");
      expect(outline(await next())).toEqual(["user: hi", "assistant: Hello.", "user: go on"]);
    });
  });

  describe("calls that were not run", () => {
    it("max_tokens in the middle of a call: the model reads that it was cut off", async () => {
      const { model, give, turn, next } = await open(section);
      let ran = 0;
      give("write", () => `${++ran}`);
      const input = { path: "a.txt", content: "a long text that does not fit" };
      model.script({
        content: [{ type: "text", text: "I write." }, call("write", input)],
        cutToolInput: true,
      });
      expect(await turn("write")).toMatch(/^I write\.\s*\S/);
      const entry = await next();
      expect(ran).toBe(0);
      expect(withoutContext(blocks(entry?.request.messages.at(-1)))).toMatchObject([
        { type: "tool_result", is_error: true, content: "cut off; it was not run" },
        { type: "text", text: "go on" },
      ]);
    });

    it("max_tokens after one whole call and half of another: neither is run", async () => {
      const { model, give, turn, next } = await open(section);
      let ran = 0;
      give("write", () => `${++ran}`);
      const input = { content: "a long text that does not fit" };
      model.script({ content: [call("write", input), call("write", input)], cutToolInput: true });
      await turn("write");
      await next();
      expect(ran).toBe(0);
    });

    it("Ctrl+C while its input streams: it is dropped", async () => {
      const { model, turn, next } = await open(section);
      const stop = new AbortController();
      // start, ping, three events of the text, stop; the call's start and the first of its input
      model.script({
        content: [{ type: "text", text: "I look." }, call("bash", { command: "echo never" })],
        holdAfter: 8,
      });
      onStreamEvent((count) => count === 7 && stop.abort());
      await turn("look", stop.signal);
      expect(outline(await next())).toEqual([
        "user: look",
        "assistant: I look. | (interrupted)",
        "user: go on",
      ]);
    });

    it("Ctrl+C after its input is complete: it has a result, and was not run", async () => {
      const { model, give, turn, next } = await open(section);
      let ran = 0;
      give("write", () => `${++ran}`);
      const stop = new AbortController();
      // start, ping; start, three pieces, stop of the call; then the model waits
      model.script({
        content: [call("write", {}), { type: "text", text: "and so on" }],
        holdAfter: 7,
      });
      let finished = false;
      onStreamEvent((_count, type) => {
        if (type !== "content_block_stop") return;
        finished = true;
        stop.abort();
      });
      await turn("write", stop.signal);
      expect(finished).toBe(true);
      expect(ran).toBe(0);
      const entry = await next();
      expect(outline(entry)).toEqual([
        "user: write",
        "assistant: tool_use | (interrupted)",
        "user: tool_result | go on",
      ]);
      expect(withoutContext(blocks(entry?.request.messages.at(-1)))).toMatchObject([
        { is_error: true, content: "interrupted; it was not run" },
        { text: "go on" },
      ]);
    });
  });

  it("Ctrl+C while a tool runs: its result is kept, and the next turn works", async () => {
    const { model, give, turn, next } = await open(section);
    const stop = new AbortController();
    give("wait", (_input, { signal }) => {
      const stopped = new Promise<string>((_resolve, reject) => {
        signal?.addEventListener("abort", () => reject(new Error("stopped by the user")));
      });
      stop.abort();
      return stopped;
    });
    give("quick", () => "quick");
    model.script(calls(["wait", {}], ["quick", {}]));
    expect(await turn("wait", stop.signal)).toContain("(interrupted)");
    expect(model.log).toHaveLength(1); // nobody asks the model after Ctrl+C
    const entry = await next();
    expect(outline(entry)).toEqual([
      "user: wait",
      "assistant: tool_use | tool_use",
      "user: tool_result | tool_result",
      "assistant: (interrupted)",
      "user: go on",
    ]);
  });

  it("a turn that is stopped does not begin further tools", async () => {
    const { model, give, turn } = await open(section);
    const stop = new AbortController();
    let ran = 0;
    give("stop", () => {
      stop.abort();
      return "stopped";
    });
    give("after", () => `${++ran}`);
    model.script(calls(["stop", {}], ["after", {}]));
    await turn("go", stop.signal);
    expect(ran).toBe(0);
  });

  it.each(["500", "529", "413", "400", "break", "stream-error", "overflow", "drop"])(
    "an error in the middle of the loop (%s): what ran is kept, and not run again",
    async (kind) => {
      const { model, give, turn, next } = await open(section);
      let ran = 0;
      give("count", () => {
        ran++;
        model.fail(kind, kind === "drop" ? attempts(section) : 1);
        return "counted";
      });
      retryAtOnce();
      model.script(calls(["count", {}]));
      await expect(turn("count")).rejects.toThrow();
      const entry = await next();
      expect(ran).toBe(1);
      expect(outline(entry)).toEqual([
        "user: count",
        "assistant: tool_use",
        "user: tool_result | go on",
      ]);
      expect(JSON.stringify(entry?.request.messages)).toContain("counted");
    },
  );

  it.each([
    ["empty", { content: [], stopReason: "end_turn" }],
    ["blank", { content: [{ type: "text", text: "\n" }] }],
  ])("a reply to results that is %s: the next turn works", async (_kind, reply) => {
    const { model, give, turn, next } = await open(section);
    give("look", () => "seen");
    model.script(calls(["look", {}]), reply);
    await turn("look");
    expect(outline(await next())).toEqual([
      "user: look",
      "assistant: tool_use",
      "user: tool_result | go on",
    ]);
  });

  it("a refusal after results: the whole turn is left out", async () => {
    const { model, give, turn, next } = await open(section);
    give("look", () => "seen");
    model.script(say("Hello."), calls(["look", {}]), calls(["look", {}]), {
      content: [],
      stopReason: "refusal",
    });
    await turn("hi");
    await turn("look");
    expect(outline(await next())).toEqual(["user: hi", "assistant: Hello.", "user: go on"]);
  });

  it("a refusal after results of an earlier turn: that turn stays", async () => {
    const { model, give, turn, next, conversation } = await open(section);
    give("look", () => "seen");
    model.script(calls(["look", {}]), { error: { status: 400, type: "x", message: "broken" } });
    await expect(turn("look")).rejects.toThrow("broken");
    model.script({ content: [], stopReason: "refusal" });
    await turn("something bad");
    expect(outline(await next())).toEqual([
      "user: look",
      "assistant: tool_use",
      "user: tool_result | go on",
    ]);
    expect(conversation.messages.map(({ stop_reason }) => stop_reason)).toContain("refusal");
  });

  it("a refusal after a call that was left open: its turn stays", async () => {
    const { model, turn, next } = await open(section);
    model.script({ ...calls(["bash", { command: "ls" }]), stopReason: "max_tokens" });
    await turn("list");
    model.script(say("No.", { stopReason: "refusal" }), say("No.", { stopReason: "refusal" }));
    await turn("something bad");
    await turn("something worse");
    expect(outline(await next())).toEqual([
      "user: list",
      "assistant: tool_use",
      "user: tool_result | go on",
    ]);
  });

  it("a refusal in the middle of a call: the whole turn is left out", async () => {
    const { model, turn, next } = await open(section);
    const refused = calls(["bash", { command: "something bad" }]);
    model.script(say("Hello."), { ...refused, stopReason: "refusal" });
    await turn("hi");
    await turn("something bad");
    expect(outline(await next())).toEqual(["user: hi", "assistant: Hello.", "user: go on"]);
  });

  it("thinking before a call is sent back with its result, unchanged", async () => {
    const { model, give, turn } = await open(section);
    give("look", () => "seen");
    const thinking = { type: "thinking", thinking: "I should look.", signature: "c2ln" };
    model.script({ content: [thinking, call("look", {})] }, say("Done."));
    await turn("look");
    expect(model.log[1]?.request.messages[1]?.content).toMatchObject([thinking, { name: "look" }]);
  });

  it("an output that is empty, or half a character, makes no invalid request", async () => {
    const { model, give, turn } = await open(section);
    give("nothing", () => "");
    give("half", () => "x\ud83d");
    model.script(calls(["nothing", {}], ["half", {}]), say("Done."));
    expect(await turn("go")).toBe("Done.");
  });
});
