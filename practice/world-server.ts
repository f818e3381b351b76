/**
 * The practice world as a server: the model, the platforms, and the commands of the tools that use
 * it. world-process.ts runs one in the background; tests run one in their own process.
 */

import { randomBytes, randomUUID } from "node:crypto";
import { createServer, type Server, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { sendJson } from "./exchange.ts";
import { type FakeFeishu, startFeishu } from "./feishu.ts";
import { IdleWatch, type Timers } from "./idle.ts";
import { isAlive } from "./is-alive.ts";
import { type PracticeModel, startModel } from "./model.ts";
import { type FakeTelegram, startTelegram } from "./telegram.ts";
import { CodedError, closeServer, type Fields, handleControl, listen } from "./web.ts";
import { FIRST_WITH, settingsFor } from "./world.ts";

/**
 * The delay between two events of a stream, in ms, so that people see the text grow and can stop
 * it.
 */
const EVENT_DELAY = 20;

/** A world ends by itself when nothing has been attached to it for ten minutes. */
const IDLE_TIME = 10 * 60_000;

/** How often the world looks whether a section's HTTP server listens, in ms. */
const READY_INTERVAL = 200;

/** The section that runs, as the tools see it. */
export interface RunningSection {
  /** For people: "s04 (en)". */
  user: string;
  number: number;
  /** The process of the section itself. It is unknown until `npm start` has started it. */
  pid?: number;
}

/** What a world says about itself. */
export interface WorldStatus {
  id: string;
  pid: number;
  model: string;
  telegram: string;
  feishu: string;
  section?: RunningSection;
  /** The gateway of the section that runs, with its token. */
  gateway?: string;
}

export interface WorldOptions {
  timers?: Timers;
  /** Is called when the world should end: by a command, or because nobody uses it. */
  onEnd?(): void;
}

/** A section with the connection of its `npm start`, which lasts as long as that lives. */
interface Seat extends RunningSection {
  launcher: ServerResponse;
}

/** Starts a world for the checkout in this folder. */
export async function startWorld(root: string, options: WorldOptions = {}): Promise<PracticeWorld> {
  const model = await startModel({ noSdkRetry: false });
  model.slow(EVENT_DELAY);
  const telegram = await startTelegram({ firstMessage: Math.floor(Date.now() / 1000) });
  const feishu = await startFeishu();
  const world = new PracticeWorld(root, { model, telegram, feishu }, options);
  await world.listen();
  return world;
}

interface Parts {
  model: PracticeModel;
  telegram: FakeTelegram;
  feishu: FakeFeishu;
}

export class PracticeWorld {
  readonly id = randomUUID();
  url = "";
  readonly model: PracticeModel;
  readonly telegram: FakeTelegram;
  readonly feishu: FakeFeishu;
  private readonly root: string;
  private readonly server: Server;
  private readonly idle: IdleWatch;
  private readonly token = randomBytes(16).toString("hex");
  private readonly onEnd: () => void;
  private port = 0;
  private seat: Seat | undefined;

  constructor(root: string, { model, telegram, feishu }: Parts, options: WorldOptions) {
    this.root = root;
    this.model = model;
    this.telegram = telegram;
    this.feishu = feishu;
    this.onEnd = options.onEnd ?? (() => {});
    this.server = createServer((request, response) => {
      // A page in a browser could ask for an address as for an image, with a GET.
      const isAllowed = request.method === "POST" || request.url === "/_practice/status";
      if (isAllowed) void handleControl(request, response, this.controls);
      else sendJson(response, 405, { error: "POST it" });
    });
    const isUsed = (): boolean => this.section() !== undefined;
    this.idle = new IdleWatch(IDLE_TIME, isUsed, this.onEnd, options.timers);
    for (const server of [this.server, model.server, telegram.server, feishu.server]) {
      server.on("connection", (socket) => {
        this.idle.attach(socket);
        socket.once("close", () => this.idle.detach(socket));
      });
    }
  }

  async listen(): Promise<void> {
    this.url = await listen(this.server);
  }

  async close(): Promise<void> {
    const servers = [this.model, this.telegram, this.feishu];
    await Promise.all([closeServer(this.server), ...servers.map((server) => server.close())]);
    this.idle.stop();
  }

  status(): WorldStatus {
    const section = this.section();
    const { model, telegram, feishu } = this;
    const hasGateway = section && section.number >= FIRST_WITH.gateway;
    return {
      id: this.id,
      pid: process.pid,
      ...{ model: model.url, telegram: telegram.url, feishu: feishu.url },
      section: section && { user: section.user, number: section.number, pid: section.pid },
      gateway: hasGateway ? `ws://127.0.0.1:${this.port}/?token=${this.token}` : undefined,
    };
  }

  /** The section that has the workspace. It may outlive the `npm start` that has started it. */
  private section(): Seat | undefined {
    const { seat } = this;
    if (!seat) return undefined;
    const isRunning = seat.pid === undefined ? false : isAlive(seat.pid);
    return isRunning || !seat.launcher.destroyed ? seat : undefined;
  }

  /**
   * Gives a section the workspace and its settings. The response stays open; while it is, and while
   * the section's process lives, no other section gets them.
   */
  private async take({ user, number }: Fields, response: ServerResponse): Promise<void> {
    const other = this.section();
    if (other) throw new CodedError("busy", { user: other.user, pid: other.pid ?? 0 });
    this.seat = { user: String(user), number: Number(number), launcher: response };
    const seat = this.seat;
    this.port = await freePort(this.port);
    const { token, port, telegram, feishu } = this;
    this.feishu.webhook = `http://127.0.0.1:${port}/feishu/events`;
    const workspace = join(this.root, ".practice", "workspace");
    const world = { model: this.model.url, telegram, feishu, port, token, workspace };
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.write(`${JSON.stringify(settingsFor(seat.number, world))}\n`);
    if (seat.number >= FIRST_WITH.channels) void this.redeliverWhenReady(seat);
  }

  /** `npm start` says which process the section is. */
  private setProcess({ pid }: Fields): void {
    if (this.seat) this.seat.pid = Number(pid);
  }

  private kill(signal: NodeJS.Signals): RunningSection | undefined {
    const { section } = this.status();
    if (!section?.pid) return undefined;
    process.kill(section.pid, signal);
    // No process survives SIGKILL, but where nobody waits for an orphan, it would seem to live on.
    if (signal === "SIGKILL" && this.seat) this.seat.pid = undefined;
    return section;
  }

  private end(): { section?: RunningSection } {
    const section = this.kill("SIGTERM");
    setImmediate(this.onEnd); // after the answer
    return { section };
  }

  /**
   * The real Feishu tries an event again after 15 seconds, and then after five minutes. Nobody
   * should have to wait for that in practice, so what was not taken is posted as soon as the section
   * listens.
   */
  private async redeliverWhenReady(seat: Seat): Promise<void> {
    while (this.section() === seat) {
      if (await isListening(this.port)) return await this.feishu.flush();
      await wait(READY_INTERVAL, undefined, { ref: false });
    }
  }

  private readonly controls = {
    status: () => this.status(),
    take: (fields: Fields, response: ServerResponse) => this.take(fields, response),
    running: (fields: Fields) => this.setProcess(fields),
    kill: () => ({ section: this.kill("SIGKILL") }),
    end: () => this.end(),
  };
}

/** A port that is free at this moment: this one, or any. */
async function freePort(wanted: number): Promise<number> {
  const server = createServer();
  const url = await listen(server, wanted).catch(() => listen(server));
  await closeServer(server);
  return Number(new URL(url).port);
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => resolve(true));
    socket.once("error", () => resolve(false));
    for (const event of ["connect", "error"]) socket.once(event, () => socket.destroy());
  });
}
