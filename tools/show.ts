// What `$ cat workspace/…` and `$ cut -c1-80 workspace/…` print in a recording.
import { readdirSync } from "node:fs";
import { read } from "./sections.ts";

/** `*` stands for anything in a file or folder name; `width` cuts the lines, as `cut -c` does. */
export function show(workspace: string, files: string, width?: number): string {
  const pattern = files.replace(/[^\w/*]/g, "\\$&").replaceAll("*", "[^/]*");
  const names = readdirSync(workspace, { recursive: true, encoding: "utf8" });
  const matching = names
    .map((name) => name.replaceAll("\\", "/"))
    .filter((name) => new RegExp(`^${pattern}$`).test(name))
    .sort();
  if (matching.length === 0) throw new Error(`There is no file ${files} in the workspace.`);
  const texts = matching.map((name) => `${read(workspace, name).trimEnd()}\n`);
  return texts.join("").replace(/.+/g, (line) => line.slice(0, width));
}
