/**
 * For the tests of s08: a section with a queue, a clock that moves only when a test moves it, and a
 * channel of which a test decides which sends fail. The runner and its files are the section's own.
 */

import fs from "node:fs";
import { join } from "node:path";
import { vi } from "vitest";
import { WebSocket } from "ws";
import { type FakeTelegram, startTelegram } from "../practice/telegram.ts";
import { telegramSettings } from "../practice/world.ts";
import { load, type SectionFile, settings, temporaryFolder } from "./helper.ts";
import { afterwards, appOf05, type S05, type World } from "./world.ts";

export type S08 = typeof import("../sessions/en/s08_delivery.ts");
export type App08 = Parameters<S08["accept"]>[0];
export type Delivery = import("../sessions/en/s08_delivery.ts").Delivery;

/** A section from s08 on, imported. */
export async function load08(section: SectionFile, given = settings()): Promise<S08> {
  return (await load("s03", section, given)) as unknown as S08; // it grows: what s08 has, it has
}

/** The app as `main` makes it. The channels can be set before the queue begins to send. */
export function appOf08(section: S08, folder?: string, channels = new section.ChannelManager()) {
  const early = section as unknown as S05; // as above, and the same for its app
  return appOf05(early, folder, channels as never) as unknown as App08;
}

export const SECOND = 1000;
export const HOUR = 3_600_000;
export const NOON = Date.UTC(2027, 0, 4, 12);

/** Stops the clock, so that timers wait for `pass`. Sockets are not affected. */
export function stopTheClock(now = NOON): void {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"], now });
}

/** Moves the clock by so many ms and runs all timers that are due by then. */
export async function pass(ms: number): Promise<void> {
  await vi.advanceTimersByTimeAsync(ms);
  await turns();
}

/** Waits for a few turns of the event loop, in which all that needs no I/O happens. */
export async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Resolves when the condition is true. The limit of 20 s only ends a test that would hang. */
export async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 20_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`It never became so: ${condition}`);
    await turns(1);
  }
}

/** A delivery as `reply` makes it. */
export function delivery(id: string, more: Partial<Delivery> = {}): Delivery {
  const now = Date.now();
  const words = { channel: "telegram", to: "1001", text: `text of ${id}` };
  return { id, ...words, enqueuedAt: now, nextAttemptAt: now, failures: 0, unfinished: 0, ...more };
}

/** Called for each send; if it throws or rejects, the send fails. */
type Fate = (to: string, text: string) => unknown;

/** A channel whose sends succeed, fail or hang as the test's `fate` decides. */
export class Line {
  readonly name: string;
  readonly limit = 4096;
  /** All texts that it was given to send, also those that failed. */
  readonly tried: string[] = [];
  /** The texts whose send succeeded. */
  readonly taken: string[] = [];
  fate: Fate = () => {};

  constructor(name = "telegram") {
    this.name = name;
  }

  async start(): Promise<void> {}
  async stop(): Promise<void> {}

  async send(to: string, text: string): Promise<void> {
    this.tried.push(text);
    await this.fate(to, text);
    this.taken.push(text);
  }
}

/**
 * A section's app with a `Line` for Telegram. Opened again on the same folder, it has restarted.
 */
export function openDesk(section: S08, folder = temporaryFolder()) {
  const line = new Line();
  const channels = new section.ChannelManager();
  channels.set("telegram", line);
  const app = appOf08(section, folder, channels);
  const refuse = (why: string, permanent = false, retryAfter?: number, unknown = false): never => {
    throw new section.SendError(why, { permanent, retryAfter, isUnknown: unknown });
  };
  return { app, line, folder, refuse, queue: app.queue, runner: app.delivery };
}

/** The same with the real channel and a fake Telegram. */
export async function openTelegram(section: S08, folder = temporaryFolder()) {
  const telegram: FakeTelegram = await startTelegram();
  afterwards(() => telegram.close());
  const given = telegramSettings(telegram);
  const channels = new section.ChannelManager();
  channels.set("telegram", new section.TelegramChannel((name) => given[name] ?? ""));
  const app = appOf08(section, folder, channels);
  const chat = (name: string) => String(telegram.chatId(name));
  /** When a text was tried, in ms since the clock was stopped. */
  const times = (text: string) =>
    telegram.log.flatMap((call) => (call.parameters.text === text ? [call.at - NOON] : []));
  return { app, telegram, folder, chat, times, queue: app.queue, runner: app.delivery };
}

/** The files in a folder of the queue, without its log. */
export function filesOf(folder: string, ...more: string[]): string[] {
  const names = fs.readdirSync(join(folder, "delivery", ...more)).sort();
  return names.filter((name) => !["processed", "failed"].includes(name));
}

/** What those files say. */
export function entriesOf(folder: string, ...more: string[]): Delivery[] {
  return filesOf(folder, ...more)
    .filter((name) => /^\d+\.json$/.test(name))
    .map((name) => JSON.parse(fs.readFileSync(join(folder, "delivery", ...more, name), "utf8")));
}

/** Writes a file into the folder of the queue, as if it had been there before. */
export function plant(folder: string, name: string, content: unknown): void {
  const text = typeof content === "string" ? content : JSON.stringify(content);
  fs.mkdirSync(join(folder, "delivery"), { recursive: true });
  fs.writeFileSync(join(folder, "delivery", name), text);
}

/** Asks the gateway of a running section. */
export function rpc(world: World, method: string): Promise<unknown> {
  const socket = new WebSocket(world.gateway);
  afterwards(() => socket.terminate());
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("open", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method })));
    socket.on("message", (data) => resolve(JSON.parse(String(data)).result));
  });
}
