/**
 * The next request is always valid: random turns, failures, interrupts, tools, compactions and
 * restarts. What is asserted is in the helper, over the log of the model.
 */

import fs from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { PracticeModel, Scripted, ScriptedBlock } from "../practice/model.ts";
import { FAILURES } from "../practice/model-failures.ts";
import {
  call,
  load,
  onStreamEvent,
  practice,
  retryAtOnce,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  wrongIn,
} from "./helper.ts";

// ---- What may happen ----

const blank = fc.constantFrom("", " ", "\n\n");
const words = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.constantFrom("Hello.", "Grüße, 你好 👋", "A longer text. ".repeat(20)),
  },
  { weight: 1, arbitrary: blank },
);
const thinking: fc.Arbitrary<ScriptedBlock> = fc.constantFrom(
  { type: "thinking", thinking: "Let me see what this is about.", signature: "c2ln" },
  { type: "redacted_thinking", data: "c2VjcmV0" },
);
const text: fc.Arbitrary<ScriptedBlock> = words.map((said) => ({ type: "text", text: said }));
const tool: fc.Arbitrary<ScriptedBlock> = fc.constantFrom(
  call("quick", {}),
  call("quick", { n: 1 }),
  call("breaks", {}),
  call("big", {}),
  call("nothing", {}),
  call("no_such_tool", {}),
  call("read_file", {}),
  call("read_file", { path: "../secret" }),
);
const search: ScriptedBlock = {
  type: "server_tool_use",
  name: "web_search",
  input: { query: "x" },
};

const reply = (withTools: boolean): fc.Arbitrary<Scripted> => {
  const head = fc.array(fc.oneof(thinking, text), { maxLength: 2 });
  const plain = fc.record({
    content: fc.tuple(head, fc.array(text, { maxLength: 2 })).map(([a, b]) => [...a, ...b]),
    stopReason: fc.constantFrom(
      "end_turn",
      "end_turn",
      "stop_sequence",
      "max_tokens",
      "refusal",
      "model_context_window_exceeded",
    ),
  });
  const cutThinking = thinking.map((block) => ({ content: [block], stopReason: "max_tokens" }));
  const broken = fc.record({
    content: fc.tuple(head, text).map(([a, b]) => [...a, b]),
    breakAfter: fc.integer({ min: 0, max: 8 }),
  });
  const failed = fc.record({
    content: fc.tuple(head, text).map(([a, b]) => [...a, b]),
    errorAfter: fc.record({
      events: fc.integer({ min: 0, max: 8 }),
      type: fc.constantFrom("overloaded_error", "api_error"),
      message: fc.constant("no"),
    }),
  });
  const withoutCalls = [plain, plain, cutThinking, broken, failed];
  if (!withTools) return fc.oneof(...withoutCalls);
  const used = fc.tuple(head, fc.array(tool, { minLength: 1, maxLength: 3 }));
  const tools: fc.Arbitrary<Scripted> = used.map(([a, b]) => ({ content: [...a, ...b] }));
  const cut = used.map(([a, b]) => ({ content: [...a, ...b], cutToolInput: true }));
  const refused = used.map(([a, b]) => ({ content: [...a, ...b], stopReason: "refusal" }));
  const paused = head.map((a) => ({ content: [...a, search], stopReason: "pause_turn" }));
  return fc.oneof(...withoutCalls, tools, tools, tools, cut, refused, paused);
};

interface Step {
  line: string;
  /** What the model answers, one after the other; after that it says "Done.". */
  replies: Scripted[];
  /** A failure that comes before one of the answers. */
  failure?: { kind: string; before: number } | undefined;
  /** Ctrl+C: in which answer, after which event of its stream; 0 is before the request. */
  stop?: { reply: number; event: number } | undefined;
  after?: { do: "restart" | "torn" | "compact" | "shorten"; bytes: number } | undefined;
}

const maybe = <T>(value: fc.Arbitrary<T>, freq: number) =>
  fc.option(value, { nil: undefined, freq });

const steps = (withTools: boolean, withStore: boolean): fc.Arbitrary<Step[]> => {
  const after = fc.record({
    do: fc.constantFrom(
      "restart" as const,
      "torn" as const,
      "compact" as const,
      "shorten" as const,
    ),
    bytes: fc.integer({ min: 1, max: 600 }),
  });
  const step: fc.Arbitrary<Step> = fc.record({
    line: fc.constantFrom("hi", "go on", "你好", "what was that?"),
    replies: fc.array(reply(withTools), { maxLength: 3 }),
    failure: maybe(fc.record({ kind: fc.constantFrom(...FAILURES), before: fc.nat(2) }), 1),
    stop: maybe(fc.record({ reply: fc.nat(2), event: fc.nat(9) }), 1),
    after: withStore ? maybe(after, 1) : fc.constant(undefined),
  });
  return fc.array(step, { minLength: 1, maxLength: 8 });
};

// ---- Making it happen ----

/** What the model is about to do. */
class Plan {
  readonly #model: PracticeModel;
  #step: Step | undefined;
  #given = 0;
  #stop = new AbortController();
  /** The event after which Ctrl+C comes in the stream that is being read. */
  #armed = 0;

  constructor(model: PracticeModel) {
    this.#model = model;
    onStreamEvent((count) => count === this.#armed && this.#stop.abort());
  }

  begin(step?: Step): AbortSignal {
    this.#step = step;
    this.#given = 0;
    this.#armed = 0;
    this.#stop = new AbortController();
    if (step?.failure?.before === 0) this.#model.fail(step.failure.kind);
    if (step?.stop?.event === 0) this.#stop.abort();
    return this.#stop.signal;
  }

  /** The answer to the request that has just come. */
  readonly next = (): Scripted => {
    // Enough of these are always waiting: one is used up, one more is there.
    this.#model.script(this.next);
    const { replies = [], failure, stop } = this.#step ?? {};
    const index = this.#given++;
    if (failure && failure.before === index + 1) this.#model.fail(failure.kind);
    const scripted = replies[index] ?? say("Done.");
    if (!stop || stop.reply !== index || stop.event === 0) return scripted;
    // It is sent as far as that event (the SDK does not count the ping), and then the model waits.
    this.#armed = stop.event;
    return { ...scripted, holdAfter: stop.event + 1 };
  };
}

/** Tools of the test's own. */
function give({ TOOLS, HANDLERS }: Awaited<ReturnType<typeof load<"s02">>>): void {
  const run: typeof HANDLERS = {
    quick: () => "quick",
    big: () => "big ".repeat(5000),
    nothing: () => "",
    breaks: () => {
      throw new Error("it broke");
    },
  };
  for (const name of Object.keys(run)) {
    TOOLS.push({ name, description: name, input_schema: { type: "object" } });
  }
  Object.assign(HANDLERS, run);
}

/** One conversation, and what a step may do to it besides talking. */
interface Talk {
  turn(line: string, signal: AbortSignal): Promise<string>;
  after?(what: NonNullable<Step["after"]>): Promise<void>;
  /** The history as it is stored. */
  history(): { role: string; content: unknown }[];
}

/** From s03 on a session, that is restarted, torn, compacted; before that a list in memory. */
async function talks(section: SectionFile, given: Record<string, string>): Promise<() => Talk> {
  if (section.id < "s03") {
    const module = await load("s01", section, given);
    const tools = section.id === "s02" ? await load("s02", section, given) : undefined;
    if (tools) give(tools);
    const { Conversation, runTurn } = tools ?? module;
    return () => {
      const conversation = new Conversation();
      return {
        turn: (line, signal) => runTurn(conversation, line, { signal }),
        history: () => conversation.messages,
      };
    };
  }
  const module = await load("s03", section, given);
  give(module);
  const { SessionStore, ContextGuard, runTurn } = module;
  const dir = path.join(String(given.CLAW0_WORKSPACE), ".state", "sessions");
  let talk = 0;
  return () => {
    const key = `agent:luna:cli:direct:${++talk}`;
    let session = new SessionStore(dir).create(key);
    const file = () => {
      const names = fs.readdirSync(dir, { recursive: true, encoding: "utf8" });
      const name = names.find((one) => path.basename(one) === `${session.id}.jsonl`) ?? "";
      return path.join(dir, name);
    };
    // As after kill -9 at any byte of what was written last, but not of the first line, because
    // that one was on disk before anything was said.
    const tear = (bytes: number) => {
      const { size } = fs.statSync(file());
      const [header = ""] = fs.readFileSync(file(), "utf8").split("\n");
      fs.truncateSync(file(), Math.max(header.length + 1, size - bytes));
    };
    return {
      turn: (line, signal) => runTurn(session, line, { signal }),
      history: () => session.messages,
      async after(what) {
        const guard = new ContextGuard(300); // small, so that it cuts among a few messages
        const restart = () => {
          session = new SessionStore(dir).current(key);
        };
        const changes = {
          compact: () => guard.summarise(session, {}, 0.3),
          shorten: () => guard.shortenResults(session),
          restart,
          torn: () => {
            tear(what.bytes);
            restart();
          },
        };
        await changes[what.do]();
      },
    };
  };
}

const RUNS = Number(process.env.RANDOM_RUNS) || 15;

describe.each(sectionsFrom("s01"))("$name", (section) => {
  it("makes only valid requests, whatever happens", async () => {
    const model = await practice({ rules: false });
    const plan = new Plan(model);
    model.script(plan.next);
    retryAtOnce();
    const newTalk = await talks(section, settings(model, { CONTEXT_TOKENS: "16000" }));

    const property = fc.asyncProperty(
      steps(section.id > "s01", section.id > "s02"),
      async (sequence) => {
        const before = model.log.length;
        const talk = newTalk();
        for (const step of sequence) {
          const signal = plan.begin(step);
          await talk.turn(step.line, signal).catch(() => {});
          if (step.after) await talk.after?.(step.after).catch(() => {});
        }
        // When all goes well again, the next turn works; failures may still be on order.
        plan.begin();
        let told = "";
        for (let i = 0; i < 20 && !told; i++) {
          told = await talk.turn("are you there?", new AbortController().signal).catch(() => "");
        }
        expect(wrongIn(model.log.slice(before))[0]).toBeUndefined();
        expect(told).toContain("Done.");
        expect(JSON.stringify(talk.history())).toContain("are you there?");
      },
    );
    const seed = Number(process.env.RANDOM_SEED) || Number(section.id.slice(1));
    await fc.assert(property, {
      seed,
      numRuns: section.lang === "en" ? RUNS : Math.ceil(RUNS / 3),
    });
  });
});
