/** s09, classifyFailure: by what the real SDK throws, over real HTTP. */

import { createServer, type ServerResponse } from "node:http";
import Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it, vi } from "vitest";
import type { Scripted } from "../practice/model.ts";
import { closeServer, listen } from "../practice/web.ts";
import { allow, practice, say, sectionsFrom, settings } from "./helper.ts";
import { failWith, load09, openOnion, type Reason, turns, until } from "./s09-helper.ts";
import { afterwards } from "./world.ts";

const REQUEST: Anthropic.MessageStreamParams = {
  model: "m",
  max_tokens: 10,
  messages: [{ role: "user", content: "hi" }],
};

const ORDERED: [kind: string, reason: Reason][] = [
  ["400", "invalid"],
  ["401", "auth"],
  ["402", "billing"],
  ["403", "auth"],
  ["404", "model"],
  ["413", "overflow"],
  ["429", "rate_limit"],
  ["500", "unknown"],
  ["504", "timeout"],
  ["529", "overloaded"],
  ["overflow", "overflow"],
  ["drop", "timeout"],
  ["empty-body", "timeout"],
  ["break", "timeout"],
  ["break-tool", "timeout"],
  ["stream-error", "overloaded"],
];

/** An error in the middle of a stream has a type and no status. */
const inStream = (type: string, message = "no"): Scripted => ({
  content: [{ type: "text", text: "some words of it" }],
  errorAfter: { events: 4, type, message },
});

const SCRIPTED: [what: string, answer: Scripted, reason: Reason][] = [
  ["type before status", failWith(500, "overloaded_error", "no"), "overloaded"],
  ["type before status", failWith(401, "rate_limit_error", "no"), "rate_limit"],
  ["type before status", failWith(429, "billing_error", "no"), "billing"],
  ["type before status", failWith(403, "invalid_request_error", "no"), "invalid"],
  ["status if the type is new", failWith(429, "throttled_error", "no"), "rate_limit"],
  ["status if the type is new", failWith(402, "constructor", "no"), "billing"],
  ["neither is known", failWith(418, "toString", "no"), "unknown"],
  ["neither is known", failWith(500, "api_error", "no"), "unknown"],
  ["408", failWith(408, "x", "no"), "timeout"],
  ["422", failWith(422, "x", "no"), "invalid"],
  ["words", failWith(500, "api_error", "rate limit, overloaded, 429, timeout"), "unknown"],
  ["words", failWith(401, "authentication_error", "token limit: generate another"), "auth"],
  ["words", failWith(400, "invalid_request_error", "your credit balance is 0"), "invalid"],
  ["words", failWith(429, "rate_limit_error", "prompt is too long for your tier"), "rate_limit"],
  [
    "words are all there is: no credit",
    failWith(400, "invalid_request_error", "Your credit balance is too low to access the API."),
    "billing",
  ],
  ["in a stream, too", inStream("invalid_request_error", "credit balance is too low"), "billing"],
  [
    "words are all there is: a limit of one's own",
    failWith(400, "invalid_request_error", "You have reached your specified API usage limits."),
    "billing",
  ],
  [
    "words are all there is: blocked",
    failWith(400, "invalid_request_error", "This organization has been disabled."),
    "auth",
  ],
  ["words", failWith(500, "api_error", "Your credit balance is too low"), "unknown"],
  ["revoked", failWith(401, "authentication_error", "invalid x-api-key"), "auth"],
  [
    "words are all there is: too long",
    failWith(400, "invalid_request_error", "prompt is too long: 9 > 8"),
    "overflow",
  ],
  ["in a stream", inStream("rate_limit_error"), "rate_limit"],
  ["in a stream", inStream("overloaded_error"), "overloaded"],
  ["in a stream", inStream("authentication_error"), "auth"],
  ["in a stream", inStream("api_error", "overloaded"), "unknown"],
  ["in a stream", inStream("invalid_request_error"), "invalid"],
];

describe.each(sectionsFrom("s09"))("$name, a failure", (file) => {
  it("has a reason by its type, else by its status, and costs one request", async () => {
    const model = await practice({ rules: false, noSdkRetry: false });
    const section = await load09(file, settings(model));
    const failing = async () => {
      const before = model.log.length;
      const error = await section.callModel(REQUEST, {}).then(
        () => undefined,
        (why) => why,
      );
      expect(model.log).toHaveLength(before + 1);
      return error;
    };
    for (const [kind, reason] of ORDERED) {
      model.fail(kind);
      const error = await failing();
      expect(error, kind).toBeInstanceOf(Anthropic.AnthropicError);
      expect(section.classifyFailure(error), kind).toBe(reason);
    }
    for (const [what, answer, reason] of SCRIPTED) {
      model.script(answer);
      const error = await failing();
      const about = `${what}: ${JSON.stringify(answer)}`;
      expect(error, about).toBeInstanceOf(Anthropic.AnthropicError);
      expect(section.classifyFailure(error), about).toBe(reason);
    }
    // What is not the API's says nothing about a key, whatever its words.
    const ours = [new Error("429 rate_limit_error"), "overloaded_error", undefined, null, 529];
    for (const one of ours) expect(section.classifyFailure(one)).toBe("unknown");
  });

  it("is of the key if the SDK finds none, or sends an empty one", async () => {
    const model = await practice({ rules: false });
    const section = await load09(file, settings(model, { ANTHROPIC_API_KEY: "" }));
    const reasonWith = async (apiKey: string | null) => {
      const client = new Anthropic({ apiKey, authToken: null, maxRetries: 0 });
      const error = await section.callModel(REQUEST, { client }).catch((why) => why);
      expect(error).toBeInstanceOf(Anthropic.AnthropicError);
      return section.classifyFailure(error);
    };
    expect(await reasonWith(null)).toBe("auth");
    expect(model.log).toEqual([]);
    model.fail("401");
    expect(await reasonWith("")).toBe("auth");
  });

  it("may be no answer of the API's at all: pages, halves, nobody there", async () => {
    let answer = (response: ServerResponse): unknown => response.end();
    const server = createServer((request, response) => {
      request.resume().on("end", () => answer(response));
    });
    const url = await listen(server);
    afterwards(() => closeServer(server));
    const section = await load09(file, settings(undefined, { ANTHROPIC_BASE_URL: url }));
    const reasonOf = async (how: typeof answer) => {
      answer = how;
      const error = await section.callModel(REQUEST, {}).catch((why) => why);
      expect(error).toBeInstanceOf(Anthropic.AnthropicError);
      return section.classifyFailure(error);
    };
    const html = { "content-type": "text/html" };
    const stream = { "content-type": "text/event-stream" };
    const start =
      'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[]}}\n\n';
    const unwell = (status: number) => (response: ServerResponse) =>
      response.writeHead(status, html).end("<h1>429 rate_limit_error</h1>");
    expect(await reasonOf(unwell(502))).toBe("unknown");
    expect(await reasonOf(unwell(529))).toBe("overloaded");
    expect(await reasonOf((response) => response.writeHead(200, stream).end("<html>"))).toBe(
      "timeout",
    );
    expect(await reasonOf((response) => response.writeHead(200, stream).end(start))).toBe(
      "timeout",
    );
    // The stream breaks off in the middle of an event: nothing is wrong with the request.
    const half = 'event: message_delta\ndata: {"type":"mess';
    expect(await reasonOf((response) => response.writeHead(200, stream).end(start + half))).toBe(
      "timeout",
    );
    expect(
      await reasonOf((response) => {
        response.writeHead(200, stream).write(start, () => response.destroy());
      }),
    ).toBe("timeout");
    // A whole event that can't be read is the reply's own fault.
    for (const data of ["{nope", "null", '{"type":"content_block_delta","index":0}']) {
      const event = `event: content_block_delta\ndata: ${data}\n\n`;
      const reason = await reasonOf((response) =>
        response.writeHead(200, stream).end(start + event),
      );
      expect(reason, data).toBe("invalid");
    }
    server.close();
    server.closeAllConnections();
    expect(await reasonOf(() => {})).toBe("timeout");
  });

  it("can be ordered, and is what the SDK itself would throw; nothing leaves", async () => {
    const { app, section, model, type } = await openOnion(file);
    const kinds: [string, Reason, number][] = [
      ["rate_limit", "rate_limit", 429],
      ["overloaded", "overloaded", 529],
      ["auth", "auth", 401],
      ["billing", "billing", 402],
      ["timeout", "timeout", 504],
      ["overflow", "overflow", 400],
      ["unknown", "unknown", 500],
    ];
    for (const [kind, reason, status] of kinds) {
      await type("simulate-failure", `${kind} 2`);
      for (const _ of [1, 2]) {
        const error = await section.callModel(REQUEST, { app }).catch((why) => why);
        expect(error).toBeInstanceOf(Anthropic.APIError);
        expect(error.status).toBe(status);
        expect(section.classifyFailure(error), kind).toBe(reason);
      }
    }
    expect(model.log).toEqual([]);
    model.script(say("now"));
    expect((await section.callModel(REQUEST, { app })).content).toMatchObject([{ text: "now" }]);
  });
});

describe.each(sectionsFrom("s09"))("$name, a stream", (file) => {
  const patient = () => vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });

  it("that is silent for a minute is a timeout, before its beginning and in its middle", async () => {
    const { turn, model, keysUsed, resting, clock } = await openOnion(file, {
      keys: 2,
      settings: { FIRST_BYTE_SECONDS: "60" },
    });
    patient();
    const held = model.hold();
    model.script({ ...say("half of it"), holdAfter: 4 }, say("whole"));
    const heard: string[] = [];
    const said = turn("hello", { onText: (piece: string) => heard.push(piece) });
    const first = await held.waiting;
    await vi.advanceTimersByTimeAsync(59_999);
    await turns();
    expect(first.aborted).toBeUndefined();
    clock.at += 60_000;
    await vi.advanceTimersByTimeAsync(1);
    await until(() => model.log.length === 2);
    expect(first.aborted).toBe(true);
    expect(resting()).toEqual({ K1: 1 });
    // The other key's stream begins, and then it falls silent.
    await until(() => heard.length > 0);
    await turns();
    clock.at += 60_000;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(await said).toBe("whole");
    expect(keysUsed()).toEqual(["k-1", "k-2", "k-1"]);
    expect(clock.waits).toEqual([]); // the first one has rested for long enough
    expect(vi.getTimerCount()).toBe(0);
    for (const entry of model.log) allow(model, entry);
  });

  it("waits for the first byte as long as is set, else 300 s at a server of one's own", async () => {
    for (const [set, seconds] of [
      ["90", 90],
      ["", 300],
    ] as const) {
      const section = await openOnion(file, {
        keys: 1,
        settings: { FIRST_BYTE_SECONDS: set },
      });
      const { turn, model, clock } = section;
      patient();
      const held = model.hold();
      model.script(say("at last"));
      const said = turn("hello").catch((why) => why);
      const first = await held.waiting;
      await vi.advanceTimersByTimeAsync(seconds * 1000 - 1);
      await turns();
      expect(first.aborted).toBeUndefined();
      // It has used up more than the budget for retries, so there is no second attempt.
      clock.at += 300_000;
      await vi.advanceTimersByTimeAsync(1);
      expect(section.section.classifyFailure(await said)).toBe("timeout");
      expect(model.log).toHaveLength(1);
      vi.useRealTimers();
    }
  });

  it("is alive as long as anything comes, also pings, and is silent after the last", async () => {
    const line: ServerResponse[] = [];
    const server = createServer((request, response) => {
      request.resume().on("end", () => {
        response.writeHead(200, { "content-type": "text/event-stream" });
        line.push(response);
      });
    });
    const url = await listen(server);
    afterwards(() => closeServer(server));
    const section = await load09(file, settings(undefined, { ANTHROPIC_BASE_URL: url }));
    // What has come in, so that the clock moves on after it, and not before.
    let arrived = 0;
    const original = globalThis.fetch;
    vi.spyOn(globalThis, "fetch").mockImplementation(async (...request) => {
      const response = await original(...request);
      const count = new TransformStream<Uint8Array, Uint8Array>({
        transform(piece, to) {
          arrived += 1;
          to.enqueue(piece);
        },
      });
      return new Response(response.body?.pipeThrough(count), response);
    });
    const event = (kind: string, more: object = {}) =>
      `event: ${kind}\ndata: ${JSON.stringify({ type: kind, ...more })}\n\n`;
    const message = { id: "m", type: "message", role: "assistant", model: "m", content: [] };
    const usage = { input_tokens: 1, output_tokens: 1 };
    const begin = event("message_start", { message: { ...message, stop_reason: null, usage } });
    const block = { type: "text", text: "" };
    const end = [
      event("content_block_start", { index: 0, content_block: block }),
      event("content_block_delta", { index: 0, delta: { type: "text_delta", text: "done" } }),
      event("content_block_stop", { index: 0 }),
      event("message_delta", { delta: { stop_reason: "end_turn" }, usage }),
      event("message_stop"),
    ].join("");
    const comes = async (piece: string) => {
      const before = arrived;
      line.at(-1)?.write(piece);
      await until(() => arrived > before);
      await turns();
    };
    for (const isAlive of [true, false]) {
      patient();
      const reply = section.callModel(REQUEST, {}).catch((why) => why);
      await until(() => line.length > 0);
      await comes(begin);
      for (let pings = 0; pings < 4; pings++) {
        await vi.advanceTimersByTimeAsync(45_000);
        await comes(event("ping"));
      }
      await vi.advanceTimersByTimeAsync(isAlive ? 59_999 : 60_000);
      if (isAlive) {
        line.at(-1)?.end(end);
        expect((await reply).content).toMatchObject([{ text: "done" }]);
      } else expect(section.classifyFailure(await reply)).toBe("timeout");
      line.length = 0;
      vi.useRealTimers();
    }
  });

  it("stopped by Ctrl+C is an interrupted answer, and neither a failure nor a success", async () => {
    const { turn, model, profiles, clock, resting, idOfKey } = await openOnion(file);
    profiles.fail(idOfKey(1), "rate_limit");
    clock.at += 5000;
    model.script({ ...say("half of it"), holdAfter: 4 });
    const control = new AbortController();
    const said = turn("hello", { signal: control.signal, onText: () => control.abort() });
    expect(await said).toContain("(interrupted)");
    await model.idle();
    expect(model.log.map(({ key }) => key)).toEqual(["k-1"]);
    expect(resting()).toEqual({});
    // Whether it works by now nobody knows: the next failure is the second in a row.
    profiles.fail(idOfKey(1), "rate_limit");
    expect(resting()).toEqual({ K1: 10 });
  });
});
