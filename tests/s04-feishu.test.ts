/** s04, Feishu: real encryption and signatures at a section's webhook, and what it sends. */

import { describe, expect, it, vi } from "vitest";
import {
  CONTENTS,
  FEISHU_FAILURES,
  type FeishuOptions,
  OTHER_EVENTS,
  type Wire,
} from "../practice/feishu.ts";
import { type SectionFile, sectionsFrom, settings } from "./helper.ts";
import { countOf, wording } from "./wording.ts";
import { afterwards, load04, platforms, type S04, serveRoutes } from "./world.ts";

type Inbound = Parameters<Parameters<InstanceType<S04["FeishuChannel"]>["start"]>[0]>[0];

/** The channel, with its webhook open. What it accepted is in `got`, in order. */
async function listening(
  section: SectionFile,
  options: FeishuOptions = {},
  more: Record<string, string> = {},
) {
  const { feishu, given } = await platforms(options);
  const s04 = await load04(section, settings(undefined, given));
  const all: Record<string, string> = { ...given, ...more };
  const channel = new s04.FeishuChannel((name) => all[name] ?? "");
  const got: Inbound[] = [];
  const accept = (message: Inbound) => {
    got.push(message);
    return { done: Promise.resolve("") };
  };
  afterwards(() => channel.stop());
  await channel.start(accept);
  feishu.webhook = `${await serveRoutes(s04)}/feishu/events`;
  return { s04, feishu, channel, got, accept };
}

const PLAIN: FeishuOptions = { encryptKey: "" };

describe.each(sectionsFrom("s04"))("$name, the webhook", (section) => {
  it.each([
    ["encrypted", {}, {}],
    ["in the clear", PLAIN, {}],
  ])("answers the challenge %s", async (_how, options: FeishuOptions, wire: Wire) => {
    const { feishu } = await listening(section, options);
    const { status, body } = await feishu.challenge("say this back", wire);
    expect(status).toBe(200);
    expect(JSON.parse(body)).toEqual({ challenge: "say this back" });
    expect((await feishu.challenge("x", { token: "wrong" })).status).not.toBe(200);
    expect((await feishu.challenge("x", { token: "" })).status).not.toBe(200);
  });

  it("refuses what was forged, and what is old", async () => {
    const { feishu, got } = await listening(section);
    const forged: Record<string, Wire> = {
      "no signature": { sign: "none" },
      "a wrong signature": { sign: "wrong" },
      "another key": { key: "another" },
      "a wrong token": { token: "wrong" },
      "no token": { token: "" },
      "in the clear": { encrypt: false },
      "in the clear, unsigned": { encrypt: false, sign: "none" },
      "a replay": { timestamp: Math.floor(Date.now() / 1000) - 90_000 },
      "from the future": { timestamp: Math.floor(Date.now() / 1000) + 90_000 },
      "no time": { timestamp: Number.NaN },
    };
    for (const [how, wire] of Object.entries(forged)) {
      const { status } = await feishu.say("alice", how, { wire }).first;
      expect(status, how).toBe(401);
    }
    const { status } = await feishu.challenge("x", { encrypt: false });
    expect(status).toBe(401);
    expect(got).toEqual([]);
    expect((await feishu.say("alice", "right").first).status).toBe(200);
    expect(got).toHaveLength(1);
  });

  it("without a key it goes by the token alone", async () => {
    const { feishu, got } = await listening(section, PLAIN);
    for (const token of ["wrong", ""]) {
      const { status } = await feishu.say("alice", "hi", { wire: { token } }).first;
      expect(status).toBe(401);
    }
    expect((await feishu.say("alice", "hi", { wire: { key: "any" } }).first).status).toBe(401);
    expect((await feishu.say("alice", "hi").first).status).toBe(200);
    expect(got.map(({ text }) => text)).toEqual(["hi"]);
  });

  it("takes every kind of event without harm, and answers 200", async () => {
    const { feishu, got } = await listening(section);
    for (const [type, event] of Object.entries(OTHER_EVENTS)) {
      expect((await feishu.push(type, event).first).status, type).toBe(200);
    }
    // The old form, other senders, and a message of which this or that is missing.
    expect((await feishu.say("alice", "v1", { wire: { schema: 1 } }).first).status).toBe(200);
    expect((await feishu.say("alice", "bot", { senderType: "app" }).first).status).toBe(200);
    expect(got).toEqual([]);
    const message = { chat_id: "oc_alice", chat_type: "p2p", message_type: "text" };
    const sender = { sender_type: "user", sender_id: { open_id: "ou_alice" } };
    const events = [
      undefined,
      null,
      "text",
      {},
      { message: null },
      { sender, message: {} },
      { message },
      { sender: null, message },
      { sender, message },
      { sender: { sender_type: "user", sender_id: null }, message },
      { sender, message: { ...message, content: "no json" } },
      { sender, message: { ...message, content: "null", mentions: null } },
      {
        sender,
        message: { ...message, message_type: "post", content: '{"content":[null,[null]]}' },
      },
      { sender, message: { ...message, message_type: "post", content: '{"content":{"a":1}}' } },
      { sender, message: { ...message, chat_type: "group", mentions: [{}] } },
    ];
    for (const event of events) {
      const { status } = await feishu.push("im.message.receive_v1", event).first;
      expect(status, JSON.stringify(event)).toBe(200);
    }
    for (const { text } of got) expect(text).not.toContain("undefined");
    got.splice(0);
    expect((await feishu.say("alice", "still there?").first).status).toBe(200);
    expect(got).toHaveLength(1);
  });

  it("takes no body that is not JSON for an event, nor falls over it", async () => {
    const { s04 } = await listening(section, PLAIN);
    const route = s04.ROUTES["POST /feishu/events"];
    for (const body of ["", "no json", "null", "[]", "7", '"x"', "{}", '{"encrypt":7}']) {
      const answer = await route?.(Buffer.from(body), {});
      expect(answer?.status, body).toBe(401);
    }
    const encrypted = await listening(section);
    const other = encrypted.s04.ROUTES["POST /feishu/events"];
    for (const encrypt of ["", "AAAA", "x".repeat(64), 7, null, {}]) {
      const answer = await other?.(Buffer.from(JSON.stringify({ encrypt })), {});
      expect(answer?.status).toBe(401);
    }
  });

  it("checks the signature over the bytes as they came", async () => {
    const { s04, feishu, got } = await listening(section);
    const seen: Buffer[] = [];
    const route = s04.ROUTES["POST /feishu/events"];
    s04.ROUTES["POST /feishu/events"] = (body, headers) => {
      seen.push(body);
      return route?.(body, headers) ?? { status: 404, body: {} };
    };
    await feishu.say("alice", "Grüße 你好 👋").first;
    expect(got[0]?.text).toBe("Grüße 你好 👋");
    expect(Buffer.isBuffer(seen[0])).toBe(true);
  });
});

describe.each(sectionsFrom("s04"))("$name, what Feishu's messages become", (section) => {
  it("direct chats and groups", async () => {
    const { feishu, got } = await listening(section);
    await feishu.say("alice", "hello").first;
    const [direct] = got.splice(0);
    expect(direct).toMatchObject({
      channel: "feishu",
      accountId: feishu.appId,
      peerId: feishu.chatId("alice"), // the chat, and not the person
      senderId: feishu.openId("alice"),
      guildId: "practice_tenant",
      isGroup: false,
      text: "hello",
      media: [],
    });
    expect(direct?.id).toMatch(new RegExp(`^feishu:${feishu.appId}:[0-9a-f]+$`));
    expect(Math.abs(Date.now() - (direct?.at ?? 0))).toBeLessThan(60_000);

    const family = { group: "family" };
    await feishu.say("alice", "not for you", family).first;
    await feishu.say("alice", "@bob you?", family).first;
    await feishu.say("alice", "@all dinner!", family).first;
    expect(got).toEqual([]);
    await feishu.say("alice", "@practice_bot what time, and where is @bob ?", family).first;
    expect(got[0]).toMatchObject({ isGroup: true, peerId: "oc_family" });
    expect(got[0]?.text).toBe("what time, and where is @bob ?");
    got.splice(0);
    await feishu.say("alice", "@practice_bot", family).first;
    expect(got[0]?.text.trim()).not.toBe("");
  });

  it("answers no group if it doesn't know who it is", async () => {
    const more = { FEISHU_BOT_OPEN_ID: "" };
    const { feishu, got } = await listening(section, {}, more);
    const { status } = await feishu.say("alice", "@practice_bot hi", { group: "family" }).first;
    expect(status).toBe(200);
    expect(got).toEqual([]);
  });

  it("rich text with its links and pictures; pictures and files by their names", async () => {
    const { feishu, got } = await listening(section);
    const content = [
      [
        { tag: "text", text: "See " },
        { tag: "a", href: "https://example.org/plan", text: "the plan" },
      ],
      [{ tag: "img", image_key: "img_1" }],
      [{ tag: "text", text: "and this" }],
    ];
    await feishu.post("alice", content, { title: "Plans" }).first;
    const [post] = got.splice(0);
    for (const piece of ["Plans", "See the plan", "https://example.org/plan", "[image]", "this"]) {
      expect(post?.text).toContain(piece);
    }
    expect(post?.media).toEqual([{ kind: "image", id: "img_1" }]);
    for (const [type, about] of Object.entries(CONTENTS)) {
      await feishu.say("alice", "", { type, content: about }).first;
      const [message] = got.splice(0);
      expect(message?.text.trim(), type).toBeTruthy(); // something to answer
      expect(message?.text).not.toMatch(/undefined|\[object/);
    }
    await feishu.say("alice", "", { type: "image", content: CONTENTS.image }).first;
    expect(got[0]).toMatchObject({
      text: "[image]",
      media: [{ kind: "image", id: "img_practice" }],
    });
  });

  it("a redelivery is the same message, under a new id too; the same words later are not", async () => {
    const { feishu, got } = await listening(section);
    const hello = feishu.say("alice", "hello", { fields: { create_time: "1767600000000" } });
    await hello.first;
    await feishu.again(hello);
    await feishu.again(hello, true);
    expect(new Set(got.map(({ id }) => id)).size).toBe(1);
    const others = [
      feishu.say("alice", "hello", { fields: { create_time: "1767600000001" } }),
      feishu.say("alice", "hello!", { fields: { create_time: "1767600000000" } }),
      feishu.say("bob", "hello", { fields: { create_time: "1767600000000" } }),
    ];
    await Promise.all(others.map(({ first }) => first));
    expect(new Set(got.map(({ id }) => id)).size).toBe(4);
    // In a group two people may say the same at the same time.
    got.splice(0);
    const group = { group: "family", fields: { create_time: "1767600000000" } };
    for (const person of ["alice", "bob"]) {
      await feishu.say(person, "@practice_bot yes", group).first;
    }
    expect(new Set(got.map(({ id }) => id)).size).toBe(2);
  });

  it("a stranger hears the id once; an empty list admits nobody", async () => {
    const { feishu, got } = await listening(section);
    for (const text of ["hi", "hello?"]) {
      expect((await feishu.say("mallory", text).first).status).toBe(200);
    }
    const told = await feishu.nextSent("mallory");
    expect(told.text).toContain("oc_mallory");
    await feishu.say("alice", "hi").first;
    expect(got).toHaveLength(1);
    expect(feishu.textsTo("mallory")).toHaveLength(1);
    const said = vi.mocked(process.stdout.write).mock.calls.map(([piece]) => String(piece));
    const values = { chat: "oc_mallory", setting: "FEISHU_ALLOWED_CHATS" };
    const hint = wording(
      section,
      "A stranger wrote. To let them in, add {chat} to the list in {setting}.",
      values,
    );
    expect(countOf(said.join(""), hint)).toBe(1);

    const closed = await listening(section, {}, { FEISHU_ALLOWED_CHATS: "" });
    expect((await closed.feishu.say("alice", "hi").first).status).toBe(200);
    await closed.feishu.nextSent("alice");
    expect(closed.got).toEqual([]);
  });
});

describe.each(sectionsFrom("s04"))("$name, what is sent to Feishu", (section) => {
  it("goes to the chat, and gets a new access token when the old one is refused", async () => {
    const { feishu, channel } = await listening(section);
    await channel.send("oc_alice", 'Hello "Alice"\n\\o/');
    expect(feishu.sent[0]).toMatchObject({ chat: "oc_alice", text: 'Hello "Alice"\n\\o/' });
    await channel.send("oc_family", "Hello all");
    expect(feishu.textsTo("family")).toEqual(["Hello all"]);
    const tokens = () => feishu.log.filter(({ method }) => method === "token").length;
    const before = tokens();
    expect(before).toBe(1); // one is enough for many messages
    feishu.expireTokens();
    await channel.send("oc_alice", "still here");
    expect(feishu.textsTo("alice")).toHaveLength(2);
    expect(tokens()).toBe(before + 1);
  });

  it("asks for a new access token before the old one ends", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    const { feishu, channel } = await listening(section);
    vi.setSystemTime(Date.now() + 7_190_000);
    await channel.send("oc_alice", "hi");
    expect(feishu.log.filter(({ code }) => code !== 0)).toEqual([]);
    expect(feishu.log.filter(({ method }) => method === "token")).toHaveLength(2);
  });

  it("waits ten seconds for an answer, and no longer", async () => {
    const { s04, feishu, channel } = await listening(section);
    const seconds: number[] = [];
    const original = AbortSignal.timeout;
    vi.spyOn(AbortSignal, "timeout").mockImplementation((ms) => {
      seconds.push(ms / 1000);
      return original(20);
    });
    feishu.fail({ kind: "hang" });
    const failed = await channel.send("oc_alice", "hi").catch((error: unknown) => error);
    expect(failed).toBeInstanceOf(s04.SendError);
    expect(failed).toMatchObject({ permanent: false });
    expect(seconds).toEqual([10]);
  });

  it("does not go round in circles with a token that is refused again", async () => {
    const { s04, feishu, channel } = await listening(section);
    feishu.fail({ kind: "99991663", times: 50 });
    await expect(channel.send("oc_alice", "hi")).rejects.toBeInstanceOf(s04.SendError);
    expect(feishu.log.length).toBeLessThan(10);
  });

  it.each([
    ["400", true],
    ["403", true],
    ["230002", true],
    ["230020", false],
    ["429", false],
    ["500", false],
    ["502", false],
    ["drop", false],
    ["refuse", false],
  ])("a send that ends in %s: permanent is %s", async (kind, permanent) => {
    const { s04, feishu, channel } = await listening(section);
    expect(FEISHU_FAILURES).toContain(kind);
    feishu.fail({ kind });
    const error: unknown = await channel.send("oc_alice", "hi").catch((reason) => reason);
    expect(error).toBeInstanceOf(s04.SendError);
    expect(error).toMatchObject({ permanent });
    await channel.send("oc_alice", "again");
  });

  it.each([
    [2200, false, false],
    [230006, false, false],
    [11232, false, false],
    [230013, true, false],
    [230025, true, false],
    [99991672, false, true],
    [1663, false, true],
  ])("a send refused by %i: permanent %s, unknown %s", async (code, permanent, isUnknown) => {
    const { channel } = await listening(section);
    const { fetch } = globalThis;
    const refused = Response.json(
      { code, msg: "no" },
      { headers: { "x-ogw-ratelimit-reset": "7" } },
    );
    vi.spyOn(globalThis, "fetch").mockImplementation((...call) =>
      String(call[0]).includes("/messages") ? Promise.resolve(refused) : fetch(...call),
    );
    const error: unknown = await channel.send("oc_alice", "hi").catch((reason) => reason);
    expect(error).toMatchObject({ permanent, isUnknown, retryAfter: 7 });
  });

  it("a token endpoint that is busy is a reason to try again", async () => {
    const { feishu, channel } = await listening(section);
    feishu.expireTokens();
    feishu.fail({ kind: "429", method: "token" });
    const error: unknown = await channel.send("oc_alice", "hi").catch((reason) => reason);
    expect(error).toMatchObject({ permanent: false, isUnknown: false });
    await channel.send("oc_alice", "again");
  });

  it("rejects at the start when the app's secret is wrong; events still come in", async () => {
    const { feishu, given } = await platforms();
    const s04 = await load04(section, settings(undefined, given));
    const wrong: Record<string, string> = { ...given, FEISHU_APP_SECRET: "wrong" };
    const channel = new s04.FeishuChannel((name) => wrong[name] ?? "");
    const start = channel.start(() => ({ done: Promise.resolve("") }));
    await expect(start).rejects.toThrow(/10014|secret/);
    expect(feishu.log).toHaveLength(1);
  });
});

describe.each(sectionsFrom("s04"))("$name, the settings of Feishu", (section) => {
  const make = async (more: Record<string, string>) => {
    const s04 = await load04(section);
    const all: Record<string, string> = {
      FEISHU_APP_ID: "cli_1",
      FEISHU_APP_SECRET: "secret",
      FEISHU_VERIFICATION_TOKEN: "token",
      ...more,
    };
    return new s04.FeishuChannel((name) => all[name] ?? "");
  };

  it.each(["FEISHU_APP_SECRET", "FEISHU_VERIFICATION_TOKEN"])(
    "names %s if missing",
    async (name) => {
      await expect(make({ [name]: "" })).rejects.toThrow(name);
    },
  );

  it.each([
    ["", "https://open.feishu.cn/"],
    ["feishu", "https://open.feishu.cn/"],
    ["lark", "https://open.larksuite.com/"],
  ])("domain %j asks at %s", async (domain, address) => {
    const asked: string[] = [];
    const fetch = vi.spyOn(globalThis, "fetch").mockImplementation(async (place) => {
      asked.push(String(place));
      return Response.json({ code: 0, tenant_access_token: "t", expire: 7200 });
    });
    const channel = await make({ FEISHU_DOMAIN: domain });
    await channel.start(() => ({ done: Promise.resolve("") }));
    await channel.send("oc_1", "hi");
    expect(asked).toHaveLength(2);
    for (const place of asked) expect(place.startsWith(address)).toBe(true);
    fetch.mockRestore();
  });

  it("refuses another domain, and says which there are", async () => {
    await expect(make({ FEISHU_DOMAIN: "dingtalk" })).rejects.toThrow(/feishu.*lark/);
  });
});
