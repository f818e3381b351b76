/** s09, layer 1 of the onion: which key, which model, how long, and when not at all. */

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it, vi } from "vitest";
import type { PracticeRequest } from "../practice/model.ts";
import { calls, outline, printed, say, sectionsFrom, temporaryFolder } from "./helper.ts";
import {
  failWith,
  MINUTE,
  openOnion,
  PRIMARY,
  type Reason,
  SECOND,
  START,
  until,
} from "./s09-helper.ts";

const OTHER = "fallback-model";

/** Seconds of rest, from the first failure in a row to the last but one that makes a difference. */
const RESTS: [reason: Reason, seconds: number[]][] = [
  ["rate_limit", [5, 10, 20, 40, 80, 160, 300, 300]],
  ["overloaded", [2, 4, 8, 16, 32, 60, 60]],
  ["timeout", [1, 2, 4, 8, 16, 32, 60, 60]],
  ["unknown", [1, 2, 4, 8, 16, 32, 60, 60]],
  ["auth", [600, 1200, 2400, 3600, 3600]],
  ["billing", [600, 1200, 2400, 4800, 9600, 19_200, 38_400, 76_800, 86_400, 86_400]],
];

describe.each(sectionsFrom("s09"))("$name, a cooldown", (file) => {
  it("doubles with each failure in a row, up to its cap, and is counted by reason", async () => {
    const { profiles, clock, resting } = await openOnion(file);
    for (const [reason, seconds] of RESTS) {
      const id = `${reason} key`;
      for (const [index, wanted] of seconds.entries()) {
        profiles.fail(id, reason);
        expect(resting()[reason], `${reason} ${index + 1}`).toBe(wanted);
        clock.at = profiles.readyAt(id) - 1;
        expect(profiles.readyAt(id)).toBe(clock.at + 1);
        clock.at += 1;
        expect(profiles.readyAt(id)).toBe(0);
      }
      // Of another kind it is the first one again.
      const other = reason === "auth" ? "rate_limit" : "auth";
      profiles.fail(id, other);
      expect(resting()[reason]).toBe(other === "auth" ? 600 : 5);
      clock.at = profiles.readyAt(id);
      profiles.succeed([id]);
      profiles.fail(id, reason);
      expect(resting()[reason]).toBe(seconds[0]);
      profiles.clear();
    }
  });

  it("is not made longer while it runs, nor ended by an older success", async () => {
    const { profiles, clock, resting } = await openOnion(file);
    profiles.fail("K", "rate_limit");
    clock.at += 2 * SECOND;
    for (const reason of ["rate_limit", "billing", "timeout"] as const) profiles.fail("K", reason);
    profiles.succeed(["K"]);
    expect(resting()).toEqual({ K: 3 });
    clock.at += 3 * SECOND;
    profiles.fail("K", "rate_limit");
    expect(resting()).toEqual({ K: 10 });
  });

  it("is as long as the API asks, if that is longer", async () => {
    const { profiles, clock, resting } = await openOnion(file);
    profiles.fail("K", "rate_limit", 120);
    profiles.fail("L", "rate_limit", 3);
    expect(resting()).toEqual({ K: 120, L: 5 });
    // The clock is put back: nobody waits for that.
    clock.at -= 10 * MINUTE;
    expect(resting()).toEqual({});
  });

  it("outlives the program, but not the key; and the key is in no file", async () => {
    const one = await openOnion(file);
    one.model.fail({ kind: "401", key: "k-1" });
    one.model.script(say("by the second"));
    expect(await one.turn("hello")).toBe("by the second");
    expect(one.resting()).toEqual({ K1: 600 });
    for (const name of readdirSync(one.folder, { recursive: true, encoding: "utf8" }))
      if (/json/.test(name))
        expect(readFileSync(join(one.folder, name), "utf8")).not.toMatch(/k-[123]/);
    expect(printed()).not.toMatch(/k-[123]/);

    const { ProfileManager } = one.section;
    const again = (key: string) =>
      new ProfileManager([{ name: "K1", key }], one.state, one.clock.now);
    const [old, fresh] = [again("k-1"), again("k-new")];
    expect(old.choose(["m"]).at).toBe(START + 600 * SECOND);
    expect(fresh.choose(["m"]).at).toBe(0);
  });

  it.each([
    ["null", "{}", "[]", "7", '"x"', ""],
    ['{"K":null}', '{"K":7}', '{"K":[]}', '{"K":{}}', '{"K":"x"}'],
    ['{"K":{"until":"x"}}', '{"K":{"until":null}}', '{"K":{"until":-1}}', '{"K":{"until":[]}}'],
    ['{"K":{"until":1e300}}', '{"K":{"until":1e300,"since":0,"count":1,"reason":"auth"}}'],
    ['{"K":{"until":99,"since":1,"count":"x","reason":"rate_limit"}}'],
    ['{"K":{"until":99,"since":"x","reason":"rate_limit"}}'],
    ['{"K":{"until":99,"since":1,"count":-5,"reason":"rate_limit"}}'],
    ['{"K":{"until":99,"since":1,"count":1,"reason":{}}}', '{"K":', "\u0000"],
  ])("is none if its file makes no sense: %s", async (...contents) => {
    const { section, state, clock, app, type, idOfKey } = await openOnion(file);
    const expectUsable = async (name: string, content: string) => {
      writeFileSync(state, content.replace('"K"', JSON.stringify(name)));
      const profile = { name: "K1", key: "k-1" };
      const profiles = new section.ProfileManager([profile], state, clock.now);
      // Nobody waits for ever, and each failure makes its wait.
      Object.assign(app, { profiles });
      for (const one of ["profiles", "cooldowns"]) expect(await type(one)).toBeTypeOf("string");
      const { at } = profiles.choose([PRIMARY]);
      expect(at - clock.at, content).toBeLessThanOrEqual(86_400 * SECOND);
      if (at > 0) return;
      profiles.fail(name, "rate_limit");
      const rest = profiles.readyAt(name) - clock.at;
      expect(rest, content).toBeGreaterThanOrEqual(5 * SECOND);
      expect(rest, content).toBeLessThanOrEqual(300 * SECOND);
    };
    for (const content of contents) {
      for (const name of [idOfKey(1), section.cooldownId({ model: PRIMARY })])
        await expectUsable(name, content);
    }
  });
});

describe.each(sectionsFrom("s09"))("$name, keys and models", (file) => {
  it("takes the next key when one is at its limit, and stays with it", async () => {
    const { turn, model, keysUsed, resting, clock, stored } = await openOnion(file);
    model.fail("429");
    model.script(say("one"), say("two"), say("three"));
    expect(await turn("hello")).toBe("one");
    expect(resting()).toEqual({ K1: 5 });
    clock.at += MINUTE; // the first could be used again, and is not
    expect(await turn("again")).toBe("two");
    expect(await turn("and again")).toBe("three");
    expect(keysUsed()).toEqual(["k-1", "k-2", "k-2", "k-2"]);
    expect(clock.waits).toEqual([]);
    // A key that was not used has not proved anything.
    expect(stored()).toContain("rate_limit");
  });

  it("goes through all keys, then waits for the one that is ready first", async () => {
    const { turn, model, keysUsed, resting, clock, stored, log } = await openOnion(file);
    model.fail({ kind: "429", key: "k-1", retryAfter: 30 });
    model.fail({ kind: "429", key: "k-2", retryAfter: 20 });
    model.fail({ kind: "429", key: "k-3", retryAfter: 40 });
    model.script(say("done"));
    expect(await turn("hello")).toBe("done");
    expect(keysUsed()).toEqual(["k-1", "k-2", "k-3", "k-2"]);
    expect(clock.waits).toEqual([20 * SECOND]);
    expect(resting()).toEqual({ K1: 10, K3: 20 });
    expect(stored()).not.toContain("K2");
    expect(log().at(-1)).toBe(`k-2 ${PRIMARY}: end_turn`);
  });

  it("lets the model rest when there is too much to do, and locks no key", async () => {
    const { turn, model, log, resting, clock } = await openOnion(file, { fallbacks: [OTHER] });
    model.fail("529");
    model.script(say("by the other"), say("by the first"));
    expect(await turn("hello")).toBe("by the other");
    expect(log()).toEqual([`k-1 ${PRIMARY}: overloaded_error`, `k-1 ${OTHER}: end_turn`]);
    expect(resting()).toEqual({ [PRIMARY]: 2 });
    clock.at += 2 * SECOND;
    expect(await turn("again")).toBe("by the first");
    expect(log().at(-1)).toBe(`k-1 ${PRIMARY}: end_turn`);
    // An overload that is told in the stream is one, too.
    model.fail("stream-error");
    model.script(say("by the other again"));
    expect(await turn("hello")).toBe("by the other again");
    expect(log().slice(-2)).toEqual([`k-1 ${PRIMARY}: overloaded_error`, `k-1 ${OTHER}: end_turn`]);
  });

  it("survives a model that is overloaded for a minute", async () => {
    const rigs = [
      { keys: 1 },
      { keys: 3 },
      { keys: 1, fallbacks: [OTHER] },
      { keys: 1, headers: { "retry-after": "20" } },
    ];
    for (const { headers = {}, ...options } of rigs) {
      const { turn, model, clock, keysUsed } = await openOnion(file, options);
      const brain = () =>
        clock.at < START + MINUTE
          ? failWith(529, "overloaded_error", "no", headers)
          : say("at last");
      model.script(...new Array(50).fill(brain));
      expect(await turn("hello"), JSON.stringify(options)).toBe("at last");
      expect(clock.at - START).toBeLessThan(2 * MINUTE);
      expect(new Set(keysUsed())).toEqual(new Set(["k-1"]));
    }
  });

  it("takes the fallback for a model that does not exist; a fallback that does not is skipped", async () => {
    const first = await openOnion(file, { fallbacks: [OTHER] });
    first.model.fail({ kind: "404", model: PRIMARY, times: 9 });
    first.model.script(say("by the other"), say("and again"));
    expect(await first.turn("hello")).toBe("by the other");
    expect(await first.turn("again")).toBe("and again");
    const missing = `k-1 ${PRIMARY}: not_found_error`;
    expect(first.log()).toEqual([missing, ...new Array(2).fill(`k-1 ${OTHER}: end_turn`)]);
    expect(Object.keys(first.resting())).toEqual([PRIMARY]);

    const second = await openOnion(file, { fallbacks: [OTHER] });
    second.model.fail({ kind: "529", model: PRIMARY });
    second.model.fail({ kind: "404", model: OTHER, times: 9 });
    second.model.script(say("by the first"));
    expect(await second.turn("hello")).toBe("by the first");
    expect(second.clock.waits).toEqual([2 * SECOND]);
  });

  it("says at once that a model does not exist if there is no other", async () => {
    const { turn, model, clock, keysUsed } = await openOnion(file);
    model.fail({ kind: "404", times: 9 });
    await expect(turn("hello")).rejects.toThrow(/model/);
    expect(keysUsed()).toEqual(["k-1"]);
    expect(clock.waits).toEqual([]);
  });

  it.each(["401", "402", "403"])(
    "tries each key once at a %s, and waits for none",
    async (kind) => {
      const { turn, model, keysUsed, clock, resting, profiles } = await openOnion(file);
      model.fail({ kind, times: 9 });
      await expect(turn("hello")).rejects.toBeInstanceOf(Anthropic.APIError);
      expect(keysUsed()).toEqual(["k-1", "k-2", "k-3"]);
      expect(clock.waits).toEqual([]);
      expect(resting()).toEqual({ K1: 600, K2: 600, K3: 600 });
      // Until then nothing is asked; what was said is kept, and answered later.
      await expect(turn("again")).rejects.toThrow();
      expect(keysUsed()).toHaveLength(3);
      model.clearFailures();
      model.script(say("at last"));
      profiles.clear();
      expect(await turn("now")).toBe("at last");
      expect(outline(model.log.at(-1))).toEqual(["user: hello | again | now"]);
    },
  );

  it.each(["400"])("tries a request that is wrong by itself once: %s", async (kind) => {
    const { turn, model, keysUsed, clock, stored } = await openOnion(file, { fallbacks: [OTHER] });
    model.fail({ kind, times: 9 });
    await expect(turn("hello")).rejects.toBeInstanceOf(Anthropic.APIError);
    expect(keysUsed()).toEqual(["k-1"]);
    expect(clock.waits).toEqual([]);
    expect(stored()).toBe("");
  });

  it("throws at once what is not the API's", async () => {
    const { section, resilience, clock, stored, model } = await openOnion(file);
    let runs = 0;
    const inner = async () => {
      runs += 1;
      throw new Error("ENOSPC: no space left on device");
    };
    await expect(resilience.run(new section.Conversation(), {}, inner)).rejects.toThrow("ENOSPC");
    expect([runs, clock.waits, stored(), model.log]).toEqual([1, [], "", []]);
  });

  it("shortens what is too long, with the same key and model", async () => {
    const { turn, model, log, stored, clock } = await openOnion(file, { fallbacks: [OTHER] });
    model.script(...[1, 2, 3].map((n) => say(`${n} ${"words ".repeat(300)}`)));
    for (const n of [1, 2, 3]) await turn(`question ${n}`);
    model.fail("overflow");
    model.script(say("the summary"), say("the answer"));
    expect(await turn("one more")).toBe("the answer");
    expect(log().slice(3)).toEqual([
      `k-1 ${PRIMARY}: invalid_request_error`,
      `k-1 ${PRIMARY}: end_turn`,
      `k-1 ${PRIMARY}: end_turn`,
    ]);
    expect(JSON.stringify(model.log.at(-1)?.request)).toContain("the summary");
    expect([stored(), clock.waits]).toEqual(["", []]);
  });

  it("takes another key or model for the summary, too, and for /compact", async () => {
    const { turn, model, log, type } = await openOnion(file, { fallbacks: [OTHER] });
    model.script(...[1, 2, 3].map((n) => say(`${n} ${"words ".repeat(300)}`)));
    for (const n of [1, 2, 3]) await turn(`question ${n}`);
    model.fail("429");
    model.fail("529");
    model.script(say("the summary"));
    await type("compact");
    expect(log().slice(3)).toEqual([
      `k-1 ${PRIMARY}: rate_limit_error`,
      `k-2 ${PRIMARY}: overloaded_error`,
      `k-2 ${OTHER}: end_turn`,
    ]);
    model.script(say("the answer"));
    await turn("go on");
    expect(JSON.stringify(model.log.at(-1)?.request)).toContain("the summary");
  });
});

describe.each(sectionsFrom("s09"))("$name, going round", (file) => {
  it.each([
    "429",
    "529",
    "500",
    "504",
    "401",
    "404",
    "drop",
    "break",
    "break-tool",
    "stream-error",
    "empty-body",
    "overflow",
  ])("runs no tool again that ran: %s", async (kind) => {
    const { turn, model, give, log } = await openOnion(file, { fallbacks: [OTHER, "third-model"] });
    const tool = give("count");
    // What an overflow can shorten.
    model.script(...[1, 2, 3].map((n) => say(`${n} ${"words ".repeat(300)}`)));
    for (const n of [1, 2, 3]) await turn(`question ${n}`);
    // It fails after the first call, and again after the second.
    const brain = ({ tools = [] }: PracticeRequest) => {
      if (tools.length === 0) return say("a summary");
      if (tool.count === 2) return say("done");
      // A second time there would be nothing left to shorten.
      if (kind !== "overflow" || tool.count === 0) model.fail({ kind });
      return calls(["count", {}]);
    };
    model.script(...new Array(9).fill(brain));
    expect(await turn("go")).toMatch(/done$/);
    expect(tool.count).toBe(2);
    expect(log().filter((line) => /tool_use$/.test(line))).toHaveLength(2);
    const results = JSON.stringify(model.log.at(-1)?.request.messages).match(/run \d/g);
    expect(results).toEqual(["run 1", "run 2"]);
  });

  it("keeps of a reply that broke off nothing, and gives the whole one", async () => {
    const { turn, model, session } = await openOnion(file);
    const heard: string[] = [];
    model.fail("break");
    model.script(say("the whole answer"));
    const said = await turn("hello", { onText: (piece: string) => heard.push(piece) });
    expect(said).toBe("the whole answer");
    expect(heard.join("")).toMatch(/the whole answer$/);
    expect(session.messages).toHaveLength(2);
  });

  it("ends: two keys that are silent, and one, and three that fail slowly", async () => {
    const rigs = [
      { keys: 1, seconds: 60, most: 3 },
      { keys: 2, seconds: 60, most: 3 },
      { keys: 3, seconds: 60, most: 3 },
      { keys: 3, seconds: 30, most: 6 },
    ];
    for (const { keys, seconds, most } of rigs) {
      const { section, resilience, clock } = await openOnion(file, { keys });
      let runs = 0;
      const silent = async () => {
        runs += 1;
        if (runs > 50) throw new Error("it goes on for ever");
        clock.at += seconds * SECOND;
        throw new Anthropic.APIUserAbortError();
      };
      await expect(resilience.run(new section.Conversation(), {}, silent)).rejects.toBeInstanceOf(
        Anthropic.APIUserAbortError,
      );
      expect(runs, `${keys} keys`).toBeGreaterThan(1);
      expect(runs, `${keys} keys`).toBeLessThanOrEqual(most);
      expect(clock.at - START).toBeLessThanOrEqual(5 * MINUTE);
    }
  });

  it("has patience after tools that took long", async () => {
    const { turn, model, clock, section } = await openOnion(file, { keys: 1 });
    section.TOOLS.push({ name: "slow", description: "slow", input_schema: { type: "object" } });
    section.HANDLERS.slow = () => {
      clock.at += 10 * MINUTE;
      model.fail("529");
      return "done";
    };
    model.script(calls(["slow", {}]), say("after all"));
    expect(await turn("go")).toBe("after all");
    expect(clock.waits).toEqual([2 * SECOND]);
  });

  it("leaves the cooldown of a key as it was that another turn's older success would end", async () => {
    const { section, app, model, resting } = await openOnion(file);
    const held = model.hold();
    const other = app.store.current("agent:luna:cli:direct:other");
    model.script(say("the newer"), say("the older"));
    const older = section.runTurn(other, "older", { app });
    await held.waiting;
    model.fail({ kind: "429", key: "k-1", retryAfter: 60 });
    await section.runTurn(app.store.current(app.key), "newer", { app });
    expect(resting()).toEqual({ K1: 60 });
    // The order is used up; what was held is answered well.
    model.clearFailures();
    held.release();
    await older;
    expect(resting()).toEqual({ K1: 60 });
  });

  it("ends at Ctrl+C while it waits: interrupted, cooldowns as they were, nothing in a burst", async () => {
    let waiting = () => {};
    const began = new Promise<void>((resolve) => {
      waiting = resolve;
    });
    const { turn, model, resting, type, session } = await openOnion(file, {
      keys: 1,
      wait: (_ms, _value, { signal } = {}) =>
        new Promise((_resolve, reject) => {
          signal?.addEventListener("abort", () => reject(new Error("aborted")));
          waiting();
        }),
    });
    model.fail({ kind: "429", retryAfter: 30 });
    const control = new AbortController();
    const said = turn("hello", { signal: control.signal });
    await began;
    await type("simulate-failure", "overloaded 9");
    const before = printed().length;
    control.abort();
    expect(await said).toContain("(interrupted)");
    expect(resting()).toEqual({ K1: 30 });
    expect(printed().slice(before)).not.toMatch(/overloaded|waiting/);
    expect(session.messages.at(-1)?.role).toBe("assistant");
    await model.idle();
    expect(model.log.length).toBeLessThanOrEqual(2); // and the second, if at all, was hung up on
    // None of what was ordered was used up.
    await type("simulate-failure", "overloaded 0");
    for (const wrong of ["", "nothing", "auth -1", "auth x", "auth 1.5"])
      await expect(type("simulate-failure", wrong), wrong).rejects.toThrow();
  });

  it("needs no key for an answer that is stored", async () => {
    const folder = temporaryFolder();
    const one = await openOnion(file, { folder });
    one.model.script(say("stored"));
    await one.turn("hello");
    for (const profile of one.profiles.profiles) expect(profile.name).toMatch(/^K/);
    one.model.fail({ kind: "402", times: 9 });
    await expect(one.turn("later")).rejects.toThrow();

    const two = await openOnion(file, { folder, model: one.model });
    const { section, app } = two;
    const other = app.store.current("agent:luna:cli:direct:other");
    other.append({ role: "user", content: [{ type: "text", text: "a question" }] });
    other.append({
      id: "msg_1",
      ...{ type: "message", role: "assistant", model: "m", stop_reason: "end_turn" },
      content: [{ type: "text", text: "its answer", citations: null }],
    } as Anthropic.Message);
    const before = two.model.log.length;
    expect(await section.finishTurn(other, { app })).toBe("its answer");
    expect(two.model.log).toHaveLength(before);
    expect(Object.keys(two.resting())).toEqual(["K1", "K2", "K3"]);
  });
});

describe.each(sectionsFrom("s09"))("$name, commands", (file) => {
  it("shows the keys, what rests and why, and the models; clears what rests", async () => {
    const { section, app, model, turn, type, clock, log } = await openOnion(file, {
      fallbacks: [OTHER, "third-model"],
    });
    const list = () => section.METHODS["profiles.list"]?.({}, app, undefined as never);
    expect((await type("fallback")).split("\n")).toEqual([PRIMARY, OTHER, "third-model"]);
    expect(await type("cooldowns")).toBe("");
    model.fail({ kind: "401", key: "k-1" });
    model.fail({ kind: "529", model: PRIMARY });
    model.script(say("hello"));
    await turn("hello");
    expect(log().map((line) => line.split(":")[0])).toEqual([
      `k-1 ${PRIMARY}`,
      `k-2 ${PRIMARY}`,
      `k-2 ${OTHER}`,
    ]);
    const readyAt = new Date(START + 600 * SECOND).toISOString();
    expect(list()).toEqual([
      { name: "K1", ready: readyAt, reason: "auth", failures: 1 },
      { name: "K2", ready: "now", reason: "", failures: 0 },
      { name: "K3", ready: "now", reason: "", failures: 0 },
    ]);
    expect(await type("profiles")).toMatch(new RegExp(`^K1 +${readyAt} +1 auth\nK2 +now +0`));
    const resting = (await type("cooldowns")).split("\n");
    expect(resting).toEqual([
      expect.stringMatching(new RegExp(`^K1 \\S+ +auth +${readyAt}$`)),
      expect.stringMatching(new RegExp(`^${PRIMARY} \\w{8} +overloaded +\\S+Z$`)),
    ]);
    for (const text of [...resting, await type("profiles")]) expect(text).not.toMatch(/k-[123]/);
    // What rests no longer is not listed.
    clock.at += 5 * SECOND;
    expect((await type("cooldowns")).split("\n")).toHaveLength(1);
    expect(await type("cooldowns", "clear")).toBe("");
    expect(list()).toMatchObject([{ ready: "now", failures: 0 }, {}, {}]);
    model.script(say("again"));
    await turn("again");
    expect(log().at(-1)).toContain(PRIMARY);
  });

  it("writes its file whole, and only when something has changed", async () => {
    const { turn, model, stored, folder } = await openOnion(file);
    model.script(say("one"), say("two"));
    await turn("one");
    expect(stored()).toBe("");
    model.fail("500");
    await turn("two");
    await until(() => stored() !== "");
    expect(Object.keys(JSON.parse(stored()))).toEqual([
      expect.stringMatching(/^K1 primary-model \w{8}$/),
    ]);
    expect(readdirSync(folder).filter((name) => name.endsWith(".tmp"))).toEqual([]);
    vi.restoreAllMocks();
  });
});
