/** getUpdates of the fake Telegram: what waits for the bot, and the request that waits for it. */

import type { ServerResponse } from "node:http";
import { sendJson } from "./exchange.ts";
import type { ConditionVariable, Fields } from "./web.ts";

export interface Call {
  method: string;
  parameters: Fields;
  at: number;
  /** 0 while it is under way, or if it never got an answer. */
  status: number;
}

export interface Exchange {
  call: Call;
  response: ServerResponse;
}

/** An answer that says no. */
export class Refusal extends Error {
  readonly code: number;
  readonly parameters: Fields | undefined;

  constructor(code: number, description: string, parameters?: Fields) {
    super(description);
    this.code = code;
    this.parameters = parameters;
  }
}

/** Answers with a result, or with a refusal. */
export function answer({ call, response }: Exchange, result: unknown): void {
  if (result instanceof Refusal) {
    const { code, message: description, parameters } = result;
    call.status = code;
    const body = { ok: false, error_code: code, description };
    sendJson(response, code, { ...body, ...(parameters && { parameters }) });
  } else {
    call.status = 200;
    sendJson(response, 200, { ok: true, result });
  }
}

const CONFLICT =
  "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running";
const WEBHOOK =
  "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first";

/** What Telegram says when it fails. */
export const ERROR_DESCRIPTIONS: Record<string, string> = {
  "400": "Bad Request: chat not found",
  "401": "Unauthorized",
  "403": "Forbidden: bot was blocked by the user",
  "409": CONFLICT,
  "500": "Internal Server Error",
};

/** All failures that can be ordered; the last ones are done to the connection. */
export const TELEGRAM_FAILURES = [
  ...Object.keys(ERROR_DESCRIPTIONS),
  "429",
  "502",
  "drop",
  "refuse",
  "hang",
];

/** These come only to those who name them. */
const ON_REQUEST = ["chat_member", "message_reaction", "message_reaction_count"];

export interface Update extends Fields {
  update_id: number;
}

export interface QueuedUpdate {
  update: Update;
  /** How often it was handed out. */
  given: number;
  confirmed: boolean;
}

interface Poll extends Exchange {
  limit: number;
  timer: NodeJS.Timeout;
}

export class UpdateQueue {
  readonly updates: QueuedUpdate[] = [];
  webhook = "";
  private readonly changes: ConditionVariable;
  private allowed: string[] = [];
  private next = 500_001;
  private poll: Poll | undefined;

  constructor(changes: ConditionVariable) {
    this.changes = changes;
  }

  /** Adds updates, all before one of them is handed out; gives their numbers. */
  add(list: [kind: string, body: unknown][], force: boolean): number[] {
    const wanted = list.filter(([kind]) => force || this.isAllowed(kind));
    const numbers = wanted.map(([kind, body]) => {
      const update = { update_id: this.next, [kind]: body };
      this.next += 1;
      this.updates.push({ update, given: 0, confirmed: false });
      return update.update_id;
    });
    this.answerPoll(false);
    return numbers;
  }

  waiting(): QueuedUpdate[] {
    return this.updates.filter((one) => !one.confirmed);
  }

  /** Nothing waits, and the bot asks for more. */
  isIdle(): boolean {
    return this.poll !== undefined && this.waiting().length === 0;
  }

  deleteWebhook(dropUpdates: boolean): void {
    this.webhook = "";
    if (dropUpdates) this.confirm(this.next);
  }

  getUpdates({ call, response }: Exchange): void {
    const { offset, limit, timeout, allowed_updates: allowed } = call.parameters;
    if (this.webhook) throw new Refusal(409, WEBHOOK);
    if (this.poll) answer(this.endPoll(this.poll), new Refusal(409, CONFLICT));
    if (Array.isArray(allowed)) this.allowed = allowed.map(String);
    this.confirm(Number(offset ?? 0));
    const poll: Poll = {
      call,
      response,
      limit: Math.min(100, Math.max(1, Number(limit ?? 100))),
      // The real one holds a request for at most 50 seconds.
      timer: setTimeout(() => this.answerPoll(true), Math.min(50, Number(timeout ?? 0)) * 1000),
    };
    poll.timer.unref();
    response.once("close", () => {
      if (this.poll === poll) this.endPoll(poll);
    });
    this.poll = poll;
    this.answerPoll(!timeout);
  }

  stop(): void {
    if (this.poll) this.endPoll(this.poll);
  }

  private isAllowed(kind: string): boolean {
    return this.allowed.length > 0 ? this.allowed.includes(kind) : !ON_REQUEST.includes(kind);
  }

  /** An offset confirms all that is older; a negative one, all but the last ones. */
  private confirm(offset: number): void {
    const first = offset < 0 ? this.next + offset : offset;
    for (const one of this.updates) one.confirmed ||= one.update.update_id < first;
  }

  private endPoll(poll: Poll): Poll {
    clearTimeout(poll.timer);
    this.poll = undefined;
    return poll;
  }

  /** Answers the request that is held, if there is something to say or its time is over. */
  private answerPoll(now: boolean): void {
    const batch = this.waiting().slice(0, this.poll?.limit);
    if (this.poll && (batch.length > 0 || now)) {
      for (const one of batch) one.given += 1;
      const updates = batch.map((one) => one.update);
      answer(this.endPoll(this.poll), updates);
    }
    this.changes.notifyAll();
  }
}
