/**
 * The practice model: a server on loopback that speaks the Messages API, JSON and SSE.
 *
 * A section talks to `POST /v1/messages`. `npm run practice`, with which people control a running
 * world, uses these addresses of the same server:
 *
 *   GET  /_practice/log           the requests so far, oldest first
 *   POST /_practice/fail {kind,…} the next requests fail: a `Failure` of fault-injection.ts
 *   POST /_practice/fail {}       no more failures
 *   POST /_practice/slow {ms}     a pause before every event of a stream; 0 ends it
 */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { Exchange, type LoggedRequest, readBody, sendError } from "./exchange.ts";
import { type Failure, FaultInjector, keyNumber } from "./fault-injection.ts";
import { failureResponse, MODEL_FAILURES } from "./model-failures.ts";
import { PromptCache } from "./prompt-cache.ts";
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
import { closeServer, type Fields, handleControl, listen } from "./web.ts";

export type { LoggedRequest } from "./exchange.ts";
export type { PracticeRequest, Scripted, ScriptedBlock } from "./reply.ts";

export interface ModelOptions {
  port?: number;
  /** The keys that are accepted. Without a list, every key that is not empty is. */
  keys?: string[];
  contextTokens?: number;
  /** With false there are only scripted answers: a request without one gets a 500 that says so. */
  rules?: boolean;
  /** Tells the SDK not to retry what failed. It retries a dropped connection all the same. */
  noSdkRetry?: boolean;
  /** The clock, for the log and for the age of the entries of the prompt cache. */
  now?: () => number;
}

/** A request that is held back: `waiting` resolves when it has arrived. */
export interface Hold {
  waiting: Promise<LoggedRequest>;
  release(): void;
}

/** The API's limit, in bytes. */
const MAX_BODY = 32 * 1024 * 1024;

type Script = Scripted | ((request: PracticeRequest) => Scripted);

/** The other side of a `Hold`. */
interface PendingHold {
  arrived(entry: LoggedRequest): void;
  released: Promise<void>;
}

/** How a request is refused. */
type ApiError = [status: number, type: string, message: string];

/** Starts a model on loopback; its `url` is where a section finds it. */
export async function startModel(options: ModelOptions = {}): Promise<PracticeModel> {
  const model = new PracticeModel(options);
  await model.listen(options.port ?? 0);
  return model;
}

export class PracticeModel {
  url = "";
  readonly log: LoggedRequest[] = [];
  readonly server: Server;
  private readonly options: ModelOptions;
  private readonly cache = new PromptCache();
  private readonly scripts: Script[] = [];
  private readonly failures: FaultInjector;
  private readonly holds: PendingHold[] = [];
  /** In ms, before every event of a stream. */
  private eventDelay = 0;
  private replies = 0;
  private activeRequests = 0;
  /** The resolvers of streams that wait for release(), and of calls of idle(). */
  private readonly held = new Set<() => void>();
  private readonly idleWaiters = new Set<() => void>();

  constructor(options: ModelOptions) {
    this.options = options;
    this.failures = new FaultInjector(MODEL_FAILURES, options.now);
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

  /** The next requests fail, or those that the failure names. It uses up no scripted answer. */
  fail(what: string | Failure, times?: number): void {
    this.failures.inject(typeof what === "string" ? { kind: what, times } : what);
  }

  /** Injects a failure; without a kind, ends all of them. */
  setFailure(failure: Partial<Failure>): void {
    this.failures.set(failure);
  }

  /** Ends all failures. */
  clearFailures(): void {
    this.failures.clear();
  }

  /** A pause before every event, for people who want to watch or to press Ctrl+C. */
  slow(ms: number): void {
    this.eventDelay = ms;
  }

  /** HeldRequests the next request until it is released; `waiting` resolves when it has arrived. */
  hold(): Hold {
    let arrived = (_entry: LoggedRequest): void => {};
    let release = (): void => {};
    const waiting = new Promise<LoggedRequest>((resolve) => {
      arrived = resolve;
    });
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    this.holds.push({ arrived, released });
    return { waiting, release };
  }

  /** Lets the streams go on that wait because of `holdAfter` or of a failure that hangs. */
  release(): void {
    for (const resume of this.held) resume();
  }

  /** Resolves when no request is under way: then the log is complete. */
  idle(): Promise<void> {
    if (this.activeRequests === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.idleWaiters.add(resolve);
    });
  }

  close(): Promise<void> {
    return closeServer(this.server);
  }

  private async serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    this.activeRequests += 1;
    try {
      await this.route(request, response);
    } catch (error) {
      // Either the client hung up while its body was being read, or a script of a test threw.
      if (response.destroyed) return;
      if (response.headersSent) response.destroy();
      else sendError(response, 500, "api_error", String(error), {}, "req_practice");
    } finally {
      this.activeRequests -= 1;
      if (this.activeRequests === 0) this.resolveIdle();
    }
  }

  private resolveIdle(): void {
    for (const resolve of this.idleWaiters) resolve();
    this.idleWaiters.clear();
  }

  private async route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    if (path.startsWith("/_practice/")) {
      await handleControl(request, response, this.controls);
    } else if (request.method === "POST" && path === "/v1/messages") {
      await this.createMessage(request, response);
    } else {
      sendError(response, 404, "not_found_error", "Not Found", {}, "req_practice");
    }
  }

  /** One call of the Messages API, from its arrival to the end of its answer. */
  private async createMessage(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await readBody(request);
    const now = this.options.now ?? Date.now;
    const exchange = new Exchange(request, response, body, this.log.length + 1, now());
    const { entry } = exchange;
    this.log.push(entry);
    await this.waitForHold(exchange);
    if (entry.aborted) return;
    const refusal = this.checkRequest(exchange, body);
    if (refusal) return exchange.refuse(...refusal);
    const answerOrFailure = await this.nextAnswerOrFailure(exchange);
    if (entry.aborted) return;
    if (answerOrFailure === "drop") return exchange.drop();
    if (answerOrFailure === "empty-body") return exchange.sendNothing();
    if (answerOrFailure.error) return this.refuse(exchange, answerOrFailure.error);
    await this.reply(exchange, answerOrFailure);
  }

  /** Waits until the hold of this request, if there is one, is released or the client hangs up. */
  private async waitForHold(exchange: Exchange): Promise<void> {
    const hold = this.holds.shift();
    if (!hold) return;
    hold.arrived(exchange.entry);
    await Promise.race([hold.released, exchange.hungUp]);
  }

  /**
   * Checks key, size, headers, validity and length of the prompt, in the order in which the API
   * does. What the validator says goes into the log as well.
   */
  private checkRequest({ entry, parsed, version }: Exchange, body: string): ApiError | undefined {
    const { keys, contextTokens = 200_000 } = this.options;
    if (!entry.key) return [401, "authentication_error", "x-api-key header is required"];
    if (keys && !keys.includes(entry.key)) {
      return [401, "authentication_error", "invalid x-api-key"];
    }
    if (body.length > MAX_BODY) {
      return [413, "request_too_large", "Request exceeds the maximum size"];
    }
    if (!version) return [400, "invalid_request_error", "anthropic-version: header is required"];
    entry.problem = parsed ? validate(entry.request) : "The request body is not valid JSON";
    if (entry.problem) return [400, "invalid_request_error", entry.problem];
    const tokens = countRequest(entry.request);
    if (tokens <= contextTokens) return undefined;
    const sentence = `prompt is too long: ${tokens} tokens > ${contextTokens} maximum`;
    return [400, "invalid_request_error", sentence];
  }

  /** If the client hangs up during a failure that hangs, what this gives is of no use. */
  private async nextAnswerOrFailure({ entry, hungUp }: Exchange) {
    const failure = this.takeFailure(entry);
    if (failure !== "hang") return failure ?? this.nextAnswer(entry.request);
    await Promise.race([this.untilReleased(), hungUp]);
    return entry.aborted ? "drop" : this.nextAnswer(entry.request);
  }

  /** The failure that was injected for this request, if there is one. */
  private takeFailure({ key, model, request }: LoggedRequest) {
    const found = this.failures.take(
      (failure) =>
        [undefined, key, keyNumber(key)].includes(failure.key) &&
        [undefined, model].includes(failure.model),
    );
    return found && failureResponse(found, this.options.contextTokens ?? 200_000, request);
  }

  private refuse(exchange: Exchange, error: NonNullable<Scripted["error"]>): void {
    const headers: Record<string, string> = { ...error.headers };
    if (this.options.noSdkRetry !== false) headers["x-should-retry"] = "false";
    exchange.refuse(error.status, error.type, error.message, headers);
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
    const cached = this.cache.use({
      key,
      request,
      startedAt,
      number: exchange.number,
      arrived: this.log.length,
    });
    const reply = makeReply(request, scripted, this.replies, cached);
    entry.usage = reply.message.usage;
    if (request.stream) {
      await this.stream(exchange, scripted, toEvents(reply));
    } else if (scripted.breakAfter !== undefined) {
      exchange.drop();
    } else {
      exchange.send(200, reply.message);
    }
    if (exchange.ended && !entry.error) entry.stopReason = reply.message.stop_reason ?? "none";
  }

  private async stream(
    exchange: Exchange,
    scripted: Scripted,
    events: StreamEvent[],
  ): Promise<void> {
    const { breakAfter, errorAfter, holdAfter } = scripted;
    exchange.beginStream();
    for (const [sent, event] of events.entries()) {
      await this.waitBeforeEvent(exchange, sent === holdAfter);
      if (exchange.entry.aborted) return;
      if (sent === breakAfter) return exchange.drop();
      if (errorAfter && sent === errorAfter.events) {
        return await endWithError(exchange, errorAfter.type, errorAfter.message);
      }
      await exchange.event(event);
    }
    if (breakAfter !== undefined) return exchange.drop();
    exchange.end();
  }

  private async waitBeforeEvent({ hungUp }: Exchange, isHeld: boolean): Promise<void> {
    if (isHeld) await Promise.race([this.untilReleased(), hungUp]);
    if (this.eventDelay > 0) await Promise.race([wait(this.eventDelay), hungUp]);
  }

  private untilReleased(): Promise<void> {
    return new Promise((resolve) => {
      const resume = (): void => {
        this.held.delete(resume);
        resolve();
      };
      this.held.add(resume);
    });
  }

  private readonly controls = {
    log: () => this.log,
    fail: (failure: Fields) => this.setFailure(failure),
    slow: ({ ms }: Fields) => this.slow(Number(ms)),
  };
}

/** The API's way to fail when a stream has begun: an `error` event, and then the end. */
async function endWithError(exchange: Exchange, type: string, message: string): Promise<void> {
  exchange.entry.error = `${type}: ${message}`;
  await exchange.event({ type: "error", error: { type, message }, request_id: exchange.id });
  exchange.end();
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}
