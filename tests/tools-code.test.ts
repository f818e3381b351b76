import { describe, expect, test } from "vitest";
import { codeLines, commentShare, kept } from "../tools/code.ts";

const code = (...lines: string[]) => codeLines(lines.join("\n"), "some.ts");

describe("code lines", () => {
  test("comments and blank lines go, code and indentation stay", () => {
    expect(
      code(
        "// a header",
        "",
        "function f() {",
        "  // why",
        "  return 1; // one",
        "  /** a doc",
        "   * comment",
        "   */",
        "\t",
        "}",
      ),
    ).toEqual(["function f() {", "  return 1;", "}"]);
  });

  test.each([
    ["a regular expression", "const re = /\\/\\/.*$/g;"],
    ["a class of characters in one", "const re = /[/*]//* in it */.source;"],
    ["a division", "const half = 4 / 2 / 1;"],
    ["a string", "const s = 'http://a.b/* no */ // no';"],
    ["an escaped quote", 'const s = "\\"// no";'],
    ["a template", `const t = \`// no /* no */ \${\`\${1} // no\`} // …\`;`],
    ["a string with the mark of left-out lines", 'const s = "// …";'],
    ["private names and types", "class A { #x?: Map<string, Set<number>>; }"],
  ])("%s is code", (_name, line) => {
    expect(code(line)).toEqual([line.replace("/* in it */", "")]);
  });

  test("a shebang is code, and the comment below it is none", () => {
    expect(code("#!/usr/bin/env node", "// hi", "f();")).toEqual(["#!/usr/bin/env node", "f();"]);
  });

  test("a comment inside of a template's expression goes", () => {
    expect(code(`const t = \`a // b \${/* c */ 1} /* d */\`;`)).toEqual([
      `const t = \`a // b \${1} /* d */\`;`,
    ]);
  });

  test("lines inside of a template keep their blanks", () => {
    expect(code("const t = `", "  x  ", "`; // end")).toEqual(["const t = `", "  x  ", "`;"]);
  });

  test("a comment before, between and behind code leaves the code as it would be without", () => {
    expect(code("  /* a */ f(1, /* b */ 2); /* c", "d */ g();", "h(); /* e */")).toEqual([
      "  f(1, 2);",
      "g();",
      "h();",
    ]);
  });

  test("Windows line ends and Chinese comments make no difference", () => {
    expect(codeLines("// 你好 𝄞\r\nconst 名 = 1; // 再见\r\n\r\nf();\r\n", "a.ts")).toEqual([
      "const 名 = 1;",
      "f();",
    ]);
  });

  test("a file that doesn't parse is named, with the line", () => {
    expect(() => code("f();", "const = 3;")).toThrow(/^some\.ts:2: does not parse/);
  });
});

describe("the share of comments", () => {
  test("counts lines with a comment and no code, of those that are not blank", () => {
    const source = "// one\n/* two\n\n three */ f();\n\ng(); // no\nh();\n/** four */\n";
    // Comment lines: "// one", "/* two", "/** four */". Not blank: those, and f, g, h.
    expect(commentShare(source, "a.ts")).toBe(3 / 6);
  });

  test("of nothing is nothing", () => {
    expect(commentShare("\n\n", "a.ts")).toBe(0);
  });
});

describe("what is kept", () => {
  test("everything, where lines are only added", () => {
    expect(kept(["a", "b"], ["x", "a", "y", "b", "z"])).toEqual({ share: 1, removed: [] });
  });

  test("a changed line is a removed one", () => {
    expect(kept(["a", "b", "c", "d"], ["a", "B", "c", "d", "e"])).toEqual({
      share: 0.75,
      removed: ["b"],
    });
  });

  test("indentation counts", () => {
    expect(kept(["a", "b"], ["if (x) {", "  a", "}", "b"])).toEqual({ share: 0.5, removed: ["a"] });
  });

  test("a moved line was removed", () => {
    expect(kept(["a", "b", "c", "d"], ["b", "c", "d", "a"])).toEqual({
      share: 0.75,
      removed: ["a"],
    });
  });

  test("lines that look like a patch are lines", () => {
    const before = ["-- a/b", "@@ -1 +1 @@", "++ x", "\\ No newline"];
    expect(kept(before, ["@@ -1 +1 @@"])).toEqual({
      share: 0.25,
      removed: ["-- a/b", "++ x", "\\ No newline"],
    });
  });

  test("no byte makes a file a binary one", () => {
    expect(kept(["a\0", "b"], ["b"]).removed).toEqual(["a\0"]);
  });

  test("as few lines are removed as can be, in long files too", () => {
    let seed = 1;
    const random = () => {
      seed = (seed * 1103515245 + 12345) % 2 ** 31;
      return String(Math.floor(seed / 65536) % 60);
    };
    const before = Array.from({ length: 2500 }, random);
    const after = Array.from({ length: 2500 }, random);
    const common = longestCommonSubsequence(before, after);
    expect(kept(before, after).removed).toHaveLength(2500 - common);
  });

  test("an empty file has lost nothing", () => {
    expect(kept([], ["a"]).share).toBe(1);
  });
});

/** Its length, row by row. */
function longestCommonSubsequence(before: string[], after: string[]): number {
  let row: number[] = [];
  for (const line of before) {
    const next: number[] = [];
    for (const [j, other] of after.entries()) {
      const diagonal = (row[j - 1] ?? 0) + 1;
      next.push(line === other ? diagonal : Math.max(row[j] ?? 0, next[j - 1] ?? 0));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
