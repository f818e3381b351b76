// npm run record [s02 …] [--lang en]: runs the sections that the transcripts of the lessons show,
// in a practice world, types and says what they do, and writes down what is printed.
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { startModel } from "../practice/model.ts";
import { SETTINGS } from "../practice/world.ts";
import { People } from "./people.ts";
import { pictureOf } from "./picture.ts";
import { LAST_PROMPT, Recording } from "./recording.ts";
import { isMain, longName, ROOT, readLanguages, SECTIONS, sectionPath, short } from "./sections.ts";
import { readTranscripts, type Transcript } from "./transcripts.ts";

/**
 * When every recording takes place. What is printed of its first five minutes becomes this,
 * and half an hour and an hour later the same: a heartbeat and a job may be due then.
 */
const START = Date.UTC(2026, 0, 5, 10);

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
  const zeros = (time: string) => `${time.slice(0, 4)}0${time.slice(5).replace(/\d/g, "0")}`;
  const inTime = (ms: string) => Number(ms) >= START && Number(ms) < START + 5 * 60_000;
  return result
    .replace(/(127\.0\.0\.1|localhost|\[::1\]):\d{2,5}\b/g, "$1:8765")
    .replace(/(?<!\d)(10:0|10:3|11:0)[0-4](:[0-5]\d)?([.,]\d{3})?/g, zeros)
    .replace(/\b\d{13}\b/g, (ms) => (inTime(ms) ? String(START) : ms))
    .replace(/("uptime": )\d+/g, "$112")
    .replace(/[ \t]+$/gm, "");
}

/** Makes one recording, in a copy of the template workspace, with a practice model of its own. */
export async function record(
  { section, setup, steps }: Transcript,
  file: string,
  template: string,
): Promise<string[]> {
  const folder = fs.realpathSync.native(fs.mkdtempSync(path.join(tmpdir(), "claw0-record-")));
  const workspace = path.join(folder, "workspace");
  fs.cpSync(template, workspace, { recursive: true });
  fs.rmSync(path.join(workspace, ".state"), { recursive: true, force: true });
  const model = await startModel();
  const shift = START - Date.now();
  const people = section < "s04" ? undefined : await People.start(shift);
  for (const failure of setup.failures) model.fail(failure);
  const settings = {
    ...Object.fromEntries(SETTINGS.map((name) => [name, ""])),
    ...{ ANTHROPIC_API_KEY: "practice", ANTHROPIC_BASE_URL: model.url, CLAW0_WORKSPACE: workspace },
    ...{ HTTP_PORT: "0", TZ: "UTC", LC_ALL: "C", NODE_OPTIONS: "", NODE_NO_WARNINGS: "1" },
    ...{ GATEWAY_TOKEN: "practice", ...people?.settings },
    RECORD_SHIFT: String(shift),
    ...setup.env,
  };
  const recording = new Recording({ file, workspace, model, people, settings });
  try {
    for (const [i, step] of steps.entries()) await recording.take(step, steps[i + 1]);
    await recording.end();
  } finally {
    await recording.stop();
    await Promise.all([model.close(), people?.close()]);
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

/**
 * The lessons that can be recorded: all that a language claims, or those of some sections or of one
 * language. The others describe an earlier release, so today's sections print something else.
 */
export function existingLessons(only: string[] = [], onlyLanguage?: string) {
  const files: string[] = [];
  for (const [code, { lessons }] of readLanguages(ROOT)) {
    if (code !== (onlyLanguage ?? code)) continue;
    for (const name of SECTIONS) {
      const isWanted = only.length === 0 || only.includes(short(name));
      if (isWanted && lessons.includes(short(name))) files.push(sectionPath(code, name, "md"));
    }
  }
  return files.filter((file) => fs.existsSync(path.join(ROOT, file)));
}

/** Records a lesson of the repository; gives what stands there and what should. */
export async function recordFile(file: string): Promise<{ before: string; after: string }> {
  const before = fs.readFileSync(path.join(ROOT, file), "utf8");
  const folder = path.join(ROOT, path.dirname(file));
  const fileOf = (section: string) => path.join(folder, `${longName(section)}.ts`);
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
    const picture = pictureOf(after);
    if (picture) fs.writeFileSync(path.join(ROOT, file.replace(/md$/, "svg")), picture);
    console.log(`${file}: ${before === after ? "as it was" : "changed; git diff shows how"}`);
  }
}

if (isMain(import.meta.filename)) await main();
