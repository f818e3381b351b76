/** The copy of the workspace in which practice works, so that the original stays as it is. */

import { cpSync, existsSync, mkdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { ROOT } from "./world.ts";

/** Makes the copy if there is none; `fresh` makes it again. */
export function copyWorkspace(fresh: boolean): void {
  const from = join(ROOT, "workspace");
  const copy = join(ROOT, ".practice", "workspace");
  if (fresh) rmSync(copy, { recursive: true, force: true });
  if (existsSync(copy)) return;
  mkdirSync(copy, { recursive: true });
  if (!existsSync(from)) return;
  cpSync(from, copy, { recursive: true, filter: (path) => basename(path) !== ".state" });
}
