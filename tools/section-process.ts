// A section that runs in a process of its own, and what it has printed since somebody looked.
import { type ChildProcess, spawn } from "node:child_process";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { ROOT } from "./sections.ts";

export const TIMEOUT = 60_000; // ms; a section that runs for so long hangs
const WORLD = pathToFileURL(path.join(import.meta.dirname, "same-world.ts")).href;
const PROMPT = "You > ";

export class SectionProcess {
  /** What it wrote to standard error, and how it ended, if it ended badly. */
  errors = "";
  #child: ChildProcess | undefined;
  #printed = "";
  #wake = () => {};

  get isRunning(): boolean {
    return this.#child !== undefined;
  }

  /** Starts a section with these settings. `number` says which start of the recording it is. */
  start(file: string, settings: Record<string, string>, number: number): void {
    const args = ["--import", import.meta.resolve("tsx"), "--import", WORLD, file];
    const env = { ...process.env, ...settings, RECORD_START: String(number) };
    const limit = { timeout: TIMEOUT, killSignal: "SIGKILL" } as const; // a signal's name
    const child = spawn(process.execPath, args, { cwd: ROOT, env, ...limit });
    child.stdout.setEncoding("utf8").on("data", (output: string) => {
      this.#printed += output.replaceAll("\r", "");
      this.#wake();
    });
    child.stderr.setEncoding("utf8").on("data", (output: string) => {
      this.errors += output;
    });
    child.stdin.on("error", () => {}); // the section may be gone before a line reaches it
    child.on("close", (code, signal) => {
      if (code !== 0) this.errors += `It ended with ${signal ?? `exit code ${code}`}.`;
      this.#child = undefined;
      this.#wake();
    });
    this.#child = child;
  }

  type(line: string): void {
    this.#child?.stdin?.write(`${line}\n`);
  }

  /** Closes its input, at which it ends, and waits for that. */
  async end(): Promise<void> {
    this.#child?.stdin?.end();
    await this.waitUntil(() => false);
  }

  /** Kills it. What it printed last and how it ended are of no interest then. */
  async kill(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.waitUntil(() => false);
    this.errors = "";
    this.#printed = "";
  }

  /** Waits for something to become true, or for the end of the section. */
  async waitUntil(isTrue: () => boolean | undefined): Promise<void> {
    while (this.#child && !isTrue()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 20); // no event tells of files and platforms, so it looks again
      });
    }
  }

  /** All that it has printed. */
  take(): string {
    return this.#takeFirst(this.#printed.length);
  }

  #takeFirst(length: number): string {
    const text = this.#printed.slice(0, length);
    this.#printed = this.#printed.slice(length);
    return text;
  }

  /** What it prints up to the prompt. What comes below it by itself is for the next step to show. */
  async readToPrompt(): Promise<string> {
    await this.waitUntil(() => this.#promptAt() >= 0);
    const at = this.#promptAt();
    return at < 0 ? this.take() : this.#takeFirst(at + PROMPT.length);
  }

  /** What it prints up to a piece of output. What follows that is dropped. */
  async readTo(output: string): Promise<string> {
    await this.waitUntil(() => this.#printed.includes(output) || this.#promptAt() >= 0);
    const at = this.#printed.indexOf(output);
    if (at < 0) {
      this.errors += `It never printed "${output}".`;
      return this.readToPrompt();
    }
    const text = this.#takeFirst(at + output.length);
    this.#printed = "";
    return text;
  }

  /** A prompt at which nothing has been typed yet; -1 if there is none. */
  #promptAt(): number {
    return this.#printed.search(/(?<=^|\n)You > (?=\n|$)/);
  }
}
