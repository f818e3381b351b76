import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { stamp } from "../tools/catalogue.ts";
import { checkTranslations } from "../tools/check-translation.ts";
import { readSources, translate } from "../tools/translate.ts";
import { type Files, put, tree } from "./tools-tree.ts";

const language = (...ids: string[]) => ({
  code: ids,
  comments: ids,
  lessons: ids,
  headings: [],
  minutes: "",
});
const languages = (zh: string[], en = ["s01"]): Files => ({
  "tools/languages.json": JSON.stringify({ en: language(...en), zh: language(...zh) }),
});

const PO = "sessions/zh/code.po";
const CODE = "sessions/zh/s01_agent_loop.ts";
const ENGLISH = {
  "sessions/en/s01_agent_loop.ts": '// The loop\nsay("Hello");\n',
  "sessions/en/s01_agent_loop.md":
    "# Loop\n\nIntro.\n\n## Break it first\n\nA.\n\n## The idea\n\nB.\n",
  "README.md": "# claw0\n\n## What\n\nX.\n",
};

const run = (root: string) => translate(root, "zh", readSources(root));
const problemsIn = (root: string) => checkTranslations(root).problems;
const text = (root: string, file: string) => readFileSync(path.join(root, file), "utf8");
const edit = (root: string, file: string, from: string, to: string) =>
  put(root, { [file]: text(root, file).replace(from, to) });
const fill = (root: string, id: string, translation: string) =>
  edit(root, PO, `msgid "${id}"\nmsgstr ""`, `msgid "${id}"\nmsgstr "${translation}"`);

/** A tree in which all of s01 is translated. */
function done(): string {
  const root = tree({
    ...ENGLISH,
    ...languages(["s01"]),
    "sessions/zh/s01_agent_loop.md": "# 循环\n",
    "README.zh.md": "# claw0\n",
  });
  run(root);
  fill(root, "The loop", "循环");
  fill(root, "Hello", "你好");
  run(root);
  stamp(root, "zh");
  return root;
}

describe("translations", () => {
  test("a translated section is fine", () => {
    const root = done();
    expect(text(root, CODE)).toBe('// 循环\nsay("你好");\n');
    const { problems, notes, facts } = checkTranslations(root);
    expect([...problems, ...notes]).toEqual([]);
    expect(facts).toEqual(["zh: 2 of 2 messages translated"]);
  });

  test("a missing translation, and the file that still has it", () => {
    const root = done();
    edit(root, PO, "你好", "");
    expect(problemsIn(root)).toEqual([
      `${CODE}: not up to date. Run: npm run translate zh`,
      expect.stringMatching(/code\.po: s01_agent_loop: "Hello" is without a translation\. Mend/),
    ]);
    expect(run(root)).toEqual([`${PO}: 2 messages, 1 to translate, 1 of them printed; 0 obsolete`]);
    expect(problemsIn(root)).toEqual([expect.stringContaining("without a translation")]);
    fill(root, "Hello", "您好");
    run(root);
    expect(problemsIn(root)).toEqual([]);
  });

  test("English changed: fuzzy until the flag is taken away", () => {
    const root = done();
    edit(root, "sessions/en/s01_agent_loop.ts", "The loop", "The loop, again");
    expect(problemsIn(root).join()).toMatch(/"The loop, again" is without.*Mend it, then run/);
    run(root);
    expect(problemsIn(root)).toEqual([expect.stringContaining('"The loop, again" is fuzzy')]);
    expect(text(root, CODE)).toContain("// The loop, again");
    edit(root, PO, "#, fuzzy\n", "");
    run(root);
    expect(problemsIn(root)).toEqual([]);
  });

  test("an obsolete entry", () => {
    const root = done();
    edit(root, "sessions/en/s01_agent_loop.ts", 'say("Hello");', "f();");
    run(root);
    expect(problemsIn(root)).toEqual([`${PO}: "Hello" is obsolete. Delete the "#~" entries.`]);
    edit(root, PO, '#~ msgid "Hello"\n#~ msgstr "你好"\n', "");
    expect(problemsIn(root)).toEqual([]);
  });

  test("a file that is not what translate writes", () => {
    const root = done();
    edit(root, CODE, "循环", "环");
    expect(problemsIn(root)).toEqual([`${CODE}: not up to date. Run: npm run translate zh`]);
    run(root);
    expect(problemsIn(root)).toEqual([]);
  });

  test("still English, unless it is meant to be", () => {
    const root = done();
    edit(root, PO, "你好", "Hello");
    run(root);
    expect(problemsIn(root)).toEqual([expect.stringContaining('"Hello" is still English')]);
    edit(root, PO, "#. printed", "# same\n#. printed");
    expect(problemsIn(root)).toEqual([]);
  });

  test("a header that runs the English file", () => {
    const root = done();
    edit(root, PO, "循环", "npx tsx sessions/en/s01_agent_loop.ts");
    run(root);
    expect(problemsIn(root)).toEqual([expect.stringContaining("Translate the path too")]);
    edit(root, PO, "tsx sessions/en", "tsx sessions/zh");
    run(root);
    expect(problemsIn(root)).toEqual([]);
  });

  test("a lost placeholder names its entry", () => {
    const root = done();
    // biome-ignore lint/suspicious/noTemplateCurlyInString: source code
    edit(root, "sessions/en/s01_agent_loop.ts", '"Hello"', "`Hello ${name}`");
    run(root);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: source code
    fill(root, "Hello ${name}", "你好");
    edit(root, PO, "#, fuzzy\n", "");
    const problem = expect.stringMatching(/code\.po: "Hello \$\{name\}" \(line 2 in English\): .*/);
    expect(run(root)).toContainEqual(problem);
    expect(problemsIn(root)).toContainEqual(problem);
  });

  test("what is not claimed is only told", () => {
    const root = done();
    put(root, languages([]));
    edit(root, PO, "你好", "");
    edit(root, "README.md", "X.", "Y.");
    const { problems, notes } = checkTranslations(root);
    expect(problems).toEqual([]);
    expect(notes).toHaveLength(3);
  });

  test("a section that English doesn't claim can wait", () => {
    const root = done();
    put(root, { "sessions/en/s02_tool_use.ts": "// New\n" });
    expect(run(root)).toEqual([`${PO}: 2 messages, 0 to translate, 0 of them printed; 0 obsolete`]);
    put(root, languages(["s01"], ["s01", "s02"]));
    expect(run(root)).toEqual([`${PO}: 3 messages, 1 to translate, 0 of them printed; 0 obsolete`]);
    expect(problemsIn(root)).toEqual([]);
  });
});

describe("comments that nobody claims yet", () => {
  /** The same tree, but Chinese claims the code alone. */
  function codeOnly(): string {
    const root = done();
    const zh = { ...language("s01"), comments: [], lessons: [] };
    put(root, { "tools/languages.json": JSON.stringify({ en: language("s01"), zh }) });
    return root;
  }

  test("a comment that has changed keeps its translation, a new one stays English", () => {
    const root = codeOnly();
    const code = '// The loop, again\nsay("Hello");\n\n// Entirely different words\n';
    put(root, { "sessions/en/s01_agent_loop.ts": code });
    run(root);
    expect(text(root, CODE)).toBe('// 循环\nsay("你好");\n\n// Entirely different words\n');
    expect(problemsIn(root)).toEqual([]);
    // The same catalogue is not enough for whoever claims the comments.
    put(root, languages(["s01"]));
    expect(problemsIn(root)).not.toEqual([]);
  });

  test("a printed text that has changed is English until it is translated, and a problem", () => {
    const root = codeOnly();
    edit(root, "sessions/en/s01_agent_loop.ts", "Hello", "Hello Hello you");
    run(root);
    expect(text(root, CODE)).toContain('say("Hello Hello you")');
    expect(problemsIn(root)).toEqual([expect.stringContaining('"Hello Hello you" is')]);
  });

  test("a comment with the words of a printed text does not lend it an old translation", () => {
    const root = codeOnly();
    put(root, {
      "sessions/en/s01_agent_loop.ts": '// Say hello to Ada\nsay("Say hello to Ada");\n',
    });
    run(root);
    fill(root, "Say hello to Ada", "问好");
    run(root);
    put(root, {
      "sessions/en/s01_agent_loop.ts": '// Say hello to Bob\nsay("Say hello to Bob");\n',
    });
    run(root);
    expect(text(root, PO)).toContain('#, fuzzy\n#| msgid "Say hello to Ada"');
    expect(text(root, CODE)).toContain('say("Say hello to Bob");');
    expect(problemsIn(root)).toContainEqual(expect.stringContaining('"Say hello to Bob" is fuzzy'));
  });

  test("what is too wide where it stands now stays English", () => {
    const root = codeOnly();
    edit(root, PO, "循环", "字".repeat(48));
    put(root, { "sessions/en/s01_agent_loop.ts": '{\n  // The loop\n}\nsay("Hello");\n' });
    expect(run(root)).toHaveLength(1);
    expect(text(root, CODE)).toBe('{\n  // The loop\n}\nsay("你好");\n');
    expect(problemsIn(root)).toEqual([]);
  });

  test("a header may still run the English file", () => {
    const root = codeOnly();
    const code = '// Entirely different: npx tsx sessions/en/s01_agent_loop.ts\nsay("Hello");\n';
    put(root, { "sessions/en/s01_agent_loop.ts": code });
    run(root);
    expect(problemsIn(root)).toEqual([]);
  });

  test("an obsolete comment may stay in the catalogue, an obsolete printed text may not", () => {
    const root = codeOnly();
    put(root, { "sessions/en/s01_agent_loop.ts": 'say("Hello");\n' });
    run(root);
    expect(text(root, PO)).toContain('#~ msgid "The loop"');
    expect(problemsIn(root)).toEqual([]);
    put(root, { "sessions/en/s01_agent_loop.ts": "// The loop\n" });
    run(root);
    expect(problemsIn(root)).toEqual([expect.stringContaining('"Hello" is obsolete')]);
  });

  test("its lesson need not follow the English one", () => {
    const root = codeOnly();
    edit(root, "sessions/en/s01_agent_loop.md", "B.", "C.");
    expect(problemsIn(root)).toEqual([]);
  });
});

describe("what a translation follows", () => {
  test("the parts that English has changed are named until it is stamped", () => {
    const root = done();
    edit(root, "sessions/en/s01_agent_loop.md", "B.", "C.\n\n## New");
    edit(root, "README.md", "X.", "Y.");
    const [readme, lesson, ...rest] = problemsIn(root);
    expect(rest).toEqual([]);
    expect(readme).toMatch(
      /^README\.zh\.md: English has changed in: What\. .* --stamp zh README\.md/,
    );
    expect(lesson).toMatch(/^sessions\/zh\/s01_agent_loop\.md: .* in: The idea; New\. /);
    stamp(root, "zh", "README.md");
    expect(problemsIn(root)).toEqual([lesson]);
    stamp(root, "zh", "s01_agent_loop.md");
    expect(problemsIn(root)).toEqual([]);
    expect(() => stamp(root, "zh", "s02.md")).toThrow(/no s02\.md to stamp/);
  });

  test("what a section prints may change, what is typed may not", () => {
    const root = done();
    const lesson = "sessions/en/s01_agent_loop.md";
    edit(root, lesson, "B.", "B.\n```console\nYou > hi\nHello.\n```");
    stamp(root, "zh");
    edit(root, lesson, "Hello.", "Hello!\n\nBye.");
    expect(problemsIn(root)).toEqual([]);
    edit(root, lesson, "You > hi", "You > ho");
    expect(problemsIn(root)).toEqual([expect.stringContaining("in: The idea.")]);
  });

  test("a README that isn't there", () => {
    const root = done();
    put(root, { "README.zh.md": "" });
    expect(problemsIn(root)).toEqual(["README.zh.md: missing. Translate README.md."]);
  });
});

describe("diagrams", () => {
  const fence = (...lines: string[]) => `# 循环\n\n\`\`\`text\n${lines.join("\n")}\n\`\`\`\n`;
  const found = (...lines: string[]) => {
    const root = done();
    put(root, { "sessions/zh/s01_agent_loop.md": fence(...lines) });
    return problemsIn(root).map((problem) => Number(/:(\d+): .* diagram/.exec(problem)?.[1]));
  };

  test.each([
    [["你说 > 你好 ──► 追加", "         │", "         ▼", "        完成"], []],
    [["┌──────┐", "│ 循环 │", "└──────┘"], []],
    [
      ["┌──────┐", "│ 循环   │", "└──────┘"],
      [5, 6],
    ],
    [
      ["┌────┐", "│ 循环 │", "└────┘"],
      [5, 6],
    ],
    [["  a ──┬──► b", "      │", "      └──► c"], []],
    [
      ["  一 ──┬──► b", "      │", "       └──► c"],
      [5, 6],
    ],
    [["call model", "    ▲", "    └── no"], []],
    [["调用", "    ▲", "    └── no"], [5]],
    [["src/", "├── a/", "│   └── b", "└── c"], []],
    [["│", "", "nothing"], []],
    [["a │ b"], []],
  ])("%j", (lines, expected) => {
    expect(found(...lines)).toEqual(expected);
  });

  test("in comments, English too", () => {
    const root = done();
    put(root, { "sessions/en/s01_agent_loop.ts": "//   │\n//    ▼\nf();\n//  │\nsay(1);\n" });
    run(root);
    const diagrams = problemsIn(root).filter((problem) => problem.includes("diagram"));
    expect(diagrams).toEqual([
      expect.stringContaining("sessions/en/s01_agent_loop.ts:2: "),
      expect.stringContaining("sessions/zh/s01_agent_loop.ts:2: "),
    ]);
  });
});
