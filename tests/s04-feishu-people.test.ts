/** s04, Feishu: topics, odd events, what the model must not write, and a start without network. */

import crypto from "node:crypto";
import fs from "node:fs";
import { connect } from "node:net";
import { describe, expect, it, vi } from "vitest";
import type { FeishuOptions } from "../practice/feishu.ts";
import { englishFrom, printed, type SectionFile, sectionsFrom, settings } from "./helper.ts";
import { countOf, wording } from "./wording.ts";
import { afterwards, load04, openWorld, platforms, type S04, serveRoutes } from "./world.ts";

type Inbound = Parameters<Parameters<InstanceType<S04["FeishuChannel"]>["start"]>[0]>[0];
type Fields = Record<string, unknown>;

const PLAIN: FeishuOptions = { encryptKey: "" };

/** The channel, not started yet, with its webhook open. What it accepted is in `got`, in order. */
async function webhook(section: SectionFile, options: FeishuOptions = PLAIN) {
  const { feishu, given } = await platforms(options);
  const s04 = await load04(section, settings(undefined, given));
  const create = () => new s04.FeishuChannel((name) => given[name] ?? "");
  const channel = create();
  const got: Inbound[] = [];
  const start = () =>
    channel.start((message) => {
      got.push(message);
      return { done: Promise.resolve("") };
    });
  afterwards(() => channel.stop());
  feishu.webhook = `${await serveRoutes(s04)}/feishu/events`;
  /** What was accepted of a message. */
  const say = async (text: string, more: Parameters<typeof feishu.say>[2] = {}) => {
    const before = got.length;
    expect((await feishu.say("alice", text, more).first).status).toBe(200);
    return got[before];
  };
  return { s04, feishu, given, channel, create, start, got, say };
}

describe.each(sectionsFrom("s04"))("$name, messages of Feishu that differ", (section) => {
  it("two with the same words and no time are two, each with a time", async () => {
    const { start, got, say } = await webhook(section);
    await start();
    const fields = { create_time: undefined };
    await say("yes", { fields });
    await say("yes", { fields });
    expect(new Set(got.map(({ id }) => id)).size).toBe(2);
    for (const { at } of got) expect(Math.abs(Date.now() - at)).toBeLessThan(60_000);
  });

  it("an event of odd form gets 200 and one line, and what can be read of it is read", async () => {
    const { feishu, start, got, say } = await webhook(section);
    await start();
    for (const mentions of [null, [null], "x", 7, [{}], [{ id: null, key: 3 }]]) {
      expect((await say("hi", { fields: { mentions } }))?.text).toBe("hi");
    }
    got.splice(0);
    const user = { sender_type: "user", sender_id: { open_id: "ou_alice" } };
    const message = { chat_id: "oc_alice", chat_type: "p2p", message_type: "text", content: "{}" };
    const odd: unknown[] = [
      null,
      7,
      [],
      { message },
      { sender: null, message },
      { sender: user, message: [] },
      { sender: user, message: { ...message, chat_id: { a: 1 } } },
      { sender: user, message: { ...message, chat_id: undefined } },
      { sender: user, message: { ...message, content: 7 } },
      { sender: user, message: { ...message, message_type: null } },
    ];
    for (const event of odd) {
      const lines = () =>
        countOf(printed(), wording(section, "feishu: an event could not be read: {error}"));
      const before = lines();
      const { status } = await feishu.push("im.message.receive_v1", event).first;
      expect(status, JSON.stringify(event)).toBe(200);
      expect(lines() - before, JSON.stringify(event)).toBe(1);
    }
    expect(got).toEqual([]);
    const strange = { sender: { ...user, sender_id: 7 }, message: { ...message, content: "[[[" } };
    await feishu.push("im.message.receive_v1", strange).first;
    expect(got[0]).toMatchObject({ text: "[text]", senderId: "" });
  });

  it("a post under a language, its video, its emoji; other kinds with their words", async () => {
    const { feishu, start, got, say } = await webhook(section);
    await start();
    const content = [
      [
        { tag: "text", text: "see " },
        { tag: "emotion", emoji_type: "SMILE" },
        { tag: "media", file_key: "file_1", image_key: "img_1" },
      ],
      [{ tag: "img", image_key: "img_2" }],
    ];
    for (const language of ["zh_cn", "en_us", "ja_jp"]) {
      const post = { [language]: { title: "Trip", content } };
      const said = await say("", { type: "post", content: post });
      expect(said?.text).toBe("Trip\nsee SMILE[media]\n[image]");
      expect(said?.media).toEqual([
        { kind: "media", id: "file_1" },
        { kind: "image", id: "img_2" },
      ]);
    }
    await feishu.post("alice", content as Fields[][], { title: "Trip" }).first;
    expect(got.at(-1)?.text).toBe("Trip\nsee SMILE[media]\n[image]");
    const location = { name: "Café", longitude: "16.37", latitude: "48.2" };
    const place = await say("", { type: "location", content: location });
    expect(place?.text).toBe("[location] Café 16.37 48.2");
    const vote = await say("", {
      type: "vote",
      content: { topic: "Tea?", options: ["yes", "no"] },
    });
    expect(vote?.text).toBe("[vote] Tea? yes no");
  });
});

describe.each(sectionsFrom("s04"))("$name, topics of Feishu", (section) => {
  const inTopic = (thread_id: string, more: Fields = {}) => ({
    group: "family",
    fields: { thread_id, ...more },
  });

  it("are conversations of their own and answered there, after a restart as well", async () => {
    const { feishu, channel, create, start, got, say } = await webhook(section);
    await start();
    const hi = "@practice_bot hi";
    const root = await say(hi, { group: "family" });
    expect(root?.peerId).toBe("oc_family");
    const first = await say(hi, inTopic("omt_1"));
    expect(first).toMatchObject({ peerId: "oc_family:thread:omt_1", isGroup: true, text: "hi" });
    const opened = feishu.deliveries.at(-1)?.messageId;
    const second = await say(hi, inTopic("omt_1", { root_id: opened }));
    const other = await say(hi, inTopic("omt_2", { root_id: "om_practice_1" }));
    expect(second?.peerId).toBe(first?.peerId);
    expect(other?.peerId).toBe("oc_family:thread:omt_2");
    expect(got).toHaveLength(4);

    for (const sender of [channel, create()]) {
      await sender.send("oc_family:thread:omt_1", "here");
      expect(feishu.sent.at(-1)).toMatchObject({ chat: "oc_family", replyTo: opened });
      await sender.send("oc_family:thread:omt_2", "there");
      expect(feishu.sent.at(-1)).toMatchObject({ chat: "oc_family", replyTo: "om_practice_1" });
    }
    const last = feishu.log.findLast(({ path }) => path.endsWith("/reply"));
    expect(last?.parameters).toMatchObject({ reply_in_thread: true });
    await channel.send("oc_family", "to all");
    expect(feishu.sent.at(-1)?.replyTo).toBe(undefined);
    // One that is not known, such as one that somebody wrote into CRON.json, falls back to the chat.
    await channel.send("oc_family:thread:omt_9", "where?");
    expect(feishu.sent.at(-1)).toMatchObject({ chat: "oc_family", text: "where?" });
  });

  it("whose first message was taken back fall back to the chat", async () => {
    const { feishu, channel, start, say } = await webhook(section);
    await start();
    await say("@practice_bot hi", inTopic("omt_1"));
    const real = globalThis.fetch;
    const replies: string[] = [];
    vi.spyOn(globalThis, "fetch").mockImplementation(async (place, init) => {
      if (!String(place).endsWith("/reply")) return real(place, init);
      replies.push(String(place));
      return Response.json({ code: 230011, msg: "The message was withdrawn." }, { status: 400 });
    });
    for (const text of ["one", "two"]) await channel.send("oc_family:thread:omt_1", text);
    expect(feishu.textsTo("family")).toEqual(["one", "two"]);
    expect(replies).toHaveLength(1); // it is not asked again for each message
  });

  it("come again if the disk is full, and are known then", async () => {
    const { feishu, create, start, got } = await webhook(section);
    await start();
    vi.spyOn(fs, "renameSync").mockImplementationOnce(() => {
      throw Object.assign(new Error("no space left"), { code: "ENOSPC" });
    });
    const message = feishu.say("alice", "@practice_bot hi", inTopic("omt_1"));
    expect((await message.first).status).toBe(500);
    expect(got).toEqual([]);
    await feishu.again(message);
    expect(got).toHaveLength(1);
    await create().send("oc_family:thread:omt_1", "here");
    expect(feishu.sent[0]?.replyTo).toBe(message.messageId);
  });

  it("a stranger's topic is told the id of its chat, in the topic", async () => {
    const { feishu, start, got, say } = await webhook(section);
    await start();
    await say("@practice_bot hi", { group: "others", fields: { thread_id: "omt_5" } });
    await feishu.until(() => feishu.sent.length === 1);
    expect(got).toEqual([]);
    expect(feishu.sent[0]?.text).toMatch(
      wording(section, "I don't know this chat. Its id is {chat}: my owner can let it in.", {
        chat: "oc_others",
      }),
    );
    expect(feishu.sent[0]?.replyTo).toBeTruthy();
  });
});

describe.each(sectionsFrom("s04"))("$name, what goes out to Feishu", (section) => {
  it("mentions nobody, whatever the model writes, and nothing else is changed", async () => {
    const { feishu, channel } = await webhook(section);
    const texts = [
      '<at user_id="all">everyone</at>',
      "<AT user_id=ou_alice></AT>",
      "<at\nid=all></at>",
      '<at\tuser_id="all"/>',
    ];
    for (const text of texts) {
      await channel.send("oc_alice", `Hi ${text} there`);
      const { content } = feishu.sent.at(-1) ?? {};
      expect(String(content?.text)).not.toMatch(/<\/?at\b/i);
      expect(String(content?.text).replaceAll("< ", "<")).toBe(`Hi ${text} there`);
    }
    const plain = "a < b, <atlas>, <b>bold</b>, x<attr";
    await channel.send("oc_alice", plain);
    expect(feishu.sent.at(-1)?.text).toBe(plain);
  });

  it("waits for an answer for 10 s at most", async () => {
    const { s04, feishu, channel } = await webhook(section);
    await channel.send("oc_alice", "hi");
    const limits: number[] = [];
    const controllers: AbortController[] = [];
    vi.spyOn(AbortSignal, "timeout").mockImplementation((ms) => {
      const controller = new AbortController();
      limits.push(ms);
      controllers.push(controller);
      return controller.signal;
    });
    feishu.fail({ kind: "hang" });
    const calls = feishu.log.length;
    const sent = channel.send("oc_alice", "anybody there?").catch((reason: unknown) => reason);
    await feishu.until(() => feishu.log.length > calls);
    controllers.at(-1)?.abort(new DOMException("10 s are over", "TimeoutError"));
    const error = await sent;
    expect(error).toBeInstanceOf(s04.SendError);
    expect(error).toMatchObject({ permanent: false });
    expect(limits).toEqual([10_000]);
  });
});

describe.each(sectionsFrom("s04"))("$name, a start of Feishu without network", (section) => {
  it("is tried again until there is a token, and events come in meanwhile", async () => {
    vi.doMock("node:timers/promises", () => ({
      setTimeout: (ms: number) => new Promise((resolve) => setTimeout(resolve, ms / 500)),
    }));
    const { s04, feishu, channel, got, say } = await webhook(section);
    for (const kind of ["refuse", "drop", "429", "230020", "502"]) {
      feishu.fail({ kind, method: "token" });
    }
    const manager = new s04.ChannelManager();
    manager.set("feishu", channel);
    const ready = wording(section, "ready");
    const isReady = () => countOf(manager.states.get("feishu") ?? "", ready) === 1;
    void manager.start((message) => {
      got.push(message);
      return { done: Promise.resolve("") };
    });
    expect((await say("hi"))?.text).toBe("hi");
    await vi.waitUntil(isReady);
    expect(feishu.log.filter(({ method }) => method === "token")).toHaveLength(6);
    await channel.send("oc_alice", "hello");
    expect(feishu.textsTo("alice")).toEqual(["hello"]);
  });

  it("a refusal of the token that passes is no reason to give up", async () => {
    const { feishu, channel } = await webhook(section);
    feishu.fail({ kind: "230020", method: "token" });
    await expect(channel.send("oc_alice", "hi")).rejects.toMatchObject({ permanent: false });
    await channel.send("oc_alice", "hi");
  });
});

describe.each(sectionsFrom("s04"))("$name, the secrets of the webhook", (section) => {
  it("are compared in constant time, the token and the signature", async () => {
    const { feishu, start, say } = await webhook(section, {});
    await start();
    const compare = vi.spyOn(crypto, "timingSafeEqual");
    await say("hi");
    expect(compare).toHaveBeenCalledTimes(2);
    const wrong = await feishu.say("alice", "x", { wire: { token: "wrong" } }).first;
    const unsigned = await feishu.say("alice", "x", { wire: { sign: "wrong" } }).first;
    expect([wrong.status, unsigned.status]).toEqual([401, 401]);
    expect(compare).toHaveBeenCalledTimes(5);
    compare.mockRestore();
  });
});

describe.each(englishFrom("s04"))("$name, the HTTP server", (section) => {
  it("takes 64 KiB before it knows who sends them, and no more than 10 s", async () => {
    const world = await openWorld(section, { telegram: false });
    const address = `http://127.0.0.1:${world.port}/feishu/events`;
    const post = (bytes: number) =>
      fetch(address, { method: "POST", body: Buffer.alloc(bytes, "x") });
    expect((await post(65_536)).status).toBe(401);
    expect((await post(65_537)).status).toBe(413);
    // Whoever sends a byte now and then can't keep a connection. One section shows it: it takes 10 s.
    if (section.id !== "s04" && section.id !== "s10") return;
    const socket = connect(Number(world.port), "127.0.0.1");
    const ended = new Promise((resolve) => socket.on("close", resolve));
    let answer = "";
    socket.on("data", (data) => {
      answer += data;
    });
    const begun = Date.now();
    socket.write("POST /feishu/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
    const timer = setInterval(() => socket.write("x"), 500);
    await ended;
    clearInterval(timer);
    expect(answer).toMatch(/^HTTP\/1.1 408/);
    expect(Date.now() - begun).toBeGreaterThan(9_000);
  });

  it("ignores the offer of another protocol, and reads the request", async () => {
    const world = await openWorld(section, {
      telegram: false,
      settings: { FEISHU_ENCRYPT_KEY: "" },
    });
    const token = world.feishu.verificationToken;
    const large = { type: "url_verification", token, challenge: "C".repeat(50_000) };
    const body = JSON.stringify(large);
    const ask = (offer: string) =>
      new Promise<string>((resolve) => {
        const socket = connect(Number(world.port), "127.0.0.1");
        let answer = "";
        socket.on("close", () => resolve(answer)).on("error", () => {});
        socket.on("data", (data) => {
          answer += data;
          if (answer.endsWith("\r\n0\r\n\r\n")) socket.end();
        });
        const head = `Host: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n`;
        socket.write(`POST /feishu/events HTTP/1.1\r\n${head}${offer}\r\n`);
        socket.write(body);
      });
    for (const offer of ["h2c", "TLS/1.0", "H2C, websocket2", "foo"]) {
      const answer = await ask(`Connection: Upgrade\r\nUpgrade: ${offer}\r\n`);
      expect(answer, offer).toMatch(/^HTTP\/1.1 200/);
      expect(answer).toContain("C".repeat(50_000));
    }
  });
});
