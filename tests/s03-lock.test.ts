/**
 * The lock, by processes that start at one moment: whatever lies there, one of them has the folder,
 * and each other one says in one sentence who. By hand: LOCK_ROUNDS=500 npx vitest run s03-lock
 */

import { type ChildProcess, fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { englishFrom, SEVERAL, settings, start, temporaryFolder, withoutTypes } from "./helper.ts";

const ROUNDS = Number(process.env.LOCK_ROUNDS) || 20;

/** Takes the lock of one folder after the other, each at the moment that it is told. */
const STARTER = `
  const { lockFolder } = await import(process.argv[2]);
  process.setMaxListeners(0);
  process.stdout.write = () => true; // what it quarantines is not looked at here
  process.on("message", ({ dir, at }) => {
    while (Date.now() < at); // sharper than a timer
    try {
      lockFolder(dir);
      process.send("");
    } catch (error) {
      process.send(error.message);
    }
  });
  process.send("ready");
`;

const ended = spawnSync(process.execPath, ["-e", ""]); // a process that was, and is no more
const old = Date.now() / 1000 - 60;

/** What an earlier process may have left in the folder. */
const LEFT: [string, (dir: string) => void][] = [
  ["a dead one's lock", (dir) => fs.writeFileSync(path.join(dir, "lock"), `${ended.pid} 123`)],
  ["the pid of another program", (dir) => fs.writeFileSync(path.join(dir, "lock"), "1 123")],
  ["nothing", () => {}],
  ["an empty lock", (dir) => fs.writeFileSync(path.join(dir, "lock"), "")],
  ["a folder", (dir) => fs.mkdirSync(path.join(dir, "lock/folder"), { recursive: true })],
  ["a broken link", (dir) => fs.symlinkSync("nowhere", path.join(dir, "lock"))],
  [
    "a crash during the takeover",
    (dir) => {
      fs.writeFileSync(path.join(dir, "lock"), `${ended.pid} 123`);
      fs.writeFileSync(path.join(dir, "lock.takeover.1"), "");
      fs.utimesSync(path.join(dir, "lock.takeover.1"), old, old);
    },
  ],
];

describe.each(englishFrom("s03"))("$name", SEVERAL, (section) => {
  let starters: ChildProcess[] = [];
  let folder = "";

  beforeAll(async () => {
    folder = fs.mkdtempSync(path.join(tmpdir(), "claw0-lock-"));
    const script = path.join(folder, "starter.mjs");
    fs.writeFileSync(script, STARTER);
    const env = { ...process.env, ...settings(undefined, { CLAW0_WORKSPACE: "/nowhere" }) };
    starters = [1, 2, 3].map(() => fork(script, [withoutTypes(section.file)], { env }));
    await Promise.all(starters.map((starter) => once(starter, "message")));
  }, SEVERAL.timeout);

  afterAll(() => {
    for (const starter of starters) starter.kill("SIGKILL");
    fs.rmSync(folder, { recursive: true });
  });

  it(
    "three at one moment: one has it, and the others say who",
    async () => {
      for (let round = 0; round < ROUNDS; round++) {
        const dir = temporaryFolder();
        const [what, leave] = LEFT[round % LEFT.length] ?? ["", () => {}];
        leave(dir);
        const at = Date.now() + 5;
        const answers = await Promise.all(
          starters.map(async (starter) => {
            starter.send({ dir, at });
            const [answer] = await once(starter, "message");
            return { pid: starter.pid, answer: String(answer) };
          }),
        );
        const holders = answers.filter(({ answer }) => answer === "");
        expect(holders, `round ${round}, ${what}`).toHaveLength(1);
        const holder = holders[0]?.pid;
        expect(fs.readFileSync(path.join(dir, "lock"), "utf8")).toMatch(
          new RegExp(`^${holder} \\S`),
        );
        for (const { answer } of answers) {
          if (answer) expect(answer).toMatch(new RegExp(`^process ${holder} is using [^\\n]+$`));
        }
        expect(fs.readdirSync(dir)).not.toContain("lock.takeover.2");
      }
    },
    SEVERAL.timeout + 100 * ROUNDS,
  );

  it.skipIf(process.platform === "win32")("that is lost while it is stopped ends it", async () => {
    const workspace = temporaryFolder();
    const lock = path.join(workspace, ".state/lock");
    const program = start(section, settings(undefined, { CLAW0_WORKSPACE: workspace }));
    await program.prompt();
    program.kill("SIGSTOP");
    program.kill("SIGCONT");
    expect(await program.ask("/help")).toContain("/new"); // it is its own: it goes on
    program.kill("SIGSTOP");
    fs.writeFileSync(lock, "12345 678");
    program.kill("SIGCONT");
    const { code, text } = await program.end();
    expect(code).toBe(1);
    expect(text).toContain(path.join(workspace, ".state"));
    expect(fs.readFileSync(lock, "utf8")).toBe("12345 678");
  });
});
