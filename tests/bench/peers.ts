/**
 * `npm run bench -- peers`: what the newest section costs beside what a reader would use instead.
 * Each ratio is of two medians that were measured by turns in one run. 1 is as fast, 0.5 half.
 */

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus } from "node:os";
import path from "node:path";
import { laneRow, queueRow } from "./lane-peers.ts";
import { memoryRow } from "./memory-peer.ts";
import { gatewayRow, replyRow, startRow } from "./network-peers.ts";
import type { Row } from "./time.ts";
import { writeRows } from "./write-peers.ts";

const ROOT = path.join(import.meta.dirname, "../..");
const PACKAGES = ["ws", "p-queue", "minisearch", "@anthropic-ai/sdk"];

function versionOf(name: string): string {
  const file = path.join(ROOT, "node_modules", name, "package.json");
  return JSON.parse(readFileSync(file, "utf8")).version;
}

function line({ what, ours, peer, theirs }: Row): string {
  const cells = [ours.toFixed(3), theirs.toFixed(3), (theirs / ours).toFixed(2)];
  return `| ${[what, peer, ...cells].join(" | ")} |`;
}

/** Prints the table as Markdown, because docs/architecture.md has it. */
export async function peers(): Promise<void> {
  const folder = mkdtempSync(path.join(ROOT, ".bench-")); // on the disk, which /tmp may not be
  try {
    const versions = PACKAGES.map((name) => `${name} ${versionOf(name)}`).join(", ");
    const day = new Date().toISOString().slice(0, 10);
    console.log(`${day}, Node ${process.versions.node}, ${versions}; ${cpus().length} CPUs\n`);
    console.log("| what | beside | ms | ms beside | ratio |");
    console.log("|---|---|---|---|---|");
    for (const clients of [1, 32]) console.log(line(await gatewayRow(clients, folder)));
    console.log(line(await laneRow()));
    console.log(line(await queueRow()));
    for (const row of await writeRows(folder)) console.log(line(row));
    for (const count of [1_000, 5_000, 20_000]) console.log(line(await memoryRow(count)));
    console.log(line(await startRow()));
    console.log(line(await replyRow()));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
