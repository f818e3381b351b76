/**
 * What lies in .state and isn't ours: whatever stands in the place of a file or a folder, the program
 * starts, names it, keeps it, and goes on. And what a disk does that is full, or fails.
 */

import { fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import {
  englishFrom,
  load,
  printed,
  type SectionFile,
  settings,
  temporaryFolder,
  withoutTypes,
} from "./helper.ts";

const KEY = "agent:luna:cli:direct:owner";
const user = (text: string) => ({
  role: "user" as const,
  content: [{ type: "text" as const, text }],
});

/** A folder with the state of an earlier run: two sessions, the first of which is the current one. */
async function open(section: SectionFile) {
  const module = await load("s03", section, settings());
  const state = path.join(temporaryFolder(), ".state");
  const sessions = path.join(state, "sessions");
  const earlier = new module.SessionStore(sessions);
  const first = earlier.create(KEY, "first");
  first.append(user("one"));
  earlier.create(KEY, "second").append(user("two"));
  earlier.switch(KEY, first.id);
  fs.writeFileSync(path.join(state, "lock"), "1 123");
  const folder = path.join(sessions, fs.readdirSync(sessions)[0] ?? "");
  const paths = {
    sessions,
    "the folder of a key": folder,
    current: path.join(folder, "current"),
    "a session": path.join(folder, `${first.id}.jsonl`),
    lock: path.join(state, "lock"),
  };
  /** What the program does with its state: starts, shows the list, and stores two messages. */
  const use = () => {
    module.lockFolder(state);
    const store = new module.SessionStore(sessions);
    store.current(KEY).append(user("three"));
    store.list(KEY);
    store.create(KEY, "third").append(user("four"));
    const again = new module.SessionStore(sessions);
    expect(again.current(KEY).messages).toEqual([user("four")]);
    expect(fs.readFileSync(path.join(state, "lock"), "utf8")).toMatch(`${process.pid} `);
  };
  return { ...module, state, sessions, folder, first, paths, use };
}

type Name = keyof Awaited<ReturnType<typeof open>>["paths"];
const FOLDERS: Name[] = ["sessions", "the folder of a key"];
const FILES: Name[] = ["current", "a session", "lock"];

const WRONG: [string, (file: string) => void][] = [
  ["a folder", (file) => fs.mkdirSync(path.join(file, "in it"), { recursive: true })],
  ["a broken link", (file) => fs.symlinkSync("nowhere", file)],
  ["a link to itself", (file) => fs.symlinkSync(path.basename(file), file)],
  ["[]", (file) => fs.writeFileSync(file, "[]")],
  ["null", (file) => fs.writeFileSync(file, "null")],
  ["nothing", (file) => fs.writeFileSync(file, "")],
  ["another shape", (file) => fs.writeFileSync(file, '{"v":9,"message":{"role":"x"}}\n')],
  ["50 MB of zeros", (file) => fs.writeFileSync(file, Buffer.alloc(50e6))],
  ["thousands of lines", (file) => fs.writeFileSync(file, "what is this?\n".repeat(1e4))],
  ["bytes", (file) => fs.writeFileSync(file, Buffer.from([0xff, 0xfe, 0, 0xc3]))],
];

describe.each(englishFrom("s03"))("$name", (section) => {
  const cases = [...FOLDERS, ...FILES].flatMap((name) =>
    WRONG.filter(([what]) => FILES.includes(name) || what !== "a folder").map(
      ([what, put]) => [name, what, put] as const,
    ),
  );

  it.each(cases)(
    "%s that is %s is named and kept, and the program goes on",
    async (name, _what, put) => {
      const { paths, use } = await open(section);
      const file = paths[name];
      fs.rmSync(file, { recursive: true });
      put(file);
      const before = fs.lstatSync(file);
      use();
      expect(printed()).toContain(file);
      // A log keeps what it can't read; everything else is renamed.
      const names = fs
        .readdirSync(path.dirname(file))
        .filter((one) => one.startsWith(path.basename(file)));
      const kept = names.map((one) => fs.lstatSync(path.join(path.dirname(file), one)));
      expect(kept.map(({ ino }) => ino)).toContain(before.ino);
      expect(printed().length).toBeLessThan(3000);
      // The second start has nothing to say about what was renamed.
      const said = printed().length;
      use();
      const news = printed().slice(said);
      if (name !== "a session") expect(news).not.toContain("quarantined");
    },
  );

  it("names with 22 digits do no harm", async () => {
    const { state, sessions, folder, use } = await open(section);
    const digits = "1234567890123456789012";
    fs.mkdirSync(path.join(sessions, digits));
    fs.mkdirSync(path.join(folder, `${digits}.jsonl`));
    fs.writeFileSync(path.join(folder, `${digits}3.jsonl`), "[]");
    fs.writeFileSync(path.join(state, digits), "");
    fs.writeFileSync(path.join(folder, "current"), digits);
    use();
    expect(printed()).toContain(`${digits}.jsonl is quarantined`);
  });

  // The child must be able to become somebody else.
  it.runIf(process.getuid?.() === 0)("what is unreadable is quarantined, too", async () => {
    const { state, paths } = await open(section);
    const folder = path.dirname(state);
    const script = path.join(folder, "child.mjs");
    fs.writeFileSync(script, CHILD);
    fs.chmodSync(folder, 0o755);
    for (const one of ["", ...fs.readdirSync(folder, { recursive: true, encoding: "utf8" })]) {
      fs.chownSync(path.join(folder, one), NOBODY, NOBODY);
    }
    const files = [...FILES, ...FOLDERS.toReversed()].map((name) => paths[name]);
    const words = [withoutTypes(section.file), state, ...files];
    const env = { ...process.env, ...settings() };
    const child = fork(script, words, { env, silent: true });
    let text = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding("utf8").on("data", (piece) => {
        text += piece;
      });
    }
    const [code] = await once(child, "close");
    expect(code, text).toBe(0);
    for (const file of files) expect(text).toContain(`${file} is quarantined`);
    expect(text.match(/goes on with \d messages/g)).toHaveLength(files.length);
  });

  it.each([
    ["a message without content", { message: { role: "user" } }],
    ["a message of a wrong role", { message: { role: "system", content: [] } }],
    ["a message that is none", { message: 5 }],
    ["content that is a text", { message: { role: "user", content: "hi" } }],
    ["blocks that are none", { message: { role: "user", content: [null] } }],
    ["blocks that are texts", { message: { role: "assistant", content: ["hi"] } }],
    ["a compaction without a summary", { compaction: { keepFrom: 3 } }],
    ["a compaction that keeps nobody knows what", { compaction: { summary: "s", keepFrom: "x" } }],
    ["a compaction that is none", { compaction: "s" }],
    ["ids that are none", { shorten: { toolUseIds: 5 } }],
    ["a shortening that is none", { shorten: 1 }],
  ])("a line with %s is named by its number and skipped", async (_what, record) => {
    const { SessionStore, sessions, first, paths, toRequest } = await open(section);
    fs.appendFileSync(paths["a session"], `${JSON.stringify(record)}\n`);
    const session = new SessionStore(sessions).current(KEY);
    expect(session.id).toBe(first.id);
    expect(session.messages).toEqual([user("one")]);
    expect(printed()).toContain(`${paths["a session"]}, line 3:`);
    session.append(user("two"));
    expect(new SessionStore(sessions).current(KEY).messages).toEqual([user("one"), user("two")]);
    expect(toRequest(session.messages)).toHaveLength(1);
  });

  it("whose a session is, is known from its folder, also without its first line", async () => {
    const { SessionStore, sessions, paths } = await open(section);
    const other = "agent:luna:telegram:direct:1";
    new SessionStore(sessions).create(other).append(user("mine"));
    const rest = fs.readFileSync(paths["a session"], "utf8").split("\n").slice(1).join("\n");
    for (const line of ['{"v":1,"id":"668', "", "null", `{"key":"${other}","label":5,"at":{}}`]) {
      fs.writeFileSync(paths["a session"], `${line}\n${rest}`);
      const session = new SessionStore(sessions).current(KEY);
      expect(session.key).toBe(KEY);
      expect(session.messages).toEqual([user("one")]);
      expect(new SessionStore(sessions).list(KEY).map(({ key }) => key)).toEqual([KEY, KEY]);
    }
  });

  describe("the disk", () => {
    /** Notes what is flushed, by path, and when something is written. */
    function watch(): string[] {
      const steps: string[] = [];
      const paths = new Map<number, string>();
      const opened = fs.openSync;
      vi.spyOn(fs, "openSync").mockImplementation((file, ...rest) => {
        const number = opened(file, ...rest);
        paths.set(number, String(file));
        return number;
      });
      const write = fs.appendFileSync;
      vi.spyOn(fs, "appendFileSync").mockImplementation((file, ...rest) => {
        steps.push(`write ${paths.get(Number(file))}`);
        write(file, ...rest);
      });
      const flush = fs.fsyncSync;
      vi.spyOn(fs, "fsyncSync").mockImplementation((number) => {
        steps.push(`flush ${paths.get(number)}`);
        flush(number);
      });
      return steps;
    }

    it("has each line, each new file and each new folder before the next step", async () => {
      const { SessionStore, sessions, folder, paths, first } = await open(section);
      const steps = watch();
      const store = new SessionStore(sessions);
      store.current(KEY).append(user("two"));
      const file = paths["a session"];
      expect(steps).toEqual([`write ${file}`, `flush ${file}`]);
      steps.splice(0);
      const { id } = store.create(KEY);
      const made = path.join(folder, `${id}.jsonl`);
      expect(steps.slice(0, 3)).toEqual([`write ${made}`, `flush ${made}`, `flush ${folder}`]);
      steps.splice(0);
      store.create("agent:luna:cli:direct:new");
      expect(steps).toContain(`flush ${sessions}`);
      expect(first.id).not.toBe(id);
    });

    it.each(["half of a line is written", "a line can't be flushed"])(
      "is full, %s: memory and disk agree, and what comes next is whole",
      async (how) => {
        const { SessionStore, sessions, paths } = await open(section);
        const file = paths["a session"];
        const session = new SessionStore(sessions).current(KEY);
        const full = Object.assign(new Error("ENOSPC: no space left"), { code: "ENOSPC" });
        const write = fs.appendFileSync;
        for (let i = 0; i < 3; i++) {
          if (how.startsWith("half")) {
            vi.spyOn(fs, "appendFileSync").mockImplementationOnce((target, data) => {
              write(target, String(data).slice(0, 20));
              throw full;
            });
          } else {
            vi.spyOn(fs, "fsyncSync").mockImplementationOnce(() => {
              throw full;
            });
          }
          expect(() => session.append(user("lost"))).toThrow("ENOSPC");
        }
        expect(session.messages).toEqual([user("one")]);
        for (const text of ["two", "three", "four"]) session.append(user(text));
        session.compact("one and two", session.messages.at(2));
        expect(fs.readFileSync(file, "utf8")).not.toContain("lost");
        const again = new SessionStore(sessions).current(KEY);
        expect(again.messages).toEqual(session.messages);
        expect(printed()).toBe("");
      },
    );
  });

  it("a disk that is really full, and then has room again", async ({ skip }) => {
    const { SessionStore } = await load("s03", section, settings());
    const disk = temporaryFolder();
    const mount = (options: string) =>
      spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", disk]).status === 0;
    skip(process.getuid?.() !== 0 || !mount("size=100k"), "the machine does not allow it");
    try {
      const store = new SessionStore(path.join(disk, "sessions"));
      const session = store.current(KEY);
      const long = user("x".repeat(5000));
      for (let i = 0; i < 15; i++) session.append(long);
      const fill = () => {
        for (let i = 0; i < 50; i++) session.append(long);
      };
      expect(fill).toThrow("ENOSPC");
      expect(fill).toThrow("ENOSPC");
      expect(() => store.create("agent:luna:cli:direct:other")).toThrow("ENOSPC");
      const restart = () => new SessionStore(path.join(disk, "sessions"));
      expect(restart().current(KEY).messages).toEqual(session.messages);
      expect(mount("remount,size=2m")).toBe(true);
      session.append(user("there is room"));
      expect(restart().current(KEY).messages).toEqual(session.messages);
      expect(restart().current(KEY).messages.at(-1)).toEqual(user("there is room"));
      expect(restart().list("agent:luna:cli:direct:other")).toEqual([]);
      expect(restart().current("agent:luna:cli:direct:other").messages).toEqual([]);
    } finally {
      spawnSync("umount", [disk]);
    }
  });

  it("quarantine overwrites nothing, and if it can't rename, it goes on", async () => {
    const { SessionStore, sessions, paths } = await open(section);
    fs.writeFileSync(paths.current, "[]");
    // The first random name is taken.
    const taken = "00000000-0000-4000-8000-000000000000";
    fs.writeFileSync(`${paths.current}.00000000.quarantined`, "older");
    const nodeCrypto = (await import("node:crypto")).default;
    vi.spyOn(nodeCrypto, "randomUUID").mockReturnValueOnce(taken);
    new SessionStore(sessions).current(KEY);
    expect(fs.readFileSync(`${paths.current}.00000000.quarantined`, "utf8")).toBe("older");
    expect(printed()).toMatch(/current\.[\da-f]{8}\.quarantined/);
    fs.writeFileSync(paths.current, "[]");
    vi.spyOn(fs, "renameSync").mockImplementationOnce(() => {
      throw new Error("EROFS: read-only file system");
    });
    expect(new SessionStore(sessions).current(KEY).messages).toHaveLength(1);
    expect(printed()).toContain("EROFS");
  });

  it.each(["EMFILE", "ENFILE"])(
    "quarantines nothing while too many files are open: %s",
    async (code) => {
      const { SessionStore, sessions, folder } = await open(section);
      const before = fs.readdirSync(folder);
      const refuse = () => {
        throw Object.assign(new Error(`${code}: too many open files`), { code });
      };
      for (const name of ["readFileSync", "readdirSync"] as const) {
        const spy = vi.spyOn(fs, name).mockImplementation(refuse);
        expect(() => new SessionStore(sessions).current(KEY)).toThrow(code);
        spy.mockRestore();
      }
      expect(fs.readdirSync(folder)).toEqual(before);
      expect(new SessionStore(sessions).current(KEY).messages).toEqual([user("one")]);
    },
  );
});

const NOBODY = 65534;

/** Uses the state as another user, whom the modes of files stop. Takes one file after the other. */
const CHILD = `
  import fs from "node:fs";
  import path from "node:path";
  const [section, state, ...files] = process.argv.slice(2);
  const { lockFolder, SessionStore } = await import(section);
  process.setgroups([]);
  process.setgid(${NOBODY});
  process.setuid(${NOBODY});
  for (const file of files) {
    lockFolder(state);
    const dir = path.join(state, "sessions");
    new SessionStore(dir).create("${KEY}");
    fs.chmodSync(file, 0);
    lockFolder(state);
    const content = [{ type: "text", text: "three" }];
    new SessionStore(dir).current("${KEY}").append({ role: "user", content });
    new SessionStore(dir).list("${KEY}");
    const { messages } = new SessionStore(dir).current("${KEY}");
    console.log("goes on with " + messages.length + " messages");
  }
`;
