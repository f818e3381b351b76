/** s04, Telegram: the real grammY of a section against the fake Bot API, and what it makes of it. */

import { describe, expect, it, vi } from "vitest";
import { MEDIA_KINDS } from "../practice/telegram.ts";
import { exampleUpdates, SERVICE } from "../practice/telegram-updates.ts";
import { printed, type SectionFile, sectionsFrom, settings } from "./helper.ts";
import { countOf, wording } from "./wording.ts";
import { afterwards, load04, platforms, type S04 } from "./world.ts";

type Inbound = Parameters<Parameters<InstanceType<S04["TelegramChannel"]>["start"]>[0]>[0];

/** The channel, polling. What it accepted is in `got`, in order. */
async function polling(section: SectionFile, more: Record<string, string> = {}) {
  const { telegram, given } = await platforms();
  const s04 = await load04(section, settings(undefined, given));
  const all: Record<string, string> = { ...given, ...more };
  const channel = new s04.TelegramChannel((name) => all[name] ?? "");
  const got: Inbound[] = [];
  const accept = vi.fn((message: Inbound) => {
    got.push(message);
    return { done: Promise.resolve("") };
  });
  afterwards(() => channel.stop().catch(() => {}));
  return { s04, telegram, channel, got, accept };
}

/** All that was said, without the blanks. */
const bare = (said: { text: string }[]) =>
  said
    .map(({ text }) => text)
    .join("")
    .replace(/\s/g, "");

describe.each(sectionsFrom("s04"))("$name, its calls", (section) => {
  it("are stopped by signals that the fetch of every Node takes", async () => {
    const signals = new Set<unknown>();
    const real = globalThis.fetch;
    afterwards(() => {
      globalThis.fetch = real;
    });
    // It goes on to the real one; here we only look at what is handed over.
    globalThis.fetch = (url, init) => {
      signals.add(init?.signal);
      return real(url, init);
    };
    const { telegram, channel, accept } = await polling(section);
    await channel.start(accept);
    await telegram.say("alice", "hi").confirmed;
    await channel.stop();
    expect(signals.size).toBeGreaterThan(1); // getMe, getUpdates
    expect([...signals].filter((one) => !(one instanceof AbortSignal))).toEqual([]);
    // The call that was waiting for messages has ended with the channel.
    expect([...signals].some((one) => one instanceof AbortSignal && one.aborted)).toBe(true);
  });
});

describe.each(sectionsFrom("s04"))("$name, what Telegram's messages become", (section) => {
  it("direct chats, groups and topics", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    const last = async ({ confirmed }: { confirmed: Promise<void> }) => {
      const before = got.length;
      await confirmed;
      return got[before];
    };
    const { botId } = telegram;
    const alice = telegram.chatId("alice");
    const direct = await last(telegram.say("alice", "  hello there "));
    expect(direct).toMatchObject({
      id: `telegram:${botId}:${alice}:1`,
      channel: "telegram",
      accountId: String(botId),
      peerId: String(alice),
      senderId: String(alice),
      isGroup: false,
      text: "hello there",
      media: [],
    });
    expect(direct?.guildId).toBe(undefined);
    expect(Math.abs(Date.now() - (direct?.at ?? 0))).toBeLessThan(60_000); // in ms

    // A group: only what is meant for the bot, and without its name.
    const family = { group: "family" };
    const chat = String(telegram.chatId("family"));
    expect(await last(telegram.say("alice", "dinner at 7?", family))).toBe(undefined);
    expect(await last(telegram.say("alice", "@practice_bot2 hi", family))).toBe(undefined);
    const mention = await last(telegram.say("alice", "@Practice_Bot what time?", family));
    expect(mention).toMatchObject({ isGroup: true, peerId: chat, text: "what time?" });
    expect(mention?.senderId).toBe(String(alice));
    expect((await last(telegram.say("bob", "so, @practice_bot, you?", family)))?.text).toMatch(
      /so, ?, you\?/,
    );
    expect(await last(telegram.say("bob", "/help@practice_bot", family))).toMatchObject({
      text: "/help",
    });
    const only = await last(telegram.say("bob", "@practice_bot", family));
    expect(only?.text.trim()).not.toBe(""); // an empty turn would be no turn

    // A reply to the bot; a reply to somebody else.
    await channel.send(chat, "I am here");
    const mine = telegram.sent.at(-1)?.messageId ?? 0;
    const answer = await last(telegram.say("bob", "thanks", { ...family, replyTo: mine }));
    expect(answer).toMatchObject({ text: "thanks", peerId: chat });
    const { messages } = telegram.say("alice", "a thing", family);
    const others = { ...family, replyTo: messages[0] };
    expect(await last(telegram.say("bob", "yes", others))).toBe(undefined);

    // A small group of the old kind, and the topics of a forum, which are places of their own.
    const old = await last(telegram.say("bob", "@practice_bot hi", { group: "old" }));
    expect(old).toMatchObject({ peerId: String(telegram.chatId("old")), isGroup: true });
    const club = String(telegram.chatId("club"));
    for (const topic of [2, 3]) {
      const options = { group: "club", topic };
      expect(await last(telegram.say("bob", "to all", options))).toBe(undefined);
      const inTopic = await last(telegram.say("bob", "@practice_bot hi", options));
      const peerId = `${club}:topic:${topic}`;
      expect(inTopic).toMatchObject({ peerId, guildId: club, isGroup: true, text: "hi" });
      await channel.send(peerId, "here");
      expect(telegram.sent.at(-1)).toMatchObject({ chat: Number(club), thread: topic });
      await channel.typing?.(peerId);
      expect(telegram.typing.at(-1)).toMatchObject({ chat: Number(club), thread: topic });
    }
    const general = await last(telegram.say("bob", "@practice_bot hi", { group: "club" }));
    expect(general?.peerId).toBe(club);
    expect(new Set(got.map(({ id }) => id)).size).toBe(got.length);
  });

  it("every kind of media, with and without a caption, each as a text", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    for (const media of MEDIA_KINDS) {
      const before = got.length;
      await telegram.say("alice", "", { media }).confirmed;
      const message = got[before];
      expect(message?.text.startsWith(`[${media}]`), media).toBe(true);
      const isFile = !["location", "venue", "contact", "dice", "poll"].includes(media);
      expect(message?.media).toHaveLength(isFile ? 1 : 0);
      if (isFile) expect(message?.text).toBe(`[${media}]`);
    }
    const before = got.length;
    await telegram.say("alice", "my cat", { media: "photo" }).confirmed;
    expect(got[before]?.text).toBe("[photo] my cat");
    const photo = got[before]?.media[0];
    expect(photo?.kind).toBe("photo");
    expect(photo?.id).not.toContain("small"); // the largest of its sizes
  });

  it("every kind of update goes in without harm, those not yet invented too", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    const examples = Object.entries(exampleUpdates(telegram));
    for (const [kind, body] of examples) telegram.push(kind, body);
    for (const [field, content] of Object.entries(SERVICE)) {
      const fields = { text: undefined, [field]: content };
      telegram.say("alice", "", { fields });
      telegram.say("alice", "", { group: "family", fields });
    }
    const { bot } = telegram.directory;
    telegram.say("bob", "I am a bot", { fields: { from: { ...bot, id: 99 } } });
    telegram.say("bob", "nobody", { fields: { from: undefined } });
    telegram.push("message", { message_id: 9_000, date: 1, chat: { id: 5, type: "private" } });
    const { messages } = telegram.say("alice", "first version");
    telegram.edit("alice", messages[0] ?? 0, "second version");
    await telegram.say("alice", "still there?").confirmed;
    const said = got.map(({ text }) => text);
    expect(said).toEqual(["hello", "first version", "still there?"]);
    expect(telegram.log.filter(({ method }) => method === "getUpdates").length).toBeLessThan(200);
    const asked = telegram.log.find(({ method }) => method === "getUpdates")?.parameters;
    expect(asked?.allowed_updates).toEqual(["message", "channel_post"]);
  });

  it("marks the pictures of an album, and the pieces of a text that was cut, as parts", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    await telegram.album("alice", ["photo", "photo", "video"], "our trip").confirmed;
    const album = got.splice(0);
    expect(album.map(({ text }) => text)).toEqual(["[photo] our trip", "[photo]", "[video]"]);
    expect(new Set(album.map(({ part }) => part)).size).toBe(1);
    expect(album[0]?.part).toBeTruthy();

    await telegram.album("alice", ["photo", "photo"]).confirmed;
    expect(got[0]?.part).not.toBe(album[0]?.part);
    got.splice(0);

    const long = "word ".repeat(2_000).trim();
    const { confirmed } = telegram.say("alice", long);
    const bobs = telegram.say("bob", "in between").confirmed;
    await Promise.all([confirmed, bobs]);
    const pieces = got.filter(({ peerId }) => peerId === String(telegram.chatId("alice")));
    expect(pieces.length).toBeGreaterThan(2);
    expect(new Set(pieces.map(({ part }) => part)).size).toBe(1);
    expect(bare(pieces)).toBe(bare([{ text: long }])); // wherever it was cut
    const bob = got.find(({ text }) => text === "in between");
    expect(bob).toBeTruthy();
    expect(bob?.part).toBe(undefined);
    // What comes after the last piece is a message of its own, and so is the next long one.
    got.splice(0);
    await telegram.say("alice", "short").confirmed;
    expect(got.splice(0)[0]?.part).toBe(undefined);
    await telegram.say("alice", long).confirmed;
    expect(got[0]?.part).not.toBe(pieces[0]?.part);
  });

  it("takes all of an album and of a long text in a group that mentions it once", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    const family = { group: "family" };
    await telegram.album("alice", ["photo", "photo"], "@practice_bot look", family).confirmed;
    expect(bare(got.splice(0))).toBe("[photo]look[photo]");
    await telegram.say("alice", `@practice_bot ${"word ".repeat(1_500)}`, family).confirmed;
    expect(bare(got)).toBe("word".repeat(1_500));
    got.splice(0);
    await telegram.album("alice", ["photo", "photo"], "not for you", family).confirmed;
    expect(got).toEqual([]);
  });
});

describe.each(sectionsFrom("s04"))("$name, who may write", (section) => {
  it("a stranger hears the id once, and what the owner has to set is said", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    const said = vi.mocked(process.stdout.write);
    for (const text of ["hi", "hello?", "please"]) telegram.say("mallory", text);
    telegram.say("mallory", "@practice_bot hi", { group: "strangers" });
    telegram.say("mallory", "unmentioned", { group: "others" });
    await telegram.say("alice", "me").confirmed;
    const id = telegram.chatId("mallory");
    await telegram.until(() => telegram.sent.length === 2);
    expect(got.map(({ text }) => text)).toEqual(["me"]);
    expect(telegram.textsTo("mallory")).toHaveLength(1);
    expect(telegram.textsTo("mallory")[0]).toContain(String(id));
    expect(telegram.textsTo("strangers")).toHaveLength(1);
    expect(telegram.textsTo("others")).toHaveLength(0);
    const log = said.mock.calls.map(([piece]) => String(piece)).join("");
    // To set the variable to this id would throw all others out.
    const told = { chat: id, setting: "TELEGRAM_ALLOWED_CHATS" };
    const hint = wording(
      section,
      "A stranger wrote. To let them in, add {chat} to the list in {setting}.",
      told,
    );
    expect(countOf(log, hint)).toBe(1);
  });

  it.each(["", " ", ","])("an empty list (%j) admits nobody", async (list) => {
    const { telegram, channel, got, accept } = await polling(section, {
      TELEGRAM_ALLOWED_CHATS: list,
    });
    await channel.start(accept);
    await telegram.say("alice", "hi").confirmed;
    await telegram.say("alice", "@practice_bot hi", { group: "club", topic: 2 }).confirmed;
    await telegram.until(() => telegram.sent.length === 2);
    expect(got).toEqual([]);
  });

  it("admits a forum by its id, in all of its topics; part of an id is no id", async () => {
    const { telegram, channel, got, accept } = await polling(section, {
      TELEGRAM_ALLOWED_CHATS: "-1001000000002\n  100",
    });
    await channel.start(accept);
    await telegram.say("alice", "hi").confirmed; // 1001
    for (const topic of [2, 3]) {
      await telegram.say("bob", "@practice_bot hi", { group: "club", topic }).confirmed;
    }
    expect(got).toHaveLength(2);
  });
});

describe.each(sectionsFrom("s04"))("$name, when Telegram or the disk fails", (section) => {
  it.each([
    ["429", { permanent: false, retryAfter: 7 }],
    ["403", { permanent: true }],
    ["400", { permanent: true }],
    ["500", { permanent: false }],
    ["502", { permanent: false }],
    ["drop", { permanent: false }],
    ["refuse", { permanent: false }],
  ])("a send that ends in %s is classified", async (kind, expected) => {
    const { s04, telegram, channel } = await polling(section);
    telegram.fail({ kind, retryAfter: 7 });
    const error: unknown = await channel
      .send(String(telegram.chatId("alice")), "hi")
      .catch((e) => e);
    expect(error).toBeInstanceOf(s04.SendError);
    expect(error).toMatchObject(expected);
    await channel.send(String(telegram.chatId("alice")), "again");
  });

  it("knows the permanent errors that Telegram itself gives", async () => {
    const { telegram, channel } = await polling(section);
    telegram.block("bob");
    const places = ["999", String(telegram.chatId("bob"))];
    for (const to of places) {
      await expect(channel.send(to, "hi")).rejects.toMatchObject({ permanent: true });
    }
    await expect(channel.send("1001", "x".repeat(4097))).rejects.toMatchObject({ permanent: true });
  });

  it("rejects at once when the token is wrong, and says why", async () => {
    const { channel, accept } = await polling(section, { TELEGRAM_BOT_TOKEN: "1:wrong" });
    await expect(channel.start(accept)).rejects.toThrow(/401|Unauthorized/);
  });

  it("gets again what could not be kept: nothing is confirmed before accept has returned", async () => {
    // The pause before a new attempt passes at once.
    vi.doMock("node:timers/promises", () => ({ setTimeout: () => Promise.resolve() }));
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    await telegram.idle();
    accept.mockImplementationOnce(() => {
      throw new Error("the disk is full");
    });
    const first = telegram.say("alice", "one");
    const second = telegram.say("alice", "two");
    await Promise.all([first.confirmed, second.confirmed]);
    expect(got.map(({ text }) => text)).toEqual(["one", "two"]);
    expect(accept.mock.calls.length).toBeGreaterThanOrEqual(3);
    const queued = telegram.updates.find(({ update }) => update.update_id === first.updates[0]);
    expect(queued?.given).toBe(2);
  });

  it("goes on after another program took its updates, or its token was refused", async () => {
    vi.doMock("node:timers/promises", () => ({ setTimeout: () => Promise.resolve() }));
    const { telegram, channel, got, accept } = await polling(section);
    await channel.start(accept);
    for (const kind of ["409", "401"]) telegram.fail({ kind, method: "getUpdates" });
    await telegram.say("alice", "one").confirmed;
    await telegram.say("alice", "two").confirmed;
    expect(got.map(({ text }) => text)).toEqual(["one", "two"]);
  });

  it("says a problem once while it lasts, and again if it comes back later", async () => {
    vi.doMock("node:timers/promises", () => ({ setTimeout: () => Promise.resolve() }));
    const { telegram, channel, accept } = await polling(section);
    await channel.start(accept);
    for (const text of ["one", "two"]) {
      telegram.fail({ kind: "401", method: "getUpdates", times: 3 });
      await telegram.say("alice", text).confirmed;
    }
    expect(printed().split("Trying again every 5 s.")).toHaveLength(3);
  });

  it("polls though another program has left a webhook", async () => {
    const { telegram, channel, got, accept } = await polling(section);
    telegram.webhook = "https://example.org/hook";
    await channel.start(accept);
    await telegram.say("alice", "hi").confirmed;
    expect(got).toHaveLength(1);
    expect(printed()).not.toContain("Trying again");
  });

  it("confirms at its end what it has taken, so that no later start gets it again", async () => {
    const { telegram, channel, accept } = await polling(section);
    let stopped: Promise<void> | undefined;
    accept.mockImplementationOnce(() => {
      queueMicrotask(() => {
        stopped = channel.stop(); // before the next request, which would confirm it, too
      });
      return { done: Promise.resolve("") };
    });
    const said = telegram.say("alice", "hi");
    await channel.start(accept);
    await said.confirmed;
    await stopped;
    expect(telegram.updates.at(-1)).toMatchObject({ given: 1, confirmed: true });
  });

  it("stops in the middle of a long poll", async () => {
    const { telegram, channel, accept } = await polling(section);
    await channel.start(accept);
    await telegram.idle();
    await channel.stop();
    const said = telegram.say("alice", "too late");
    expect(telegram.updates.at(-1)).toMatchObject({ given: 0, confirmed: false });
    expect(said.updates).toHaveLength(1);
  });
});
