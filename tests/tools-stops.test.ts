import { describe, expect, test } from "vitest";
import { checkSections } from "../tools/check-sections.ts";
import { ROOT, readLanguages } from "../tools/sections.ts";
import { checkStops, regionOf, stopsOf } from "../tools/stops.ts";
import { english, goodSections, tree } from "./tools-tree.ts";

const FILE = english(2);
const statements = (count: number) =>
  Array.from({ length: count }, (_, i) => `f(${i});\n`).join("");

/** A section s02 whose region has these stops, each with so many code lines. */
function section(...stops: [banner: string, lines: number][]): string {
  const parts = stops.map(([banner, lines]) => `// -- ${banner} --\n\n${statements(lines)}`);
  const before = "// ---- s01 · One ----\n// -- 9 · Not of s02 --\na();\n";
  const after = "// ---- All of it together ----\n// -- 9 · Nor this --\nmain();\n";
  return `${before}// ---- s02 · Two ----\nhead();\n${parts.join("")}${after}`;
}

describe("stops", () => {
  test("the parts of a section's own region, in order", () => {
    const source = section(["1 · Envelope", 2], ["2 · Spool · and more", 3]);
    expect(regionOf(source.split("\n"), "s02")).toEqual({ start: 3, end: 14 });
    expect(stopsOf(source, "s02")).toEqual([
      { number: 1, title: "Envelope", start: 5, end: 9 },
      { number: 2, title: "Spool · and more", start: 9, end: 14 },
    ]);
    expect(stopsOf(source, "s03")).toEqual([]);
    expect(stopsOf("f();\n", "s02")).toEqual([]);
  });

  test.each([
    ["1 2", [], section(["1 · A", 1], ["2 · B", 1])],
    ["none", [], section()],
    ["180 lines", [], section(["1 · A", 180])],
    [
      "181 lines",
      [/s02_tool_use\.ts:6: stop 1 · A has 181 code lines, 180 is/],
      section(["1 · A", 181]),
    ],
    ["2 first", [/:6: stop 2 · A must have the number 1/], section(["2 · A", 1])],
    ["1 1", [/:8: stop 1 · B must have the number 2/], section(["1 · A", 0], ["1 · B", 1])],
  ])("numbers and lengths: %s", (_name, wanted, source) => {
    expect(checkStops(FILE, source, "s02")).toEqual(
      wanted.map((one) => expect.stringMatching(one)),
    );
  });

  test("comments and blank lines don't count", () => {
    const source = section(["1 · A", 180]).replace("f(7);", "// why\n\nf(7);");
    expect(checkStops(FILE, source, "s02")).toEqual([]);
  });

  test("check reports them for each section", () => {
    const files = goodSections(2);
    files[FILE] += "// -- 3 · Third --\nf();\n";
    expect(checkSections(tree(files), readLanguages(ROOT).get("en")).problems).toEqual([
      expect.stringContaining("stop 3 · Third must have the number 1"),
    ]);
  });
});
