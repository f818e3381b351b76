/** s04 when it is told to end, and when it is killed. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { changed, englishFrom, outline } from "./helper.ts";
import { wording } from "./wording.ts";
import { marked, openWorld, unmarked } from "./world.ts";

describe.each(englishFrom("s04"))("$name --serve", (section) => {
  it("drains at SIGTERM: who is being answered is answered; a second signal ends it", async () => {
    const world = await openWorld(section, { serve: true });
    const { telegram, model } = world;
    const held = model.hold();
    world.telegramSays("alice", "under way");
    await held.waiting;
    await world.telegramSays("alice", "in line").confirmed;
    world.program.kill("SIGTERM");
    // Feishu's address is closed before the drain begins.
    const closed = async () => (await world.feishu.challenge("c")).status === 404;
    while (!(await closed())) await new Promise((resolve) => setImmediate(resolve));
    expect(telegram.sent).toEqual([]);
    held.release();
    expect((await world.program.end()).code).toBe(0);
    const heard = () => telegram.textsTo("alice").map(unmarked);
    const all = ["re: under way", "re: in line"];
    const left = changed(section, "drain") ? 1 : 0;
    expect(heard()).toEqual(all.slice(0, all.length - left));
    expect(world.inboxFiles()).toHaveLength(left);

    await world.start();
    await telegram.until(() => heard().length === all.length);
    expect(heard()).toEqual(all);
    const stuck = model.hold();
    world.telegramSays("bob", "stuck");
    await stuck.waiting;
    world.program.kill("SIGINT");
    while (!(await closed())) await new Promise((resolve) => setImmediate(resolve));
    world.program.kill("SIGINT");
    expect((await world.program.end()).code).not.toBe(0);
    expect(world.inboxEntries()).toHaveLength(1);
    await world.start();
    expect(await world.telegramHears("bob")).toBe("re: stuck");
    world.program.kill("SIGTERM");
    expect((await world.program.end()).code).toBe(0);
  });
});

describe.each(englishFrom("s04"))("$name, after a crash", (section) => {
  it("answers what it had accepted, once, in order, in its conversation", async () => {
    const world = await openWorld(section, { serve: true });
    const { telegram, feishu, model } = world;
    const held = [model.hold(), model.hold()];
    await world.telegramSays("alice", "one").confirmed;
    await world.feishuSays("bob", "eins").first;
    await Promise.all(held.map(({ waiting }) => waiting));
    await world.telegramSays("alice", "two").confirmed;
    await world.feishuSays("bob", "zwei").first;
    await world.kill();
    expect(world.inboxEntries().map(({ attempts }) => attempts ?? 0)).toEqual([1, 1, 0, 0]);
    // What belongs to a channel that is not set up now waits until it is again.
    await world.start({ TELEGRAM_BOT_TOKEN: "" });
    for (const text of ["re: eins", "re: zwei"]) expect(await world.feishuHears("bob")).toBe(text);
    expect(telegram.sent).toEqual([]);
    await world.inboxDone(2); // killed earlier than that, bob could hear the last one twice
    await world.restart();
    for (const text of ["re: one", "re: two"])
      expect(await world.telegramHears("alice")).toBe(text);
    const about = world.requestsAbout("two");
    expect(outline(about.at(-1)).map(unmarked)).toEqual([
      "user: one",
      "assistant: re: one",
      "user: two",
    ]);

    // Crashed with the answer on record: only the delivery is done.
    telegram.fail({ kind: "hang", chat: "alice" });
    world.telegramSays("alice", "three");
    await telegram.until(() =>
      telegram.log.some(({ parameters }) => String(parameters.text).includes("re: three")),
    );
    await world.kill();
    telegram.release();
    await world.start();
    expect(await world.telegramHears("alice")).toBe("re: three");
    expect(world.requestsAbout("three")).toHaveLength(1);

    // And nothing of it twice.
    expect(telegram.textsTo("alice")).toHaveLength(3);
    expect(feishu.textsTo("bob")).toHaveLength(2);

    // An album that was begun is whole; a picture of it that came later is a turn of its own.
    const album = model.hold();
    telegram.album("alice", ["photo", "photo"], marked("telegram:alice", "trip"));
    await album.waiting;
    await world.kill();
    const { media_group_id } = Object(telegram.updates.at(-1)?.update.message);
    telegram.say("alice", "", { media: "photo", fields: { media_group_id } });
    await world.start();
    expect(await world.telegramHears("alice")).toBe("re: [photo] trip\n[photo]");
    expect(await world.telegramHears("alice")).toBe("re: [photo]");

    // Three times begun, never ended: quarantined and told, and then the next one is answered.
    const poison = model.hold();
    world.telegramSays("alice", "poison");
    await poison.waiting;
    await telegram.idle();
    await world.kill();
    const inbox = join(world.state, "inbox");
    const [name = ""] = world.inboxFiles();
    const entry = JSON.parse(readFileSync(join(inbox, name), "utf8"));
    expect(entry.attempts).toBe(1);
    writeFileSync(join(inbox, name), JSON.stringify({ ...entry, attempts: 3 }));
    writeFileSync(join(inbox, "000000000900.json"), '{"id":"torn","te');
    for (const [index, content] of ["null", "[]", "7", '"x"', ""].entries()) {
      writeFileSync(join(inbox, `00000000091${index}.json`), content);
    }
    const asked = world.requestsAbout("poison").length;
    await world.telegramSays("alice", "after it");
    const program = await world.start();
    expect(await world.telegramHears("alice")).toMatch(
      wording(section, "I could not answer an earlier message. My owner can have it tried again."),
    );
    expect(await world.telegramHears("alice")).toBe("re: after it");
    expect(world.requestsAbout("poison")).toHaveLength(asked);
    expect(program.text.match(/is quarantined \(renamed to .*\.quarantined\): ./g)).toHaveLength(7);
    await world.inboxDone();
    expect(world.inboxFiles().filter((file) => file.endsWith(".quarantined"))).toHaveLength(7);
  });
});
