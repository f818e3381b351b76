/** s05 as a process: routes that outlive a crash, what earlier sections stored, and the drain. */

import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { englishFrom, outline, type SectionFile } from "./helper.ts";
import { afterwards, marked, openWorld, unmarked, type World } from "./world.ts";

/** Calls one method; gives the answer, whatever it is. */
async function call(world: World, method: string, params: object) {
  const socket = new WebSocket(world.gateway);
  afterwards(() => socket.terminate());
  await new Promise((resolve) => socket.once("open", resolve));
  socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params }));
  return new Promise<{ result?: unknown; error?: { code: number } }>((resolve) => {
    socket.on("message", (data) => {
      const message = JSON.parse(String(data));
      if (message.id === 1) resolve(message);
    });
  });
}

const SAGE = { agentId: "sage", matchKey: "peerId", matchValue: "telegram:1001" };

describe.each(englishFrom("s05"))("$name, a crash between a message and its reply", (section) => {
  it("Telegram, route, session, reply: it arrives, by the route that it had", async () => {
    const world = await openWorld(section, { serve: true });
    const { model } = world;
    await call(world, "bindings.set", SAGE);
    world.telegramSays("alice", "my name is Ada");
    await world.telegramHears("alice");
    const held = model.hold();
    await world.telegramSays("alice", "who am I?").confirmed;
    await held.waiting;
    await world.telegramSays("alice", "and what do I like?").confirmed;
    // Both were accepted for sage. What comes from now on goes to luna again.
    await call(world, "bindings.remove", { matchKey: SAGE.matchKey, matchValue: SAGE.matchValue });
    await world.telegramSays("alice", "hello, luna").confirmed;
    expect(world.inboxEntries().map(({ sessionKey }) => sessionKey)).toEqual([
      "agent:sage:telegram:direct:1001",
      "agent:sage:telegram:direct:1001",
      "agent:luna:telegram:direct:1001",
    ]);
    await world.kill();
    await world.start(); // the binding is gone with the program; the routes are not
    const heard = [1, 2, 3].map(() => world.telegramHears("alice"));
    expect((await Promise.all(heard)).sort()).toEqual([
      "re: and what do I like?",
      "re: hello, luna",
      "re: who am I?",
    ]);
    const [sage] = world.requestsAbout("what do I like?");
    expect(outline(sage).map(unmarked)).toEqual([
      "user: my name is Ada",
      "assistant: re: my name is Ada",
      "user: who am I?",
      "assistant: re: who am I?",
      "user: and what do I like?",
    ]);
    expect(JSON.stringify(sage?.request.system)).toContain("Sage");
    const [luna] = world.requestsAbout("hello, luna");
    expect(outline(luna)).toHaveLength(1);
    expect(JSON.stringify(luna?.request.system)).toContain("Luna");
    await world.inboxDone();
  });
});

describe("what earlier sections stored", () => {
  it("each section goes on where the one before it was killed", async () => {
    let workspace: string | undefined;
    const lines: string[] = [];
    const letters: string[] = []; // what was left without an answer
    /** The request that is made last: all that was said, and without the last answer. */
    const exchanges = (asked: string[]) =>
      asked.flatMap((one) => [`user: ${one}`, `assistant: re: ${one}`]).slice(0, -1);
    for (const section of englishFrom("s03")) {
      const world = await openWorld(section, { workspace, feishu: false });
      workspace = world.workspace;
      const left = letters.at(-1);
      const seen = () => outline(world.model.log.at(-1)).map(unmarked);
      if (left) {
        expect(await world.telegramHears("alice")).toBe(`re: ${left}`);
        expect(seen()).toEqual(exchanges(letters));
      }
      lines.push(`I am in ${section.id}`);
      expect(await world.types(lines.at(-1) ?? "")).toContain(`re: ${lines.at(-1)}`);
      expect(seen()).toEqual(exchanges(lines));
      if (section.id !== "s03") {
        letters.push(`a letter to ${section.id}`);
        const held = world.model.hold();
        // Each Telegram of this test counts from 1, and to the inbox it is always the same one.
        const fields = { message_id: 100 * letters.length };
        await world.telegramSays("alice", letters.at(-1) ?? "", { fields }).confirmed;
        await held.waiting;
      }
      await world.kill();
    }
    expect(letters.length).toBeGreaterThan(1);
  });
});

describe.each(englishFrom("s05"))("$name --serve, the drain", (section) => {
  it("goes on when a send fails in it", async () => {
    const world = await openWorld(section, { serve: true });
    const { model, program } = world;
    const [sent, asked] = [model.hold(), model.hold()];
    const send = call(world, "send", { text: marked("ws", "!fail") });
    await sent.waiting;
    world.telegramSays("alice", "a slow one");
    await asked.waiting;
    program.kill("SIGTERM");
    while ((await world.feishu.challenge("c")).status !== 404) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    sent.release();
    expect((await send).error?.code).toBe(-32000);
    asked.release();
    expect((await program.end()).code).toBe(0);
    expect(world.telegram.textsTo("alice").map(unmarked)).toEqual(["re: a slow one"]);
  });
});

// Ten seconds, so in the newest section only.
const newest: SectionFile[] = englishFrom("s04").slice(-1);

describe.each(newest)("$name --serve, the end of the drain", (section) => {
  it("leaves after 10 s with code 0, and answers after the next start", async () => {
    const world = await openWorld(section, { serve: true });
    const held = world.model.hold();
    world.telegramSays("alice", "a very slow one");
    await held.waiting;
    const from = Date.now();
    world.program.kill("SIGTERM");
    expect((await world.program.end()).code).toBe(0);
    expect(Date.now() - from).toBeGreaterThan(9_000);
    expect(world.inboxEntries()).toHaveLength(1);
    await world.start();
    expect(await world.telegramHears("alice")).toBe("re: a very slow one");
  });
});
