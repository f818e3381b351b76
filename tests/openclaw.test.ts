import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hasSymbol, missing, type References } from "../tools/openclaw.ts";

let dir = "";

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "claw0-openclaw-"));
  mkdirSync(join(dir, "dist", "deep"), { recursive: true });
  writeFileSync(
    join(dir, "dist", "one-AbC.mjs"),
    [
      "const outside = 1;",
      "//#region src/loop.ts",
      "const MAX_ROUNDS = 3e5;",
      "function run$1() {}",
      "//#endregion",
      "//#region src/other.ts",
      'const MODE = "full", other = 7;',
      "//#endregion",
    ].join("\n"),
  );
  // The same source file in a second bundle, with Windows line endings and another part of it.
  writeFileSync(
    join(dir, "dist", "deep", "two.js"),
    "//#region src/loop.ts\r\nconst settings = { reserve: 16384 };\r\n//#endregion\r\n",
  );
  writeFileSync(join(dir, "dist", "notes.md"), "//#region src/notes.ts\nnote\n//#endregion\n");
});

afterAll(() => rmSync(dir, { recursive: true, force: true }));

const find = (path: string, ...symbols: string[]) => missing([{ path, symbols }], dir);

describe("openclaw references", () => {
  test("finds names and values in every bundle that has the file", () => {
    expect(find("src/loop.ts", "run", "MAX_ROUNDS", "MAX_ROUNDS=300000", "reserve=16384")).toEqual(
      [],
    );
    expect(find("src/other.ts", "MODE=full", "other=7")).toEqual([]);
  });

  test("names a path that is not there; only scripts count", () => {
    expect(find("src/gone.ts", "run")).toEqual(["src/gone.ts: no such file in the bundle"]);
    expect(find("src/notes.ts", "note")).toHaveLength(1);
  });

  test("names a missing symbol, also when it is only in another file or part of a word", () => {
    expect(find("src/loop.ts", "MODE", "outside", "MAX", "reserve")).toEqual([
      "src/loop.ts: MODE is not in it",
      "src/loop.ts: outside is not in it",
      "src/loop.ts: MAX is not in it",
    ]);
  });

  test("names a wrong value", () => {
    expect(find("src/loop.ts", "MAX_ROUNDS=3", "reserve=1638", "run=1")).toEqual([
      "src/loop.ts: MAX_ROUNDS=3 is not in it",
      "src/loop.ts: reserve=1638 is not in it",
      "src/loop.ts: run=1 is not in it",
    ]);
  });

  test("a number is the same however it is written", () => {
    expect(hasSymbol("const SHARE = .3;", "SHARE=0.3")).toBe(true);
    expect(hasSymbol("const SHARE = 1_000;", "SHARE=1000")).toBe(true);
    expect(hasSymbol('x({ "mode": "off" })', "mode=off")).toBe(true);
    expect(hasSymbol('if (tool.mode === "off") stop()', "mode=off")).toBe(true);
    expect(hasSymbol("const SHARE = .35;", "SHARE=0.3")).toBe(false);
  });

  test("the list names an exact release, and each file once", () => {
    const text = readFileSync(join(import.meta.dirname, "..", "tools", "openclaw.json"), "utf8");
    const list: References = JSON.parse(text);
    expect(list.package).toMatch(/^openclaw@\d+\.\d+\.\d+$/);
    const paths = list.references.map((reference) => reference.path);
    expect(new Set(paths).size).toBe(paths.length);
  });
});
