/**
 * The practice world is what a section talks to when there is no key: the practice model, and from
 * s04 on a fake Telegram and a fake Feishu. It is one background process for each checkout.
 *
 * This file has the settings with which a section uses a world. world-server.ts is the world itself,
 * world-process.ts its process, and world-client.ts finds or starts it.
 */

import { join } from "node:path";
import type { FakeFeishu } from "./feishu.ts";
import type { FakeTelegram } from "./telegram.ts";

/** The folder of the whole tutorial. */
export const ROOT = join(import.meta.dirname, "..");

/** Every setting that a section reads; an empty value counts as unset and beats a line in .env. */
export const SETTINGS =
  `ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL MODEL_ID CLAW0_WORKSPACE
  CONTEXT_TOKENS TELEGRAM_BOT_TOKEN TELEGRAM_API_ROOT TELEGRAM_ALLOWED_CHATS FEISHU_APP_ID
  FEISHU_APP_SECRET FEISHU_ENCRYPT_KEY FEISHU_VERIFICATION_TOKEN FEISHU_BOT_OPEN_ID
  FEISHU_ALLOWED_CHATS FEISHU_DOMAIN FEISHU_API_BASE HTTP_PORT REMOTE_TOOLS GATEWAY_TOKEN
  HEARTBEAT_INTERVAL HEARTBEAT_ACTIVE_START HEARTBEAT_ACTIVE_END ANTHROPIC_API_KEY_2
  ANTHROPIC_API_KEY_3 ANTHROPIC_API_KEY_4 ANTHROPIC_API_KEY_5 ANTHROPIC_API_KEY_6
  ANTHROPIC_API_KEY_7 ANTHROPIC_API_KEY_8 ANTHROPIC_API_KEY_9 FALLBACK_MODELS FIRST_BYTE_SECONDS`.split(
    /\s+/,
  );

/** Heartbeats at every hour, and so often that people see one. */
const HEARTBEAT = {
  HEARTBEAT_INTERVAL: "60",
  HEARTBEAT_ACTIVE_START: "0",
  HEARTBEAT_ACTIVE_END: "24",
};

/** The log and `npm run practice -- fail 401 --key 2` name a key by the number at its end. */
const MORE_KEYS = {
  ANTHROPIC_API_KEY_2: "practice-2",
  ANTHROPIC_API_KEY_3: "practice-3",
  FALLBACK_MODELS: "claude-haiku-5-5",
};

/** Who may write to the bot; the first is the owner. mallory may not. */
const ALLOWED = ["alice", "bob", "family"];

/** What a section of a world talks to. */
export interface Surroundings {
  /** The address of the practice model. */
  model: string;
  telegram: FakeTelegram;
  feishu: FakeFeishu;
  /** The port of the section's HTTP server, and the token of its gateway. */
  port: number;
  token: string;
  workspace: string;
}

/**
 * The settings with which the section of this number uses a world and nothing else: platforms from
 * s04 on, a gateway token from s05, heartbeats from s07, more keys from s09.
 */
export function settingsFor(section: number, world: Surroundings): Record<string, string> {
  return {
    ...Object.fromEntries(SETTINGS.map((name) => [name, ""])),
    ANTHROPIC_API_KEY: "practice",
    ANTHROPIC_BASE_URL: world.model,
    MODEL_ID: "claude-sonnet-5-5",
    CLAW0_WORKSPACE: world.workspace,
    CONTEXT_TOKENS: "180000",
    ...(section >= FIRST_WITH.channels && channelSettings(world)),
    ...(section >= FIRST_WITH.gateway && { GATEWAY_TOKEN: world.token }),
    ...(section >= FIRST_WITH.heartbeat && HEARTBEAT),
    ...(section >= FIRST_WITH.failover && MORE_KEYS),
  };
}

/** The section that brings each of these. */
export const FIRST_WITH = { channels: 4, gateway: 5, heartbeat: 7, failover: 9 };

function channelSettings({ telegram, feishu, port }: Surroundings): Record<string, string> {
  return { ...telegramSettings(telegram), ...feishuSettings(feishu), HTTP_PORT: String(port) };
}

/** The settings with which a section talks to this Telegram. */
export function telegramSettings(telegram: FakeTelegram): Record<string, string> {
  return {
    TELEGRAM_BOT_TOKEN: telegram.token,
    TELEGRAM_API_ROOT: telegram.url,
    TELEGRAM_ALLOWED_CHATS: ALLOWED.map((name) => telegram.chatId(name)).join(","),
  };
}

/** The settings with which a section talks to this Feishu. */
export function feishuSettings(feishu: FakeFeishu): Record<string, string> {
  return {
    FEISHU_APP_ID: feishu.appId,
    FEISHU_APP_SECRET: feishu.appSecret,
    FEISHU_ENCRYPT_KEY: feishu.encryptKey,
    FEISHU_VERIFICATION_TOKEN: feishu.verificationToken,
    FEISHU_BOT_OPEN_ID: feishu.botOpenId,
    FEISHU_ALLOWED_CHATS: ALLOWED.map((name) => feishu.chatId(name)).join(","),
    FEISHU_API_BASE: feishu.url,
  };
}

/** An error whose message is for the person: it is printed without a stack. */
export class UserError extends Error {}
