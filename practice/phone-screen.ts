/** The screen of a phone: it prints above the line that is being typed. */

import { createInterface } from "node:readline";
import { suspendWholeJob } from "./job-control.ts";

/** In a pipe: ms to wait for a sign of the bot, while it types, and for one more part. */
const TIMEOUTS = { start: 2000, typing: 10_000, sent: 300 };

const { stdin, stdout } = process;

export class PhoneScreen {
  /** The lines that are typed. Created at once: the iterator keeps those that come early. */
  readonly lines: NodeJS.AsyncIterator<string> & AsyncIterable<string>;
  isClosed = false;
  private readonly inTerminal = stdin.isTTY === true && stdout.isTTY === true;
  private readonly terminal = createInterface({
    input: stdin,
    output: stdout,
    terminal: this.inTerminal,
  });
  private name = "";
  /** Runs while the prompt waits for the bot, in a pipe. */
  private timer: NodeJS.Timeout | undefined;
  private onTimeout = (): void => {};

  constructor() {
    this.lines = this.terminal[Symbol.asyncIterator]();
    suspendWholeJob(this.terminal);
    this.terminal.once("close", () => {
      this.isClosed = true;
    });
  }

  /** Shows the prompt of a person. */
  begin(name: string): void {
    this.name = name;
    this.terminal.setPrompt(`${name} > `);
    this.prompt();
  }

  /** In a pipe the input may have ended, and then the readline interface would throw. */
  prompt(): void {
    if (this.name === "") return;
    if (!this.inTerminal) stdout.write(`${this.name} > `);
    else if (!this.isClosed) this.terminal.prompt(true);
  }

  /** Prints above the line that is being typed, which may have wrapped. */
  print(text: string): void {
    if (this.timer || this.name === "") {
      stdout.write(`${text}\n`);
      return;
    }
    const { rows } = this.inTerminal ? this.terminal.getCursorPos() : { rows: 0 };
    const up = rows > 0 ? `\x1b[${rows}A` : "";
    const clear = this.inTerminal ? `${up}\r\x1b[J` : "\n";
    stdout.write(`${clear}${text}\n${"\n".repeat(rows)}`);
    this.prompt();
  }

  /** In a pipe, holds the prompt back until the bot has answered what `send` sends, or says no. */
  async whileAnswered(send: () => Promise<boolean>): Promise<void> {
    const answered = new Promise<void>((resolve) => {
      this.onTimeout = resolve;
    });
    if (!this.inTerminal) this.startTimer("start");
    if ((await send()) && !this.inTerminal) await answered;
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  /** Tells the screen that the bot has done something. */
  heard(what: "typing" | "sent"): void {
    if (this.timer) this.startTimer(what);
  }

  close(): void {
    this.terminal.close();
  }

  private startTimer(what: keyof typeof TIMEOUTS): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onTimeout(), TIMEOUTS[what]);
  }
}
