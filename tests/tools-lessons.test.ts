import { describe, expect, test } from "vitest";
import { checkLessons } from "../tools/lessons.ts";
import { matchExcerpt } from "../tools/verbatim.ts";
import { type Files, tree } from "./tools-tree.ts";

const LESSON = "sessions/en/s02_tool_use.md";
const language = {
  code: ["s02"],
  comments: ["s02"],
  lessons: ["s02"],
  headings: ["Break", "Idea", "Diff", "Try", "Bites", "OpenClaw", "Exercises"],
  minutes: "^\\*\\d+ minutes\\*$",
};

const CODE = `// A file.
export function f(x: number) {
  if (x > 1) {
    g(x);

    return ours;
  }
  return 2;
}

export class Box {
  // Opens it.
  open() {
    return 1;
  }
}
`;

const OPENCLAW = {
  package: "openclaw@1.0.0",
  references: [
    { path: "src/loop.ts", symbols: ["runLoop", "MAX=5"] },
    { path: "src/other.ts", symbols: ["other"] },
  ],
};

const GOOD = `# Tools

*8 minutes*

## Break

<!-- record s02 -->
\`\`\`console
$ npx tsx sessions/en/s02_tool_use.ts
You > hi
Hello.
\`\`\`

## Idea

\`\`\`text
a ──► b
\`\`\`

## Diff

\`\`\`ts
// in f
if (x > 1) {
  g(x);
  // …
}
\`\`\`

## Try

\`\`\`sh
npm start -- s02        # offline
cat sessions/en/s02_tool_use.ts
\`\`\`

## Bites

A line:

\`\`\`json shape
{ "a": 1 }
\`\`\`

## OpenClaw

| idea | where | what differs |
|---|---|---|
| the loop | \`src/loop.ts\`, \`runLoop\` | \`MAX\` is there, \`ours\` is not |

## Exercises

1. Do this. Done when so.

   <details><summary>Hint</summary>Look.</details>

2. Do that.

   <details>
   1. First look.
   </details>

3. And that.

   <details>Look.</details>
`;

function check(lesson: string, files: Files = {}, claimed = language) {
  const root = tree({
    "package.json": '{ "scripts": { "start": "x", "diff": "x" } }',
    "tools/openclaw.json": JSON.stringify(OPENCLAW),
    "sessions/en/s01_agent_loop.ts": "const one = 1;\n",
    "sessions/en/s02_tool_use.ts": CODE,
    [LESSON]: lesson,
    ...files,
  });
  return checkLessons(root, new Map([["en", claimed]]));
}

/** The problems of the good lesson after a change, without the name of the file. */
function changed(from: string, to: string): string[] {
  expect(GOOD).toContain(from);
  return check(GOOD.replace(from, to)).problems.map((problem) => problem.replace(`${LESSON}:`, ""));
}

const lineOf = (text: string) => GOOD.slice(0, GOOD.indexOf(text)).split("\n").length;
const one = (text: string) => [expect.stringContaining(text)];

test("a good lesson has no problems", () => {
  expect(check(GOOD)).toEqual({ problems: [], notes: [], facts: [] });
});

test("problems of a lesson that is not claimed are notes", () => {
  const { problems, notes } = check("# Tools\n", {}, { ...language, code: [], lessons: [] });
  expect(problems).toEqual([]);
  expect(notes.length).toBeGreaterThan(2);
});

describe("a lesson that waits for its new edition", () => {
  const codeOnly = { ...language, lessons: [] };
  const old = "> This lesson describes release 0.1.0. The new one is being written.\n\n# Tools\n";

  test("is not checked if its first line says which release it describes", () => {
    expect(check(`${old}\n\`\`\`ts\nnot();\n\`\`\`\n`, {}, codeOnly)).toEqual({
      problems: [],
      notes: [],
      facts: [],
    });
  });

  test.each(["# Tools\n", "> It describes the newest release.\n", `\n${old}`])(
    "must say so in its first line: %j",
    (lesson) => {
      expect(check(lesson, {}, codeOnly).problems).toEqual([
        `${LESSON}:1: tools/languages.json claims the code only. Its first line must say which release it describes, as in > … 0.1.0 …`,
      ]);
    },
  );

  test("setup.md waits with the lessons, and only if all of them wait", () => {
    const setup = { "sessions/en/setup.md": "# Setup\n" };
    expect(check(old, setup, codeOnly).problems).toEqual(one("sessions/en/setup.md:1: "));
    expect(check(old, { "sessions/en/setup.md": old }, codeOnly).problems).toEqual([]);
    expect(check(GOOD, setup).problems).toEqual([]);
  });
});

describe("form", () => {
  test.each([
    ["missing", "## Bites\n", ""],
    ["another word", "## Bites", "## What hurts"],
    ["one too many", "## Bites", "## More\n\n## Bites"],
    ["another level", "## Bites", "### Bites"],
    ["inside of a fence", "## Bites", "```text\n## Bites\n```"],
  ])("a heading: %s", (_name, from, to) => {
    expect(changed(from, to)).toContainEqual(
      expect.stringMatching(/^\d+: its "##" headings must be, in this order: Break, Idea, Diff/),
    );
  });

  test("headings in another order", () => {
    expect(changed("## Idea", "## Diff")).toEqual(
      one(`${lineOf("## Idea")}: its "##" headings must be`),
    );
  });

  test("a heading of a lower level is free", () => {
    expect(changed("A line:", "### A case\n\nA line:")).toEqual([]);
  });

  test.each([
    ["none", "*8 minutes*", "Eight"],
    ["not at the top", "*8 minutes*\n\n## Break", "## Break\n\n*8 minutes*"],
  ])("minutes to read: %s", (_name, from, to) => {
    expect(changed(from, to)).toEqual(one("how long it takes to read"));
  });

  test("at most 200 lines, transcripts and excerpts apart", () => {
    const length = GOOD.split("\n").length - 1 - 5 - 7; // the transcript has five, the excerpt seven
    const more = (count: number) => `A line:${"\nand so on".repeat(count)}`;
    expect(changed("A line:", more(200 - length))).toEqual([]);
    expect(changed("A line:", more(201 - length))).toEqual(one("201 lines of its own"));
    expect(changed("Hello.", "Hello.\n".repeat(300))).toEqual([]);
    const long = `export const a = [\n${"  1,\n".repeat(300)}];`;
    const code = { "sessions/en/s02_tool_use.ts": `${CODE}${long}\n` };
    expect(
      check(GOOD.replace("## Bites", `\`\`\`ts\n${long}\n\`\`\`\n\n## Bites`), code).problems,
    ).toEqual([]);
  });

  test("s10 may have 280", () => {
    const lesson = GOOD.replace("A line:", "A line:\n".repeat(180));
    const ten = {
      "sessions/en/s10_concurrency.ts": CODE,
      "sessions/en/s10_concurrency.md": lesson,
    };
    const claimed = { ...language, code: ["s10"], lessons: ["s10"] };
    expect(check(GOOD, ten, claimed).problems).toEqual([]);
    expect(check(lesson).problems).toEqual(one("lines of its own, 200 is the limit"));
    ten["sessions/en/s10_concurrency.md"] += "and so on\n".repeat(100);
    expect(check(GOOD, ten, claimed).problems).toEqual(one("lines of its own, 280 is the limit"));
  });
});

describe("exercises", () => {
  test.each([
    ["two", "3. And that.", "And that.", "1 hint 2 hint hint"],
    ["four", "3. And that.", "3. And.\n\n4. That.", "1 hint 2 hint 3 4 hint"],
    ["one without a hint", "<details>Look.</details>", "Look.", "1 hint 2 hint 3"],
    ["a hint that is not closed", "<details>Look.</details>", "<details>Look.", "1 hint 2 hint 3"],
  ])("%s", (_name, from, to, found) => {
    expect(changed(from, to)).toEqual(one(`three exercises are wanted`));
    expect(changed(from, to)).toEqual(one(`Found: ${found}.`));
  });

  test("they may be headings", () => {
    expect(changed("3. And that.", "### 3. And that")).toEqual([]);
  });
});

describe("fences", () => {
  test.each(["js", "typescript", "ts wrong", "bash", "json", "diff", "yaml"])("no %s", (info) => {
    expect(changed("```json shape", `\`\`\`${info}`)).toEqual(one(`: a fence of "${info}". There`));
  });

  test("without a language it is a diagram", () => {
    expect(changed("```text", "```")).toEqual([]);
  });

  test.each([
    ["curl http://localhost", 'sh is for npm, "npx tsx sessions/…", git and cat'],
    ["npx tsx practice/start.ts", "sh is for npm"],
    ["rm -r workspace", "sh is for npm"],
    ["npm run nothing", 'no script "nothing"'],
    ["npx tsx sessions/en/s03_sessions.ts", "there is no file sessions/en/s03_sessions.ts"],
    ["cat NOTES.md", "there is no file NOTES.md"],
    ["npm run diff s01 s02", ""],
    ["git diff --no-index sessions/en/s01_agent_loop.ts sessions/en/s02_tool_use.ts", ""],
    ["git clone https://example.com/claw0", ""],
    ["cat workspace/.state/sessions/x.jsonl", ""],
    ["# a comment", ""],
  ])("a command: %s", (command, problem) => {
    const found = changed("cat sessions/en/s02_tool_use.ts", command);
    expect(found).toEqual(
      problem ? [expect.stringMatching(`^${lineOf("cat sess")}: .*${problem}`)] : [],
    );
  });

  test("the form of transcripts is checked", () => {
    expect(changed("<!-- record s02 -->\n", "").length).toBeGreaterThan(0);
  });
});

describe("excerpts", () => {
  const body = "if (x > 1) {\n  g(x);\n  // …\n}";
  const place = "// in f\n";
  test.each([
    ["a changed character", body.replace("g(x)", "g(y)"), 2, 'not like this in .*: "g\\(y\\);"'],
    ["a line left out in silence", body.replace("  // …\n", ""), 3, '.*: "}"'],
    ["nothing left out", "export function f(x: number) {\n// …\n  if (x > 1) {", 3, '.*: "if'],
    ["another order", "return 2;\n// …\nif (x > 1) {", 3, ""],
    ["another indentation in the block", body.replace("  g", "g"), 2, '.*: "g'],
    ["a comment that is not there", `// why\n${body}`, 1, '.*: "// why"'],
    ["a mark with a word", body.replace("// …", "// … more"), 3, '.*: "// … more"'],
    ["another section's line", "const one = 1;", 1, ""],
  ])("%s", (_name, excerpt, offset, problem) => {
    const line = lineOf("```ts") + 1 + offset;
    expect(changed(body, excerpt)).toEqual([expect.stringMatching(`^${line}: .*${problem}`)]);
  });

  test.each([
    ["a section without a file", "// s03\nf();", 0, "there is no code of s03"],
    ["the line of another section that isn't there", "// s01\nconst two = 1;", 2, ".*s01_agent"],
    ["no place", body, 0, 'does not say where it is. Begin it with a line like "// in Inbox.add"'],
    ["a place that is not there", `// in g\n${body}`, 0, "there is no g in .*s02_tool_use.ts"],
    ["another place", "// in Box.open\ng(x);", 0, "but not in Box.open"],
    [
      "a place of another section",
      "// s01 · in two\nconst one = 1;",
      0,
      "there is no two in .*s01",
    ],
  ])("%s", (_name, excerpt, offset, problem) => {
    const line = lineOf("```ts") + offset;
    const found = changed(place + body, excerpt);
    expect(found).toEqual([expect.stringMatching(`^${line}: .*${problem}`)]);
  });

  test.each([
    ["as it stands", "  if (x > 1) {\n    g(x);\n\n    return ours;\n  }"],
    ["without its indentation", "if (x > 1) {\n  g(x);\n\n  return ours;\n}\nreturn 2;"],
    ["with less of it", " if (x > 1) {\n   g(x);"],
    ["with lines left out", "// …\n    g(x);\n  // …\n}"],
  ])("fine: %s", (_name, excerpt) => {
    expect(changed(body, excerpt)).toEqual([]);
  });

  test.each([
    ["its own declaration", "export function f(x: number) {\n  // …\n    g(x);\n  // …\n}"],
    ["the same with its comment", "// A file.\nexport function f(x: number) {"],
    ["a method", "// in Box.open\n  open() {\n    return 1;"],
    ["the whole class", "// in Box\nopen() {\n  return 1;"],
    ["the comment of a method", "// in Box.open\n// Opens it.\nopen() {"],
    ["another section", "// s01\nconst one = 1;"],
    ["a place in another section", "// s01 · in one\nconst one = 1;"],
  ])("a place: %s", (_name, excerpt) => {
    expect(changed(place + body, excerpt)).toEqual([]);
  });

  test("a fence in a list is indented with it", () => {
    const fence = `   \`\`\`ts\n   // in f\n   ${body.replaceAll("\n", "\n   ")}\n   \`\`\``;
    expect(changed("Look.", `\n\n${fence}\n`)).toEqual([]);
    expect(changed("Look.", `\n\n${fence.replace("g(x)", "g(y)")}\n`)).toEqual(one('"g(y);"'));
  });

  test("Windows line ends in the file make no difference", () => {
    const files = { "sessions/en/s02_tool_use.ts": CODE.replaceAll("\n", "\r\n") };
    expect(check(GOOD.replaceAll("\n", "\r\n"), files).problems).toEqual([]);
  });

  test("the match may begin at a later line that looks the same", () => {
    const source = ["a {", "  1", "}", "  a {", "    2", "  }"];
    expect(matchExcerpt(source, ["a {", "  2", "}"])).toBe(3);
    expect(matchExcerpt(source, ["a {", "// …", "  3"])).toBe(2);
    expect(matchExcerpt(source, ["a {", "  3"])).toBe(1);
  });
});

describe("OpenClaw", () => {
  const ADD_IT = "Add it to the path and symbols there, then run: npm run openclaw";
  const row = "| the loop | `src/loop.ts`, `runLoop` | `MAX` is there, `ours` is not |";
  test.each([
    ["an unknown path", "| the loop | `src/lop.ts`, `runLoop` |", "src/lop.ts is not in"],
    ["an unknown symbol", "| the loop | `src/loop.ts`, `runLoop`, `run()` |", "run is not in"],
    ["another file's symbol", "| the loop | `src/loop.ts`, `runLoop` `other` |", "other is not in"],
    ["another value", "| the loop | `src/loop.ts`, `runLoop` `MAX=6` |", "MAX=6 is not in"],
    ["no symbol", "| the loop | `src/loop.ts` |", "any symbol of this row is not in"],
    ["only ours", "| the loop | `src/loop.ts`, `g` |", "any symbol of this row is not in"],
    ["two files", "| the loop | `src/loop.ts` `src/other.ts`, `runLoop()` `other` |", ""],
    ["a value", "| the loop | `src/loop.ts`, `MAX=5` |", ""],
    ["a command", "| the loop | `src/loop.ts`, `runLoop`, `npm start` |", ""],
  ])("%s", (_name, to, problem) => {
    const found = changed(row, to);
    expect(found).toEqual(
      problem ? [`${lineOf(row)}: ${problem} tools/openclaw.json. ${ADD_IT}`] : [],
    );
  });

  test("a path outside of the table", () => {
    expect(changed("## Exercises", "See `src/gone.ts`.\n\n## Exercises")).toEqual(
      one("src/gone.ts is not in tools/openclaw.json"),
    );
    expect(changed("## Exercises", "See `src/other.ts`.\n\n## Exercises")).toEqual([]);
  });

  test("nothing cited", () => {
    expect(changed(row, "| the loop |")).toEqual(one("no path of OpenClaw is cited here"));
  });
});
