/**
 * Five kills at random moments, under all the traffic there is. `npm run torture` runs this case
 * with two hundred, by the two variables below.
 */

import { describe, expect, it } from "vitest";
import { englishFrom } from "./helper.ts";
import { torture } from "./traffic.ts";

const { TORTURE_KILLS = "5", TORTURE_SEED = "7" } = process.env;
const kills = Number(TORTURE_KILLS);

describe.each(englishFrom("s10"))("$name", (section) => {
  it(
    "loses nothing, says hardly anything twice, and mixes up nothing",
    async () => {
      const from = Date.now();
      const tell = (line: string) => process.env.TORTURE_KILLS && console.log(line);
      const seed = Number(TORTURE_SEED);
      const { figures, violations } = await torture({ section, kills, seed, tell });
      const rows = { ...figures, seconds: Math.round((Date.now() - from) / 1000) };
      const table = Object.entries(rows).map(([name, figure]) => {
        return `${name.padEnd(40)} ${String(figure).padStart(6)}`;
      });
      tell([...table, ...violations].join("\n"));
      expect(violations).toEqual([]);
      expect(figures["messages on Telegram and Feishu"]).toBeGreaterThan(kills);
      expect(figures["kills with something open"]).toBeGreaterThan(0);
      expect(figures["runs of jobs"]).toBeGreaterThan(2);
    },
    600_000 + kills * 10_000,
  );
});
