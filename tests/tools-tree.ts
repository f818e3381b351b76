// Small trees of files in a temporary folder, for the tests of the tools.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { onTestFinished } from "vitest";
import { SECTIONS } from "../tools/sections.ts";

export type Files = Record<string, string>;

export function put(root: string, files: Files): void {
  for (const [file, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(root, file)), { recursive: true });
    writeFileSync(path.join(root, file), text);
  }
}

/** A folder with these files, which is gone when the test is. */
export function tree(files: Files): string {
  const root = mkdtempSync(path.join(tmpdir(), "claw0-tools-"));
  onTestFinished(() => rmSync(root, { recursive: true, force: true }));
  put(root, files);
  return root;
}

export const english = (n: number) => `sessions/en/${SECTIONS[n - 1]}.ts`;

/** Four code lines and one comment line for each region: 20%, as it should be. */
export const region = (n: number) =>
  `// ---- s${String(n).padStart(2, "0")} · Part ${n} ----\n` +
  ["a", "b", "c", "d"].map((letter) => `export const ${letter}${n} = ${n};\n`).join("");

/** The first `count` sections, without a fault. */
export function goodSections(count: number): Files {
  const files: Files = {};
  let source = "";
  for (let n = 1; n <= count; n++) {
    source += region(n);
    files[english(n)] = source;
  }
  return files;
}
