/**
 * Fault injection: the next requests to the model or to a fake platform fail as they are told to.
 */

export interface Failure {
  /** One of the server's kinds. */
  kind: string;
  /** How many requests fail: one, or any number if `seconds` limits the failure instead. */
  times?: number;
  seconds?: number;
  /** What a 429 says in its header or body, in seconds. */
  retryAfter?: number;
  /** Only for the model: the key, or its number, that the request has to come with. */
  key?: string;
  /** Only for the model: the model that the request has to name. */
  model?: string;
  /** Only for platforms: the method that fails; without it, those that send a message. */
  method?: string;
  /** Only for platforms: the name or the id of the chat that the request has to go to. */
  chat?: string | number;
}

interface PendingFailure {
  failure: Failure;
  /** How many more requests fail. */
  left: number;
  /** When the failure ends by itself, in ms. */
  until: number;
}

/** The failures that a server still has to show, in the order in which they were injected. */
export class FaultInjector {
  private pending: PendingFailure[] = [];
  private readonly kinds: string[];
  private readonly now: () => number;

  /** `kinds` are those that the server knows. */
  constructor(kinds: string[], now: () => number = Date.now) {
    this.kinds = kinds;
    this.now = now;
  }

  /**
   * Makes the next requests fail. It throws at an unknown kind, because the person who typed it
   * should hear of it, and not the program whose request comes next.
   */
  inject(failure: Failure): void {
    const { kind, seconds = Infinity, times = seconds < Infinity ? Infinity : 1 } = failure;
    if (!this.kinds.includes(kind)) {
      throw new Error(`There is no failure "${kind}"; there are: ${this.kinds.join(", ")}.`);
    }
    this.pending.push({ failure, left: times, until: this.now() + seconds * 1000 });
  }

  /** What `npm run practice -- fail` posts: a failure, or no kind, which ends all failures. */
  set(failure: Partial<Failure>): void {
    const { kind } = failure;
    if (kind === undefined) this.clear();
    else this.inject({ ...failure, kind });
  }

  /** The first pending failure that matches a request; the request uses it up. */
  take(matches: (failure: Failure) => boolean): Failure | undefined {
    const now = this.now();
    this.pending = this.pending.filter(({ left, until }) => left > 0 && until > now);
    const found = this.pending.find(({ failure }) => matches(failure));
    if (found) found.left -= 1;
    return found?.failure;
  }

  clear(): void {
    this.pending = [];
  }
}

/** The number of a key, such as "2" for "practice-2". The first key of the world has none. */
export function keyNumber(key: string): string {
  return /-(\d+)$/.exec(key)?.[1] ?? "1";
}
