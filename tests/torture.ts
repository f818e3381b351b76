/**
 * `npm run torture -- [--kills 100] [--seed 1] [--section s05]`: people write on Telegram, Feishu
 * and in the terminal at once, and the program is killed with SIGKILL at random moments and started
 * again. At the end, what was said, asked and answered is compared.
 *
 * The dice are seeded: who says what, and how long each life lasts. What the machine does in that
 * time is its own affair, so a run is not the same each time, and every run has to be right.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type Delivery, type FakeFeishu, startFeishu } from "../practice/feishu.ts";
import { type PracticeModel, type PracticeRequest, startModel } from "../practice/model.ts";
import { type FakeTelegram, startTelegram } from "../practice/telegram.ts";
import { feishuSettings, telegramSettings } from "../practice/world.ts";

const ROOT = join(import.meta.dirname, "..");

export interface TortureOptions {
  kills?: number;
  seed?: number;
  /** "s05"; the newest one, unless it says otherwise. */
  section?: string;
  /** Hears how far it is. */
  tell?(line: string): void;
}

export interface Report {
  figures: Record<string, number>;
  /** What should not have been; empty if all is well. */
  violations: string[];
}

/** One message that somebody wrote. */
interface Said {
  conversation: string;
  number: number;
  /** On Feishu: an event that was refused comes later, so it has no place in the order. */
  delivery?: Delivery;
}

interface Place {
  platform: "telegram" | "feishu";
  person: string;
  group?: string;
}

/** Where people write, and as whom. */
const PLACES: [Place, ...Place[]] = [
  { platform: "telegram", person: "alice" },
  { platform: "telegram", person: "bob" },
  { platform: "telegram", person: "bob", group: "family" },
  { platform: "feishu", person: "alice" },
  { platform: "feishu", person: "bob" },
  { platform: "feishu", person: "alice", group: "family" },
];

const LIFE = 1_200; // ms from the first line that the program prints to the latest kill
const PATIENCE = 90_000; // ms for the answers that are open at the end

export async function torture(options: TortureOptions = {}): Promise<Report> {
  const { kills = 100, seed = 1, section, tell = () => {} } = options;
  const model = await startModel({ rules: false });
  model.slow(3);
  const telegram = await startTelegram();
  // Redelivered soon, and under new ids, which is the harder case.
  const redeliverAfter = new Array(200).fill(100);
  const feishu = await startFeishu({ redeliverAfter, newIds: true, patience: 10_000 });
  const run = new Torture(dice(seed), findSection(section), { model, telegram, feishu });
  try {
    for (let kill = 1; kill <= kills; kill++) {
      await run.life();
      if (kill % 10 === 0) tell(`${kill} kills, ${run.said.length} messages`);
    }
    await run.lastLife();
    return run.report(kills);
  } finally {
    await run.close();
    await Promise.all([model.close(), telegram.close(), feishu.close()]);
  }
}

/** A number from 0 up to `below`, the same ones for the same seed (mulberry32). */
function dice(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

function findSection(id?: string): string {
  const folder = join(ROOT, "sessions/en");
  const files = readdirSync(folder).filter((name) => /^s\d\d_\w+\.ts$/.test(name));
  const found = files.sort().findLast((name) => name.startsWith(id ?? "s"));
  if (!found) throw new Error(`There is no section ${id} in ${folder}.`);
  return join(folder, found);
}

/** Says what it heard; some questions take a tool first, so that a kill may fall into the loop. */
function reply(request: PracticeRequest) {
  const last = request.messages.at(-1);
  const blocks = typeof last?.content === "string" ? [] : (last?.content ?? []);
  if (blocks.some(({ type }) => type === "tool_result")) return { content: text(request) };
  const [question] = text(request);
  if (!question?.text.includes("clock")) return { content: text(request) };
  return { content: [{ type: "tool_use", name: "get_current_time", input: {} }] };
}

/** "re: " and the last text that the person said. */
function text({ messages }: PracticeRequest) {
  const said = messages.flatMap(({ role, content }) => {
    if (role !== "user" || typeof content === "string") return [];
    return content.flatMap((block) => (block.type === "text" ? [block.text] : []));
  });
  return [{ type: "text" as const, text: `re: ${said.at(-1)}` }];
}

interface Platforms {
  model: PracticeModel;
  telegram: FakeTelegram;
  feishu: FakeFeishu;
}

class Torture {
  readonly said: Said[] = [];
  private readonly roll: (below: number) => number;
  private readonly section: string;
  private readonly world: Platforms;
  private readonly folder = mkdtempSync(join(tmpdir(), "claw0-torture-"));
  private readonly counts = new Map<string, number>();
  /** For each conversation, how many kills found something open in it. */
  private readonly struck = new Map<string, number>();
  private child: ChildProcess | undefined;
  private output = "";
  private typed = 0;
  private open = 0;

  constructor(roll: (below: number) => number, section: string, world: Platforms) {
    this.roll = roll;
    this.section = section;
    this.world = world;
    cpSync(join(ROOT, "workspace"), this.folder, {
      recursive: true,
      filter: (file) => !file.includes(".state"),
    });
    const script = (request: PracticeRequest) => {
      world.model.script(script); // one answer is used up, so here is the next
      return reply(request);
    };
    for (let i = 0; i < 50; i++) world.model.script(script);
  }

  /** From a start to a kill. */
  async life(): Promise<void> {
    // Some of it comes while nobody is there.
    for (let i = this.roll(3); i > 0; i--) this.say();
    await this.start();
    const end = Date.now() + this.roll(LIFE);
    while (Date.now() < end) {
      if (this.roll(3) > 0) this.say();
      else this.type();
      await sleep(Math.min(20 + this.roll(200), Math.max(0, end - Date.now())));
    }
    // What was begun three times is set aside, by design. Here that would count as lost.
    const patience = Date.now() + PATIENCE;
    while (Date.now() < patience && this.unfinished().some(({ begun = 0 }) => begun > 1)) {
      await sleep(20);
    }
    const open = new Set(this.unfinished().map(({ text }) => /§(.+)§/.exec(text)?.[1] ?? ""));
    for (const one of open) this.struck.set(one, (this.struck.get(one) ?? 0) + 1);
    if (open.size > 0) this.open += 1;
    await this.kill();
  }

  /** Nobody dies any more, and what is open is answered. */
  async lastLife(): Promise<void> {
    await this.start();
    await this.world.feishu.flush();
    const isDone = () => this.said.every((one) => this.answersTo(one).length > 0);
    const { telegram, feishu } = this.world;
    const patience = new AbortController();
    await Promise.race([
      telegram.until(isDone),
      feishu.until(isDone),
      sleep(PATIENCE, undefined, { signal: patience.signal }).catch(() => {}),
    ]);
    patience.abort();
    await this.kill();
  }

  async close(): Promise<void> {
    await this.kill();
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }

  // ---- The program ----

  /** Starts it; resolves with the first thing that it says. */
  private async start(): Promise<void> {
    const { model, telegram, feishu } = this.world;
    const allowed = ["alice", "bob", "family"];
    const env = {
      PATH: process.env.PATH ?? "",
      HOME: process.env.HOME ?? "",
      ANTHROPIC_API_KEY: "test-key",
      ANTHROPIC_BASE_URL: model.url,
      CLAW0_WORKSPACE: this.folder,
      HTTP_PORT: "0",
      GATEWAY_TOKEN: "torture",
      ...telegramSettings(telegram),
      ...feishuSettings(feishu),
      TELEGRAM_ALLOWED_CHATS: allowed.map((name) => telegram.chatId(name)).join(),
    };
    const words = ["--import", import.meta.resolve("tsx"), this.section];
    const child = spawn(process.execPath, words, { cwd: ROOT, env });
    this.child = child;
    child.stdin.on("error", () => {}); // killed before a line reached it
    let heard = "";
    await new Promise<void>((resolve) => {
      const listen = (piece: string) => {
        heard += piece;
        this.output += piece;
        const [, port] = /listening on 127\.0\.0\.1:(\d+)/.exec(heard) ?? [];
        if (port) feishu.webhook = `http://127.0.0.1:${port}/feishu/events`;
        if (port) resolve();
      };
      child.stdout.setEncoding("utf8").on("data", listen);
      child.stderr.setEncoding("utf8").on("data", listen);
      child.once("close", () => resolve());
    });
    if (child.exitCode !== null) throw new Error(`it ended by itself:\n${heard}`);
  }

  private async kill(): Promise<void> {
    const { child } = this;
    this.child = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const closed = once(child, "close");
    child.kill("SIGKILL");
    await closed;
  }

  /** What is in the inbox, and from s08 on what waits to be sent. */
  private unfinished(): { text: string; begun?: number }[] {
    const folders = ["inbox", "delivery"].map((name) => join(this.folder, ".state", name));
    const files = folders.filter(existsSync).flatMap((folder) => {
      const names = readdirSync(folder).filter((name) => name.endsWith(".json"));
      return names.map((name) => join(folder, name));
    });
    return files.flatMap((file) => {
      try {
        return [JSON.parse(readFileSync(file, "utf8"))];
      } catch {
        return []; // it was answered between the two calls
      }
    });
  }

  // ---- The people ----

  /** Somebody writes something somewhere. */
  private say(): void {
    const { telegram, feishu } = this.world;
    const place = PLACES[this.roll(PLACES.length)] ?? PLACES[0];
    const { platform, person, group } = place;
    const conversation = `${platform}:${group ?? person}`;
    const number = (this.counts.get(conversation) ?? 0) + 1;
    this.counts.set(conversation, number);
    const clock = this.roll(4) === 0 ? " clock" : "";
    const name = group ? "@practice_bot " : "";
    const words = `${name}m${number}${clock} §${conversation}§`;
    const one: Said = { conversation, number };
    if (platform === "telegram") telegram.say(person, words, { group });
    else one.delivery = feishu.say(person, words, { group });
    this.said.push(one);
  }

  private type(): void {
    this.typed += 1;
    this.child?.stdin?.write(`t${this.typed} §terminal§\n`);
  }

  /** The answers of a conversation by the number of their question; 0 is something else. */
  private answers(conversation: string): number[] {
    const [platform, name = ""] = conversation.split(":");
    const { telegram, feishu } = this.world;
    const texts = platform === "telegram" ? telegram.textsTo(name) : feishu.textsTo(name);
    return texts.map((one) => {
      const [, number, mark] = /^re: m(\d+).* §(.+)§$/.exec(one) ?? [];
      return mark === conversation ? Number(number) : 0;
    });
  }

  private answersTo({ conversation, number }: Said): number[] {
    return this.answers(conversation).filter((one) => one === number);
  }

  // ---- The end ----

  report(kills: number): Report {
    const violations: string[] = [];
    const lost = this.said.filter((one) => this.answersTo(one).length === 0);
    violations.push(...lost.map((one) => `lost: ${one.conversation} m${one.number}`));
    let twice = 0;
    let disorder = 0;
    for (const conversation of this.counts.keys()) {
      const answers = this.answers(conversation);
      const repeats = answers.length - new Set(answers).size;
      const allowed = this.struck.get(conversation) ?? 0;
      twice += repeats;
      if (repeats > allowed) {
        violations.push(`${conversation}: ${repeats} answered twice in ${allowed} kills at work`);
      }
      if (answers.includes(0)) violations.push(`${conversation}: an answer to nothing`);
      const wrong = this.outOfOrder(conversation, answers);
      disorder += wrong.length;
      violations.push(...wrong.map((one) => `${conversation}: m${one} out of order`));
    }
    const { log } = this.world.model;
    const invalid = log.flatMap(({ problem }) => problem ?? []);
    violations.push(...invalid.map((problem) => `invalid: ${problem}`));
    const mixed = log.filter(({ request }) => {
      return new Set(JSON.stringify(request.messages ?? []).match(/§[^§]+§/g)).size > 1;
    });
    if (mixed.length > 0) violations.push(`${mixed.length} requests with another session's text`);
    const aside = this.output.match(/set aside/g)?.length ?? 0;
    if (aside > 0) violations.push(`${aside} set aside`);
    const figures = {
      kills: kills,
      "kills with something open": this.open,
      "messages on Telegram and Feishu": this.said.length,
      "lines in the terminal": this.typed,
      "requests to the model": log.length,
      lost: lost.length,
      "answered twice": twice,
      "conversations struck by a kill": [...this.struck.values()].reduce(
        (sum, one) => sum + one,
        0,
      ),
      "out of order": disorder,
      "requests with another session's text": mixed.length,
      "invalid requests": invalid.length,
      "set aside": aside,
    };
    return { figures, violations };
  }

  /**
   * A repeat may follow its first time at once; apart from that the numbers grow. An event of
   * Feishu that nobody took at first came later than it was said, so it is left out.
   */
  private outOfOrder(conversation: string, answers: number[]): number[] {
    const late = this.said.filter(({ delivery }) => {
      return delivery !== undefined && delivery.attempts[0]?.status !== 200;
    });
    const left = new Set(
      late.filter((one) => one.conversation === conversation).map(({ number }) => number),
    );
    const inPlace = answers.filter((number) => !left.has(number));
    return inPlace.filter((number, index) => number < (inPlace[index - 1] ?? 0));
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      kills: { type: "string", default: "100" },
      seed: { type: "string", default: "1" },
      section: { type: "string" },
    },
  });
  const from = Date.now();
  const { figures, violations } = await torture({
    kills: Number(values.kills),
    seed: Number(values.seed),
    section: values.section,
    tell: (line) => console.log(line),
  });
  const rows = { ...figures, seconds: Math.round((Date.now() - from) / 1000) };
  for (const [name, figure] of Object.entries(rows)) {
    console.log(`${name.padEnd(40)} ${String(figure).padStart(6)}`);
  }
  for (const violation of violations) console.log(violation);
  process.exitCode = violations.length > 0 ? 1 : 0;
}

if (process.argv[1] && realpathSync(process.argv[1]) === import.meta.filename) await main();
