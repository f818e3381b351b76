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
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { englishFrom, type SectionFile, say, temporaryFolder } from "./helper.ts";
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
    settings: {
      ...HEARTBEAT,
      GATEWAY_TOKEN: "a-token-that-is-long-enough",
      ANTHROPIC_API_KEY_2: "test-key-2",
    },
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
  model.fail("401"); // one of the two keys rests
  telegram.fail({ kind: "hang", chat: "alice" });
  world.telegramSays("alice", "stays in the queue");
  const held = () =>
    telegram.log.some((call) => call.method === "sendMessage" && call.status === 0);
  await telegram.until(held);
  model.slow(600_000);
  world.telegramSays("bob", "stays in the inbox");
  while (world.inboxFiles().every((name) => !name.endsWith(".json"))) await sleep(10);
  await world.kill();
  const folder = mkdtempSync(join(tmpdir(), "claw0-state-"));
  cpSync(world.state, folder, { recursive: true });
  return folder;
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
    // In a table that is an object, each entry is named that can't be used.
    const isTable = new RegExp(`${place}: \\w+: not usable`).test(world.program.text);
    return !(isMoved && isSaid) && !isTable && !isLogWithBadLine(world, place);
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
  world.telegramSays("bob", "and you");
  await telegram.until(() => isAnswered(world, "bob", "re: and you"));
  expect(await rpc(world, "cron.list")).toMatchObject({ result: [{ id: "tick" }] });
  for (const method of ["sessions.list", "delivery.status", "heartbeat.status", "profiles.list"]) {
    expect(await rpc(world, method), method).toHaveProperty("result");
  }
  const search = await rpc(world, "memory.search", { query: "the door" });
  expect(search, "memory.search").toHaveProperty("result");
  await minutesUntil(world, () => world.requestsAbout("HEARTBEAT_OK").length > 0);
  const before = telegram.textsTo("bob").length;
  await minutesUntil(world, () => telegram.textsTo("bob").length > before);
  expect(telegram.textsTo("bob").slice(before).join(), "the job").toContain("event of tick");
}

/**
 * What nobody will use again: the lock and the unfinished files of another life, and which session
 * a heartbeat or a run of a job was in.
 */
const isTransient = (place: string) => /^lock|\.tmp$|%3A(heartbeat|cron)%3A.*current$/.test(place);

// A record of a log that has other fields means nothing to the program, and is left alone.
const isIgnored = (place: string, kind: string) =>
  kind === "another shape" && place.endsWith(".jsonl");

/** Which places are damaged together. */
const GROUPS: Record<string, (isDirectory: boolean, isOuter: boolean) => boolean> = {
  "all files": (isDirectory) => !isDirectory,
  "the folders": (isDirectory, isOuter) => isDirectory && isOuter,
  "the folders inside them": (isDirectory, isOuter) => isDirectory && !isOuter,
};

const cases = Object.keys(GROUPS)
  .flatMap((group) => Object.keys(KINDS).map((kind) => ({ group, kind })))
  .filter(({ group, kind }) => group === "all files" || kind !== "a directory");

const states = new Map<string, Promise<string>>();

/** The used state of a section, made once. */
function stateOf(section: SectionFile): Promise<string> {
  const state = states.get(section.id) ?? usedState(section);
  states.set(section.id, state);
  return state;
}

afterAll(async () => {
  for (const state of states.values()) rmSync(await state, { recursive: true });
});

/** The groups of places to damage. By hand, with STATE_EACH=1, each place is tried by itself. */
function placesIn(state: string, group: string): string[][] {
  const found = allIn(state).filter((place) =>
    GROUPS[group]?.(isFolder(join(state, place)), dirname(place) === "."),
  );
  expect(found, `nothing to damage of ${group}`).not.toEqual([]);
  return process.env.STATE_EACH ? found.map((place) => [place]) : [found];
}

async function tryPlaces(section: SectionFile, places: string[], kind: string): Promise<void> {
  const damaged = join(temporaryFolder(), "state");
  cpSync(await stateOf(section), damaged, { recursive: true });
  damage(damaged, places, kind);
  const needsUser = process.getuid?.() === 0 && kind === "an unreadable file";
  const world = await open(section, damaged, needsUser ? NOBODY : undefined);
  const toName = places.filter((place) => !isTransient(place) && !isIgnored(place, kind));
  await expectService(world); // what nobody needs until then is not looked at
  expect(unnamed(world, toName), "not named, or not moved").toEqual([]);
  await world.restart();
  expect(world.program.text, "the same again").not.toContain("is quarantined");
  await expectService(world);
}

describe.each(englishFrom("s10"))("$name", (section) => {
  it.each(cases)("$group: $kind", { timeout: 180_000 }, async ({ group, kind }) => {
    for (const places of placesIn(await stateOf(section), group)) {
      await tryPlaces(section, places, kind);
    }
  });

  it("a file whose number is too large", { timeout: 180_000 }, async () => {
    const damaged = join(temporaryFolder(), "state");
    cpSync(await stateOf(section), damaged, { recursive: true });
    const folders = ["inbox", "delivery", "delivery/failed"];
    const places = folders.map((folder) => join(folder, "1234567890123456789012.json"));
    for (const folder of folders) {
      const [name = ""] = readdirSync(join(damaged, folder)).filter((one) =>
        /^\d+\.json$/.test(one),
      );
      const entry = JSON.parse(readFileSync(join(damaged, folder, name), "utf8"));
      const other = JSON.stringify({ ...entry, id: `${entry.id}0` }); // whole, but for its name
      writeFileSync(join(damaged, folder, "1234567890123456789012.json"), other);
    }
    const world = await open(section, damaged);
    await expectService(world);
    expect(await rpc(world, "delivery.status")).toHaveProperty("result");
    expect(unnamed(world, places)).toEqual([]);
    await world.restart();
    await expectService(world);
    const numbers = allIn(world.state).filter((name) => /e\+|\d{22}\.json$/.test(name));
    expect(numbers).toEqual([]);
  });
});
