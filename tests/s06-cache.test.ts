/**
 * s06, what is paid: each request begins with the one before it, block by block, marks aside. Then
 * the API reads it from its cache. What may break that is a compaction, a refusal, another agent, or
 * a file of the prompt that has changed; nothing else.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import type { LoggedRequest, PracticeModel, Scripted } from "../practice/model.ts";
import { countRequest } from "../practice/reply.ts";
import {
  attempts,
  beginsWith,
  brokenPrefixes,
  call,
  calls,
  onStreamEvent,
  practice,
  retryAtOnce,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import { load06 } from "./world.ts";

const KEY = "agent:luna:cli:direct:owner";

/** What the API says that it has read from the cache, and what there was to be read. */
const readOf = ({ usage }: LoggedRequest) => usage?.cache_read_input_tokens ?? 0;
const wholeOf = ({ usage }: LoggedRequest) =>
  (usage?.cache_read_input_tokens ?? 0) + (usage?.cache_creation_input_tokens ?? 0);

async function open(section: SectionFile, more: Record<string, string> = {}) {
  const model = await practice({ rules: false });
  const workspace = temporaryFolder();
  // Long enough to be worth keeping: the API keeps nothing below a minimum.
  for (const file of ["IDENTITY.md", "SOUL.md", "MEMORY.md"]) {
    writeFileSync(join(workspace, file), `# ${file}\n\n- ${"A line of it. ".repeat(100)}`);
  }
  mkdirSync(join(workspace, "agents/sage"), { recursive: true });
  writeFileSync(join(workspace, "agents/sage/SOUL.md"), "The soul of Sage.");
  const s06 = await load06(section, settings(model, { CLAW0_WORKSPACE: workspace, ...more }));
  const dir = join(workspace, ".state/sessions");
  const restart = () => new s06.SessionStore(dir).current(KEY);
  const give = (name: string, run: (typeof s06.HANDLERS)[string]) => {
    s06.TOOLS.push({ name, description: name, input_schema: { type: "object" } });
    s06.HANDLERS[name] = run;
  };
  let session = restart();
  // A minute passes with each turn: what is written down stays as it was.
  vi.useFakeTimers({ toFake: ["Date"], now: Date.UTC(2026, 0, 5, 10) });
  type Options = Parameters<typeof s06.runTurn>[2];
  const turn = (input: string, options: Options = {}) => {
    vi.setSystemTime(Date.now() + 60_000);
    return s06.runTurn(session, input, options);
  };
  return {
    ...s06,
    workspace,
    model,
    give,
    turn,
    session: () => session,
    restart: () => {
      session = restart();
    },
  };
}

/** All that may be said in a turn without spoiling the cache. */
const THINKING = { type: "thinking", thinking: "Let me see.", signature: "c2ln" };
const SEARCH = { type: "server_tool_use", name: "web_search", input: { query: "x" } };
const REPLIES: [what: string, replies: Scripted[]][] = [
  ["a plain answer", [say("Hello.")]],
  ["one tool", [calls(["look", {}]), say("Seen.")]],
  [
    "several tools, twice",
    [calls(["look", {}], ["look", {}], ["no_such", {}]), calls(["look", {}]), say("Seen.")],
  ],
  ["the clock", [calls(["get_current_time", {}]), say("It is ten.")]],
  ["thinking before a call", [{ content: [THINKING, call("look", {})] }, say("Seen.")]],
  [
    "blank blocks",
    [
      {
        content: [
          { type: "text", text: "\n" },
          { type: "text", text: "Yes." },
        ],
      },
    ],
  ],
  ["nothing", [{ content: [], stopReason: "end_turn" }]],
  ["a pause", [{ content: [SEARCH], stopReason: "pause_turn" }, say("Found.")]],
  ["a reply that was cut off", [say("A long", { stopReason: "max_tokens" })]],
  [
    "a call that was cut off",
    [{ content: [call("look", { path: "a long one" })], cutToolInput: true }],
  ],
  ["thinking that was cut off", [{ content: [THINKING], stopReason: "max_tokens" }]],
];

describe.each(sectionsFrom("s06"))("$name, request n+1 begins with request n", (section) => {
  it("whatever is answered, and over a restart; the API reads it from its cache", async () => {
    const opened = await open(section);
    const { model, give, turn, restart } = opened;
    give("look", () => "seen");
    for (const [what, replies] of [...REPLIES, ...REPLIES]) {
      model.script(...replies);
      await turn(`and now: ${what}`);
      if (what === "several tools, twice" || what === "nothing") restart();
    }
    expect(model.log.length).toBeGreaterThan(30);
    expect(brokenPrefixes(model.log)).toEqual([]);
    for (const [index, entry] of model.log.entries()) {
      const before = model.log[index - 1];
      if (!before) continue;
      // All that was sent before is read, and not paid in full again.
      expect(readOf(entry), `request ${index + 1}`).toBeGreaterThanOrEqual(wholeOf(before));
      expect(readOf(entry)).toBeGreaterThan(512);
      expect(entry.usage?.input_tokens).toBeLessThan(
        countRequest(entry.request) - readOf(entry) + 1,
      );
    }
  });

  it.each(["500", "400", "drop", "break", "stream-error"])("after a failure: %s", async (kind) => {
    const { model, turn, give, restart } = await open(section);
    retryAtOnce();
    give("look", () => {
      model.fail(kind, kind === "drop" ? attempts(section) : 1);
      return "seen";
    });
    model.script(say("Hello."), calls(["look", {}]));
    await turn("hi");
    await expect(turn("look")).rejects.toThrow();
    model.script(say("Here."), say("Here."));
    await turn("go on");
    restart();
    await turn("and on");
    expect(model.log.length).toBeGreaterThan(4);
    expect(brokenPrefixes(model.log)).toEqual([]);
  });

  it("after Ctrl+C: in a text, in the input of a call, in a tool", async () => {
    const { model, turn, give, restart } = await open(section);
    let stop = new AbortController();
    let after = 0; // the event of the stream after which it comes
    onStreamEvent((count) => count === after && stop.abort());
    give("look", () => "seen");
    give("wait", () => {
      stop.abort();
      throw new Error("stopped by the user");
    });
    const interrupted = async (at: number, ...replies: Scripted[]) => {
      [stop, after] = [new AbortController(), at];
      model.script(...replies);
      expect(await turn("stop me", { signal: stop.signal })).toContain("(interrupted)");
      after = 0;
      model.script(calls(["look", {}]), say("Here."));
      await turn("go on");
    };
    await interrupted(4, say("A beginning, and then the rest.", { holdAfter: 5 }));
    await interrupted(4, { content: [call("look", { path: "long enough" })], holdAfter: 5 });
    restart();
    await interrupted(0, calls(["look", {}], ["wait", {}]));
    expect(brokenPrefixes(model.log)).toEqual([]);
  });
});

describe.each(sectionsFrom("s06"))("$name, what begins anew, and what it costs", (section) => {
  /** Two turns, then what breaks it, then a turn. Gives the last two requests. */
  async function around(opened: Awaited<ReturnType<typeof open>>, event: () => unknown) {
    const { model, turn } = opened;
    model.script(say("One."), say("Two."));
    await turn("one");
    await turn("two");
    expect(brokenPrefixes(model.log)).toEqual([]);
    const before = lastOf(model);
    await event();
    model.script(say("Three."));
    await turn("three");
    return [before, lastOf(model)] as const;
  }
  const lastOf = ({ log }: PracticeModel) => {
    const last = log.at(-1);
    if (!last) throw new Error("nothing was asked");
    return last;
  };

  it("a refusal: what was refused is left out, and the prompt is still read", async () => {
    const opened = await open(section);
    const [, last] = await around(opened, async () => {
      opened.model.script({ content: [], stopReason: "refusal" });
      await opened.turn("something bad");
    });
    expect(beginsWith(last, opened.model.log.at(-2) ?? last)).toBe(false);
    expect(readOf(last)).toBeGreaterThan(512);
  });

  it("a compaction: tools and prompt are read, the conversation is new", async () => {
    const opened = await open(section);
    const [before, last] = await around(opened, async () => {
      opened.model.script(say("A summary."));
      await new opened.ContextGuard(100_000).summarise(opened.session(), {}, 0);
    });
    expect(beginsWith(last, before)).toBe(false);
    expect(JSON.stringify(last.request.messages)).toContain("A summary.");
    expect(readOf(last)).toBeGreaterThan(512);
    expect(readOf(last)).toBeLessThan(wholeOf(before));
  });

  it("another agent, and a file of the prompt that changed: all is new", async () => {
    const opened = await open(section);
    const { model, turn, AGENTS, workspace } = opened;
    const [before] = await around(opened, () => {
      writeFileSync(join(workspace, "SOUL.md"), "Another soul.");
    });
    expect(beginsWith(lastOf(model), before)).toBe(false);
    expect(readOf(lastOf(model))).toBe(0);
    model.script(say("Four."), say("Five."), say("Six."));
    await turn("four");
    expect(readOf(lastOf(model))).toBeGreaterThan(512);
    const kept = lastOf(model);
    await turn("five", { agent: AGENTS.find(({ id }) => id === "sage") });
    expect(beginsWith(lastOf(model), kept)).toBe(false);
    expect(readOf(lastOf(model))).toBe(0);
    await turn("six");
    expect(beginsWith(lastOf(model), kept)).toBe(true);
  });
});
