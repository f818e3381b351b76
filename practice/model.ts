/**
 * The practice model: a server on loopback that speaks the Messages API, JSON and SSE.
 *
 * `POST /v1/messages` is what a section talks to. People turn the knobs of a running world with
 * `npm run practice`, which uses these addresses of the same server:
 *
 *   GET  /_practice/log           the requests so far, oldest first
 *   POST /_practice/fail {kind,…} the next requests fail: see orders.ts, and failures.ts for kinds
 *   POST /_practice/fail {}       no more failures
 *   POST /_practice/slow {ms}     a pause before every event of a stream; 0 ends it
 */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { PromptCache } from "./cache.ts";
import { Exchange, type LoggedRequest, readBody, sendError } from "./exchange.ts";
import { failure, MODEL_FAILURES } from "./failures.ts";
import { type Failure, Failures, keyNumber } from "./orders.ts";
import {
  countRequest,
  makeReply,
  type PracticeRequest,
  type Scripted,
  type StreamEvent,
  toEvents,
} from "./reply.ts";
import { answer } from "./rules.ts";
import { validate } from "./validate.ts";
import { closeServer, type Fields, listen, turnKnob } from "./web.ts";

export type { LoggedRequest } from "./exchange.ts";
export type { PracticeRequest, Scripted, ScriptedBlock } from "./reply.ts";

export interface ModelOptions {
  port?: number;
  /** Without a list, every key that is not empty is right. */
  keys?: string[];
  contextTokens?: number;
  /** false: only scripted answers; a request without one gets a 500 that says so. */
  rules?: boolean;
  /** Tells the SDK not to retry what failed (a dropped connection it retries all the same). */
  noSdkRetry?: boolean;
  /** The clock, for the log and for the age of what is in the prompt cache. */
  now?: () => number;
}

export interface Hold {
  waiting: Promise<LoggedRequest>;
  release(): void;
}

const LARGEST_BODY = 32 * 1024 * 1024;

type Script = Scripted | ((request: PracticeRequest) => Scripted);
type Slot = { arrived(entry: LoggedRequest): void; released: Promise<void> };

export async function startModel(options: ModelOptions = {}): Promise<PracticeModel> {
  const model = new PracticeModel(options);
  await model.listen(options.port ?? 0);
  return model;
}

export class PracticeModel {
  url = "";
  readonly log: LoggedRequest[] = [];
  private readonly server: Server;
  private readonly options: ModelOptions;
  private readonly cache = new PromptCache();
  private readonly scripts: Script[] = [];
  private readonly failures: Failures;
  private readonly slots: Slot[] = [];
  private pause = 0;
  private replies = 0;
  private underWay = 0;
  /** Who waits: streams for release(), callers of idle(). */
  private readonly held = new Set<() => void>();
  private readonly idlers = new Set<() => void>();

  constructor(options: ModelOptions) {
    this.options = options;
    this.failures = new Failures(MODEL_FAILURES, options.now);
    this.server = createServer((request, response) => void this.serve(request, response));
    // A person may let a held request wait for longer than Node's default of five minutes.
    this.server.requestTimeout = 0;
  }

  async listen(port: number): Promise<void> {
    this.url = await listen(this.server, port);
  }

  /** Answers for the next requests, one each; they come before the rules. */
  script(...answers: Script[]): void {
    this.scripts.push(...answers);
  }

  /** The next requests fail, or those that are meant. A failure uses up no scripted answer. */
  fail(what: string | Failure, times?: number): void {
    this.failures.order(typeof what === "string" ? { kind: what, times } : what);
  }

  /** As `npm run practice` says it; without a kind, the end of all failures. */
  obey(order: Partial<Failure>): void {
    this.failures.obey(order);
  }

  /** No more failures. */
  mend(): void {
    this.failures.clear();
  }

  /** A pause before every event, for people who want to watch or to press Ctrl+C. */
  slow(ms: number): void {
    this.pause = ms;
  }

  /** Holds the next request until it is released; `waiting` resolves when it has arrived. */
  hold(): Hold {
    let arrived = (_entry: LoggedRequest): void => {};
    let release = (): void => {};
    const waiting = new Promise<LoggedRequest>((resolve) => {
      arrived = resolve;
    });
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    this.slots.push({ arrived, released });
    return { waiting, release };
  }

  /** Lets go on what waits because of `holdAfter`, or of a failure that hangs. */
  release(): void {
    for (const goOn of this.held) goOn();
  }

  /** Resolves when no request is under way: then the log is complete. */
  idle(): Promise<void> {
    if (this.underWay === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.idlers.add(resolve);
    });
  }

  close(): Promise<void> {
    return closeServer(this.server);
  }

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.underWay += 1;
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    try {
      if (path.startsWith("/_practice/")) await turnKnob(request, response, this.knobs);
      else if (request.method === "POST" && path === "/v1/messages") {
        await this.messages(request, response);
      } else sendError(response, 404, "not_found_error", "Not Found", {}, "req_practice");
    } catch (error) {
      // Either the client hung up while its body was being read, or a script of a test threw.
      if (response.destroyed) return;
      if (response.headersSent) response.destroy();
      else sendError(response, 500, "api_error", String(error), {}, "req_practice");
    } finally {
      this.underWay -= 1;
      if (this.underWay === 0) {
        for (const idle of this.idlers) idle();
        this.idlers.clear();
      }
    }
  }

  private async messages(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await readBody(request);
    const now = this.options.now ?? Date.now;
    const exchange = new Exchange(request, response, body, this.log.length + 1, now());
    const { entry } = exchange;
    this.log.push(entry);
    const slot = this.slots.shift();
    if (slot) {
      slot.arrived(entry);
      await Promise.race([slot.released, exchange.hungUp]);
    }
    if (entry.aborted) return;
    if (!this.admits(exchange, body)) return;
    let next = this.failing(entry) ?? this.nextAnswer(entry.request);
    if (next === "hang") {
      await Promise.race([this.untilReleased(), exchange.hungUp]);
      if (entry.aborted) return;
      next = this.nextAnswer(entry.request);
    }
    if (next === "drop") return exchange.drop();
    if (next === "empty-body") return exchange.sendNothing();
    if (next.error) {
      const { status, type, message, headers } = next.error;
      const all: Record<string, string> = { ...headers };
      if (this.options.noSdkRetry !== false) all["x-should-retry"] = "false";
      return exchange.refuse(status, type, message, all);
    }
    await this.reply(exchange, next);
  }

  /** Key, body, validity and size, in the order in which the API looks at them. */
  private admits(exchange: Exchange, body: string): boolean {
    const { keys, contextTokens = 200_000 } = this.options;
    const { entry } = exchange;
    if (!entry.key) {
      exchange.refuse(401, "authentication_error", "x-api-key header is required");
    } else if (keys && !keys.includes(entry.key)) {
      exchange.refuse(401, "authentication_error", "invalid x-api-key");
    } else if (body.length > LARGEST_BODY) {
      exchange.refuse(413, "request_too_large", "Request exceeds the maximum size");
    } else if (!exchange.version) {
      exchange.refuse(400, "invalid_request_error", "anthropic-version: header is required");
    } else {
      entry.problem = exchange.parsed
        ? validate(entry.request)
        : "The request body is not valid JSON";
      if (entry.problem) exchange.refuse(400, "invalid_request_error", entry.problem);
    }
    if (exchange.answered) return false;
    const tokens = countRequest(entry.request);
    if (tokens <= contextTokens) return true;
    const sentence = `prompt is too long: ${tokens} tokens > ${contextTokens} maximum`;
    exchange.refuse(400, "invalid_request_error", sentence);
    return false;
  }

  /** What was ordered for this request, if anything. */
  private failing({ key, model, request }: LoggedRequest): ReturnType<typeof failure> | undefined {
    const found = this.failures.take(
      (order) =>
        [undefined, key, keyNumber(key)].includes(order.key) &&
        [undefined, model].includes(order.model),
    );
    return found && failure(found, this.options.contextTokens ?? 200_000, request);
  }

  private nextAnswer(request: PracticeRequest): Scripted {
    const script = this.scripts.shift();
    if (script) return typeof script === "function" ? script(request) : script;
    if (this.options.rules !== false) return answer(request);
    const message = "The test has scripted no answer for this request.";
    return { error: { status: 500, type: "api_error", message } };
  }

  private async reply(exchange: Exchange, scripted: Scripted): Promise<void> {
    const { entry } = exchange;
    this.replies += 1;
    const { key, request, at: startedAt } = entry;
    const asking = { key, request, startedAt, number: exchange.number, arrived: this.log.length };
    const reply = makeReply(request, scripted, this.replies, this.cache.use(asking));
    entry.usage = reply.message.usage;
    if (request.stream) {
      await this.stream(exchange, scripted, toEvents(reply));
    } else if (scripted.breakAfter !== undefined) {
      exchange.drop();
    } else {
      exchange.send(200, reply.message);
    }
    if (exchange.ended && !entry.error) entry.stopReason = reply.message.stop_reason;
  }

  private async stream(
    exchange: Exchange,
    scripted: Scripted,
    events: StreamEvent[],
  ): Promise<void> {
    const { breakAfter, errorAfter, holdAfter } = scripted;
    exchange.beginStream();
    for (const [sent, event] of events.entries()) {
      if (sent === holdAfter) await Promise.race([this.untilReleased(), exchange.hungUp]);
      if (this.pause > 0) await Promise.race([wait(this.pause), exchange.hungUp]);
      if (exchange.entry.aborted) return;
      if (sent === breakAfter) return exchange.drop();
      if (sent === errorAfter?.events) {
        const { type, message } = errorAfter;
        exchange.entry.error = `${type}: ${message}`;
        await exchange.event({ type: "error", error: { type, message }, request_id: exchange.id });
        return exchange.end();
      }
      await exchange.event(event);
    }
    if (breakAfter !== undefined) return exchange.drop();
    exchange.end();
  }

  private untilReleased(): Promise<void> {
    return new Promise((resolve) => {
      const goOn = (): void => {
        this.held.delete(goOn);
        resolve();
      };
      this.held.add(goOn);
    });
  }

  private readonly knobs = {
    log: () => this.log,
    fail: (order: Fields) => this.obey(order),
    slow: ({ ms }: Fields) => this.slow(Number(ms)),
  };
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
