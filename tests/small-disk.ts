/**
 * A state folder whose parts can become full, and have space again, while a section runs.
 *
 * Where the machine allows it, each part is a file system of 1 MB (tmpfs) in a mount namespace of
 * its own, which nobody else sees and which goes with its last process. Elsewhere the parts become
 * folders in which nothing can be written; since that does not stop root, the section then runs as
 * another user.
 */

import { execFileSync, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import type { StartOptions } from "./helper.ts";
import { afterwards } from "./world.ts";

/** The parts of `.state`. The last one has the files that lie in it directly, such as cron.json. */
export const PARTS = ["sessions", "inbox", "delivery", "memory", "."];

export interface SmallDisk {
  /** How a section has to be started, so that it uses this disk. */
  start: StartOptions;
  /** Where this process finds a file of the section. */
  path(file: string): string;
  fill(part: string): void;
  free(part: string): void;
}

const [asRoot, asUser] = [["-m"], ["-r", "-m"]]; // how `unshare` is told to make a namespace
const NOBODY = 65_534;

const canMount = (how: string[]) =>
  process.platform === "linux" &&
  spawnSync("unshare", [...how, "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0;

/** The ways that this machine allows, the last of which is always there. */
export function waysToFill(
  megabytes = 1,
): { way: string; open(state: string): Promise<SmallDisk> }[] {
  const how = [asRoot, asUser].find(canMount);
  const folders = {
    way: "folders that can't be written",
    open: async (state: string) => closed(state),
  };
  if (!how) return [folders];
  return [
    { way: `a file system of ${megabytes} MB`, open: (state) => mounted(state, how, megabytes) },
    folders,
  ];
}

// ---- A file system ----

async function mounted(state: string, how: string[], megabytes: number): Promise<SmallDisk> {
  // The outer one first, because it would hide the others.
  const folders = PARTS.toReversed().map((part) => join(state, part));
  const options = `size=${megabytes}m,mode=700`;
  const mount = `mkdir -p "$d" && mount -t tmpfs -o ${options} none "$d"`;
  const script = `set -e; for d; do ${mount}; done; echo ready; exec cat`;
  const holder = spawn("unshare", [...how, "sh", "-c", script, "sh", ...folders]);
  afterwards(() => holder.kill("SIGKILL"));
  await new Promise((resolve) => holder.stdout.once("data", resolve));
  const user = how === asUser ? ["-U", "--preserve-credentials"] : [];
  const path = (file: string) => join(`/proc/${holder.pid}/root`, file);
  const filler = (part: string) => path(join(state, part, "filler"));
  return {
    start: { wrapper: ["nsenter", "-t", String(holder.pid), "-m", ...user] },
    path,
    fill: (part) => fillUp(filler(part)),
    free: (part) => rmSync(filler(part), { force: true }),
  };
}

/** Writes until there is no space. A file that exists may have some left in its last block. */
function fillUp(file: string): void {
  const handle = openSync(file, "w");
  try {
    for (let size = 65_536; size > 0; size >>= 1) {
      while (isWritten(handle, size));
    }
  } finally {
    closeSync(handle);
  }
}

function isWritten(handle: number, size: number): boolean {
  try {
    return writeSync(handle, Buffer.alloc(size)) === size;
  } catch {
    return false; // full, for a piece of this size
  }
}

// ---- Folders that can't be written ----

function changeFile(file: string, mode: number): void {
  try {
    chmodSync(file, mode);
  } catch {
    // The program has removed it meanwhile.
  }
}

function closed(state: string): SmallDisk {
  const isRoot = process.getuid?.() === 0;
  const uid = isRoot ? NOBODY : undefined;
  mkdirSync(state, { recursive: true, mode: 0o700 });
  if (uid) execFileSync("chown", ["-R", String(uid), join(state, "..")]);
  const namesIn = (part: string) => {
    const folder = join(state, part);
    if (!existsSync(folder)) mkdirSync(folder);
    if (uid) chownSync(folder, uid, uid);
    const names = readdirSync(folder, { recursive: part !== "." }).map(String);
    return [folder, ...names.map((name) => join(folder, name))];
  };
  const change = (part: string, folderMode: number, fileMode: number) => {
    for (const name of namesIn(part)) {
      // The program may have removed it meanwhile.
      const isFolder = statSync(name, { throwIfNoEntry: false })?.isDirectory();
      // Of the outermost folder only its own files are meant: the parts inside it are others.
      if (isFolder && part === "." && name !== join(state, ".")) continue;
      if (isFolder) chmodSync(name, folderMode);
      else changeFile(name, fileMode);
    }
  };
  afterwards(() => PARTS.map((part) => change(part, 0o700, 0o600))); // so that all can be removed
  return {
    start: { uid },
    path: (file) => file,
    fill: (part) => change(part, 0o500, 0o400),
    free: (part) => change(part, 0o700, 0o600),
  };
}
