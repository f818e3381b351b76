// npm run diff s02 s03: what changed from one section to the next.
import path from "node:path";
import { parseArgs } from "node:util";
import { codeLines, git, withFiles } from "./code.ts";
import { existingSections, findSection, read, start } from "./sections.ts";

const USAGE = `npm run diff s02 s03                  what s03 adds to s02
npm run diff s03                      the same: without a second one, the section before
npm run diff -- s02 s03 --code        without comments and blank lines
npm run diff -- s02 s03 --lang zh     the Chinese files`;

export function diff(root: string, args: string[]) {
  const options = { code: { type: "boolean" }, lang: { type: "string", default: "en" } } as const;
  const { values, positionals } = parseArgs({ args, options, allowPositionals: true });
  const [one, two] = positionals;
  if (one === undefined || positionals.length > 2) throw new Error(USAGE);
  const first = findSection(root, values.lang, one);
  const existing = existingSections(root, values.lang);
  const before = two === undefined ? existing[existing.indexOf(first) - 1] : first;
  const after = two === undefined ? first : findSection(root, values.lang, two);
  if (before === undefined) throw new Error(`There is no section before ${first}.\n${USAGE}`);
  const folder = path.join(root, `sessions/${values.lang}`);
  const names = [`${before}.ts`, `${after}.ts`];
  // Git prints, with the reader's own colours and pager, if there is a terminal. --minimal is how
  // the kept share is measured, so that both show the same lines.
  const show = (cwd: string) => git(cwd, ["diff", "--no-index", "--minimal", ...names], "inherit");
  if (!values.code) return show(folder);
  const code = (name: string) => `${codeLines(read(folder, name), name).join("\n")}\n`;
  return withFiles(Object.fromEntries(names.map((name) => [name, code(name)])), show);
}

await start(import.meta.filename, diff);
