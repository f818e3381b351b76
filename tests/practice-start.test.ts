/**
 * `npm start` and `npm run practice` as processes of their own, in a small copy of the tutorial.
 */

import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { startModel } from "../practice/model.ts";
import { startWorld } from "../practice/world.ts";

const PROJECT = join(import.meta.dirname, "..");

/** A section of our own: it shows its settings, answers lines, and leaves as it is told. */
const SECTION = `
  import { createInterface } from "node:readline";
  const { env } = process;
  let client;
  process.on("SIGINT", () => console.log("stopped a reply"));
  console.log("settings " + JSON.stringify([env.ANTHROPIC_API_KEY, env.MODEL_ID,
    env.CLAW0_WORKSPACE, env.CONTEXT_TOKENS, env.TELEGRAM_BOT_TOKEN]));
  const later = Object.entries(env).filter(([name]) => /HEARTBEAT|KEY_\\d|FALLBACK/.test(name));
  console.log("later " + JSON.stringify(Object.fromEntries(later.filter(([, value]) => value))));
  console.log("section SECTION");
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.startsWith("exit ")) process.exit(Number(line.slice(5)));
    // Not before it is needed: it takes half a second to load.
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const [, key = "ANTHROPIC_API_KEY", content] = /^(?:with (\\w+): )?(.*)$/.exec(line);
    client = new Anthropic({ apiKey: env[key], maxRetries: 0 });
    const request = { model: "claude-sonnet-5-5", max_tokens: 500 };
    const messages = [{ role: "user", content }];
    try {
      const reply = await client.messages.stream({ ...request, messages }).finalMessage();
      console.log("reply " + reply.content[0].text);
    } catch (error) {
      console.log("error " + error.type);
    }
  }
`;

// Most cases start two or three processes: on a busy machine that takes a while.
vi.setConfig({ testTimeout: 120_000 });

let root: string;
const running = new Set<ChildProcess>();

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "practice-start-"));
  cpSync(join(PROJECT, "practice"), join(root, "practice"), { recursive: true });
  mkdirSync(join(root, "sessions"));
  cpSync(join(PROJECT, "sessions", "names.ts"), join(root, "sessions", "names.ts"));
  symlinkSync(join(PROJECT, "node_modules"), join(root, "node_modules"), "junction");
  writeFileSync(join(root, "package.json"), '{ "type": "module" }');
  mkdirSync(join(root, "workspace", ".state"), { recursive: true });
  writeFileSync(join(root, "workspace", "SOUL.md"), "I am Luna.");
  section("en", "s01_agent_loop");
  section("en", "s02_tool_use");
});

afterEach(async () => {
  // On Windows a folder can't go while a process has it as its working directory.
  await Promise.all([...running].map((child) => ended(child, () => child.kill("SIGKILL"))));
  rmSync(root, { recursive: true, force: true, maxRetries: 5 });
});

function section(language: string, name: string): void {
  const folder = join(root, "sessions", language);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.ts`), SECTION.replace("SECTION", `${name} ${language}`));
}

function ended(child: ChildProcess, act = (): void => {}): Promise<void> {
  return new Promise((resolve) => {
    if (!running.has(child)) return resolve();
    child.once("close", () => resolve());
    act();
  });
}

/** A process whose output can be waited for. */
function launch(script: string, args: string[], env: Record<string, string> = {}) {
  const child = spawn(
    process.execPath,
    ["--import", "tsx", join(root, "practice", script), ...args],
    {
      cwd: root,
      // Nobody's own key, and no terminal's menu.
      env: { ...process.env, ANTHROPIC_API_KEY: "", TELEGRAM_BOT_TOKEN: "somebody's", ...env },
    },
  );
  running.add(child);
  let output = "";
  const watchers = new Set<() => void>();
  const more = (chunk: Buffer): void => {
    output += chunk;
    for (const watch of watchers) watch();
  };
  child.stdout.on("data", more);
  child.stderr.on("data", more);
  const done = new Promise<{ code: number | null; output: string }>((resolve) => {
    child.once("close", (code) => {
      running.delete(child);
      resolve({ code, output });
      for (const watch of watchers) watch();
    });
  });
  const says = (wanted: string | RegExp): Promise<string> =>
    new Promise((resolve, reject) => {
      const watch = (): void => {
        if (isIn(output, wanted)) resolve(output);
        else if (!running.has(child)) reject(new Error(`"${wanted}" never came in:\n${output}`));
        else return;
        watchers.delete(watch);
      };
      watchers.add(watch);
      watch();
    });
  return { child, done, says };
}

function isIn(output: string, wanted: string | RegExp): boolean {
  return typeof wanted === "string" ? output.includes(wanted) : wanted.test(output);
}

function start(args: string[], input = "", env: Record<string, string> = {}) {
  const started = launch("start.ts", args, env);
  started.child.stdin?.end(input);
  return started.done;
}

async function knob(...args: string[]) {
  const { code, output } = await launch("knobs.ts", args).done;
  return { code, output: output.trim() };
}

const worldFile = () => join(root, ".practice", "world.json");

describe("npm start without a key", () => {
  it("talks to a section at once, in a copy of the workspace, and cleans up", async () => {
    const { code, output } = await start([], "my name is Ada\nwhat is 2+3\n");
    expect(code).toBe(0);
    expect(output).toContain("no real model");
    expect(output).toContain(".env.example");
    expect(output).toContain("section s01_agent_loop en");
    expect(output).toContain("reply Nice to meet you, Ada.");
    expect(output).toContain("reply 2+3 = 5");
    const copy = join(root, ".practice", "workspace");
    const settings = ["practice", "claude-sonnet-5-5", copy, "180000", ""];
    expect(output).toContain(`settings ${JSON.stringify(settings)}`);
    expect(readFileSync(join(copy, "SOUL.md"), "utf8")).toBe("I am Luna.");
    expect(existsSync(join(copy, ".state"))).toBe(false);
    expect(existsSync(worldFile())).toBe(false);
  });

  it("gives the section's exit code", async () => {
    expect((await start(["s01"], "exit 7\n")).code).toBe(7);
  });

  it.each(["s02", "2", "s02_tool_use"])("picks a section: %s", async (name) => {
    expect((await start([name])).output).toContain("section s02_tool_use en");
  });

  it("picks a language", async () => {
    section("zh", "s01_agent_loop");
    expect((await start(["s01", "--lang", "zh"])).output).toContain("section s01_agent_loop zh");
    const { code, output } = await start(["s02", "--lang", "zh"]);
    expect(code).toBe(1);
    expect(output).toContain(
      "s02 is not there yet in 中文, but it is in en. There are: s01_agent_loop.",
    );
  });

  it.each([
    [["s07"], "s07 is not there yet in English. There are: s01_agent_loop, s02_tool_use."],
    [["s11"], 'There is no section "s11"; there are s01 to s10.'],
    [["tools"], 'There is no section "tools"'],
    [["s01", "--lang", "fr"], 'There is no language "fr"; there are: en, zh, ja.'],
    [["--colour"], "npm start -- s02 --lang zh"],
  ])("says what is not there: %s", async (args, sentence) => {
    const { code, output } = await start(args);
    expect(code).toBe(1);
    expect(output).toContain(sentence);
    expect(output).not.toMatch(/\n\s+at /); // no stack
  });

  it("keeps the copy, and renews it with --fresh", async () => {
    await start(["s01"]);
    const copy = join(root, ".practice", "workspace");
    writeFileSync(join(copy, "SOUL.md"), "changed");
    writeFileSync(join(copy, "more.md"), "mine");
    await start(["s01"]);
    expect(readFileSync(join(copy, "SOUL.md"), "utf8")).toBe("changed");
    await start(["s01", "--fresh"]);
    expect(readFileSync(join(copy, "SOUL.md"), "utf8")).toBe("I am Luna.");
    expect(existsSync(join(copy, "more.md"))).toBe(false);
  });

  const HEARTBEAT = {
    HEARTBEAT_INTERVAL: "60",
    HEARTBEAT_ACTIVE_START: "0",
    HEARTBEAT_ACTIVE_END: "24",
  };
  const KEYS = {
    ANTHROPIC_API_KEY_2: "practice-2",
    ANTHROPIC_API_KEY_3: "practice-3",
    FALLBACK_MODELS: "claude-haiku-5-5",
  };

  it.each([
    [6, {}],
    [7, HEARTBEAT],
    [8, HEARTBEAT],
    [9, { ...HEARTBEAT, ...KEYS }],
    [10, { ...HEARTBEAT, ...KEYS }],
  ])("gives section %d what it needs, and sets all the rest to nothing", async (number, wanted) => {
    const { settings, stop } = await startWorld("a test", number, root);
    await stop();
    const later = Object.entries(settings).filter(([name]) => /HEARTBEAT|KEY_\d|FALL/.test(name));
    expect(later).toHaveLength(12);
    expect(Object.fromEntries(later.filter(([, value]) => value))).toEqual(wanted);
  });

  it("lets nobody else's settings through", async () => {
    section("en", "s09_resilience");
    const theirs = { FALLBACK_MODELS: "theirs", ANTHROPIC_API_KEY_4: "sk-theirs" };
    const hours = { HEARTBEAT_ACTIVE_START: "3", HEARTBEAT_ACTIVE_END: "4" };
    writeFileSync(join(root, ".env"), "HEARTBEAT_INTERVAL=7\n");
    const { output } = await start(["s09"], "", { ...theirs, ...hours });
    const [, later = ""] = /^later (.*)$/m.exec(output) ?? [];
    expect(JSON.parse(later)).toEqual({ ...HEARTBEAT, ...KEYS });
  });

  it("lets the shell say how often the heart beats", async () => {
    section("en", "s07_heartbeat_cron");
    const { output } = await start(["s07"], "", { HEARTBEAT_INTERVAL: "20" });
    expect(output).toContain('"HEARTBEAT_INTERVAL":"20"');
  });

  it("takes the key of .env.example for none", async () => {
    writeFileSync(join(root, ".env"), "ANTHROPIC_API_KEY=sk-ant-your-key-here\nMODEL_ID=mine\n");
    const { env } = process;
    const { ANTHROPIC_API_KEY: _, ...others } = env;
    const child = spawn(process.execPath, ["--import", "tsx", "practice/start.ts"], {
      cwd: root,
      env: others,
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    for await (const chunk of child.stdout) output += chunk;
    expect(output).toContain('settings ["practice","claude-sonnet-5-5"');
  });
});

describe("npm start with a key", () => {
  it("uses what the person has set, and starts no practice world", async () => {
    const model = await startModel({ keys: ["sk-mine"] });
    const env = { ANTHROPIC_API_KEY: "sk-mine", ANTHROPIC_BASE_URL: model.url, MODEL_ID: "mine" };
    const { code, output } = await start(["s01", "--fresh"], "hi\n", env);
    expect(code).toBe(0);
    expect(output).not.toContain("no real model");
    expect(output).toContain("nothing was renewed");
    expect(output).toContain('settings ["sk-mine","mine",null,null,"somebody\'s"]');
    expect(model.log.map((entry) => entry.key)).toEqual(["sk-mine"]);
    expect(existsSync(join(root, ".practice"))).toBe(false);
    await model.close();
  });
});

describe("npm run practice", () => {
  it("turns the knobs of the world that npm start has started", async () => {
    const { child, done, says } = launch("start.ts", ["s02"]);
    await says("section s02");
    expect((await knob()).output).toMatch(
      /^s02 \(en\) is running in process \d+, with the model at/,
    );
    expect((await knob("slow", "off")).output).toBe("No waits.");
    expect((await knob("fail", "529", "--times", "3")).output).toBe("The next 3 requests: 529.");
    // The section's client does not retry: three lines meet the three failures.
    child.stdin.write("a\nb\nc\nwhat is 2+3\n");
    const output = await says("2+3 = 5");
    expect(output.match(/error overloaded_error/g)).toHaveLength(3);
    expect((await knob("drop")).output).toBe("The next request: drop.");
    const log = (await knob("log", "--last", "2")).output.split("\n");
    expect(log).toHaveLength(2);
    expect(log[0]).toMatch(
      /^\d\d:\d\d:\d\d {2}claude-sonnet-5-5 {2}1 message {2}overloaded_error: Overloaded$/,
    );
    expect(log[1]).toMatch(/1 message {2}end_turn$/);
    const busy = await start(["s01", "--fresh"]);
    expect(busy.code).toBe(1);
    expect(busy.output).toMatch(
      /s02 \(en\) \(process \d+\) uses the practice copy: leave it first/,
    );
    child.stdin.end();
    expect((await done).code).toBe(0);
    expect(existsSync(worldFile())).toBe(false);
  });

  it("breaks one key of three, or a platform, and shows which key was used", async () => {
    section("en", "s09_resilience");
    const { child, done, says } = launch("start.ts", ["s09"]);
    await says("section s09");
    expect(await knob("fail", "401", "--key", "2", "--for", "10m")).toEqual({
      code: 0,
      output: "The requests with key 2 within 600 s: 401.",
    });
    child.stdin.write("with ANTHROPIC_API_KEY_2: hi\n");
    await says("error authentication_error");
    child.stdin.write("with ANTHROPIC_API_KEY_3: what is 2+3\n");
    await says("2+3 = 5");
    const log = (await knob("log")).output;
    expect(log).toMatch(/claude-sonnet-5-5 {2}key 2 {2}1 message {2}authentication_error: /);
    expect(log).toMatch(/claude-sonnet-5-5 {2}key 3 {2}1 message {2}end_turn$/);
    expect((await knob("fail", "off")).output).toBe("No more failures.");
    child.stdin.write("with ANTHROPIC_API_KEY_2: what is 3+4\n");
    await says("3+4 = 7");
    expect((await knob("fail", "telegram", "403", "--chat", "alice")).output).toBe(
      "The next message on Telegram to alice: 403.",
    );
    const world = JSON.parse(readFileSync(worldFile(), "utf8"));
    const address = `${world.telegram}/bot123456:practice-token-of-the-fake-telegram/sendMessage`;
    const send = async () =>
      (await fetch(`${address}?${new URLSearchParams({ chat_id: "1001", text: "hi" })}`)).status;
    expect([await send(), await send()]).toEqual([403, 200]);
    child.stdin.end();
    await done;
  });

  it("says what it does not understand", async () => {
    const { child, says } = launch("start.ts", []);
    await says("section s01");
    const cases: [string[], string][] = [
      [["fail", "418"], 'There is no failure "418"; there are: 400'],
      [["fail", "529", "--times", "many"], '--times wants a whole number, not "many"'],
      [["fail", "telegram", "500"], "s01 (en) has no channels yet: npm start -- s04 has."],
      [["slow", "soon"], "slow soon? Say slow 5s, or slow off."],
      [["jump"], 'There is no "jump".'],
      [["--loud"], "npm run practice -- fail 529"],
    ];
    for (const [args, sentence] of cases) {
      const { code, output } = await knob(...args);
      expect(code).toBe(1);
      expect(output).toContain(sentence);
    }
    child.stdin.end();
    await ended(child);
  });

  it("says that no world is running, also when one was killed", async () => {
    expect(await knob("log")).toEqual({
      code: 1,
      output: "No practice world is running: start one with npm start.",
    });
    const { child, says } = launch("start.ts", []);
    await says("section s01");
    await ended(child, () => child.kill("SIGKILL"));
    const { code, output } = await knob("log");
    expect(code).toBe(1);
    expect(output).toContain(`process ${child.pid} is gone and left ${worldFile()} behind`);
    // The next start is not hindered by it.
    expect((await start(["s01", "--fresh"], "hi\n")).output).toContain("reply Hello");
  });

  it("starts a model by itself when no world is running", async () => {
    const { child, says } = launch("knobs.ts", []);
    const output = await says(/ANTHROPIC_BASE_URL=\S+\n/);
    const url = /ANTHROPIC_BASE_URL=(\S+)/.exec(output)?.[1] ?? "";
    const env = { ANTHROPIC_API_KEY: "practice", ANTHROPIC_BASE_URL: url };
    expect((await start(["s01"], "hi\n", env)).output).toContain("reply Hello");
    expect((await knob("log")).output).toMatch(/1 message {2}end_turn$/);
    await ended(child, () => child.kill("SIGTERM"));
    if (process.platform !== "win32") expect(existsSync(worldFile())).toBe(false);
  });

  it("has help", async () => {
    const { code, output } = await knob("--help");
    expect(code).toBe(0);
    expect(output).toContain("npm run practice -- slow 5s");
    expect(output).toContain("npm run practice -- fail telegram 429");
    expect(output).toContain("529");
  });
});

describe.skipIf(process.platform === "win32")("signals", () => {
  it("SIGTERM goes on to the section, and the world is cleaned up", async () => {
    const { child, done, says } = launch("start.ts", []);
    await says("section s01");
    child.kill("SIGTERM");
    expect((await done).code).toBe(143);
    expect(existsSync(worldFile())).toBe(false);
  });

  it("in a terminal there is a menu, and Ctrl+C belongs to the section", async () => {
    const { spawn: open } = await import("@lydell/node-pty");
    section("zh", "s01_agent_loop");
    const { CI: _, ...env } = process.env;
    const terminal = open(process.execPath, ["--import", "tsx", "practice/start.ts"], {
      cwd: root,
      env: { ...env, ANTHROPIC_API_KEY: "", LC_ALL: "C" },
      cols: 120,
    });
    let output = "";
    const watchers = new Set<() => void>();
    terminal.onData((data) => {
      output += data;
      for (const watch of watchers) watch();
    });
    const says = (wanted: string): Promise<void> =>
      new Promise((resolve) => {
        const watch = (): void => {
          if (!output.includes(wanted)) return;
          watchers.delete(watch);
          resolve();
        };
        watchers.add(watch);
        watch();
      });
    const exit = new Promise<number>((resolve) => {
      terminal.onExit(({ exitCode }) => resolve(exitCode));
    });
    await says("Language (en English, zh 中文) [en]: ");
    terminal.write("\r");
    await says("not there yet: s03 s04 s05 s06 s07 s08 s09 s10");
    await says("Section [s01]: ");
    terminal.write("2\r");
    await says("section s02_tool_use en");
    terminal.write("\x03");
    await says("stopped a reply");
    terminal.write("what is 2+3\r");
    await says("reply 2+3 = 5");
    terminal.write("exit 4\r");
    expect(await exit).toBe(4);
    expect(existsSync(worldFile())).toBe(false);
  });

  it.each([
    [{ LC_ALL: "", LC_MESSAGES: "", LANG: "zh_CN.UTF-8" }, "zh 中文, en English) [zh]"],
    [{ LC_ALL: "ja_JP.UTF-8", LANG: "zh_CN.UTF-8" }, "en English, zh 中文) [en]"], // no ja here
    [{ LC_ALL: "", LC_MESSAGES: "zh", LANG: "en_US.UTF-8" }, "zh 中文, en English) [zh]"],
    [{ LC_ALL: "C", LANG: "zh_CN.UTF-8" }, "en English, zh 中文) [en]"],
  ])("the menu offers the machine's language first: %j", async (locale, offer) => {
    const { spawn: open } = await import("@lydell/node-pty");
    section("zh", "s01_agent_loop");
    const { CI: _, ...env } = process.env;
    const terminal = open(process.execPath, ["--import", "tsx", "practice/start.ts"], {
      cwd: root,
      env: { ...env, ANTHROPIC_API_KEY: "", ...locale },
      cols: 120,
    });
    let output = "";
    const exit = new Promise((resolve) => terminal.onExit(resolve));
    terminal.onData((data) => {
      output += data;
      if (/\[(en|zh)\]: /.test(data)) terminal.write("\x03");
    });
    await exit;
    expect(output).toContain(`Language (${offer}: `);
  });

  it("Ctrl+C in the menu leaves", async () => {
    const { spawn: open } = await import("@lydell/node-pty");
    const { CI: _, ...env } = process.env;
    const terminal = open(process.execPath, ["--import", "tsx", "practice/start.ts"], {
      cwd: root,
      env: { ...env, ANTHROPIC_API_KEY: "" },
    });
    const exit = new Promise<number>((resolve) => {
      terminal.onExit(({ exitCode }) => resolve(exitCode));
    });
    let output = "";
    terminal.onData((data) => {
      output += data;
      if (data.includes("Section [s01]")) terminal.write("\x03");
    });
    expect(await exit).toBe(0);
    expect(output).not.toContain("section s01");
  });
});
