/**
 * The file of the practice world says where the running world is: `.practice/world-3.json` for the
 * third world of this checkout.
 *
 * It is the lock as well, so that two starters at the same moment get the same world. A world that
 * was killed leaves its file behind, and its successor takes the next number. It never removes the
 * old file first: of two successors, the second could remove the new file of the first.
 */

import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

export interface WorldFile {
  /** Tells this world from another one that has its port later. */
  id: string;
  pid: number;
  /** Where the world takes commands. */
  url: string;
}

const folderOf = (root: string): string => join(root, ".practice");
const pathOf = (root: string, number: number): string =>
  join(folderOf(root), `world-${number}.json`);

/** The numbers of the world files, the newest first. */
function numbersIn(root: string): number[] {
  let names: string[] = [];
  try {
    names = readdirSync(folderOf(root));
  } catch {
    // There was no world here yet.
  }
  const numbers = names.flatMap((name) => /^world-(\d+)\.json$/.exec(name)?.[1] ?? []);
  return numbers.map(Number).sort((a, b) => b - a);
}

/** The newest world file with its number, which is 0 if there is none that can be read. */
export function readWorldFile(root: string): { number: number; file?: WorldFile } {
  const [number = 0] = numbersIn(root);
  try {
    return { number, file: JSON.parse(readFileSync(pathOf(root, number), "utf8")) };
  } catch {
    return { number };
  }
}

/**
 * Writes the file of a new world after world `before`, which is gone. Gives false if another world
 * was faster.
 */
export function claimWorldFile(root: string, before: number, file: WorldFile): boolean {
  const path = pathOf(root, before + 1);
  const draft = join(folderOf(root), `world.${file.id}.draft`);
  // Not with its parents: of a checkout that is gone, nothing should come back.
  if (!existsSync(folderOf(root))) mkdirSync(folderOf(root));
  // Only the user may read the file. A link fails if its name is taken, and shows a whole file.
  writeFileSync(draft, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600 });
  try {
    linkSync(draft, path);
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST") return false;
    throw error;
  } finally {
    rmSync(draft, { force: true });
  }
  const numbers = numbersIn(root);
  // Whoever read the folder a long time ago may have taken a number that was used and removed.
  const isNewest = numbers[0] === before + 1;
  const surplus = isNewest ? numbers.slice(1) : [before + 1];
  for (const number of surplus) rmSync(pathOf(root, number), { force: true });
  return isNewest;
}
