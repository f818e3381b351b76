/** Orders for requests to fail: the same for the model and for the fake platforms. */

export interface Failure {
  /** One of the server's kinds. */
  kind: string;
  /** How many requests: one, or without a limit if `seconds` says for how long. */
  times?: number;
  seconds?: number;
  /** Seconds, for 429. */
  retryAfter?: number;
  /** The model's: only with this key, or with its number; only for this model. */
  key?: string;
  model?: string;
  /** A platform's: only for this method; without it, for those that send a message. */
  method?: string;
  /** A platform's: only for this chat, its name or its id. */
  chat?: string | number;
}

interface Order {
  failure: Failure;
  left: number;
  until: number;
}

export class Failures {
  private orders: Order[] = [];
  private readonly kinds: string[];
  private readonly now: () => number;

  constructor(kinds: string[], now: () => number = Date.now) {
    this.kinds = kinds;
    this.now = now;
  }

  /** An unknown kind is said here, to whoever asked, and not to the next request. */
  order(failure: Failure): void {
    const { kind, seconds = Infinity, times = seconds < Infinity ? Infinity : 1 } = failure;
    if (!this.kinds.includes(kind)) {
      throw new Error(`There is no failure "${kind}"; there are: ${this.kinds.join(", ")}.`);
    }
    this.orders.push({ failure, left: times, until: this.now() + seconds * 1000 });
  }

  /** An order from outside; without a kind, the end of all orders. */
  obey(order: Partial<Failure>): void {
    const { kind } = order;
    if (kind === undefined) this.clear();
    else this.order({ ...order, kind });
  }

  /** The failure of this request, which is used up by it: the first order that means it. */
  take(means: (failure: Failure) => boolean): Failure | undefined {
    const now = this.now();
    this.orders = this.orders.filter(({ left, until }) => left > 0 && until > now);
    const found = this.orders.find(({ failure }) => means(failure));
    if (found) found.left -= 1;
    return found?.failure;
  }

  clear(): void {
    this.orders = [];
  }
}

/** Keys of the practice world end with their number; the first has none. */
export function keyNumber(key: string): string {
  return /-(\d+)$/.exec(key)?.[1] ?? "1";
}
