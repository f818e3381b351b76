/** s05, routing: bindings, session keys, agents, and that it is settled once. */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { outline, sectionsFrom, settings, temporaryFolder } from "./helper.ts";
import {
  appOf05,
  delivered,
  echoModel,
  inbound,
  load05,
  marked,
  type S05,
  silentChannel,
  unmarked,
  watchMarks,
} from "./world.ts";

type NewBinding = Parameters<InstanceType<S05["BindingTable"]>["set"]>[0];

const binding = (
  agentId: string,
  matchKey: NewBinding["matchKey"],
  matchValue: string,
  priority = 0,
) => ({
  agentId,
  matchKey,
  matchValue,
  priority,
});

const FROM = { channel: "telegram", accountId: "bot1", peerId: "1001", guildId: "g1" };

describe.each(sectionsFrom("s05"))("$name, BindingTable", (section) => {
  it("the first tier that has a binding decides", async () => {
    const { BindingTable } = await load05(section);
    const message = inbound(FROM);
    const tiers = [
      binding("five", "default", "*", 99),
      binding("four", "channel", "telegram", 50),
      binding("three", "accountId", "bot1", 40),
      binding("two", "guildId", "g1", 30),
      binding("one", "peerId", "1001", -7),
    ];
    const table = new BindingTable([]);
    tiers.forEach((one, index) => {
      const set = table.set(one);
      expect(set.tier).toBe(5 - index);
      expect(table.resolve(message)).toEqual({ agentId: one.agentId, binding: set });
    });
    // Taken out again, the next one decides.
    for (const one of [...tiers].reverse()) {
      expect(table.resolve(message).agentId).toBe(one.agentId);
      expect(table.remove(one.matchKey, one.matchValue)).toBe(true);
      expect(table.remove(one.matchKey, one.matchValue)).toBe(false);
    }
    expect(table.resolve(message)).toEqual({ agentId: "luna", binding: undefined });
  });

  it("within a tier the higher priority wins, whichever was set first", async () => {
    const { BindingTable } = await load05(section);
    const message = inbound(FROM);
    for (const [bare, full, winner] of [
      [1, 2, "full"],
      [2, 1, "bare"],
    ] as const) {
      const pair = [
        binding("bare", "peerId", "1001", bare),
        binding("full", "peerId", "telegram:1001", full),
      ];
      expect(new BindingTable(pair).resolve(message).agentId).toBe(winner);
      expect(new BindingTable(pair.reverse()).resolve(message).agentId).toBe(winner);
    }
  });

  it("a peer of one platform is not the peer of the same number on another", async () => {
    const { BindingTable } = await load05(section);
    const table = new BindingTable([binding("sage", "peerId", "feishu:1001")]);
    expect(table.resolve(inbound(FROM)).agentId).toBe("luna");
    expect(table.resolve(inbound({ ...FROM, channel: "feishu" })).agentId).toBe("sage");
    const topic = new BindingTable([binding("sage", "peerId", "telegram:-100:topic:2")]);
    expect(topic.resolve(inbound({ ...FROM, peerId: "-100:topic:2" })).agentId).toBe("sage");
    expect(topic.resolve(inbound({ ...FROM, peerId: "-100:topic:3" })).agentId).toBe("luna");
  });

  it("the same key and value replaces, also in other letters", async () => {
    const { BindingTable } = await load05(section);
    const table = new BindingTable([binding("luna", "channel", "telegram")]);
    table.set(binding("sage", "channel", "Telegram", 3));
    expect(table.list()).toHaveLength(1);
    expect(table.list()[0]).toMatchObject({ agentId: "sage", priority: 3, tier: 4 });
    expect(table.resolve(inbound({ ...FROM, channel: "TELEGRAM" })).agentId).toBe("sage");
    expect(table.remove("channel", "TELEGRAM")).toBe(true);
    expect(table.list()).toEqual([]);
    expect(table.remove("constructor", "name")).toBe(false);
  });

  it("nothing matches what a message does not have", async () => {
    const { BindingTable } = await load05(section);
    for (const value of ["undefined", "null", ""]) {
      const table = new BindingTable([binding("sage", "guildId", value)]);
      expect(table.resolve(inbound({ ...FROM, guildId: undefined })).agentId).toBe("luna");
    }
    for (const peerId of ["__proto__", "constructor", "toString"]) {
      expect(new BindingTable([]).resolve(inbound({ ...FROM, peerId })).agentId).toBe("luna");
    }
  });

  it("looks up as often with 5,000 bindings as with one", async () => {
    const { BindingTable } = await load05(section);
    const lookUps = (table: InstanceType<S05["BindingTable"]>) => {
      const get = vi.spyOn(Map.prototype, "get");
      const next = vi.spyOn(Object.getPrototypeOf(new Map().values()), "next");
      const each = vi.spyOn(Map.prototype, "forEach");
      table.resolve(inbound({ ...FROM, peerId: "nobody" }));
      const count = get.mock.calls.length + next.mock.calls.length + each.mock.calls.length;
      for (const spy of [get, next, each]) spy.mockRestore();
      return count;
    };
    const many = Array.from({ length: 5_000 }, (_, i) =>
      binding(
        "sage",
        (["peerId", "guildId", "accountId", "channel"] as const)[i % 4] ?? "peerId",
        `v${i}`,
      ),
    );
    const few = lookUps(new BindingTable(many.slice(0, 1)));
    expect(few).toBeGreaterThan(0);
    expect(lookUps(new BindingTable(many))).toBe(few);
  });
});

describe.each(sectionsFrom("s05"))("$name, buildSessionKey", (section) => {
  it("by dmScope for direct chats, by the chat for groups", async () => {
    const { buildSessionKey } = await load05(section);
    const direct = inbound(FROM);
    const keys = {
      main: "agent:luna:main",
      "per-peer": "agent:luna:direct:1001",
      "per-channel-peer": "agent:luna:telegram:direct:1001",
      "per-account-channel-peer": "agent:luna:telegram:bot1:direct:1001",
    } as const;
    const scopes = Object.keys(keys) as (keyof typeof keys)[]; // of the object above
    for (const scope of scopes) {
      expect(buildSessionKey("luna", direct, scope)).toBe(keys[scope]);
      const group = inbound({ ...FROM, isGroup: true, peerId: "-100:topic:2" });
      expect(buildSessionKey("sage", group, scope)).toBe("agent:sage:telegram:group:-100:topic:2");
    }
  });

  it("in lower case, and up to 150 characters", async () => {
    const { buildSessionKey } = await load05(section);
    const key = (peerId: string) =>
      buildSessionKey("Luna", inbound({ ...FROM, peerId }), "per-peer");
    expect(key("OC_AbC")).toBe("agent:luna:direct:oc_abc");
    const room = 150 - key("").length;
    expect(key("x".repeat(room))).toHaveLength(150);
    expect(() => key("x".repeat(room + 1))).toThrow(/peerId.*151/);
  });

  it("the terminal has the key of s03, whatever the scope; /agent changes the agent in it", async () => {
    const s05 = await load05(section);
    const app = appOf05(s05);
    const held: string[] = [];
    vi.spyOn(app.store, "current").mockImplementation((key) => {
      held.push(key);
      throw new Error("that is all that is asked");
    });
    app.channels.set("cli", silentChannel("cli"));
    const from = { channel: "cli", accountId: "local", peerId: "owner", senderId: "owner" };
    for (const agent of ["", "sage", "off"]) {
      if (agent) await s05.COMMANDS.agent?.run(agent, app, {});
      await s05.accept(app, inbound({ id: `cli:${agent}`, ...from })).done.catch(() => {});
    }
    expect(held).toEqual([
      "agent:luna:cli:direct:owner",
      "agent:sage:cli:direct:owner",
      "agent:luna:cli:direct:owner",
    ]);
  });
});

describe.each(sectionsFrom("s05"))("$name, AgentManager and AGENTS", (section) => {
  it("luna is first, sage is there, and an unknown one is named", async () => {
    const { AGENTS, AgentManager, BINDINGS } = await load05(section);
    expect(AGENTS.map(({ id }) => id)).toEqual(["luna", "sage"]);
    expect(AGENTS.map(({ dmScope }) => dmScope)).toEqual(["per-channel-peer", "per-channel-peer"]);
    expect(BINDINGS.some(({ matchKey }) => matchKey === "default")).toBe(true);
    const agents = new AgentManager(AGENTS.map((agent) => [agent.id, agent]));
    expect(agents.find("sage").id).toBe("sage");
    expect(() => agents.find("bob")).toThrow(/bob.*luna, sage/);
  });
});

describe.each(sectionsFrom("s05"))("$name, a message is routed once", (section) => {
  async function theRoad() {
    const model = await echoModel();
    watchMarks(model.log);
    const s05 = await load05(section, settings(model));
    const folder = temporaryFolder();
    const app = appOf05(s05, folder);
    const telegram = silentChannel();
    for (const name of ["telegram", "feishu"]) app.channels.set(name, telegram);
    const take = async (message: Parameters<typeof s05.accept>[1]) => {
      await s05.accept(app, message).done;
      await delivered(app);
    };
    return { s05, app, model, telegram, folder, take };
  }

  it("its agent and its key are in the inbox, and stay over a restart", async () => {
    const { s05, app, model, telegram, folder } = await theRoad();
    const held = model.hold();
    const first = s05.accept(app, inbound({ text: marked("luna", "for luna") })).done;
    await held.waiting;
    app.bindings.set(binding("sage", "peerId", "telegram:1001"));
    const second = s05.accept(app, inbound({ text: marked("sage", "for sage") })).done;
    const again = appOf05(s05, folder, app.channels);
    const kept = again.inbox.pending();
    expect(kept.map(({ agentId }) => agentId)).toEqual(["luna", "sage"]);
    expect(kept.map(({ sessionKey }) => sessionKey)).toEqual([
      "agent:luna:telegram:direct:1001",
      "agent:sage:telegram:direct:1001",
    ]);
    held.release();
    await Promise.all([first, second]);
    await delivered(app);
    expect(telegram.sent).toHaveLength(2);
    const systems = model.log.map(({ request }) => JSON.stringify(request.system ?? ""));
    expect(systems[0]).toMatch(/Luna/);
    expect(systems.at(-1)).toMatch(/Sage/);
    // Each has its own conversation, though it is the same person.
    for (const entry of model.log) expect(outline(entry)).toHaveLength(1);
  });

  it("the same person id on two platforms has two conversations", async () => {
    const { model, telegram, take } = await theRoad();
    for (const channel of ["telegram", "feishu"]) {
      const text = marked(channel, "I am on it");
      await take(inbound({ id: `${channel}:x:1001:1`, channel, text }));
    }
    expect(telegram.sent.map(({ text }) => unmarked(text))).toEqual([
      "re: I am on it",
      "re: I am on it",
    ]);
    for (const entry of model.log) expect(outline(entry)).toHaveLength(1);
  });

  it("an agent's own model and words reach the API", async () => {
    const { s05, app, model } = await theRoad();
    const own = { id: "own", system: "You are Own.", model: "claude-haiku-5-5" };
    app.agents.set("own", { ...own, dmScope: "main" });
    app.bindings.set(binding("own", "channel", "telegram"));
    const shared = { text: "hi" }; // "main" is one conversation for all who write directly
    await s05.accept(app, inbound({ ...shared, peerId: "1" })).done;
    await s05.accept(app, inbound({ ...shared, peerId: "2" })).done;
    expect(model.log[1]?.model).toBe("claude-haiku-5-5");
    expect(JSON.stringify(model.log[1]?.request.system)).toContain("You are Own.");
    expect(outline(model.log[1])).toHaveLength(3);
  });

  it("answers what s04 left in the inbox, which names no agent", async () => {
    const { s05, app, telegram, folder } = await theRoad();
    const { agentId: _, ...old } = inbound({ text: "from before" });
    mkdirSync(join(folder, "inbox"), { recursive: true });
    writeFileSync(join(folder, "inbox", "000000000001.json"), JSON.stringify(old));
    const again = appOf05(s05, folder, app.channels);
    const [kept] = again.inbox.pending();
    expect(kept).toMatchObject({ id: old.id });
    // What main does with it at a start is a process case; here, that a turn of it runs.
    const reply = await s05.runTurn(again.store.current(old.sessionKey), old.text, {
      message: old,
      agent: again.agents.get(kept?.agentId ?? ""),
    });
    expect(reply).toBe("re: from before");
    expect(telegram.sent).toEqual([]);
  });
});
