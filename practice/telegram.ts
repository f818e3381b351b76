/**
 * A fake of the Telegram Bot API, so that the real grammY runs without an account.
 *
 * `/bot<token>/<method>` answers as api.telegram.org does, with its checks and its error messages.
 * Tests let people write with `say` and the like, look at `sent`, and inject failures. A person
 * uses `npm run phone`, which talks to `/_practice/`.
 */

import type { IncomingMessage, ServerResponse } from "node:http";
import { sendJson } from "./exchange.ts";
import type { Failure } from "./fault-injection.ts";
import { FakePlatform } from "./platform.ts";
import {
  type Chat,
  contentOf,
  cutText,
  Directory,
  MAX_TEXT,
  type Media,
  type Message,
  type Person,
} from "./telegram-chats.ts";
import {
  answer,
  type Call,
  ERROR_DESCRIPTIONS,
  type Exchange,
  type QueuedUpdate,
  Refusal,
  TELEGRAM_FAILURES,
  UpdateQueue,
} from "./telegram-queue.ts";
import { type Fields, type PhoneInput, readFields } from "./web.ts";

export { MEDIA_KINDS, type Media } from "./telegram-chats.ts";
export { type Call, type QueuedUpdate, TELEGRAM_FAILURES, type Update } from "./telegram-queue.ts";

export interface TelegramOptions {
  port?: number;
  token?: string;
  /** For the dates of messages, in ms. */
  now?: () => number;
  /**
   * The number of the first message. A workspace outlives a world, and a section ignores a message
   * whose number it has already processed, so each world needs new numbers.
   */
  firstMessage?: number;
}

export interface SayOptions {
  /** The name of a group; without it, the direct chat with the bot. */
  group?: string;
  /** The number of a topic, if the group is a forum. */
  topic?: number;
  /** The number of the message that this one answers. */
  replyTo?: number;
  /** What the message consists of. The text becomes its caption, if it can have one. */
  media?: Media;
  /** Fields that are added to the message or replace its own. */
  fields?: Fields;
}

/** What somebody wrote. A long text and an album are several messages. */
export interface Said {
  chat: number;
  messages: number[];
  updates: number[];
  /** Resolves when the bot has confirmed all of it by a later getUpdates. */
  confirmed: Promise<void>;
}

export interface Sent {
  chat: number;
  messageId: number;
  text: string;
  thread?: number;
  replyTo?: number;
  at: number;
  /** Telegram has it, but the connection broke before the bot was told. */
  dropped: boolean;
  /** All that the bot has passed. */
  parameters: Fields;
}

const ACTIONS = `typing upload_photo record_video upload_video record_voice upload_voice
  upload_document choose_sticker find_location record_video_note upload_video_note`.split(/\s+/);

/** Starts a fake Telegram on loopback; its `url` is the bot's API root. */
export async function startTelegram(options: TelegramOptions = {}): Promise<FakeTelegram> {
  const telegram = new FakeTelegram(options);
  await telegram.listen(options.port);
  return telegram;
}

export class FakeTelegram extends FakePlatform<Sent> {
  readonly token: string;
  readonly botId: number;
  readonly directory: Directory;
  /** Where and when the bot was typing. */
  readonly typing: { chat: number; thread?: number; action: string; at: number }[] = [];
  /** Every request, getUpdates too. */
  readonly log: Call[] = [];
  private readonly queue = new UpdateQueue(this.changes);
  private readonly messages = new Map<string, Message>();
  private readonly counters = new Map<number, number>();
  private readonly blocked = new Set<number>();
  private albums = 0;
  /** The number before the first message. */
  private readonly numberBefore: number;

  constructor(options: TelegramOptions) {
    super(TELEGRAM_FAILURES, options.now);
    this.token = options.token ?? "123456:practice-token-of-the-fake-telegram";
    this.botId = Number(this.token.split(":")[0]);
    this.directory = new Directory(this.botId);
    this.numberBefore = (options.firstMessage ?? 1) - 1;
  }

  override close(): Promise<void> {
    this.queue.stop();
    return super.close();
  }

  /** Every update, and how often the bot has received it. */
  get updates(): QueuedUpdate[] {
    return this.queue.updates;
  }

  /** The bot's webhook. While there is one, getUpdates is refused. */
  get webhook(): string {
    return this.queue.webhook;
  }

  set webhook(url: string) {
    this.queue.webhook = url;
  }

  // ---- People and chats ----

  person(name: string): Person {
    return this.directory.person(name);
  }

  group(name: string, options?: Parameters<Directory["group"]>[1]): Chat {
    return this.directory.group(name, options);
  }

  chatId(name: string | number): number {
    return (this.directory.chat(name) ?? this.directory.person(String(name))).id;
  }

  /**
   * Turns a group into a supergroup, which has another id: the old one is refused from now on. Its
   * members see two service messages; `isTold` is false if the bot never gets them.
   */
  upgrade(name: string, isTold = true): { oldId: number; newId: number } {
    const old = this.group(name, { type: "group" });
    const chat = this.directory.upgrade(old);
    const ids = { oldId: old.id, newId: chat.id };
    if (!isTold) return ids;
    const from = this.person("alice");
    const date = Math.floor(this.now() / 1000);
    const told = { from, date };
    this.push("message", { ...told, message_id: 901, chat: old, migrate_to_chat_id: chat.id });
    this.push("message", { ...told, message_id: 1, chat, migrate_from_chat_id: old.id });
    return ids;
  }

  protected groupId(name: string): number {
    return this.group(name).id;
  }

  // ---- What people do ----

  /** Somebody writes: to the bot directly, or in a group. */
  say(person: string, text: string, options: SayOptions = {}): Said {
    const parts = options.media ? [text] : cutText(text);
    const messages = parts.map((part) => this.write(person, part, options));
    return this.publish(messages.map((message) => ["message", message]));
  }

  /** Several media sent together: one update each, all with one media_group_id. */
  album(person: string, media: Media[], caption = "", options: SayOptions = {}): Said {
    this.albums += 1;
    const media_group_id = String(13_000_000_000 + this.albums);
    const messages = media.map((kind, place) => {
      const fields = { ...options.fields, media_group_id };
      return this.write(person, place === 0 ? caption : "", { ...options, media: kind, fields });
    });
    return this.publish(messages.map((message) => ["message", message]));
  }

  /** Somebody edits a message. */
  edit(chat: string | number, messageId: number, text: string): Said {
    const before = this.message(this.chatId(chat), messageId);
    if (!before) throw new Error(`There is no message ${messageId} in ${chat}.`);
    const { entities: _, ...rest } = before;
    const edit_date = Math.floor(this.now() / 1000);
    const message: Message = { ...rest, ...contentOf(text, undefined, 0), edit_date };
    this.remember(message);
    return this.publish([["edited_message", message]]);
  }

  /** Somebody blocks the bot, which gets an update and can't write there any more. */
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
   * Publishes any update, also of a kind that the bot does not want. The real Telegram does so with
   * an update that is older than the getUpdates request that names the kinds.
   */
  push(kind: string, body: unknown): Said {
    return this.publish([[kind, body]], true);
  }

  /** Makes a message without an update, for tests that put it into one of their own. */
  write(person: string, text: string, options: SayOptions = {}): Message {
    const chat = options.group ? this.group(options.group) : undefined;
    const from = this.person(person);
    const place = chat ?? this.directory.chat(from.id);
    if (!place) throw new Error(`There is no chat with ${person}.`);
    const message_id = this.nextNumber(place);
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

  /** Resolves when the bot has confirmed everything and waits for more. */
  async idle(): Promise<void> {
    await this.until(() => this.queue.isIdle());
  }

  // ---- Updates ----

  private publish(list: [string, unknown][], force = false): Said {
    const messages = list.map(([, body]) => body as Partial<Message>); // some are no messages
    const updates = this.queue.add(list, force);
    return {
      chat: messages[0]?.chat?.id ?? 0,
      messages: messages.flatMap((message) => message.message_id ?? []),
      updates,
      confirmed: this.queue.confirmed(updates.at(-1)),
    };
  }

  // ---- Methods ----

  private sendMessage(parameters: Fields, dropped: boolean): Message {
    const chat = this.findChat(parameters);
    const text = String(parameters.text ?? "").trim();
    if (!text.isWellFormed())
      throw new Refusal(400, "Bad Request: strings must be encoded in UTF-8");
    if (text === "") throw new Refusal(400, "Bad Request: message text is empty");
    if (text.length > MAX_TEXT) throw new Refusal(400, "Bad Request: message is too long");
    const thread = this.findThread(chat, parameters.message_thread_id);
    const reply = this.findReply(chat, parameters);
    const message: Message = {
      message_id: this.nextNumber(chat),
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
    this.outbox.add({ chat: chat.id, messageId, text, thread, replyTo, at, dropped, parameters });
    this.phones.show(String(chat.id), { type: "sent", text });
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
    this.changes.notifyAll();
    return true;
  }

  private findChat({ chat_id: id }: Fields): Chat {
    if (id === undefined || id === "") throw new Refusal(400, "Bad Request: chat_id is empty");
    const chat = /^-?\d+$/.test(String(id)) ? this.directory.chat(Number(id)) : undefined;
    const newId = this.directory.upgraded.get(Number(id));
    if (newId !== undefined) {
      const words = "Bad Request: group chat was upgraded to a supergroup chat";
      throw new Refusal(400, words, { migrate_to_chat_id: newId });
    }
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
    const reply = parameters.reply_parameters as Fields | undefined; // grammY and the sections send an object
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
        this.queue.deleteWebhook(parameters.drop_pending_updates === true);
        return true;
      case "getwebhookinfo":
        return { url: this.webhook, pending_update_count: this.queue.waiting().length };
      case "setmycommands":
      case "deletemycommands":
        return true;
      default:
        throw new Refusal(404, "Not Found: method not found");
    }
  }

  // ---- Requests ----

  protected async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    try {
      const body = await readFields(request);
      const [, token, method = ""] = /^\/bot([^/]+)\/(\w+)$/.exec(pathname) ?? [];
      const parameters = { ...Object.fromEntries(searchParams), ...body };
      const call: Call = { method, parameters, at: this.now(), status: 0 };
      this.log.push(call);
      this.changes.notifyAll();
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
    const failure = this.takeFailure(call.method, names);
    try {
      if (failure && (await this.failAs(failure, call, response))) return;
      if (call.method.toLowerCase() === "getupdates") this.queue.getUpdates({ call, response });
      else this.answer({ call, response }, this.run(call));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.answer({ call, response }, error);
    }
  }

  /** Fails as injected. Gives false if the request goes on afterwards. */
  private async failAs(failure: Failure, call: Call, response: ServerResponse): Promise<boolean> {
    const { kind, retryAfter = 1 } = failure;
    if (kind === "429") {
      const words = `Too Many Requests: retry after ${retryAfter}`;
      throw new Refusal(429, words, { retry_after: retryAfter });
    }
    const sentence = ERROR_DESCRIPTIONS[kind];
    if (sentence) throw new Refusal(Number(kind), sentence);
    // With "drop" the message is accepted, but the connection breaks before the bot is told.
    const isSend = call.method.toLowerCase() === "sendmessage";
    if (kind === "drop" && isSend) this.sendMessage(call.parameters, true);
    return await this.breakConnection(kind, call, response);
  }

  private answer(exchange: Exchange, result: unknown): void {
    answer(exchange, result);
    this.changes.notifyAll();
  }

  protected receiveFromPhone(
    { person, group, text, photos = 0 }: PhoneInput,
    answered?: Sent,
  ): void {
    const options = { group, replyTo: answered?.messageId };
    if (photos > 1) this.album(person, new Array(photos).fill("photo"), text, options);
    else this.say(person, text, { ...options, media: photos === 1 ? "photo" : undefined });
  }

  // ---- Messages ----

  private nextNumber(chat: Chat): number {
    // Supergroups and channels have a count of their own; all other chats share the bot's count.
    const key = ["supergroup", "channel"].includes(chat.type) ? chat.id : 0;
    // The topics of a forum are messages as well, so the first ten numbers are taken.
    const number = (this.counters.get(key) ?? this.numberBefore + (chat.is_forum ? 10 : 0)) + 1;
    this.counters.set(key, number);
    return number;
  }

  private message(chat: number, messageId: number): Message | undefined {
    return this.messages.get(`${chat}:${messageId}`);
  }

  private remember(message: Message): void {
    this.messages.set(`${message.chat.id}:${message.message_id}`, message);
  }

  /** The fields of a message in a topic. It is a reply to the topic's first message by default. */
  private inTopic(chat: Chat, thread: number | undefined): Fields {
    const name = thread === undefined ? undefined : this.directory.topic(chat, thread);
    if (thread === undefined || name === undefined) return {};
    const topic = { message_thread_id: thread, is_topic_message: true };
    const from = this.person("alice");
    const forum_topic_created = { name, icon_color: 7_322_096 };
    const firstMessage = { message_id: thread, from, chat, date: 1_767_600_000 };
    return { ...topic, reply_to_message: { ...firstMessage, ...topic, forum_topic_created } };
  }
}
