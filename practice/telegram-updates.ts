/**
 * An example of every kind of update of the Bot API, and of an invented one that may come later.
 */

import type { Update } from "grammy/types";
import type { FakeTelegram } from "./telegram.ts";

type Kind = Exclude<keyof Update, "update_id">;

/** The compiler names a new kind that grammY knows and that is missing here. */
type Examples = { [kind in Kind]-?: unknown } & { hologram: unknown };

/** The person and the chats of the examples. */
const setting = (telegram: FakeTelegram) => {
  const alice = telegram.person("alice");
  return { alice, chat: telegram.directory.chat(alice.id), group: telegram.group("family") };
};

export function exampleUpdates(telegram: FakeTelegram): Examples {
  return { ...messages(telegram), ...queries(telegram), ...members(telegram) };
}

function messages(telegram: FakeTelegram) {
  const { alice, chat, group } = setting(telegram);
  const message = telegram.write("alice", "hello");
  const post = telegram.write("alice", "news of the day", { group: "news" });
  const edit_date = message.date + 1;
  const business = { business_connection_id: "business1" };
  const reaction = { type: "emoji", emoji: "👍" };
  return {
    message,
    edited_message: { ...message, text: "hello!", edit_date },
    channel_post: post,
    edited_channel_post: { ...post, text: "news", edit_date },
    business_connection: {
      id: "business1",
      user: alice,
      user_chat_id: alice.id,
      date: message.date,
      is_enabled: true,
    },
    business_message: { ...message, ...business },
    edited_business_message: { ...message, ...business, edit_date },
    deleted_business_messages: { ...business, chat, message_ids: [1, 2] },
    guest_message: { ...message, guest_query_id: "guest1" },
    stopped_message_generation: { chat, draft_id: 1 },
    message_reaction: {
      chat: group,
      message_id: 1,
      user: alice,
      date: message.date,
      old_reaction: [],
      new_reaction: [reaction],
    },
    message_reaction_count: {
      chat: group,
      message_id: 1,
      date: message.date,
      reactions: [{ type: reaction, total_count: 3 }],
    },
    hologram: { chat, from: alice, shape: "cube" },
  };
}

function queries(telegram: FakeTelegram) {
  const { alice } = setting(telegram);
  const message = telegram.write("alice", "choose");
  const from = alice;
  const poll = telegram.write("alice", "", { media: "poll" }).poll;
  const address = { country_code: "AT", state: "", city: "Wien", post_code: "1010" };
  return {
    inline_query: { id: "1", from, query: "cats", offset: "" },
    chosen_inline_result: { result_id: "1", from, query: "cats" },
    callback_query: { id: "1", from, message, chat_instance: "1", data: "yes" },
    shipping_query: {
      id: "1",
      from,
      invoice_payload: "order",
      shipping_address: { ...address, street_line1: "Ring 1", street_line2: "" },
    },
    pre_checkout_query: {
      id: "1",
      from,
      currency: "XTR",
      total_amount: 5,
      invoice_payload: "order",
    },
    purchased_paid_media: { from, paid_media_payload: "photos" },
    poll,
    poll_answer: { poll_id: "1", user: from, option_ids: [0], option_persistent_ids: ["Tea"] },
    subscription: { user: from, invoice_payload: "order", state: "active" },
  };
}

function members(telegram: FakeTelegram) {
  const { alice, group } = setting(telegram);
  const date = telegram.write("alice", "hi").date;
  const { bot } = telegram.directory;
  const change = { chat: group, from: alice, date };
  const source = { source: "premium", user: alice };
  return {
    my_chat_member: {
      ...change,
      old_chat_member: { status: "left", user: bot },
      new_chat_member: { status: "member", user: bot },
    },
    chat_member: {
      ...change,
      old_chat_member: { status: "left", user: telegram.person("bob") },
      new_chat_member: { status: "member", user: telegram.person("bob") },
    },
    chat_join_request: { ...change, user_chat_id: alice.id },
    chat_boost: {
      chat: group,
      boost: { boost_id: "1", add_date: date, expiration_date: date + 1, source },
    },
    removed_chat_boost: { chat: group, boost_id: "1", remove_date: date, source },
    managed_bot: { user: alice, bot },
  };
}

/** Service messages: what happened in a chat. Each is a content for the option `fields` of say. */
export const SERVICE: Record<string, unknown> = {
  new_chat_members: [{ id: 1002, is_bot: false, first_name: "Bob" }],
  left_chat_member: { id: 1002, is_bot: false, first_name: "Bob" },
  new_chat_title: "Our family",
  new_chat_photo: [{ file_id: "p", file_unique_id: "p", width: 90, height: 90 }],
  delete_chat_photo: true,
  group_chat_created: true,
  supergroup_chat_created: true,
  migrate_to_chat_id: -1_001_000_000_009,
  migrate_from_chat_id: -9,
  message_auto_delete_timer_changed: { message_auto_delete_time: 86_400 },
  forum_topic_created: { name: "Plans", icon_color: 7_322_096 },
  forum_topic_closed: {},
  forum_topic_reopened: {},
  general_forum_topic_hidden: {},
  video_chat_started: {},
  video_chat_ended: { duration: 60 },
  write_access_allowed: { from_request: true },
  boost_added: { boost_count: 1 },
  web_app_data: { data: "{}", button_text: "Go" },
  users_shared: { request_id: 1, users: [{ user_id: 1002 }] },
  hologram_shared: { shape: "cube" },
};
