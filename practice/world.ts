/**
 * The practice world: what a section talks to when there is no key. For now it is the model; the
 * platforms' stand-ins join it here.
 *
 * A running world leaves its address in `.practice/world.json`, where the knobs find it.
 */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type PracticeModel, startModel } from "./model.ts";

/** The folder of the whole tutorial. */
export const ROOT = join(import.meta.dirname, "..");

/** Between two events of a stream, in ms: so that people see the text grow, and can stop it. */
const PACE = 20;

export interface WorldFile {
  pid: number;
  url: string;
  startedAt: string;
  /** What uses it, for people: "s02 (en)". */
  user: string;
}

export interface World {
  model: PracticeModel;
  /** The settings with which a section uses this world and nothing else. */
  settings: Record<string, string>;
  stop(): Promise<void>;
}

/** Every setting that a section reads; an empty value counts as unset and beats a line in .env. */
const SETTINGS = `ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL MODEL_ID CLAW0_WORKSPACE
  CONTEXT_TOKENS TELEGRAM_BOT_TOKEN TELEGRAM_API_ROOT TELEGRAM_ALLOWED_CHATS FEISHU_APP_ID
  FEISHU_APP_SECRET FEISHU_ENCRYPT_KEY FEISHU_VERIFICATION_TOKEN FEISHU_BOT_OPEN_ID
  FEISHU_ALLOWED_CHATS FEISHU_DOMAIN FEISHU_API_BASE HTTP_PORT REMOTE_TOOLS GATEWAY_TOKEN
  HEARTBEAT_INTERVAL HEARTBEAT_ACTIVE_START HEARTBEAT_ACTIVE_END ANTHROPIC_API_KEY_2
  ANTHROPIC_API_KEY_3 ANTHROPIC_API_KEY_4 ANTHROPIC_API_KEY_5 ANTHROPIC_API_KEY_6
  ANTHROPIC_API_KEY_7 ANTHROPIC_API_KEY_8 ANTHROPIC_API_KEY_9 FALLBACK_MODELS`.split(/\s+/);

export async function startWorld(user: string, root = ROOT): Promise<World> {
  const model = await startModel({ noSdkRetry: false });
  model.slow(PACE);
  const path = worldPath(root);
  const file: WorldFile = { pid: process.pid, url: model.url, startedAt: now(), user };
  mkdirSync(join(root, ".practice"), { recursive: true });
  writeFileSync(path, `${JSON.stringify(file, null, 2)}\n`);
  const forget = (): void => {
    // A world that was started later has its own address in the file: leave that alone.
    if (readWorld(root)?.pid === process.pid) rmSync(path, { force: true });
  };
  process.once("exit", forget);
  return {
    model,
    settings: {
      ...Object.fromEntries(SETTINGS.map((name) => [name, ""])),
      ANTHROPIC_API_KEY: "practice",
      ANTHROPIC_BASE_URL: model.url,
      MODEL_ID: "claude-sonnet-5-5",
      CLAW0_WORKSPACE: join(root, ".practice", "workspace"),
      CONTEXT_TOKENS: "180000",
      // A proxy must not come between a section and its practice world.
      NO_PROXY: ["127.0.0.1,localhost", process.env.NO_PROXY].filter(Boolean).join(","),
    },
    async stop() {
      forget();
      await model.close();
    },
  };
}

/** What the file says, or undefined if there is none that can be read. */
export function readWorld(root = ROOT): WorldFile | undefined {
  try {
    return JSON.parse(readFileSync(worldPath(root), "utf8"));
  } catch {
    return undefined;
  }
}

/** A process that was killed could not remove its file. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, but belongs to somebody else.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

export function worldPath(root = ROOT): string {
  return join(root, ".practice", "world.json");
}

function now(): string {
  return new Date().toISOString();
}
