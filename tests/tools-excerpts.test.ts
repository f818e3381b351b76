import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { align, coverage } from "../tools/align.ts";
import { refreshLessons } from "../tools/excerpts.ts";
import { placeLine, readCode, readPlace } from "../tools/places.ts";
import { refresh } from "../tools/refresh.ts";
import { locate } from "../tools/verbatim.ts";
import { put, tree } from "./tools-tree.ts";

const FILE = "sessions/en/s02_tool_use.ts";
const LESSON = "sessions/en/s02_tool_use.md";

const OLD = `// ---- s02 · Box ----

/** Keeps numbers. */
export class Box {
  #list: number[] = [];

  // Nothing is kept twice.
  add(one: number): void {
    if (this.#list.includes(one)) return;
    const before = this.#list.length;
    this.#list.push(one);
    log("added", one, before);
  }

  has(one: number) {
    return this.#list.includes(one);
  }
}

export const TABLE = {
  first: () => call("first", 1),
  second: () => call("second", 2),
};

/** Says what it does. */
command("new", "begin anew", () => box.clear());

const sum = (list: number[]) => list.reduce((all, one) => all + one, 0);
`;

const now = (...changes: [from: string, to: string][]) => {
  let text = OLD;
  for (const [from, to] of changes) {
    expect(text).toContain(from);
    text = text.replace(from, to);
  }
  return text;
};

/** What becomes of an excerpt of OLD. The first line may be its place. */
function refreshed(text: string, excerpt: string, withBase = true) {
  const lines = excerpt.split("\n");
  const name = readPlace(lines[0])?.name;
  const body = name ? lines.slice(1) : lines;
  const old = readCode(OLD, FILE);
  const positions = locate(old.lines, body);
  const base = withBase && positions ? { code: old, positions } : undefined;
  const made = refresh(readCode(text, FILE), { body, name }, () => base);
  const head = placeLine(undefined, made.name);
  const whole = [...(head ? [head] : []), ...made.body].join("\n");
  return { text: whole, said: made.said, isDoubtful: made.isDoubtful ?? false };
}

describe("places", () => {
  test("declarations and their members, from their first line to behind their last one", () => {
    const { places } = readCode(OLD, FILE);
    expect(places.map(({ name, start, end }) => `${name} ${start + 1}-${end}`)).toEqual([
      "Box 4-18",
      "Box.#list 5-5",
      "Box.add 8-13",
      "Box.has 15-17",
      "TABLE 20-23",
      "TABLE.first 21-21",
      "TABLE.second 22-22",
      'command("new") 26-26',
      "sum 28-28",
    ]);
  });

  test("tables that a section adds to, interfaces that are declared again", () => {
    const source = `export interface App { a: number }
Object.assign(HANDLERS, { bash: run });
export interface App { b: number }
TOOLS.push(tool("x"));
MIDDLEWARE.unshift((turn, next) => next(turn));
function plain() {}
type Name = string;
`;
    expect(readCode(source, FILE).places.map(({ name }) => name)).toEqual([
      ...["App", "App.a", "HANDLERS", "HANDLERS.bash", "App", "App.b"],
      ...["TOOLS", "MIDDLEWARE", "plain", "Name"],
    ]);
  });

  test.each<[line: string, place: { section?: string; name?: string } | undefined]>([
    ["// in Inbox.add", { name: "Inbox.add" }],
    ["// in Session.#replay", { name: "Session.#replay" }],
    ['// in command("new")', { name: 'command("new")' }],
    ["// s02", { section: "s02" }],
    ["// s02 · in safePath", { section: "s02", name: "safePath" }],
    ["// in two words", undefined],
    ["// s02 · safePath", undefined],
    ["// s02 in safePath", undefined],
    ["// why", undefined],
    ["", undefined],
  ])("the first line of an excerpt: %j", (line, place) => {
    expect(readPlace(line)).toEqual(place);
    if (place) expect(placeLine(place.section, place.name)).toBe(line);
  });
});

describe("alignment", () => {
  const pairs = (before: string[], after: string[]) =>
    align(before, after).map((match) => match?.at);

  test("lines that stayed, changed, went and came", () => {
    const before = ["begin();", "const a = list.length + one;", "gone(1, 2, 3);", "", "end();"];
    const after = ["begin();", "fresh();", "const b = list.length + one;", "", "end();"];
    expect(pairs(before, after)).toEqual([0, 2, undefined, undefined, 4]);
  });

  test("the first of two equal lines; a brace says less than words", () => {
    expect(pairs(["f();"], ["f();", "f();"])).toEqual([0]);
    expect(pairs(["}", "call(one, two);"], ["call(one, two);", "}"])).toEqual([undefined, 0]);
    expect(pairs([], ["a"])).toEqual([]);
    expect(pairs(["a"], [])).toEqual([undefined]);
  });

  test("how much is left: by words, and comments count less", () => {
    const part = (before: string[], after: string[]) => coverage(before, align(before, after));
    expect(part(["a(b);", "c(d);"], ["a(b);"])).toBe(0.5);
    expect(part(["// some words here", "c(d);"], ["c(d);"])).toBeGreaterThan(0.6);
    expect(part(["}"], ["}"])).toBe(0);
  });
});

describe("an excerpt", () => {
  const inAdd = '// in Box.add\n    this.#list.push(one);\n    log("added", one, before);';

  test.each([
    inAdd,
    "// in Box\n  #list: number[] = [];\n  // …\n  has(one: number) {",
    '// in Box.add\nif (this.#list.includes(one)) return;\n// …\nlog("added", one, before);',
    'export const TABLE = {\n  first: () => call("first", 1),\n  // …\n};',
    '/** Says what it does. */\ncommand("new", "begin anew", () => box.clear());',
  ])("that is right stays: %j", (excerpt) => {
    expect(refreshed(OLD, excerpt)).toEqual({ text: excerpt, said: undefined, isDoubtful: false });
  });

  test("without a place gets one", () => {
    const { text, said } = refreshed(OLD, inAdd.replace("// in Box.add\n", ""));
    expect(text).toBe(inAdd);
    expect(said).toBe("is in Box.add");
  });

  test("with a wrong place gets the right one", () => {
    expect(refreshed(OLD, inAdd.replace("add", "has")).text).toBe(inAdd);
  });

  test.each([true, false])("follows a changed line (base known: %s)", (withBase) => {
    const text = now(['log("added", one, before)', 'log("was added", one, before)']);
    expect(refreshed(text, inAdd, withBase)).toEqual({
      text: inAdd.replace("added", "was added"),
      said: "follows Box.add",
      isDoubtful: false,
    });
  });

  /** An excerpt of Box.add without the line in its middle. */
  const withGap =
    '// in Box.add\n    if (this.#list.includes(one)) return;\n    // …\n    this.#list.push(one);\n    log("added", one, before);';

  test("keeps what is left out, and shows lines that are new between its own", () => {
    const text = now(
      ["push(one);\n", "push(one);\n    this.save();\n"],
      ["return;", "return false;"],
    );
    expect(refreshed(text, withGap).text).toBe(
      '// in Box.add\n    if (this.#list.includes(one)) return false;\n    // …\n    this.#list.push(one);\n    this.save();\n    log("added", one, before);',
    );
  });

  test("has no mark where nothing is left out any more", () => {
    const text = now(["    const before = this.#list.length;\n", ""], ["one, before", "one"]);
    expect(refreshed(text, withGap).text).not.toContain("…");
  });

  test("keeps its indentation, or that it has none", () => {
    const outdented = '// in Box.add\nthis.#list.push(one);\nlog("added", one, before);';
    const text = now(["added", "was added"]);
    expect(refreshed(text, outdented).text).toBe(outdented.replace("added", "was added"));
  });

  test("knows by the lines around it what has taken its place", () => {
    const excerpt =
      "// in Box.add\n    const before = this.#list.length;\n    this.#list.push(one);";
    const text = now(
      ["const before = this.#list.length;", "const size = total(this);"],
      ["one, before", "one, size"],
    );
    expect(refreshed(text, excerpt)).toEqual({
      text: "// in Box.add\n    const size = total(this);\n    this.#list.push(one);",
      said: "follows Box.add",
      isDoubtful: true,
    });
  });

  test("follows a method, a class and a constant to their new names", () => {
    const text = now(
      ["  add(one", "  insert(one"],
      ["class Box", "class NumberBox"],
      ["sum", "total"],
    );
    expect(refreshed(text, inAdd)).toMatchObject({
      text: inAdd.replace("Box.add", "NumberBox.insert"),
      said: "is in NumberBox.insert",
    });
    const changed = text.replace('log("added"', 'log("was added"');
    expect(refreshed(changed, inAdd).said).toBe("follows NumberBox.insert, which was Box.add");
    const constant = "const sum = (list: number[]) => list.reduce((all, one) => all + one, 0);";
    expect(refreshed(text, constant).text).toBe(constant.replace("sum", "total"));
  });

  test("of two declarations follows both, and their order", () => {
    const excerpt = `export const TABLE = {
  first: () => call("first", 1),
  second: () => call("second", 2),
};

/** Says what it does. */
command("new", "begin anew", () => box.clear());`;
    const text = now(['"first", 1', '"first", 10'], ["begin anew", "begin a new one"]);
    expect(refreshed(text, excerpt).text).toBe(
      excerpt.replace('"first", 1', '"first", 10').replace("begin anew", "begin a new one"),
    );
  });

  test("that begins with its declaration still does when that takes two lines", () => {
    const excerpt = "const sum = (list: number[]) => list.reduce((all, one) => all + one, 0);";
    const longer =
      "const sum = (list: number[], start = 0) =>\n  list.reduce((all, one) => all + one, start);";
    expect(refreshed(now([excerpt, longer]), excerpt).text).toBe(longer);
  });

  test("is replaced by its declaration if its lines are gone", () => {
    const method =
      "  // Nothing is kept twice.\n  add(one: number): void {\n    store(this, one);\n  }";
    const whole = OLD.slice(OLD.indexOf("  // Nothing"), OLD.indexOf("\n\n  has"));
    expect(refreshed(now([whole, method]), inAdd)).toEqual({
      text: `// in Box.add\n${method}`,
      said: "is replaced by the declaration of Box.add",
      isDoubtful: true,
    });
  });

  test("is replaced by comment, head and end of a long declaration", () => {
    const long = `export const TABLE = {\n${'  one: () => other("thing"),\n'.repeat(30)}};`;
    const whole = OLD.slice(OLD.indexOf("export const TABLE"), OLD.indexOf("\n\n/** Says"));
    const { text, isDoubtful } = refreshed(now([whole, `/** Why. */\n${long}`]), whole);
    expect(text).toBe("/** Why. */\nexport const TABLE = {\n  // …\n};");
    expect(isDoubtful).toBe(true);
  });

  test("of a long declaration shows the lines that are left", () => {
    const others = Array.from({ length: 30 }, (_, i) => `    step${i}(${i * 7});`).join("\n");
    const method = `  add(one: number): void {\n${others}\n    this.#list.push(one);\n  }`;
    const whole = OLD.slice(OLD.indexOf("  add(one"), OLD.indexOf("\n\n  has"));
    const excerpt = `// in Box.add\n${whole.split("\n").slice(1, -1).join("\n")}`;
    expect(refreshed(now([whole, method]), excerpt)).toEqual({
      text: `// in Box.add
  // Nothing is kept twice.
  add(one: number): void {
    // …
    this.#list.push(one);
  }`,
      said: "is replaced by the declaration of Box.add",
      isDoubtful: true,
    });
  });

  test("follows lines into another method, if they are clearly there", () => {
    const text = now(
      ['    this.#list.push(one);\n    log("added", one, before);\n', "    this.store(one);\n"],
      [
        "  has(one",
        '  store(one: number) {\n    this.#list.push(one);\n    log("added", one);\n  }\n\n  has(one',
      ],
    );
    expect(refreshed(text, inAdd)).toEqual({
      text: '// in Box.store\n    this.#list.push(one);\n    log("added", one);',
      said: "follows Box.store, which was Box.add",
      isDoubtful: false,
    });
  });

  test("stays as it is if nothing is like it", () => {
    const excerpt = "export const NOTHING = [1, 2, 3];";
    const { text, said, isDoubtful } = refreshed(OLD, excerpt);
    expect(text).toBe(excerpt);
    expect(said).toMatch(/stays as it is: nothing in sessions\/en\/s02_tool_use\.ts is like it/);
    expect(isDoubtful).toBe(true);
  });

  test("whatever becomes of the lines, what comes out is verbatim and says where it is", () => {
    const lines = OLD.split("\n");
    const changes = [
      () => "",
      () => "    other();",
      (line: string) => `${line} // more`,
      (line: string) => `${line}\n${line}`,
      (line: string) => line.replace("(", "(fresh, "),
    ];
    const body = [8, 9, 10, 11]; // the lines of add()
    for (const one of body) {
      for (const two of body) {
        for (const change of changes) {
          const text = lines.map((line, i) => (i === one || i === two ? change(line) : line));
          const made = refreshed(text.join("\n"), inAdd);
          expect(refreshed(text.join("\n"), made.text, false).said).toBe(undefined);
        }
      }
    }
  });
});

describe("npm run excerpts", () => {
  const lesson = (shown: string) => `# Box\n\n\`\`\`ts\n${shown}\n\`\`\`\n\nWords.\n`;
  const text = (root: string, file: string) => readFileSync(path.join(root, file), "utf8");
  const git = (root: string, ...args: string[]) =>
    execFileSync("git", ["-c", "user.name=a", "-c", "user.email=a@b", ...args], { cwd: root });

  const excerpt = "// in Box.add\n    const before = this.#list.length;\n    this.#list.push(one);";
  const code = now(["const before = this.#list.length;", "const size = total(this);"]);
  const fresh = "// in Box.add\n    const size = total(this);\n    this.#list.push(one);";

  /** A repository in which the lesson was right, and the code has changed since. */
  function changedTree(): string {
    const root = tree({ [FILE]: OLD, [LESSON]: lesson(excerpt) });
    git(root, "init", "-q");
    git(root, "add", ".");
    git(root, "commit", "-qm", "One");
    put(root, { [FILE]: code });
    git(root, "commit", "-qam", "Two");
    return root;
  }

  test("finds in the history of the section when an excerpt was right", () => {
    const root = changedTree();
    expect(refreshLessons(root, [])).toEqual([
      `look: ${LESSON}:3: follows Box.add`,
      "1 changed, 1 of them to look at.",
    ]);
    expect(text(root, LESSON)).toBe(lesson(fresh));
    expect(refreshLessons(root, ["s02"])).toEqual(["0 changed, 0 of them to look at."]);
  });

  test("takes the base that it is given", () => {
    const root = changedTree();
    refreshLessons(root, ["--base", "HEAD~1"]);
    expect(text(root, LESSON)).toBe(lesson(fresh));
    put(root, { [LESSON]: lesson(excerpt) });
    expect(() => refreshLessons(root, ["--base", "nothing"])).toThrow(/git ls-tree failed/);
    expect(() => refreshLessons(root, ["s03"])).toThrow(/no section "s03"/);
  });

  test("several excerpts, one in a list, one of another section", () => {
    const other = "sessions/en/s01_agent_loop.ts";
    const root = changedTree();
    put(root, {
      [other]: "const one = 11;\n",
      [LESSON]: `${lesson(excerpt)}\n- A list\n\n  \`\`\`ts\n  // in Box\n    has(one: number) {\n      return this.#list.includes(two);\n  \`\`\`\n\n${lesson("// s01\nconst one = 1;")}`,
    });
    const said = refreshLessons(root, []);
    expect(said.at(-1)).toBe("3 changed, 2 of them to look at.");
    expect(text(root, LESSON)).toBe(
      `${lesson(fresh)}\n- A list\n\n  \`\`\`ts\n  // in Box\n    has(one: number) {\n      return this.#list.includes(one);\n  \`\`\`\n\n${lesson("// s01\nconst one = 11;")}`,
    );
  });

  test("explains itself", () => {
    expect(refreshLessons(tree({}), ["--help"]).join()).toContain("npm run excerpts -- --base");
  });
});
