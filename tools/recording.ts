// One transcript being made: a section that runs, people who write to it, and what is printed.
import { execFile } from "node:child_process";
import path from "node:path";
import type { Hold, PracticeModel } from "../practice/model.ts";
import type { People } from "./people.ts";
import { SectionProcess, TIMEOUT } from "./section-process.ts";
import { ROOT } from "./sections.ts";
import { show } from "./show.ts";
import { type Saying, SILENCE, type Step, TYPING } from "./transcripts.ts";

/** A prompt at which nothing is typed any more. */
export const LAST_PROMPT = /\s*((^|\n)You >)?\s*$/;

interface World {
  file: string;
  workspace: string;
  model: PracticeModel;
  people?: People; // from s04 on
  settings: Record<string, string>;
}

export class Recording {
  /** What a reader would have seen so far. */
  text = "";
  readonly #world: World;
  readonly #section = new SectionProcess();
  #starts = 0;
  #port = "";
  #held: Hold | undefined; // somebody's answer, which comes after the next step

  constructor(world: World) {
    this.#world = world;
  }

  /** Does a step. What it sets off is over before the next one, unless the transcript says other. */
  async take(step: Step, next: Step | undefined): Promise<void> {
    const held = this.#held;
    await this.#do(step, next);
    if (held !== undefined && held === this.#held) await this.#release(held, step);
    if (held === undefined && next?.do !== "kill") await this.#finishJobs(step);
  }

  /** Lets the answer go that was held back until the next step was done. */
  async #release(held: Hold, step: Step): Promise<void> {
    held.release();
    if (!this.#section.isRunning) return; // it was killed: the answer comes after the next start
    this.#held = undefined;
    await this.#settle(true, step.do === "start" ? "\n\n" : "\n");
  }

  /** A start or a typed line may set off a job that nobody waits for. It ends before the next step. */
  async #finishJobs(step: Step): Promise<void> {
    if (step.do !== "start" && step.do !== "type") return;
    const isBusy = this.#isQuiet(false) === false;
    const hasNews = this.#isQuiet(true) === true;
    if (isBusy || hasNews) await this.#settle(false, "\n");
  }

  async #settle(answered: boolean, gap: string): Promise<void> {
    await this.#section.waitUntil(() => this.#isQuiet(answered));
    const news = this.#world.people?.news().replace(`${SILENCE}\n`, "");
    const before = this.text.replace(LAST_PROMPT, "");
    this.text = `${before}${gap}${await this.#drained()}${news}\nYou > `;
  }

  async #do(step: Step, next: Step | undefined): Promise<void> {
    switch (step.do) {
      case "start":
        await this.end();
        this.#addCommand(step.line);
        return this.#start();
      case "type":
        return this.#type(step.line, next);
      case "kill":
        return this.#kill(step.line);
      case "say":
        return this.#say(step);
      case "rpc":
        return this.#callGateway(step);
      case "fail":
        return this.#orderFailure(step);
      case "show":
        return this.#addCommand(step.line, show(this.#world.workspace, step.files, step.width));
    }
  }

  async #type(line: string, next: Step | undefined): Promise<void> {
    if (this.#starts === 0) await this.#start();
    if (!this.#section.isRunning)
      throw new Error(`The program has ended; "${line}" can't be typed.`);
    this.text += `${line}\n`;
    this.#section.type(line);
    const output = next?.do === "kill" ? next.after : undefined; // the last that is seen of it
    this.#add(await (output ? this.#section.readTo(output) : this.#section.readToPrompt()));
  }

  async #kill(line: string): Promise<void> {
    await this.#section.kill();
    const text = this.#held ? this.text.replace(LAST_PROMPT, "") : this.text.trimEnd();
    this.text = `${text}\n${line}\n`;
  }

  async #callGateway({ line, words }: Step & { do: "rpc" }): Promise<void> {
    const printed = await this.#call(words);
    this.#addCommand(line, (await this.#drained()) + printed);
  }

  #orderFailure({ line, where, failure, said }: Step & { do: "fail" }): void {
    const { model, people } = this.#world;
    const target = where === "model" ? model : people?.[where];
    target?.fail(failure);
    this.#addCommand(line, `${said}\n`);
  }

  /** Ends the section, and adds what it prints last. */
  async end(): Promise<void> {
    await this.#section.end();
    this.#add(this.#section.take());
  }

  async stop(): Promise<void> {
    await this.#section.kill();
  }

  async #start(): Promise<void> {
    this.#starts += 1;
    this.#section.start(this.#world.file, this.#world.settings, this.#starts);
    this.#add(await this.#section.readToPrompt());
    const ports = [...this.text.matchAll(/127\.0\.0\.1:(\d+)/g)];
    this.#port = ports.at(-1)?.[1] ?? "";
    this.#world.people?.setPort(this.#port);
    // The two channels start side by side, so either may be the first to say that it is ready.
    const sorted = (lines: string) => lines.split(/^/m).sort().reverse().join("");
    this.text = this.text.replace(/(?:^(?:telegram|feishu): .*\n){2}/gm, sorted);
  }

  /** A line on a phone: what the section prints because of it, then what the bot sends. */
  async #say(step: Saying & { line: string }): Promise<void> {
    const { people } = this.#world;
    if (!people || !this.#section.isRunning) throw new Error(`Nobody is there for "${step.line}".`);
    if (step.expect === TYPING) {
      await this.#holdAnswer(people, step);
      this.#addCommand(step.line, `${await this.#drained()}${TYPING}\n`);
      return;
    }
    await people.say(step);
    await this.#section.waitUntil(() => this.#isQuiet(step.expect !== SILENCE));
    this.#addCommand(step.line, (await this.#drained()) + people.news());
  }

  /** Says a line whose answer the model holds back, and waits until the model has been asked. */
  async #holdAnswer(people: People, step: Saying): Promise<void> {
    const hold = this.#world.model.hold();
    let isAsked = false;
    void hold.waiting.then(() => {
      isAsked = true;
    });
    await people.say(step);
    await this.#section.waitUntil(() => isAsked && people.isTaken());
    this.#held = hold;
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
      execFile(process.execPath, command, { cwd: ROOT, timeout: TIMEOUT }, (_, out, errors) =>
        resolve(out + errors),
      );
    });
  }

  /** What was printed outside of a line being answered. */
  async #drained(): Promise<string> {
    await new Promise((resolve) => setTimeout(resolve, 50)); // what is on its way in the pipe
    if (this.#section.errors) this.#add(this.#section.take());
    return this.#section.take().replace(/^\n/, "");
  }

  /** Adds what the section has printed. Throws if something went wrong in it. */
  #add(printed: string): void {
    this.text += printed;
    const { errors } = this.#section;
    if (errors) throw new Error(`${errors}\nUp to there:\n${this.text}`);
  }

  /** A line of the shell and what it prints; the prompt of a running section comes again below. */
  #addCommand(line: string, printed = ""): void {
    const text = this.text.replace(LAST_PROMPT, "");
    const prompt = this.#section.isRunning ? "\nYou > " : "";
    this.text = `${text}${gapBelow(text)}${line}\n${printed}${prompt}`;
  }
}

/** Commands that print nothing stand directly below each other. */
function gapBelow(text: string): string {
  if (text === "") return "";
  return /(^|\n)\$ .*$/.test(text) ? "\n" : "\n\n";
}
