/** The bodies that the fake Feishu posts to a webhook, their encryption and their signature. */

import { createCipheriv, createHash } from "node:crypto";
import type { Fields } from "./web.ts";

export const TENANT = "practice_tenant";

/** What is different about an event that is not sent in the usual way, or is forged. */
export interface Wire {
  /** With false it is sent unencrypted although there is a key. */
  encrypt?: boolean;
  /** Another key than the app's, for the encryption and for the signature. */
  key?: string;
  /** "none" sends no headers of a signature; "wrong" sends a signature that does not match. */
  sign?: "right" | "wrong" | "none";
  /** Another verification token than the app's; "" sends none. */
  token?: string;
  /** The time in the header, in seconds since 1970. A replayed event has an old one. */
  timestamp?: number;
  /** 1 is the old form of events, which has no field "schema". */
  schema?: 1 | 2;
}

/** The text of a body as it is posted, and its headers. */
export function onTheWire(body: Fields, appKey: string, nonce: string, wire: Wire, now: number) {
  const key = wire.key ?? appKey;
  const plain = JSON.stringify(body);
  const raw =
    key && wire.encrypt !== false ? JSON.stringify({ encrypt: encrypt(plain, key) }) : plain;
  const headers: Record<string, string> = { "content-type": "application/json; charset=utf-8" };
  if (!key || wire.sign === "none") return { raw, headers };
  const timestamp = String(wire.timestamp ?? Math.floor(now / 1000));
  headers["x-lark-request-timestamp"] = timestamp;
  headers["x-lark-request-nonce"] = nonce;
  const signed = wire.sign === "wrong" ? `${raw} ` : raw;
  headers["x-lark-signature"] = sha256(`${timestamp}${nonce}${key}${signed}`).toString("hex");
  return { raw, headers };
}

/** AES-256-CBC with the hash of the key, in Base64; the initialisation vector stands in front. */
function encrypt(plain: string, key: string): string {
  // A real vector is random. This one depends on the text, so that a recording is always the same.
  const vector = sha256(plain).subarray(0, 16);
  const cipher = createCipheriv("aes-256-cbc", sha256(key), vector);
  return Buffer.concat([vector, cipher.update(plain, "utf8"), cipher.final()]).toString("base64");
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

export interface About {
  eventId: string;
  appId: string;
  token: string;
  now: number;
}

/** The body of an event in the form of today. */
export function envelope(type: string, event: unknown, about: About): Fields {
  const { eventId: event_id, appId: app_id, token, now } = about;
  const create_time = String(now);
  const header = { event_id, event_type: type, create_time, token, app_id, tenant_key: TENANT };
  return { schema: "2.0", header, event };
}

/** The body of an event in the old form. */
export function oldEnvelope(event: Fields, about: About): Fields {
  const ts = (about.now / 1000).toFixed(6);
  return { uuid: about.eventId, token: about.token, ts, type: "event_callback", event };
}

export interface EventMessage extends Fields {
  message_id: string;
  root_id?: string;
  parent_id?: string;
  create_time: string;
  chat_id: string;
  chat_type: "p2p" | "group";
  message_type: string;
  content: string;
  mentions?: { key: string; id: Fields; name: string }[];
}

export const ids = (open_id: string): Fields => ({
  open_id,
  union_id: open_id.replace("ou_", "on_"),
  user_id: null,
});

/** `im.message.receive_v1`. */
export function received(openId: string, message: EventMessage, senderType = "user"): Fields {
  const sender = { sender_id: ids(openId), sender_type: senderType, tenant_key: TENANT };
  return { sender, message };
}

/** The same message in the old form. */
export function oldMessage(openId: string, message: EventMessage, appId: string): Fields {
  const { text = "" } = JSON.parse(message.content) as { text?: string }; // FakeFeishu.say makes it
  return {
    type: "message",
    app_id: appId,
    tenant_key: TENANT,
    root_id: "",
    parent_id: "",
    open_chat_id: message.chat_id,
    chat_type: message.chat_type === "p2p" ? "private" : "group",
    msg_type: message.message_type,
    open_id: openId,
    open_message_id: message.message_id,
    is_mention: message.mentions !== undefined,
    text,
    text_without_at_bot: text.replace(/@_user_\d+\s*/g, ""),
  };
}

/** An example of the content of each type of message. */
export const CONTENTS: Record<string, Fields> = {
  text: { text: "hello" },
  post: {
    title: "Plans",
    content: [
      [
        { tag: "text", text: "See ", style: [] },
        { tag: "a", href: "https://example.org/plan", text: "the plan", style: [] },
        { tag: "at", user_id: "@_all", user_name: "Everyone", style: [] },
      ],
      [{ tag: "img", image_key: "img_practice" }],
      [{ tag: "code_block", language: "TS", text: "let x = 1;" }],
      [{ tag: "hologram", size: 3 }],
    ],
  },
  image: { image_key: "img_practice" },
  file: { file_key: "file_practice", file_name: "notes.pdf" },
  audio: { file_key: "file_practice", duration: 2000 },
  media: {
    file_key: "file_practice",
    image_key: "img_practice",
    file_name: "a.mp4",
    duration: 2000,
  },
  sticker: { file_key: "file_practice" },
  interactive: { title: "Card", elements: [[{ tag: "text", text: "Hello" }]] },
  hongbao: { text: "[red packet]" },
  share_chat: { chat_id: "oc_family" },
  share_user: { user_id: "ou_bob" },
  location: { name: "Café", longitude: "16.37", latitude: "48.2" },
  system: { template: "{from_user} invited {to_chatters} to this chat.", from_user: ["Alice"] },
  merge_forward: { content: "Merged and Forwarded Message" },
  vote: { topic: "Tea?", options: ["yes", "no"] },
  todo: { task_id: "t1", summary: { title: "", content: [] } },
  hologram: { shape: "cube" },
};

/** Events that are no message, and one that does not exist yet. */
export const OTHER_EVENTS: Record<string, Fields> = {
  "im.message.message_read_v1": {
    reader: { reader_id: ids("ou_alice"), read_time: "1767600000000", tenant_key: TENANT },
    message_id_list: ["om_practice_1"],
  },
  "im.message.reaction.created_v1": {
    message_id: "om_practice_1",
    reaction_type: { emoji_type: "THUMBSUP" },
    operator_type: "user",
    user_id: ids("ou_alice"),
    action_time: "1767600000000",
  },
  "im.message.reaction.deleted_v1": {
    message_id: "om_practice_1",
    reaction_type: { emoji_type: "THUMBSUP" },
    operator_type: "user",
    user_id: ids("ou_alice"),
    action_time: "1767600000000",
  },
  "im.message.recalled_v1": {
    message_id: "om_practice_1",
    chat_id: "oc_alice",
    recall_time: "1767600000000",
    recall_type: "message_owner",
  },
  "im.chat.member.bot.added_v1": {
    chat_id: "oc_family",
    operator_id: ids("ou_alice"),
    external: false,
    operator_tenant_key: TENANT,
    name: "family",
  },
  "im.chat.member.bot.deleted_v1": {
    chat_id: "oc_family",
    operator_id: ids("ou_alice"),
    external: false,
    operator_tenant_key: TENANT,
  },
  "im.chat.member.user.added_v1": {
    chat_id: "oc_family",
    operator_id: ids("ou_alice"),
    external: false,
    operator_tenant_key: TENANT,
    users: [{ name: "Carol", tenant_key: TENANT, user_id: ids("ou_carol") }],
  },
  "im.chat.access_event.bot_p2p_chat_entered_v1": {
    chat_id: "oc_alice",
    operator_id: ids("ou_alice"),
    last_message_id: "",
    last_message_create_time: "0",
  },
  "im.chat.disbanded_v1": {
    chat_id: "oc_family",
    operator_id: ids("ou_alice"),
    external: false,
    operator_tenant_key: TENANT,
  },
  "application.bot.menu_v6": {
    operator: { operator_name: "Alice", operator_id: ids("ou_alice") },
    event_key: "help",
    timestamp: 1767600000,
  },
  "card.action.trigger": {
    operator: { ...ids("ou_alice"), tenant_key: TENANT },
    action: { value: { go: "on" }, tag: "button" },
    context: { open_message_id: "om_practice_1", open_chat_id: "oc_alice" },
  },
  "im.hologram.projected_v9": { shape: "cube" },
};
