/**
 * A fake of the Telegram Bot API, so that the real grammY runs without an account.
 *
 * `/bot<token>/<method>` answers as api.telegram.org does, with its checks and its sentences.
 * Tests make people speak with `say` and the like, look at `sent`, and order failures; a person
 * uses `npm run phone`, which comes in by `/_practice/`.
 */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { sendJson } from "./exchange.ts";
import {
  type Chat,
  contentOf,
  cutText,
  Directory,
  LONGEST_TEXT,
  type Media,
  type Message,
  type Person,
} from "./telegram-chats.ts";
import {
  Changes,
  closeServer,
  type Failure,
  Failures,
  type Fields,
  listen,
  type PhoneInput,
  Phones,
  readFields,
} from "./web.ts";

export { MEDIA_KINDS, type Media } from "./telegram-chats.ts";

export interface TelegramOptions {
  port?: number;
  token?: string;
  /** For the dates of messages, in ms. */
  now?: () => number;
}

export interface SayOptions {
  /** The name of a group; without it, the direct chat with the bot. */
  group?: string;
  /** The number of a topic, if the group is a forum. */
  topic?: number;
  /** The number of the message that this one answers. */
  replyTo?: number;
  /** What the message is; the text becomes its caption, if it can have one. */
  media?: Media;
  /** More fields of the message, or other values for those that it has. */
  fields?: Fields;
}

/** What somebody has written: a long text and an album are several messages. */
export interface Said {
  chat: number;
  messages: number[];
  updates: number[];
  /** Resolves when the bot has confirmed all of it by a later getUpdates. */
  confirmed: Promise<void>;
}

export interface Update extends Fields {
  update_id: number;
}

export interface Sent {
  chat: number;
  messageId: number;
  text: string;
  thread?: number;
  replyTo?: number;
  at: number;
  /** Telegram has it, but the bot was never told. */
  dropped: boolean;
  /** All that the bot has passed. */
  parameters: Fields;
}

export interface Call {
  method: string;
  parameters: Fields;
  at: number;
  /** 0 while it is under way, or if it never got an answer. */
  status: number;
}

/** An answer that says no. */
class Refusal extends Error {
  readonly code: number;
  readonly parameters: Fields | undefined;

  constructor(code: number, description: string, parameters?: Fields) {
    super(description);
    this.code = code;
    this.parameters = parameters;
  }
}

interface Poll {
  call: Call;
  response: ServerResponse;
  limit: number;
  timer: NodeJS.Timeout;
}

const CONFLICT =
  "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running";
const WEBHOOK =
  "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first";

/** These come only to those who name them. */
const ON_REQUEST = ["chat_member", "message_reaction", "message_reaction_count"];

const ACTIONS = `typing upload_photo record_video upload_video record_voice upload_voice
  upload_document choose_sticker find_location record_video_note upload_video_note`.split(/\s+/);

/** What Telegram says when it fails; the rest is done to the connection. */
const REFUSALS: Record<string, string> = {
  "400": "Bad Request: chat not found",
  "401": "Unauthorized",
  "403": "Forbidden: bot was blocked by the user",
  "409": CONFLICT,
  "500": "Internal Server Error",
};

export const TELEGRAM_FAILURES = [...Object.keys(REFUSALS), "429", "502", "drop", "refuse", "hang"];

export async function startTelegram(options: TelegramOptions = {}): Promise<FakeTelegram> {
  const telegram = new FakeTelegram(options);
  await telegram.listen(options.port);
  return telegram;
}

export class FakeTelegram {
  url = "";
  readonly token: string;
  readonly botId: number;
  readonly directory: Directory;
  /** What the bot has sent, in order. */
  readonly sent: Sent[] = [];
  /** Where and when the bot was typing. */
  readonly typing: { chat: number; thread?: number; action: string; at: number }[] = [];
  /** Every request, getUpdates too. */
  readonly log: Call[] = [];
  /** Every update, with how often it was handed out. */
  readonly updates: { update: Update; given: number; confirmed: boolean }[] = [];
  /** A bot with a webhook can't poll. */
  webhook = "";
  private readonly server: Server;
  private readonly now: () => number;
  private readonly changes = new Changes();
  private readonly failures = new Failures();
  private readonly phones = new Phones();
  private readonly messages = new Map<string, Message>();
  private readonly counters = new Map<number, number>();
  private readonly blocked = new Set<number>();
  private readonly taken = new Set<Sent>();
  private readonly held = new Set<() => void>();
  private allowed: string[] = [];
  private nextUpdate = 500_001;
  private albums = 0;
  private poll: Poll | undefined;

  constructor(options: TelegramOptions) {
    this.token = options.token ?? "123456:practice-token-of-the-fake-telegram";
    this.botId = Number(this.token.split(":")[0]);
    this.directory = new Directory(this.botId);
    this.now = options.now ?? Date.now;
    this.server = createServer((request, response) => void this.serve(request, response));
    this.server.requestTimeout = 0; // a held request may outlast Node's five minutes
  }

  async listen(port?: number): Promise<void> {
    this.url = await listen(this.server, port);
  }

  async close(): Promise<void> {
    if (this.poll) clearTimeout(this.poll.timer);
    await closeServer(this.server);
  }

  // ---- Who is there ----

  person(name: string): Person {
    return this.directory.person(name);
  }

  group(name: string, options?: Parameters<Directory["group"]>[1]): Chat {
    return this.directory.group(name, options);
  }

  /** The id of a person's direct chat or of a group, as a section's settings want it. */
  chatId(name: string | number): number {
    return (this.directory.chat(name) ?? this.directory.person(String(name))).id;
  }

  // ---- What people do ----

  /** Somebody writes: to the bot directly, or in a group. */
  say(person: string, text: string, options: SayOptions = {}): Said {
    const parts = options.media ? [text] : cutText(text);
    const messages = parts.map((part) => this.write(person, part, options));
    return this.publish(messages.map((message) => ["message", message]));
  }

  /** Several media sent as one: an update each, with one media_group_id. */
  album(person: string, media: Media[], caption = "", options: SayOptions = {}): Said {
    this.albums += 1;
    const media_group_id = String(13_000_000_000 + this.albums);
    const messages = media.map((kind, place) => {
      const fields = { ...options.fields, media_group_id };
      return this.write(person, place === 0 ? caption : "", { ...options, media: kind, fields });
    });
    return this.publish(messages.map((message) => ["message", message]));
  }

  /** Somebody changes what they wrote. */
  edit(chat: string | number, messageId: number, text: string): Said {
    const before = this.message(this.chatId(chat), messageId);
    if (!before) throw new Error(`There is no message ${messageId} in ${chat}.`);
    const { entities: _, ...rest } = before;
    const edit_date = Math.floor(this.now() / 1000);
    const message: Message = { ...rest, ...contentOf(text, undefined, 0), edit_date };
    this.remember(message);
    return this.publish([["edited_message", message]]);
  }

  /** Blocks the bot: it is told, and can't write there any more. */
  block(person: string): Said {
    const from = this.person(person);
    this.blocked.add(from.id);
    const member = (status: string): Fields => ({ status, user: this.directory.bot });
    const change = {
      chat: this.directory.chat(from.id),
      from,
      date: Math.floor(this.now() / 1000),
      old_chat_member: member("member"),
      new_chat_member: { ...member("kicked"), until_date: 0 },
    };
    return this.publish([["my_chat_member", change]]);
  }

  /**
   * Any update at all. It comes even if the bot has not allowed its kind, as it really does when
   * the update is older than the request that says so.
   */
  push(kind: string, body: unknown): Said {
    return this.publish([[kind, body]], true);
  }

  /** A message that is not handed out yet: for updates made by hand, like a channel post. */
  write(person: string, text: string, options: SayOptions = {}): Message {
    const chat = options.group ? this.group(options.group) : undefined;
    const from = this.person(person);
    const place = chat ?? this.directory.chat(from.id);
    if (!place) throw new Error(`There is no chat with ${person}.`);
    const message_id = this.count(place);
    const message: Message = {
      message_id,
      ...(place.type !== "channel" && { from }),
      ...(place.type === "channel" && { sender_chat: place }),
      chat: place,
      date: Math.floor(this.now() / 1000),
      ...this.inTopic(place, options.topic),
      ...contentOf(text, options.media, message_id),
      ...options.fields,
    };
    if (options.replyTo !== undefined) {
      const answered = this.message(place.id, options.replyTo);
      if (!answered) throw new Error(`There is no message ${options.replyTo} in that chat.`);
      const { reply_to_message: _, ...flat } = answered; // replies are not nested
      message.reply_to_message = flat;
    }
    this.remember(message);
    return message;
  }

  // ---- What the bot does, and when ----

  /** The texts that a chat has received. */
  textsTo(chat: string | number): string[] {
    const id = this.chatId(chat);
    return this.sent.filter((one) => one.chat === id).map((one) => one.text);
  }

  /** The next message to a chat that no call of this method has given yet; waits for it. */
  nextSent(chat?: string | number): Promise<Sent> {
    const id = chat === undefined ? undefined : this.chatId(chat);
    return this.changes.until(() => {
      const found = this.sent.find(
        (one) => !this.taken.has(one) && (id === undefined || one.chat === id),
      );
      if (found) this.taken.add(found);
      return found;
    });
  }

  /** Resolves when this has become true, looked at after every request and answer. */
  until(condition: () => boolean): Promise<true> {
    return this.changes.until(() => condition() || undefined);
  }

  /** Resolves when the bot has confirmed everything and waits for more. */
  async idle(): Promise<void> {
    await this.until(() => this.poll !== undefined && this.waiting().length === 0);
  }

  /** The next requests fail; `TELEGRAM_FAILURES` are the kinds. */
  fail(failure: Failure): void {
    if (!TELEGRAM_FAILURES.includes(failure.kind)) {
      throw new Error(`There is no failure "${failure.kind}": ${TELEGRAM_FAILURES.join(", ")}.`);
    }
    this.failures.order(failure);
  }

  /** Lets the requests that hang go on. */
  release(): void {
    for (const goOn of this.held) goOn();
  }

  // ---- Updates ----

  private publish(list: [string, unknown][], force = false): Said {
    const messages = list.map(([, body]) => body as Partial<Message>); // not all of them are
    const updates: number[] = [];
    for (const [kind, body] of list) {
      if (!force && !this.isAllowed(kind)) continue;
      const update: Update = { update_id: this.nextUpdate, [kind]: body };
      this.nextUpdate += 1;
      this.updates.push({ update, given: 0, confirmed: false });
      updates.push(update.update_id);
    }
    this.answerPoll();
    const isDone = (): boolean =>
      this.updates.every((one) => one.confirmed || !updates.includes(one.update.update_id));
    return {
      chat: messages[0]?.chat?.id ?? 0,
      messages: messages.flatMap((message) => message.message_id ?? []),
      updates,
      confirmed: this.until(isDone).then(() => {}),
    };
  }

  private isAllowed(kind: string): boolean {
    return this.allowed.length > 0 ? this.allowed.includes(kind) : !ON_REQUEST.includes(kind);
  }

  private waiting(): { update: Update; given: number; confirmed: boolean }[] {
    return this.updates.filter((one) => !one.confirmed);
  }

  private getUpdates(call: Call, response: ServerResponse): void {
    const { offset, limit, timeout, allowed_updates: allowed } = call.parameters;
    if (this.webhook) throw new Refusal(409, WEBHOOK);
    if (this.poll) this.answer(this.endPoll(this.poll), new Refusal(409, CONFLICT));
    if (Array.isArray(allowed)) this.allowed = allowed.map(String);
    this.confirm(Number(offset ?? 0));
    const poll: Poll = {
      call,
      response,
      limit: Math.min(100, Math.max(1, Number(limit ?? 100))),
      // The real one holds a request for at most 50 seconds.
      timer: setTimeout(() => this.answerPoll(true), Math.min(50, Number(timeout ?? 0)) * 1000),
    };
    poll.timer.unref();
    response.once("close", () => {
      if (this.poll === poll) this.endPoll(poll);
    });
    this.poll = poll;
    this.answerPoll(!timeout);
  }

  /** An offset confirms all that is older; a negative one, all but the last ones. */
  private confirm(offset: number): void {
    const newest = this.nextUpdate;
    const first = offset < 0 ? newest + offset : offset;
    for (const one of this.updates) one.confirmed ||= one.update.update_id < first;
    this.changes.announce();
  }

  private endPoll(poll: Poll): Poll {
    clearTimeout(poll.timer);
    this.poll = undefined;
    return poll;
  }

  /** Answers the request that is held, if there is something to say or its time is over. */
  private answerPoll(now = false): void {
    const batch = this.waiting().slice(0, this.poll?.limit);
    if (this.poll && (batch.length > 0 || now)) {
      for (const one of batch) one.given += 1;
      const updates = batch.map((one) => one.update);
      this.answer(this.endPoll(this.poll), updates);
    }
    this.changes.announce();
  }

  // ---- Methods ----

  private sendMessage(parameters: Fields, dropped: boolean): Message {
    const chat = this.findChat(parameters);
    const text = String(parameters.text ?? "").trim();
    if (!text.isWellFormed())
      throw new Refusal(400, "Bad Request: strings must be encoded in UTF-8");
    if (text === "") throw new Refusal(400, "Bad Request: message text is empty");
    if (text.length > LONGEST_TEXT) throw new Refusal(400, "Bad Request: message is too long");
    const thread = this.findThread(chat, parameters.message_thread_id);
    const reply = this.findReply(chat, parameters);
    const message: Message = {
      message_id: this.count(chat),
      from: this.directory.bot,
      chat,
      date: Math.floor(this.now() / 1000),
      ...this.inTopic(chat, thread),
      ...(reply && { reply_to_message: reply }),
      ...contentOf(text, undefined, 0),
    };
    this.remember(message);
    const { message_id: messageId } = message;
    const replyTo = reply?.message_id;
    const at = this.now();
    this.sent.push({ chat: chat.id, messageId, text, thread, replyTo, at, dropped, parameters });
    this.phones.show(String(chat.id), { type: "sent", text });
    this.changes.announce();
    return message;
  }

  private sendChatAction(parameters: Fields): true {
    const chat = this.findChat(parameters);
    const action = String(parameters.action ?? "");
    if (!ACTIONS.includes(action)) {
      throw new Refusal(400, "Bad Request: wrong parameter action in request");
    }
    const thread = this.findThread(chat, parameters.message_thread_id);
    this.typing.push({ chat: chat.id, thread, action, at: this.now() });
    this.phones.show(String(chat.id), { type: "typing" });
    this.changes.announce();
    return true;
  }

  private findChat({ chat_id: id }: Fields): Chat {
    if (id === undefined || id === "") throw new Refusal(400, "Bad Request: chat_id is empty");
    const chat = /^-?\d+$/.test(String(id)) ? this.directory.chat(Number(id)) : undefined;
    if (!chat) throw new Refusal(400, "Bad Request: chat not found");
    if (this.blocked.has(chat.id)) throw new Refusal(403, "Forbidden: bot was blocked by the user");
    return chat;
  }

  private findThread(chat: Chat, thread: unknown): number | undefined {
    if (thread === undefined) return undefined;
    if (this.directory.topic(chat, Number(thread)) !== undefined) return Number(thread);
    throw new Refusal(400, "Bad Request: message thread not found");
  }

  private findReply(chat: Chat, parameters: Fields): Message | undefined {
    const reply = parameters.reply_parameters as Fields | undefined; // grammY and we send an object
    const id = reply?.message_id ?? parameters.reply_to_message_id;
    if (id === undefined) return undefined;
    const message = this.message(chat.id, Number(id));
    if (message || reply?.allow_sending_without_reply) return message;
    throw new Refusal(400, "Bad Request: message to be replied not found");
  }

  private run(call: Call): unknown {
    const { parameters } = call;
    const { bot } = this.directory;
    switch (call.method.toLowerCase()) {
      case "getme":
        return { ...bot, can_join_groups: true, can_read_all_group_messages: true };
      case "sendmessage":
        return this.sendMessage(parameters, false);
      case "sendchataction":
        return this.sendChatAction(parameters);
      case "getchat":
        return { ...this.findChat(parameters), accent_color_id: 0, max_reaction_count: 11 };
      case "getfile": {
        const file_id = String(parameters.file_id ?? "");
        if (file_id.startsWith("practice-")) return { file_id, file_unique_id: file_id };
        throw new Refusal(400, "Bad Request: wrong file_id or the file is temporarily unavailable");
      }
      case "deletewebhook":
        this.webhook = "";
        if (parameters.drop_pending_updates === true) this.confirm(this.nextUpdate);
        return true;
      case "getwebhookinfo":
        return { url: this.webhook, pending_update_count: this.waiting().length };
      case "setmycommands":
      case "deletemycommands":
        return true;
      default:
        throw new Refusal(404, "Not Found: method not found");
    }
  }

  // ---- Requests ----

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    try {
      if (pathname.startsWith("/_practice/")) return await this.phone(request, response);
      const body = await readFields(request);
      const [, token, method = ""] = /^\/bot([^/]+)\/(\w+)$/.exec(pathname) ?? [];
      const parameters = { ...Object.fromEntries(searchParams), ...body };
      const call: Call = { method, parameters, at: this.now(), status: 0 };
      this.log.push(call);
      this.changes.announce();
      if (!token) return this.answer({ call, response }, new Refusal(404, "Not Found"));
      if (decodeURIComponent(token) !== this.token) {
        return this.answer({ call, response }, new Refusal(401, "Unauthorized"));
      }
      await this.handle(call, response);
    } catch (error) {
      if (response.destroyed) return; // the client hung up while its body was being read
      const isJson = error instanceof SyntaxError;
      const [code, words] = isJson ? [400, "Bad Request: can't parse JSON"] : [500, String(error)];
      sendJson(response, code, { ok: false, error_code: code, description: words });
    }
  }

  private async handle(call: Call, response: ServerResponse): Promise<void> {
    const chat = this.directory.chat(Number(call.parameters.chat_id ?? 0));
    const names = [chat?.id, chat?.type === "private" ? chat.username : chat?.title];
    const failure = this.failures.take(call.method, names);
    try {
      if (failure && (await this.fails(failure, call, response))) return;
      if (call.method.toLowerCase() === "getupdates") this.getUpdates(call, response);
      else this.answer({ call, response }, this.run(call));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.answer({ call, response }, error);
    }
  }

  /** Does what was ordered; false if the request goes on afterwards. */
  private async fails(failure: Failure, call: Call, response: ServerResponse): Promise<boolean> {
    const { kind, retryAfter = 1 } = failure;
    if (kind === "drop") {
      // Accepted, and the connection breaks before the bot hears of it.
      if (call.method.toLowerCase() === "sendmessage") this.sendMessage(call.parameters, true);
      response.destroy();
    } else if (kind === "refuse") response.destroy();
    else if (kind === "hang") {
      await this.untilReleased(response);
      return response.destroyed;
    } else if (kind === "429") {
      const words = `Too Many Requests: retry after ${retryAfter}`;
      throw new Refusal(429, words, { retry_after: retryAfter });
    } else if (kind === "502") {
      // The servers in front of Telegram speak HTML.
      call.status = 502;
      response.writeHead(502, { "content-type": "text/html" });
      response.end("<html><head><title>502 Bad Gateway</title></head></html>");
    } else throw new Refusal(Number(kind), REFUSALS[kind] ?? "");
    return true;
  }

  private untilReleased(response: ServerResponse): Promise<void> {
    return new Promise((resolve) => {
      const goOn = (): void => {
        this.held.delete(goOn);
        resolve();
      };
      this.held.add(goOn);
      response.once("close", goOn);
    });
  }

  private answer({ call, response }: Pick<Poll, "call" | "response">, result: unknown): void {
    if (result instanceof Refusal) {
      const { code, message: description, parameters } = result;
      call.status = code;
      const body = { ok: false, error_code: code, description };
      sendJson(response, code, { ...body, ...(parameters && { parameters }) });
    } else {
      call.status = 200;
      sendJson(response, 200, { ok: true, result });
    }
    this.changes.announce();
  }

  private phone(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chatOf = (person: string, group?: string): string =>
      String(group ? this.group(group).id : this.person(person).id);
    return this.phones.serve(request, response, chatOf, async (input) => this.typed(input));
  }

  private typed({ person, group, text, photos = 0, reply }: PhoneInput): string | undefined {
    const chat = group ? this.group(group).id : this.person(person).id;
    const last = reply ? this.sent.findLast((one) => one.chat === chat) : undefined;
    if (reply && !last) return "The bot has sent nothing here yet.";
    const options = { group, replyTo: last?.messageId };
    if (photos > 1) this.album(person, new Array(photos).fill("photo"), text, options);
    else this.say(person, text, { ...options, media: photos === 1 ? "photo" : undefined });
    return undefined;
  }

  // ---- Messages ----

  private count(chat: Chat): number {
    // Supergroups and channels count by themselves; all the others share the bot's own count.
    const key = ["supergroup", "channel"].includes(chat.type) ? chat.id : 0;
    // A forum's topics are messages too, so its first ones are taken.
    const number = (this.counters.get(key) ?? (chat.is_forum ? 10 : 0)) + 1;
    this.counters.set(key, number);
    return number;
  }

  private message(chat: number, messageId: number): Message | undefined {
    return this.messages.get(`${chat}:${messageId}`);
  }

  private remember(message: Message): void {
    this.messages.set(`${message.chat.id}:${message.message_id}`, message);
  }

  /** In a topic every message that answers no other one is a reply to the topic's beginning. */
  private inTopic(chat: Chat, thread: number | undefined): Fields {
    const name = thread === undefined ? undefined : this.directory.topic(chat, thread);
    if (thread === undefined || name === undefined) return {};
    const topic = { message_thread_id: thread, is_topic_message: true };
    const from = this.person("alice");
    const forum_topic_created = { name, icon_color: 7_322_096 };
    const beginning = { message_id: thread, from, chat, date: 1_767_600_000 };
    return { ...topic, reply_to_message: { ...beginning, ...topic, forum_topic_created } };
  }
}
