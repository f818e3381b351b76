import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { carry } from "../tools/carry.ts";
import { english, type Files, put, tree } from "./tools-tree.ts";

const git = (root: string, ...args: string[]) => {
  const who = ["-c", "user.name=Test", "-c", "user.email=test@example.com"];
  execFileSync("git", [...who, "-c", "commit.gpgsign=false", ...args], {
    cwd: root,
    stdio: "pipe",
  });
};

const ONE = "top\na\nb\nc\nd\ne\nf\nend\n";
const TWO = "top\na\nb\nc\nd\ne\nf\ntwo\nx\nend\n";
const THREE = "top\na\nb\nc\nd\ne\nf\ntwo\nx\nthree\nend\n";

/** Three sections in a commit. */
function repository(files: Files = {}): string {
  const chinese = { "sessions/zh/s02_tool_use.ts": TWO, "sessions/ja/s02_tool_use.ts": TWO };
  const sections = { [english(1)]: ONE, [english(2)]: TWO, [english(3)]: THREE };
  const root = tree({ ...sections, ...chinese, ...files });
  git(root, "init", "-q");
  git(root, "add", ".");
  git(root, "commit", "-qm", "three sections");
  return root;
}

const read = (root: string, file: string) => readFileSync(path.join(root, file), "utf8");

describe("carry", () => {
  test("takes an edit through all later sections, and only through those", () => {
    const root = repository();
    put(root, { [english(1)]: ONE.replace("a\n", "A\nA2\n").replace("e\n", "") });
    expect(carry(root, ["s01"])).toEqual([`${english(2)}: changed`, `${english(3)}: changed`]);
    expect(read(root, english(2))).toBe("top\nA\nA2\nb\nc\nd\nf\ntwo\nx\nend\n");
    expect(read(root, english(3))).toBe("top\nA\nA2\nb\nc\nd\nf\ntwo\nx\nthree\nend\n");
    expect(read(root, "sessions/zh/s02_tool_use.ts")).toBe(TWO);
    expect(read(root, "sessions/ja/s02_tool_use.ts")).toBe(TWO);
  });

  test("starts where it is told to", () => {
    const root = repository();
    put(root, { [english(2)]: TWO.replace("two", "TWO") });
    expect(carry(root, ["s02_tool_use"])).toEqual([`${english(3)}: changed`]);
    expect(read(root, english(1))).toBe(ONE);
    expect(read(root, english(3))).toBe(THREE.replace("two", "TWO"));
  });

  test("says so when there is nothing to carry, also the second time", () => {
    const root = repository();
    expect(carry(root, ["s01"])).toEqual([expect.stringMatching(/^Nothing to carry/)]);
    put(root, { [english(1)]: ONE.replace("a\n", "A\n") });
    expect(carry(root, ["s01"])).toHaveLength(2);
    expect(carry(root, ["s01"])).toEqual([expect.stringMatching(/^Nothing to carry/)]);
    expect(carry(root, ["s03"])).toEqual([expect.stringMatching(/^Nothing to carry/)]);
  });

  test("an edit of its own in a later section stays, and goes on with the first", () => {
    const root = repository();
    put(root, { [english(1)]: ONE.replace("a\n", "A\n"), [english(2)]: TWO.replace("two", "TWO") });
    carry(root, ["s01"]);
    expect(read(root, english(2))).toBe(TWO.replace("a\n", "A\n").replace("two", "TWO"));
    expect(read(root, english(3))).toBe(THREE.replace("a\n", "A\n").replace("two", "TWO"));
  });

  test("stops at a conflict, and goes on when it is resolved", () => {
    const two = TWO.replace("c\n", "c of two\n");
    const three = THREE.replace("c\n", "c of two\n");
    const root = repository({ [english(2)]: two, [english(3)]: three });
    put(root, { [english(1)]: ONE.replace("c\n", "C\n").replace("top", "TOP") });

    const message =
      /^sessions\/en\/s02_tool_use\.ts: a conflict at line 4, 8\.[\s\S]*run carry s02$/;
    expect(() => carry(root, ["s01"])).toThrow(message);
    const marked = read(root, english(2));
    expect(marked).toMatch(/<{7} s02\nc of two\n={7}\nC\n>{7} s01 now\n/);
    expect(read(root, english(3))).toBe(three);

    // Going on with the marks still there changes nothing.
    for (const from of ["s01", "s02"]) {
      expect(() => carry(root, [from])).toThrow(/s02_tool_use\.ts:4: a conflict is open/);
    }
    expect(read(root, english(2))).toBe(marked);

    put(root, { [english(2)]: marked.replace(/<{7}[\s\S]*>{7} s01 now\n/, "C of two\n") });
    expect(carry(root, ["s02"])).toEqual([`${english(3)}: changed`]);
    expect(read(root, english(3))).toBe(
      three.replace("c of two", "C of two").replace("top", "TOP"),
    );
  });

  test("--base compares with another commit", () => {
    const root = repository();
    put(root, { [english(1)]: ONE.replace("a\n", "A\n") });
    git(root, "commit", "-qam", "an edit that was not carried");
    expect(carry(root, ["s01"])).toEqual([expect.stringMatching(/^Nothing to carry/)]);
    carry(root, ["s01", "--base", "HEAD~1"]);
    expect(read(root, english(3))).toBe(THREE.replace("a\n", "A\n"));
  });

  test("a conflict with --base names it for going on", () => {
    const root = repository({ [english(2)]: TWO.replace("c\n", "c of two\n") });
    put(root, { [english(1)]: ONE.replace("c\n", "C\n") });
    git(root, "commit", "-qam", "an edit");
    expect(() => carry(root, ["s01", "--base", "HEAD~1"])).toThrow(
      /npm run carry -- s02 --base HEAD~1$/,
    );
  });

  test("a section that was never committed has no base: nothing is written", () => {
    const root = repository();
    put(root, { [english(1)]: "new\n", [english(4)]: THREE, [english(5)]: THREE });
    expect(() => carry(root, ["s01"])).toThrow(/s04_channels\.ts is not in HEAD/);
    expect(read(root, english(2))).toBe(TWO);
  });

  test("the last section needs no base", () => {
    const root = repository();
    put(root, { [english(1)]: ONE.replace("a\n", "A\n"), [english(4)]: THREE });
    carry(root, ["s01"]);
    expect(read(root, english(4))).toBe(THREE.replace("a\n", "A\n"));
  });

  test("an unknown section names those that there are", () => {
    const root = repository();
    expect(() => carry(root, ["s07"])).toThrow(/no section "s07".*s01_agent_loop, s02_tool_use/);
    expect(() => carry(root, [])).toThrow(/npm run carry s01/);
  });
});
