// npm run record [s02 …] [--lang en]: runs the sections that the transcripts of the lessons show,
// in a practice world, types and says what they do, and writes down what is printed.
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { startModel } from "../practice/model.ts";
import { translateWorkspace } from "../practice/workspace.ts";
import { SETTINGS } from "../practice/world.ts";
import { LANGUAGES } from "../sessions/names.ts";
import { normalise, START } from "./normalise.ts";
import { People } from "./people.ts";
import { pictureOf } from "./picture.ts";
import { LAST_PROMPT, Recording } from "./recording.ts";
import { isMain, longName, ROOT, readLanguages, SECTIONS, sectionPath, short } from "./sections.ts";
import { readTranscripts, type Transcript } from "./transcripts.ts";

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
  const language = LANGUAGES.find((code) => code === path.basename(path.dirname(file)));
  translateWorkspace(workspace, language ?? "en");
  const model = await startModel();
  const shift = START - Date.now();
  const people = section < "s04" ? undefined : await People.start(shift);
  for (const failure of setup.failures) model.fail(failure);
  const settings = {
    ...settingsFor(model.url, workspace),
    ...people?.settings,
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

/** Every setting has a value, so that nothing of this machine gets into a recording. */
function settingsFor(url: string, workspace: string): Record<string, string> {
  const unset = Object.fromEntries(SETTINGS.map((name) => [name, ""]));
  return {
    ...unset,
    ANTHROPIC_API_KEY: "practice",
    ANTHROPIC_BASE_URL: url,
    CLAW0_WORKSPACE: workspace,
    GATEWAY_TOKEN: "practice-of-recording", // at least 16 characters
    HTTP_PORT: "0",
    TZ: "UTC",
    LC_ALL: "C",
    NODE_OPTIONS: "",
    NODE_NO_WARNINGS: "1",
  };
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
