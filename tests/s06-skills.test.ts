/** s06, skills: SKILL.md as people write it, and as nobody should. */

import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { printed, type SectionFile, sectionsFrom, settings, temporaryFolder } from "./helper.ts";
import { load06 } from "./world.ts";

async function open(section: SectionFile) {
  const workspace = temporaryFolder();
  const { SkillsManager, buildSystemPrompt, AGENTS } = await load06(
    section,
    settings(undefined, { CLAW0_WORKSPACE: workspace }),
  );
  const put = (file: string, content: string | Buffer) => {
    mkdirSync(dirname(join(workspace, file)), { recursive: true });
    writeFileSync(join(workspace, file), content);
  };
  /** A skill in the workspace's folder, by what stands between its two lines of dashes. */
  const skill = (folder: string, front: string, body = "\n# Body\n") =>
    put(`skills/${folder}/SKILL.md`, `---\n${front}\n---\n${body}`);
  const list = (...folders: string[]) => {
    const named = folders.length > 0 ? folders : ["skills"];
    return new SkillsManager(named.map((folder) => join(workspace, folder))).list();
  };
  const prompt = (id: string) => {
    const agent = AGENTS.find((one) => one.id === id);
    return buildSystemPrompt({ agent })[0]?.text ?? "";
  };
  return { workspace, put, skill, list, prompt };
}

/** How people write it, and the description that is meant. */
const WRITTEN: [how: string, front: string, description: string][] = [
  ["plain", "name: it\ndescription: Makes tea, and pours it.", "Makes tea, and pours it."],
  [
    "double quotes",
    'name: "it"\ndescription: "Tea: green \\"or\\" black"',
    'Tea: green "or" black',
  ],
  ["single quotes", "name: 'it'\ndescription: 'It''s tea: # no comment'", "It's tea: # no comment"],
  [
    "folded text",
    "name: it\ndescription: >\n  Makes tea\n  in two lines.\n",
    "Makes tea in two lines.",
  ],
  ["folded, stripped", "name: it\ndescription: >-\n  Makes\n  tea.", "Makes tea."],
  ["literal text", "name: it\ndescription: |\n  Makes tea.\n\n  - green\n", "Makes tea. - green"],
  [
    "a line that goes on",
    "name: it\ndescription: Makes tea\n  and pours it.",
    "Makes tea and pours it.",
  ],
  ["comments", "# a comment\nname: it # the name\ndescription: Tea. # and more", "Tea."],
  [
    "lists and maps beside it",
    "name: it\nallowed-tools: [bash, read_file]\ntags:\n  - tea\n  - water\nmetadata: { level: 3, deep: { er: [1] } }\ndescription: Tea.\nlicense: MIT",
    "Tea.",
  ],
  [
    "an anchor, used a few times",
    "name: it\nbase: &words Makes tea.\ndescription: *words\nagain: [*words, *words]",
    "Makes tea.",
  ],
  ["Chinese", "name: it\ndescription: 泡茶，然后倒茶。", "泡茶，然后倒茶。"],
  ["emoji", "name: it\ndescription: Tea 🍵 for two 👨‍👩‍👧", "Tea 🍵 for two 👨‍👩‍👧"],
  ["other keys that look alike", "Name: no\nname: it\ndescription: Tea.\ndescriptions: no", "Tea."],
  [
    "keys that every object has",
    "name: it\ndescription: Tea.\n__proto__: { name: no }\nconstructor: no",
    "Tea.",
  ],
  [
    "tags that mean something elsewhere",
    'name: it\ndescription: Tea.\nrun: !!js/function "boom"',
    "Tea.",
  ],
];

describe.each(sectionsFrom("s06"))("$name, skills", (section) => {
  it.each(WRITTEN)("with %s", async (_how, front, description) => {
    const { skill, list } = await open(section);
    skill("tea", front);
    expect(list()).toEqual([{ name: "it", description, file: "skills/tea/SKILL.md" }]);
    expect(printed()).toBe("");
  });

  it("with the line ends of Windows, a byte order mark, and dashes in the body", async () => {
    const { put, list } = await open(section);
    const lines = ["---", "name: it", "description: >-", "  Makes", "  tea.", "---", "", "Body."];
    put("skills/a/SKILL.md", lines.join("\r\n"));
    put("skills/b/SKILL.md", `\uFEFF${lines.join("\n").replace("it", "bom")}`);
    put("skills/c/SKILL.md", `${lines.join("\n").replace("it", "body")}\n---\nname: no\n---\n`);
    const names = list().map(({ name, description }) => `${name}: ${description}`);
    expect(names).toEqual(["it: Makes tea.", "bom: Makes tea.", "body: Makes tea."]);
    expect(printed()).toBe("");
  });

  const LAUGHS = ["a: &a [x, x, x, x, x, x, x, x, x]"];
  for (const [one, before] of ["ba", "cb", "dc", "ed", "fe", "gf", "hg", "ih"]) {
    LAUGHS.push(`${one}: &${one} [${new Array(9).fill(`*${before}`).join(", ")}]`);
  }
  const BROKEN: [what: string, content: string | Buffer][] = [
    ["no front matter", "# Only a body\n"],
    ["nothing in it", ""],
    ["front matter without an end", "---\nname: x\ndescription: y\n"],
    ["front matter that comes late", "\n\n---\nname: x\ndescription: y\n---\n"],
    ["YAML that is none", "---\nname: [x\ndescription: y\n---\n"],
    ["a tab for blanks", "---\nname: x\nmore:\n\t- y\ndescription: y\n---\n"],
    ["a colon in plain text", "---\nname: x\ndescription: use: it\n---\n"],
    ["the same key twice", "---\nname: x\nname: y\ndescription: z\n---\n"],
    ["a list", "---\n- name: x\n- description: y\n---\n"],
    ["one word", "---\nword\n---\n"],
    ["no name", "---\ndescription: y\n---\n"],
    ["an empty name", '---\nname: ""\ndescription: y\n---\n'],
    ["a blank name", '---\nname: " \\n "\ndescription: y\n---\n'],
    ["a number for a name", "---\nname: 7\ndescription: y\n---\n"],
    ["no description", "---\nname: x\n---\n"],
    ["null for a description", "---\nname: x\ndescription:\n---\n"],
    ["a list for a description", "---\nname: x\ndescription: [y]\n---\n"],
    ["an alias of nothing", "---\nname: x\ndescription: *nobody\n---\n"],
    [
      "an alias of itself",
      "---\nname: x\ndescription: y\nmore: &m { m: *m }\nagain: [*m, *m]\n---\n",
    ],
    [
      "bytes that are no text",
      Buffer.concat([
        Buffer.from("---\nname: x\ndescription: "),
        Buffer.from([0xff, 0xfe]),
        Buffer.from("\n---\n"),
      ]),
    ],
    [
      "aliases that would fill all memory",
      `---\n${LAUGHS.join("\n")}\nname: x\ndescription: *i\n---\n`,
    ],
    [
      "the same, hidden in a field that nobody reads",
      `---\nname: x\ndescription: y\n${LAUGHS.join("\n")}\n---\n`,
    ],
    ["a huge front matter", `---\nname: x\ndescription: y\nmore: ${"z".repeat(2_000_000)}\n---\n`],
  ];

  it.each(BROKEN)("%s: it is named, once, and the others are there", async (what, content) => {
    const { workspace, put, skill, list } = await open(section);
    skill("aaa", "name: before\ndescription: b");
    put("skills/broken/SKILL.md", content);
    skill("zzz", "name: after\ndescription: a");
    const from = Date.now();
    const names = () => list().map(({ name }) => name);
    const harmless = what === "an alias of itself"; // it may be taken, if that does no harm
    expect(names().filter((name) => !(harmless && name === "x"))).toEqual(["before", "after"]);
    expect(Date.now() - from).toBeLessThan(10_000); // a bomb would take minutes, and all memory
    if (harmless && names().includes("x")) return;
    const file = join(workspace, "skills/broken/SKILL.md");
    expect(printed()).toContain(file);
    expect(printed().length).toBeLessThan(file.length + 2_000); // the sentence, and not the file
    names();
    expect(printed().split(file)).toHaveLength(2);
  });

  it("one that is nested too deep for any parser: the others are there", async () => {
    const { workspace, skill, list } = await open(section);
    const deep = "[".repeat(9_000) + "]".repeat(9_000);
    skill("deep", `name: x\ndescription: y\nmore: ${deep}`);
    skill("tea", "name: tea\ndescription: Tea.");
    // Where the stack ends is not always the same place: it may even be read.
    expect(list().map(({ name }) => name)).toContain("tea");
    if (list().length === 1) expect(printed()).toContain(join(workspace, "skills/deep/SKILL.md"));
  });

  it("a folder for a file, a file for a folder, and no SKILL.md: no harm", async () => {
    const { workspace, put, skill, list } = await open(section);
    mkdirSync(join(workspace, "skills/folder/SKILL.md"), { recursive: true });
    mkdirSync(join(workspace, "skills/empty"));
    put("skills/README.md", "not a skill");
    symlinkSync(join(workspace, "nowhere"), join(workspace, "skills/dangling"));
    skill("tea", "name: tea\ndescription: Tea.");
    expect(list().map(({ name }) => name)).toEqual(["tea"]);
    expect(list("no such folder")).toEqual([]);
    expect(list("skills/README.md")).toEqual([]);
  });

  it("the agent's own come before the workspace's, and take their place by name", async () => {
    const { put, skill, list, prompt } = await open(section);
    skill("tea", "name: tea\ndescription: Tea for all.");
    skill("walk", "name: walk\ndescription: A walk for all.");
    put("agents/sage/skills/x/SKILL.md", "---\nname: tea\ndescription: Tea for Sage.\n---\n");
    expect(list("agents/sage/skills", "skills")).toEqual([
      { name: "tea", description: "Tea for Sage.", file: "agents/sage/skills/x/SKILL.md" },
      { name: "walk", description: "A walk for all.", file: "skills/walk/SKILL.md" },
    ]);
    expect(prompt("sage")).toContain("Tea for Sage.");
    expect(prompt("sage")).not.toContain("Tea for all.");
    expect(prompt("luna")).toContain("Tea for all.");
    expect(prompt("luna")).not.toContain("Tea for Sage.");
  });

  it("stand in the prompt in one order, whatever the order of the disk, a line each", async () => {
    const { skill, list, prompt } = await open(section);
    const names = ["m", "b", "z", "a", "k"];
    for (const name of names) skill(name, `name: ${name}\ndescription: "one\\ntwo"`, "The body.");
    expect(list().map(({ name }) => name)).toEqual([...names].sort());
    const lines = prompt("luna")
      .split("\n")
      .filter((line) => line.includes("one two"));
    expect(lines).toHaveLength(names.length);
    expect(prompt("luna")).not.toContain("The body.");
  });

  it("a skill that is mended is there again", async () => {
    const { skill, list } = await open(section);
    skill("tea", "name: [");
    expect(list()).toEqual([]);
    skill("tea", "name: tea\ndescription: Tea.");
    expect(list().map(({ name }) => name)).toEqual(["tea"]);
  });
});
