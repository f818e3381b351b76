/**
 * `npm run torture -- [--kills 200] [--seed 1]`: the case of s10-torture.test.ts with many kills.
 * It is a test like all others, so that it has their helper and their check of each request.
 */

import { spawn } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: { kills: { type: "string", default: "200" }, seed: { type: "string", default: "1" } },
});

const root = join(import.meta.dirname, "..");
const vitest = join(root, "node_modules/vitest/vitest.mjs");
const words = ["run", "tests/s10-torture.test.ts", "--reporter=dot"];
const env = { ...process.env, TORTURE_KILLS: values.kills, TORTURE_SEED: values.seed };
const child = spawn(process.execPath, [vitest, ...words], { cwd: root, env, stdio: "inherit" });
child.once("close", (code) => {
  process.exitCode = code ?? 1;
});
