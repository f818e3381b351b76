/** Long polling of the fake Telegram: the updates, and the getUpdates request that is held open. */

import type { ServerResponse } from "node:http";
import { sendJson } from "./exchange.ts";
import type { ConditionVariable, Fields } from "./web.ts";

export interface Call {
  method: string;
  parameters: Fields;
  at: number;
  /** The HTTP status of the answer; 0 if there is none yet, or never was. */
  status: number;
}

export interface Exchange {
  call: Call;
  response: ServerResponse;
}

/** An error answer of the Bot API. */
export class Refusal extends Error {
  readonly code: number;
  readonly parameters: Fields | undefined;

  constructor(code: number, description: string, parameters?: Fields) {
    super(description);
    this.code = code;
    this.parameters = parameters;
  }
}

/** Answers with a result, or with the error of a Refusal. */
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

/** Telegram's error description for each status. */
export const ERROR_DESCRIPTIONS: Record<string, string> = {
  "400": "Bad Request: chat not found",
  "401": "Unauthorized",
  "403": "Forbidden: bot was blocked by the user",
  "409": CONFLICT,
  "500": "Internal Server Error",
};

/** All failures that can be injected. The last three break or hold the connection. */
export const TELEGRAM_FAILURES = [
  ...Object.keys(ERROR_DESCRIPTIONS),
  "429",
  "502",
  "drop",
  "refuse",
  "hang",
];

/** Kinds of updates that a bot gets only if it names them in allowed_updates. */
const OPT_IN_KINDS = ["chat_member", "message_reaction", "message_reaction_count"];

export interface Update extends Fields {
  update_id: number;
}

export interface QueuedUpdate {
  update: Update;
  /** How often the bot has received it. */
  given: number;
  confirmed: boolean;
}

/** A getUpdates request that is held open until there are updates or its time is over. */
interface Poll extends Exchange {
  limit: number;
  timer: NodeJS.Timeout;
}

/** The updates of a bot, and its long polling. */
export class UpdateQueue {
  readonly updates: QueuedUpdate[] = [];
  webhook = "";
  private readonly changes: ConditionVariable;
  private allowed: string[] = [];
  private next = 500_001;
  /** The place of the oldest update that is not confirmed. With many, nobody may search for it. */
  private firstWaiting = 0;
  /** Who waits until an update is confirmed, in the order of the updates. */
  private readonly waiters: { last: number; resolve: () => void }[] = [];
  private poll: Poll | undefined;

  constructor(changes: ConditionVariable) {
    this.changes = changes;
  }

  /** Adds several updates before the held request gets any of them; gives their numbers. */
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
    return this.updates.slice(this.firstWaiting);
  }

  /** Resolves when this update and all before it are confirmed; at once without a number. */
  confirmed(last: number | undefined): Promise<void> {
    if (last === undefined) return Promise.resolve();
    return new Promise((resolve) => {
      this.waiters.push({ last, resolve });
    });
  }

  /** Whether all updates are confirmed and the bot is polling for more. */
  isIdle(): boolean {
    return this.poll !== undefined && this.firstWaiting === this.updates.length;
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
      // The real Telegram holds a request for at most 50 seconds.
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
    return this.allowed.length > 0 ? this.allowed.includes(kind) : !OPT_IN_KINDS.includes(kind);
  }

  /** An offset confirms all older updates; a negative one counts from the end of the queue. */
  private confirm(offset: number): void {
    const first = offset < 0 ? this.next + offset : offset;
    for (; ; this.firstWaiting += 1) {
      const one = this.updates[this.firstWaiting];
      if (!one || one.update.update_id >= first) break;
      one.confirmed = true;
    }
    while (this.waiters[0] && this.waiters[0].last < first) this.waiters.shift()?.resolve();
  }

  private endPoll(poll: Poll): Poll {
    clearTimeout(poll.timer);
    this.poll = undefined;
    return poll;
  }

  /** Answers the held request if there are updates, or with none if `isDue`. */
  private answerPoll(isDue: boolean): void {
    const { firstWaiting, poll } = this;
    const batch = poll ? this.updates.slice(firstWaiting, firstWaiting + poll.limit) : [];
    if (poll && (batch.length > 0 || isDue)) {
      for (const one of batch) one.given += 1;
      const updates = batch.map((one) => one.update);
      answer(this.endPoll(poll), updates);
    }
    this.changes.notifyAll();
  }
}
