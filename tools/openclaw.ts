// npm run openclaw: are the paths, names and constants that our lessons cite really in the OpenClaw
// release that we point to? tools/openclaw.json lists them. The published bundle keeps a marker for
// each source file, "//#region <path>" to "//#endregion": that is where we look.

import { execFileSync, execSync } from "node:child_process";
import * as fs from "node:fs";
import { join } from "node:path";
import { isMain, ROOT, read } from "./sections.ts";

export interface Reference {
  path: string;
  /** A name, or `NAME=value` for a constant or a property. */
  symbols: string[];
  /** Another package than the file's, for example one of a plugin. */
  package?: string;
}
export interface References {
  package: string;
  references: Reference[];
}

const CACHE = join(ROOT, ".openclaw");

/** The text of each wanted source file, gathered from the scripts of an unpacked package. */
export function regions(packageDir: string, wanted: Set<string>): Map<string, string> {
  const found = new Map<string, string>();
  for (const name of fs.readdirSync(packageDir, { recursive: true, encoding: "utf8" })) {
    if (!/\.[cm]?js$/.test(name)) continue;
    const text = fs.readFileSync(join(packageDir, name), "utf8");
    for (const [, path = "", body = ""] of text.matchAll(
      /^\/\/#region (.+?)\r?\n([\s\S]*?)^\/\/#endregion/gm,
    )) {
      // A file may be in several bundles, each with the part that it needs.
      if (wanted.has(path)) found.set(path, `${found.get(path) ?? ""}${body}\n`);
    }
  }
  return found;
}

/** Is the name, or the name with this value, in the text? `3e5` and `300000` are the same value. */
export function hasSymbol(text: string, symbol: string): boolean {
  const [, name = symbol, value] = /^([^=]+)=(.*)$/.exec(symbol) ?? [];
  // The bundler calls the second of two equal names `name$1`.
  const word = `(?<![\\w$])${name.replace(/[^\w]/g, "\\$&")}(\\$\\d+)?(?![\\w$])`;
  if (value === undefined) return new RegExp(word).test(text);
  // A constant, a property, or what a property is compared with.
  const written = text.matchAll(
    new RegExp(`${word}"?\\s*(?:===|[=:])\\s*("[^"]*"|[^\\s,;})]+)`, "g"),
  );
  return [...written].some(([, , found = ""]) => plain(found) === plain(value));
}

function plain(value: string): string {
  const bare = value.replace(/^["'`]|["'`]$/g, "");
  const number = Number(bare.replaceAll("_", ""));
  return bare !== "" && Number.isFinite(number) ? String(number) : bare;
}

/** What is listed and not there, one line each. */
export function missing(references: Reference[], packageDir: string): string[] {
  const texts = regions(packageDir, new Set(references.map((reference) => reference.path)));
  return references.flatMap(({ path, symbols }) => {
    const text = texts.get(path);
    if (text === undefined) return [`${path}: no such file in the bundle`];
    const lost = symbols.filter((symbol) => !hasSymbol(text, symbol));
    return lost.map((symbol) => `${path}: ${symbol} is not in it`);
  });
}

/** Downloads and unpacks a package once; gives the folder. */
function unpacked(spec: string): string {
  if (!/^(@[\w.-]+\/)?[\w.-]+@\d[\w.-]*$/.test(spec)) {
    throw new Error(`tools/openclaw.json: "${spec}" must be a name and an exact version`);
  }
  const name = spec.replace(/^@/, "").replace(/[/@]/g, "-");
  const target = join(CACHE, name);
  if (fs.existsSync(target)) return join(target, "package");

  fs.rmSync(`${target}.partial`, { recursive: true, force: true });
  fs.mkdirSync(`${target}.partial`, { recursive: true });
  console.log(`Downloading ${spec} …`);
  // npm is a .cmd file on Windows, which only a shell starts. The name was checked above.
  execSync(`npm pack ${spec} --silent`, { cwd: CACHE, stdio: ["ignore", "ignore", "inherit"] });
  // Relative paths: to GNU tar, the C: of a Windows path would be another computer.
  execFileSync("tar", ["-xzf", `${name}.tgz`, "-C", `${name}.partial`], { cwd: CACHE });
  fs.renameSync(`${target}.partial`, target);
  fs.rmSync(join(CACHE, `${name}.tgz`));
  return join(target, "package");
}

function main(): void {
  const list: References = JSON.parse(read(ROOT, "tools/openclaw.json"));
  const packageOf = (one: Reference) => one.package ?? list.package;
  const lost = [...new Set(list.references.map(packageOf))].flatMap((spec) => {
    const wanted = list.references.filter((one) => packageOf(one) === spec);
    return missing(wanted, unpacked(spec)).map((line) => `${spec} ${line}`);
  });
  for (const line of lost) console.error(line);
  const symbols = list.references.reduce((sum, reference) => sum + reference.symbols.length, 0);
  console.log(`${list.references.length} files, ${symbols} symbols, ${lost.length} missing.`);
  process.exitCode = lost.length > 0 ? 1 : 0;
}

if (isMain(import.meta.filename)) main();
