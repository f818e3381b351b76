/** The fake Telegram, with the real grammY as its client. */

import { Bot, type Context, GrammyError, HttpError } from "grammy";
import type { Update } from "grammy/types";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type FakeTelegram, MEDIA_KINDS, startTelegram } from "../practice/telegram.ts";
import { exampleUpdates } from "../practice/telegram-updates.ts";

let telegram: FakeTelegram;
const bots = new Set<Bot>();

beforeEach(async () => {
  telegram = await startTelegram();
});

afterEach(async () => {
  for (const bot of bots) await bot.stop().catch(() => {});
  bots.clear();
  await telegram.close();
});

function newBot(token = telegram.token): Bot {
  return new Bot(token, { client: { apiRoot: telegram.url } });
}

/** A bot that polls; `done` settles when it stops. */
function poll(handle: (ctx: Context) => unknown = () => {}) {
  const bot = newBot();
  bot.use(async (ctx) => void (await handle(ctx)));
  bot.catch(({ error }) => {
    throw error;
  });
  const done = bot.start().then(
    () => undefined,
    (error: unknown) => error,
  );
  bots.add(bot);
  return { bot, done };
}

/** Calls a method without grammY. */
async function call(method: string, parameters: object = {}, token = telegram.token) {
  const answer = await fetch(`${telegram.url}/bot${token}/${method}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(parameters),
  });
  const body = (await answer.json()) as Partial<GrammyError>; // an answer or a refusal
  return { status: answer.status, body };
}

/** What getUpdates gives to who asks without grammY. */
async function getUpdates(parameters: object = {}): Promise<Update[]> {
  const { body } = await call("getUpdates", parameters);
  return (body as { result?: Update[] }).result ?? []; // of this method
}

/** A promise that is settled from outside. */
function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

/** The error that a promise rejects with. */
async function failing(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => expect.fail("this should have failed"),
    (error: unknown) => error,
  );
}

describe("getUpdates", () => {
  it("confirms an update only when the next request says so", async () => {
    const begun = deferred();
    const end = deferred();
    const { bot } = poll(() => {
      begun.resolve();
      return end.promise;
    });
    await telegram.idle();
    const said = telegram.say("alice", "hello");
    await begun.promise;
    expect(telegram.updates[0]?.confirmed).toBe(false);
    end.resolve();
    await said.confirmed;
    await telegram.idle();
    await bot.stop();
  });

  it("gives an update again when the bot died over it", async () => {
    const first = poll(() => {
      throw new Error("died");
    });
    const said = telegram.say("alice", "hello");
    telegram.say("alice", "are you there?");
    await first.done;
    expect(telegram.updates.map((one) => one.confirmed)).toEqual([false, false]);
    const seen: string[] = [];
    poll((ctx) => seen.push(ctx.message?.text ?? ""));
    await said.confirmed;
    expect(seen).toEqual(["hello", "are you there?"]);
    expect(telegram.updates.map((one) => one.given)).toEqual([2, 2]);
  });

  it("holds the request until something happens, and no longer", async () => {
    const held = getUpdates({ timeout: 50 });
    await telegram.until(() => telegram.log.length === 1);
    telegram.say("alice", "hello");
    const updates = await held;
    expect(updates).toHaveLength(1);
    expect(await getUpdates({ timeout: 0 })).toEqual(updates);
    expect(await getUpdates({ offset: (updates[0]?.update_id ?? 0) + 1 })).toEqual([]);
  });

  it("gives up a request whose client has gone, and no update with it", async () => {
    const leave = new AbortController();
    const url = `${telegram.url}/bot${telegram.token}/getUpdates?timeout=50`;
    const gone = fetch(url, { signal: leave.signal }).catch(() => "gone");
    await telegram.until(() => telegram.log.length === 1);
    leave.abort();
    expect(await gone).toBe("gone");
    const next = getUpdates({ timeout: 50 });
    await telegram.until(() => telegram.log.length === 2);
    telegram.say("alice", "hello");
    expect(await next).toHaveLength(1);
    expect(telegram.log[0]?.status === 0 || telegram.log[0]?.status === 409).toBe(true);
  });

  it("keeps to limit, offset and the last ones", async () => {
    for (const text of ["one", "two", "three", "four"]) telegram.say("alice", text);
    const texts = async (parameters: object): Promise<string[]> => {
      return (await getUpdates(parameters)).map((update) => update.message?.text ?? "");
    };
    expect(await texts({ limit: 2 })).toEqual(["one", "two"]);
    expect(await texts({ offset: -2 })).toEqual(["three", "four"]);
    expect(await texts({})).toEqual(["three", "four"]);
  });

  it("ends the older of two requests with 409", async () => {
    const { done } = poll();
    await telegram.idle();
    const second = poll();
    const error = await done;
    expect(error).toBeInstanceOf(GrammyError);
    expect(error).toMatchObject({
      error_code: 409,
      description: expect.stringContaining("Conflict: terminated by other getUpdates request"),
    });
    await second.bot.stop();
  });

  it("refuses while there is a webhook, which grammY takes away", async () => {
    telegram.webhook = "https://example.org/hook";
    expect((await call("getUpdates")).body.description).toContain("while webhook is active");
    poll();
    await telegram.idle();
    expect(telegram.webhook).toBe("");
  });

  it("leaves out the kinds that the bot does not want", async () => {
    await getUpdates({ allowed_updates: ["message"] });
    const { messages } = telegram.say("alice", "helo");
    telegram.edit("alice", messages[0] ?? 0, "hello");
    telegram.push("poll", exampleUpdates(telegram).poll); // older than the request, as it were
    const kinds = (await getUpdates()).map((update) => Object.keys(update)[1]);
    expect(kinds).toEqual(["message", "poll"]);
  });
});

describe("what people send", () => {
  it("has the form of a real message", async () => {
    telegram.say("alice", "/start@practice_bot 🙂 see https://a.example, @bob");
    expect(await getUpdates()).toEqual([
      {
        update_id: 500_001,
        message: {
          message_id: 1,
          from: {
            id: 1001,
            is_bot: false,
            first_name: "Alice",
            username: "alice",
            language_code: "en",
          },
          chat: { id: 1001, type: "private", first_name: "Alice", username: "alice" },
          date: expect.any(Number),
          text: "/start@practice_bot 🙂 see https://a.example, @bob",
          entities: [
            { type: "bot_command", offset: 0, length: 19 },
            { type: "url", offset: 27, length: 18 },
            { type: "mention", offset: 46, length: 4 },
          ],
        },
      },
    ]);
  });

  it("has the same ids whoever comes first", async () => {
    const other = await startTelegram();
    other.say("zoe", "hi");
    other.group("chess", { type: "group" });
    const names = ["alice", "bob", "mallory", "family", "club"];
    expect(names.map((name) => other.chatId(name))).toEqual([
      1001, 1002, 1003, -1001000000001, -1001000000002,
    ]);
    for (const name of [...names, "zoe"]) expect(telegram.chatId(name)).toBe(other.chatId(name));
    expect(other.chatId("chess")).toBeGreaterThan(-100_000);
    await other.close();
  });

  it("sends an album as several updates that come together", async () => {
    const said = telegram.album("alice", ["photo", "video", "photo"], "our trip");
    const messages = (await getUpdates()).map((update) => update.message);
    expect(messages.map((one) => one?.caption)).toEqual(["our trip", undefined, undefined]);
    expect(new Set(messages.map((one) => one?.media_group_id))).toEqual(new Set(["13000000001"]));
    expect(said.messages).toEqual([1, 2, 3]);
  });

  it("cuts a long text as the app does, never through a character", async () => {
    const text = `${"a".repeat(4095)}🙂${"b".repeat(5000)}`;
    telegram.say("alice", text);
    const parts = (await getUpdates()).map((update) => update.message?.text ?? "");
    expect(parts.map((part) => part.length)).toEqual([4095, 4096, 906]);
    expect(parts.join("")).toBe(text);
  });

  it("knows all kinds of media, with a caption where there can be one", async () => {
    for (const media of MEDIA_KINDS) telegram.say("alice", "look", { media });
    const seen: string[] = [];
    poll((ctx) => {
      for (const kind of MEDIA_KINDS) if (ctx.has(`message:${kind}`)) seen.push(kind);
      if (ctx.message?.caption) expect(ctx.message.caption).toBe("look");
    });
    await telegram.idle();
    expect(new Set(seen)).toEqual(new Set(MEDIA_KINDS));
  });

  it("replies, and says so in topics, too", async () => {
    await call("sendMessage", { chat_id: telegram.chatId("club"), text: "hello" });
    const answered = telegram.sent[0]?.messageId ?? 0;
    telegram.say("alice", "hi", { group: "club", replyTo: answered });
    telegram.say("alice", "tea?", { group: "club", topic: 2 });
    const [answer, inTopic] = await getUpdates();
    expect(answer?.message?.reply_to_message).toMatchObject({
      message_id: answered,
      from: { id: telegram.botId, is_bot: true },
      text: "hello",
    });
    expect(inTopic?.message).toMatchObject({
      message_thread_id: 2,
      is_topic_message: true,
      chat: { is_forum: true },
      // Telegram does that: who looks for replies only, takes each of these for one.
      reply_to_message: { message_id: 2, forum_topic_created: { name: "Plans" } },
    });
  });

  it("has an example of every kind of update, and one that nobody knows", async () => {
    const examples = exampleUpdates(telegram);
    for (const [kind, body] of Object.entries(examples)) telegram.push(kind, body);
    const seen: string[] = [];
    poll((ctx) => seen.push(Object.keys(ctx.update)[1] ?? ""));
    await telegram.idle();
    expect(seen).toEqual(Object.keys(examples));
    expect(seen).toContain("message");
    expect(seen).toContain("hologram");
  });
});

describe("what the bot sends", () => {
  it("is kept in order, and can be waited for", async () => {
    const { api } = newBot();
    const next = telegram.nextSent("alice");
    await api.sendChatAction(1001, "typing");
    await api.sendMessage(1002, "to bob");
    await api.sendMessage(1001, "to alice");
    await api.sendMessage(1001, "again");
    expect(await next).toMatchObject({ chat: 1001, text: "to alice", dropped: false });
    expect((await telegram.nextSent("alice")).text).toBe("again");
    expect((await telegram.nextSent()).text).toBe("to bob");
    expect(telegram.textsTo("alice")).toEqual(["to alice", "again"]);
    expect(telegram.typing).toMatchObject([{ chat: 1001, action: "typing" }]);
  });

  it("answers with the message", async () => {
    const { api } = newBot();
    telegram.say("alice", "tea?", { group: "club", topic: 3 });
    const message = await api.sendMessage(telegram.chatId("club"), "yes @alice", {
      message_thread_id: 3,
      reply_parameters: { message_id: 11 },
    });
    expect(message).toMatchObject({
      message_id: 12,
      message_thread_id: 3,
      is_topic_message: true,
      from: { is_bot: true, username: "practice_bot" },
      reply_to_message: { message_id: 11, text: "tea?" },
      entities: [{ type: "mention", offset: 4, length: 6 }],
    });
    expect(telegram.sent[0]).toMatchObject({ thread: 3, replyTo: 11 });
  });

  it.each([
    ["Bad Request: chat_id is empty", { text: "hi" }],
    ["Bad Request: chat not found", { chat_id: 77, text: "hi" }],
    ["Bad Request: chat not found", { chat_id: "alice", text: "hi" }],
    ["Bad Request: message text is empty", { chat_id: 1001 }],
    ["Bad Request: message text is empty", { chat_id: 1001, text: " \n" }],
    ["Bad Request: message is too long", { chat_id: 1001, text: "a".repeat(4097) }],
    ["Bad Request: message is too long", { chat_id: 1001, text: "🙂".repeat(2049) }],
    ["Bad Request: strings must be encoded in UTF-8", { chat_id: 1001, text: "\uD83D" }],
    ["Bad Request: message thread not found", { chat_id: 1001, text: "hi", message_thread_id: 5 }],
    [
      "Bad Request: message to be replied not found",
      { chat_id: 1001, text: "hi", reply_parameters: { message_id: 9 } },
    ],
  ])("refuses: %s", async (description, parameters) => {
    const { status, body } = await call("sendMessage", parameters);
    expect(status).toBe(400);
    expect(body).toEqual({ ok: false, error_code: 400, description });
    expect(telegram.sent).toEqual([]);
  });

  it("accepts what is just short enough", async () => {
    const { api } = newBot();
    await api.sendMessage(1001, "🙂".repeat(2048));
    expect(telegram.textsTo("alice")[0]).toHaveLength(4096);
  });

  it("is refused when the person has blocked the bot", async () => {
    telegram.block("bob");
    const [update] = await getUpdates();
    expect(update?.my_chat_member?.new_chat_member.status).toBe("kicked");
    const error = await failing(newBot().api.sendMessage(1002, "hi"));
    expect(error).toMatchObject({
      error_code: 403,
      description: "Forbidden: bot was blocked by the user",
    });
  });
});

describe("other requests", () => {
  it("answers those that a bot begins with", async () => {
    const { api } = newBot();
    expect(await api.getMe()).toMatchObject({ id: 123456, username: "practice_bot", is_bot: true });
    expect(await api.setMyCommands([{ command: "new", description: "start anew" }])).toBe(true);
    expect(await api.getWebhookInfo()).toEqual({ url: "", pending_update_count: 0 });
    expect(await api.getChat(telegram.chatId("club"))).toMatchObject({ is_forum: true });
    expect(await api.getFile("practice-photo-1")).toMatchObject({ file_id: "practice-photo-1" });
    const form = new URLSearchParams({ chat_id: "1001", text: "by a form" });
    const url = `${telegram.url}/bot${telegram.token}/SendMessage`;
    expect((await fetch(url, { method: "POST", body: form })).status).toBe(200);
    expect((await fetch(`${url}?chat_id=1001&text=by+address`)).status).toBe(200);
    expect(telegram.textsTo("alice")).toEqual(["by a form", "by address"]);
  });

  it("refuses a wrong token, an unknown method and what is no JSON", async () => {
    const error = await failing(newBot("123456:wrong").start());
    expect(error).toMatchObject({ error_code: 401, description: "Unauthorized" });
    expect((await call("getMe", {}, "123456:wrong")).body).toEqual({
      ok: false,
      error_code: 401,
      description: "Unauthorized",
    });
    expect(await call("sendTelepathy")).toMatchObject({ status: 404, body: { error_code: 404 } });
    const broken = await fetch(`${telegram.url}/bot${telegram.token}/getMe`, {
      method: "POST",
      body: "{",
    });
    expect(broken.status).toBe(400);
  });
});

describe("failures", () => {
  const send = (text: string, chat = 1001): Promise<unknown> =>
    newBot().api.sendMessage(chat, text);

  it("says 429 with the seconds to wait", async () => {
    telegram.fail({ kind: "429", retryAfter: 7, times: 2 });
    for (let i = 0; i < 2; i++) {
      expect(await failing(send("hi"))).toMatchObject({
        error_code: 429,
        description: "Too Many Requests: retry after 7",
        parameters: { retry_after: 7 },
      });
    }
    await send("hi");
    expect(telegram.textsTo("alice")).toEqual(["hi"]);
  });

  it("fails for one chat, or for one method", async () => {
    telegram.fail({ kind: "403", chat: "bob" });
    telegram.fail({ kind: "500", method: "sendChatAction" });
    await send("to alice");
    expect(await failing(send("to bob", 1002))).toMatchObject({ error_code: 403 });
    const action = newBot().api.sendChatAction(1001, "typing");
    expect(await failing(action)).toMatchObject({ error_code: 500 });
    await send("to bob", 1002);
  });

  it("breaks the connection after a message or before it", async () => {
    telegram.fail({ kind: "drop" });
    telegram.fail({ kind: "refuse" });
    telegram.fail({ kind: "502" });
    expect(await failing(send("accepted"))).toBeInstanceOf(HttpError);
    expect(await failing(send("not accepted"))).toBeInstanceOf(HttpError);
    expect(await failing(send("HTML"))).toBeInstanceOf(HttpError);
    await send("fine");
    expect(telegram.sent.map((one) => [one.text, one.dropped])).toEqual([
      ["accepted", true],
      ["fine", false],
    ]);
  });

  it("hangs until it is released, or until the bot hangs up", async () => {
    telegram.fail({ kind: "hang", times: 2 });
    const waiting = send("late");
    await telegram.until(() => telegram.log.length === 1);
    telegram.release();
    await waiting;
    const leave = new AbortController();
    // grammY asks for the signal of its own polyfill.
    const signal = leave.signal as Parameters<Bot["api"]["sendMessage"]>[3];
    const given = newBot().api.sendMessage(1001, "never", {}, signal);
    await telegram.until(() => telegram.log.length === 2);
    leave.abort();
    await failing(given);
    expect(telegram.textsTo("alice")).toEqual(["late"]);
  });

  it("knows no others", () => {
    expect(() => telegram.fail({ kind: "418" })).toThrow('There is no failure "418"');
  });
});
