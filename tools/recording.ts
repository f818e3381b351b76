// One transcript being made: a section that runs, people who write to it, and what is printed.
import { type ChildProcess, execFile, spawn } from "node:child_process";
import * as fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import type { Hold, PracticeModel } from "../practice/model.ts";
import type { People } from "./people.ts";
import { ROOT, read } from "./sections.ts";
import { type Saying, SILENCE, type Step, TYPING } from "./transcripts.ts";

const PATIENCE = 60_000; // a section that runs for so long hangs
/** A prompt at which nothing is typed any more. */
export const LAST_PROMPT = /\s*((^|\n)You >)?\s*$/;
const WORLD = pathToFileURL(path.join(import.meta.dirname, "same-world.ts")).href;

interface World {
  file: string;
  workspace: string;
  model: PracticeModel;
  people?: People; // from s04 on
  settings: Record<string, string>;
}

/** One transcript being made: a section that runs, and what a reader would have seen so far. */
export class Recording {
  text = "";
  readonly #world: World;
  #starts = 0;
  #child: ChildProcess | undefined;
  #fresh = ""; // printed, and not yet in the text
  #errors = "";
  #wake = () => {};
  #port = "";
  #held: Hold | undefined; // somebody's answer, which comes after the next step

  constructor(world: World) {
    this.#world = world;
  }

  async take(step: Step, next: Step | undefined): Promise<void> {
    const held = this.#held;
    await this.#do(step, next);
    if (held && held === this.#held) {
      held.release();
      if (!this.#child) return; // killed: it comes after the next start
      this.#held = undefined;
      await this.#settle(true, step.do === "start" ? "\n\n" : "\n");
    } else if (!held && next?.do !== "kill" && ["start", "type"].includes(step.do)) {
      // A job that it set off, and that nobody waits for, is done before the next step.
      if (this.#isQuiet(false) === false || this.#isQuiet(true)) await this.#settle(false, "\n");
    }
  }

  async #settle(answered: boolean, gap: string): Promise<void> {
    await this.#until(() => this.#isQuiet(answered));
    const news = this.#world.people?.news().replace(`${SILENCE}\n`, "");
    this.text = `${this.text.replace(LAST_PROMPT, "")}${gap}${await this.#drained()}${news}\nYou > `;
  }

  async #do(step: Step, next: Step | undefined): Promise<void> {
    if (step.do === "start") {
      await this.end();
      this.#shell(step.line);
      await this.#start();
    } else if (step.do === "fail") {
      const { model, people } = this.#world;
      (step.where === "model" ? model : people?.[step.where])?.fail(step.failure);
      this.#shell(step.line, `${step.said}\n`);
    } else if (step.do === "show") {
      this.#shell(step.line, show(this.#world.workspace, step.files, step.width));
    } else if (step.do === "say") {
      await this.#say(step);
    } else if (step.do === "rpc") {
      const printed = await this.#call(step.words);
      this.#shell(step.line, (await this.#drained()) + printed);
    } else if (step.do === "kill") {
      await this.stop();
      const text = this.#held ? this.text.replace(LAST_PROMPT, "") : this.text.trimEnd();
      this.text = `${text}\n${step.line}\n`;
    } else {
      if (this.#starts === 0) await this.#start();
      if (!this.#child) throw new Error(`The program has ended; "${step.line}" can't be typed.`);
      this.text += `${step.line}\n`;
      this.#child.stdin?.write(`${step.line}\n`);
      await this.#ready(next?.do === "kill" ? next.after : undefined);
    }
  }

  /** Closes the section's input and waits for its end. */
  async end(): Promise<void> {
    this.#child?.stdin?.end();
    await this.#until(() => false);
    this.#add();
  }

  async stop(): Promise<void> {
    this.#child?.kill("SIGKILL");
    await this.#until(() => false);
    this.#errors = this.#fresh = "";
  }

  async #start(): Promise<void> {
    const args = ["--import", import.meta.resolve("tsx"), "--import", WORLD, this.#world.file];
    const env = { ...process.env, ...this.#world.settings, RECORD_START: String(++this.#starts) };
    const limit = { timeout: PATIENCE, killSignal: "SIGKILL" } as const; // a signal's name
    const child = spawn(process.execPath, args, { cwd: ROOT, env, ...limit });
    child.stdout.setEncoding("utf8").on("data", (output: string) => {
      this.#fresh += output.replaceAll("\r", "");
      this.#wake();
    });
    child.stderr.setEncoding("utf8").on("data", (output: string) => {
      this.#errors += output;
    });
    child.stdin.on("error", () => {}); // it may be gone before a line reaches it
    child.on("close", (code, signal) => {
      if (code !== 0) this.#errors += `It ended with ${signal ?? `exit code ${code}`}.`;
      this.#child = undefined;
      this.#wake();
    });
    this.#child = child;
    await this.#ready();
    [, this.#port = ""] = /.*127\.0\.0\.1:(\d+)/s.exec(this.text) ?? []; // the last one
    this.#world.people?.setPort(this.#port);
    // They start side by side, and either may be the first.
    const sorted = (lines: string) => lines.split(/^/m).sort().reverse().join("");
    this.text = this.text.replace(/(?:^(?:telegram|feishu): .*\n){2}/gm, sorted);
  }

  /** A line on a phone: what the section prints because of it, then what the bot sends. */
  async #say(step: Saying & { line: string }): Promise<void> {
    const { people, model } = this.#world;
    if (!people || !this.#child) throw new Error(`Nobody is there for "${step.line}".`);
    let arrived = false;
    const hold = step.expect === TYPING ? model.hold() : undefined;
    void hold?.waiting.then(() => (arrived = true));
    await people.say(step);
    if (hold) await this.#until(() => arrived && people.isTaken());
    else await this.#until(() => this.#isQuiet(step.expect !== SILENCE));
    this.#held = hold ?? this.#held;
    this.#shell(step.line, (await this.#drained()) + (hold ? `${TYPING}\n` : people.news()));
  }

  #isQuiet(answered: boolean) {
    return this.#world.people?.isQuiet(this.#world.workspace, answered, this.#held ? 1 : 0);
  }

  /** What `npm run rpc` prints, from here on whatever becomes of it. */
  async #call(words: string[]): Promise<string> {
    const url = `--url=ws://127.0.0.1:${this.#port}/?token=${this.#world.settings.GATEWAY_TOKEN}`;
    const rpc = path.join(ROOT, "practice", "rpc.ts");
    const command = ["--import", import.meta.resolve("tsx"), rpc, url, ...words];
    return new Promise((resolve) => {
      execFile(process.execPath, command, { cwd: ROOT, timeout: PATIENCE }, (_, out, errors) =>
        resolve(out + errors),
      );
    });
  }

  async #until(done: () => boolean | undefined): Promise<void> {
    while (this.#child && !done()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 20); // nobody tells us of files and platforms: look again
      });
    }
  }

  /** What was printed outside of a line being answered. */
  async #drained(): Promise<string> {
    await new Promise((resolve) => setTimeout(resolve, 50)); // what is on its way in the pipe
    if (this.#errors) this.#add();
    const printed = this.#fresh.replace(/^\n/, "");
    this.#fresh = "";
    return printed;
  }

  /**
   * Waits for the prompt; or only for a piece of output, what follows it being left out. What comes
   * below the prompt by itself is for the next step to show.
   */
  async #ready(output = ""): Promise<void> {
    const seen = () => output !== "" && this.#fresh.includes(output);
    const prompt = () => this.#fresh.search(/(?<=^|\n)You > (?=\n|$)/);
    await this.#until(() => seen() || prompt() >= 0);
    if (output !== "" && !seen()) this.#errors += `It never printed "${output}".`;
    const end = seen() ? this.#fresh.indexOf(output) + output.length : prompt() + 6;
    const late = seen() || prompt() < 0 ? "" : this.#fresh.slice(end);
    if (seen() || late) this.#fresh = this.#fresh.slice(0, end);
    this.#add();
    this.#fresh = late;
  }

  #add(): void {
    this.text += this.#fresh;
    this.#fresh = "";
    if (this.#errors) throw new Error(`${this.#errors}\nUp to there:\n${this.text}`);
  }

  /** A line of the shell and what it prints; the prompt of a running section comes again below. */
  #shell(line: string, printed = ""): void {
    const text = this.text.replace(LAST_PROMPT, "");
    const gap = text === "" ? "" : /(^|\n)\$ .*$/.test(text) ? "\n" : "\n\n";
    this.text = `${text}${gap}${line}\n${printed}${this.#child ? "\nYou > " : ""}`;
  }
}

/** `*` stands for anything in a file or folder name; `width` cuts the lines, as `cut -c` does. */
function show(workspace: string, files: string, width?: number): string {
  const pattern = files.replace(/[^\w/*]/g, "\\$&").replaceAll("*", "[^/]*");
  const names = fs.readdirSync(workspace, { recursive: true, encoding: "utf8" });
  const matching = names
    .map((name) => name.replaceAll("\\", "/"))
    .filter((name) => new RegExp(`^${pattern}$`).test(name))
    .sort();
  if (matching.length === 0) throw new Error(`There is no file ${files} in the workspace.`);
  const texts = matching.map((name) => `${read(workspace, name).trimEnd()}\n`);
  return texts.join("").replace(/.+/g, (line) => line.slice(0, width));
}
