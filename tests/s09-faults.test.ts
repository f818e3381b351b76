/** s09: whose fault a failure is, what rests after it, for how long, and who hears of it. */

import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it } from "vitest";
import { closeServer, listen } from "../practice/web.ts";
import {
  calls,
  englishFrom,
  practice,
  printed,
  say,
  sectionsFrom,
  settings,
  start,
  temporaryFolder,
} from "./helper.ts";
import { failWith, MINUTE, openOnion, PRIMARY, SECOND, START } from "./s09-helper.ts";
import { afterwards } from "./world.ts";

const OTHER = "fallback-model";
const DAY = 86_400;

describe.each(sectionsFrom("s09"))("$name, whose fault it is", (file) => {
  it.each(["403", "429", "500", "504"])(
    "of a key and a model together: the same key goes on with another model (%s)",
    async (kind) => {
      const { turn, model, log, clock } = await openOnion(file, { keys: 1, fallbacks: [OTHER] });
      model.fail({ kind, model: PRIMARY });
      model.script(say("by the other"), say("by the other again"));
      expect(await turn("hello")).toBe("by the other");
      expect(await turn("again")).toBe("by the other again");
      expect(log().map((line) => line.split(":")[0])).toEqual([
        `k-1 ${PRIMARY}`,
        `k-1 ${OTHER}`,
        `k-1 ${OTHER}`,
      ]);
      expect(clock.waits).toEqual([]);
    },
  );

  it.each(["401", "402"])("of the key: it is asked for no model (%s)", async (kind) => {
    const { turn, model, keysUsed } = await openOnion(file, { keys: 1, fallbacks: [OTHER] });
    model.fail({ kind, times: 9 });
    await expect(turn("hello")).rejects.toThrow();
    expect(keysUsed()).toEqual(["k-1"]);
  });

  it("of the account, though the API calls it a bad request: the next key answers", async () => {
    const { turn, model, keysUsed, resting } = await openOnion(file);
    const words = "Your credit balance is too low to access the Anthropic API.";
    model.script(failWith(400, "invalid_request_error", words), say("hello"));
    expect(await turn("hello")).toBe("hello");
    expect(keysUsed()).toEqual(["k-1", "k-2"]);
    expect(resting()).toEqual({ K1: 600 });
  });

  it("of the request: tried once, and nothing rests for the others", async () => {
    const { section, app, turn, model, stored, keysUsed } = await openOnion(file, {
      fallbacks: [OTHER],
    });
    model.fail("400");
    await expect(turn("hello")).rejects.toThrow();
    model.script(say("yes"));
    const other = app.store.current("agent:luna:cli:direct:other");
    expect(await section.runTurn(other, "and you?", { app })).toBe("yes");
    expect([keysUsed(), stored()]).toEqual([["k-1", "k-1"], ""]);
  });

  it("of the reply, which can't be read: tried once, and nothing rests", async () => {
    let requests = 0;
    const server = createServer((request, response) => {
      requests += 1;
      request.resume().on("end", () => {
        response.writeHead(200, { "content-type": "text/event-stream" });
        response.end("event: message_start\ndata: {nope\n\n");
      });
    });
    const url = await listen(server);
    afterwards(() => closeServer(server));
    const given = { ANTHROPIC_BASE_URL: url };
    const { turn, stored, clock } = await openOnion(file, { settings: given, fallbacks: [OTHER] });
    await expect(turn("hello")).rejects.toThrow(/JSON/);
    expect([requests, stored(), clock.waits]).toEqual([1, "", []]);
  });

  it("of a server: with another base URL the same file makes nobody wait", async () => {
    const folder = temporaryFolder();
    const wrong = await openOnion(file, { folder, keys: 1 });
    for (const kind of ["404", "401"]) {
      wrong.model.fail(kind);
      await expect(wrong.turn("hello")).rejects.toThrow();
      wrong.clock.at += 600 * SECOND;
    }
    wrong.model.fail("401");
    await expect(wrong.turn("hello")).rejects.toThrow();
    expect(wrong.resting()).toEqual({ K1: 1200 });
    const mended = await openOnion(file, { folder, keys: 1 });
    mended.clock.at = wrong.clock.at;
    mended.model.script(say("I answer"));
    expect(await mended.turn("hello")).toBe("I answer");
  });
});

describe.each(sectionsFrom("s09"))("$name, how long", (file) => {
  it("as the API asks by a date", async () => {
    const { turn, model, clock } = await openOnion(file, { keys: 1 });
    const headers = { "retry-after": new Date(START + 30 * SECOND).toUTCString() };
    model.script(failWith(429, "rate_limit_error", "no", headers), say("done"));
    expect(await turn("hello")).toBe("done");
    expect(clock.waits).toEqual([30 * SECOND]);
  });

  it.each(["soon", "-5", "", new Date(START - MINUTE).toUTCString()])(
    "by our own table if the header makes no sense: %j",
    async (value) => {
      const { turn, model, clock } = await openOnion(file, { keys: 1 });
      const headers = { "retry-after": value };
      model.script(failWith(429, "rate_limit_error", "no", headers), say("done"));
      expect(await turn("hello")).toBe("done");
      expect(clock.waits).toEqual([5 * SECOND]);
    },
  );

  it("a day at most, and that outlives a restart", async () => {
    for (const asked of ["200000", "Infinity", new Date(START + 3 * DAY * SECOND).toUTCString()]) {
      const { section, turn, model, resting, state, clock, profiles } = await openOnion(file, {
        keys: 1,
      });
      model.script(failWith(429, "rate_limit_error", "no", { "retry-after": asked }));
      await expect(turn("hello")).rejects.toThrow();
      expect(resting(), asked).toEqual({ K1: DAY });
      const again = new section.ProfileManager(profiles.profiles, state, clock.now);
      expect(again.choose([PRIMARY]).at - clock.at).toBe(DAY * SECOND);
    }
  });

  it("is forgotten, and the budget is whole again, when a turn has got further", async () => {
    const { turn, model, clock, give } = await openOnion(file, { keys: 1 });
    give("step");
    const overloaded = failWith(529, "overloaded_error", "no", { "retry-after": "50" });
    const answers = Array.from({ length: 8 }, () => [calls(["step", {}]), overloaded]).flat();
    model.script(...answers, say("done"));
    expect(await turn("go")).toMatch(/done$/);
    // All in all more than the budget of 120 s, and each time as if it were the first failure.
    expect(clock.waits).toEqual(new Array(8).fill(50 * SECOND));
  });

  it("counts a long wait for a first byte in full, after one attempt", async () => {
    const { section, resilience, clock } = await openOnion(file, { keys: 2 });
    let runs = 0;
    const silent = async () => {
      runs += 1;
      clock.at += 300 * SECOND;
      throw new Anthropic.APIUserAbortError();
    };
    await expect(resilience.run(new section.Conversation(), {}, silent)).rejects.toThrow();
    expect(runs).toBe(1);
  });
});

describe.each(sectionsFrom("s09"))("$name, who hears of it", (file) => {
  /** Sends by the gateway, and gives what the client got, in order. */
  async function send(onion: Awaited<ReturnType<typeof openOnion>>, text: string) {
    const got: [method: string, params: object][] = [];
    const connection = {
      peerId: "ws-1",
      notify: (method: string, params: object) => void got.push([method, params]),
    };
    await onion.section.METHODS.send?.({ text }, onion.app, connection as never);
    return got.filter(([method]) => method !== "typing");
  }

  it("a client, with what stays of the turn, so that no piece is there twice", async () => {
    const onion = await openOnion(file);
    onion.give("look");
    const first = { ...calls(["look", {}]) };
    first.content = [{ type: "text", text: "Let me look." }, ...(first.content ?? [])];
    const broken = { content: [{ type: "text" as const, text: "It is a long" }], breakAfter: 5 };
    onion.model.script(first, broken, say("It is a long way."));
    const got = await send(onion, "look");
    expect(got.map(([method]) => method)).toContain("restart");
    const last = got.findLastIndex(([method]) => method === "restart");
    const after = got.slice(last + 1).map(([, params]) => (params as { text: string }).text);
    expect(after[0]).toBe("Let me look.");
    expect(after.join("")).toBe("Let me look.It is a long way.");
  });

  it("nobody, if nothing had been streamed", async () => {
    const onion = await openOnion(file);
    onion.model.fail("429");
    onion.model.fail("529");
    onion.model.script(say("hello"));
    const got = await send(onion, "hello");
    expect(got.map(([method]) => method)).not.toContain("restart");
  });

  it("the terminal: what was streamed begins anew", async () => {
    const { section, app, model } = await openOnion(file);
    app.channels.set("cli", new section.CliChannel(app) as never);
    model.fail("break");
    model.script(say("The whole answer."));
    const message = {
      ...{ id: "cli:1", channel: "cli", accountId: "local", peerId: "owner", senderId: "owner" },
      ...{ isGroup: false, text: "hi", media: [], at: START },
    };
    await section.accept(app, message).done;
    const lines = printed().split("\n");
    const restart = lines.findIndex((line) => /^[(（]/.test(line) && !line.includes(PRIMARY));
    expect(lines[restart - 1]).toContain(PRIMARY); // which key and model failed
    expect(lines[restart + 1]).toBe("The whole answer.");
  });

  it("the owner, once, where they wrote last: a key that is refused", async () => {
    const given = { TELEGRAM_ALLOWED_CHATS: "7" };
    const {
      section,
      app,
      turn,
      model,
      clock,
      settings: set,
    } = await openOnion(file, {
      keys: 2,
      settings: given,
    });
    const sent: string[] = [];
    const send07 = async (_to: string, text: string) => void sent.push(text);
    const telegram = { name: "telegram", limit: 4096, start: async () => {}, send: send07 };
    app.channels.set("telegram", { ...telegram, stop: async () => {} } as never);
    const ownerFile = join(String(set.CLAW0_WORKSPACE), ".state", "owner.json");
    mkdirSync(dirname(ownerFile), { recursive: true });
    writeFileSync(ownerFile, JSON.stringify({ channel: "telegram", to: "7" }));
    app.delivery.start();
    for (const text of ["one", "two"]) {
      model.fail({ kind: "401", key: "k-1" });
      model.fail({ kind: "429", key: "k-2" });
      model.script(say("answer"));
      await turn(text);
      clock.at += 3600 * SECOND;
    }
    await expect.poll(() => sent.length).toBeGreaterThan(0);
    expect(sent).toHaveLength(1);
    expect(sent[0]).toContain("K1");
    expect(section.METHODS["profiles.list"]?.({}, app, undefined as never)).toHaveLength(2);
  });
});

describe.each(englishFrom("s09"))("$name, FIRST_BYTE_SECONDS", (section) => {
  it.each(["0", "-1", "soon", "3601", "NaN"])("that makes no sense is named: %s", async (value) => {
    const model = await practice();
    const { code, text } = await start(
      section,
      settings(model, { FIRST_BYTE_SECONDS: value }),
    ).finish();
    expect(code).toBe(1);
    expect(text).toMatch(/FIRST_BYTE_SECONDS must be .* 1 to 3600/);
  });
});
