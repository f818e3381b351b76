/** Failures that are ordered: for how long, with which key, for which model, on which platform. */

import Anthropic from "@anthropic-ai/sdk";
import { Bot, type GrammyError, HttpError } from "grammy";
import { afterEach, describe, expect, it } from "vitest";
import { readFail, readFailLine } from "../practice/fail-command.ts";
import { FaultInjector, keyNumber } from "../practice/fault-injection.ts";
import { type FakeFeishu, FEISHU_FAILURES, startFeishu } from "../practice/feishu.ts";
import { type ModelOptions, type PracticeModel, startModel } from "../practice/model.ts";
import { MODEL_FAILURES } from "../practice/model-failures.ts";
import { type FakeTelegram, startTelegram, TELEGRAM_FAILURES } from "../practice/telegram.ts";

type Params = Anthropic.MessageCreateParamsNonStreaming;

const open: { close(): Promise<void> }[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((server) => server.close()));
});

async function model(options?: ModelOptions): Promise<PracticeModel> {
  const started = await startModel(options);
  open.push(started);
  return started;
}

const client = ({ url: baseURL }: PracticeModel, apiKey = "practice") =>
  new Anthropic({ apiKey, baseURL, maxRetries: 0 });

function ask(line = "what is 2+3", more: Partial<Params> = {}): Params {
  const messages = [{ role: "user" as const, content: line }];
  return { model: "claude-sonnet-5-5", max_tokens: 1000, messages, ...more };
}

const BASH: Anthropic.Tool = {
  name: "bash",
  input_schema: { type: "object", properties: { command: { type: "string" } } },
};

/** What a promise rejects with. */
const failing = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => expect.fail("this should have failed"),
    (error: unknown) => error,
  );

/** What came of a request: "ok", or the type of the API's error. */
async function outcome(sdk: Anthropic, more: Partial<Params> = {}): Promise<unknown> {
  try {
    await sdk.messages.create(ask("hi", more));
    return "ok";
  } catch (error) {
    return error instanceof Anthropic.APIError ? error.type : error;
  }
}

describe("an order", () => {
  it("counts, or lasts, or both", () => {
    let now = 0;
    const failures = new FaultInjector(["529"], () => now);
    const all = () => failures.take(() => true)?.kind;
    failures.inject({ kind: "529" });
    expect([all(), all()]).toEqual(["529", undefined]);
    failures.inject({ kind: "529", seconds: 60 });
    now = 59_999;
    expect([all(), all(), all()]).toEqual(["529", "529", "529"]);
    now = 60_000;
    expect(all()).toBeUndefined();
    failures.inject({ kind: "529", seconds: 60, times: 1 });
    expect([all(), all()]).toEqual(["529", undefined]);
    failures.inject({ kind: "529", seconds: 60, times: 1 });
    now = 120_001;
    expect(all()).toBeUndefined();
  });

  it("that does not mean a request lets the next order have it", () => {
    const failures = new FaultInjector(["401", "529"]);
    failures.inject({ kind: "401", key: "2" });
    failures.inject({ kind: "529" });
    expect(failures.take(({ key }) => key === undefined)?.kind).toBe("529");
    expect(failures.take(({ key }) => key === "2")?.kind).toBe("401");
  });

  it("is forgotten when things are mended", () => {
    const failures = new FaultInjector(["529"]);
    failures.inject({ kind: "529", times: 9 });
    failures.clear();
    expect(failures.take(() => true)).toBeUndefined();
  });

  it("numbers keys as npm start gives them", () => {
    expect(["practice", "practice-2", "practice-3"].map(keyNumber)).toEqual(["1", "2", "3"]);
  });
});

describe("the model", () => {
  it("fails for one key, and the others work", async () => {
    const server = await model();
    server.fail({ kind: "401", key: "1", times: 2 });
    server.fail({ kind: "402", key: "practice-2" });
    const [first, second, third] = ["practice", "practice-2", "practice-3"].map((key) =>
      client(server, key),
    );
    if (!first || !second || !third) return expect.fail("three clients");
    expect(await outcome(third)).toBe("ok");
    expect(await outcome(first)).toBe("authentication_error");
    expect(await outcome(second)).toBe("billing_error");
    expect(await outcome(first)).toBe("authentication_error");
    expect(await outcome(second)).toBe("ok");
    expect(await outcome(first)).toBe("ok");
    expect(server.log.map(({ key }) => keyNumber(key))).toEqual(["3", "1", "2", "1", "2", "1"]);
  });

  it("is overloaded for a minute, and the fallback is not", async () => {
    let now = 1_000_000;
    const server = await model({ now: () => now });
    const sdk = client(server);
    server.fail({ kind: "529", seconds: 60, model: "claude-sonnet-5-5" });
    const fallback = { model: "claude-haiku-5-5" };
    for (let i = 0; i < 3; i++) expect(await outcome(sdk)).toBe("overloaded_error");
    expect(await outcome(sdk, fallback)).toBe("ok");
    now += 59_999;
    expect(await outcome(sdk)).toBe("overloaded_error");
    now += 1;
    expect(await outcome(sdk)).toBe("ok");
  });

  it("says after a 429 how long to wait", async () => {
    const server = await model();
    server.fail({ kind: "429", retryAfter: 7 });
    server.fail("429");
    for (const seconds of ["7", "1"]) {
      const error = await failing(client(server).messages.create(ask()));
      if (!(error instanceof Anthropic.RateLimitError)) return expect.fail(String(error));
      expect(error.headers?.get("retry-after")).toBe(seconds);
    }
  });

  it("hangs: not a byte, until it is released or the client hangs up", async () => {
    const server = await model();
    server.fail("hang", 2);
    server.script({ content: [{ type: "text", text: "for whoever is still there" }] });
    const leave = new AbortController();
    const given = client(server).messages.create(ask(), { signal: leave.signal });
    void given.catch(() => {});
    while (server.log.length === 0) await new Promise(setImmediate);
    expect(server.log[0]?.status).toBe(0);
    leave.abort();
    expect(await failing(given)).toBeInstanceOf(Anthropic.APIUserAbortError);
    const waiting = client(server).messages.create(ask());
    while (server.log.length === 1) await new Promise(setImmediate);
    server.release();
    expect((await waiting).content).toMatchObject([{ text: "for whoever is still there" }]);
    await server.idle();
    expect(server.log.map(({ aborted = false }) => aborted)).toEqual([true, false]);
  });

  it("falls silent in the middle of a stream", async () => {
    const server = await model();
    server.fail("silent");
    const stream = client(server).messages.stream(ask());
    void stream.done().catch(() => {});
    let said = "";
    const enough = new Promise<void>((resolve) => {
      stream.on("text", (delta) => {
        said += delta;
        if (server.log[0]?.status === 200) resolve();
      });
    });
    await enough;
    expect(said).toBe("This answer was ");
    server.release();
    expect(await stream.finalText()).toMatch(/^This answer was cut off/);
  });

  it("breaks off in the middle of the call that it would have made", async () => {
    const server = await model();
    server.fail("break-tool", 2);
    for (const line of ["run `echo hello world`", "hi"]) {
      const stream = client(server).messages.stream(ask(line, { tools: [BASH] }));
      const events: string[] = [];
      let input = "";
      stream.on("streamEvent", ({ type }) => events.push(type));
      stream.on("inputJson", (part) => (input += part));
      expect(await failing(stream.finalMessage())).toBeInstanceOf(Anthropic.AnthropicError);
      expect(events).toEqual([
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
      ]);
      expect(input).toBe(line === "hi" ? "{" : '{"command":"ech');
    }
    const whole = await client(server).messages.create(ask("run `echo hi`", { tools: [BASH] }));
    expect(whole.stop_reason).toBe("tool_use");
  });

  it("sends an empty body, and says 200", async () => {
    const server = await model();
    server.fail("empty-body");
    const error = await failing(client(server).messages.stream(ask()).finalMessage());
    expect(error).toBeInstanceOf(Anthropic.AnthropicError);
    expect(error).not.toBeInstanceOf(Anthropic.APIError);
    expect(server.log).toMatchObject([{ status: 200, error: "an empty body" }]);
  });

  it("is mended", async () => {
    const server = await model();
    server.fail({ kind: "500", seconds: 600 });
    expect(await outcome(client(server))).toBe("api_error");
    server.clearFailures();
    expect(await outcome(client(server))).toBe("ok");
  });
});

/** A knob as `npm run practice` turns it. */
async function turn(url: string, knob: string, input: object = {}, headers = {}) {
  const body = JSON.stringify(input);
  const answer = await fetch(`${url}/_practice/${knob}`, { method: "POST", body, headers });
  return [answer.status, await answer.json()];
}

describe("the fake platforms, by their knobs", () => {
  async function telegram(): Promise<FakeTelegram> {
    const started = await startTelegram();
    open.push(started);
    return started;
  }

  function sender({ token, url }: FakeTelegram) {
    const { api } = new Bot(token, { client: { apiRoot: url } });
    return (text: string, chat = 1001) => api.sendMessage(chat, text);
  }

  it("Telegram fails as ordered, for one chat", async () => {
    const server = await telegram();
    const send = sender(server);
    const order = { kind: "429", retryAfter: 7, chat: "alice", times: 2 };
    expect(await turn(server.url, "fail", order)).toEqual([200, {}]);
    await send("to bob", 1002);
    for (let i = 0; i < 2; i++) {
      expect(await failing(send("hi"))).toMatchObject({ parameters: { retry_after: 7 } });
    }
    await send("hi");
    expect(server.textsTo("alice")).toEqual(["hi"]);
  });

  it("Telegram blocks, knows no chat, breaks down, or takes it and hangs up", async () => {
    const server = await telegram();
    const send = sender(server);
    const codes: unknown[] = [];
    for (const kind of ["403", "400", "500"]) {
      await turn(server.url, "fail", { kind });
      const { error_code, description } = (await failing(send("lost"))) as GrammyError;
      codes.push([error_code, description]);
    }
    expect(codes).toEqual([
      [403, "Forbidden: bot was blocked by the user"],
      [400, "Bad Request: chat not found"],
      [500, "Internal Server Error"],
    ]);
    await turn(server.url, "fail", { kind: "drop" });
    expect(await failing(send("twice"))).toBeInstanceOf(HttpError);
    await send("twice");
    expect(server.sent.map(({ text, dropped }) => [text, dropped])).toEqual([
      ["twice", true],
      ["twice", false],
    ]);
  });

  it("Feishu too", async () => {
    const server: FakeFeishu = await startFeishu();
    open.push(server);
    const post = async (path: string, body: object, bearer = "") => {
      const headers = { authorization: `Bearer ${bearer}` };
      const request = { method: "POST", headers, body: JSON.stringify(body) };
      return (await fetch(`${server.url}/open-apis/${path}`, request)).json();
    };
    const app = { app_id: server.appId, app_secret: server.appSecret };
    const given = await post("auth/v3/tenant_access_token/internal", app);
    const { tenant_access_token: token } = given as { tenant_access_token: string }; // Feishu's form
    const send = (text: string) => {
      const message = { receive_id: "oc_alice", msg_type: "text" };
      const body = { ...message, content: JSON.stringify({ text }) };
      return post("im/v1/messages?receive_id_type=chat_id", body, token);
    };
    for (const [kind, code] of [
      ["429", 99991400],
      ["403", 230013],
    ]) {
      expect(await turn(server.url, "fail", { kind })).toEqual([200, {}]);
      expect(await send("lost")).toMatchObject({ code });
    }
    await turn(server.url, "fail", { kind: "drop" });
    await expect(send("taken")).rejects.toThrow();
    expect(server.sent).toMatchObject([{ text: "taken", dropped: true }]);
    await turn(server.url, "fail", { kind: "429", seconds: 600 });
    expect(await send("lost")).toMatchObject({ code: 99991400 });
    await turn(server.url, "fail");
    expect(await send("fine")).toMatchObject({ code: 0 });
  });

  it("say what is wrong with an order, and listen to no page in a browser", async () => {
    const server = await telegram();
    const unknown = [400, { error: expect.stringContaining('There is no failure "418"') }];
    expect(await turn(server.url, "fail", { kind: "418" })).toEqual(unknown);
    expect(await turn(server.url, "nothing")).toEqual([
      404,
      { error: "there is no /_practice/nothing" },
    ]);
    const page = { origin: "https://a.b" };
    expect(await turn(server.url, "fail", { kind: "500" }, page)).toMatchObject([403, {}]);
    const groups = { person: "alice", group: "family", text: "hi", reply: true };
    expect(await turn(server.url, "say", groups)).toEqual([
      400,
      { error: "nothingSent {}", code: "nothingSent", values: {} },
    ]);
  });
});

describe("npm run practice -- fail, in words", () => {
  const read = (line: string, values: Parameters<typeof readFail>[1] = {}) =>
    readFail(line.split(" ").filter(Boolean), values);

  it.each([
    ["", {}, "model", { kind: "529" }, "The next request: 529."],
    ["hang", { times: "3" }, "model", { kind: "hang", times: 3 }, "The next 3 requests: hang."],
    [
      "529",
      { for: "1m", model: "m" },
      "model",
      { kind: "529", seconds: 60, model: "m" },
      "The requests for m within 60 s: 529.",
    ],
    ["401", { key: "2" }, "model", { kind: "401", key: "2" }, "The next request with key 2: 401."],
    [
      "telegram 429",
      { "retry-after": "7", chat: "alice" },
      "telegram",
      { kind: "429", retryAfter: 7, chat: "alice" },
      "The next message on Telegram to alice: 429.",
    ],
    [
      "feishu drop",
      { times: "2", for: "500ms" },
      "feishu",
      { kind: "drop", times: 2, seconds: 0.5 },
      "The next 2 messages on Feishu within 0.5 s: drop.",
    ],
    ["off", {}, "model", {}, "No more failures."],
    ["telegram off", {}, "telegram", {}, "No more failures."],
  ])("%s %j", (line, values, where, failure, said) => {
    expect(read(line, values)).toEqual({ where, failure, said });
  });

  it.each([
    ["418", {}, 'There is no failure "418"; there are: 400'],
    ["telegram 529", {}, 'There is no failure "529"; there are: 400, 401, 403'],
    ["529 500", {}, 'What is "500"?'],
    ["529", { times: "0" }, '--times wants a whole number, not "0"'],
    ["529", { for: "soon" }, "--for soon? Say --for 5s."],
    ["529", { chat: "alice" }, "--chat is for telegram and feishu"],
    ["feishu 500", { key: "2" }, "--key and --model are the model's"],
  ])("not %s %j", (line, values, sentence) => {
    expect(() => read(line, values)).toThrow(sentence);
  });

  it("from one line, and the server obeys", async () => {
    const server = await model();
    const { where, failure } = readFailLine("529 --for 10m --model claude-sonnet-5-5");
    expect([where, failure]).toEqual(["model", { kind: "529", seconds: 600, model: ask().model }]);
    server.setFailure(failure);
    expect(await outcome(client(server))).toBe("overloaded_error");
    server.setFailure(readFailLine("off").failure);
    expect(await outcome(client(server))).toBe("ok");
    expect(() => readFailLine("529 --often 3")).toThrow("--often");
  });

  it("knows every kind that the servers know", () => {
    const all = { "": MODEL_FAILURES, telegram: TELEGRAM_FAILURES, feishu: FEISHU_FAILURES };
    for (const [where, kinds] of Object.entries(all)) {
      for (const kind of kinds) {
        expect(read(`${where} ${kind}`)).toMatchObject({ failure: { kind } });
      }
    }
  });
});
