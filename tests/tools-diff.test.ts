import { spawnSync } from "node:child_process";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import { diff } from "../tools/diff.ts";
import { english, type Files, tree } from "./tools-tree.ts";

const FILES: Files = {
  [english(1)]: "// one\nfunction f() {\n  g();\n}\n",
  [english(2)]: "// two\nfunction f() {\n  // why\n  g();\n  h();\n}\n",
  [english(3)]: "// three\nf();\n",
  [english(4)]: "three();\nold();\n// ---- s03 · A ----\na();\n",
  [english(5)]: `three();
hooked();
// ---- s03 · A ----
a();
// ---- s05 · New ----
// -- 1 · First --
first();

// -- 2 · Second --
// why
second();
// ---- All of it together ----
`,
  "sessions/zh/s01_agent_loop.ts": "// 一\nf();\n",
  "sessions/zh/s02_tool_use.ts": "// 二\nf();\n",
};

/** What a person sees, who has no terminal. Git itself prints, so it takes a process of its own. */
function printed(...args: string[]): string {
  const tool = pathToFileURL(path.join(import.meta.dirname, "../tools/diff.ts")).href;
  const call = `${JSON.stringify(tree(FILES))}, ${JSON.stringify(args)}`;
  const script = `import { diff } from "${tool}"; diff(${call});`;
  const node = ["--import", import.meta.resolve("tsx"), "--input-type=module", "-e", script];
  const { status, stdout, stderr } = spawnSync(process.execPath, node, { encoding: "utf8" });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return stdout
    .split("\n")
    .filter((line) => /^[-+@]/.test(line))
    .join("\n");
}

test("the diff of two sections, with their comments", () => {
  const text = printed("s01", "s02");
  expect(text).toContain("-// one\n+// two\n+  // why\n+  h();");
  expect(text).toMatch(/^--- a\/.*s01_agent_loop\.ts\n\+\+\+ b\/.*s02_tool_use\.ts$/m);
});

test("with one section, what it adds to the one before", () => {
  expect(printed("s02_tool_use").split("@@").at(-1)).toBe(printed("s01", "s02").split("@@").at(-1));
});

test("--code leaves comments and blank lines out", () => {
  const text = printed("s01", "s02", "--code");
  expect(text).toContain("+  h();");
  expect(text).not.toMatch(/one|why/);
});

test("--lang takes the files of a language, backwards too", () => {
  expect(printed("--lang", "zh", "s02", "s01")).toContain("-// 二\n+// 一");
});

test("one stop of a section is a part of its region", () => {
  expect(printed("s04", "s05", "2").split("@@\n").at(-1)).toBe(
    "+// -- 2 · Second --\n+// why\n+second();",
  );
  expect(printed("s05", "2", "--code").split("@@\n").at(-1)).toBe("+second();");
});

test("stop 0 is what has changed outside of the region", () => {
  const text = printed("s04", "s05", "0");
  expect(text).toContain("-old();\n+hooked();");
  expect(text).toContain("+// ---- All of it together ----");
  expect(text).not.toMatch(/first|second|s05 · New/);
});

test("a stop that isn't there", () => {
  const root = tree(FILES);
  expect(() => diff(root, ["s04", "s05", "3"])).toThrow(
    "s05 has no stop 3. There are: 1 · First, 2 · Second.",
  );
  expect(() => diff(root, ["s01", "s02", "1"])).toThrow("There are: none yet.");
  expect(() => diff(root, ["s01", "s02", "0"])).toThrow("no region");
  expect(() => diff(root, ["s04", "s05", "1", "2"])).toThrow("npm run diff s03 s04 2");
});

test("sections that don't exist are named, with those that do", () => {
  const root = tree(FILES);
  expect(() => diff(root, ["s01", "s09"])).toThrow(
    'no section "s09" in sessions/en. There are: s01_agent_loop, s02_tool_use, s03_sessions, s04_channels, s05_gateway.',
  );
  expect(() => diff(root, ["s01", "--lang", "ja"])).toThrow("There are none yet");
  expect(() => diff(root, ["s01"])).toThrow("There is no section before s01_agent_loop");
  expect(() => diff(root, [])).toThrow("npm run diff s02 s03");
  expect(() => diff(root, ["s01", "s02", "--colour"])).toThrow("--colour");
});
