/** s06, the prompt: layers from files, in order, for the right eyes, and the same until one changes. */

import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import {
  blocks,
  practice,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import { inbound, load06, type S06 } from "./world.ts";

type Options = Parameters<S06["buildSystemPrompt"]>[0];

/** Which layer each file belongs to, in the order of the layers. */
const FILES: [layer: string, file: string][] = [
  ["identity", "IDENTITY.md"],
  ["soul", "SOUL.md"],
  ["tools", "TOOLS.md"],
  ["skills", "skills/knots/SKILL.md"],
  ["memory", "MEMORY.md"],
  ["memory", "USER.md"],
  ["bootstrap", "AGENTS.md"],
  ["bootstrap", "BOOTSTRAP.md"],
];
const LAYERS = [...new Set(FILES.map(([layer]) => layer)), "runtime", "channel"];

const mark = (file: string) => `«${file}»`;
const contentOf = (file: string) =>
  file.includes("/")
    ? `---\nname: knots\ndescription: ${mark(file)}\n---\nThe body.\n`
    : mark(file);

async function open(section: SectionFile, more: Record<string, string> = {}) {
  const workspace = temporaryFolder();
  const put = (file: string, content: string) => {
    mkdirSync(dirname(join(workspace, file)), { recursive: true });
    writeFileSync(join(workspace, file), content);
  };
  const s06 = await load06(section, settings(undefined, { CLAW0_WORKSPACE: workspace, ...more }));
  /** The whole system prompt, which is one block. */
  const prompt = (options: Options = {}) => {
    const [block, ...others] = s06.buildSystemPrompt(options);
    expect(others).toEqual([]);
    return block?.text ?? "";
  };
  const agent = (id: string) => {
    const found = s06.AGENTS.find((one) => one.id === id);
    if (!found) throw new Error(`there is no agent ${id}`);
    return found;
  };
  return { ...s06, workspace, put, prompt, agent };
}

/** The same with all files there. */
async function full(section: SectionFile, more = {}) {
  const opened = await open(section, more);
  for (const [, file] of FILES) opened.put(file, contentOf(file));
  return opened;
}

/** Which of the files a prompt shows, in its order. */
const shown = (prompt: string) =>
  FILES.map(([, file]) => file)
    .filter((file) => prompt.includes(mark(file)))
    .sort((a, b) => prompt.indexOf(mark(a)) - prompt.indexOf(mark(b)));
const ALL = FILES.map(([, file]) => file);
const PRIVATE = ["MEMORY.md", "USER.md"];
const PUBLIC = ALL.filter((file) => !PRIVATE.includes(file));

describe.each(sectionsFrom("s06"))("$name, the layers", (section) => {
  it("are eight, in order, each with its files", async () => {
    const { PROMPT_LAYERS, promptLayers, prompt } = await full(section);
    // A later section may add some between them.
    const names = PROMPT_LAYERS.map(({ name }) => name).filter((name) => LAYERS.includes(name));
    expect(names).toEqual(LAYERS);
    expect(shown(prompt())).toEqual(ALL);
    for (const { name, text } of promptLayers({})) {
      const wanted = FILES.filter(([layer]) => layer === name).map(([, file]) => file);
      expect(shown(text), name).toEqual(wanted);
    }
    const whole = prompt();
    const last = promptLayers({})
      .filter(({ name }) => ["runtime", "channel"].includes(name))
      .map(({ text }) => whole.indexOf(text));
    expect(last[0]).toBeGreaterThan(whole.indexOf(mark("BOOTSTRAP.md")));
    expect(last[1]).toBeGreaterThan(last[0] ?? 0);
    // Of a skill it shows what it is for and where it is; the rest is read when it is needed.
    expect(whole).toContain("knots");
    expect(whole).toContain("skills/knots/SKILL.md");
    expect(whole).not.toContain("The body.");
  });

  it("say for whom and where it works", async () => {
    const { prompt, agent } = await full(section);
    expect(prompt({ agent: agent("sage") })).toContain("sage");
    expect(prompt({ agent: agent("luna") })).not.toContain("sage");
    const [direct, group] = [false, true].map((isGroup) =>
      prompt({ message: inbound({ isGroup }) }),
    );
    expect(direct).toContain("telegram");
    expect(group).toContain("group");
    expect(direct).not.toContain("group");
    expect(prompt()).toContain("cli");
  });

  it("without files are the agent's own words, and leave no gaps", async () => {
    const { prompt, agent, put } = await open(section);
    const bare = prompt({ agent: agent("luna") });
    expect(bare.startsWith(agent("luna").system)).toBe(true);
    for (const file of ["SOUL.md", "IDENTITY.md", "USER.md"]) put(file, " \r\n\t\n");
    expect(prompt({ agent: agent("luna") })).toBe(bare);
    expect(bare).not.toMatch(/\n{3}/);
  });

  it("that can't be read are named once, and the others are there", async () => {
    const { prompt, put, workspace } = await full(section);
    rmSync(join(workspace, "SOUL.md"));
    mkdirSync(join(workspace, "SOUL.md"));
    put("TOOLS.md", "");
    writeFileSync(join(workspace, "TOOLS.md"), Buffer.from([0x61, 0xff, 0xfe, 0x62]));
    const written = vi.mocked(process.stdout.write);
    const said = () => written.mock.calls.map(([piece]) => String(piece)).join("");
    const before = prompt();
    expect(shown(before)).toEqual(ALL.filter((file) => !["SOUL.md", "TOOLS.md"].includes(file)));
    expect(prompt()).toBe(before);
    for (const file of ["SOUL.md", "TOOLS.md"]) {
      expect(said().split(join(workspace, file))).toHaveLength(2);
    }
  });
});

describe.each(sectionsFrom("s06"))("$name, the modes", (section) => {
  it("full is what there is if nothing is said; minimal is for a job", async () => {
    const { prompt, agent, promptLayers } = await full(section);
    const luna = { agent: agent("luna") };
    expect(prompt({ ...luna, mode: "full" })).toBe(prompt(luna));
    const minimal = prompt({ ...luna, mode: "minimal" });
    expect(shown(minimal)).toEqual(["IDENTITY.md", "TOOLS.md"]);
    const names = promptLayers({ ...luna, mode: "minimal" }).map(({ name }) => name);
    expect(names.filter((name) => LAYERS.includes(name))).toEqual([
      "identity",
      "tools",
      "runtime",
      "channel",
    ]);
  });
});

describe.each(sectionsFrom("s06"))("$name, the limits", (section) => {
  const FILE = 20_000;
  const TOGETHER = 60_000;
  const MARK = 60; // what says how much was left out

  it("a long file loses its middle, and says how much of it", async () => {
    const { prompt, put } = await full(section);
    put("SOUL.md", `SOUL-BEGINS ${"s".repeat(50_000)} SOUL-ENDS`);
    const whole = prompt();
    expect(whole).toMatch(/SOUL-BEGINS s+\n… (\d+) characters left out …\ns+ SOUL-ENDS/);
    const [, left] = /… (\d+) characters left out …/.exec(whole) ?? [];
    const kept = whole.match(/s{100,}/g)?.join("").length ?? 0;
    expect(kept + Number(left)).toBeGreaterThan(49_990);
    expect(kept).toBeLessThanOrEqual(FILE);
    expect(kept).toBeGreaterThan(FILE - 100);
    expect(shown(whole)).toEqual(ALL.filter((file) => file !== "SOUL.md"));
  });

  it("a file of exactly the limit is whole", async () => {
    const { prompt, put } = await full(section);
    put("SOUL.md", "s".repeat(FILE));
    expect(prompt()).toContain("s".repeat(FILE));
    expect(prompt()).not.toContain("left out");
  });

  it("all together have a limit, too", async () => {
    const { prompt, put } = await full(section);
    const long = ALL.filter((file) => !file.includes("/"));
    for (const [index, file] of long.entries()) {
      put(file, `${mark(file)}${String.fromCharCode(97 + index).repeat(30_000)}`);
    }
    const whole = prompt();
    const kept = long.map((_file, index) => {
      const letters = new RegExp(`${String.fromCharCode(97 + index)}{100,}`, "g");
      return whole.match(letters)?.join("").length ?? 0;
    });
    for (const one of kept) expect(one).toBeLessThanOrEqual(FILE);
    const all = kept.reduce((sum, one) => sum + one, 0);
    expect(all).toBeLessThanOrEqual(TOGETHER);
    expect(all).toBeGreaterThan(TOGETHER - 1_000); // and there is no less than fits
    expect(whole.length).toBeLessThan(TOGETHER + 8 * MARK + 1_000);
    // What makes it who it is comes first.
    expect(whole).toContain(mark("IDENTITY.md"));
    expect(whole).toContain(mark("SOUL.md"));
  });

  it("a hundred skills have a limit, and half a character is never sent", async () => {
    const { prompt, put } = await full(section);
    for (let i = 0; i < 100; i++) {
      put(`skills/s${i}/SKILL.md`, `---\nname: s${i}\ndescription: ${"d".repeat(1_000)}\n---\n`);
    }
    expect(prompt().length).toBeLessThan(FILE + 2_000);
    expect(shown(prompt())).toEqual(expect.arrayContaining(["SOUL.md", "MEMORY.md"]));
    for (const shift of ["", "x"]) {
      put("SOUL.md", shift + "👍".repeat(20_000));
      expect(prompt().isWellFormed()).toBe(true);
    }
  });
});

describe.each(sectionsFrom("s06"))("$name, an agent's own files", (section) => {
  it("come before the common ones, for this agent alone", async () => {
    const { prompt, agent, put } = await full(section);
    put("agents/sage/SOUL.md", "the soul of Sage");
    put("agents/sage/MEMORY.md", "what Sage knows");
    put("agents/sage/skills/knots/SKILL.md", "---\nname: knots\ndescription: Sage's knots\n---\n");
    put("agents/sage/skills/tea/SKILL.md", "---\nname: tea\ndescription: Sage's tea\n---\n");
    const sage = prompt({ agent: agent("sage") });
    for (const words of ["the soul of Sage", "what Sage knows", "Sage's knots", "Sage's tea"]) {
      expect(sage).toContain(words);
    }
    expect(sage).toContain("agents/sage/skills/knots/SKILL.md");
    const changed = ["SOUL.md", "MEMORY.md", "skills/knots/SKILL.md"];
    expect(shown(sage)).toEqual(ALL.filter((file) => !changed.includes(file)));
    const luna = prompt({ agent: agent("luna") });
    expect(shown(luna)).toEqual(ALL);
    expect(luna).not.toContain("Sage");
    // One that is empty does not leave it without any.
    put("agents/sage/SOUL.md", "\n");
    expect(shown(prompt({ agent: agent("sage") }))).toContain("SOUL.md");
  });
});

describe.each(sectionsFrom("s06"))("$name, the same until a file changes", (section) => {
  it("byte by byte, whatever the time and however often it is asked", async () => {
    const { prompt, agent, runTurn, Conversation } = await full(section);
    vi.useFakeTimers({ toFake: ["Date"], now: Date.UTC(2026, 0, 5, 10) });
    const options = { agent: agent("luna"), message: inbound({ channel: "cli" }) };
    const first = prompt(options);
    for (const later of [1_000, 3_600_000, 40 * 24 * 3_600_000]) {
      vi.setSystemTime(Date.now() + later);
      expect(prompt(options)).toBe(first);
      // Nor does it change with who else is answered.
      await runTurn(new Conversation(), "hi", { signal: AbortSignal.abort() });
      expect(prompt({ ...options, message: inbound({ channel: "cli", text: "other" }) })).toBe(
        first,
      );
    }
    expect(first).not.toMatch(/20\d\d-\d\d|GMT|\d\d:\d\d/);
  });

  it("each file that changes shows at once, and so does its being gone", async () => {
    const { prompt, put, workspace } = await full(section);
    const first = prompt();
    for (const file of ALL) {
      const content = contentOf(file).replace(mark(file), `changed ${file}`);
      put(file, content);
      expect(prompt(), file).toContain(`changed ${file}`);
      rmSync(join(workspace, file));
      expect(prompt(), file).not.toContain(`changed ${file}`);
      put(file, contentOf(file));
      expect(prompt(), file).toBe(first);
    }
  });
});

describe.each(sectionsFrom("s06"))("$name, MEMORY.md and USER.md", (section) => {
  const allowed = {
    TELEGRAM_ALLOWED_CHATS: " -100777\n1001, 1002",
    FEISHU_ALLOWED_CHATS: "oc_a oc_b",
  };

  it("are the owner's: the terminal, and the direct chat that is listed first", async () => {
    const { prompt } = await full(section, allowed);
    const sees = (more: Partial<ReturnType<typeof inbound>>) =>
      shown(prompt({ message: inbound(more) })).filter((file) => PRIVATE.includes(file));
    const telegram = { channel: "telegram", peerId: "1001" };
    expect(sees({ channel: "cli", peerId: "owner" })).toEqual(PRIVATE);
    expect(sees(telegram)).toEqual(PRIVATE);
    expect(sees({ channel: "feishu", peerId: "oc_a" })).toEqual(PRIVATE);
    expect(shown(prompt())).toEqual(ALL); // no message: the terminal's own

    const others: Partial<ReturnType<typeof inbound>>[] = [
      { ...telegram, peerId: "1002" },
      { ...telegram, peerId: "100" },
      { ...telegram, peerId: "" },
      { ...telegram, isGroup: true },
      { ...telegram, peerId: "-100777", isGroup: true },
      { ...telegram, peerId: "1001:topic:2", isGroup: true },
      { channel: "feishu", peerId: "oc_b" },
      { channel: "feishu", peerId: "1001" },
      { channel: "ws", peerId: "1001" },
      { channel: "CLI", peerId: "owner" },
      { channel: "pigeon", peerId: "1001" },
      // Whoever comes through the gateway may name any peer.
      { ...telegram, id: "ws:12345" },
      { channel: "feishu", peerId: "oc_a", id: "ws:12345" },
      { channel: "ws", peerId: "owner", id: "ws:12345" },
    ];
    for (const other of others) {
      expect(sees(other), JSON.stringify(other)).toEqual([]);
      expect(shown(prompt({ message: inbound(other) }))).toEqual(PUBLIC);
    }
  });

  it("are nobody's but the terminal's if no chat is listed", async () => {
    for (const list of ["", " , ", "-100777"]) {
      const { prompt } = await full(section, { TELEGRAM_ALLOWED_CHATS: list });
      for (const peerId of ["1001", "", "undefined", "-100777"]) {
        const message = inbound({ channel: "telegram", peerId });
        expect(shown(prompt({ message })), `${list} ${peerId}`).toEqual(PUBLIC);
      }
    }
  });
});

describe.each(sectionsFrom("s06"))("$name, the marks for the cache", (section) => {
  it("are two: at the end of the prompt, and on the last block", async () => {
    const model = await practice({ rules: false });
    const s06 = await load06(section, settings(model));
    const conversation = new s06.Conversation();
    s06.TOOLS.push({ name: "look", description: "look", input_schema: { type: "object" } });
    s06.HANDLERS.look = () => "seen";
    const uses = { type: "tool_use", name: "look", input: {} };
    model.script({ content: [uses, uses] }, say("Done."), say("Yes."));
    await s06.runTurn(conversation, "look", {});
    await s06.runTurn(conversation, "and?", {});
    expect(model.log).toHaveLength(3);
    for (const { request } of model.log) {
      const { system, messages, tools } = request;
      expect(JSON.stringify(request).split('"cache_control"')).toHaveLength(3);
      expect(JSON.stringify(tools)).not.toContain("cache_control");
      expect(system).toMatchObject([{ cache_control: { type: "ephemeral" } }]);
      expect(blocks(messages.at(-1)).at(-1)).toMatchObject({
        cache_control: { type: "ephemeral" },
      });
    }
    // They are for the request; the conversation does not have them.
    expect(JSON.stringify(conversation.messages)).not.toContain("cache_control");
  });

  it("before what the person says stands the time, in the same message", async () => {
    const model = await practice({ rules: false });
    const s06 = await load06(section, settings(model));
    vi.useFakeTimers({ toFake: ["Date"], now: Date.UTC(2026, 2, 14, 15, 9) });
    const conversation = new s06.Conversation();
    model.script(say("Hello."));
    await s06.runTurn(conversation, "hi", {});
    const [context, words, ...rest] = blocks(model.log[0]?.request.messages[0]);
    expect(rest).toEqual([]);
    expect(words).toMatchObject({ type: "text", text: "hi" });
    expect(context).toMatchObject({
      type: "text",
      text: expect.stringMatching(/^<context>\n.*\n<\/context>$/s),
    });
    expect(JSON.stringify(context)).toContain(String(new Date()));
    expect(conversation.messages[0]?.content).toEqual([context, { type: "text", text: "hi" }]);
  });
});
