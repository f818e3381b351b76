/** s01: the loop, imported. What holds here holds in every later section and in every language. */

import { describe, expect, it } from "vitest";
import type { Scripted, ScriptedBlock } from "../practice/model.ts";
import {
  attempts,
  blocks,
  load,
  onStreamEvent,
  outline,
  practice,
  printed,
  retryAtOnce,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  sketch,
} from "./helper.ts";

const ERRORS = ["400", "401", "402", "403", "404", "413", "429", "500", "504", "529"];
const BROKEN = ["overflow", "break", "stream-error", "drop"];

const thinking: ScriptedBlock = { type: "thinking", thinking: "Let me see.", signature: "c2ln" };
const SEARCH = [
  { type: "text", text: "Let me search." },
  { type: "server_tool_use", name: "web_search", input: { query: "x" } },
];
const PAUSED: Scripted = { content: SEARCH, stopReason: "pause_turn" };

async function open(section: SectionFile) {
  const model = await practice({ rules: false });
  const module = await load("s01", section, settings(model));
  const { runTurn } = module;
  const conversation = new module.Conversation();
  const pieces: string[] = [];
  /** One turn; what is heard goes to `pieces`. */
  const turn = (input: string, signal?: AbortSignal) =>
    runTurn(conversation, input, { onText: (piece) => pieces.push(piece), signal });
  const texts = () => conversation.messages.map(sketch);
  return { ...module, model, conversation, turn, pieces, texts };
}

/** The next turn is valid, and the model gets `history` and then the new line. */
async function goesOn({ model, turn }: Awaited<ReturnType<typeof open>>, history: string[]) {
  model.script(say("Still here."));
  expect(await turn("go on")).toContain("Still here.");
  expect(outline(model.log.at(-1))).toEqual(history);
}

describe.each(sectionsFrom("s01"))("$name", (section) => {
  it("does nothing when it is imported", async () => {
    const listeners = process.listenerCount("SIGINT");
    await load("s01", section, settings());
    expect(printed()).toBe("");
    expect(process.listenerCount("SIGINT")).toBe(listeners);
  });

  describe("stop reasons", () => {
    it.each(["end_turn", "stop_sequence"])("%s: nothing is said about it", async (stopReason) => {
      const { model, turn, conversation, pieces } = await open(section);
      model.script(say("Hello.", { stopReason }));
      expect(await turn("hi")).toBe("Hello.");
      expect(pieces.join("")).toBe("Hello.");
      expect(conversation.messages).toHaveLength(2);
      expect(conversation.messages[1]).toMatchObject({
        id: expect.stringMatching(/^msg_/),
        role: "assistant",
        stop_reason: stopReason,
        usage: { input_tokens: expect.any(Number), output_tokens: expect.any(Number) },
      });
    });

    it.each([
      ["max_tokens", /cut off/i],
      ["model_context_window_exceeded", /cut off/i],
      ["refusal", /refused/i],
    ])("%s is said, and not stored", async (stopReason, words) => {
      const { model, turn, pieces, texts } = await open(section);
      model.script(say("Well", { stopReason }));
      const told = await turn("hi");
      expect(told).toMatch(/^Well\s*\S+/);
      expect(pieces.join("")).toBe(told);
      if (section.lang === "en") expect(told).toMatch(words);
      expect(texts()).toEqual(["user: hi", "assistant: Well"]);
    });

    it.each(["max_tokens", "model_context_window_exceeded"])("%s: goes on", async (stopReason) => {
      const opened = await open(section);
      opened.model.script(say("Well", { stopReason }));
      await opened.turn("hi");
      await goesOn(opened, ["user: hi", "assistant: Well", "user: go on"]);
    });

    it("pause_turn: goes on from the paused reply, and gives both parts", async () => {
      const opened = await open(section);
      const { model, turn, pieces, conversation } = opened;
      model.script(PAUSED, say("Found it."));
      const told = await turn("search");
      expect(told).toContain("Let me search.");
      expect(told).toContain("Found it.");
      expect(pieces.join("")).toContain("Let me search.Found it.");
      expect(model.log).toHaveLength(2);
      expect(outline(model.log[1])).toEqual([
        "user: search",
        "assistant: Let me search. | server_tool_use",
      ]);
      expect(conversation.messages).toHaveLength(3);
      await goesOn(opened, [
        "user: search",
        "assistant: Let me search. | server_tool_use | web_search_tool_result | Found it.",
        "user: go on",
      ]);
    });

    it("pause_turn, twice, then the rest", async () => {
      const { model, turn } = await open(section);
      model.script(PAUSED, { content: [...SEARCH], stopReason: "pause_turn" }, say("Done."));
      expect(await turn("search")).toContain("Done.");
      expect(model.log).toHaveLength(3);
    });

    it("refusal: the turn stays in the history and is left out later", async () => {
      const opened = await open(section);
      opened.model.script(say("Hello."), say("I can't", { stopReason: "refusal" }));
      await opened.turn("hi");
      await opened.turn("something bad");
      expect(opened.texts()).toContain("user: something bad");
      await goesOn(opened, ["user: hi", "assistant: Hello.", "user: go on"]);
    });

    it("refusal of the first turn, with nothing said", async () => {
      const opened = await open(section);
      opened.model.script({ content: [], stopReason: "refusal" });
      await opened.turn("something bad");
      await goesOn(opened, ["user: go on"]);
    });

    it("refusal after a pause: the whole turn is left out", async () => {
      const opened = await open(section);
      opened.model.script(say("Hello."), PAUSED, { content: [], stopReason: "refusal" });
      await opened.turn("hi");
      await opened.turn("something bad");
      await goesOn(opened, ["user: hi", "assistant: Hello.", "user: go on"]);
    });

    it("a stop reason that is not known yet ends the turn", async () => {
      const opened = await open(section);
      opened.model.script(say("Hm.", { stopReason: "something_new" }));
      expect(await opened.turn("hi")).toBe("Hm.");
      await goesOn(opened, ["user: hi", "assistant: Hm.", "user: go on"]);
    });
  });

  describe("streaming", () => {
    it("hands over the pieces in order, as they come", async () => {
      const { model, turn, pieces } = await open(section);
      const long = Array.from({ length: 60 }, (_, index) => `word${index}`).join(" ");
      model.script(say(long));
      expect(await turn("hi")).toBe(long);
      expect(pieces.filter(Boolean).length).toBeGreaterThan(5);
      expect(pieces.join("")).toBe(long);
    });

    it("hands over the first piece while the rest is not yet there", async () => {
      const { model, pieces, turn } = await open(section);
      model.script(say("The beginning, and then the rest of it.", { holdAfter: 4 }));
      const heard: string[] = [];
      onStreamEvent((count) => {
        // The piece of this event is handed over right afterwards; then the model waits.
        if (count !== 3) return;
        queueMicrotask(() => {
          heard.push(pieces.join(""));
          model.release();
        });
      });
      await turn("hi");
      expect(heard.join("")).toMatch(/^The beg/);
      expect(heard.join("")).not.toMatch(/of it/);
    });

    it("needs nobody who listens", async () => {
      const { model, conversation, runTurn } = await open(section);
      model.script(say("Hello."));
      expect(await runTurn(conversation, "hi", {})).toBe("Hello.");
    });
  });

  describe("Ctrl+C", () => {
    it("before the request: none is made", async () => {
      const opened = await open(section);
      const told = await opened.turn("hi", AbortSignal.abort());
      expect(told).toContain("(interrupted)");
      expect(opened.model.log).toHaveLength(0);
      expect(opened.texts()).toEqual(["user: hi", "assistant: (interrupted)"]);
      await goesOn(opened, ["user: hi", "assistant: (interrupted)", "user: go on"]);
    });

    it("before the first byte", async () => {
      const opened = await open(section);
      const stop = new AbortController();
      const held = opened.model.hold();
      const turn = opened.turn("hi", stop.signal);
      await held.waiting;
      stop.abort();
      expect(await turn).toContain("(interrupted)");
      expect(opened.pieces.join("")).toContain("(interrupted)");
      await goesOn(opened, ["user: hi", "assistant: (interrupted)", "user: go on"]);
    });

    it("in the middle of a text: what arrived is kept", async () => {
      const opened = await open(section);
      const stop = new AbortController();
      opened.model.script(say("The beginning, and then the rest of it.", { holdAfter: 4 }));
      onStreamEvent((count) => count === 3 && stop.abort());
      const told = await opened.turn("hi", stop.signal);
      expect(told).toMatch(/^The beg.*\(interrupted\)$/);
      expect(told).not.toContain("of it");
      const [, reply] = opened.conversation.messages;
      expect(reply?.content).toHaveLength(2);
      expect(reply?.content[1]).toMatchObject({ type: "text", text: "(interrupted)" });
      const kept = reply?.content[0]?.type === "text" ? reply.content[0].text : "";
      await goesOn(opened, ["user: hi", `assistant: ${kept} | (interrupted)`, "user: go on"]);
    });

    it("in the middle of thinking: it is dropped", async () => {
      const opened = await open(section);
      const stop = new AbortController();
      opened.model.script({ content: [thinking, ...SEARCH.slice(0, 1)], holdAfter: 4 });
      onStreamEvent((count) => count === 3 && stop.abort());
      expect(await opened.turn("hi", stop.signal)).toContain("(interrupted)");
      await goesOn(opened, ["user: hi", "assistant: (interrupted)", "user: go on"]);
    });

    it("after thinking, in the middle of the text: the thinking is kept", async () => {
      const opened = await open(section);
      const stop = new AbortController();
      // start, ping; a block's start, two pieces, signature, stop; the text's start and a piece
      opened.model.script({
        content: [thinking, { type: "text", text: "The beginning, and then the rest." }],
        holdAfter: 9,
      });
      onStreamEvent((count) => count === 8 && stop.abort());
      await opened.turn("hi", stop.signal);
      expect(opened.conversation.messages[1]?.content[0]).toEqual(thinking);
      await opened.turn("go on").catch(() => {}); // nothing is scripted; its request is checked
      expect(blocks(opened.model.log.at(-1)?.request.messages[1])[0]).toEqual(thinking);
    });

    it("when the reply is complete: nothing is lost", async () => {
      const opened = await open(section);
      const stop = new AbortController();
      opened.model.script(say("Hello."));
      expect(await opened.turn("hi", stop.signal)).toBe("Hello.");
      stop.abort();
      expect(opened.texts()).toEqual(["user: hi", "assistant: Hello."]);
      await goesOn(opened, ["user: hi", "assistant: Hello.", "user: go on"]);
    });
  });

  describe("errors", () => {
    it.each([...ERRORS, ...BROKEN])(
      "%s: the user's message stays, and the next turn works",
      async (kind) => {
        const opened = await open(section);
        opened.model.script(say("Hello."));
        await opened.turn("hi");
        retryAtOnce();
        opened.model.fail(kind, kind === "drop" ? attempts(section) : 1);
        await expect(opened.turn("are you there?")).rejects.toThrow();
        expect(opened.texts()).toEqual(["user: hi", "assistant: Hello.", "user: are you there?"]);
        await goesOn(opened, ["user: hi", "assistant: Hello.", "user: are you there? | go on"]);
      },
    );

    it("several in a row lose nothing", async () => {
      const opened = await open(section);
      opened.model.fail("500", 3);
      for (const line of ["one", "two", "three"]) await opened.turn(line).catch(() => {});
      await goesOn(opened, ["user: one | two | three | go on"]);
    });
  });

  describe("what comes back", () => {
    it("an empty reply leaves the conversation valid", async () => {
      const opened = await open(section);
      opened.model.script({ content: [], stopReason: "end_turn" });
      expect(await opened.turn("hi")).toBe("");
      await goesOn(opened, ["user: hi | go on"]);
    });

    it("blank blocks are not sent back", async () => {
      const opened = await open(section);
      const blank = (text: string) => ({ type: "text", text });
      opened.model.script(
        { content: [blank("\n\n"), blank("Hello."), blank(" ")] },
        { content: [blank(" \n ")] },
      );
      await opened.turn("hi");
      await opened.turn("and?");
      await goesOn(opened, ["user: hi", "assistant: Hello.", "user: and? | go on"]);
    });

    it("thinking is stored and sent back unchanged", async () => {
      const opened = await open(section);
      const redacted = { type: "redacted_thinking", data: "c2VjcmV0" };
      const content = [thinking, redacted, { type: "text", text: "Hello." }];
      opened.model.script({ content });
      await opened.turn("hi");
      expect(opened.conversation.messages[1]?.content.slice(0, 2)).toEqual([thinking, redacted]);
      opened.model.script(say("Still here."));
      await opened.turn("go on");
      expect(blocks(opened.model.log[1]?.request.messages[1]).slice(0, 2)).toEqual([
        thinking,
        redacted,
      ]);
    });

    it("thinking that was cut off is not sent back", async () => {
      const opened = await open(section);
      opened.model.script({ content: [thinking], stopReason: "max_tokens" });
      await opened.turn("hi");
      await goesOn(opened, ["user: hi | go on"]);
    });

    it("toRequest leaves the history as it is", async () => {
      const opened = await open(section);
      opened.model.script(
        { content: [thinking, { type: "text", text: "A" }, { type: "text", text: " " }] },
        { content: [thinking], stopReason: "max_tokens" },
        say("no", { stopReason: "refusal" }),
      );
      for (const line of ["a", "b", "c"]) await opened.turn(line);
      const before = structuredClone(opened.conversation.messages);
      opened.toRequest(opened.conversation.messages);
      opened.toRequest(opened.conversation.messages);
      expect(opened.conversation.messages).toEqual(before);
    });
  });

  describe("continueTurn goes by what is stored", () => {
    it("asks nothing when the conversation is answered, or empty", async () => {
      const { model, conversation, continueTurn, turn } = await open(section);
      await continueTurn(conversation, {});
      model.script(say("Hello."));
      await turn("hi");
      await continueTurn(conversation, {});
      await continueTurn(conversation, {});
      expect(model.log).toHaveLength(1);
      expect(conversation.messages).toHaveLength(2);
    });

    it("answers what was left unanswered", async () => {
      const { model, conversation, finishTurn, turn } = await open(section);
      model.fail("500");
      await turn("hi").catch(() => {});
      model.script(say("Hello."));
      expect(await finishTurn(conversation, {})).toBe("Hello.");
      expect(outline(model.log[1])).toEqual(["user: hi"]);
    });
  });
});
