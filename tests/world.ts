/**
 * A section from s04 on with all that it talks to: the model, a fake Telegram and a fake Feishu.
 *
 * Two ways to use it. `openWorld` starts the section as a process, as people run it. `platforms`
 * and `appOf` are for cases that import it. Whatever people write here carries a mark of its
 * conversation, and after each test no request may have been shown the mark of another one.
 */

import { cpSync, existsSync, readdirSync, readFileSync, watch } from "node:fs";
import { createServer, type IncomingHttpHeaders } from "node:http";
import { join } from "node:path";
import { afterEach, vi } from "vitest";
import {
  type Delivery,
  type FakeFeishu,
  type FeishuOptions,
  type SayOptions as FeishuSay,
  startFeishu,
} from "../practice/feishu.ts";
import type { LoggedRequest, PracticeModel, PracticeRequest, Scripted } from "../practice/model.ts";
import {
  type FakeTelegram,
  type Said,
  startTelegram,
  type SayOptions as TelegramSay,
} from "../practice/telegram.ts";
import { closeServer, listen } from "../practice/web.ts";
import { feishuSettings, telegramSettings } from "../practice/world.ts";
import {
  blocks,
  load,
  Program,
  practice,
  type SectionFile,
  type Settings,
  type StartOptions,
  say,
  settings,
  start,
  startInTerminal,
  temporaryFolder,
  withoutContext,
} from "./helper.ts";

const ROOT = join(import.meta.dirname, "..");

// A case of a few processes takes seconds; on a machine that is busy with other things, longer.
vi.setConfig({ testTimeout: 60_000 });

export type S04 = typeof import("../sessions/en/s04_channels.ts");
export type S05 = typeof import("../sessions/en/s05_gateway.ts");
export type S06 = typeof import("../sessions/en/s06_intelligence.ts");
/** The newest one that a case of these files asks something of. */
type S09 = typeof import("../sessions/en/s09_resilience.ts");

/** A section from s04 on, imported. */
export async function load04(section: SectionFile, given = settings()): Promise<S04> {
  return (await load("s03", section, given)) as unknown as S04; // it grows: what s04 has, it has
}

/** A section from s05 on, imported. */
export async function load05(section: SectionFile, given = settings()): Promise<S05> {
  return (await load("s03", section, given)) as unknown as S05; // as above
}

/** A section from s06 on, imported. */
export async function load06(section: SectionFile, given = settings()): Promise<S06> {
  return (await load("s03", section, given)) as unknown as S06; // as above
}

// ---- Whose text is whose ----

const MARK = /§[\w.:-]+§/g;

/** A text that shows, wherever it turns up, which conversation it belongs to. */
export const marked = (conversation: string, text: string) => `${text} §${conversation}§`;
export const unmarked = (text: string) => text.replace(MARK, "").replace(/ +$/gm, "").trim();

/** The requests that show the text of more than one conversation. */
export function mixedUp(log: LoggedRequest[]): string[] {
  return log.flatMap(({ request }) => {
    const marks = new Set(JSON.stringify(request.messages ?? []).match(MARK) ?? []);
    return marks.size > 1 ? [[...marks].sort().join(" and ")] : [];
  });
}

/** The last thing that a person said in a request. */
export function lastText(request: PracticeRequest): string {
  const said = request.messages.filter(({ role }) => role === "user").flatMap(blocks);
  return withoutContext(said).reduce(
    (text, block) => (block.type === "text" ? block.text : text),
    "",
  );
}

/** Answers "re:" and the last text; a text with "!fail" gets an error. */
export function echo(request: PracticeRequest): Scripted {
  const heard = lastText(request);
  if (!heard.includes("!fail")) return say(`re: ${heard}`);
  return { error: { status: 400, type: "invalid_request_error", message: "as ordered" } };
}

/** A model that answers with `echo`, unless the test assigns another function to `brain`. */
export async function echoModel(): Promise<PracticeModel & { brain: typeof echo }> {
  const model = Object.assign(await practice({ rules: false }), { brain: echo });
  model.script(...new Array(2_000).fill((request: PracticeRequest) => model.brain(request)));
  return model;
}

// ---- Clean-up after each test ----

const closers: (() => unknown)[] = [];
const logs: LoggedRequest[][] = [];

/** Calls a function after the test, the last registered one first. */
export function afterwards(close: () => unknown): void {
  closers.push(close);
}

/** Fails the test if a request in this log shows texts of two conversations. */
export function watchMarks(log: LoggedRequest[]): void {
  logs.push(log);
}

afterEach(async () => {
  vi.doUnmock("node:timers/promises");
  for (const close of closers.splice(0).reverse()) await close();
  const mixed = logs.splice(0).flatMap(mixedUp);
  if (mixed.length > 0) throw new Error(`Requests with text of two sessions: ${mixed.join(", ")}`);
});

// ---- For cases that import a section ----

/** Who may write to the bot. mallory may not. */
const ADMITTED = ["alice", "bob", "family", "club", "old"];

export interface Platforms {
  telegram: FakeTelegram;
  feishu: FakeFeishu;
  given: Settings;
}

export async function platforms(feishuOptions: FeishuOptions = {}): Promise<Platforms> {
  // A redelivery comes when a case asks for it, by `flush` or `again`.
  const feishu = await startFeishu({ redeliverAfter: [], ...feishuOptions });
  const telegram = await startTelegram();
  telegram.group("old", { type: "group" });
  afterwards(() => Promise.all([telegram.close(), feishu.close()]));
  const given = {
    ...telegramSettings(telegram),
    ...feishuSettings(feishu),
    TELEGRAM_ALLOWED_CHATS: ADMITTED.map((name) => telegram.chatId(name)).join(", "),
  };
  return { telegram, feishu, given };
}

/** An HTTP server of the test in front of a section's ROUTES; gives its address. */
export async function serveRoutes(section: S04): Promise<string> {
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const headers: IncomingHttpHeaders = request.headers;
    try {
      const route = section.ROUTES[`${request.method} ${request.url}`];
      const answer = await route?.(Buffer.concat(chunks), headers);
      response.writeHead(answer?.status ?? 404).end(JSON.stringify(answer?.body));
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  afterwards(() => closeServer(server));
  return listen(server);
}

/** A channel that keeps in `sent` what it is given to send. */
/** The file in which a Spool keeps the ids that it has processed today. */
export const processedFile = (dir: string) =>
  join(dir, "processed", `${new Date().toISOString().slice(0, 10)}.jsonl`);

/** The lines of all these files of a Spool. */
export function processedLines(dir: string): string[] {
  const folder = join(dir, "processed");
  const files = existsSync(folder) ? readdirSync(folder).sort() : [];
  const lines = files.flatMap((name) => readFileSync(join(folder, name), "utf8").split("\n"));
  return lines.filter(Boolean);
}

export function silentChannel(name = "telegram") {
  const sent: { to: string; text: string }[] = [];
  return {
    name,
    limit: 4096,
    sent,
    start: async () => {},
    send: async (to: string, text: string) => void sent.push({ to, text }),
    stop: async () => {},
  };
}

export type App04 = Parameters<S04["accept"]>[0];
export type App05 = Parameters<S05["accept"]>[0];
export type App06 = Parameters<S06["accept"]>[0];
type App09 = Parameters<S09["accept"]>[0];

/**
 * The app as `main` makes it, for tests that follow the path of a message without a process.
 * Whoever adds a part to `App` adds it here, too.
 */
export function appOf(
  section: S04,
  folder = temporaryFolder(),
  channels = new section.ChannelManager(),
): App04 {
  const at = (name: string) => join(folder, name);
  const app: App04 = {
    store: new section.SessionStore(at("sessions")),
    key: "agent:luna:cli:direct:owner",
    inbox: new section.Inbox(at("inbox")),
    channels,
  };
  const has = section as unknown as Partial<S09>; // an earlier section lacks some of these exports
  const workspace = process.env.CLAW0_WORKSPACE ?? "";
  if (has.AGENTS && has.AgentManager && has.BINDINGS && has.BindingTable && has.GatewayServer) {
    const agents = new has.AgentManager(has.AGENTS.map((agent) => [agent.id, agent]));
    const bindings = new has.BindingTable(has.BINDINGS);
    Object.assign(app, { agents, bindings, gateway: new has.GatewayServer("token") });
  }
  if (has.MemoryStore) {
    const files = ["MEMORY.md", "USER.md"].map((name) => join(workspace, name));
    Object.assign(app, { memory: new has.MemoryStore(at("memory"), files) });
  }
  if (has.ActiveTurns && has.CronService && has.HeartbeatRunner) {
    const cron = new has.CronService(workspace, () => true);
    const heartbeat = new has.HeartbeatRunner(at("heartbeat.json"));
    Object.assign(app, { activeTurns: new has.ActiveTurns(), cron, heartbeat });
  }
  if (has.DeliveryQueue && has.DeliveryRunner) {
    const queue = new has.DeliveryQueue(at("delivery"));
    const theirs = channels as unknown as App09["channels"]; // the class of the same section
    const delivery = new has.DeliveryRunner(queue, theirs);
    Object.assign(app, { queue, delivery });
  }
  if (has.ProfileManager && has.ResilienceRunner) {
    const profile = { name: "ANTHROPIC_API_KEY", key: "test-key" };
    const profiles = new has.ProfileManager([profile], at("profiles.json"));
    const resilience = new has.ResilienceRunner(profiles, []);
    Object.assign(app, { profiles, resilience, simulatedFailures: new Map() });
  }
  return app;
}

/** The same, for a section that is s06 or later. */
export function appOf06(section: S06, folder?: string): App06 {
  return appOf(section as unknown as S04, folder) as unknown as App06; // as above
}

/** Resolves when all replies were sent. From s08 on that happens after the turn, by a queue. */
export async function delivered(app: object): Promise<void> {
  const { queue } = app as Partial<App09>; // if it is s08 or later, it has one
  while (queue && queue.size > 0) await new Promise((resolve) => setImmediate(resolve));
}

/** The same, for a section that is s05 or later. */
export function appOf05(section: S05, folder?: string, channels?: App05["channels"]): App05 {
  const early = section as unknown as S04; // what s04 has, it has
  return appOf(early, folder, channels as unknown as App04["channels"]) as unknown as App05;
}

let messages = 0;

/** A message as a channel passes it to `accept`. */
export function inbound(more: Partial<ReturnType<typeof message>> = {}) {
  return { ...message(), ...more };
}

/** An inbox in a folder, with an album in two parts whose turn has begun. */
export function begunAlbum(Inbox: S04["Inbox"], dir: string) {
  const inbox = new Inbox(dir);
  const album = ["p1", "p2"].map((id) => inbound({ id, part: "album" }));
  for (const part of album) inbox.add(part);
  const parts = inbox.pending();
  inbox.countAttempt(parts);
  return { inbox, parts };
}

function message() {
  messages += 1;
  return {
    id: `telegram:123456:1001:${messages}`,
    channel: "telegram",
    accountId: "123456",
    peerId: "1001",
    senderId: "1001",
    guildId: undefined as string | undefined, // which most messages lack
    isGroup: false,
    text: `text ${messages}`,
    media: [] as { kind: string; id: string }[], // empty, but not of nothing
    at: 1_767_600_000_000,
    part: undefined as string | undefined, // as above
    senderName: undefined as string | undefined, // as above
    quoted: undefined as string | undefined, // as above
    attempts: undefined as number | undefined, // as above
    sessionKey: "agent:luna:telegram:direct:1001",
    agentId: "luna",
  };
}

// ---- The section as a process ----

interface WorldOptions {
  /** Which platforms it is set up for; both, unless it says otherwise. */
  telegram?: boolean;
  feishu?: boolean;
  /** Runs with --serve. */
  serve?: boolean;
  /** Runs in a terminal, so many columns wide. */
  columns?: number;
  /** How else it is started. */
  start?: StartOptions;
  settings?: Settings;
  /** What the start waits for in the output; without it, until the section is ready for a line. */
  until?: string | RegExp;
  workspace?: string;
  /** Is called before the section starts. */
  prepare?(world: World): void | Promise<void>;
}

/** Starts the model, the platforms and the section, and waits until they are ready. */
export async function openWorld(section: SectionFile, options: WorldOptions = {}): Promise<World> {
  const model = await echoModel();
  watchMarks(model.log);
  const world = new World(section, model, await platforms(), options);
  afterwards(async () => {
    world.program.kill();
    await world.program.end();
  });
  await options.prepare?.(world);
  await world.start();
  return world;
}

export class World {
  readonly model: Awaited<ReturnType<typeof echoModel>>;
  readonly telegram: FakeTelegram;
  readonly feishu: FakeFeishu;
  readonly workspace: string;
  readonly settings: Settings;
  readonly state: string;
  program: Program;
  port = 0;
  readonly #section: SectionFile;
  readonly #options: WorldOptions;

  constructor(
    section: SectionFile,
    model: Awaited<ReturnType<typeof echoModel>>,
    { telegram, feishu, given }: Platforms,
    options: WorldOptions,
  ) {
    this.#section = section;
    this.#options = options;
    this.model = model;
    this.telegram = telegram;
    this.feishu = feishu;
    this.workspace = options.workspace ?? freshWorkspace();
    this.state = join(this.workspace, ".state");
    const off: Settings = {};
    if (options.telegram === false) off.TELEGRAM_BOT_TOKEN = "";
    if (options.feishu === false) off.FEISHU_APP_ID = "";
    const paths = { CLAW0_WORKSPACE: this.workspace };
    this.settings = settings(model, { ...given, ...off, ...paths, ...options.settings });
    this.program = new Program(() => notStarted);
    this.program.ended(0);
  }

  /** Starts the section, and waits until it is ready. */
  async start(more: Settings = {}): Promise<Program> {
    const { columns, serve, start: how } = this.#options;
    const env = { ...this.settings, ...more };
    this.program = columns
      ? startInTerminal(this.#section, env, columns)
      : start(this.#section, env, { words: serve ? ["--serve"] : [], ...how });
    await this.#ready(env);
    const [, port] = /http: listening on 127\.0\.0\.1:(\d+)/.exec(this.program.text) ?? [];
    this.port = Number(port ?? 0);
    this.feishu.webhook = `http://127.0.0.1:${port ?? 9}/feishu/events`;
    return this.program;
  }

  async #ready(env: Settings): Promise<void> {
    const { until, serve } = this.#options;
    if (until) {
      await this.program.until(until);
    } else if (serve) {
      const channels = [env.TELEGRAM_BOT_TOKEN, env.FEISHU_APP_ID].filter(Boolean);
      for (const _ of channels) await this.program.until(/(telegram|feishu): ready/);
    } else {
      await this.program.prompt();
    }
  }

  /** Kills the program with SIGKILL and waits until it has ended. */
  async kill(): Promise<void> {
    this.program.kill("SIGKILL");
    await this.program.end();
  }

  /** Kills the program and starts it again on the same workspace. */
  async restart(more?: Settings): Promise<Program> {
    await this.kill();
    return this.start(more);
  }

  /** The address of the gateway with its token, which the section may have made itself. */
  get gateway(): string {
    const kept = join(this.workspace, ".state", "gateway-token");
    const token = this.settings.GATEWAY_TOKEN || readFileSync(kept, "utf8");
    return `ws://127.0.0.1:${this.port}/?token=${token}`;
  }

  // ---- What people do and see; all of it with the mark of the conversation ----

  telegramSays(person: string, text: string, options: TelegramSay = {}): Said {
    return this.telegram.say(person, marked(place("telegram", person, options), text), options);
  }

  feishuSays(person: string, text: string, options: FeishuSay = {}): Delivery {
    return this.feishu.say(person, marked(place("feishu", person, options), text), options);
  }

  /** Types a line in the terminal; gives what is printed up to the next prompt. */
  async types(line: string): Promise<string> {
    return unmarked(await this.program.ask(marked("terminal", line)));
  }

  /** The next answer on Telegram. */
  async telegramHears(chat: string): Promise<string> {
    return unmarked((await this.telegram.nextSent(chat)).text);
  }

  async feishuHears(chat: string): Promise<string> {
    return unmarked((await this.feishu.nextSent(chat)).text);
  }

  /** The requests that were about this text, oldest first. */
  requestsAbout(text: string): LoggedRequest[] {
    return this.model.log.filter(({ request }) => lastText(request).includes(text));
  }

  /** The names of the files of the inbox. */
  inboxFiles(): string[] {
    const folder = join(this.state, "inbox");
    return existsSync(folder) ? readdirSync(folder).filter((name) => name !== "processed") : [];
  }

  /**
   * Resolves when only `left` messages in the inbox are not answered yet, and the other answers
   * were sent. From s08 on an answer that is not sent yet is a file in the delivery queue.
   */
  async inboxDone(left = 0): Promise<void> {
    const folders = ["inbox", "delivery"].map((name) => join(this.state, name)).filter(existsSync);
    const waiting = (folder = "") =>
      existsSync(folder) ? readdirSync(folder).filter((name) => /^\d+\.json$/.test(name)) : [];
    const isDone = () => waiting(folders[0]).length <= left && waiting(folders[1]).length === 0;
    const watchers = folders.map((folder) => watch(folder));
    afterwards(() => watchers.map((watcher) => watcher.close()));
    await new Promise<void>((resolve) => {
      const check = () => {
        if (isDone()) resolve();
      };
      for (const watcher of watchers) watcher.on("change", check);
      check(); // they may be empty already
    });
    for (const watcher of watchers) watcher.close();
  }

  /** The messages in the inbox, with the number of attempts. */
  inboxEntries(): { id: string; text: string; sessionKey: string; attempts?: number }[] {
    const files = this.inboxFiles().filter((name) => name.endsWith(".json"));
    return files.map((name) => JSON.parse(readFileSync(join(this.state, "inbox", name), "utf8")));
  }
}

function place(platform: string, person: string, at: { group?: string; topic?: number }): string {
  return [platform, at.group ?? person, ...(at.topic ? [at.topic] : [])].join(":");
}

function freshWorkspace(): string {
  const folder = temporaryFolder();
  cpSync(join(ROOT, "workspace"), folder, {
    recursive: true,
    filter: (file) => !file.includes(".state"), // what somebody's own program has kept there
  });
  return folder;
}

/** Stands in for a program before the first start. */
const notStarted = { pid: undefined, write: () => {}, end: () => {}, kill: () => {} };
