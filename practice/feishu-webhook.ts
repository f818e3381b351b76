/** The fake Feishu posts an event to the bot's webhook again and again until that answers 200. */

import { type About, envelope, onTheWire, type Wire } from "./feishu-events.ts";
import type { ConditionVariable, Fields } from "./web.ts";

export interface WebhookOptions {
  /** The bot's address, such as `http://127.0.0.1:8765/feishu/events`. It can be set later. */
  webhook?: string;
  /** Without a key, events are sent unencrypted and unsigned. */
  encryptKey?: string;
  verificationToken?: string;
  /** How long the webhook has for its answer, in ms. */
  patience?: number;
  /** The delays before each redelivery, in ms. */
  redeliverAfter?: number[];
  /** A redelivery has a new event id and message id. */
  newIds?: boolean;
  now?: () => number;
}

export interface Attempt {
  at: number;
  /** The HTTP status of the answer; 0 if there was none. */
  status: number;
  body: string;
}

/** An event on its way to the webhook. */
export interface Delivery {
  eventId: string;
  messageId: string;
  chat: string;
  attempts: Attempt[];
  /** Resolves with the answer to the first attempt, whatever it was. */
  first: Promise<Attempt>;
  /** Resolves when the webhook has said 200. */
  delivered: Promise<void>;
}

/** Makes the body of an event with the ids of this attempt. */
type Make = (about: About, messageId: string) => Fields;

interface Pending extends Delivery {
  /** When the event happened. A redelivery has the same time. */
  at: number;
  make: Make;
  wire: Wire;
  timer?: NodeJS.Timeout;
  underWay: boolean;
}

const MINUTE = 60_000;

/** The delays of the real Feishu. */
const REDELIVERY_DELAYS = [MINUTE / 4, 5 * MINUTE, 60 * MINUTE, 360 * MINUTE];

/** The events for one bot, and the attempts to deliver them. */
export class Webhook {
  address: string;
  readonly encryptKey: string;
  readonly verificationToken: string;
  readonly deliveries: Pending[] = [];
  private readonly options: WebhookOptions;
  private readonly appId: string;
  private readonly now: () => number;
  private readonly changes: ConditionVariable;
  private readonly newMessage: (chat: string) => string;
  /** The first attempt of the last event of each chat. The next event waits for it. */
  private readonly lastOf = new Map<string, Promise<unknown>>();
  private events = 0;
  private stopped = false;

  constructor(
    options: WebhookOptions,
    appId: string,
    changes: ConditionVariable,
    newMessage: (chat: string) => string,
  ) {
    this.options = options;
    this.appId = appId;
    this.changes = changes;
    this.newMessage = newMessage;
    this.address = options.webhook ?? "";
    this.encryptKey = options.encryptKey ?? "practice-encrypt-key";
    this.verificationToken = options.verificationToken ?? "practice-verification-token";
    this.now = options.now ?? Date.now;
  }

  stop(): void {
    this.stopped = true;
    for (const { timer } of this.deliveries) clearTimeout(timer);
  }

  push(type: string, event: unknown, wire: Wire): Delivery {
    return this.deliver("", "", wire, (about) => envelope(type, event, about));
  }

  /**
   * Delivers the event that `make` gives. Of one chat, an event waits until the one before was
   * tried.
   */
  deliver(chat: string, messageId: string, wire: Wire, make: Make): Delivery {
    const attempts: Attempt[] = [];
    const isDelivered = (): true | undefined =>
      attempts.some((one) => one.status === 200) || undefined;
    const delivered = this.changes.until(isDelivered).then(() => {});
    const before = this.lastOf.get(chat) ?? Promise.resolve();
    const first = before.then(() => this.tryOnce(pending, false));
    const ids = { eventId: this.nextEvent(), messageId, chat };
    const state = { at: this.now(), make, wire, underWay: false };
    const pending: Pending = { ...ids, attempts, first, delivered, ...state };
    this.deliveries.push(pending);
    if (chat) this.lastOf.set(chat, first);
    void first.then(() => this.planNext(pending));
    return pending;
  }

  /** Posts an event again, also one that was delivered. */
  async again(delivery: Delivery, newIds: boolean): Promise<Attempt> {
    const pending = this.deliveries.find((one) => one === delivery);
    if (!pending) throw new Error("That event was never sent here.");
    return await this.tryOnce(pending, newIds);
  }

  /** Posts at once, in order, what was tried and not delivered. */
  async flush(): Promise<void> {
    const open = this.deliveries.filter((one) => !one.underWay && !isOver(one));
    const tried = open.filter((one) => one.attempts.length > 0);
    for (const one of tried) await this.redeliver(one);
  }

  /** Posts a body once and gives the answer. */
  async attempt(body: Fields, wire: Wire): Promise<Attempt> {
    const { patience = 3000 } = this.options;
    const at = this.now();
    const nonce = String(1_000_000 + this.events);
    const { raw, headers } = onTheWire(body, this.encryptKey, nonce, wire, at);
    try {
      const signal = AbortSignal.timeout(patience);
      const request = { method: "POST", headers, body: raw, signal, redirect: "manual" } as const;
      const answer = await fetch(this.address, request);
      return { at, status: answer.status, body: await answer.text() };
    } catch (error) {
      return { at, status: 0, body: String(error) };
    }
  }

  private nextEvent(): string {
    this.events += 1;
    return `ev_practice_${this.events}`;
  }

  /** One attempt to deliver an event, which is noted in it. */
  private async tryOnce(pending: Pending, newIds: boolean): Promise<Attempt> {
    const { wire, at: now, chat } = pending;
    const eventId = newIds ? this.nextEvent() : pending.eventId;
    const messageId = newIds && pending.messageId ? this.newMessage(chat) : pending.messageId;
    const token = wire.token ?? this.verificationToken;
    pending.underWay = true;
    const body = pending.make({ eventId, appId: this.appId, token, now }, messageId);
    const attempt = await this.attempt(body, wire);
    pending.underWay = false;
    pending.attempts.push(attempt);
    this.changes.notifyAll();
    return attempt;
  }

  private planNext(pending: Pending): void {
    const wait = (this.options.redeliverAfter ?? REDELIVERY_DELAYS)[pending.attempts.length - 1];
    if (isOver(pending) || wait === undefined || this.stopped) return;
    pending.timer = setTimeout(() => void this.redeliver(pending), wait);
    pending.timer.unref();
  }

  private async redeliver(pending: Pending): Promise<void> {
    clearTimeout(pending.timer);
    await this.tryOnce(pending, this.options.newIds ?? false);
    this.planNext(pending);
  }
}

/** Whether there are no more attempts: it is delivered, or forged, and a forger does not retry. */
function isOver({ attempts, wire }: Pending): boolean {
  const isForged = wire.key ?? wire.sign ?? wire.token ?? wire.timestamp;
  return isForged !== undefined || attempts.some((one) => one.status === 200);
}
