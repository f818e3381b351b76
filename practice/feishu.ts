/**
 * A fake of the Feishu (Lark) open platform, as far as a bot needs it.
 *
 * It is both sides of the conversation. `/open-apis/…` takes what the bot sends, with the real
 * checks and error codes. What people say is posted as events to the bot's webhook, encrypted and
 * signed, and posted again if the webhook does not answer 200 in time.
 */

import type { IncomingMessage, ServerResponse } from "node:http";
import { sendJson } from "./exchange.ts";
import type { Failure } from "./fault-injection.ts";
import {
  type EventMessage,
  envelope,
  ids,
  oldEnvelope,
  oldMessage,
  received,
  TENANT,
  type Wire,
} from "./feishu-events.ts";
import { type Attempt, type Delivery, Webhook, type WebhookOptions } from "./feishu-webhook.ts";
import { FakePlatform } from "./platform.ts";
import { CodedError, type Fields, type PhoneInput, readFields } from "./web.ts";

export { CONTENTS, OTHER_EVENTS, type Wire } from "./feishu-events.ts";
export type { Attempt, Delivery } from "./feishu-webhook.ts";

export interface FeishuOptions extends WebhookOptions {
  port?: number;
  appId?: string;
  appSecret?: string;
  /** How long a tenant_access_token lives, in seconds. */
  tokenSeconds?: number;
}

export interface SayOptions {
  /** The name of a group; without it, the direct chat with the bot. */
  group?: string;
  /** The id of the message that this one answers. */
  replyTo?: string;
  /** text, unless it is another one of `CONTENTS`. */
  type?: string;
  /** The content of a message that is no text. */
  content?: Fields;
  /** What sends it: "user", or "app" for another bot. */
  senderType?: string;
  /** More fields of the message, or other values. */
  fields?: Fields;
  wire?: Wire;
}

export interface Sent {
  /** The chat's id. */
  chat: string;
  messageId: string;
  type: string;
  /** What a person reads. */
  text: string;
  content: Fields;
  replyTo?: string;
  uuid?: string;
  at: number;
  /** Feishu has it, but the connection broke before the bot was told. */
  dropped: boolean;
}

export interface Call {
  /** token, sendMessage, reply, botInfo, or the path. */
  method: string;
  path: string;
  parameters: Fields;
  at: number;
  status: number;
  code: number;
}

/** An error answer: it has a code of Feishu's in the body, besides the HTTP status. */
class Refusal extends Error {
  readonly status: number;
  readonly code: number;
  /** What the field "error" of the body says about the reason. */
  readonly details: Fields;
  readonly headers: Record<string, string>;

  constructor(status: number, code: number, message: string, details: Fields = {}, headers = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.details = details;
    this.headers = headers;
  }
}

const INVALID = "Your request contains an invalid request parameter, ext=";
const TOKEN_INVALID =
  "Invalid access token for authorization. Please make a request with token attached.";
const TOKEN_MISSING =
  "Missing access token for authorization. Please make a request with token attached.";

/** HTTP status, code and message of each kind of failure. */
const REFUSALS: Record<string, [number, number, string]> = {
  "400": [400, 230001, `${INVALID}invalid receive_id`],
  "403": [400, 230013, "Bot has NO availability to this user."],
  "429": [429, 99991400, "request trigger frequency limit"],
  "500": [500, 2200, "Internal Error"],
  "99991663": [400, 99991663, TOKEN_INVALID],
  "230002": [400, 230002, "Bot/User can NOT be out of the chat."],
  "230020": [400, 230020, "This operation triggers the frequency limit."],
};

export const FEISHU_FAILURES = [...Object.keys(REFUSALS), "502", "drop", "refuse", "hang"];

/** How many bytes the content may have, by its type. */
const MAX_BYTES: Record<string, number> = { text: 150 * 1024 };
const MAX_CARD_BYTES = 30 * 1024;

const HOUR = 3_600_000;

export async function startFeishu(options: FeishuOptions = {}): Promise<FakeFeishu> {
  const feishu = new FakeFeishu(options);
  await feishu.listen(options.port);
  return feishu;
}

export class FakeFeishu extends FakePlatform<Sent> {
  readonly appId: string;
  readonly appSecret: string;
  readonly botOpenId = "ou_practice_bot";
  readonly log: Call[] = [];
  private readonly options: FeishuOptions;
  private readonly events: Webhook;
  private readonly chats = new Map<string, { name: string; group: boolean }>();
  private readonly messages = new Map<string, { chat: string; root?: string }>();
  private readonly uuids = new Map<string, { at: number; data: Fields }>();
  private tokens: { token: string; until: number }[] = [];
  private counts = { message: 0, token: 0 };

  constructor(options: FeishuOptions) {
    super(FEISHU_FAILURES, options.now);
    this.options = options;
    this.appId = options.appId ?? "cli_practice";
    this.appSecret = options.appSecret ?? "practice-app-secret";
    this.events = new Webhook(options, this.appId, this.changes, (chat) => this.nextMessage(chat));
    for (const name of ["alice", "bob", "mallory"]) this.chatId(name);
    this.group("family");
  }

  override close(): Promise<void> {
    this.events.stop();
    return super.close();
  }

  /** Every event, with the attempts to deliver it. */
  get deliveries(): Delivery[] {
    return this.events.deliveries;
  }

  get encryptKey(): string {
    return this.events.encryptKey;
  }

  get verificationToken(): string {
    return this.events.verificationToken;
  }

  /** Where events go. */
  get webhook(): string {
    return this.events.address;
  }

  set webhook(address: string) {
    this.events.address = address;
  }

  // ---- People and chats ----

  openId(person: string): string {
    return `ou_${person}`;
  }

  /** The id of a group's chat; the bot is a member. */
  group(name: string): string {
    const id = `oc_${name}`;
    this.chats.set(id, { name, group: true });
    return id;
  }

  protected groupId(name: string): string {
    return this.group(name);
  }

  chatId(given: string | number): string {
    const name = String(given);
    const id = name.startsWith("oc_") ? name : `oc_${name}`;
    if (!this.chats.has(id)) this.chats.set(id, { name, group: false });
    return id;
  }

  // ---- What people do ----

  /** Somebody writes. `@practice_bot` and `@bob` in the text are mentions. */
  say(person: string, text: string, options: SayOptions = {}): Delivery {
    const chat = options.group ? this.group(options.group) : this.chatId(person);
    const { type = "text", replyTo, senderType, wire = {} } = options;
    const { marked, mentions } = this.mentionsIn(text);
    const answered = replyTo === undefined ? undefined : this.messages.get(replyTo);
    const message = {
      ...(replyTo !== undefined && { root_id: answered?.root ?? replyTo, parent_id: replyTo }),
      create_time: String(this.now()),
      chat_id: chat,
      chat_type: options.group ? ("group" as const) : ("p2p" as const),
      message_type: type,
      content: JSON.stringify(options.content ?? { text: marked }),
      ...(mentions.length > 0 && { mentions }),
      ...options.fields,
    };
    const openId = this.openId(person);
    const messageId = this.nextMessage(chat, answered ? (answered.root ?? replyTo) : undefined);
    return this.events.deliver(chat, messageId, wire, (about, message_id) => {
      const whole: EventMessage = { message_id, ...message };
      if (wire.schema === 1) return oldEnvelope(oldMessage(openId, whole, this.appId), about);
      return envelope("im.message.receive_v1", received(openId, whole, senderType), about);
    });
  }

  /** Somebody writes a rich text; `CONTENTS.post` shows what paragraphs consist of. */
  post(
    person: string,
    content: Fields[][],
    options: SayOptions & { title?: string } = {},
  ): Delivery {
    const { title = "", ...rest } = options;
    return this.say(person, "", { ...rest, type: "post", content: { title, content } });
  }

  /** Any other event; `OTHER_EVENTS` has some. */
  push(type: string, event: unknown, wire: Wire = {}): Delivery {
    return this.events.push(type, event, wire);
  }

  /** Any body at all, once. */
  postRaw(body: Fields, wire: Wire = {}): Promise<Attempt> {
    return this.events.attempt(body, wire);
  }

  /** What the platform asks when an address is entered: the answer must repeat the challenge. */
  challenge(challenge = "practice-challenge", wire: Wire = {}): Promise<Attempt> {
    const token = wire.token ?? this.verificationToken;
    // The documentation excludes this request from the check of signatures.
    const body = { challenge, token, type: "url_verification" };
    return this.events.attempt(body, { sign: "none", ...wire });
  }

  /** Posts an event again, also one that was delivered; with new ids if wanted. */
  again(delivery: Delivery, newIds = false): Promise<Attempt> {
    return this.events.again(delivery, newIds);
  }

  /** Posts at once what was not delivered, instead of waiting for its next attempt. */
  flush(): Promise<void> {
    return this.events.flush();
  }

  /** Makes all tokens that were given out invalid. */
  expireTokens(): void {
    this.tokens = [];
  }

  // ---- Events ----

  private mentionsIn(text: string) {
    const mentions: { key: string; id: Fields; name: string; tenant_key: string }[] = [];
    const marked = text.replace(/(?<=^|\s)@(\w+)/g, (_all, name: string) => {
      if (name === "all" || name === "_all") return "@_all";
      const isBot = name === "practice_bot";
      const key = `@_user_${mentions.length + 1}`;
      const id = ids(isBot ? this.botOpenId : this.openId(name));
      mentions.push({ key, id, name: isBot ? "Luna" : name, tenant_key: TENANT });
      return key;
    });
    return { marked, mentions };
  }

  private nextMessage(chat: string, root?: string): string {
    this.counts.message += 1;
    const id = `om_practice_${this.counts.message}`;
    this.messages.set(id, { chat, root });
    return id;
  }

  // ---- The API ----

  private giveToken({ app_id: id, app_secret: secret }: Fields): Fields {
    if (typeof id !== "string" || typeof secret !== "string" || id !== this.appId) {
      throw new Refusal(200, 10003, "invalid param");
    }
    if (secret !== this.appSecret) throw new Refusal(200, 10014, "app secret invalid");
    const now = this.now();
    let current = this.tokens.at(-1);
    // As at Feishu, a token that is valid for another half an hour or more is given again.
    if (!current || current.until - now < HOUR / 2) {
      this.counts.token += 1;
      const until = now + (this.options.tokenSeconds ?? 7200) * 1000;
      current = { token: `t-practice-${this.counts.token}`, until };
      this.tokens.push(current);
    }
    const expire = Math.floor((current.until - now) / 1000);
    return { tenant_access_token: current.token, expire };
  }

  private checkToken(request: IncomingMessage): void {
    const [, token] = /^Bearer (.+)$/.exec(request.headers.authorization ?? "") ?? [];
    if (!token) throw new Refusal(400, 99991661, TOKEN_MISSING);
    const known = this.tokens.find((one) => one.token === token);
    if (!known || known.until <= this.now()) throw new Refusal(400, 99991663, TOKEN_INVALID);
  }

  private chatFor(type: unknown, id: string): string {
    const chat = type === "open_id" ? id.replace(/^ou_/, "oc_") : id;
    const isRight = type === "open_id" ? id.startsWith("ou_") : type === "chat_id";
    if (!isRight || !this.chats.has(chat)) {
      throw new Refusal(400, 230001, `${INVALID}invalid receive_id`);
    }
    return chat;
  }

  /** Checks a message of the bot's, in the order of the real API, and gives its content. */
  private checkContent({ msg_type: type, content, uuid }: Fields): Fields {
    checkRequired({ content, msg_type: type });
    if (uuid !== undefined && String(uuid).length > 50) {
      throw new Refusal(400, 230001, `${INVALID}uuid is too long`);
    }
    const parsed = typeof content === "string" ? parse(content) : undefined;
    if (!parsed) {
      throw new Refusal(400, 230001, `${INVALID}content is not a string in json format`);
    }
    checkType(String(type), parsed);
    if (Buffer.byteLength(String(content)) > (MAX_BYTES[String(type)] ?? MAX_CARD_BYTES)) {
      throw new Refusal(400, 230025, "The length of the message content reaches its limit.");
    }
    return parsed;
  }

  /** Takes a message of the bot's. The same uuid within an hour is the same message. */
  private accept(chat: string, body: Fields, dropped: boolean, replyTo?: string): Fields {
    const content = this.checkContent(body);
    if (body.uuid === undefined) return this.store(chat, body, content, dropped, replyTo);
    const uuid = String(body.uuid);
    const before = this.uuids.get(uuid);
    if (before && this.now() - before.at < HOUR) return before.data;
    const at = this.now();
    const data = this.store(chat, body, content, dropped, replyTo);
    this.uuids.set(uuid, { at, data });
    return data;
  }

  /** Keeps a message of the bot's and shows it on the phones. Gives what the API answers. */
  private store(
    chat: string,
    body: Fields,
    content: Fields,
    dropped: boolean,
    replyTo: string | undefined,
  ): Fields {
    const root = replyTo === undefined ? undefined : (this.messages.get(replyTo)?.root ?? replyTo);
    const messageId = this.nextMessage(chat, root);
    const uuid = body.uuid === undefined ? undefined : String(body.uuid);
    const at = this.now();
    const type = String(body.msg_type);
    const text = readable(type, content);
    this.outbox.add({ chat, messageId, type, text, content, replyTo, uuid, at, dropped });
    const data = {
      message_id: messageId,
      ...(replyTo !== undefined && { root_id: root, parent_id: replyTo }),
      msg_type: type,
      create_time: String(at),
      update_time: String(at),
      deleted: false,
      updated: false,
      chat_id: chat,
      sender: { id: this.appId, id_type: "app_id", sender_type: "app", tenant_key: TENANT },
      body: { content: body.content },
    };
    this.phones.show(chat, { type: "sent", text });
    return data;
  }

  /** Where a message is to go: the chat, and the message that it answers. */
  private destination({ path, parameters }: Call): { chat: string; replyTo?: string } {
    const [, replyTo] = /^\/open-apis\/im\/v1\/messages\/([^/]+)\/reply$/.exec(path) ?? [];
    if (replyTo !== undefined) {
      const chat = this.messages.get(replyTo)?.chat;
      if (chat === undefined) throw new Refusal(400, 230001, `${INVALID}invalid message_id`);
      return { chat, replyTo };
    }
    const type = parameters.receive_id_type;
    if (!["chat_id", "open_id", "user_id", "union_id", "email"].includes(String(type))) {
      const description = "receive_id_type is required, one of chat_id, open_id and others";
      const field_violations = [{ field: "receive_id_type", description }];
      throw new Refusal(400, 99992402, "field validation failed", { field_violations });
    }
    return { chat: this.chatFor(type, String(parameters.receive_id ?? "")) };
  }

  private run(call: Call, request: IncomingMessage, dropped: boolean): Fields {
    if (call.method === "token") return { msg: "ok", ...this.giveToken(call.parameters) };
    this.checkToken(request);
    if (call.method === "botInfo") {
      const bot = { activate_status: 2, app_name: "Luna", avatar_url: "", open_id: this.botOpenId };
      return { msg: "ok", bot };
    }
    if (call.method !== "sendMessage") throw new Refusal(404, 404, "404 page not found");
    const { chat, replyTo } = this.destination(call);
    return { msg: "success", data: this.accept(chat, call.parameters, dropped, replyTo) };
  }

  // ---- Requests ----

  protected async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname: path, searchParams } = new URL(request.url ?? "/", "http://localhost");
    try {
      const parameters = { ...Object.fromEntries(searchParams), ...(await readFields(request)) };
      const method = methodOf(request.method ?? "", path);
      const call: Call = { method, path, parameters, at: this.now(), status: 0, code: 0 };
      this.log.push(call);
      this.changes.notifyAll();
      await this.handle(call, request, response);
    } catch (error) {
      if (response.destroyed) return; // the client hung up while its body was being read
      const isJson = error instanceof SyntaxError;
      const [status, code] = isJson ? [400, 9499] : [500, 2200];
      sendJson(response, status, {
        code,
        msg: isJson ? "Invalid parameter in JSON" : String(error),
      });
    }
    this.changes.notifyAll();
  }

  private async handle(
    call: Call,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    try {
      const failure = this.takeFailure(call.method, this.namesOf(call));
      if (failure && (await this.failAs(failure, call, request, response))) return;
      const result = this.run(call, request, false);
      call.status = 200;
      sendJson(response, 200, { code: 0, ...result });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { status, code, message: msg, details, headers } = error;
      call.status = status;
      call.code = code;
      const body = { code, msg, error: { log_id: `practice-${this.log.length}`, ...details } };
      sendJson(response, status, body, headers);
    }
  }

  private namesOf(call: Call): string[] {
    if (call.method !== "sendMessage") return [];
    try {
      const { chat } = this.destination(call);
      return [chat, this.chats.get(chat)?.name ?? ""];
    } catch {
      return []; // a wrong destination is refused later, by `run`
    }
  }

  /** Fails as injected. Gives false if the request goes on afterwards. */
  private async failAs(
    { kind, retryAfter = 1 }: Failure,
    call: Call,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<boolean> {
    const refusal = REFUSALS[kind];
    if (refusal) {
      const [status, code, words] = refusal;
      const headers = {
        "x-ogw-ratelimit-limit": "100",
        "x-ogw-ratelimit-reset": String(retryAfter),
      };
      throw new Refusal(status, code, words, {}, code === 99991400 ? headers : {});
    }
    if (kind === "drop") this.run(call, request, true);
    return await this.breakConnection(kind, call, response);
  }

  protected async receiveFromPhone(
    { person, group, text, photos = 0 }: PhoneInput,
    answered?: Sent,
  ): Promise<void> {
    const options = { group, replyTo: answered?.messageId };
    const deliveries: Delivery[] = [];
    for (let i = 0; i < photos; i++) {
      const image = { type: "image", content: { image_key: `img_practice_${i + 1}` } };
      deliveries.push(this.say(person, "", { ...options, ...image }));
    }
    if (photos === 0 || text) deliveries.push(this.say(person, text, options));
    const answers = await Promise.all(deliveries.map((delivery) => delivery.first));
    const bad = answers.find((answer) => answer.status !== 200);
    if (!bad) return;
    throw new CodedError("notTaken", { status: bad.status, address: this.webhook });
  }
}

function checkRequired(fields: Fields): void {
  for (const [field, value] of Object.entries(fields)) {
    if (value !== undefined && value !== "") continue;
    const field_violations = [{ field, description: `${field} is required` }];
    throw new Refusal(400, 99992402, "field validation failed", { field_violations });
  }
}

function checkType(type: string, content: Fields): void {
  if (!["text", "post", "interactive", "image"].includes(type)) {
    throw new Refusal(400, 230001, `${INVALID}invalid msg_type`);
  }
  if (type === "text" && (typeof content.text !== "string" || content.text === "")) {
    throw new Refusal(400, 230001, `${INVALID}text content is empty`);
  }
}

function methodOf(verb: string, path: string): string {
  if (verb === "GET") return path === "/open-apis/bot/v3/info" ? "botInfo" : path;
  if (path === "/open-apis/auth/v3/tenant_access_token/internal") return "token";
  return /^\/open-apis\/im\/v1\/messages(\/[^/]+\/reply)?$/.test(path) ? "sendMessage" : path;
}

function parse(text: string): Fields | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? { ...value } : undefined;
  } catch {
    return undefined;
  }
}

/** What a person reads of a message: of a post the lines, of anything else its JSON. */
function readable(type: string, content: Fields): string {
  if (type === "text") return String(content.text);
  if (type !== "post") return JSON.stringify(content);
  // A post has a version for each language, and we read the first.
  const [post = {}] = Object.values(content) as { title?: string; content?: Fields[][] }[];
  const lines = (post.content ?? []).map((line) => line.map((tag) => tag.text ?? "").join(""));
  return [post.title, ...lines].filter(Boolean).join("\n");
}
