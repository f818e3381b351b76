import { describe, expect, test } from "vitest";
import { anchors, checkMarkdown, parseMarkdown } from "../tools/markdown.ts";
import { type Files, tree } from "./tools-tree.ts";

const check = (files: Files) => checkMarkdown(tree(files));

describe("links", () => {
  const files = {
    "docs/a b.md": "# Über **Tools** & `code`\n",
    "docs/kit_(1).txt": "",
    "中文.md": "## 先弄坏它：为什么？\n",
    "src/x.ts": "",
  };
  test.each([
    ["[a](docs/none.md)", "there is no file docs/none.md"],
    ["[a](<docs/none.md>)", "there is no file docs/none.md"],
    ["![a](none.png)", "there is no file none.png"],
    ["[![a](none.png)](src/x.ts)", "there is no file none.png"],
    ["[a]: none.md", "there is no file none.md"],
    ['<a href="none.md">a</a> <img src="src/x.ts">', "there is no file none.md"],
    ["| [a](none.md) |", "there is no file none.md"],
    ["[a](../outside.md)", "there is no file ../outside.md"],
    ["[a](src/../..)", "there is no file src/../.."],
    ["[`a`](none.md)", "there is no file none.md"],
    ["[a](#nowhere)", "README.md has no heading #nowhere"],
    ["[a](docs/a%20b.md#tools)", "docs/a b.md has no heading #tools"],
    ["[a](docs/a%20b.md#über-tools--code)", ""],
    ["[a](%E4%B8%AD%E6%96%87.md#先弄坏它为什么)", ""],
    ["[a](中文.md#%E5%85%88%E5%BC%84%E5%9D%8F%E5%AE%83%E4%B8%BA%E4%BB%80%E4%B9%88)", ""],
    ["[a](#top) and [b](#top-1)", ""],
    ["[a](#top-2)", "README.md has no heading #top-2"],
    ["[a](src) [b](/src/x.ts#L3) [c](docs/kit_(1).txt)", ""],
    ['[a](https://x.org/none.md) [b](mailto:a@b.c) [c](//x.org) [d](src/x.ts "title")', ""],
    ["`[a](none.md)` and ``[b](none.md) ` c``", ""],
    ["```text\n[a](none.md)\n```", ""],
    ["[^1]: a footnote", ""],
  ])("%s", (line, problem) => {
    const { problems } = check({ ...files, "README.md": `# Top\n## Top\n${line}\n` });
    expect(problems).toEqual(problem ? [`README.md:3: ${problem}. Mend the link.`] : []);
  });

  test("in all files but those of others and of the program", () => {
    const bad = "[a](none.md)\n";
    const others = ["node_modules/a/a.md", ".practice/a.md", "workspace/.state/a.md"];
    const { problems } = check({
      ...Object.fromEntries(others.map((file) => [file, bad])),
      "docs/deep/b.md": bad,
      ".github/c.md": bad,
    });
    expect(problems).toHaveLength(2);
  });
});

test("anchors are made as GitHub makes them", () => {
  const text = `# A  b_c-d!
## [Link](x.md) and \`code()\`
### 先弄坏它（一）、二
#### まず・壊してみる ー 1
## A  b_c-d!
#No heading
<a id="own"></a>
`;
  expect([...anchors(parseMarkdown(text))]).toEqual([
    "a--b_c-d",
    "link-and-code",
    "先弄坏它一二",
    "まず壊してみる-ー-1",
    "a--b_c-d-1",
    "own",
  ]);
});

test("fences end where they end", () => {
  const text = "````text\n```ts\n```\n````\n## A\n  ~~~sh\nx\n  ~~~\n```\nopen";
  const { fences, headings, prose } = parseMarkdown(text);
  expect(fences.map(({ info, line, body }) => [info, line, body.length])).toEqual([
    ["text", 1, 2],
    ["sh", 6, 1],
    ["", 9, 1],
  ]);
  expect(headings).toEqual([{ level: 2, text: "A", line: 5 }]);
  expect(prose.filter(Boolean)).toEqual(["## A"]);
});

describe("the numbers of the READMEs", () => {
  const section = "sessions/en/s01_agent_loop.ts";
  const code = `// a comment\n\n${"f();\n".repeat(1234)}`;
  test.each([
    [`| 1 | [code](${section}) | 1,234 |`, true],
    [`| [code](./${section}) | **1234** | 5 minutes |`, true],
    [`| [code](${section}) | 1235 |`, false],
    [`| [code](${section}) | 1234 lines |`, false],
    [`| [code](${section}) | |`, false],
    [`The [code](${section}) has many lines.`, true],
  ])("%s", (line, fine) => {
    const problem = `:2: ${section} has 1234 code lines. Say so in a cell that is just the number.`;
    for (const file of ["README.md", "README.zh.md"]) {
      const { problems } = check({ [section]: code, [file]: `# A\n${line}\n` });
      expect(problems).toEqual(fine ? [] : [file + problem]);
    }
    expect(check({ [section]: code, "OTHER.md": `${line}\n` }).problems).toEqual([]);
  });
});
