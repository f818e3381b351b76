// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these strings are source code
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { finished, lagging, parseCatalogue, updateCatalogue } from "../tools/catalogue.ts";
import { parse } from "../tools/code.ts";
import { nearest, successors } from "../tools/nearest.ts";
import { existingSections, ROOT, SECTIONS, sectionPath } from "../tools/sections.ts";
import { readSource, translateSource } from "../tools/translate.ts";

const [NAME = ""] = SECTIONS;

/** What becomes of a source with these translations, and what is said. */
function translated(source: string, translations: Record<string, string> = {}) {
  const finishedOnes = new Map(Object.entries(translations));
  return translateSource(readSource(NAME, source), "zh", { finished: finishedOnes });
}

const ids = (source: string) => readSource(NAME, source).messages.map(({ id }) => id);

/** Every message in «…», inside of the blanks that must stay. */
const pseudo = (id: string) => id.replace(/^((?:\s|\\n)*)([\s\S]*?)((?:\\n)*)$/, "$1«$2»$3");
const pseudoOf = (source: string) =>
  Object.fromEntries(ids(source).map((id): [string, string] => [id, pseudo(id)]));

const TOOLS = readdirSync(path.join(ROOT, "tools")).filter((name) => name.endsWith(".ts"));
const FILES = [
  ...existingSections(ROOT, "en").map((name) => sectionPath("en", name)),
  ...TOOLS.map((name) => `tools/${name}`),
];

describe.each(FILES)("%s", (file) => {
  const source = readFileSync(path.join(ROOT, file), "utf8");

  test("without translations the bytes come back", () => {
    expect(translated(source)).toEqual({ text: source, problems: [] });
  });

  test("with every message translated the code is the same, and it parses", () => {
    const { text, problems } = translated(source, pseudoOf(source));
    const wide = problems.filter((problem) => problem.includes("columns, 100 are there"));
    expect(problems).toEqual(wide);
    // What is too wide with two more characters stays English.
    const count = readSource(NAME, source).messages.length;
    expect(text.match(/«/g)?.length ?? 0).toBeGreaterThanOrEqual(count - wide.length);
    expect(() => parse(text, file)).not.toThrow();
    if (file.startsWith("sessions")) expect(text.replace(/[«»]/g, "")).toBe(source);
  });
});

describe("messages", () => {
  test("comment lines that follow each other are one, with their blanks and empty lines", () => {
    const source =
      "// A title\n//\n//   a ──► b\n\n// Another.\nf();\n  // In\n  // two.\n// Three.\n";
    expect(ids(source)).toEqual(["A title\n\n  a ──► b", "Another.", "In\ntwo.", "Three."]);
  });

  test("blocks lose frame and stars; one line may become two, and two one", () => {
    const source = "/** One. */\nf();\n  /**\n   * Two,\n   *   three.\n   */\ng();\n/* x */\n";
    expect(ids(source)).toEqual(["One.", "Two,\n  three.", "x"]);
    const { text, problems } = translated(source, {
      "One.": "一\n二",
      "Two,\n  three.": "三",
      x: "四",
    });
    expect(text).toBe("/**\n * 一\n * 二\n */\nf();\n  /** 三 */\ng();\n/* 四 */\n");
    expect(problems).toEqual([]);
  });

  test("a comment beside code is one of its own, and keeps its lines", () => {
    const source = "f(/* in */ 1); // behind\n// below\n/* a */ g();\n";
    expect(ids(source)).toEqual(["in", "behind", "below", "a"]);
    expect(translated(source, { in: "里", behind: "后\n面" })).toEqual({
      text: source.replace("in", "里"),
      problems: [expect.stringContaining('"behind" (line 1 in English): it must have as many')],
    });
  });

  test("of a banner only the title", () => {
    const source = "// ---- Configuration ----\n// ---- s03 · Sessions ----\n// Words.\n";
    expect(ids(source)).toEqual(["Configuration", "Sessions", "Words."]);
    const { text } = translated(source, { Sessions: "会话", Configuration: "配置" });
    expect(text).toBe("// ---- 配置 ----\n// ---- s03 · 会话 ----\n// Words.\n");
  });

  test("what has no words is none, nor what the compiler and the linter read", () => {
    const source = [
      "// ──► 12 …",
      "// @ts-expect-error: no",
      "// biome-ignore lint: no",
      'say("\\n");',
      "info(`  ${name} ${f(1)}`);",
      'say("\\x1b[2m");',
      "other('words');",
      "throw new Error('words');",
      'command("name", "help", () => "no");',
    ].join("\n");
    expect(ids(source)).toEqual(["help"]);
  });

  test("texts: conditionals, sums, tables, and t() inside of another", () => {
    const source = `
      info(x === "no" ? "a" : y ? \`b \${z}\` : "c" + "d");
      warn(["e", rows.map((row) => \`f \${row["no"]}\`)].join("no"));
      say(pad(t("g"), "no") ?? "h");
      const table = { key: t("i"), other: "no" };
      fail(("j" as string) || \`\${(ok && t("k")) || "l"} m\`);
    `;
    const found = ids(source).map((id) => id.slice(0, 1));
    expect(found.sort().join("")).toBe("$abcdefghijkl");
    const { text, problems } = translated(source, pseudoOf(source));
    expect(problems).toEqual([]);
    expect(text).toContain('`«${(ok && t("«k»")) || "«l»"} m»`');
  });

  test("a new order of placeholders; quotes as the literal needs them", () => {
    const source = 'info(`Talking to ${MODEL}, ${n}. "q" leaves.`);\nwarn("say \\"go\\"");\n';
    expect(ids(source)).toEqual(['Talking to ${MODEL}, ${n}. "q" leaves.', 'say "go"']);
    const { text, problems } = translated(source, {
      'Talking to ${MODEL}, ${n}. "q" leaves.': '${n}：`${MODEL}` "q"',
      'say "go"': '说 "go" `x` \\t',
    });
    expect(problems).toEqual([]);
    expect(text).toBe('info(`${n}：\\`${MODEL}\\` "q"`);\nwarn("说 \\"go\\" `x` \\t");\n');
  });

  test("line breaks at the ends stay; in a translation they may be real ones", () => {
    const source = 'say("\\n(Cut off.)\\n");\n';
    const id = "\\n(Cut off.)\\n";
    expect(translated(source, { [id]: "\n（断）\\n" }).text).toBe('say("\\n（断）\\n");\n');
    expect(translated(source, { [id]: "（断）" })).toEqual({
      text: source,
      problems: [expect.stringContaining("begin and end with the same spaces and line breaks")],
    });
  });

  test.each(["${a} 和 ${a} ${b}", "${a}", "", "${a} ${b} ${c}", "${a} ${ b }", "\\${a} ${b}"])(
    "placeholders: %j is wrong",
    (translation) => {
      const source = "info(`${a} and ${b}`);\n";
      const { text, problems } = translated(source, { "${a} and ${b}": translation });
      expect(text).toBe(source);
      expect(problems).toEqual([expect.stringContaining("just these placeholders: ${a} ${b}")]);
    },
  );

  test("a line of more than 100 columns; a wide character takes two", () => {
    const source = "  // words\n  f();\n";
    const wide = "字".repeat(47);
    expect(translated(source, { words: `${wide}x` }).problems).toEqual([]);
    expect(translated(source, { words: `x\n${wide}xx` })).toEqual({
      text: source,
      problems: [expect.stringMatching(/^sessions\/zh\/code\.po: "words" .*takes 101 columns/)],
    });
  });

  test("what breaks out of its comment or its literal is found", () => {
    const breaking = (source: string, id: string, translation: string) =>
      translated(source, { [id]: translation }).problems;
    const other = [expect.stringContaining("the code is not that of the English file")];
    expect(breaking("f(/* a */ 1);\n", "a", "b */ 2, /* c")).toEqual(other);
    expect(() => breaking('say("a");\n', "a", "b\\")).toThrow(/does not parse/);
  });
});

// Pieces of source in any order: comments in odd places, strings, templates in templates, regular
// expressions with slashes.
const word = fc.constantFrom(
  "word",
  "`q`",
  "// no",
  '"',
  "it's",
  "\\n",
  "…",
  "中文 𝄞",
  "*",
  "${x}",
);
const comment = fc.oneof(
  word.map((text) => `// ${text}\n`),
  word.map((text) => `//${text}\n//\n//   ${text}\n`),
  word.map((text) => `/* ${text} */`),
  word.map((text) => `\n/**\n * ${text}\n *\n * ${text}\n */\n`),
  word.map((text) => `/*${text}\n${text}*/`),
  fc.constantFrom("// ---- s01 · Title ----\n", "//\n", "/**/", "// @ts-ignore\n"),
);
const literal = fc.oneof(
  word.map((text) => JSON.stringify(text)),
  word.map((text) => `'${text.replace(/['\\]/g, "\\$&")}'`),
  word.map((text) => `\`${text.replace(/[`\\]/g, "\\$&")}\``),
  word.map(
    (text) => `\`a \\\${b} \\\\\${\`${text.replace(/[`\\]/g, "\\$&")} \${y}\`} \${/* c */ z}\``,
  ),
  fc.constantFrom("/[/*]\\/\\/'/g", "``", '"\\u{1F600} \\x1b[2mdim"', "a / b / c", "`x\n  y ${1}`"),
);
const statement = fc.oneof(
  comment,
  fc
    .tuple(fc.constantFrom("say", "info", "text", "other"), literal)
    .map(([name, value]) => `  ${name}(${value});\n`),
  fc.tuple(literal, comment, literal).map(([a, note, b]) => `warn(x ? ${a} : ${note} ${b});\n`),
  fc.constant("\n"),
);
const nasty = fc
  .tuple(fc.constantFrom("", "#!/usr/bin/env node\n"), fc.array(statement, { maxLength: 12 }))
  .map(([first, statements]) => first + statements.join(""));

test("nasty sources: the bytes come back, and translated the code is the same", () => {
  fc.assert(
    fc.property(nasty, (source) => {
      expect(translated(source)).toEqual({ text: source, problems: [] });
      const { text, problems } = translated(source, pseudoOf(source));
      const wide = problems.filter((problem) => problem.includes("100 are there"));
      expect(problems).toEqual(wide);
      expect(() => parse(text, "a.ts")).not.toThrow();
      if (wide.length === 0) expect(text.match(/«/g)?.length ?? 0).toBe(ids(source).length);
    }),
    { numRuns: 500 },
  );
});

describe("where a new text comes from", () => {
  const old = ["One two three four.", "One two three four five.", "Nothing of this."];

  test("the nearest, if it is near enough", () => {
    const fresh = ["One two three four six.", "Quite new words here."];
    expect([...nearest(fresh, old)]).toEqual([["One two three four six.", old[0]]]);
  });

  test("an old comment has one successor, that which is most like it", () => {
    const fresh = ["One two three four five six seven.", "One two three four five six."];
    expect(successors(fresh, old)).toEqual(
      new Map([
        [fresh[1], old[1]],
        [fresh[0], old[0]],
      ]),
    );
    expect(nearest(fresh, old).get(fresh[0] ?? "")).toBe(old[1]);
    expect(
      successors([...fresh, "One two three four five."], ["One two three four five."]),
    ).toEqual(new Map([["One two three four five.", "One two three four five."]]));
  });
});

describe("the catalogue", () => {
  const update = (po: string, ...sources: string[]) =>
    updateCatalogue(
      po,
      "zh",
      sources.map((text, i) => readSource(SECTIONS[i] ?? "", text)),
    );
  const fill = (po: string, id: string, translation: string) =>
    po.replace(`msgid "${id}"\nmsgstr ""`, `msgid "${id}"\nmsgstr "${translation}"`);

  test("an entry for each message, once, in the order of the sections; the same when run again", () => {
    const po = update("", '// One\nsay("two");\n', "// Zero\n// more\nf();\n// One\n");
    expect([...parseCatalogue(po).live.keys()]).toEqual(["One", "two", "Zero\nmore"]);
    expect(po).toContain('"Language: zh\\n"');
    expect(po).toContain('#: s01_agent_loop.ts\n#. comment, 97 columns\nmsgid "One"\nmsgstr ""');
    expect(po).toContain('#. printed\nmsgid "two"');
    expect(update(po, '// One\nsay("two");\n', "// Zero\n// more\nf();\n// One\n")).toBe(po);
  });

  test("every message survives the file format", () => {
    fc.assert(
      fc.property(nasty, (source) => {
        expect([...parseCatalogue(update("", source)).live.keys()]).toEqual([
          ...new Set(ids(source)),
        ]);
      }),
    );
  });

  test("the glossary, comments of translators and flags stay", () => {
    const empty = update("", "// One\n// ──►\n\n// Two\n");
    const glossary = "# agent | 智能体 | why\n#\n# tool | 工具\n";
    const po = `${glossary}${empty.replace("#: s01", "# same\n#: s01")}`;
    expect(update(po, "// One\n// ──►\n\n// Two\n")).toBe(po);
  });

  test("what is new is empty, what is gone obsolete; it comes back with its translation", () => {
    const before = fill(update("", "// Alpha beta gamma"), "Alpha beta gamma", "甲乙丙");
    const after = update(before, "// Something else");
    expect(after).toContain('msgid "Something else"\nmsgstr ""');
    expect(after).toContain('#~ msgid "Alpha beta gamma"\n#~ msgstr "甲乙丙"');
    expect(update(after, "// Something else")).toBe(after);
    const again = parseCatalogue(update(after, "// Alpha beta gamma"));
    expect(finished(again.live)).toEqual(new Map([["Alpha beta gamma", "甲乙丙"]]));
  });

  test("what is changed is fuzzy, with the old English, and isn't used until the flag goes", () => {
    const before = fill(update("", "// Alpha beta gamma"), "Alpha beta gamma", "甲乙丙");
    const after = update(before, "// Alpha beta gamma delta");
    expect(after).toContain(
      '#, fuzzy\n#| msgid "Alpha beta gamma"\nmsgid "Alpha beta gamma delta"\nmsgstr "甲乙丙"',
    );
    expect(after).not.toContain("#~");
    expect(finished(parseCatalogue(after).live).size).toBe(0);
    const mended = update(after.replace("#, fuzzy\n", ""), "// Alpha beta gamma delta");
    expect(mended).not.toContain("#|");
    expect(finished(parseCatalogue(mended).live).size).toBe(1);
  });

  test("a comment takes the translation of one that is gone, not of one that is still there", () => {
    const before = fill(update("", "// Alpha beta gamma"), "Alpha beta gamma", "甲乙丙");
    const after = update(before, "// Alpha beta gamma\n\n// Alpha beta gamma delta");
    expect(after).toContain('msgid "Alpha beta gamma delta"\nmsgstr ""');
  });

  test("hundreds of comments that have changed at once find their translations", () => {
    const letters = (n: number) =>
      [...String(n)].map((digit) => "abcdefghij"[Number(digit)]).join("");
    const numbered = (n: number, more = "") =>
      `// The part ${letters(n)} of the program keeps what ${letters(n * 7)} was told${more}\nf();\n`;
    const all = (more = "") => Array.from({ length: 800 }, (_, n) => numbered(n, more)).join("");
    let po = update("", all());
    let count = 0;
    po = po.replace(/(?<=\nmsgid "The.*\n)msgstr ""/g, () => `msgstr "译文${count++}"`);
    expect(count).toBe(800);
    const after = update(po, all(" before"));
    const { live, obsolete } = parseCatalogue(after);
    expect(obsolete.size).toBe(0);
    expect([...lagging(live).values()]).toEqual([...finished(parseCatalogue(po).live).values()]);
    expect(finished(live).size).toBe(0);
    expect(update(after, all(" before"))).toBe(after);
  });
});
