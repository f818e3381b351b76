/**
 * The practice world is what a section talks to when there is no key: the practice model, and from
 * s04 on a fake Telegram and a fake Feishu.
 *
 * A running world writes its addresses to `.practice/world.json`, where knobs.ts, phone.ts and
 * rpc.ts find them.
 */

import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { type FakeFeishu, startFeishu } from "./feishu.ts";
import { type PracticeModel, startModel } from "./model.ts";
import { type FakeTelegram, startTelegram } from "./telegram.ts";
import { closeServer, listen } from "./web.ts";

/** The folder of the whole tutorial. */
export const ROOT = join(import.meta.dirname, "..");

/**
 * The delay between two events of a stream, in ms, so that people see the text grow and can stop
 * it.
 */
const EVENT_DELAY = 20;

export interface WorldFile {
  pid: number;
  url: string;
  startedAt: string;
  /** What uses it, for people: "s02 (en)". */
  user: string;
  /** The fake platforms, from s04 on. */
  telegram?: string;
  feishu?: string;
  /** The gateway's WebSocket with its token, from s05 on. */
  gateway?: string;
}

export interface World {
  model: PracticeModel;
  telegram?: FakeTelegram;
  feishu?: FakeFeishu;
  /** The settings with which a section uses this world and nothing else. */
  settings: Record<string, string>;
  stop(): Promise<void>;
}

/** Every setting that a section reads; an empty value counts as unset and beats a line in .env. */
export const SETTINGS =
  `ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL MODEL_ID CLAW0_WORKSPACE
  CONTEXT_TOKENS TELEGRAM_BOT_TOKEN TELEGRAM_API_ROOT TELEGRAM_ALLOWED_CHATS FEISHU_APP_ID
  FEISHU_APP_SECRET FEISHU_ENCRYPT_KEY FEISHU_VERIFICATION_TOKEN FEISHU_BOT_OPEN_ID
  FEISHU_ALLOWED_CHATS FEISHU_DOMAIN FEISHU_API_BASE HTTP_PORT REMOTE_TOOLS GATEWAY_TOKEN
  HEARTBEAT_INTERVAL HEARTBEAT_ACTIVE_START HEARTBEAT_ACTIVE_END ANTHROPIC_API_KEY_2
  ANTHROPIC_API_KEY_3 ANTHROPIC_API_KEY_4 ANTHROPIC_API_KEY_5 ANTHROPIC_API_KEY_6
  ANTHROPIC_API_KEY_7 ANTHROPIC_API_KEY_8 ANTHROPIC_API_KEY_9 FALLBACK_MODELS`.split(/\s+/);

/**
 * Heartbeats at every hour, and so often that people see one. HEARTBEAT_INTERVAL is the only
 * setting that the shell may give to a section in practice.
 */
const HEARTBEAT = {
  HEARTBEAT_INTERVAL: process.env.HEARTBEAT_INTERVAL || "60",
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

/**
 * Starts a world for the section of this number, which decides what there is: platforms from s04
 * on, a gateway token from s05, heartbeats from s07, more keys from s09.
 */
export async function startWorld(user: string, section = 1, root = ROOT): Promise<World> {
  const model = await startModel({ noSdkRetry: false });
  model.slow(EVENT_DELAY);
  const path = worldPath(root);
  const channels = section >= 4 ? await startChannels(section) : undefined;
  const file: WorldFile = {
    pid: process.pid,
    url: model.url,
    startedAt: now(),
    user,
    ...channels?.addresses,
  };
  mkdirSync(join(root, ".practice"), { recursive: true });
  // Only the user may read the file, because the gateway's token is in it.
  writeFileSync(path, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600 });
  const removeFile = (): void => {
    // A world that was started later has overwritten the file with its own addresses.
    if (readWorld(root)?.pid === process.pid) rmSync(path, { force: true });
  };
  process.once("exit", removeFile);
  return {
    model,
    telegram: channels?.telegram,
    feishu: channels?.feishu,
    settings: {
      ...Object.fromEntries(SETTINGS.map((name) => [name, ""])),
      ANTHROPIC_API_KEY: "practice",
      ANTHROPIC_BASE_URL: model.url,
      MODEL_ID: "claude-sonnet-5-5",
      CLAW0_WORKSPACE: join(root, ".practice", "workspace"),
      CONTEXT_TOKENS: "180000",
      ...channels?.settings,
      ...(section >= 7 && HEARTBEAT),
      ...(section >= 9 && MORE_KEYS),
      // A proxy must not come between a section and its practice world.
      NO_PROXY: ["127.0.0.1,localhost", process.env.NO_PROXY].filter(Boolean).join(","),
    },
    async stop() {
      removeFile();
      await Promise.all([model.close(), channels?.telegram.close(), channels?.feishu.close()]);
    },
  };
}

/**
 * Starts the fake platforms. They choose the port of the section's HTTP server, because Feishu must
 * know where to post its events before the section runs.
 */
async function startChannels(section: number) {
  const port = await freePort();
  const token = section >= 5 ? randomBytes(16).toString("hex") : "";
  const telegram = await startTelegram({ firstMessage: Math.floor(Date.now() / 1000) });
  const feishu = await startFeishu({ webhook: `http://127.0.0.1:${port}/feishu/events` });
  const gateway = token && { gateway: `ws://127.0.0.1:${port}/?token=${token}` };
  return {
    telegram,
    feishu,
    addresses: { telegram: telegram.url, feishu: feishu.url, ...gateway },
    settings: {
      ...telegramSettings(telegram),
      ...feishuSettings(feishu),
      HTTP_PORT: String(port),
      GATEWAY_TOKEN: token,
    },
  };
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

/** A port that is free at this moment. */
async function freePort(): Promise<number> {
  const server = createServer();
  const url = await listen(server);
  await closeServer(server);
  return Number(new URL(url).port);
}

/** An error whose message is for the person: it is printed without a stack. */
export class UserError extends Error {}

/** The world that is running. Throws a UserError if there is none. */
export function requireWorld(root = ROOT): WorldFile {
  const world = readWorld(root);
  if (!world) throw new UserError("No practice world is running: start one with npm start.");
  if (isAlive(world.pid)) return world;
  const gone = `process ${world.pid} is gone and left ${worldPath(root)} behind`;
  throw new UserError(`No practice world is running (${gone}): start one with npm start.`);
}

/** What the world file says, or undefined if there is none that can be read. */
export function readWorld(root = ROOT): WorldFile | undefined {
  try {
    return JSON.parse(readFileSync(worldPath(root), "utf8"));
  } catch {
    return undefined;
  }
}

/** Whether a process is alive. A world that was killed could not remove its file. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM means that the process lives, but belongs to another user.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/** The path of the world file. */
export function worldPath(root = ROOT): string {
  return join(root, ".practice", "world.json");
}

function now(): string {
  return new Date().toISOString();
}
