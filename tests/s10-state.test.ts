/**
 * A state folder that is not ours: whatever stands in place of the files and folders that a program
 * has used, the next start names it, moves it out of the way, and serves everybody as before.
 */

import { execFileSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { englishFrom, SEVERAL, type SectionFile, say, temporaryFolder } from "./helper.ts";
import { event, every, MINUTE, writeCron } from "./s07-helper.ts";
import { afterwards, echo, lastText, openWorld, type World } from "./world.ts";

const NOBODY = 65_534;

/** What may stand in place of a file or folder. */
const KINDS: Record<string, (place: string) => void> = {
  "a directory": (place) => mkdirSync(place),
  "an unreadable file": (place) => {
    writeFileSync(place, "{}");
    chmodSync(place, 0);
  },
  "a broken link": (place) => symlinkSync("nowhere", place),
  "[]": (place) => writeFileSync(place, "[]\n"),
  null: (place) => writeFileSync(place, "null\n"),
  nothing: (place) => writeFileSync(place, ""),
  "50 MB": (place) => writeFileSync(place, Buffer.alloc(50_000_000, "x")),
  "another shape": (place) => writeFileSync(place, '{"id":7,"at":{},"message":[],"due":"soon"}\n'),
};

const isFolder = (file: string) => lstatSync(file).isDirectory();

/** All that lies in a folder, each with its path inside. */
const allIn = (folder: string) => readdirSync(folder, { recursive: true }).map(String).sort();

function rpc(world: World, method: string, params: object = {}) {
  const socket = new WebSocket(world.gateway);
  afterwards(() => socket.terminate());
  return new Promise<{ result?: unknown; error?: unknown }>((resolve, reject) => {
    socket.on("error", reject);
    socket.on("open", () => socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method, params })));
    socket.on("message", (data) => {
      const message = JSON.parse(String(data));
      if (message.id === 1) resolve(message);
    });
  });
}

const HEARTBEAT = {
  HEARTBEAT_INTERVAL: "600",
  HEARTBEAT_ACTIVE_START: "0",
  HEARTBEAT_ACTIVE_END: "0",
};

/** A world on a state; as another user, if files must be unreadable, which they never are for root. */
async function open(section: SectionFile, state?: string, uid?: number): Promise<World> {
  return openWorld(section, {
    feishu: false,
    serve: true,
    settings: { ...HEARTBEAT, GATEWAY_TOKEN: "a token that is long enough" },
    start: { clock: true, uid },
    prepare: (world) => {
      const deliver = { channel: "telegram", to: String(world.telegram.chatId("bob")) };
      writeCron(world.workspace, [event("tick", every(120), { deliver })]);
      writeFileSync(join(world.workspace, "HEARTBEAT.md"), "- Look at the door.");
      if (state) cpSync(state, world.state, { recursive: true });
      if (uid) execFileSync("chown", ["-R", String(uid), world.workspace]);
    },
  });
}

async function minutesUntil(world: World, isSo: () => boolean): Promise<void> {
  for (let minute = 0; minute < 20 && !isSo(); minute++) {
    await world.program.forward(MINUTE);
    for (let wait = 0; wait < 40 && !isSo(); wait++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

const isAnswered = (world: World, person: string, text: string) =>
  world.telegram.textsTo(person).some((one) => one.includes(text));

/** The state of a program that has used all that there is, and was killed at work. */
async function usedState(section: SectionFile): Promise<string> {
  const world = await open(section);
  const { telegram, model } = world;
  world.telegramSays("alice", "hello"); // the owner
  await telegram.until(() => isAnswered(world, "alice", "re: hello"));
  model.brain = (request) => {
    const heard = lastText(request);
    if (heard.includes("HEARTBEAT_OK")) return say("The door is open.");
    const last = request.messages.at(-1)?.content;
    const isNoted = Array.isArray(last) && last.some(({ type }) => type === "tool_result");
    if (!heard.includes("note") || isNoted) return echo(request);
    const input = { content: "The door is green.", category: "note" };
    return { content: [{ type: "tool_use", name: "memory_write", input }] };
  };
  world.telegramSays("alice", "note it");
  await telegram.until(() => isAnswered(world, "alice", "re: note it"));
  const isIn = (file: string) => existsSync(join(world.state, file));
  await minutesUntil(world, () => isIn("heartbeat.json") && isAnswered(world, "bob", "tick"));
  telegram.block("bob"); // for good, so the next tick becomes a dead letter
  const failed = join(world.state, "delivery/failed");
  await minutesUntil(world, () => readdirSync(failed).length > 0);
  model.fail("401"); // the key rests
  telegram.fail({ kind: "hang", chat: "alice" });
  world.telegramSays("alice", "stays in the queue");
  const held = () =>
    telegram.log.some((call) => call.method === "sendMessage" && call.status === 0);
  await telegram.until(held);
  model.brain = () => ({ ...say("never"), delay: 600_000 }) as never;
  world.telegramSays("bob", "stays in the inbox");
  await telegram.until(() => world.inboxEntries().length > 0);
  await world.kill();
  const state = join(temporaryFolder(), "state");
  cpSync(world.state, state, { recursive: true });
  return state;
}

/** Puts something else in place of each of the files or folders. */
function damage(state: string, places: string[], kind: string): void {
  for (const place of places) {
    const file = join(state, place);
    rmSync(file, { recursive: true, force: true });
    KINDS[kind]?.(file);
  }
}

/** Which of the places were not named, or are still where they were. */
function unnamed(world: World, places: string[]): string[] {
  const names = allIn(world.state);
  return places.filter((place) => {
    const isMoved = names.some(
      (name) => name.startsWith(`${place}.`) && name.endsWith(".quarantined"),
    );
    const isSaid = world.program.text.includes(place);
    return !(isMoved && isSaid) && !isLogWithBadLine(world, place);
  });
}

/** A line of a log that can't be read is named, and stays. */
function isLogWithBadLine(world: World, place: string): boolean {
  return place.endsWith(".jsonl") && world.program.text.includes(`${place}, line 1`);
}

/** People and jobs are served, and whoever asks hears what there is. */
async function expectService(world: World): Promise<void> {
  const { telegram } = world;
  telegram.clearFailures();
  world.telegramSays("alice", "how are you");
  await minutesUntil(world, () => isAnswered(world, "alice", "re: how are you"));
  expect(isAnswered(world, "alice", "re: how are you"), "an answer").toBe(true);
  expect(await rpc(world, "cron.list")).toMatchObject({ result: [{ id: "tick" }] });
  for (const method of ["sessions.list", "delivery.status", "heartbeat.status", "profiles.list"]) {
    expect(await rpc(world, method), method).toHaveProperty("result");
  }
  const search = await rpc(world, "memory.search", { query: "the door" });
  expect(search, "memory.search").toHaveProperty("result");
  const before = telegram.textsTo("bob").length;
  await minutesUntil(world, () => telegram.textsTo("bob").length > before);
  expect(telegram.textsTo("bob").slice(before).join(), "the job").toContain("event of tick");
}

// Places of which nothing has to be said: a lock or a torn file of another life means nothing.
const isTransient = (place: string) => /^lock|\.tmp$/.test(place);

describe.each(englishFrom("s10"))("$name", (section) => {
  const each = process.env.STATE_EACH !== undefined; // by hand: one place at a time

  it("starts on a state that is not its own, names what it is, and serves all", {
    timeout: 900_000,
  }, async () => {
    const state = await usedState(section);
    const all = allIn(state);
    const isFolderIn = (place: string) => isFolder(join(state, place));
    const files = all.filter((place) => !isFolderIn(place));
    const folders = all.filter(isFolderIn);
    console.log(all.join("\n"));
    const outer = folders.filter((place) => dirname(place) === ".");
    const inner = folders.filter((place) => dirname(place) !== ".");
    const groups = each ? all.map((place) => [place]) : [files, outer, inner];
    const problems: string[] = [];
    for (const kind of Object.keys(KINDS)) {
      for (const places of groups) {
        if (kind === "a directory" && places.every(isFolderIn)) continue;
        const damaged = join(temporaryFolder(), "state");
        cpSync(state, damaged, { recursive: true });
        damage(damaged, places, kind);
        const isRoot = process.getuid?.() === 0;
        try {
          const world = await open(
            section,
            damaged,
            isRoot && kind === "an unreadable file" ? NOBODY : undefined,
          );
          const missing = unnamed(
            world,
            places.filter((place) => !isTransient(place)),
          );
          problems.push(...missing.map((place) => `${place} is ${kind}: not named, or not moved`));
          await expectService(world);
          await world.kill();
        } catch (error) {
          problems.push(
            `${places.length > 1 ? `${places.length} places` : places} ${kind}: ${String(error).slice(0, 1500)}`,
          );
        }
      }
    }
    expect(problems).toEqual([]);
  });
});
