// npm run record [s02 …] [--lang en]: runs the sections that the transcripts of the lessons show,
// against the practice model, types what they type, and writes down what is printed.
import { type ChildProcess, spawn } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { type PracticeModel, startModel } from "../practice/model.ts";
import { isMain, ROOT, readLanguages, SECTIONS, sectionPath, short } from "./sections.ts";
import { readTranscripts, SETTINGS, type Step, type Transcript } from "./transcripts.ts";

const PATIENCE = 60_000; // a section that runs for so long hangs
/** When every recording takes place. What is printed of its first five minutes becomes this. */
const START = Date.UTC(2026, 0, 5, 10);
/** A prompt at which nothing is typed any more. */
const LAST_PROMPT = /\s*((^|\n)You >)?\s*$/;
const WORLD = pathToFileURL(path.join(import.meta.dirname, "same-world.ts")).href;

interface World {
  file: string;
  workspace: string;
  model: PracticeModel;
  settings: Record<string, string>;
}

/** One transcript being made: a section that runs, and what a reader would have seen so far. */
class Recording {
  text = "";
  readonly #world: World;
  #starts = 0;
  #child: ChildProcess | undefined;
  #fresh = ""; // printed, and not yet in the text
  #errors = "";
  #wake = () => {};

  constructor(world: World) {
    this.#world = world;
  }

  async take(step: Step, next: Step | undefined): Promise<void> {
    if (step.do === "start") {
      await this.end();
      this.#shell(step.line);
      await this.#start();
    } else if (step.do === "fail") {
      this.#world.model.fail(step.kind, step.times);
      this.#shell(step.line);
    } else if (step.do === "show") {
      this.#shell(step.line, show(this.#world.workspace, step.files, step.width));
    } else if (step.do === "kill") {
      await this.stop();
      this.text = `${this.text.trimEnd()}\n${step.line}\n`;
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
  }

  async #until(done: () => boolean): Promise<void> {
    while (this.#child && !done()) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Waits for the prompt; or only for a piece of output, what follows it being left out. */
  async #ready(output = ""): Promise<void> {
    const seen = () => output !== "" && this.#fresh.includes(output);
    await this.#until(() => seen() || /(^|\n)You > $/.test(this.#fresh));
    if (seen()) this.#fresh = this.#fresh.slice(0, this.#fresh.indexOf(output) + output.length);
    else if (output !== "") this.#errors += `It never printed "${output}".`;
    this.#add();
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
  const texts = matching.map((name) => fs.readFileSync(path.join(workspace, name), "utf8"));
  return texts
    .map((text) => `${text.trimEnd()}\n`)
    .join("")
    .replace(/.+/g, (line) => line.slice(0, width));
}

/** What differs from one recording to the next becomes the same. */
export function normalise(text: string, folders: Record<string, string>): string {
  let result = text;
  for (const [folder, name] of Object.entries(folders)) {
    const parts = folder.split(/[\\/]+/).map((part) => part.replace(/\W/g, "\\$&"));
    // C:\x is also C:\\x in JSON, C:/x, and /c/x in Git Bash.
    parts[0] = (parts[0] ?? "").replace(/^(\w)\\:$/, "(?:$1:|[\\\\/]$1(?=/))");
    const found = new RegExp(`${parts.join("[\\\\/]+")}(?!\\w)([\\\\/][\\w.%\\\\/-]*)?`, "gi");
    result = result.replace(found, (_all, rest = "") => name + rest.replace(/\\+/g, "/"));
  }
  const zeros = (time: string) => `10:00${time.slice(5).replace(/\d/g, "0")}`;
  const inTime = (ms: string) => Number(ms) >= START && Number(ms) < START + 5 * 60_000;
  return result
    .replace(/(127\.0\.0\.1|localhost|\[::1\]):\d{2,5}\b/g, "$1:8765")
    .replace(/(?<!\d)10:0[0-4](:[0-5]\d)?([.,]\d{3})?/g, zeros)
    .replace(/\b\d{13}\b/g, (ms) => (inTime(ms) ? String(START) : ms))
    .replace(/[ \t]+$/gm, "");
}

/** Makes one recording, in a copy of the template workspace, with a practice model of its own. */
export async function record(
  { setup, steps }: Transcript,
  file: string,
  template: string,
): Promise<string[]> {
  const folder = fs.realpathSync.native(fs.mkdtempSync(path.join(tmpdir(), "claw0-record-")));
  const workspace = path.join(folder, "workspace");
  fs.cpSync(template, workspace, { recursive: true });
  fs.rmSync(path.join(workspace, ".state"), { recursive: true, force: true });
  const model = await startModel();
  for (const { kind, times } of setup.failures) model.fail(kind, times);
  const settings = {
    ...Object.fromEntries(SETTINGS.map((name) => [name, ""])),
    ...{ ANTHROPIC_API_KEY: "practice", ANTHROPIC_BASE_URL: model.url, CLAW0_WORKSPACE: workspace },
    ...{ HTTP_PORT: "0", TZ: "UTC", LC_ALL: "C", NODE_OPTIONS: "", NODE_NO_WARNINGS: "1" },
    RECORD_SHIFT: String(START - Date.now()),
    ...setup.env,
  };
  const recording = new Recording({ file, workspace, model, settings });
  try {
    for (const [i, step] of steps.entries()) await recording.take(step, steps[i + 1]);
    await recording.end();
  } finally {
    await recording.stop();
    await model.close();
    fs.rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  }
  const home = "/home/you/claw0";
  const folders = { [workspace]: `${home}/workspace`, [ROOT]: home };
  return normalise(recording.text.replace(LAST_PROMPT, ""), folders).split("\n");
}

/** A lesson with its transcripts recorded anew; `fileOf` says where a section is. */
export async function recordLesson(
  markdown: string,
  fileOf: (section: string) => string,
  template = path.join(ROOT, "workspace"),
): Promise<string> {
  const { found, problems } = readTranscripts(markdown);
  if (problems.length > 0) throw new Error(problems.join("\n"));
  const lines = markdown.split("\n");
  for (const transcript of found.reverse()) {
    const recorded = await record(transcript, fileOf(transcript.section), template);
    const [fence = "```"] = /`+/.exec(lines[transcript.from - 1] ?? "") ?? [];
    if (recorded.some((line) => line.trimStart().startsWith(fence))) {
      throw new Error(`A section printed ${fence}. Put one backtick more round that transcript.`);
    }
    lines.splice(transcript.from, transcript.to - transcript.from - 1, ...recorded);
  }
  return lines.join("\n");
}

/** The lessons that are there: all, or those of some sections or of one language. */
export function existingLessons(only: string[] = [], language?: string) {
  const codes = [...readLanguages(ROOT).keys()].filter((code) => code === (language ?? code));
  const wanted = (name: string) => only.length === 0 || only.includes(short(name));
  return codes
    .flatMap((code) => SECTIONS.filter(wanted).map((name) => sectionPath(code, name, "md")))
    .filter((file) => fs.existsSync(path.join(ROOT, file)));
}

/** Records a lesson of the repository; gives what stands there and what should. */
export async function recordFile(file: string): Promise<{ before: string; after: string }> {
  const before = fs.readFileSync(path.join(ROOT, file), "utf8");
  const fileOf = (section: string) => {
    const name = SECTIONS.find((one) => short(one) === section);
    return path.join(ROOT, path.dirname(file), `${name}.ts`);
  };
  return { before, after: await recordLesson(before, fileOf) };
}

async function main(): Promise<void> {
  const options = { lang: { type: "string" } } as const; // what parseArgs infers from
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const files = existingLessons(positionals, values.lang);
  if (files.length === 0) throw new Error("There is no such lesson yet.");
  for (const file of files) {
    const { before, after } = await recordFile(file);
    if (before !== after) fs.writeFileSync(path.join(ROOT, file), after);
    console.log(`${file}: ${before === after ? "as it was" : "changed; git diff shows how"}`);
  }
}

if (isMain(import.meta.filename)) await main();
