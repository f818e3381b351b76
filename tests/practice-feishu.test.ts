/** The fake Feishu: the bot's side with fetch, the webhook with a check written anew here. */

import { createDecipheriv, createHash } from "node:crypto";
import { createServer, type IncomingHttpHeaders, type Server } from "node:http";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  CONTENTS,
  type FakeFeishu,
  type FeishuOptions,
  OTHER_EVENTS,
  startFeishu,
} from "../practice/feishu.ts";
import { closeServer, listen } from "../practice/web.ts";

interface Request {
  headers: IncomingHttpHeaders;
  raw: string;
}

/** An event as far as these tests look into it. */
interface Event {
  schema?: string;
  header: { event_id: string; event_type: string; token: string; create_time: string };
  event: { sender: { sender_id: { open_id: string } }; message: Record<string, unknown> };
}

const KEY = "practice-encrypt-key";

let feishu: FakeFeishu;
let webhook: Server;
let address: string;
const requests: Request[] = [];
/** What the webhook answers, one after the other; then always 200. 0: nothing at all. */
const answers: number[] = [];

beforeEach(async () => {
  webhook = createServer(async (request, response) => {
    let raw = "";
    for await (const chunk of request) raw += chunk;
    requests.push({ headers: request.headers, raw });
    const status = answers.shift() ?? 200;
    if (status === 0) return; // the webhook sleeps
    response.writeHead(status, { "content-type": "application/json" });
    response.end("{}");
  });
  address = `${await listen(webhook)}/feishu/events`;
});

afterEach(async () => {
  await feishu.close();
  await closeServer(webhook);
  requests.length = 0;
  answers.length = 0;
});

async function start(options: FeishuOptions = {}): Promise<void> {
  feishu = await startFeishu({ webhook: address, redeliverAfter: [0, 0, 0, 0], ...options });
}

const sha256 = (bytes: string): Buffer => createHash("sha256").update(bytes).digest();

function isSigned({ headers, raw }: Request, key = KEY): boolean {
  const parts = ["timestamp", "nonce"].map((name) => headers[`x-lark-request-${name}`]);
  const expected = sha256(parts.join("") + key + raw).toString("hex");
  return headers["x-lark-signature"] === expected;
}

function open({ raw }: Request, key = KEY): Event {
  const { encrypt } = JSON.parse(raw) as { encrypt: string }; // tests below see when it is missing
  const bytes = Buffer.from(encrypt, "base64");
  const decipher = createDecipheriv("aes-256-cbc", sha256(key), bytes.subarray(0, 16));
  const plain = Buffer.concat([decipher.update(bytes.subarray(16)), decipher.final()]);
  return JSON.parse(plain.toString("utf8"));
}

const messages = () => requests.map((request) => open(request).event.message);

describe("events", () => {
  it("are encrypted and signed, and have the form of real ones", async () => {
    await start({ now: () => 1_767_600_000_123 });
    await feishu.say("alice", "你好 🙂").delivered;
    const [request] = requests;
    expect(request && isSigned(request)).toBe(true);
    expect(request?.headers["x-lark-request-timestamp"]).toBe("1767600000");
    expect(request && open(request)).toEqual({
      schema: "2.0",
      header: {
        event_id: "ev_practice_1",
        event_type: "im.message.receive_v1",
        create_time: "1767600000123",
        token: "practice-verification-token",
        app_id: "cli_practice",
        tenant_key: "practice_tenant",
      },
      event: {
        sender: {
          sender_id: { open_id: "ou_alice", union_id: "on_alice", user_id: null },
          sender_type: "user",
          tenant_key: "practice_tenant",
        },
        message: {
          message_id: "om_practice_1",
          create_time: "1767600000123",
          chat_id: "oc_alice",
          chat_type: "p2p",
          message_type: "text",
          content: '{"text":"你好 🙂"}',
        },
      },
    });
  });

  it("travel in the clear, unsigned, when there is no key", async () => {
    await start({ encryptKey: "" });
    await feishu.say("alice", "hello").delivered;
    const body: Event = JSON.parse(requests[0]?.raw ?? "");
    expect(body.event.message.content).toBe('{"text":"hello"}');
    expect(requests[0]?.headers).not.toHaveProperty("x-lark-signature");
  });

  it("name who is mentioned, in groups", async () => {
    await start();
    await feishu.say("bob", "@practice_bot ask @alice, @all", { group: "family" }).delivered;
    expect(messages()[0]).toMatchObject({
      chat_id: "oc_family",
      chat_type: "group",
      content: '{"text":"@_user_1 ask @_user_2, @_all"}',
      mentions: [
        { key: "@_user_1", id: { open_id: feishu.botOpenId }, name: "Luna" },
        { key: "@_user_2", id: { open_id: "ou_alice" }, name: "alice" },
      ],
    });
  });

  it("tell what a message answers", async () => {
    await start();
    const first = feishu.say("alice", "one");
    const second = feishu.say("alice", "two", { replyTo: first.messageId });
    await feishu.say("alice", "three", { replyTo: second.messageId }).delivered;
    const { messageId: root_id } = first;
    expect(messages()[1]).toMatchObject({ root_id, parent_id: root_id });
    expect(messages()[2]).toMatchObject({ root_id, parent_id: second.messageId });
  });

  it("come in every kind of message and in every other type", async () => {
    await start();
    for (const [type, content] of Object.entries(CONTENTS)) {
      await feishu.say("alice", "", { type, content }).delivered;
    }
    expect(messages().map((one) => one.message_type)).toEqual(Object.keys(CONTENTS));
    requests.length = 0;
    for (const [type, event] of Object.entries(OTHER_EVENTS)) {
      await feishu.push(type, event).delivered;
    }
    expect(requests.map((one) => open(one).header.event_type)).toEqual(Object.keys(OTHER_EVENTS));
    requests.length = 0;
    await feishu.post("alice", [[{ tag: "a", href: "https://a.example", text: "a" }]]).delivered;
    expect(messages()[0]?.content).toContain('"tag":"a"');
  });

  it("come in the old form, too", async () => {
    await start();
    await feishu.say("alice", "hello", { wire: { schema: 1 } }).delivered;
    expect(requests[0] && open(requests[0])).toMatchObject({
      uuid: "ev_practice_1",
      token: "practice-verification-token",
      type: "event_callback",
      event: { type: "message", open_chat_id: "oc_alice", chat_type: "private", text: "hello" },
    });
  });

  it("of one chat set out in order", async () => {
    await start();
    const said = ["one", "two", "three", "four"].map((words) => feishu.say("alice", words));
    await Promise.all(said.map((one) => one.delivered));
    const texts = messages().map((one) => JSON.parse(String(one.content)).text);
    expect(texts).toEqual(["one", "two", "three", "four"]);
  });
});

describe("the challenge", () => {
  it.each(["", KEY])("is encrypted if there is a key: %j", async (encryptKey) => {
    await start({ encryptKey });
    expect(await feishu.challenge("say this")).toMatchObject({ status: 200 });
    const [request] = requests;
    const body = encryptKey && request ? open(request) : JSON.parse(request?.raw ?? "");
    const token = "practice-verification-token";
    expect(body).toEqual({ challenge: "say this", token, type: "url_verification" });
  });
});

describe("forgeries", () => {
  it("have a signature that does not fit, another key, an old time, a wrong token", async () => {
    await start();
    const said = [
      feishu.say("alice", "1", { wire: { sign: "wrong" } }),
      feishu.say("alice", "2", { wire: { sign: "none" } }),
      feishu.say("alice", "3", { wire: { key: "guessed" } }),
      feishu.say("alice", "4", { wire: { timestamp: 1_600_000_000 } }),
      feishu.say("alice", "5", { wire: { token: "guessed" } }),
      feishu.say("alice", "6", { wire: { encrypt: false } }),
    ];
    await Promise.all(said.map((one) => one.first));
    expect(requests.map((one) => isSigned(one))).toEqual([false, false, false, true, true, true]);
    const [, , third, fourth, fifth, sixth] = requests;
    if (!third || !fourth || !fifth || !sixth) return expect.fail("six requests");
    expect(isSigned(third, "guessed")).toBe(true);
    expect(open(third, "guessed").event.message.content).toBe('{"text":"3"}');
    expect(fourth.headers["x-lark-request-timestamp"]).toBe("1600000000");
    expect(open(fifth).header.token).toBe("guessed");
    expect(sixth.raw).toContain('"schema":"2.0"');
  });

  it("are not sent again", async () => {
    await start();
    answers.push(401, 401);
    const forged = feishu.say("alice", "hi", { wire: { sign: "wrong" } });
    expect(await forged.first).toMatchObject({ status: 401 });
    await feishu.flush();
    expect(forged.attempts).toHaveLength(1);
    expect(await feishu.postRaw({ hello: "world" }, { encrypt: false })).toMatchObject({
      status: 401,
    });
  });
});

describe("redelivery", () => {
  it("goes on until the webhook says 200, with the same ids", async () => {
    await start();
    answers.push(500, 404, 302);
    const said = feishu.say("alice", "hello");
    await said.delivered;
    expect(said.attempts.map((one) => one.status)).toEqual([500, 404, 302, 200]);
    const events = requests.map((one) => open(one));
    expect(new Set(events.map((one) => JSON.stringify(one))).size).toBe(1);
  });

  it("stops after the last wait", async () => {
    await start({ redeliverAfter: [0] });
    answers.push(500, 500);
    const said = feishu.say("alice", "hello");
    await feishu.until(() => said.attempts.length === 2);
    expect(await said.first).toMatchObject({ status: 500 });
    await feishu.flush(); // but a test may want it once more
    await said.delivered;
  });

  it("has new ids if wanted, and the same sender, chat, time and content", async () => {
    await start({ newIds: true });
    answers.push(500);
    await feishu.say("alice", "hello").delivered;
    const [first, second] = requests.map((one) => open(one));
    expect(second?.header.event_id).not.toBe(first?.header.event_id);
    expect(second?.event.message).toEqual({
      ...first?.event.message,
      message_id: "om_practice_2",
    });
    expect(second?.event.sender).toEqual(first?.event.sender);
  });

  it("comes when the webhook is too slow, or not there", async () => {
    await start({ patience: 50 });
    answers.push(0);
    const slow = feishu.say("alice", "hello");
    await slow.delivered;
    expect(slow.attempts.map((one) => one.status)).toEqual([0, 200]);
    feishu.webhook = "http://127.0.0.1:9/nobody";
    const lost = feishu.say("alice", "hello");
    expect((await lost.first).status).toBe(0);
    feishu.webhook = address;
    await feishu.flush();
    await lost.delivered;
  });

  it("can be had at any time", async () => {
    await start();
    const said = feishu.say("alice", "hello");
    await said.delivered;
    await feishu.again(said);
    await feishu.again(said, true);
    const ids = messages().map((one) => one.message_id);
    expect(ids).toEqual(["om_practice_1", "om_practice_1", "om_practice_2"]);
  });
});

/** What the API answers. */
interface Answer {
  code: number;
  msg: string;
  data?: Record<string, unknown>;
  error?: unknown;
  tenant_access_token?: string;
  expire?: number;
  bot?: unknown;
}

async function post(path: string, body: object, token?: string) {
  const response = await fetch(`${feishu.url}/open-apis/${path}`, {
    method: "POST",
    headers: { ...(token && { authorization: `Bearer ${token}` }) },
    body: JSON.stringify(body),
  });
  const answer = (await response.json()) as Answer; // checked by every test
  return { status: response.status, headers: response.headers, ...answer };
}

const getToken = async (app_secret = feishu.appSecret, app_id = feishu.appId): Promise<Answer> =>
  post("auth/v3/tenant_access_token/internal", { app_id, app_secret });

const text = (value: string): object => ({
  msg_type: "text",
  content: JSON.stringify({ text: value }),
});

async function send(message: object, receive_id = "oc_alice", type = "chat_id") {
  const { tenant_access_token: token } = await getToken();
  return post(`im/v1/messages?receive_id_type=${type}`, { receive_id, ...message }, token);
}

describe("tokens", () => {
  it("are given for id and secret, and are the same until they get old", async () => {
    let now = 1_767_600_000_000;
    await start({ now: () => now });
    const first = await getToken();
    expect(first).toMatchObject({ code: 0, msg: "ok", expire: 7200 });
    now += 80 * 60_000;
    expect(await getToken()).toMatchObject({
      tenant_access_token: first.tenant_access_token,
      expire: 2400,
    });
    now += 20 * 60_000;
    const second = await getToken();
    expect(second.tenant_access_token).not.toBe(first.tenant_access_token);
    now += 21 * 60_000;
    const path = "im/v1/messages?receive_id_type=chat_id";
    const message = { receive_id: "oc_alice", ...text("hi") };
    expect(await post(path, message, first.tenant_access_token)).toMatchObject({
      status: 400,
      code: 99991663,
    });
    expect(await post(path, message, second.tenant_access_token)).toMatchObject({ code: 0 });
    feishu.expireTokens();
    expect(await post(path, message, second.tenant_access_token)).toMatchObject({ code: 99991663 });
    expect(await post(path, message)).toMatchObject({ status: 400, code: 99991661 });
  });

  it("are refused to others", async () => {
    await start();
    expect(await getToken("wrong")).toMatchObject({ code: 10014, msg: "app secret invalid" });
    expect(await getToken(undefined, "cli_other")).toMatchObject({ code: 10003 });
  });
});

describe("what the bot sends", () => {
  it("is kept, answered and can be waited for", async () => {
    await start({ now: () => 1_767_600_000_000 });
    const next = feishu.nextSent("alice");
    const answer = await send(text("hello"));
    expect(answer).toMatchObject({
      status: 200,
      code: 0,
      msg: "success",
      data: {
        message_id: "om_practice_1",
        msg_type: "text",
        chat_id: "oc_alice",
        create_time: "1767600000000",
        sender: { id: "cli_practice", id_type: "app_id", sender_type: "app" },
        body: { content: '{"text":"hello"}' },
      },
    });
    expect(await next).toMatchObject({ chat: "oc_alice", type: "text", text: "hello" });
    await send(text("by open_id"), "ou_bob", "open_id");
    expect(feishu.textsTo("bob")).toEqual(["by open_id"]);
  });

  it("can be a post, a card or a reply", async () => {
    await start();
    const { messageId } = feishu.say("alice", "hi", { group: "family" });
    const { tenant_access_token: token } = await getToken();
    const reply = await post(`im/v1/messages/${messageId}/reply`, text("yes?"), token);
    expect(reply.data).toMatchObject({ parent_id: messageId, chat_id: "oc_family" });
    const content = [
      [
        { tag: "text", text: "a " },
        { tag: "a", text: "link", href: "x" },
      ],
      [],
    ];
    const rich = JSON.stringify({ zh_cn: { title: "T", content } });
    await send({ msg_type: "post", content: rich }, "oc_family");
    await send({ msg_type: "interactive", content: '{"elements":[]}' }, "oc_family");
    expect(feishu.textsTo("family")).toEqual(["yes?", "T\na link", '{"elements":[]}']);
    expect(feishu.sent[0]).toMatchObject({ replyTo: messageId });
    expect(await post("im/v1/messages/om_none/reply", text("hi"), token)).toMatchObject({
      code: 230001,
    });
  });

  it("is sent once for each uuid", async () => {
    await start();
    const first = await send({ ...text("hi"), uuid: "delivery-1" });
    const again = await send({ ...text("hi"), uuid: "delivery-1" });
    await send({ ...text("hi"), uuid: "delivery-2" });
    expect(again).toMatchObject({ code: 0, data: first.data });
    expect(feishu.sent.map((one) => one.uuid)).toEqual(["delivery-1", "delivery-2"]);
  });

  it.each([
    ["invalid receive_id", text("hi"), "oc_nobody", "chat_id", 230001],
    ["invalid receive_id", text("hi"), "ou_alice", "chat_id", 230001],
    ["field validation failed", text("hi"), "oc_alice", "", 99992402],
    ["field validation failed", { msg_type: "text" }, "oc_alice", "chat_id", 99992402],
    ["not a string in json", { msg_type: "text", content: "hi" }, "oc_alice", "chat_id", 230001],
    ["not a string in json", { ...text(""), content: {} }, "oc_alice", "chat_id", 230001],
    ["text content is empty", text(""), "oc_alice", "chat_id", 230001],
    ["reaches its limit", text("你".repeat(52_000)), "oc_alice", "chat_id", 230025],
    ["invalid msg_type", { msg_type: "song", content: "{}" }, "oc_alice", "chat_id", 230001],
    ["uuid is too long", { ...text("hi"), uuid: "u".repeat(51) }, "oc_alice", "chat_id", 230001],
  ])("is refused: %s (%#)", async (words, message, id, type, code) => {
    await start();
    const answer = await send(message, id, type);
    expect(answer).toMatchObject({ status: 400, code, msg: expect.stringContaining(words) });
    expect(answer.error).toHaveProperty("log_id");
    expect(feishu.sent).toEqual([]);
  });

  it("knows who it is", async () => {
    await start();
    const { tenant_access_token: token } = await getToken();
    const headers = { authorization: `Bearer ${token}` };
    const info = await fetch(`${feishu.url}/open-apis/bot/v3/info`, { headers });
    expect(await info.json()).toMatchObject({ code: 0, bot: { open_id: feishu.botOpenId } });
    const unknown = await fetch(`${feishu.url}/open-apis/magic`, { headers });
    expect(unknown.status).toBe(404);
  });
});

describe("failures", () => {
  it.each([
    ["400", 400, 230001],
    ["403", 400, 230013],
    ["429", 429, 99991400],
    ["500", 500, 2200],
    ["99991663", 400, 99991663],
    ["230002", 400, 230002],
    ["230020", 400, 230020],
  ])("%s", async (kind, status, code) => {
    await start();
    feishu.fail({ kind, retryAfter: 9, chat: "alice" });
    await send(text("to the family"), "oc_family");
    const answer = await send(text("hi"));
    expect(answer).toMatchObject({ status, code });
    expect(answer.headers.get("x-ogw-ratelimit-reset")).toBe(kind === "429" ? "9" : null);
    await send(text("again"));
    expect(feishu.textsTo("alice")).toEqual(["again"]);
  });

  it("breaks the connection after a message or before it, or speaks HTML", async () => {
    await start();
    feishu.fail({ kind: "drop" });
    feishu.fail({ kind: "refuse" });
    feishu.fail({ kind: "502" });
    for (const words of ["accepted", "not accepted", "HTML"]) {
      await expect(send(text(words))).rejects.toThrow();
    }
    await send(text("fine"));
    expect(feishu.sent.map((one) => [one.text, one.dropped])).toEqual([
      ["accepted", true],
      ["fine", false],
    ]);
    feishu.fail({ kind: "500", method: "token" });
    expect(await getToken()).toMatchObject({ status: 500 });
    expect(() => feishu.fail({ kind: "418" })).toThrow('There is no failure "418"');
  });

  it("hangs until it is released", async () => {
    await start();
    feishu.fail({ kind: "hang" });
    const waiting = send(text("late"));
    await feishu.until(() => feishu.log.some((one) => one.method === "sendMessage"));
    expect(feishu.sent).toEqual([]);
    feishu.release();
    expect(await waiting).toMatchObject({ code: 0 });
  });
});
