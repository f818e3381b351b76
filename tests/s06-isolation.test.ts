/** s06, isolation: what is the owner's, and what was noted for one, is shown to nobody else. */

import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { PracticeRequest } from "../practice/model.ts";
import {
  blocks,
  call,
  practice,
  printed,
  results,
  type SectionFile,
  say,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";
import { appOf06, delivered, inbound, load06, silentChannel } from "./world.ts";

const SECRET = "OWNER-SECRET";
const ALLOWED = { TELEGRAM_ALLOWED_CHATS: "1001,1002,-100777", FEISHU_ALLOWED_CHATS: "oc_a,oc_b" };

type Inbound = Partial<ReturnType<typeof inbound>>;
const OWNER: Inbound = { peerId: "1001", senderId: "1001" };
/** Whoever is not the owner, or is not alone with the bot. */
const OTHERS: [who: string, message: Inbound][] = [
  ["the next in the list", { peerId: "1002", senderId: "1002" }],
  ["the owner in a group", { peerId: "-100777", senderId: "1001", isGroup: true }],
  ["a client that says it is the owner", { ...OWNER, id: "ws:1" }],
  ["a client of its own", { channel: "ws", peerId: "owner", id: "ws:2" }],
  ["the same number on another platform", { channel: "feishu", peerId: "1001" }],
];

async function open(section: SectionFile, more: Record<string, string> = {}) {
  const workspace = temporaryFolder();
  const model = await practice({ rules: false });
  const given = { CLAW0_WORKSPACE: workspace, ...ALLOWED, ...more };
  const s06 = await load06(section, settings(model, given));
  const put = (file: string, content: string) => {
    mkdirSync(dirname(join(workspace, file)), { recursive: true });
    writeFileSync(join(workspace, file), content);
  };
  for (const file of ["MEMORY.md", "USER.md", "agents/sage/MEMORY.md"]) {
    put(file, `# Memory\n\n- The ${SECRET} of ${file} is peanuts.\n`);
  }
  mkdirSync(join(workspace, ".state"));
  const app = appOf06(s06, join(workspace, ".state"));
  for (const name of ["telegram", "feishu"]) app.channels.set(name, silentChannel(name));
  /** Runs a tool as in a turn of this message; without one it is the terminal's. */
  const use = async (name: string, input: object, from?: Inbound) => {
    const message = from && inbound(from);
    const key = message ? `agent:luna:${message.channel}:direct:${message.peerId}` : app.key;
    const block = {
      type: "tool_use",
      id: "toolu_1",
      name,
      input,
      caller: { type: "direct" },
    } as const;
    const turn = { conversation: app.store.current(key), app, ...(message && { message }) };
    const { content, is_error } = await s06.runTool(block, turn);
    return { content: String(content), failed: is_error === true };
  };
  return { ...s06, workspace, model, app, put, use };
}

describe.each(sectionsFrom("s06"))("$name, the files of the owner", (section) => {
  const PATHS = (workspace: string) => [
    "MEMORY.md",
    "USER.md",
    "./MEMORY.md",
    "notes/../MEMORY.md",
    "MEMORY.md/.",
    join(workspace, "MEMORY.md"),
    "agents/sage/MEMORY.md",
    "memory.md",
    "Memory.MD",
    "uSeR.mD",
    "link.md",
    "notes/link.txt",
    "back/MEMORY.md",
    "back/back/USER.md",
    "notes/sage.txt",
    "agents/luna/USER.md",
  ];

  async function linked(more: Record<string, string> = {}) {
    const opened = await open(section, more);
    const at = (name: string) => join(opened.workspace, name);
    mkdirSync(at("notes"));
    symlinkSync(at("MEMORY.md"), at("link.md"));
    symlinkSync("../USER.md", at("notes/link.txt"));
    symlinkSync(opened.workspace, at("back"), "junction");
    // An agent's own: by a link to it, and as a link itself.
    symlinkSync("../agents/sage/MEMORY.md", at("notes/sage.txt"));
    opened.put("agents/luna/mine.txt", `The ${SECRET} of luna is peanuts.`);
    symlinkSync("mine.txt", at("agents/luna/USER.md"));
    return opened;
  }

  it.each(OTHERS)("no tool opens them for %s, by whatever path", async (_who, message) => {
    const { use, workspace } = await linked({ REMOTE_TOOLS: "1" });
    for (const path of PATHS(workspace)) {
      for (const [tool, input] of [
        ["read_file", { path }],
        ["write_file", { path, content: "taken" }],
        ["edit_file", { path, old_text: "peanuts", new_text: "taken" }],
      ] as const) {
        const { content, failed } = await use(tool, input, message);
        expect(failed, `${tool} ${path}`).toBe(true);
        expect(content).not.toContain(SECRET);
      }
    }
    for (const file of ["MEMORY.md", "USER.md"]) {
      expect(readFileSync(join(workspace, file), "utf8")).toContain(
        `${SECRET} of ${file} is peanuts`,
      );
    }
    // What is shared is shared.
    expect(await use("write_file", { path: "notes/a.md", content: "tea" }, message)).toMatchObject({
      failed: false,
    });
    expect((await use("read_file", { path: "notes/a.md" }, message)).content).toBe("tea");
  });

  it("one that is itself a link is not opened by its other name", async () => {
    const { use, workspace, put } = await open(section);
    put("private/mine.md", `The ${SECRET} is here.`);
    const file = join(workspace, "USER.md");
    rmSync(file);
    symlinkSync(join(workspace, "private/mine.md"), file);
    for (const [, message] of OTHERS) {
      for (const path of ["USER.md", "private/mine.md", "private/../private/mine.md"]) {
        expect((await use("read_file", { path }, message)).content, path).not.toContain(SECRET);
      }
    }
    expect((await use("read_file", { path: "private/mine.md" })).content).toContain(SECRET);
  });

  it("are open to the owner, in the terminal and on the phone", async () => {
    const { use, workspace } = await linked();
    for (const message of [undefined, OWNER]) {
      for (const path of ["MEMORY.md", "link.md", join(workspace, "USER.md")]) {
        expect((await use("read_file", { path }, message)).content).toContain(SECRET);
      }
    }
  });

  it("nobody reads the notes by a file tool, not even the owner", async () => {
    const { use, app } = await open(section);
    app.memory.write(`The ${SECRET} of bob.`, "fact", "agent:luna:telegram:direct:1002");
    for (const path of [".state/memory", ".state", "./notes/../.state/memory"]) {
      const list = await use("list_directory", { path });
      expect(list.failed, path).toBe(true);
    }
    const day = new Date().toISOString().slice(0, 10);
    const read = await use("read_file", { path: `.state/memory/${day}.jsonl` });
    expect(read.failed).toBe(true);
    expect(read.content).not.toContain(SECRET);
  });
});

describe.each(sectionsFrom("s06"))("$name, the tools of the memory", (section) => {
  it("write for the conversation, and find what is its own", async () => {
    const { use } = await open(section);
    const bob = OTHERS[0]?.[1] ?? {};
    expect(
      await use("memory_write", { content: "Bob's tea is mint.", category: "fact" }, bob),
    ).toEqual({
      content: "remembered",
      failed: false,
    });
    expect((await use("memory_search", { query: "tea" }, bob)).content).toContain(
      "Bob's tea is mint.",
    );
    expect((await use("memory_search", { query: "tea" })).content).not.toContain("mint");
    expect((await use("memory_search", { query: "tea mint Bob" }, OWNER)).content).not.toContain(
      "mint",
    );
    for (const [who, message] of OTHERS) {
      const { content } = await use(
        "memory_search",
        { query: `${SECRET} peanuts`, topK: 50 },
        message,
      );
      expect(content, who).not.toContain(SECRET);
    }
    for (const message of [undefined, OWNER]) {
      expect((await use("memory_search", { query: "peanuts" }, message)).content).toContain(SECRET);
    }
  });

  it("say what is wrong with a call, and that nothing was found", async () => {
    const { use } = await open(section);
    for (const [name, input, field] of [
      ["memory_write", { content: "x" }, "category"],
      ["memory_write", { category: "x" }, "content"],
      ["memory_write", { content: 7, category: "x" }, "content"],
      ["memory_search", {}, "query"],
      ["memory_search", { query: "x", topK: "3" }, "topK"],
    ] as const) {
      const { failed, content } = await use(name, input);
      expect(failed).toBe(true);
      expect(content).toContain(field);
    }
    const nothing = await use("memory_search", { query: "zzz" }, OTHERS[0]?.[1]);
    expect(nothing).toMatchObject({ failed: false });
    expect(nothing.content).toMatch(/nothing/);
  });
});

describe.each(sectionsFrom("s06"))("$name, what is recalled", (section) => {
  const contextIn = (request: PracticeRequest | undefined) => {
    const [first] = blocks(request?.messages.at(-1));
    return first?.type === "text" ? first.text : "";
  };

  async function talk(more: Inbound | undefined, ...notes: [key: string, note: string][]) {
    const opened = await open(section);
    const { app, model, runTurn } = opened;
    for (const [key, note] of notes) app.memory.write(note, "fact", key);
    const message = more && inbound(more);
    const key = message ? `agent:luna:${message.channel}:direct:${message.peerId}` : app.key;
    const session = app.store.current(key);
    const ask = async (text: string) => {
      model.script(say("Well."));
      await runTurn(session, text, { app, ...(message && { message }) });
      return contextIn(model.log.at(-1)?.request);
    };
    return { ...opened, ask, session };
  }

  it("stands in the message before the person's words, is stored there, and is shown once", async () => {
    const key = "agent:luna:cli:direct:owner";
    const { ask, session } = await talk(undefined, [key, "My favourite tea is oolong."]);
    expect(await ask("What is my favourite tea?")).toContain("My favourite tea is oolong.");
    expect(printed().split("My favourite tea is oolong.")).toHaveLength(2);
    const [first, second] = session.messages[0]?.content ?? [];
    expect(JSON.stringify(first)).toContain("My favourite tea is oolong.");
    expect(second).toMatchObject({ text: "What is my favourite tea?" });
    // Nothing is recalled by words that have nothing to do with it.
    expect(await ask("What is seven times eight?")).not.toContain("oolong");
  });

  it("is three entries at most", async () => {
    const key = "agent:luna:cli:direct:owner";
    const places = ["Assam", "Ceylon", "Kenya", "Japan", "Nepal"];
    const { ask } = await talk(
      undefined,
      ...places.map((place): [string, string] => [key, `My tea is from ${place}.`]),
    );
    expect((await ask("My tea is from where?")).match(/^You remember: /gm)).toHaveLength(3);
  });

  it("is shown to the model by its ends, if it is very long", async () => {
    const key = "agent:luna:cli:direct:owner";
    const notes = Array.from({ length: 9 }, (_, i) => {
      return [key, `tea ${["one", "two", "three"][i % 3]} ${i * 7919} ${"x".repeat(5_000)}`] as [
        string,
        string,
      ];
    });
    // Where a long one is cut, no half of a character may be left.
    for (const shift of ["", "x"]) notes.push([key, `coffee ${shift}${"👍".repeat(2_000)}`]);
    const { ask } = await talk(undefined, ...notes);
    expect((await ask("coffee")).isWellFormed()).toBe(true);
    const context = await ask("tea one");
    expect(context).toContain("tea one");
    expect(context.length).toBeLessThan(4_000);
  });

  it.each(OTHERS)("is never the owner's for %s, nor another one's", async (_who, message) => {
    const notes: [string, string][] = [
      ["agent:luna:cli:direct:owner", `The ${SECRET} is peanuts.`],
      ["agent:luna:telegram:direct:9999", `The ${SECRET} is peanuts.`],
    ];
    const { ask, model } = await talk(message, ...notes);
    await ask("What is the secret of peanuts?");
    await ask("peanuts");
    expect(JSON.stringify(model.log.map(({ request }) => request))).not.toContain(SECRET);
    expect(printed()).not.toContain(SECRET);
  });

  it("is the owner's on the phone, from the files", async () => {
    const { ask, model } = await talk(OWNER);
    expect(await ask("peanuts?")).toContain(SECRET);
    expect(JSON.stringify(model.log[0]?.request.system)).toContain(SECRET);
  });

  it("a very long text is searched for, and answered, all the same", async () => {
    const { ask, app } = await talk(undefined);
    expect(await ask(`peanuts? ${"花生".repeat(20_000)}`)).toContain("<context>");
    // As much as a frame of the gateway can hold: once this took all memory.
    for (const text of ["花生".repeat(170_000), "peanuts ".repeat(60_000), "x".repeat(500_000)]) {
      expect(app.memory.search(text, { owner: true }).length).toBeLessThanOrEqual(5);
      app.memory.write(text, "fact", "long");
    }
    expect(app.memory.search("peanuts", { sessionKey: "long" })).toHaveLength(1);
  });
});

describe.each(sectionsFrom("s06"))("$name, over the gateway", (section) => {
  const connection = { peerId: "client", notify: () => {} };

  it("memory.search finds what a client's conversations noted, and nothing of the owner's", async () => {
    const { app, METHODS, model } = await open(section);
    const keys = ["agent:luna:telegram:direct:1001", "agent:luna:telegram:direct:1002"];
    const others = ["agent:luna:telegram:direct:1003", "agent:luna:ws:direct:other"];
    for (const key of [...keys, ...others])
      app.memory.write(`The tea of ${key} is mint, and no peanuts.`, "fact", key);
    for (const peerId of ["1001", "1002", "k"]) {
      model.script(say("Hello."));
      await METHODS.send?.({ text: "hi", channel: "telegram", peerId }, app, connection);
    }
    const other = { peerId: "other", notify: () => {} };
    model.script(say("Hello."));
    await METHODS.send?.({ text: "hi", channel: "telegram", peerId: "1003" }, app, other);
    const search = async (params: object) =>
      (await METHODS["memory.search"]?.({ query: "tea peanuts", ...params }, app, connection)) as {
        text: string;
        score: number;
        source: string;
      }[];
    for (const sessionKey of keys) {
      const found = await search({ sessionKey });
      expect(found.map(({ text }) => text)).toEqual([
        `The tea of ${sessionKey} is mint, and no peanuts.`,
      ]);
      expect(found[0]?.score).toBeGreaterThan(0);
      expect(found[0]?.source).toContain(".jsonl");
      // It is for programs: nothing of how the search works is in it.
      expect(JSON.stringify(found[0])).not.toMatch(/vector|terms/);
    }
    const own = await METHODS["memory.search"]?.({ query: "tea" }, app, other);
    expect(own).toMatchObject([{ text: `The tea of ${others[1]} is mint, and no peanuts.` }]);
    const foreign = ["", "agent:luna:cli:direct:owner", "owner", ...others];
    for (const sessionKey of [undefined, ...foreign]) {
      expect(await search({ sessionKey, topK: 50 })).toEqual([]);
    }
    const many = "agent:luna:telegram:direct:k";
    for (let i = 0; i < 9; i++) app.memory.write(`tea ${i * 7919} number ${i}`, "fact", many);
    expect(await search({ sessionKey: many, topK: 3 })).toHaveLength(3);
    expect(await search({ sessionKey: many })).toHaveLength(5);
    for (const [wrong, named] of [
      [{ query: undefined }, "query"],
      [{ query: 7 }, "query"],
      [{ topK: 1.5 }, "topK"],
      [{ topK: "3" }, "topK"],
      [{ sessionKey: 7 }, "sessionKey"],
    ] as const) {
      const error: unknown = await (async () => search(wrong))().catch((reason) => reason);
      expect(error).toMatchObject({ code: -32602, message: expect.stringContaining(named) });
    }
  });

  it("a client that names the owner's chat gets neither prompt, nor recall, nor file", async () => {
    const { app, METHODS, model } = await open(section);
    const places = [
      { channel: "telegram", peerId: "1001" },
      { channel: "feishu", peerId: "oc_a" },
      {},
      { agentId: "sage" },
    ];
    for (const place of places) {
      const reading = { content: [call("read_file", { path: "MEMORY.md" })] };
      model.script(reading, say("Well."));
      await METHODS.send?.({ text: "peanuts?", ...place }, app, connection);
      expect(results(model.log.at(-1))).toMatchObject([{ is_error: true }]);
    }
    for (const channel of ["heartbeat", "cron", "cli"]) {
      const send = async () =>
        METHODS.send?.({ text: "peanuts?", channel, peerId: "owner" }, app, connection);
      await expect(send()).rejects.toMatchObject({ code: -32602 });
    }
    expect(model.log).toHaveLength(2 * places.length);
    expect(JSON.stringify(model.log.map(({ request }) => request))).not.toContain(SECRET);
    await delivered(app);
  });
});
