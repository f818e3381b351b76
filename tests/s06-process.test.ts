/** s06 as people run it: commands, a memory that outlives a kill, and each sees what is theirs. */

import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import type { PracticeRequest } from "../practice/model.ts";
import { blocks, brokenPrefixes, call, englishFrom, practice, settings, start } from "./helper.ts";
import { afterwards, echo, openWorld } from "./world.ts";

const DIRECT = "agent:luna:telegram:direct";

/** Notes what follows "note:" in what somebody says; answers everything else as an echo. */
function notes(request: PracticeRequest) {
  const last = blocks(request.messages.at(-1));
  const said = last.at(-1);
  const words = said?.type === "text" ? said.text : "";
  if (!words.startsWith("note: ")) return echo(request);
  const input = { content: words.slice("note: ".length), category: "fact" };
  return { content: [call("memory_write", input)] };
}

describe.each(englishFrom("s06"))("$name", (section) => {
  it("commands, notes and files: each finds what is theirs, also after kill -9", async () => {
    const world = await openWorld(section, { feishu: false });
    const { telegram, model } = world;
    model.brain = notes;

    // The commands cost no call.
    const layers = (await world.program.ask("/prompt")).trimEnd().split("\n");
    const sizes = layers.map((line) => /^(\d) (\w+) +(\d+)$/.exec(line)?.slice(1) ?? []);
    const names = [
      "identity",
      "soul",
      "tools",
      "skills",
      "memory",
      "bootstrap",
      "runtime",
      "channel",
    ];
    expect(sizes.map(([, name]) => name)).toEqual(names);
    expect(sizes.map(([number]) => Number(number))).toEqual(names.map((_name, index) => index + 1));
    for (const [, name, size] of sizes) expect(Number(size), name).toBeGreaterThan(0);
    expect(await world.program.ask("/soul")).toContain("You are Luna");
    expect(await world.program.ask("/skills")).toContain("example-skill");
    expect(await world.program.ask("/memory")).toContain("Mira lives in Lisbon");
    expect(await world.program.ask("/bootstrap")).toContain("How to work");
    const sought = (await world.program.ask("/search where does Mira live")).trimEnd().split("\n");
    expect(sought[0]).toMatch(/^0\.\d\d {2}MEMORY\.md {2}The owner's sister Mira lives in Lisbon/);
    const scores = sought.map((line) => Number(line.slice(0, 4)));
    expect(scores).toEqual([...scores].sort((a, b) => b - a));
    await world.program.ask("/agent sage");
    expect(await world.program.ask("/soul")).toContain("You are Sage");
    await world.program.ask("/agent off");
    expect(model.log).toEqual([]);
    const help = await world.program.ask("/help");
    for (const name of ["soul", "skills", "memory", "bootstrap", "search", "prompt"]) {
      expect(help).toMatch(new RegExp(`^/${name}\\b +\\S`, "m"));
    }

    // Noted in one session, found in the next, and shown to the person once.
    expect(await world.program.ask("note: My favourite tea is oolong.")).toContain("memory_write");
    await world.program.ask("/new");
    const asked = await world.program.ask("What is my favourite tea?");
    expect(asked.split("My favourite tea is oolong.")).toHaveLength(2);
    const about = () => JSON.stringify(model.log.at(-1)?.request.messages.at(-1));
    expect(about()).toContain("You remember: My favourite tea is oolong.");

    // Alice is the owner on the phone. Her notes there are not those of the terminal.
    const asks = async (person: string, text: string, inGroup?: string) => {
      telegram.say(person, text, { group: inGroup });
      await telegram.nextSent(inGroup ?? person);
      const { system, messages } = model.log.at(-1)?.request ?? { system: "", messages: [] };
      return {
        prompt: JSON.stringify(system),
        context: JSON.stringify(blocks(messages.at(-1))[0]),
      };
    };
    const alice = await asks("alice", "Where does Mira live, and what is my favourite tea?");
    expect(alice.prompt).toContain("Mira lives in Lisbon");
    expect(alice.context).toContain("Mira lives in Lisbon");
    expect(alice.context).not.toContain("oolong");
    const bob = await asks("bob", "Where does Mira live, and what is my favourite tea?");
    const group = await asks("alice", "@practice_bot Where does Mira live?", "family");
    for (const one of [bob, group]) {
      expect(one.prompt).toContain("You are Luna");
      expect(one.prompt + one.context).not.toMatch(/Mira lives|oolong/);
    }
    await asks("bob", "note: My favourite tea is mint.");

    // A skill that is broken is said, and everything goes on.
    mkdirSync(join(world.workspace, "skills/broken"));
    writeFileSync(join(world.workspace, "skills/broken/SKILL.md"), "---\nname: [\n---\n");
    await world.program.ask("and now?");
    expect(world.program.text).toMatch(/skills\/broken\/SKILL\.md is left out/);

    // kill -9 in the middle of a turn. The next request begins with the one before it.
    const held = model.hold();
    world.program.write("What is next?\n");
    await held.waiting;
    const terminal = model.log.length - 2; // "and now?", and the one that is held
    await world.restart();
    held.release();
    await world.program.ask("And what is my favourite tea?");
    expect(brokenPrefixes(model.log.slice(terminal))).toEqual([]);
    expect(about()).toContain("You remember: My favourite tea is oolong.");
    expect((await asks("bob", "What is my favourite tea?")).context).toContain(
      "My favourite tea is mint.",
    );

    const socket = new WebSocket(world.gateway);
    afterwards(() => socket.terminate());
    await new Promise((resolve) => socket.once("open", resolve));
    const rpc = (method: string, params: object) => {
      socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }));
      return new Promise<string>((resolve) => socket.once("message", (data) => resolve(`${data}`)));
    };
    // By the gateway: nothing of conversations in which the client has no part.
    for (const more of [{}, { sessionKey: `${DIRECT}:1002` }]) {
      const found = JSON.parse(await rpc("memory.search", { query: "tea oolong Mira", ...more }));
      expect(found.result).toEqual([]);
    }
    expect(readdirSync(join(world.state, "memory"))).toHaveLength(1);
  });

  it("runs without any file, and with a workspace that is not there yet", async () => {
    const model = await practice();
    const given = settings(model);
    const folder = join(given.CLAW0_WORKSPACE ?? "", "not/there");
    const program = start(section, { ...given, CLAW0_WORKSPACE: folder });
    const lines = "My name is Ada.\nWhat is my name?\n/skills\n/memory\n/search Ada\n/prompt\n";
    const { code, text } = await program.finish(lines);
    expect(code).toBe(0);
    expect(text).toContain("Ada");
    expect(text).not.toMatch(/^\s+at /m);
    expect(model.log).toHaveLength(2);
    expect(JSON.stringify(model.log[0]?.request.system)).toContain("Luna");
  });
});
