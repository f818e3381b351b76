import * as fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { normalise } from "../tools/normalise.ts";
import { existingLessons, recordFile, recordLesson } from "../tools/record.ts";
import { ROOT, SECTIONS, sectionPath, short } from "../tools/sections.ts";
import { checkTranscripts } from "../tools/transcripts.ts";

/** The smallest program that keeps the run contract, with what is hard to record. */
const TOY = `
import { appendFileSync, mkdirSync, readFileSync, realpathSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
const { CLAW0_WORKSPACE: workspace = "", ANTHROPIC_BASE_URL: url = "" } = process.env;
mkdirSync(workspace + "/.state", { recursive: true });
const ask = async () => {
  const headers = { "x-api-key": "k", "anthropic-version": "2023-06-01" };
  const messages = [{ role: "user", content: "hi" }];
  const body = JSON.stringify({ model: "claude-sonnet-5-5", max_tokens: 9, messages });
  return (await fetch(url + "/v1/messages", { method: "POST", headers, body })).status;
};
const answers: Record<string, () => unknown> = {
  time: () => new Date().toISOString() + " " + Date.now() + " " + new Date().getDay(),
  ids: () => randomUUID() + " " + crypto.randomUUID(),
  where: () => realpathSync(workspace) + "/SOUL.md, at " + url,
  setting: () => process.env.CONTEXT_TOKENS + "|" + process.env.MODEL_ID,
  note: () => appendFileSync(workspace + "/.state/notes.jsonl", '{"note":"a long line"}\\n'),
  notes: () => readFileSync(workspace + "/.state/notes.jsonl", "utf8").length,
  ask,
  fence: () => "\`\`\`\\n",
  hang: () => {
    console.log("[hang] for ever");
    return new Promise(() => setInterval(() => {}, 1000));
  },
  crash: () => { throw new Error("on purpose"); },
};
console.log("A toy.");
process.stdout.write("You > ");
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "quit") break;
  const answer = await (answers[line] ?? (() => "You said: " + line))();
  process.stdout.write((answer ?? "Done.") + "\\n\\nYou > ");
}
process.stdin.destroy();
console.log();
`;

let dir = "";
let lesson = (_comment: string, ..._lines: string[]): Promise<string> => Promise.resolve("");

beforeAll(() => {
  dir = fs.mkdtempSync(path.join(tmpdir(), "claw0-toy-"));
  fs.mkdirSync(path.join(dir, "workspace", ".state"), { recursive: true });
  fs.writeFileSync(path.join(dir, "workspace", "SOUL.md"), "A soul.\n");
  fs.writeFileSync(path.join(dir, "workspace", ".state", "notes.jsonl"), "of yesterday\n");
  fs.writeFileSync(path.join(dir, "toy.mts"), TOY);
  lesson = async (comment, ...lines) => {
    const whole = [`# A lesson`, "", `<!-- record ${comment} -->`, "```console", ...lines, "```"];
    const toy = () => path.join(dir, "toy.mts");
    const once = await recordLesson([...whole, "", "End."].join("\n"), toy, `${dir}/workspace`);
    const twice = await recordLesson(once, toy, `${dir}/workspace`);
    expect(twice).toBe(once);
    expect(once).toMatch(/^# A lesson\n\n<!--.*-->\n```console\n[\s\S]*\n```\n\nEnd\.$/);
    return once.split("\n").slice(4, -3).join("\n");
  };
});

afterAll(() => fs.rmSync(dir, { recursive: true, force: true }));

const COMMAND = "$ npx tsx sessions/en/s02_tool_use.ts";

describe("a recording", () => {
  test("types the lines and keeps nothing else of what stood there", async () => {
    expect(
      await lesson("s02", COMMAND, "old", "You > hello", "old", "", "You > a  b ", "old"),
    ).toBe(
      [
        COMMAND,
        "A toy.",
        "You > hello",
        "You said: hello",
        "",
        "You > a  b",
        "You said: a  b",
      ].join("\n"),
    );
  });

  test("needs no command, and is over when the section leaves", async () => {
    expect(await lesson("s02", "You > quit")).toBe("A toy.\nYou > quit");
  });

  test("is the same at any time, with any id, port and folder", async () => {
    const text = await lesson("s02", "You > time", "You > ids", "You > where");
    expect(text).toContain("2026-01-05T10:00:00.000Z 1767607200000 1");
    expect(text).toMatch(/[\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-8[\da-f]{3}-[\da-f]{12} /);
    expect(text).toContain("/home/you/claw0/workspace/SOUL.md, at http://127.0.0.1:8765");
  });

  test("gives the settings of the comment, and no others", async () => {
    process.env.MODEL_ID = "of this computer";
    try {
      expect(await lesson("s02 context_tokens=4000", "You > setting")).toContain("4000|\n".trim());
    } finally {
      delete process.env.MODEL_ID;
    }
  });

  test("makes the model fail before the first line, or between two lines", async () => {
    const knob = "$ npm run practice -- fail 429";
    expect(await lesson("s02 fail=529x2", "You > ask", "You > ask", knob, "You > ask")).toBe(
      `A toy.\nYou > ask\n529\n\nYou > ask\n529\n\n${knob}\nThe next request: 429.\n\nYou > ask\n429`,
    );
  });

  test("starts again in the same workspace, which was fresh, and shows its files", async () => {
    const show = "$ cut -c1-9 workspace/.state/*.jsonl";
    expect(await lesson("s02", COMMAND, "You > note", COMMAND, "You > note", show)).toBe(
      `${COMMAND}\nA toy.\nYou > note\nDone.\n\n${COMMAND}\nA toy.\nYou > note\nDone.\n\n` +
        `${show}\n{"note":"\n{"note":"`,
    );
  });

  test("kills at the prompt, or as soon as a line is printed", async () => {
    const kill = "$ kill -9";
    const hang = ["You > hang", "[hang] for", kill, COMMAND, "You > ids"];
    const text = await lesson("s02", COMMAND, "You > note", kill, COMMAND, ...hang);
    expect(text.split("\n").slice(0, -1)).toEqual(
      [COMMAND, "A toy.", "You > note", "Done.", "", "You >", kill].concat([
        COMMAND,
        "A toy.",
        "You > hang",
        "[hang] for",
        kill,
        COMMAND,
        "A toy.",
        "You > ids",
      ]),
    );
  });

  test("fails when its own end would be in what is printed", async () => {
    await expect(lesson("s02", "You > fence")).rejects.toThrow(/one backtick more/);
  });

  test("fails with what the section said when it crashes or has left", async () => {
    await expect(lesson("s02", "You > hello", "You > crash")).rejects.toThrow(
      /on purpose[\s\S]*exit code 1[\s\S]*You said: hello/,
    );
    await expect(lesson("s02", "You > quit", "You > hello")).rejects.toThrow(/can't be typed/);
    const never = lesson("s02", "You > hello", "You said: no", "$ kill -9");
    await expect(never).rejects.toThrow(/never printed "You said: no"/);
    await expect(lesson("s02", "You > x", "$ cat workspace/no.md")).rejects.toThrow(
      /no file no.md/,
    );
  });
});

test("paths are told in every way that a system writes them", () => {
  const folders = { "C:\\Users\\ada\\tmp": "/home/you/claw0", "/tmp/x-1": "/home/you/claw0" };
  const same = (text: string) => expect(normalise(text, folders)).toBe("at /home/you/claw0/a/b.md");
  same("at C:\\Users\\ada\\tmp\\a\\b.md");
  same("at C:\\\\Users\\\\ada\\\\tmp\\\\a\\\\b.md");
  same("at c:/users/ada/tmp/a/b.md");
  same("at /c/Users/ada/tmp/a/b.md");
  same("at /tmp/x-1/a/b.md");
  expect(normalise("/tmp/x-10/a, 10:05 10:04", folders)).toBe("/tmp/x-10/a, 10:05 10:00");
});

describe("people, and programs", () => {
  const S05 = "$ npx tsx sessions/en/s05_gateway.ts";
  const real = (section: string) => path.join(ROOT, sectionPath("en", nameOf(section)));
  const nameOf = (section: string) => SECTIONS.find((name) => short(name) === section) ?? "";
  const talk = async (...lines: string[]) => {
    const whole = ["<!-- record s05 -->", "```console", S05, ...lines, "```"];
    const recorded = await recordLesson(whole.join("\n"), real);
    expect(await recordLesson(recorded, real)).toBe(recorded);
    return recorded.split("\n").slice(2, -1).join("\n");
  };
  const START = [
    S05,
    expect.any(String),
    expect.any(String),
    "http: listening on 127.0.0.1:8765",
    "telegram: ready",
    "feishu: ready",
  ];

  test("each line of a phone is answered before the next step", async () => {
    const text = await talk(
      ...["alice > My name is Alice.", "old", "mallory > hi", "mallory > hi?", "(no answer)"],
      ...["bob@family > hi", "(no answer)", "bob@feishu@family > @practice_bot hi"],
      ...["You > /channels", "alice > What is my name?"],
    );
    expect(text.split("\n\n").map((step) => step.split("\n"))).toEqual([
      START,
      [
        "alice > My name is Alice.",
        expect.stringContaining("[telegram 1001] "),
        "bot > Nice to meet you, Alice.",
      ],
      ["mallory > hi", expect.stringContaining("1003"), expect.stringMatching(/^bot > .*1003/)],
      ["mallory > hi?", "(no answer)"],
      ["bob@family > hi", "(no answer)"],
      [
        "bob@feishu@family > @practice_bot hi",
        expect.stringContaining("[feishu oc_family] "),
        expect.stringMatching(/^bot > H/),
      ],
      ["You > /channels", "telegram   ready", "feishu     ready"],
      [
        "alice > What is my name?",
        expect.stringContaining("[telegram 1001] "),
        "bot > Your name is Alice.",
      ],
    ]);
  });

  test("an answer is held while the bot is typing, until the next step or start is over", async () => {
    const typing = ["alice > My name is Alice.", "bot is typing …"];
    const text = await talk(
      ...typing,
      ...["$ npm run rpc -- status", ...typing, "bob > What is 2+3?", ...typing, "$ kill -9", S05],
      '$ npm run rpc -- send text="What is 2+3?" channel=cli',
    );
    const asked = [typing[0], expect.stringContaining("[telegram 1001] "), typing[1]];
    const steps = text.split("\n\n").map((step) => step.split("\n"));
    expect(steps[2]?.join("")).toContain('"uptime": 12,');
    expect(steps[2]?.slice(-4)).toEqual([
      '  "conversations": 1,',
      '  "waiting": 1',
      "}",
      "bot > Nice to meet you, Alice.",
    ]);
    const rest = steps.filter((_, i) => i !== 2);
    expect(rest).toEqual([
      START,
      asked,
      asked,
      [
        ...["bob > What is 2+3?", expect.stringContaining("[telegram 1002] "), "bot > 2+3 = 5"],
        "bot to alice > Nice to meet you, Alice.",
      ],
      [...asked, "$ kill -9", ...START],
      ["bot > Nice to meet you, Alice."],
      ['$ npm run rpc -- send text="What is 2+3?" channel=cli', expect.stringMatching(/^-32602: /)],
    ]);
  });
});

describe("the form of a transcript", () => {
  const problems = (comment: string, ...lines: string[]) =>
    checkTranscripts([comment, "```console", ...lines, "```"].join("\n"));

  test.each([
    ["<!-- record s02 -->", "You > hi", "any output", "$5 for a coffee"],
    ["<!-- record s03 context_tokens=4000 fail=529 fail=dropx2 -->", "You > hi"],
    ["<!-- record s04 -->", "alice@feishu > hi", "(no answer)", "/work > out", "bot > hi"],
    ["<!-- record s02 -->", "$ cat workspace/SOUL.md", COMMAND, "You > hi", "You >", "$ kill -9"],
  ])("%s", (comment, ...lines) => expect(problems(comment, ...lines)).toEqual([]));

  const bad: [RegExp, string, ...string[]][] = [
    [/directly above/, "", "You > hi"],
    [/directly above/, "<!-- record s2 -->", "You > hi"],
    [/directly above/, "<!-- record s11 -->", "You > hi"],
    [/"loud" is neither/, "<!-- record s02 loud -->", "You > hi"],
    [/"colour=1" is neither/, "<!-- record s02 colour=1 -->", "You > hi"],
    [/no failure "530"/, "<!-- record s02 fail=530 -->", "You > hi"],
    [/no failure "flu"/, "<!-- record s02 -->", "$ npm run practice -- fail flu", "You > hi"],
    [/nothing is typed/, "<!-- record s02 -->", "You >", "hi"],
    [/says s03, the command s02_tool_use/, "<!-- record s03 -->", COMMAND, "You > hi"],
    [/s03 does not have/, "<!-- record s03 -->", "alice > hi"],
    [/s04 does not have/, "<!-- record s04 -->", "alice > hi", "$ npm run rpc -- status"],
    [/no command that record knows/, "<!-- record s02 -->", "$ rm -rf /", "You > hi"],
  ];
  test.each(bad)("%s", (sentence, comment, ...lines) => {
    expect(problems(comment, ...lines)).toEqual([expect.stringMatching(sentence)]);
    expect(problems(comment, ...lines)[0]).toMatch(/^2: /);
  });

  test("a comment without a fence", () => {
    const text = "<!-- record s02 -->\n\n```console\nYou > hi\n```";
    expect(checkTranscripts(text)).toEqual([
      expect.stringMatching(/^3: .*directly above/),
      expect.stringMatching(/^1: directly below/),
    ]);
  });
});

describe("the lessons show what the sections print", () => {
  const files = existingLessons();
  test("there are some", () => expect(files.length).toBeGreaterThan(0));
  test.each(files)("%s", { timeout: 300_000 }, async (file) => {
    const { before, after } = await recordFile(file);
    expect(before, "npm run record writes it anew").toBe(after);
  });
});
