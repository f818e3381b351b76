/** Ten kills at random moments; `npm run torture` makes it a hundred. */

import { describe, expect, it } from "vitest";
import { englishFrom } from "./helper.ts";
import { torture } from "./torture.ts";

// It has all that came before, so the newest one is enough.
describe.each(englishFrom("s05").slice(-1))("$name", ({ id }) => {
  it("loses nothing, says hardly anything twice, and mixes up nothing", async () => {
    const { figures, violations } = await torture({ kills: 10, seed: 7, section: id });
    expect(violations).toEqual([]);
    expect(figures["messages on Telegram and Feishu"]).toBeGreaterThan(10);
    expect(figures["kills with something open"]).toBeGreaterThan(0);
  }, 180_000);
});
