/**
 * A disk that is full, or can't be written, at each place where the program stores something, and
 * then has space again. All that was said before, meanwhile and afterwards is answered once and in
 * order, without a restart.
 */

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { PracticeRequest } from "../practice/model.ts";
import { calls, englishFrom, outline, SEVERAL, type SectionFile } from "./helper.ts";
import { event, every, MINUTE, writeCron } from "./s07-helper.ts";
import { rpc } from "./s08-helper.ts";
import { PARTS, type SmallDisk, waysToFill } from "./small-disk.ts";
import { echo, lastText, openWorld, unmarked, type World } from "./world.ts";

// A file whose last block has space takes a short line on a full disk, too. These are longer.
const LONG = "and so on, ".repeat(240);

/** Notes what it is asked to note; to anything else "re:" and the text. */
function brain(request: PracticeRequest) {
  const heard = lastText(request);
  const last = request.messages.at(-1)?.content;
  const isNoted = Array.isArray(last) && last.some(({ type }) => type === "tool_result");
  if (!heard.includes("note") || isNoted) return echo(request);
  return calls(["memory_write", { content: heard + LONG, category: "note" }]);
}

class Run {
  readonly world: World;
  readonly disk: SmallDisk;

  constructor(world: World, disk: SmallDisk) {
    this.world = world;
    this.disk = disk;
  }

  /** The names of what was said to a person, in order: "one" of "re: one and so on …". */
  heardBy(person: string): string[] {
    return this.world.telegram.textsTo(person).map((text) => unmarked(text).split(" and")[0] ?? "");
  }

  say(person: string, text: string): void {
    this.world.telegramSays(person, `${text} ${LONG}`);
  }

  /** Puts the clock forward by a minute, again and again, until something is so. */
  async minutesUntil(isSo: () => boolean): Promise<void> {
    for (let minute = 0; minute < 30 && !isSo(); minute++) {
      await this.world.program.forward(MINUTE);
      for (let wait = 0; wait < 40 && !isSo(); wait++) await sleep(10); // for what is in between
    }
  }

  filesIn(folder: string, pattern: RegExp): string[] {
    const path = this.disk.path(join(this.world.state, folder));
    return existsSync(path) ? readdirSync(path).filter((name) => pattern.test(name)) : [];
  }

  notes(): string {
    const names = this.filesIn("memory", /jsonl$/).map((name) =>
      join(this.world.state, "memory", name),
    );
    return names.map((name) => readFileSync(this.disk.path(name), "utf8")).join("");
  }

  wasModelTold(): boolean {
    const requests = JSON.stringify(this.world.model.log.map(({ request }) => request));
    return requests.includes('"is_error":true');
  }

  /** Those that were printed more often than there are conversations, apart from numbers. */
  oftenSaid(): string[] {
    const lines = this.complaints().map((line) => line.replace(/\d+/g, "0"));
    return [...new Set(lines.filter((one) => lines.filter((other) => other === one).length > 4))];
  }

  /** The lines of the log that name the trouble. */
  complaints(): string[] {
    const lines = this.world.program.text.split("\n");
    return lines.filter((line) => /ENOSPC|EACCES|EPERM|EROFS/.test(line));
  }
}

type Way = ReturnType<typeof waysToFill>[number];

async function open(section: SectionFile, way: Way): Promise<Run> {
  let disk: Promise<SmallDisk> | undefined;
  const start = { clock: true };
  const world = await openWorld(section, {
    feishu: false,
    serve: true,
    start,
    // A token of ours, because this process can't read one that lies on the small disk.
    settings: { HEARTBEAT_INTERVAL: "0", GATEWAY_TOKEN: "a-token-of-ours-1" },
    prepare: async (made) => {
      const deliver = { channel: "telegram", to: String(made.telegram.chatId("bob")) };
      writeCron(made.workspace, [event("tick", every(120), { deliver })]);
      disk = way.open(made.state);
      Object.assign(start, (await disk).start);
    },
  });
  if (!disk) throw new Error("it was not prepared");
  world.model.brain = brain;
  return new Run(world, await disk);
}

const places = [...PARTS.map((part) => [part]), PARTS];
const cases = englishFrom("s10").flatMap((section) =>
  waysToFill().flatMap((way) =>
    places.map((parts) => ({ section, way, parts, title: `${way.way}: ${parts.join(" ")}` })),
  ),
);

describe.each(cases)("$section.name, $title", ({ section, way, parts }) => {
  it("nothing is lost, all is said, and it goes on by itself", SEVERAL, async () => {
    const run = await open(section, way);
    const { world, disk } = run;
    run.say("alice", "zero");
    run.say("bob", "zero");
    const isBegun = () => run.heardBy("alice").length > 0 && run.heardBy("bob").length > 0;
    await world.telegram.until(isBegun);
    // These deliveries have to be over. Each would tell of the outage as well, if it met it.
    while (run.filesIn("delivery", /^\d+\.json$/).length > 0) await sleep(10);

    for (const part of parts) disk.fill(part);
    for (const words of ["one", "two", "three"]) run.say("alice", words);
    run.say("bob", "note four");
    // Of a note that can't be stored the model is told, and it is for the model to say so.
    const isSaid = () => run.complaints().length > 0 || run.wasModelTold();
    await run.minutesUntil(isSaid);
    expect(isSaid()).toBe(true);
    for (let half = 0; half < 10; half++) await world.program.forward(MINUTE / 2);
    // Each conversation tells of an outage once, and not at each attempt.
    expect(run.oftenSaid(), world.program.text).toEqual([]);
    expect(await rpc(world, "status")).toMatchObject({ uptime: expect.any(Number) });

    for (const part of parts) disk.free(part);
    run.say("alice", "five");
    const ticks = () => run.heardBy("bob").filter((text) => text.includes("tick")).length;
    const ticksBefore = ticks();
    const isDone = () =>
      run.heardBy("alice").includes("re: five") &&
      run.heardBy("bob").includes("re: note four") &&
      ticks() > ticksBefore;
    await run.minutesUntil(isDone);
    expect(isDone()).toBe(true);
    const inOrder = ["zero", "one", "two", "three", "five"].map((word) => `re: ${word}`);
    expect(run.heardBy("alice")).toEqual(inOrder);
    const toBob = run.heardBy("bob").filter((text) => text.startsWith("re:"));
    expect(toBob).toEqual(["re: zero", "re: note four"]);
    expect(run.filesIn("inbox", /quarantined$/)).toEqual([]);
    expect(run.filesIn("delivery/failed", /json$/)).toEqual([]);

    // The note is stored, or the model was told that it is not; and the next one is.
    expect(run.notes().includes("note four") || run.wasModelTold()).toBe(true);
    run.say("bob", "note six");
    await run.minutesUntil(() => run.heardBy("bob").includes("re: note six"));
    expect(run.notes()).toContain("note six");

    // What is on the disk is whole: another life repeats nothing, and remembers all.
    await world.restart();
    run.say("alice", "seven");
    await world.telegram.until(() => run.heardBy("alice").includes("re: seven"));
    expect(run.heardBy("alice")).toEqual([...inOrder, "re: seven"]);
    const said = outline(world.requestsAbout("seven").at(-1)).filter((line) =>
      line.startsWith("user"),
    );
    expect(said.map((line) => /user: (\w+)/.exec(line)?.[1])).toEqual([
      "zero",
      "one",
      "two",
      "three",
      "five",
      "seven",
    ]);
  });
});
