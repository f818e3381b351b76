/** s10 as a process: the orderly end, and the commands at the terminal. */

import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import type { Hold } from "../practice/model.ts";
import { englishFrom, SEVERAL } from "./helper.ts";
import { afterwards, marked, openWorld, processedLines, type World } from "./world.ts";

interface Answer {
  result?: unknown;
  error?: { code: number; message: string };
}

/** A program at the gateway; `ask` gives the whole answer. */
async function connect(world: World) {
  const socket = new WebSocket(world.gateway);
  afterwards(() => socket.terminate());
  const waiting = new Map<number, (answer: Answer) => void>();
  socket.on("message", (data) => {
    const { id, ...answer } = JSON.parse(String(data));
    waiting.get(id)?.(answer);
  });
  socket.on("error", () => {});
  await new Promise((resolve) => socket.once("open", resolve));
  let count = 0;
  return (method: string, params: object = {}): Promise<Answer> => {
    const id = ++count;
    socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    return new Promise((resolve) => waiting.set(id, resolve));
  };
}

type Ask = Awaited<ReturnType<typeof connect>>;

interface Lane {
  name: string;
  active: number;
  waiting: number;
}

/** Resolves when the lanes are so. Each look is a question to the program and its answer. */
async function lanesUntil(ask: Ask, isSo: (lanes: Lane[]) => boolean): Promise<void> {
  for (;;) {
    const { result } = await ask("lanes.list");
    if (isSo(result as Lane[])) return; // as the method gives them
  }
}

const main = (active: number, waiting: number) => (lanes: Lane[]) =>
  lanes.some((lane) => lane.name === "main" && lane.active === active && lane.waiting === waiting);

function writeCron(world: World, jobs: object[]): void {
  writeFileSync(join(world.workspace, "CRON.json"), JSON.stringify({ jobs }));
}

/** Four people whose turns are under way, each held by the model. */
async function fourAtOnce(world: World): Promise<Hold[]> {
  const holds = [1, 2, 3, 4].map(() => world.model.hold());
  world.telegramSays("alice", "one");
  world.telegramSays("bob", "one");
  world.feishuSays("alice", "one");
  world.feishuSays("bob", "one");
  await Promise.all(holds.map(({ waiting }) => waiting));
  return holds;
}

describe.each(englishFrom("s10"))("$name", (section) => {
  it(
    "SIGTERM: who is being answered gets it; who waits is answered after the restart",
    async () => {
      const world = await openWorld(section, { serve: true });
      const ask = await connect(world);
      const holds = await fourAtOnce(world);
      const fifth = world.telegramSays("alice", "@practice_bot five", { group: "family" });
      const second = world.telegramSays("alice", "two"); // behind her first one
      await Promise.all([fifth.confirmed, second.confirmed]);
      const send = ask("send", { text: marked("ws:door", "six"), peerId: "door" });
      await lanesUntil(ask, main(4, 2));
      world.program.kill("SIGTERM");
      // The program at the gateway hears it at once, while the four are still at work.
      expect((await send).error?.code).toBe(-32000);
      for (const { release } of holds) release();
      expect(await world.telegramHears("alice")).toBe("re: one");
      expect(await world.telegramHears("bob")).toBe("re: one");
      expect(await world.feishuHears("alice")).toBe("re: one");
      expect(await world.feishuHears("bob")).toBe("re: one");
      expect((await world.program.end()).code).toBe(0);
      expect(world.requestsAbout("two")).toEqual([]);
      expect(world.requestsAbout("five")).toEqual([]);
      const left = world.inboxEntries();
      expect(left.map(({ text }) => text.split(" ")[0]).sort()).toEqual(["five", "two"]);
      expect(left.map(({ attempts }) => attempts ?? 0)).toEqual([0, 0]);
      await world.start();
      expect(await world.telegramHears("alice")).toBe("re: two");
      expect(await world.telegramHears("family")).toBe("re: five");
      await world.inboxDone();
      expect(world.requestsAbout("six")).toEqual([]); // nobody waits for it any more
      expect(world.telegram.textsTo("alice")).toHaveLength(2); // nothing twice
    },
    SEVERAL.timeout,
  );

  it(
    "SIGTERM: a job in line stays in the inbox, and runs after the restart",
    async () => {
      const at = { kind: "at", at: "2026-01-01T00:00:00Z" };
      const job = (id: string, opening: World) => ({
        id,
        enabled: true,
        schedule: at,
        payload: { kind: "agent_turn", message: marked(`cron:${id}`, `job ${id}`) },
        deliver: { channel: "telegram", to: String(opening.telegram.chatId("club")) },
      });
      const held: Hold[] = [];
      const world = await openWorld(section, {
        serve: true,
        feishu: false,
        prepare: (opening) => {
          opening.telegram.group("club");
          held.push(opening.model.hold());
          writeCron(opening, [job("a", opening), job("b", opening)]);
        },
      });
      await held[0]?.waiting; // the first runs, the second waits behind it
      const ask = await connect(world);
      await lanesUntil(ask, (lanes) =>
        lanes.some(({ name, active, waiting }) => name === "cron" && active + waiting === 2),
      );
      world.program.kill("SIGTERM");
      await world.program.until(/cron: b: .*stopping/);
      held[0]?.release();
      expect(await world.telegramHears("club")).toBe("re: job a");
      expect((await world.program.end()).code).toBe(0);
      const left = world.inboxEntries();
      expect(left.map(({ id, attempts = 0 }) => [id.slice(0, 7), attempts])).toEqual([
        ["cron:b:", 0],
      ]);
      await world.start();
      expect(await world.telegramHears("club")).toBe("re: job b");
      await world.inboxDone();
      expect(world.telegram.textsTo("club")).toHaveLength(2);
    },
    SEVERAL.timeout,
  );

  it(
    "SIGTERM: a job that still waits for people does not begin any more",
    async () => {
      const schedule = { kind: "every", everySeconds: 1 };
      const payload = { kind: "agent_turn", message: marked("cron:late", "job late") };
      const hold: Hold[] = [];
      const world = await openWorld(section, {
        serve: true,
        feishu: false,
        prepare: (opening) => {
          hold.push(opening.model.hold());
          opening.telegramSays("alice", "one");
          writeCron(opening, [{ id: "late", enabled: true, schedule, payload }]);
        },
      });
      const ask = await connect(world);
      await hold[0]?.waiting;
      await lanesUntil(ask, (lanes) =>
        lanes.some(({ name }) => name.startsWith("agent:luna:cron:late:")),
      );
      world.program.kill("SIGTERM");
      await ask("send", { text: marked("ws:door", "x"), peerId: "door" }); // refused: it is draining
      hold[0]?.release();
      expect(await world.telegramHears("alice")).toBe("re: one");
      expect((await world.program.end()).code).toBe(0);
      expect(world.requestsAbout("job late")).toEqual([]);
      expect(world.inboxEntries().map(({ attempts = 0 }) => attempts)).toEqual([0]);
    },
    SEVERAL.timeout,
  );

  it(
    "a turn that does not end within 10 s is taken up again after the restart",
    async () => {
      const world = await openWorld(section, { serve: true, feishu: false });
      const hold = world.model.hold();
      world.telegramSays("alice", "one");
      await hold.waiting;
      world.program.kill("SIGTERM");
      expect((await world.program.end()).code).toBe(0);
      hold.release();
      expect(world.inboxEntries().map(({ attempts }) => attempts)).toEqual([0]);
      await world.start();
      expect(await world.telegramHears("alice")).toBe("re: one");
      await world.inboxDone();
      expect(world.inboxFiles()).toEqual([]);
    },
    SEVERAL.timeout,
  );

  it("shows the lanes at the terminal while people wait, and takes work for them", async () => {
    const world = await openWorld(section, { feishu: false });
    const { program } = world;
    expect(await program.ask("/lanes")).toMatch(/^main +0\/4 +\+0\ncron +0\/1 +\+0\n/);
    expect(await program.ask("/concurrency main 1")).toContain("main: 1");
    const hold = world.model.hold();
    world.telegramSays("alice", "one");
    await hold.waiting;
    world.telegramSays("bob", "two");
    const ask = await connect(world);
    await lanesUntil(ask, main(1, 1));
    expect(await program.ask(`/enqueue main ${marked("terminal", "three")}`)).toContain(
      "2 waiting",
    );
    expect(await program.ask("/lanes")).toMatch(/main +1\/1 +\+2/);
    expect(await program.ask("/enqueue main")).toContain("Failed:");
    expect(await program.ask("/concurrency nobody 3")).toContain("Failed:");
    // The model's answer is not waited for: the turn is ended, and the others run.
    expect(await program.ask("/reset")).toContain("1 ended.");
    expect(await world.telegramHears("alice")).toMatch(/^I could not answer/);
    expect(await world.telegramHears("bob")).toBe("re: two");
    await program.until(/\[main three[^\]]*\] re: three/);
    expect(await program.ask("/generation")).toMatch(/main +1/);
    await world.inboxDone();
    hold.release();
    const { code } = await program.finish();
    expect(code).toBe(0);
    expect(processedLines(join(world.state, "inbox"))).toHaveLength(2); // of the one that was reset, too
    expect(existsSync(join(world.state, "lock"))).toBe(false);
  });
});
