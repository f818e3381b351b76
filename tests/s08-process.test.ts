/** s08 as people run it: killed while it sends, told to end, and asked what waits. */

import { describe, expect, it } from "vitest";
import type { PracticeRequest } from "../practice/model.ts";
import { englishFrom, SEVERAL, say } from "./helper.ts";
import { delivery, entriesOf, filesOf, plant, rpc, until } from "./s08-helper.ts";
import { echo, lastText, openWorld, unmarked, type World } from "./world.ts";

/** Answers in three parts when it is asked to. */
function inParts(request: PracticeRequest) {
  const heard = lastText(request);
  if (!heard.includes("in parts")) return echo(request);
  const part = (name: string) => `${name}: ${heard} `.padEnd(4000, ". ");
  return say(["first", "second", "third"].map(part).join("\n\n"));
}

const startsOf = (texts: string[]) => texts.map((text) => /^\w+/.exec(text)?.[0]);

/** A send to alice is under way, and will not come to an end. */
async function sending(world: World): Promise<void> {
  const { telegram } = world;
  const isHeld = () =>
    telegram.log.some(({ method, status }) => method === "sendMessage" && status === 0);
  await telegram.until(isHeld);
}

/** The message is done, which it is when all of its reply is in line. */
async function inboxEmpty(world: World): Promise<void> {
  await until(() => world.inboxFiles().every((name) => !/json$/.test(name)));
}

describe.each(englishFrom("s08"))("$name", (section) => {
  it(
    "loses and reorders nothing by kill -9; what was being sent comes once more, and is named",
    SEVERAL,
    async () => {
      const world = await openWorld(section, { feishu: false, serve: true });
      const { telegram, model } = world;
      model.brain = inParts;
      telegram.fail({ kind: "hang", chat: "alice", times: 3 });
      await world.telegramSays("alice", "in parts").confirmed;
      await sending(world);
      // All of the reply was on disk before the first part left; its message is done.
      expect(entriesOf(world.state)).toMatchObject([
        { unfinished: 1 },
        { unfinished: 0 },
        { unfinished: 0 },
      ]);
      const [first] = entriesOf(world.state);
      await inboxEmpty(world);
      await world.kill();
      telegram.clearFailures();

      const program = await world.start();
      await telegram.until(() => telegram.textsTo("alice").length === 3);
      expect(startsOf(telegram.textsTo("alice"))).toEqual(["first", "second", "third"]);
      expect(program.text).toContain(`${first?.id}: the program ended while this was sent`);
      expect(world.requestsAbout("in parts")).toHaveLength(1);
      await world.inboxDone();
      expect(filesOf(world.state)).toEqual([]);

      // Killed twice in one send: given up, with the rest of that reply, and kept.
      telegram.fail({ kind: "hang", chat: "alice", times: 2 });
      await world.telegramSays("alice", "again in parts").confirmed;
      await sending(world);
      await inboxEmpty(world);
      await world.kill();
      const sends = telegram.log.length;
      await world.start();
      await telegram.until(() =>
        telegram.log.slice(sends).some(({ method }) => method === "sendMessage"),
      );
      await world.kill();
      telegram.clearFailures();
      const third = await world.start();
      expect(third.text).toContain("the program ended twice while this was sent");
      expect(entriesOf(world.state, "failed")).toHaveLength(3);
      await world.telegramSays("alice", "goes on").confirmed;
      await telegram.until(() => telegram.textsTo("alice").length === 4);
      expect(telegram.textsTo("alice").at(-1)).toContain("re: goes on");

      // Told to end, it sends the reply of the turn that it ends with, whole.
      const held = model.hold();
      await world.telegramSays("alice", "last in parts").confirmed;
      await held.waiting;
      world.program.kill("SIGTERM");
      // grammY's last request, when it is stopped, has this limit; the drain comes after it.
      await telegram.until(() =>
        telegram.log.some(({ parameters, status }) => parameters.limit === 1 && status === 200),
      );
      held.release();
      expect((await world.program.end()).code).toBe(0);
      expect(startsOf(telegram.textsTo("alice")).slice(4)).toEqual(["first", "second", "third"]);
      expect(filesOf(world.state)).toEqual([]);
    },
  );

  it("shows what waits and what failed, and goes on beside files that make no sense", async () => {
    const prepare = ({ state, telegram: platform }: World) => {
      plant(state, "000000000001.json", "null");
      plant(state, "000000000002.json", { ...delivery("odd#0"), to: 7 });
      const to = String(platform.chatId("alice"));
      plant(state, "000000000003.json", delivery("left#0", { to, text: "left over" }));
      plant(state, "000000000004.json.tmp", delivery("half#0", { to }));
    };
    const world = await openWorld(section, { feishu: false, prepare });
    const { telegram, program } = world;
    expect(await world.telegramHears("alice")).toBe("left over");
    for (const name of ["000000000001.json", "000000000002.json"])
      expect(program.text).toMatch(new RegExp(`${name} is quarantined \\(renamed to .+\\): .+`));

    telegram.fail({ kind: "403", chat: "alice" });
    await world.telegramSays("alice", "hello").confirmed;
    await program.until("not sent for good");
    expect(await program.ask("/failed")).toMatch(/#0 .*Forbidden: bot was blocked.*re: hello/);
    expect(await program.ask("/retry")).toContain("1 in line again.");
    await telegram.until(() => telegram.textsTo("alice").length === 2);
    expect(telegram.textsTo("alice").map(unmarked)).toEqual(["left over", "re: hello"]);

    telegram.fail({ kind: "500", chat: "bob" });
    await world.telegramSays("bob", "hello, too").confirmed;
    await program.until(/not sent: .*Internal Server Error.*\. Again in [5-7] s\./);
    const [waiting] = entriesOf(world.state);
    expect(waiting).toMatchObject({ failures: 1, unfinished: 0, channel: "telegram" });
    expect(await program.ask("/queue")).toContain(String(waiting?.id));
    expect(await rpc(world, "delivery.status")).toEqual({
      ...{ sent: 2, retried: 1, failed: 1 },
      ...{ waiting: 1, recipients: 1, inFailed: 0 },
    });
    expect((await program.ask("/stats")).replace(/ +/g, " ")).toContain(
      "sent 2\nretried 1\nfailed 1\nwaiting 1\n",
    );
    // It does not wait for what is due later; what waits is in its file.
    expect((await program.finish()).code).toBe(0);
    expect(entriesOf(world.state)).toEqual([waiting]);
  });
});
