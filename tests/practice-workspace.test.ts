/** The Chinese and the Japanese workspace of practice, compared with the English one. */

import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { translateWorkspace } from "../practice/workspace.ts";
import { ROOT } from "../practice/world.ts";
import { temporaryFolder } from "./helper.ts";
import { say } from "./practice-tools.ts";

const folderOf = (language: string): string => join(ROOT, "practice", "workspace", language);

interface Job {
  id: string;
  payload: { kind: string; message?: string };
}

const english = join(ROOT, "workspace");
const namesIn = (folder: string) =>
  readdirSync(folder, { recursive: true, encoding: "utf8" }).sort();
const jobsIn = (folder: string): Job[] =>
  JSON.parse(readFileSync(join(folder, "CRON.json"), "utf8")).jobs; // files of this repository

/** A text with its words left out: what a Markdown file has of headings, items and comments. */
const shapeOf = (folder: string, name: string): string[] => {
  const lines = readFileSync(join(folder, name), "utf8").split("\n");
  return lines.flatMap((line) => /^(?:#+|-|<!--|HEARTBEAT_OK)(?= |$)/.exec(line)?.[0] ?? []);
};

describe.each(["zh", "ja"] as const)("the workspace in %s", (language) => {
  const folder = folderOf(language);

  it("takes the place of the English one, and gives it back, but for what somebody changed", () => {
    const copy = temporaryFolder();
    for (const name of namesIn(folder))
      cpSync(join(english, name), join(copy, name), { recursive: true });
    const read = (place: string, name: string) => readFileSync(join(place, name), "utf8");
    const files = namesIn(folder).filter((name) => /\.\w+$/.test(name));
    const same = (place: string) => files.filter((name) => read(copy, name) === read(place, name));
    translateWorkspace(copy, language);
    expect(same(folder)).toEqual(files);
    translateWorkspace(copy, "en");
    expect(same(english)).toEqual(files);
    writeFileSync(join(copy, "SOUL.md"), "I am somebody else.");
    rmSync(join(copy, "USER.md"));
    translateWorkspace(copy, language);
    expect(read(copy, "SOUL.md")).toBe("I am somebody else.");
    expect(existsSync(join(copy, "USER.md"))).toBe(false);
    expect(read(copy, "MEMORY.md")).toBe(read(folder, "MEMORY.md"));
  });

  it("has the files that Chinese has, and no others than English", () => {
    expect(namesIn(folder)).toEqual(namesIn(folderOf("zh")));
    expect(namesIn(folder).filter((name) => !existsSync(join(english, name)))).toEqual([]);
  });

  it("says as much as the English one", () => {
    for (const name of namesIn(folder).filter((one) => one.endsWith(".md"))) {
      expect([name, ...shapeOf(folder, name)]).toEqual([name, ...shapeOf(english, name)]);
    }
  });

  it("has the same jobs, at other hours and in other words", () => {
    const wordless = (jobs: Job[]) =>
      jobs.map((job) => ({ ...job, name: "", schedule: "", payload: job.payload.kind }));
    expect(wordless(jobsIn(folder))).toEqual(wordless(jobsIn(english)));
  });

  it("has jobs that the practice model can do", () => {
    const messages = jobsIn(folder).map(({ payload }) => payload.message ?? "");
    const [, morning = "", birthday = ""] = messages;
    expect(say(morning, { channel: "cron" }).calls[0]?.[0]).toBe("list_directory");
    const reminder = { zh: "提醒一下：给她打电话。", ja: "お忘れなく：美咲に電話する。" }[language];
    expect(say(birthday, { channel: "cron" }).words).toContain(reminder);
  });

  it("has a heartbeat that needs nobody", () => {
    const tasks = readFileSync(join(folder, "HEARTBEAT.md"), "utf8");
    const ask = "If nothing needs the owner, answer HEARTBEAT_OK and nothing else.";
    expect(say(`${tasks}\n\n${ask}`).words).toBe("HEARTBEAT_OK");
  });
});
