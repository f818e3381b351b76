/**
 * A whole program under traffic, killed or stopped again and again, with a disk that is full for
 * two seconds now and then, and a provider that is down for up to twenty minutes of its clock:
 * people on Telegram, Feishu and in the terminal, programs at the gateway, jobs every few seconds,
 * tools, and failures now and then. At the end, what was said, asked and answered is compared.
 *
 * The random numbers are seeded: they decide who says what, what fails, and how long each life
 * lasts. How far the program comes in that time depends on the machine, so no two runs are the
 * same, but every run has to be right.
 */

import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { WebSocket } from "ws";
import { type Delivery, type FakeFeishu, startFeishu } from "../practice/feishu.ts";
import type { PracticeModel, PracticeRequest, Scripted } from "../practice/model.ts";
import { type FakeTelegram, startTelegram } from "../practice/telegram.ts";
import { feishuSettings, telegramSettings } from "../practice/world.ts";
import {
  calls,
  type Program,
  practice,
  type SectionFile,
  type Settings,
  settings,
  start,
  temporaryFolder,
  wrongIn,
} from "./helper.ts";
import { PARTS, type SmallDisk, waysToFill } from "./small-disk.ts";
import { lastText } from "./world.ts";

const ROOT = join(import.meta.dirname, "..");

export interface TortureOptions {
  section: SectionFile;
  kills: number;
  seed: number;
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
  parts: number;
  tool?: string;
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
  { platform: "telegram", person: "carol" },
  { platform: "telegram", person: "bob", group: "family" },
  { platform: "telegram", person: "alice", group: "family" },
  { platform: "feishu", person: "alice" },
  { platform: "feishu", person: "bob" },
  { platform: "feishu", person: "alice", group: "family" },
];
const PROGRAMS = ["printer", "door"];

/** What is asked of the model, and how many parts the answer has on a platform. */
const WISHES = ["", "", "", "", "long", "long", "clock", "note", "note", "bash"];
const LONG_PARAGRAPH = "and so it goes on for a good while, ".repeat(80); // so that a part is one paragraph

const JOBS = {
  news: { seconds: 3, platform: "telegram", event: false },
  ticks: { seconds: 2, platform: "telegram", event: true },
  hours: { seconds: 2, platform: "feishu", event: true },
} as const;
type JobId = keyof typeof JOBS;
const JOB_IDS = Object.keys(JOBS) as JobId[]; // its own keys

// The length of a life is counted in what the program does (its calls of the model, of Telegram and
// of Feishu), because then kills fall into the middle of work on a slow machine, too.
const CALLS_PER_LIFE = 80; // at most
const IDLE_TIMEOUT = 3_000; // ms without enough calls, after which the program is killed anyway
const BACKLOG = 10; // unanswered messages, from which on people wait before they write more
/** Real time for what is open at the end, in ms. The program's clock runs faster then. */
const SETTLE_TIMEOUT = 60_000;
const CONTEXT = 24_000; // tokens: so few that every conversation is compacted now and then

/** One send by JSON-RPC, over one connection. */
interface Sent {
  life: number;
  program: string;
  number: number;
  answer?: string;
  error?: string;
  /** The error came during an orderly stop, which refuses what waits for its turn. */
  isRefused?: boolean;
  deltas: string;
}

export async function torture({ section, kills, seed, tell }: TortureOptions): Promise<Report> {
  const model = await practice({ rules: false });
  const clock = { ahead: 0 };
  const now = () => Date.now() + clock.ahead;
  const telegram = await startTelegram({ now });
  // Redelivered soon, and under new ids, which is the harder case.
  const redeliverAfter = new Array(400).fill(100);
  const feishu = await startFeishu({ redeliverAfter, newIds: true, patience: 10_000, now });
  const world = { model, telegram, feishu, clock };
  const ways = waysToFill(64);
  const way = ways[seed % ways.length];
  const run = new Torture(randomFrom(seed), section, world);
  try {
    await run.useDisk(way);
    for (let kill = 1; kill <= kills; kill++) {
      await run.life();
      if (kill % 10 === 0) tell?.(`${kill} kills, ${run.said.length} messages`);
    }
    await run.lastLife();
    return run.report();
  } finally {
    await run.kill();
    await Promise.all([telegram.close(), feishu.close()]);
  }
}

/** A number from 0 up to `below`, the same ones for the same seed (mulberry32). */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

// ---- The model ----

const textReply = (words: string): Scripted => ({ content: [{ type: "text", text: words }] });

/** Says what it heard; some questions take a tool first, so that a kill may fall into the loop. */
function replyTo(request: PracticeRequest): Scripted {
  const heard = lastText(request);
  if (heard.includes("HEARTBEAT_OK")) return textReply("HEARTBEAT_OK");
  const [, question = "", mark = ""] = /(\w+[^§]*) (§[^§]+§)/.exec(heard) ?? [];
  if (heard.startsWith("Summary so far:")) return textReply(`A summary ${mark}`);
  const [name = "", wish = ""] = question.split(" ");
  const last = request.messages.at(-1);
  const blocks = typeof last?.content === "string" ? [] : (last?.content ?? []);
  const isAnswered = blocks.some(({ type }) => type === "tool_result");
  const line = `${name} ${mark}`;
  if (wish === "clock" && !isAnswered) return calls(["get_current_time", {}]);
  if (wish === "note" && !isAnswered)
    return calls(["memory_write", { content: `noted ${line}`, category: "note" }]);
  if (wish === "bash" && !isAnswered)
    return calls(["bash", { command: `echo 'ran ${line}' >> ran.log` }]);
  if (wish !== "long") return textReply(`re: ${name} 1/1 ${mark}`);
  const parts = [1, 2].map((part) => `re: ${name} ${part}/2 ${mark} ${LONG_PARAGRAPH}`);
  return textReply(parts.join("\n\n"));
}

interface Platforms {
  model: PracticeModel;
  telegram: FakeTelegram;
  feishu: FakeFeishu;
  /** How far the clock of everybody is ahead of the real one, in ms. */
  clock: { ahead: number };
}

interface InboxFile {
  id: string;
  text: string;
  channel: string;
  peerId: string;
  attempts?: number;
}

/** A line of a session. Only the first line of a person's turn has the id. */
interface SessionLine {
  inboxId?: string;
  message?: { content: { text?: string }[] };
}

interface QueueFile {
  id: string;
  channel: string;
  to: string;
  text: string;
  unfinished: number;
  error?: string;
}

/** The records of a file of lines, or those of all JSON files in a folder whose name fits. */
function readLines<T>(file: string): T[] {
  if (!existsSync(file)) return [];
  const lines = readFileSync(file, "utf8").split("\n");
  return lines.flatMap((line) => {
    try {
      return line ? [JSON.parse(line)] : [];
    } catch {
      return []; // cut off by a kill; the program leaves it where it is
    }
  });
}

function readFolder<T>(folder: string, names = /^\d+\.json$/): (T & { name: string })[] {
  const found = existsSync(folder) ? readdirSync(folder).sort() : [];
  return found.flatMap((name) => {
    if (!names.test(name)) return [];
    return [{ ...JSON.parse(readFileSync(join(folder, name), "utf8")), name }];
  });
}

/** What a Spool has processed. */
function readProcessed(spool: string): { at: string; id: string }[] {
  const dir = join(spool, "processed");
  const names = existsSync(dir) ? readdirSync(dir).sort() : [];
  return names.flatMap((name) => readLines<{ at: string; id: string }>(join(dir, name)));
}

class Torture {
  readonly said: Said[] = [];
  /** A seeded number from 0 up to `below`. */
  readonly #random: (below: number) => number;
  readonly #section: SectionFile;
  readonly #world: Platforms;
  readonly #settings: Settings;
  readonly #folder = temporaryFolder();
  readonly #counts = new Map<string, number>();
  readonly #sent: Sent[] = [];
  #program: Program | undefined;
  #socket: WebSocket | undefined;
  #output = "";
  #lives = 0;
  #startupTime = 1_000; // ms that the last life took to be ready
  #kills = 0;
  #killsAtWork = 0;
  #stops = 0;
  #isServing = false;
  #isStopping = false;
  #refusals = 0; // sends that an orderly stop has refused, by the log
  #disk: SmallDisk | undefined;
  #fullDisks = 0;
  #outages = 0;
  /** Lives in which turns may fail, because the disk or the provider did. */
  readonly #troubled = new Set<number>();
  /** What the log of the other lives says of turns that failed. */
  readonly #failedTurns: string[] = [];
  #linesTyped = 0;
  #failures = 0;
  /** `channel to text`: how many kills fell into a send of it. */
  readonly #killsWithinSend = new Map<string, number>();
  /** Recipients to whom two sends were under way at once. */
  readonly #parallelSends: string[] = [];
  /** When each job was due next, as the life before has left it. */
  readonly #due = new Map<JobId, number>();
  /** Runs that were marked as begun, but are neither in the inbox nor processed. */
  readonly #vanishedRuns: string[] = [];
  /** The runs of jobs that were seen in the inbox, and how many kills each has met. */
  readonly #runs = new Map<string, number>();

  constructor(random: (below: number) => number, section: SectionFile, world: Platforms) {
    this.#random = random;
    this.#section = section;
    this.#world = world;
    const { model, telegram, feishu } = world;
    const filter = (file: string) => !file.includes(".state");
    cpSync(join(ROOT, "workspace"), this.#folder, { recursive: true, filter });
    const allowed = ["alice", "bob", "carol", "family"];
    for (const group of ["family", ...JOB_IDS]) {
      telegram.group(group);
      feishu.group(group);
    }
    this.#settings = settings(model, {
      ...telegramSettings(telegram),
      ...feishuSettings(feishu),
      TELEGRAM_ALLOWED_CHATS: allowed.map((name) => telegram.chatId(name)).join(),
      CLAW0_WORKSPACE: this.#folder,
      CONTEXT_TOKENS: String(CONTEXT),
      GATEWAY_TOKEN: "torture-torture-torture",
      REMOTE_TOOLS: "1",
      HEARTBEAT_INTERVAL: "2",
      HEARTBEAT_ACTIVE_START: "0",
      HEARTBEAT_ACTIVE_END: "24",
      ANTHROPIC_API_KEY_2: "test-key-2",
      ANTHROPIC_API_KEY_3: "test-key-3",
      FALLBACK_MODELS: "claude-haiku-5-5",
    });
    writeFileSync(join(this.#folder, "CRON.json"), JSON.stringify({ jobs: this.#jobs() }));
    model.slow(2);
    const script = (request: PracticeRequest) => {
      model.script(script); // one answer is used up, so here is the next
      return replyTo(request);
    };
    for (let i = 0; i < 50; i++) model.script(script);
  }

  #jobs() {
    return JOB_IDS.map((id) => {
      const { seconds, platform, event } = JOBS[id];
      const words = `${id} §cron:${id}§`;
      const payload = event
        ? { kind: "system_event", text: words }
        : { kind: "agent_turn", message: words };
      const schedule = { kind: "every", everySeconds: seconds, anchor: "2026-01-01T00:00:00Z" };
      const to = String(this.#world[platform].chatId(id));
      return { id, enabled: true, schedule, payload, deliver: { channel: platform, to } };
    });
  }

  // ---- Lives ----

  /** Lets the program run on a disk of which parts can become full. */
  async useDisk(way: ReturnType<typeof waysToFill>[number] | undefined): Promise<void> {
    this.#disk = await way?.open(join(this.#folder, ".state"));
  }

  /** From a start to a kill or a stop. */
  async life(): Promise<void> {
    // Some of it comes while nobody is there.
    for (let i = this.#random(3); i > 0; i--) this.#say();
    const isShort = this.#random(8) === 0;
    this.#isServing = this.#random(3) === 0;
    const ready = this.#start();
    if (isShort) {
      ready.catch(() => {}); // it may be killed before it says anything
      await sleep((this.#startupTime * this.#random(130)) / 100);
    } else {
      await ready;
      await this.#traffic(this.#random(CALLS_PER_LIFE));
      const trouble = this.#random(10);
      if (trouble === 0) await this.#fillDisk();
      if (trouble === 1) await this.#providerOutage(1 + this.#random(20));
      await sleep(this.#random(20)); // or it would always be right after a call
    }
    if (this.#random(4) === 0 && !isShort) await this.#stop();
    else await this.kill();
    this.#inspectDisk();
  }

  /** For two seconds one or all parts of the state can't be written. */
  async #fillDisk(): Promise<void> {
    this.#troubled.add(this.#lives);
    this.#fullDisks += 1;
    const part = PARTS[this.#random(PARTS.length + 1)];
    const full = part ? [part] : PARTS;
    for (const one of full) this.#disk?.fill(one);
    const until = Date.now() + 2_000;
    while (Date.now() < until) {
      await this.#causeSomething();
      await sleep(this.#random(150));
    }
    for (const one of full) this.#disk?.free(one);
    await this.#forward(61_000); // what failed is tried again
  }

  /** The provider is down for so many minutes, in which people go on writing. */
  async #providerOutage(minutes: number): Promise<void> {
    const { model } = this.#world;
    this.#troubled.add(this.#lives);
    this.#outages += 1;
    model.clearFailures();
    model.fail({ kind: "529", seconds: 3_600 });
    for (let half = 0; half < 2 * minutes; half++) {
      if (half % 6 === 0) this.#say();
      await this.#forward(30_000);
      await sleep(15);
    }
    model.clearFailures();
  }

  async #forward(ms: number): Promise<void> {
    this.#world.clock.ahead += ms;
    await this.#program?.forward(ms);
  }

  /** Goes on until the program has made so many calls. */
  async #traffic(length: number): Promise<void> {
    const { model, telegram, feishu } = this.#world;
    const count = () => model.log.length + telegram.log.length + feishu.log.length;
    const [end, giveUpAt] = [count() + length, Date.now() + IDLE_TIMEOUT];
    while (count() < end && Date.now() < giveUpAt) {
      await this.#causeSomething();
      const pauseEnd = Date.now() + this.#random(150);
      while (count() < end && Date.now() < pauseEnd) await sleep(2);
    }
  }

  /** A failure, a line in the terminal, a send of a program or a message of a person. */
  async #causeSomething(): Promise<void> {
    const what = this.#random(12);
    if (what === 0) this.#fail();
    else if (what === 1) this.#type();
    else if (this.#waiting() >= BACKLOG) await sleep(2);
    else if (what < 5) this.#send();
    else this.#say();
  }

  /** How many of the newest messages have no answer. */
  #waiting(): number {
    return this.said.slice(-2 * BACKLOG).filter((one) => this.#missing(one) > 0).length;
  }

  /** Nobody dies any more, and what is open is answered. */
  async lastLife(): Promise<void> {
    const { telegram, feishu, model } = this.#world;
    for (const one of [telegram, feishu, model]) one.clearFailures();
    await this.#start();
    for (const program of PROGRAMS) this.#send(program);
    await feishu.flush();
    const patience = Date.now() + SETTLE_TIMEOUT;
    while (!this.#isDone() && Date.now() < patience) {
      await this.#forward(5_000); // so that nobody sits through a back-off or a cooldown
      await sleep(200);
    }
    // Without its jobs it comes to rest: what was due until here is done, and no more comes.
    writeFileSync(join(this.#folder, "CRON.json"), JSON.stringify({ jobs: [] }));
    await this.#forward(60_000); // by then its timer has looked into the file
    while (this.#isBusy() && Date.now() < patience) await sleep(50);
    await this.kill();
  }

  #isDone(): boolean {
    const waits = this.#sent.filter(({ life }) => life === this.#lives);
    return (
      waits.every(({ answer, error }) => answer ?? error) &&
      this.#lost().length === 0 &&
      !this.#isBusy(({ channel }) => channel !== "cron")
    );
  }

  #isBusy(means = (_: InboxFile) => true): boolean {
    try {
      // In this order: what leaves the inbox is in the queue before.
      const inbox = readFolder<InboxFile>(this.#path("inbox")).filter(means);
      return inbox.length + readFolder<QueueFile>(this.#path("delivery")).length > 0;
    } catch {
      return true; // a file went while we looked
    }
  }

  // ---- The program ----

  #path(...names: string[]): string {
    const file = join(this.#folder, ".state", ...names);
    return this.#disk?.path(file) ?? file;
  }

  /** Starts it; resolves when it can be reached, and a program has connected. */
  async #start(): Promise<void> {
    const { feishu } = this.#world;
    this.#lives += 1;
    const program = start(
      this.#section,
      { ...this.#settings, CLOCK_AHEAD: String(this.#world.clock.ahead) },
      { clock: true, words: this.#isServing ? ["--serve"] : [], ...this.#disk?.start },
    );
    const from = Date.now();
    this.#program = program;
    await program.until(/http: listening on 127\.0\.0\.1:\d+/);
    const [, port] = /http: listening on 127\.0\.0\.1:(\d+)/.exec(program.text) ?? [];
    feishu.webhook = `http://127.0.0.1:${port}/feishu/events`;
    this.#startupTime = Date.now() - from;
    const socket = new WebSocket(`ws://127.0.0.1:${port}/?token=torture-torture-torture`);
    socket.on("error", () => {}); // killed before it was connected
    socket.on("message", (data) => this.#hear(String(data)));
    this.#socket = socket;
    await new Promise((resolve) => socket.once("open", resolve).once("close", resolve));
  }

  async kill(): Promise<void> {
    if (!this.#program) return;
    this.#kills += 1;
    await this.#end((program) => program.kill("SIGKILL"), 128);
  }

  /** Asks it to end, as a service manager or a person does. */
  async #stop(): Promise<void> {
    this.#stops += 1;
    const ask = (program: Program) => {
      if (this.#isServing) program.kill("SIGTERM");
      else program.write("quit\n");
    };
    const ending = this.#program;
    // A line that was typed before "quit" is answered first, and may wait for a cooldown.
    const hurry = () => {
      if (this.#isServing) return;
      this.#world.clock.ahead += 5_000;
      ending?.forward(5_000).catch(() => {}); // it may have ended by now
    };
    const timer = setInterval(hurry, 1_000);
    this.#isStopping = true;
    await this.#end(ask, 0).finally(() => clearInterval(timer));
    this.#isStopping = false;
  }

  async #end(ask: (program: Program) => void, expected: number): Promise<void> {
    const program = this.#program;
    this.#program = undefined;
    if (program) ask(program);
    if (expected !== 0) this.#socket?.terminate();
    const ended = await program?.end();
    this.#socket?.terminate();
    this.#socket = undefined;
    const output = ended?.text ?? "";
    this.#output += output;
    const failed = output.match(/(?<=^|Z )agent:\S+: .+$/gm) ?? []; // with --serve behind the time
    if (!this.#troubled.has(this.#lives)) {
      this.#failedTurns.push(...failed);
      this.#refusals += output.match(/gateway: agent:\S+: Error: stopping/g)?.length ?? 0;
    }
    if (ended?.code === expected) return;
    throw new Error(`it ended with ${ended?.code} and not with ${expected}:\n${ended?.text}`);
  }

  /** What a killed program has left on disk. */
  #inspectDisk(): void {
    const inbox = readFolder<InboxFile>(this.#path("inbox"));
    for (const { id, channel } of inbox)
      if (channel === "cron") this.#runs.set(id, (this.#runs.get(id) ?? 0) + 1);
    this.#inspectDueTimes([...inbox, ...this.#quarantined()].map(({ id }) => id));
    const done = new Set(this.#ids("delivery"));
    const queue = readFolder<QueueFile>(this.#path("delivery")).filter(({ id }) => !done.has(id));
    const underWay = queue.filter((one) => one.unfinished > 0);
    const recipients = new Set<string>();
    for (const one of underWay) {
      const place = `${one.channel} ${one.to}`;
      if (recipients.has(place)) this.#parallelSends.push(place);
      recipients.add(place);
      const key = `${place} ${one.text.trim()}`;
      this.#killsWithinSend.set(key, (this.#killsWithinSend.get(key) ?? 0) + 1);
    }
    if (inbox.length + queue.length > 0) this.#killsAtWork += 1;
  }

  /** What was due when the life before ended, and is not any more, must be kept or done. */
  #inspectDueTimes(kept: string[]): void {
    const file = this.#path("cron.json");
    const states = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : {};
    const known = new Set([...kept, ...this.#ids("inbox")]);
    for (const id of JOB_IDS) {
      const due: number | undefined = states[id]?.due;
      const before = this.#due.get(id);
      const run = before && `cron:${id}:${new Date(before).toISOString()}`;
      if (run && due !== before && !known.has(run)) this.#vanishedRuns.push(run);
      if (due) this.#due.set(id, due);
    }
  }

  #ids(spool: string): string[] {
    return readProcessed(this.#path(spool)).map(({ id }) => id);
  }

  // ---- The people, the programs, and bad luck ----

  #next(conversation: string): number {
    const number = (this.#counts.get(conversation) ?? 0) + 1;
    this.#counts.set(conversation, number);
    return number;
  }

  /** Somebody writes something somewhere. */
  #say(): void {
    const { telegram, feishu } = this.#world;
    const place = PLACES[this.#random(PLACES.length)] ?? PLACES[0];
    const { platform, person, group } = place;
    const conversation = `${platform}:${group ?? person}`;
    const number = this.#next(conversation);
    const wish = WISHES[this.#random(WISHES.length)] ?? "";
    const name = group ? "@practice_bot " : "";
    const words = `${name}m${number}${wish && ` ${wish}`} §${conversation}§`;
    const one: Said = { conversation, number, parts: wish === "long" ? 2 : 1, tool: wish };
    if (platform === "telegram") telegram.say(person, words, { group });
    else one.delivery = feishu.say(person, words, { group });
    this.said.push(one);
  }

  #type(): void {
    if (this.#isServing) return; // then nobody sits at the terminal
    this.#linesTyped += 1;
    this.#program?.write(`t${this.#linesTyped} §terminal§\n`);
  }

  #send(program = PROGRAMS[this.#random(PROGRAMS.length)] ?? ""): void {
    const socket = this.#socket;
    const number = this.#next(`ws:${program}`);
    const one: Sent = { life: this.#lives, program, number, deltas: "" };
    const id = this.#sent.push(one) - 1;
    const params = { text: `m${number} §ws:${program}§`, peerId: program };
    socket?.send(JSON.stringify({ jsonrpc: "2.0", id, method: "send", params }));
  }

  #hear(json: string): void {
    const { id, method, params, result, error } = JSON.parse(json);
    const one = this.#sent[id ?? params?.id];
    if (!one) return;
    if (method === "delta") one.deltas += params.text;
    if (result) one.answer = result.reply;
    if (error) one.error = error.message;
    one.isRefused = one.error !== undefined && this.#isStopping && !this.#troubled.has(one.life);
  }

  /** The next request to somebody fails. */
  #fail(): void {
    const { telegram, feishu, model } = this.#world;
    this.#failures += 1;
    const kinds = ["529", "429", "500", "break-tool", "drop"];
    const what = this.#random(8);
    const kind = kinds[what];
    // Not more than one at a time: while nobody asks, they would pile up, and then all the tries of
    // one send would meet one. It would wait for ten minutes, and everybody behind it.
    for (const one of [telegram, feishu, model]) one.clearFailures();
    if (kind) model.fail(kind);
    else if (what < 7) telegram.fail({ kind: what === 5 ? "500" : "429", retryAfter: 1 });
    else feishu.fail({ kind: "500" });
  }

  // ---- What came of it ----

  #textsTo(conversation: string): string[] {
    const [platform, name = ""] = conversation.split(":");
    return this.#world[platform === "telegram" ? "telegram" : "feishu"].textsTo(name);
  }

  /** The answers of a conversation, as number and part; the others are not ours to count. */
  #answers(conversation: string): { number: number; part: number; mark: string }[] {
    return this.#textsTo(conversation).flatMap((one) => {
      const [, number, part, mark = ""] = /^re: m(\d+) (\d)\/\d §([^§]+)§/.exec(one) ?? [];
      return number ? [{ number: Number(number), part: Number(part), mark }] : [];
    });
  }

  #missing({ conversation, number, parts }: Said): number {
    const answers = this.#answers(conversation).filter((one) => one.number === number);
    return parts - new Set(answers.map(({ part }) => part)).size;
  }

  #quarantined(): (InboxFile & { name: string })[] {
    return readFolder<InboxFile>(this.#path("inbox"), /\.quarantined$/);
  }

  #isQuarantined({ conversation, number }: Said): boolean {
    const words = new RegExp(`m${number}\\b[^§]*§${conversation}§`);
    return this.#quarantined().some((entry) => words.test(entry.text));
  }

  report(): Report {
    const violations: string[] = [];
    const failed = this.#deadLetters();
    const twice = failed.filter(wasKilledTwice);
    const quarantined = this.#quarantined();
    this.#checkDeadLetters(failed, violations);
    this.#checkQuarantine(quarantined, violations);
    violations.push(...this.#parallelSends.map((place) => `two sends under way: ${place}`));
    const lost = this.#lost();
    violations.push(...lost.map((one) => `lost: ${one}`));
    const repeats = this.#repeats(violations);
    const disorder = this.#disorder();
    violations.push(...disorder);
    const foreign = this.#leaks();
    violations.push(...foreign);
    const { log } = this.#world.model;
    const invalid = wrongIn(log);
    violations.push(...invalid.map((problem) => `invalid: ${problem}`));
    const mixed = log.filter(({ request }) => marksIn(JSON.stringify(request)).size > 1);
    violations.push(...mixed.map(({ request }) => `text of another: ${lastText(request)}`));
    const tools = this.#toolsRunAgain();
    violations.push(...tools.map((line) => `a tool ran again: ${line}`));
    const jobs = this.#checkJobs(violations);
    const programs = this.#checkSends(violations);
    const apologies = this.#apologies().length;
    violations.push(...this.#failedTurns.map((line) => `a turn failed without trouble: ${line}`));
    const off = this.#output.match(/The job \w+ is off/g) ?? [];
    violations.push(...off);
    const figures = {
      kills: this.#kills - 1, // the last one was at rest
      "orderly stops": this.#stops,
      "disks full for 2 s": this.#fullDisks,
      "outages of the provider": this.#outages,
      "minutes on its clock": Math.round(this.#world.clock.ahead / 60_000),
      "kills with something open": this.#killsAtWork,
      "messages on Telegram and Feishu": this.said.length,
      "lines in the terminal": this.#linesTyped,
      "sends over WebSocket": this.#sent.length,
      "failures ordered": this.#failures,
      "requests to the model": log.length,
      "summaries made": log.filter(({ request }) => lastText(request).startsWith("Summary so"))
        .length,
      "kills within a send": [...this.#killsWithinSend.values()].reduce((sum, one) => sum + one, 0),
      ...jobs,
      ...programs,
      "tools run": this.#toolLines().length,
      "given up after two kills in one send": twice.length,
      "quarantined after three attempts": quarantined.length,
      "turns that failed for good": apologies,
      lost: lost.length,
      reordered: disorder.length,
      repeated: repeats,
      "text of another session": mixed.length + foreign.length,
      "invalid requests": invalid.length,
      "tools run again": tools.length,
      "jobs switched off": off.length,
    };
    return { figures, violations };
  }

  #deadLetters(): QueueFile[] {
    return readFolder<QueueFile>(this.#path("delivery/failed"));
  }

  /** Only two kills in one send may make a dead letter, and the log has to name it. */
  #checkDeadLetters(failed: QueueFile[], violations: string[]): void {
    for (const one of failed.filter((delivery) => !wasKilledTwice(delivery))) {
      violations.push(`failed: ${one.id}: ${one.error}`);
    }
    const isLogged = (id: string) => this.#output.includes(`${id}: not sent for good`);
    const replies = new Set(failed.map(({ id }) => id.replace(/#\d+$/, "")));
    for (const replyId of replies) {
      const parts = failed.filter(({ id }) => id.startsWith(replyId));
      if (parts.some(({ id }) => isLogged(id))) continue;
      violations.push(`given up without a word: ${replyId}`);
    }
  }

  /** Every quarantined message is still there, and the log names it. */
  #checkQuarantine(quarantined: { name: string }[], violations: string[]): void {
    for (const { name } of quarantined) {
      const file = name.replace(/\.[\da-f]{8}\.quarantined$/, "");
      const words = `/inbox/${file} is quarantined (renamed to ${name}): `;
      if (this.#output.includes(words)) continue;
      violations.push(`quarantined without a word: ${name}`);
    }
    const count = this.#output.match(/\/inbox\/\d+\.json is quarantined/g)?.length ?? 0;
    if (count === quarantined.length) return;
    violations.push(`${count} quarantined, but ${quarantined.length} are there`);
  }

  /**
   * What was said and has no whole answer, but for what the program said it gave up, in the log or
   * to the person.
   */
  #lost(): string[] {
    const failed = this.#deadLetters();
    const open = this.said.filter((one) => this.#missing(one) > 0);
    const ids = open.length > 0 ? this.#idsInSessions() : new Map<string, string>();
    const told = new Set([...this.#ids("delivery"), ...failed.map(({ id }) => id)]);
    return open.flatMap((one) => {
      const missing = this.#missing(one);
      const id = ids.get(`m${one.number} §${one.conversation}§`);
      // The apology for a message has the id of this message in its own, so it counts for no other.
      if (told.has(`${id}!#0`) || this.#isQuarantined(one)) return [];
      const mark = new RegExp(`^re: m${one.number} \\d/\\d §${one.conversation}§`);
      const gone = failed.filter((delivery) => mark.test(delivery.text)).length;
      const name = `${one.conversation} m${one.number}`;
      return missing > gone ? [`${name}: ${missing - gone} of ${one.parts} parts`] : [];
    });
  }

  /** The ids of the messages that are in sessions, each by its number and mark. */
  #idsInSessions(): Map<string, string> {
    const root = this.#path("sessions");
    const names = existsSync(root) ? readdirSync(root, { recursive: true }).map(String) : [];
    const logs = names.filter((name) => name.endsWith(".jsonl"));
    const records = logs.flatMap((name) => readLines<SessionLine>(join(root, name)));
    return new Map(
      records.flatMap(({ inboxId, message }): [string, string][] => {
        // The block of context before it may hold a note with another number.
        const said = message?.content.find(({ text = "" }) => !text.startsWith("<context>"));
        const [, name, mark] = /(m\d+)\b[^§]*(§[^§]+§)/.exec(said?.text ?? "") ?? [];
        return inboxId && name && mark ? [[`${name} ${mark}`, inboxId]] : [];
      }),
    );
  }

  /** More of one text than there were kills within its send is wrong. Gives how many repeats. */
  #repeats(violations: string[]): number {
    let repeats = 0;
    for (const conversation of this.#chats()) {
      const [platform = "", name = ""] = conversation.split(":");
      const chat = this.#world[platform === "telegram" ? "telegram" : "feishu"].chatId(name);
      for (const [words, count] of this.#timesSent(conversation)) {
        const allowed = this.#killsWithinSend.get(`${platform} ${chat} ${words}`) ?? 0;
        repeats += count - 1;
        if (count - 1 <= allowed) continue;
        const beginning = words.slice(0, 40);
        violations.push(`${conversation}: ${beginning}: ${count} times, ${allowed} kills`);
      }
    }
    return repeats;
  }

  /** How often each answer was sent to a chat. */
  #timesSent(conversation: string): Map<string, number> {
    const times = new Map<string, number>();
    const answers = this.#textsTo(conversation).filter((words) => words.startsWith("re: "));
    for (const words of answers) times.set(words, (times.get(words) ?? 0) + 1);
    return times;
  }

  /** The conversations on Telegram and Feishu. */
  #chats(): string[] {
    return [...this.#counts.keys()].filter((conversation) => !conversation.startsWith("ws:"));
  }

  /**
   * A repeat follows its first time at once; apart from that numbers and parts grow. An event of
   * Feishu that nobody took at first came later than it was said, so it is left out.
   */
  #disorder(): string[] {
    return [...this.#counts.keys()].flatMap((conversation) => {
      const late = this.said.filter(({ delivery }) => {
        return delivery !== undefined && delivery.attempts[0]?.status !== 200;
      });
      const left = new Set(
        late.filter((one) => one.conversation === conversation).map(({ number }) => number),
      );
      const answers = this.#answers(conversation);
      const inPlace = answers.filter(({ number }) => !left.has(number));
      const wrong = inPlace.filter(({ number, part }, index) => {
        const before = inPlace[index - 1] ?? { number: 0, part: 0 };
        return number < before.number || (number === before.number && part < before.part);
      });
      // The parts of one that came late are in order all the same, and nothing is between them.
      const torn = answers.filter(({ number, part }, index) => {
        const before = answers[index - 1];
        return part === 2 && before?.number !== number;
      });
      return [...wrong, ...torn].map(({ number, part }) => `${conversation}: m${number} ${part}`);
    });
  }

  /** What arrived with the mark of another conversation. */
  #leaks(): string[] {
    return [...this.#counts.keys(), ...JOB_IDS.map((id) => `cron:${id}`)].flatMap((place) => {
      const texts = this.#textsAt(place);
      const strange = texts.filter((words) => [...marksIn(words)].some((mark) => mark !== place));
      return strange.map((words) => `in ${place}: ${words.slice(0, 60)}`);
    });
  }

  /** All that arrived in a chat, at a program or from a job. */
  #textsAt(place: string): string[] {
    if (place.startsWith("cron:")) return this.#textsOfJob(place.slice(5) as JobId); // see #leaks
    if (!place.startsWith("ws:")) return this.#textsTo(place);
    const sends = this.#sent.filter(({ program }) => place === `ws:${program}`);
    return sends.flatMap(({ answer = "", deltas }) => [answer, deltas]);
  }

  #apologies(): string[] {
    const texts = this.#chats().flatMap((conversation) => this.#textsTo(conversation));
    return texts.filter(isApology);
  }

  #toolLines(): string[] {
    const folder = this.#path("memory");
    const days = existsSync(folder) ? readdirSync(folder) : [];
    const notes = days.flatMap((day) => readLines<object>(join(folder, day)));
    const noted = notes.flatMap((note) => /noted m\d+ §[^§]+§/.exec(JSON.stringify(note)) ?? []);
    const log = join(this.#folder, "ran.log");
    const ran = existsSync(log) ? readFileSync(log, "utf8").trim().split("\n") : [];
    return [...noted.map(String), ...ran];
  }

  #toolsRunAgain(): string[] {
    const lines = this.#toolLines();
    return lines.filter((line, index) => lines.indexOf(line) !== index);
  }

  // ---- Jobs ----

  #textsOfJob(id: JobId): string[] {
    return this.#world[JOBS[id].platform].textsTo(id);
  }

  /** What the files say about the runs of jobs, by the ids of their messages. */
  #runsOnDisk(): RunsOnDisk {
    const processed = readProcessed(this.#path("inbox"));
    return {
      ends: new Map(processed.map(({ id, at }) => [id, Date.parse(at)])),
      quarantined: new Set(this.#quarantined().map(({ id }) => id)),
      delivered: new Set(this.#ids("delivery")),
    };
  }

  #checkJobs(violations: string[]): Record<string, number> {
    const onDisk = this.#runsOnDisk();
    const lost = this.#lostRuns(onDisk);
    let [runs, again, repeated] = [0, 0, 0];
    for (const id of JOB_IDS) {
      const due = dueTimes(id, onDisk);
      runs += due.length;
      const ids = due.map((at) => runId(id, at));
      lost.push(...missedTimes(id, due, onDisk), ...this.#undelivered(ids, onDisk));
      repeated += this.#repeatsOfJob(id, ids, onDisk, violations);
      again += JOBS[id].event ? 0 : this.#answeredAgain(id, ids, violations);
    }
    violations.push(...lost);
    return {
      "runs of jobs": runs,
      "due times lost": lost.length,
      "runs again though none was under way": again,
      "messages of jobs repeated": repeated,
    };
  }

  /** Runs of which the program knew, and which it neither kept nor finished. */
  #lostRuns({ ends, quarantined }: RunsOnDisk): string[] {
    const open = [...this.#runs.keys()].filter((id) => !ends.has(id) && !quarantined.has(id));
    return [
      ...this.#vanishedRuns.map((id) => `marked as begun, and not kept: ${id}`),
      ...open.map((id) => `a run that was in the inbox was not done: ${id}`),
    ];
  }

  #undelivered(ids: string[], { delivered, quarantined }: RunsOnDisk): string[] {
    const failed = new Set(this.#deadLetters().map(({ id }) => id));
    const unsent = ids.filter((id) => !delivered.has(`${id}#0`) && !quarantined.has(id));
    const lost = unsent.filter((id) => !failed.has(`${id}#0`));
    return lost.map((id) => `${id} was done, and is not delivered`);
  }

  /** How much more was sent than was marked as delivered; a kill within the send explains one. */
  #repeatsOfJob(id: JobId, ids: string[], onDisk: RunsOnDisk, violations: string[]): number {
    const { platform } = JOBS[id];
    const sent = this.#textsOfJob(id).filter((words) => marksIn(words).has(`cron:${id}`));
    const repeats = sent.length - ids.filter((one) => onDisk.delivered.has(`${one}#0`)).length;
    const place = `${platform} ${this.#world[platform].chatId(id)} ${sent[0] ?? ""}`;
    const allowed = this.#killsWithinSend.get(place) ?? 0;
    if (repeats > allowed) violations.push(`${id}: sent ${repeats} too often, ${allowed} kills`);
    if (repeats < 0) violations.push(`${id}: ${-repeats} were marked as sent and not sent`);
    return repeats;
  }

  /** A turn that was answered is answered once more only if a kill came before it was stored. */
  #answeredAgain(id: JobId, ids: string[], violations: string[]): number {
    const answers = this.#world.model.log.filter(({ request, error, aborted }) => {
      return !error && !aborted && lastText(request).includes(`§cron:${id}§`);
    });
    const kills = ids.reduce((sum, one) => sum + (this.#runs.get(one) ?? 0), 0);
    const unexplained = answers.length - ids.length - kills;
    if (unexplained <= 0) return 0;
    violations.push(`${id}: ${answers.length} answers for ${ids.length} runs, ${kills} kills`);
    return unexplained;
  }

  // ---- Sends ----

  /**
   * Nobody waits for the answer to a send after a kill. But what was answered must be the right
   * thing, and in order.
   */
  #checkSends(violations: string[]): Record<string, number> {
    for (const send of this.#sent) violations.push(...this.#problemsOf(send));
    const refused = this.#sent.filter(({ isRefused }) => isRefused).length;
    if (refused > this.#refusals) {
      violations.push(`${refused} sends failed in a stop, which has refused ${this.#refusals}`);
    }
    const answered = this.#sent.filter(({ answer }) => answer);
    const newest = new Map<string, number>();
    for (const { program, number } of answered) {
      if (number < (newest.get(program) ?? 0)) {
        violations.push(`send ${program} m${number}: out of order`);
      }
      newest.set(program, number);
    }
    return { "sends answered": answered.length };
  }

  #problemsOf({ life, program, number, answer, error, isRefused }: Sent): string[] {
    const found: string[] = [];
    if (error && !isRefused && !this.#troubled.has(life)) found.push(error);
    if (life === this.#lives && !answer) found.push("no answer");
    if (answer && answer !== `re: m${number} 1/1 §ws:${program}§`) found.push(answer.slice(0, 60));
    return found.map((problem) => `send ${program} m${number}: ${problem}`);
  }
}

interface RunsOnDisk {
  /** When each run that was processed ended, in ms. */
  ends: Map<string, number>;
  quarantined: Set<string>;
  /** Ids of deliveries: those of runs, with the number of the part. */
  delivered: Set<string>;
}

const runId = (id: JobId, at: number) => `cron:${id}:${new Date(at).toISOString()}`;

/** When the runs of a job were due, in order, in ms. */
function dueTimes(id: JobId, { ends, quarantined }: RunsOnDisk): number[] {
  const prefix = `cron:${id}:`;
  const ids = [...ends.keys(), ...quarantined].filter((one) => one.startsWith(prefix));
  return ids.map((one) => Date.parse(one.slice(prefix.length))).sort((a, b) => a - b);
}

/** Times between two runs for which there is no run although the one before had ended by then. */
function missedTimes(id: JobId, due: number[], { ends }: RunsOnDisk): string[] {
  const interval = JOBS[id].seconds * 1000;
  const missed = due.flatMap((at, index) => {
    const end = ends.get(runId(id, at)) ?? Infinity;
    const next = due[index + 1] ?? 0;
    const count = Math.max(0, Math.ceil((next - at) / interval) - 1);
    const between = Array.from({ length: count }, (_, i) => at + (i + 1) * interval);
    return between.filter((time) => end < time);
  });
  return missed.map((at) => `${id} was due at ${new Date(at).toISOString()} and did not run`);
}

const isApology = (words: string) => words.startsWith("I could not");

const wasKilledTwice = ({ error }: QueueFile) =>
  error?.startsWith("the program ended twice") === true;

const marksIn = (words: string) =>
  new Set([...words.matchAll(/§([^§\s]+)§/g)].map(([, mark]) => mark));
