import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { LANGUAGES } from "../sessions/names.ts";
import { checkSizes, checkStyle, checkTypes } from "../tools/check.ts";
import { checkClaims, checkSections } from "../tools/check-sections.ts";
import {
  existingSections,
  findSection,
  ROOT,
  readLanguages,
  SECTIONS,
  short,
} from "../tools/sections.ts";
import { english, type Files, goodSections, put, region, tree } from "./tools-tree.ts";

const claims = (...ids: string[]) => ({
  code: ids,
  comments: ids,
  lessons: ids,
  headings: [],
  minutes: "",
});
const ALL = claims(...SECTIONS.map(short));

/** The problems of a tree of sections. */
const problemsIn = (files: Files, claimed = ALL) => checkSections(tree(files), claimed).problems;

const lines = (count: number, text = (i: number) => `f(${i});`) =>
  Array.from({ length: count }, (_, i) => `${text(i)}\n`).join("");

/** A section of its own: a banner, comments and as many code lines. */
const sized = (code: number, comments: number) =>
  "// ---- s01 · Part 1 ----\n" + lines(comments - 1, () => "// why") + lines(code);

describe("sections", () => {
  test("none at all is fine", () => {
    expect(problemsIn({ "README.md": "" })).toEqual([]);
  });

  test("ten good ones are fine, and their figures are told", () => {
    const { problems, notes, facts } = checkSections(tree(goodSections(10)), ALL);
    expect([...problems, ...notes]).toEqual([]);
    expect(facts).toContain("s02: 8 code lines (+4), 20.0% comments");
    expect(facts).toContain("s02 → s03: 100.0% kept");
    expect(facts).toContain("kept on average: 100.0%");
  });

  test("too little is kept: the removed lines are listed", () => {
    const files = goodSections(3);
    const broken = files[english(2)]?.replace("b1 = 1", "b1 = 2") ?? "";
    const [first, ...rest] = problemsIn({ ...files, [english(2)]: broken });
    expect(first).toMatch(/s02_tool_use\.ts: s01 → s02: 75\.0% kept, 98% is the rule/);
    expect(first).toMatch(/s01_agent_loop\.ts .*\n {4}- export const b1 = 1;$/s);
    expect(rest).toEqual([expect.stringMatching(/s03_sessions\.ts: s02 → s03: 87\.5% kept/)]);
    const { facts } = checkSections(tree({ ...files, [english(2)]: broken }), ALL);
    expect(facts).toContain("s01 → s02: 75.0% kept\n    - export const b1 = 1;");
  });

  test("98% at each step is not enough on average", () => {
    const files: Files = {};
    for (let n = 1; n <= 10; n++) {
      const changed = (i: number) => `f(${i}, ${i < 2 ? n : 0});`;
      const banners = lines(n, (i) => region(i + 1).split("\n")[0] ?? "");
      files[english(n)] = banners + lines(25 - n, () => "// why") + lines(100, changed);
    }
    expect(problemsIn(files)).toEqual([
      expect.stringMatching(/^sessions\/en: 98\.0% kept on average/),
    ]);
    delete files[english(10)]; // the average counts when all ten are there
    expect(problemsIn(files)).toEqual([]);
  });

  test("a gap is no step", () => {
    const { [english(2)]: _, ...files } = goodSections(3);
    files[english(1)] += "// why\nf1();\nf2();\n"; // gone in s03, which is not compared
    expect(problemsIn(files)).toEqual([]);
  });

  test.each([
    [1, 145, 0, ""],
    [1, 146, 0, "adds 146 code lines, 145 is the limit"],
    [2, 670, 140, ""],
    [2, 671, 140, "adds 531 code lines, 530 is the limit"],
    [3, 730, 140, ""],
    [3, 731, 140, "adds 591 code lines, 590 is the limit"],
    [4, 1310, 140, ""],
    [4, 1311, 140, "adds 1171 code lines, 1170 is the limit"],
    [5, 670, 140, ""],
    [5, 671, 140, "adds 531 code lines, 530 is the limit"],
    [3, 1130, 700, ""],
    [3, 1131, 700, "has 1131 code lines, 1130 is the limit"],
    [5, 2751, 2400, "has 2751 code lines, 2750 is the limit"],
    [7, 3701, 3400, "has 3701 code lines, 3700 is the limit"],
    [10, 4601, 4300, "has 4601 code lines, 4600 is the limit"],
  ])("the budget of s%i: %i lines after %i", (n, count, before, problem) => {
    const source = (size: number) => sized(size, Math.round(size / 4));
    const files: Files = { [english(n)]: source(count) };
    if (before > 0) files[english(n - 1)] = source(before);
    const found = problemsIn(files).filter((one) => one.includes("is the limit"));
    expect(found).toEqual(
      problem ? [`${english(n)}: ${problem}. ${found[0]?.split(". ")[1]}`] : [],
    );
  });

  test.each([
    [0, "", true], // a share that says nothing about the comments is no aim
    [25, "", true],
    [26, "26.0%", false],
  ])("%i%% of comments", (comments, share, fine) => {
    const found = problemsIn({ [english(1)]: sized(100 - comments, comments) });
    expect(found).toEqual(fine ? [] : [expect.stringContaining(`${share} of the lines are`)]);
  });

  test("a comment wider than 100 columns", () => {
    const good = region(1);
    const wide = `// ${"x".repeat(98)}\n`;
    expect(problemsIn({ [english(1)]: good + lines(3) + wide })).toEqual([
      expect.stringMatching(/^sessions\/en\/s01_agent_loop\.ts:9: a comment of more than 100/),
    ]);
    expect(problemsIn({ [english(1)]: good + lines(3) + wide.replace("x", "") })).toEqual([]);
  });

  test.each([
    ['import "./s02_tool_use.ts";', "./s02_tool_use.ts"],
    ['import type { A } from "../../practice/model.ts";', "../../practice/model.ts"],
    ['import fs from "fs";', "fs"],
    ['export * from "wsx";', "wsx"],
    ['const a = await import("express");', "express"],
    ['import "node:fs";', ""],
    ['import { type A } from "@anthropic-ai/sdk/resources";', ""],
    ['export { b } from "ws";', ""],
    ['const c = await import("cron-parser");', ""],
  ])("imports: %s", (line, problem) => {
    const found = problemsIn({ [english(1)]: `${region(1)}${line}\n` });
    const message = `${english(1)}:6: imports "${problem}". A section imports only`;
    expect(found).toEqual(problem ? [expect.stringContaining(message)] : []);
  });

  test.each([
    ["no banner", "// Part 1\n", "missing"],
    ["another form", "// --- s01: Part 1 ---\n", "missing"],
    ["one too many", `${region(1)}${region(2)}`, "s01 s02"],
    ["one twice", `${region(1)}// ---- s01 · Part 1 ----\n`, "s01 s01"],
  ])("regions: %s", (_name, source, found) => {
    const text = `${source}${lines(3)}`;
    expect(problemsIn({ [english(1)]: text }).filter((one) => one.includes("regions"))).toEqual([
      expect.stringContaining(`its regions are ${found}, they must be s01, each once`),
    ]);
  });

  test("regions out of order", () => {
    const files = goodSections(2);
    files[english(2)] = region(2) + region(1);
    expect(problemsIn(files)[0]).toMatch(/regions are s02 s01, they must be s01 s02/);
  });

  test("a region that vanishes or moves, also one without a number", () => {
    const one = region(1) + lines(3);
    const main = "// ---- Putting it together ----\nmain();\n";
    const gone = (second: string) => problemsIn({ [english(1)]: one + main, [english(2)]: second });
    const message = `${english(2)}: "// ---- Putting it together ----" of ${english(1)} is gone`;
    expect(gone(`${one + region(2)}// start\nmain();\n`)).toEqual([
      expect.stringContaining(message),
    ]);
    expect(gone(one + region(2) + main)).toEqual([]);
    expect(gone(main + one + region(2))).toContainEqual(expect.stringContaining(message));
  });

  test("a file that doesn't parse is a problem; the others are checked all the same", () => {
    const files = { ...goodSections(4), [english(2)]: "const = 1;\n" };
    expect(problemsIn(files)).toEqual([
      expect.stringMatching(/s02_tool_use\.ts:1: does not parse/),
    ]);
  });

  test("problems of a section that is not claimed are notes", () => {
    const root = tree({ [english(1)]: "f();\n" });
    expect(checkSections(root, claims()).problems).toEqual([]);
    expect(checkSections(root, claims()).notes).toHaveLength(1);
    expect(checkSections(root, claims("s01")).problems).toHaveLength(1);
  });
});

describe("claims", () => {
  const languages = (...sections: string[]) => new Map([["ja", claims(...sections)]]);

  test("claimed and missing fails, for code and lesson", () => {
    const root = tree({ "sessions/ja/s01_agent_loop.ts": "" });
    const missing = /^sessions\/ja\/s01_agent_loop\.md: missing, but tools\/languages\.json/;
    expect(checkClaims(root, languages("s01")).problems).toEqual([expect.stringMatching(missing)]);
    put(root, { "sessions/ja/s01_agent_loop.md": "" });
    expect(checkClaims(root, languages("s01"))).toEqual({ problems: [], notes: [], facts: [] });
  });

  test("there and not claimed is said", () => {
    const { problems, notes } = checkClaims(
      tree({ "sessions/ja/s02_tool_use.md": "" }),
      languages(),
    );
    expect(problems).toEqual([]);
    expect(notes).toEqual([expect.stringContaining("sessions/ja/s02_tool_use.md")]);
  });

  test("code and lesson are claimed apart", () => {
    const root = tree({ "sessions/ja/s01_agent_loop.ts": "" });
    const codeOnly = new Map([["ja", { ...claims("s01"), lessons: [] }]]);
    expect(checkClaims(root, codeOnly)).toEqual({ problems: [], notes: [], facts: [] });
    const lessonOnly = new Map([["ja", { ...claims("s01"), code: [] }]]);
    expect(checkClaims(root, lessonOnly).problems).toEqual([
      expect.stringContaining("sessions/ja/s01_agent_loop.md: missing"),
    ]);
  });

  test("a section that doesn't exist can't be claimed", () => {
    expect(checkClaims(tree({}), languages("s11")).problems[0]).toMatch(/s11\.ts: missing/);
  });
});

describe("names", () => {
  test("the languages of the one list are those that claim something", () => {
    expect([...readLanguages(ROOT).keys()]).toEqual([...LANGUAGES]);
  });

  test("a section is found by its number or its name, in its language", () => {
    const root = tree(goodSections(2));
    expect(existingSections(root, "en")).toEqual(["s01_agent_loop", "s02_tool_use"]);
    expect(findSection(root, "en", "s02")).toBe("s02_tool_use");
    expect(findSection(root, "en", "s02_tool_use")).toBe("s02_tool_use");
    expect(() => findSection(root, "en", "s03")).toThrow(/There are: s01_agent_loop, s02_tool_use/);
    expect(() => findSection(root, "zh", "s01")).toThrow(/sessions\/zh\. There are none yet/);
  });
});

describe("sizes", () => {
  const code = (count: number) => lines(count);
  test.each([
    ["a tool of 250 lines", { "tools/a.ts": code(250) }, ""],
    ["a tool of 251", { "tools/a.ts": code(251) }, "tools/a.ts: 251 lines, 250 is the limit"],
    ["a phone of 119", { "practice/phone.ts": code(119), "practice/model.ts": code(400) }, ""],
    ["a phone of 120", { "practice/phone.ts": code(120) }, "practice/phone.ts: 120 lines, 119 is"],
  ])("%s", (_name, files, problem) => {
    const root = tree({ "tools/x.json": "", "practice/x.json": "", ...files });
    const { problems } = checkSizes(root);
    expect(problems).toEqual(problem ? [expect.stringContaining(problem)] : []);
  });

  test("all tools together may be of any size, and it is said", () => {
    const root = tree({ "practice/x.json": "" });
    put(
      root,
      Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`tools/${i}.ts`, code(240)])),
    );
    expect(checkSizes(root)).toMatchObject({
      problems: [],
      facts: ["tools: 2400 code lines in 10 files"],
    });
  });
});

describe("types and style", () => {
  const settings = readFileSync(path.join(import.meta.dirname, "../biome.json"), "utf8");
  const compiler = { compilerOptions: { strict: true, noEmit: true, types: [] } };
  const files = { "biome.json": settings, "tsconfig.json": JSON.stringify(compiler) };

  test("a wrong type", async () => {
    const root = tree({ ...files, "tools/a.ts": 'export const a: number = "1";\n' });
    expect((await checkTypes(root)).problems).toEqual([
      expect.stringMatching(/^types:\ntools\/a\.ts\(1,14\): error TS2322/),
    ]);
    put(root, { "tools/a.ts": "export const a: number = 1;\n" });
    expect((await checkTypes(root)).problems).toEqual([]);
  });

  test("a shadowed name, and a function that is too complex", () => {
    const shadow = "const a = 1;\nexport const f = (a: number) => a;\nexport { a };\n";
    const loops = (depth: number): string =>
      depth === 0 ? "g();" : `for (const x${depth} of xs) {${loops(depth - 1)}}`;
    // A loop counts as much as its depth: 1 + 2 + 3 + 4 = 10, and with a fifth 15.
    const nested = (depth: number) =>
      `export function f(xs: number[], g: () => void) {${loops(depth)}}`;
    const found = (code: string) =>
      checkStyle(tree({ ...files, "tools/a.ts": code })).problems.join();
    expect(found(shadow)).toContain("noShadow");
    expect(found(nested(5))).toContain("noExcessiveCognitiveComplexity");
    expect(found(nested(4))).not.toContain("noExcessiveCognitiveComplexity");
  });

  test("an unformatted line, and an any", async () => {
    const root = tree({ ...files, "tools/a.ts": "export  const a: any = 1\n" });
    const { problems } = await checkStyle(root);
    expect(problems[0]).toMatch(/format and lint[\s\S]*tools\/a\.ts[\s\S]*noExplicitAny/);
    put(root, { "tools/a.ts": "export const a: number = 1;\n" });
    expect((await checkStyle(root)).problems).toEqual([]);
  });
});
