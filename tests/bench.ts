/**
 * `npm run bench -- memory`: how well the memory of the newest section finds things, and how fast.
 * `npm run bench -- idle`: what a delivery and a lane cost beside ten thousand that are idle.
 * `npm run bench -- peers`: what the parts cost beside what a reader would use instead.
 */

import { parseArgs } from "node:util";
import { start } from "../tools/sections.ts";
import { askAll, evalSet, missesOf, recallTable } from "./bench/evaluation.ts";
import { besideIdle } from "./bench/idle.ts";
import { peers } from "./bench/peers.ts";
import { timeTable } from "./bench/search-time.ts";

const HELP = `npm run bench -- memory            recall, and search time at 5,000 entries
npm run bench -- memory --misses   and each question whose fact is not among the first three
npm run bench -- memory --digest   only what was found, as one number: no times
npm run bench -- idle              a delivery and a lane, beside 10,000 that are idle
npm run bench -- peers             a table: each part beside what one would use instead`;

async function memory(showMisses: boolean, onlyDigest: boolean): Promise<void> {
  const { section, answers, digest } = await askAll();
  if (onlyDigest) return console.log(digest);
  const { facts, questions } = evalSet();
  console.log(
    `${section}: ${facts.length} facts in one conversation, ${questions.length} questions`,
  );
  console.log("recall: how many questions had their fact first (@1), among the first three (@3)\n");
  console.log(recallTable(answers));
  console.log(`\nWhat was found, in every process and when opened again: ${digest}\n`);
  if (showMisses) console.log(`${missesOf(answers)}\n`);
  console.log(await timeTable());
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      misses: { type: "boolean", default: false },
      digest: { type: "boolean", default: false },
    },
  });
  if (positionals.join() === "idle") return besideIdle();
  if (positionals.join() === "peers") return peers();
  if (positionals.join() !== "memory") throw new Error(HELP);
  await memory(values.misses, values.digest);
}

await start(import.meta.filename, main);
