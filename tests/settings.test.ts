/** The examples of .env: the same settings in three languages, and all that a section reads. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "dotenv";
import { describe, expect, it } from "vitest";
import { ROOT, SETTINGS } from "../practice/world.ts";

const read = (name: string): string => readFileSync(join(ROOT, name), "utf8");

/** The lines with settings, also those that are off, in their order. */
const settingsOf = (name: string): string[] => read(name).match(/^(?:# )?[A-Z]\w*=.*$/gm) ?? [];

describe(".env.example", () => {
  it.each([".env.zh.example", ".env.ja.example"])("%s has the same settings and values", (name) => {
    expect(settingsOf(name)).toEqual(settingsOf(".env.example"));
    expect(parse(read(name))).toEqual(parse(read(".env.example")));
  });

  it("has a line for each setting that a section reads", () => {
    const names = settingsOf(".env.example").map((line) => /\w+/.exec(line)?.[0]);
    // Of the keys it shows three, and says that there may be nine. The SDK reads the other by itself.
    const left = /^ANTHROPIC_(API_KEY_[4-9]|AUTH_TOKEN)$/;
    expect([...names].sort()).toEqual(SETTINGS.filter((name) => !left.test(name)).sort());
  });

  it("belongs to practice: no setting that a section reads can leak in from somebody's .env", () => {
    const section = read("sessions/en/s10_concurrency.ts");
    const calls = /\b(?:env|setting|wholeNumber)\("([A-Z]\w+)"/g;
    const names = [...section.matchAll(calls)].map(([, name]) => name);
    const { length } = names;
    expect(length).toBeGreaterThan(10);
    expect(
      names.filter((name) => !/_PROXY$/.test(name ?? "") && !SETTINGS.includes(name ?? "")),
    ).toEqual([]);
  });
});
