/** s02: the tools themselves, and the walls round them. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import path from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { validate } from "../practice/validate.ts";
import {
  englishFrom,
  load,
  printed,
  type SectionFile,
  sectionsFrom,
  settings,
  temporaryFolder,
} from "./helper.ts";

const WINDOWS = process.platform === "win32";

async function open(section: SectionFile) {
  const workspace = temporaryFolder();
  const module = await load("s02", section, settings(undefined, { CLAW0_WORKSPACE: workspace }));
  /** Runs a tool as the loop does. */
  const use = async (name: string, input: unknown, signal?: AbortSignal) => {
    const block = {
      type: "tool_use",
      id: "toolu_1",
      name,
      input,
      caller: { type: "direct" },
    } as const;
    const turn = { conversation: new module.Conversation(), signal };
    const { content, is_error, ...rest } = await module.runTool(block, turn);
    expect(rest).toEqual({ type: "tool_result", tool_use_id: "toolu_1" });
    return { content: String(content), failed: is_error === true };
  };
  const at = (name: string) => path.join(workspace, name);
  /** Puts a file there, and gives a function that reads it back. */
  const put = (name: string, content: string | Buffer) => {
    fs.mkdirSync(path.dirname(at(name)), { recursive: true });
    fs.writeFileSync(at(name), content);
    return () => fs.readFileSync(at(name), "utf8");
  };
  /** A command that runs JavaScript, which every system has here. */
  const script = (code: string) => {
    put("script.mjs", code);
    return "node script.mjs";
  };
  return { ...module, workspace, use, at, put, script };
}

describe.each(sectionsFrom("s02"))("$name", (section) => {
  it("has a handler for every tool, and a tool for every handler", async () => {
    const { TOOLS, HANDLERS } = await open(section);
    const names = TOOLS.map(({ name }) => name);
    expect(names.sort()).toEqual(Object.keys(HANDLERS).sort());
    expect(names).toEqual(expect.arrayContaining(["bash", "read_file", "write_file", "edit_file"]));
    const request = { model: "claude-sonnet-5-5", max_tokens: 1, tools: TOOLS };
    expect(validate({ ...request, messages: [{ role: "user", content: "hi" }] })).toBeUndefined();
    for (const { description, input_schema } of TOOLS) {
      expect(description).toMatch(/\w/);
      for (const field of input_schema.required ?? []) {
        expect(Object.keys(input_schema.properties ?? {})).toContain(field);
      }
    }
  });

  describe("runTool", () => {
    it.each([
      ["an unknown tool", "fly", {}, /fly/],
      ["a name that every object has", "constructor", {}, /constructor/],
      ["another one", "toString", {}, /toString/],
      ["and __proto__", "__proto__", {}, /__proto__/],
      ["a missing field", "read_file", {}, /path/],
      ["a field of the wrong type", "read_file", { path: 5 }, /path.*string/],
      ["null", "read_file", { path: null }, /path/],
      ["a number that is a text", "bash", { command: "echo", seconds: "5" }, /seconds.*integer/],
      ["a number with a fraction", "bash", { command: "echo", seconds: 1.5 }, /seconds.*integer/],
      ["no object at all", "read_file", "path", /object/],
      ["null for an object", "read_file", null, /object/],
      ["a list", "read_file", [], /must be an object.*\[\]/],
      ["what the handler throws", "read_file", { path: "no/such/file" }, /no such file|ENOENT/i],
      ["a path with a NUL", "read_file", { path: "a\0b" }, /null|NUL|\\0|\\x00/i],
      ["a command with a NUL", "bash", { command: "echo a\0b" }, /null|NUL|\\0|\\x00/i],
    ])("%s is a result that the model can read", async (_kind, name, input, words) => {
      const { use } = await open(section);
      const { content, failed } = await use(name, input);
      expect(failed).toBe(true);
      expect(content).toMatch(words);
    });

    it("something thrown that is no Error", async () => {
      const { use, TOOLS, HANDLERS } = await open(section);
      TOOLS.push({ name: "odd", description: "odd", input_schema: { type: "object" } });
      HANDLERS.odd = () => Promise.reject("just words");
      expect(await use("odd", {})).toEqual({ content: "just words", failed: true });
    });

    it("shows the person what runs", async () => {
      const { use, put } = await open(section);
      put("notes.txt", "hello");
      await use("read_file", { path: "notes.txt" });
      expect(printed()).toContain("read_file");
      expect(printed()).toContain("notes.txt");
    });

    it("a result has both ends of a long output", async () => {
      const { use, put } = await open(section);
      put("long.txt", `begin ${"x".repeat(200_000)} end`);
      const { content, failed } = await use("read_file", { path: "long.txt" });
      expect(failed).toBe(false);
      expect(content).toMatch(/^begin /);
      expect(content).toMatch(/ end$/);
      expect(content.length).toBeLessThan(35_000);
      expect(content).toMatch(/\d+ characters left out/);
    });
  });

  describe("checkInput", () => {
    const schema = {
      type: "object" as const,
      properties: {
        name: { type: "string" },
        count: { type: "integer" },
        size: { type: "number" },
        on: { type: "boolean" },
        colour: { type: "string", enum: ["red", "blue"] },
        any: {},
      },
      required: ["name"],
    };
    it.each([
      [{ name: "a" }],
      [{ name: "", count: 0, size: 0.5, on: false, colour: "red" }],
      [{ name: "a", any: [1] }],
      [{ name: "a", more: 1 }],
    ])("%j fits", async (input) => {
      const { checkInput } = await open(section);
      expect(checkInput(schema, input)).toEqual(input);
    });
    it.each([
      [{}, /name/],
      [{ name: 1 }, /name.*string/],
      [{ name: "a", count: 1.5 }, /count.*integer/],
      [{ name: "a", count: "1" }, /count.*integer/],
      [{ name: "a", size: "1" }, /size.*number/],
      [{ name: "a", on: "true" }, /on.*boolean/],
      [{ name: "a", colour: "green" }, /colour.*red.*blue/],
      [{ name: undefined }, /name/],
      ["name", /object/],
      [null, /object/],
      [undefined, /object/],
    ])("%j does not, and the field is named", async (input, words) => {
      const { checkInput } = await open(section);
      expect(() => checkInput(schema, input)).toThrow(words);
    });
  });

  describe("safePath", () => {
    /** workspace, workspace2 beside it, outside/secret.txt, and links. */
    function world() {
      const base = temporaryFolder();
      const at = (name: string) => path.join(base, name);
      for (const folder of ["workspace/sub", "workspace2", "outside/deep"]) {
        fs.mkdirSync(at(folder), { recursive: true });
      }
      for (const file of ["workspace/sub/a.txt", "workspace2/a.txt", "outside/secret.txt"]) {
        fs.writeFileSync(at(file), "x");
      }
      // On Windows only this kind of link needs no rights; elsewhere the kind is ignored.
      const link = (target: string, name: string) =>
        fs.symlinkSync(at(target), at(name), "junction");
      link("outside", "workspace/link");
      link("nowhere", "workspace/dangling");
      link("workspace/sub", "workspace/inner");
      link("workspace", "linked");
      link("workspace/loop2", "workspace/loop1");
      link("workspace/loop1", "workspace/loop2");
      return { root: at("workspace"), at };
    }

    it.each([
      ["sub/a.txt", "sub/a.txt"],
      ["./sub/../sub/a.txt", "sub/a.txt"],
      ["new.txt", "new.txt"],
      ["not/there/yet.txt", "not/there/yet.txt"],
      ["inner/a.txt", "sub/a.txt"],
      ["inner/new.txt", "sub/new.txt"],
      ["..hidden/a", "..hidden/a"],
      ["...", "..."],
      [".", "."],
    ])("%s is inside", async (name, real) => {
      const { safePath } = await open(section);
      const { root } = world();
      expect(safePath(name, root)).toBe(path.join(root, real));
    });

    it("an absolute path inside is inside", async () => {
      const { safePath } = await open(section);
      const { root, at } = world();
      expect(safePath(at("workspace/sub/a.txt"), root)).toBe(path.join(root, "sub/a.txt"));
    });

    it("a workspace that is itself behind a link works", async () => {
      const { safePath } = await open(section);
      const { root, at } = world();
      expect(safePath("sub/a.txt", at("linked"))).toBe(path.join(root, "sub/a.txt"));
      expect(safePath(at("linked/new.txt"), at("linked"))).toBe(path.join(root, "new.txt"));
      expect(() => safePath("../outside/secret.txt", at("linked"))).toThrow();
    });

    it.each([
      "..",
      "../outside/secret.txt",
      "sub/../../outside/secret.txt",
      "../workspace2/a.txt",
      "../workspace2",
      "../workspace2/new.txt",
      "link",
      "link/secret.txt",
      "link/new.txt",
      "link/deep/new/er.txt",
      "link/../secret.txt/../../outside/secret.txt",
      "dangling",
      "dangling/new.txt",
      "loop1",
      "loop1/a.txt",
      "/etc/passwd",
      "/",
    ])("%s is outside", async (name) => {
      const { safePath } = await open(section);
      const { root } = world();
      expect(() => safePath(name, root)).toThrow();
    });

    it("absolute paths of the neighbours are outside", async () => {
      const { safePath } = await open(section);
      const { root, at } = world();
      for (const name of ["workspace2/a.txt", "outside/secret.txt", "workspace2", "nowhere"]) {
        expect(() => safePath(at(name), root)).toThrow(/outside/);
      }
    });

    it("keeps the file tools out of what the program keeps for itself, by any spelling", async () => {
      const { use, at, workspace, HANDLERS } = await open(section);
      fs.mkdirSync(at(".state/sessions"), { recursive: true });
      fs.writeFileSync(at(".state/sessions/a.jsonl"), "secret");
      // What can't be used there is renamed, and stays private.
      fs.mkdirSync(at(".state.0badcafe.quarantined/sessions"), { recursive: true });
      fs.writeFileSync(at(".state.0badcafe.quarantined/sessions/a.jsonl"), "secret");
      fs.mkdirSync(at("sub"));
      fs.symlinkSync(at(".state"), at("link"), "junction");
      fs.symlinkSync(workspace, at("sub/round"), "junction");
      // On a file system without case these are the same folder.
      const folders = [
        ".state",
        ".STATE",
        ".State",
        "./.state",
        "sub/../.state",
        "link",
        at(".state"),
      ];
      folders.push(
        "sub/round/.state",
        ".\u017ftate",
        ".state.0badcafe.quarantined",
        ".state.",
        ".state ",
      );
      folders.push(`../${path.basename(workspace)}/.state`);
      for (const folder of folders) {
        const name = `${folder}/sessions/a.jsonl`;
        const tries = [
          await use("read_file", { path: name }),
          await use("write_file", { path: name, content: "taken" }),
          await use("write_file", { path: `${folder}/new.txt`, content: "taken" }),
          await use("edit_file", { path: name, old_text: "secret", new_text: "taken" }),
        ];
        if (HANDLERS.list_directory) tries.push(await use("list_directory", { path: folder }));
        expect(
          tries.filter(({ failed }) => !failed),
          folder,
        ).toEqual([]);
        expect(JSON.stringify(tries)).toContain("belongs to the program itself");
        expect(JSON.stringify(tries)).not.toContain('"secret"');
      }
      expect(fs.readdirSync(at(".state"))).toEqual(["sessions"]);
      expect(fs.readFileSync(at(".state/sessions/a.jsonl"), "utf8")).toBe("secret");
      const mine = { path: ".statement", content: "mine" };
      expect((await use("write_file", mine)).failed).toBe(false);
      if (!HANDLERS.list_directory) return;
      const { content } = await use("list_directory", {});
      expect(content.split("\n")).toEqual([".statement", expect.stringMatching(/^link/), "sub/"]);
    });

    it("guards all the file tools", async () => {
      const { use, at, workspace } = await open(section);
      const outside = temporaryFolder();
      fs.writeFileSync(path.join(outside, "secret.txt"), "secret");
      fs.symlinkSync(outside, at("link"), "junction");
      fs.symlinkSync(path.join(outside, "made.txt"), at("dangling"), "junction");
      const up = path.relative(workspace, path.join(outside, "secret.txt"));
      for (const name of [up, path.join(outside, "secret.txt"), "link/secret.txt", "dangling"]) {
        const tries = [
          await use("read_file", { path: name }),
          await use("write_file", { path: name, content: "taken" }),
          await use("edit_file", { path: name, old_text: "secret", new_text: "taken" }),
        ];
        expect(tries.map(({ failed }) => failed)).toEqual([true, true, true]);
        expect(JSON.stringify(tries)).not.toContain('"secret"');
      }
      expect(fs.readdirSync(outside)).toEqual(["secret.txt"]);
      expect(fs.readFileSync(path.join(outside, "secret.txt"), "utf8")).toBe("secret");
    });
  });

  describe("files", () => {
    it("are read as they are", async () => {
      const { use, put } = await open(section);
      put("a.txt", "Grüße\r\n你好\n\t👋");
      expect(await use("read_file", { path: "a.txt" })).toEqual({
        content: "Grüße\r\n你好\n\t👋",
        failed: false,
      });
      put("empty.txt", "");
      expect((await use("read_file", { path: "empty.txt" })).failed).toBe(false);
    });

    it("are written with their folders, and replaced", async () => {
      const { use, at } = await open(section);
      expect((await use("write_file", { path: "a/b/c.txt", content: "one\n" })).failed).toBe(false);
      expect(fs.readFileSync(at("a/b/c.txt"), "utf8")).toBe("one\n");
      await use("write_file", { path: "a/b/c.txt", content: "two\n" });
      expect(fs.readFileSync(at("a/b/c.txt"), "utf8")).toBe("two\n");
      await use("write_file", { path: "empty.txt", content: "" });
      expect(fs.readFileSync(at("empty.txt"), "utf8")).toBe("");
    });

    it("keep their line ends", async () => {
      const { use, put } = await open(section);
      const dos = put("dos.txt", "one\r\ntwo\r\nthree\r\n");
      const edit = { path: "dos.txt", old_text: "one\ntwo", new_text: "1\n2\n" };
      expect((await use("edit_file", edit)).failed).toBe(false);
      expect(dos()).toBe("1\r\n2\r\n\r\nthree\r\n");
      await use("edit_file", { path: "dos.txt", old_text: "three\r\n", new_text: "3\r\n" });
      expect(dos()).toBe("1\r\n2\r\n\r\n3\r\n");
      await use("write_file", { path: "dos.txt", content: "new\nlines\n" });
      expect(dos()).toBe("new\r\nlines\r\n");
      const unix = put("unix.txt", "one\ntwo\n");
      await use("edit_file", { path: "unix.txt", old_text: "one\r\ntwo", new_text: "1\r\n2" });
      expect(unix()).toBe("1\n2\n");
    });

    it("$&, $1 and $$ in a new text are only characters", async () => {
      const { use, put } = await open(section);
      const read = put("a.txt", "before MARK after");
      const new_text = "$& $1 $$ $` $' $<x> \\1";
      await use("edit_file", { path: "a.txt", old_text: "MARK", new_text });
      expect(read()).toBe(`before ${new_text} after`);
    });

    it.each([
      ["missing", "nothing like it", /0 times/],
      ["there twice", "two", /2 times/],
      ["empty", "", /old_text/],
    ])("an old text that is %s changes nothing", async (_how, old_text, words) => {
      const { use, put } = await open(section);
      const read = put("a.txt", "one two three two");
      const { failed, content } = await use("edit_file", {
        path: "a.txt",
        old_text,
        new_text: "x",
      });
      expect(failed).toBe(true);
      expect(content).toMatch(words);
      expect(read()).toBe("one two three two");
    });

    it("special characters in the old text are only characters", async () => {
      const { use, put } = await open(section);
      const read = put("a.txt", "f(x)* [a] ^.$");
      await use("edit_file", { path: "a.txt", old_text: "f(x)* [a] ^.$", new_text: "ok" });
      expect(read()).toBe("ok");
    });

    it.each([
      ["aaa", "aa", 2],
      ["x\nx\nx\n", "x\nx\n", 2],
      ["ababab", "abab", 2],
      ["aaaa", "a", 4],
      ["one\r\ntwo\none\ntwo", "one\ntwo", 2],
    ])(
      "an edit of %j does not guess which of several %j is meant",
      async (text, old_text, times) => {
        const { use, put } = await open(section);
        const read = put("a.txt", text);
        const { content, failed } = await use("edit_file", {
          path: "a.txt",
          old_text,
          new_text: "b",
        });
        expect(failed).toBe(true);
        expect(content).toContain(`occurs ${times} times`);
        expect(read()).toBe(text);
      },
    );

    it.each([
      ["a\r\nb\nc\n", "b", "1\n2", "a\r\n1\n2\nc\n"],
      ["a\nb\r\nc\n", "b", "1\n2", "a\n1\r\n2\r\nc\n"],
      ["a\nb\r\nc", "c", "1\n2", "a\nb\r\n1\r\n2"],
      ["a\r\nb\nc", "c", "1\r\n2", "a\r\nb\n1\n2"],
      ["a\r\nb\nc\n", "a\nb", "1\n2", "1\r\n2\nc\n"],
      ["a\nb\r\nc\n", "\nc", "\n1\nc", "a\nb\r\n1\r\nc\n"],
      ["abc", "b", "1\n2", "a1\n2c"],
    ])(
      "an edit of %j follows the line ends of the place",
      async (text, old_text, new_text, wanted) => {
        const { use, put } = await open(section);
        const read = put("a.txt", text);
        expect((await use("edit_file", { path: "a.txt", old_text, new_text })).failed).toBe(false);
        expect(read()).toBe(wanted);
      },
    );

    it("an edit that removes a passage", async () => {
      const { use, put } = await open(section);
      const read = put("a.txt", "one two");
      await use("edit_file", { path: "a.txt", old_text: " two", new_text: "" });
      expect(read()).toBe("one");
    });

    it("that are no text are neither read nor edited", async () => {
      const { use, put, at } = await open(section);
      const bytes = Buffer.from([0x63, 0x61, 0x66, 0xe9, 0x0a]); // "café" in Latin-1
      put("latin1.txt", bytes);
      for (const [name, input] of [
        ["read_file", { path: "latin1.txt" }],
        ["edit_file", { path: "latin1.txt", old_text: "caf", new_text: "x" }],
      ] as const) {
        const { failed, content } = await use(name, input);
        expect(failed).toBe(true);
        expect(content).toMatch(/UTF-8/);
      }
      expect(fs.readFileSync(at("latin1.txt"))).toEqual(bytes);
    });

    it("a folder is none", async () => {
      const { use, put } = await open(section);
      put("folder/a.txt", "x");
      expect((await use("read_file", { path: "folder" })).failed).toBe(true);
      expect((await use("write_file", { path: "folder", content: "x" })).failed).toBe(true);
      const edit = { path: "folder", old_text: "x", new_text: "y" };
      expect((await use("edit_file", edit)).failed).toBe(true);
      const under = { path: "folder/a.txt/b.txt", content: "x" };
      expect((await use("write_file", under)).failed).toBe(true);
    });

    it("that are very big are not loaded", async () => {
      const { use, put, at } = await open(section);
      put("big.bin", "");
      fs.truncateSync(at("big.bin"), 2 ** 30);
      const { failed, content } = await use("read_file", { path: "big.bin" });
      expect(failed).toBe(true);
      expect(content).toMatch(/\d{10} bytes/);
    });

    // Windows has no pipes in the file system.
    it.runIf(!WINDOWS)("a pipe is none, and nobody waits for it", async () => {
      const { use, at } = await open(section);
      execFileSync("mkfifo", [at("pipe")]);
      // To open it would block this process for ever: so opening it is an error here.
      const refuse = (name: "readFileSync" | "writeFileSync" | "openSync") => {
        const original: (...args: unknown[]) => unknown = fs[name] as never; // any of the three
        const guarded = (...args: unknown[]) => {
          if (args[0] === at("pipe")) throw new Error("it would wait here for ever");
          return original(...args);
        };
        vi.spyOn(fs, name).mockImplementation(guarded as never); // as above
      };
      refuse("readFileSync");
      refuse("writeFileSync");
      refuse("openSync");
      for (const [name, input] of [
        ["read_file", { path: "pipe" }],
        ["edit_file", { path: "pipe", old_text: "a", new_text: "b" }],
        ["write_file", { path: "pipe", content: "x" }],
      ] as const) {
        const { failed, content } = await use(name, input);
        expect(failed, name).toBe(true);
        expect(content, name).not.toContain("for ever");
      }
    });
  });

  describe("bash", () => {
    it("gives what a command prints, from both its outputs", async () => {
      const { use } = await open(section);
      expect(await use("bash", { command: "echo hello" })).toEqual({
        content: expect.stringMatching(/^hello\r?\n$/),
        failed: false,
      });
      const { content } = await use("bash", { command: "echo out&& echo err>&2" });
      expect(content).toContain("out");
      expect(content).toContain("err");
    });

    it("gives the exit code of one that fails, and its output", async () => {
      const { use } = await open(section);
      const { content, failed } = await use("bash", { command: "echo so far&& exit 3" });
      expect(failed).toBe(true);
      expect(content).toMatch(/exit code 3/);
      expect(content).toContain("so far");
      expect((await use("bash", { command: "no-such-command-anywhere" })).failed).toBe(true);
    });

    it("says that there was no output; nobody types into it", async () => {
      const { use } = await open(section);
      const { content, failed } = await use("bash", { command: "sort" }); // it reads its input
      expect(failed).toBe(false);
      expect(content).not.toBe("");
    });
  });
});

/**
 * Processes that are to be killed hold a connection to this server. When the last of them is
 * gone it knows, without asking again and again.
 */
class Watch {
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  #awaited: () => void = () => {};
  #said = 0;

  /** `expected` processes will come. */
  constructor(expected: number, ready: () => void) {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on("error", () => {}); // a killed process may leave no other way
      socket.once("data", () => ++this.#said === expected && ready());
      socket.on("close", () => {
        this.#sockets.delete(socket);
        if (this.#sockets.size === 0) this.#awaited();
      });
    });
  }

  async open(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return (this.#server.address() as AddressInfo).port; // a TCP server's is one
  }

  gone(): Promise<void> {
    return new Promise((resolve) => {
      this.#awaited = resolve;
      if (this.#sockets.size === 0) resolve();
    });
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}

/** node hold.mjs <port> [child] [detached]: stays as long as the watch is there. */
const HOLD = `
  import { spawn } from "node:child_process";
  import { connect } from "node:net";
  const [port, child, detached] = process.argv.slice(2);
  connect(Number(port), "127.0.0.1").on("error", () => {}).on("close", () => process.exit()).write("here");
  if (child) {
    const args = [process.argv[1], port];
    const options = { stdio: ["ignore", "inherit", "inherit"], detached: Boolean(detached) };
    spawn(process.execPath, args, options).unref();
  }
  console.log("holding");
  process.on("SIGTERM", () => {}).on("SIGINT", () => {}).on("SIGHUP", () => {});
`;

describe.each(englishFrom("s02"))("$name, bash and its children", (section) => {
  let watch: Watch | undefined;
  afterEach(() => watch?.close());

  async function hold(expected: number) {
    const opened = await open(section);
    opened.put("hold.mjs", HOLD);
    let ready = () => {};
    const started = new Promise<void>((resolve) => {
      ready = resolve;
    });
    const watching = new Watch(expected, ready);
    watch = watching;
    const port = await watching.open();
    return { ...opened, port, started, gone: () => watching.gone() };
  }

  it("the time limit ends a command with all its children", async () => {
    const { use, port, started, gone } = await hold(2);
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const command = `node hold.mjs ${port} child`;
    const running = use("bash", { command, seconds: 7 });
    await started;
    vi.advanceTimersByTime(7000);
    const { content, failed } = await running;
    expect(failed).toBe(true);
    expect(content).toMatch(/stopped after 7 s/);
    expect(content).toContain("holding");
    await gone();
  });

  it.each([
    ["60 s, if none is given", undefined, 60],
    ["not less than a second", -5, 1],
    ["not more than ten minutes", 100_000, 600],
  ])("the time limit is %s", async (_name, seconds, limit) => {
    const { use, port, started, gone } = await hold(1);
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const running = use("bash", { command: `node hold.mjs ${port}`, ...(seconds && { seconds }) });
    await started;
    vi.advanceTimersByTime(limit * 1000 - 1);
    const early = await Promise.race([running, new Promise((resolve) => setImmediate(resolve))]);
    expect(early).toBeUndefined();
    vi.advanceTimersByTime(1);
    expect((await running).content).toMatch(new RegExp(`stopped after ${limit} s`));
    await gone();
  });

  it("Ctrl+C ends a command with all its children", async () => {
    const { use, port, started, gone } = await hold(2);
    const stop = new AbortController();
    const running = use("bash", { command: `node hold.mjs ${port} child` }, stop.signal);
    await started;
    stop.abort();
    const { content, failed } = await running;
    expect(failed).toBe(true);
    expect(content).toMatch(/interrupted/);
    await gone();
  });

  it("Ctrl+C before it: it is not run", async () => {
    const { use, at } = await open(section);
    const { failed } = await use("bash", { command: "echo x> made.txt" }, AbortSignal.abort());
    expect(failed).toBe(true);
    expect(fs.existsSync(at("made.txt"))).toBe(false);
  });

  it("what runs on in the background ends with the command, which does not wait for it", async () => {
    const { use, script, port, gone } = await hold(1);
    // It leaves when its child is there; the child holds its output.
    const command = script(`
      import { spawn } from "node:child_process";
      const stdio = ["ignore", "pipe", "inherit"];
      const child = spawn(process.execPath, ["hold.mjs", "${port}"], { stdio });
      child.stdout.once("data", () => { console.log("done"); process.exit(); });
    `);
    const { content, failed } = await use("bash", { command });
    expect(failed).toBe(false);
    expect(content).toContain("done");
    if (!WINDOWS) await gone();
  });

  it("a child in a group of its own, which holds the output, does not block for ever", async () => {
    const { use, port, started } = await hold(2);
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const command = `node hold.mjs ${port} child detached`;
    const running = use("bash", { command, seconds: 3 });
    await started;
    vi.advanceTimersByTime(3000);
    expect((await running).content).toContain("holding");
  });

  it("runs in the workspace, and gets no key and no token", async () => {
    const { use, script, workspace } = await open(section);
    const secrets = `ANTHROPIC_API_KEY ANTHROPIC_API_KEY_2 OPENAI_API_KEY TELEGRAM_BOT_TOKEN
      FEISHU_APP_SECRET GITHUB_TOKEN AWS_SECRET_ACCESS_KEY GATEWAY_TOKEN DATABASE_URL NPM_TOKEN
      ANTHROPIC_AUTH_TOKEN SOMETHING_KEY MY_PASSWORD HTTPS_PROXY NODE_OPTIONS_TOKEN`.split(/\s+/);
    for (const [index, name] of secrets.entries()) process.env[name] = `hush-${index}`;
    const command = script("console.log(process.cwd(), JSON.stringify(process.env))");
    const { content, failed } = await use("bash", { command });
    expect(failed).toBe(false);
    expect(content).toContain(JSON.stringify(workspace).slice(1, -1).replaceAll("\\\\", "\\"));
    expect(content).toContain("PATH");
    expect(content).not.toContain("hush-");
  });

  it.skipIf(WINDOWS)(
    "does not wait for a child that has left and keeps the pipes open",
    async () => {
      const { use } = await open(section);
      const pid = "setsid sleep 100 & echo $!; echo last words";
      const { content, failed } = await use("bash", { command: pid, seconds: 20 });
      process.kill(Number.parseInt(content, 10), "SIGKILL");
      expect(failed).toBe(false);
      expect(content).toMatch(/^\d+\nlast words\n$/);
      const command = "setsid sleep 100 & echo $!; exit 3";
      const second = await use("bash", { command, seconds: 20 });
      process.kill(Number.parseInt(second.content.split("\n")[1] ?? "", 10), "SIGKILL");
      expect(second).toMatchObject({
        failed: true,
        content: expect.stringMatching(/^exit code 3\n/),
      });
    },
  );

  it("keeps both ends of much output, and no half characters", async () => {
    const { use, script } = await open(section);
    const command = script(`
      process.stdout.write("begin " + "x".repeat(50_001) + "👋".repeat(60_000) + " end");
      process.exitCode = 1;
    `);
    const { content } = await use("bash", { command });
    expect(content).toContain("begin xxx");
    expect(content).toMatch(/👋 end$/);
    expect(content.length).toBeLessThan(35_000);
    expect(content.isWellFormed()).toBe(true);
  });

  it("the end of much output is its real end, without a gap", async () => {
    const { use, script } = await open(section);
    // Pipes hand over 64 KiB at a time: the last piece of this is a short one.
    const command = script(`
      let text = "";
      for (let i = 0; text.length < 5 * 65536 + 50; i++) text += "line " + i + "\\n";
      process.stdout.write(text);
    `);
    const { content } = await use("bash", { command });
    const [, end = ""] = content.split(/\n… .* …\n/);
    const lines = end.trimEnd().split("\n").slice(1); // the first one is cut in the middle
    const tail = lines.map((line) => Number(/^line (\d+)$/.exec(line)?.[1]));
    expect(tail.length).toBeGreaterThan(500);
    expect(tail).toEqual(tail.map((_, index) => (tail[0] ?? 0) + index));
    expect(tail.at(-1)).toBeGreaterThan(20_000);
    const [, left] = /(\d+) characters left out/.exec(content) ?? [];
    expect(Number(left)).toBeGreaterThan(290_000);
  });

  it("characters that arrive in two pieces stay whole", async () => {
    const { use, script } = await open(section);
    // Each write is a piece of its own: the next one comes when this one has been taken.
    const command = script(`
      for (const byte of Buffer.from("你好👋")) {
        await new Promise((done) => process.stdout.write(Buffer.from([byte]), done));
        await new Promise((done) => setImmediate(done));
      }
    `);
    expect(await use("bash", { command })).toEqual({ content: "你好👋", failed: false });
  });

  it("much more output than fits into memory does not fill it", async () => {
    const { use, script } = await open(section);
    const flood = script(`
      const piece = Buffer.alloc(2 ** 20, "lots of output\\n");
      for (let i = 0; i < 200; i++) await new Promise((done) => process.stdout.write(piece, done));
      console.log("the end");
    `);
    const command = WINDOWS ? flood : "yes lots of output | head -c 200000000; echo the end";
    const before = process.memoryUsage.rss();
    let peak = before;
    const sample = setInterval(() => {
      peak = Math.max(peak, process.memoryUsage.rss());
    }, 5);
    const { content, failed } = await use("bash", { command });
    clearInterval(sample);
    expect(failed).toBe(false);
    expect(content).toMatch(/^lots of output\r?\n/);
    expect(content.trimEnd()).toMatch(/the end$/);
    expect(content.length).toBeLessThan(35_000);
    expect((peak - before) / 1e6).toBeLessThan(120);
  });
});
