/** Whether a practice world is still used: by an open connection or by a section's process. */

/** The timers, which tests replace. */
export interface Timers {
  set(action: () => void, ms: number): unknown;
  clear(timer: never): void;
}

/** Node's own timers. They keep no process alive. */
export const TIMERS: Timers = {
  set: (action, ms) => setTimeout(action, ms).unref(),
  clear: (timer: NodeJS.Timeout) => clearTimeout(timer),
};

/** Calls `onIdle` when nothing was attached for some time. */
export class IdleWatch {
  private readonly attached = new Set<object>();
  private readonly isUsed: () => boolean;
  private readonly onIdle: () => void;
  private readonly ms: number;
  private readonly timers: Timers;
  private timer: unknown;

  /** `isUsed` is asked when the time is over; if it gives true, the time begins again. */
  constructor(ms: number, isUsed: () => boolean, onIdle: () => void, timers: Timers = TIMERS) {
    this.ms = ms;
    this.isUsed = isUsed;
    this.onIdle = onIdle;
    this.timers = timers;
    this.start();
  }

  attach(what: object): void {
    this.attached.add(what);
    this.stop();
  }

  detach(what: object): void {
    this.attached.delete(what);
    if (this.attached.size === 0) this.start();
  }

  stop(): void {
    this.timers.clear(this.timer as never); // what `set` of the same timers gave
  }

  private start(): void {
    this.stop();
    this.timer = this.timers.set(() => {
      if (this.isUsed()) this.start();
      else this.onIdle();
    }, this.ms);
  }
}
