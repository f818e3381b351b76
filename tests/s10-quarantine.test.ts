/** The torture of s10 lost a message this way: a later quarantined file overwrote an earlier one. */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { englishFrom, temporaryFolder } from "./helper.ts";
import { inbound, load04 } from "./world.ts";

it.each(englishFrom("s04"))(
  "$name: a quarantined message stays, whatever is quarantined later",
  async (section) => {
    const { Inbox } = await load04(section);
    const folder = temporaryFolder();
    for (const text of ["one", "two"]) {
      const message = inbound({ text });
      new Inbox(folder).add(message); // a life of its own each time
      for (let life = 0; life < 3; life++) new Inbox(folder).countAttempt([message]);
      new Inbox(folder);
    }
    const names = readdirSync(folder).filter((name) => name.endsWith(".quarantined"));
    const texts = names.map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")).text);
    expect(texts.sort()).toEqual(["one", "two"]);
  },
);
