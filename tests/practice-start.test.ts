/**
 * `npm start` and `npm run practice` as processes of their own, in a small copy of the tutorial.
 */

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { startModel } from "../practice/model.ts";
import { ROOT, settingsFor } from "../practice/world.ts";
import { startWorld } from "../practice/world-server.ts";
import { Copy, PROMPTS, suspend } from "./practice-copy.ts";

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
  console.log("section SECTION, process " + process.pid + ", words " + process.argv.slice(2));
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

/** A section that reads keys as the real ones do. */
const TERMINAL_SECTION = `
  import { createInterface } from "node:readline";
  const terminal = createInterface({ input: process.stdin, output: process.stdout, prompt: "You > " });
  terminal.on("line", (line) => {
    if (line === "quit") process.exit();
    console.log("heard " + line);
    terminal.prompt();
  });
  terminal.on("SIGCONT", () => terminal.prompt());
  terminal.prompt();
`;

// Most cases start two or three processes: on a busy machine that takes a while.
vi.setConfig({ testTimeout: 60_000 });

let copy: Copy;

beforeEach(() => {
  copy = new Copy();
  section("en", "s01_agent_loop");
  section("en", "s02_tool_use");
});

afterEach(() => copy.remove());

function section(language: string, name: string): void {
  copy.section(language, name, SECTION.replace("SECTION", `${name} ${language}`));
}

const start = (args: string[], input = "", env: Record<string, string | undefined> = {}) =>
  copy.run("start.ts", args, input, env);

async function knob(...args: string[]) {
  const { code, output } = await copy.run("knobs.ts", args);
  return { code, output: output.trim() };
}

describe("npm start without a key", () => {
  it("talks to a section at once, in a copy of the workspace", async () => {
    const { code, output } = await start([], "my name is Ada\nwhat is 2+3\n");
    expect(code).toBe(0);
    expect(output).toContain("no real model");
    expect(output).toContain(".env.example");
    expect(output).toContain("section s01_agent_loop en");
    expect(output).toContain("reply Nice to meet you, Ada.");
    expect(output).toContain("reply 2+3 = 5");
    const workspace = join(copy.root, ".practice", "workspace");
    const settings = ["practice", "claude-sonnet-5-5", workspace, "180000", ""];
    expect(output).toContain(`settings ${JSON.stringify(settings)}`);
    expect(readFileSync(join(workspace, "SOUL.md"), "utf8")).toBe("I am Luna.");
    expect(existsSync(join(workspace, ".state"))).toBe(false);
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
    expect(output).toContain("s02 还没有中文版，已有的版本：en。可选：s01_agent_loop。");
  });

  it.each([
    [["s07"], "s07 is not there yet in English. There are: s01_agent_loop, s02_tool_use."],
    [["s11"], 'There is no section "s11"; there are s01 to s10.'],
    [["tools"], 'There is no section "tools"'],
    [["s01", "--lang", "fr"], 'There is no language "fr"; there are: en, zh, ja.'],
    [["--colour"], "There is no option --colour."],
    [["--lang"], "There is no language"],
    [["s01", "--context"], "--context does not fit"],
    [["s01", "--context", "many"], '--context wants a whole number, not "many".'],
    [["s01", "--set", "COLOUR=red"], '--set wants NAME=value, not "COLOUR=red"'],
  ])("says what is not there: %s", async (args, sentence) => {
    const { code, output } = await start(args);
    expect(code).toBe(1);
    expect(output).toContain(sentence);
    expect(output).not.toMatch(/\n\s+at /); // no stack
  });

  it("names a .env in UTF-16, in which no key can be found", async () => {
    const words = Buffer.from("\ufeffANTHROPIC_API_KEY=sk-ant-abc\r\n", "utf16le");
    for (const content of [words, words.swap16()]) {
      writeFileSync(join(copy.root, ".env"), content);
      const { code, output } = await start(["s01"]);
      expect(code).toBe(1);
      expect(output.trim()).toBe(
        ".env is in UTF-16, so its settings can't be read. Save it in UTF-8.",
      );
    }
  });

  it("keeps the copy, and renews it with --fresh", async () => {
    await start(["s01"]);
    const workspace = join(copy.root, ".practice", "workspace");
    writeFileSync(join(workspace, "SOUL.md"), "changed");
    writeFileSync(join(workspace, "more.md"), "mine");
    await start(["s01"]);
    expect(readFileSync(join(workspace, "SOUL.md"), "utf8")).toBe("changed");
    await start(["s01", "--fresh"]);
    expect(readFileSync(join(workspace, "SOUL.md"), "utf8")).toBe("I am Luna.");
    expect(existsSync(join(workspace, "more.md"))).toBe(false);
  });

  it("the workspace is in the language of the section, but for files that somebody changed", async () => {
    section("zh", "s01_agent_loop");
    copy.workspaceFile("SOUL.md", readFileSync(join(ROOT, "workspace", "SOUL.md"), "utf8"));
    copy.workspaceFile("MEMORY.md", readFileSync(join(ROOT, "workspace", "MEMORY.md"), "utf8"));
    const read = (name: string) =>
      readFileSync(join(copy.root, ".practice", "workspace", name), "utf8");
    await start(["s01", "--lang", "zh"]);
    expect([read("SOUL.md"), read("MEMORY.md")].join()).toMatch(/你是 Luna.*小满/s);
    writeFileSync(join(copy.root, ".practice", "workspace", "MEMORY.md"), "- 我的。");
    await start(["s01"]);
    expect(read("SOUL.md")).toContain("You are Luna");
    expect(read("MEMORY.md")).toBe("- 我的。");
  });

  it("sets what a lesson wants", async () => {
    const args = ["s02", "--context", "1000", "--serve", "--set", "TELEGRAM_BOT_TOKEN=mine"];
    const { output } = await start(args);
    expect(output).toContain('"1000","mine"]');
    expect(output).toMatch(/process \d+, words --serve\n/);
  });

  it.each([
    ["zh_CN.UTF-8", [], "离线模拟环境", "section s01_agent_loop zh"],
    ["ja_JP.UTF-8", [], "オフラインの練習環境", "section s01_agent_loop ja"],
    ["de_DE.UTF-8", [], "Offline practice", "section s01_agent_loop en"],
    ["zh_CN.UTF-8", ["--lang", "en"], "Offline practice", "section s01_agent_loop en"],
    ["C", ["--lang=ja"], "オフラインの練習環境", "section s01_agent_loop ja"],
  ])("speaks the machine's language or the chosen one: %s %j", async (locale, args, line, said) => {
    for (const language of ["zh", "ja"]) section(language, "s01_agent_loop");
    const { output } = await start(args, "", { LC_ALL: locale });
    expect(output).toContain(line);
    expect(output).toContain(said);
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
    const { model, telegram, feishu, close } = await startedWorld();
    await close();
    const world = { model: model.url, telegram, feishu, port: 1, token: "t", workspace: "w" };
    const settings = settingsFor(number, world);
    const later = Object.entries(settings).filter(([name]) => /HEARTBEAT|KEY_\d|FALL/.test(name));
    expect(later).toHaveLength(12);
    expect(Object.fromEntries(later.filter(([, value]) => value))).toEqual(wanted);
  });

  async function startedWorld() {
    const world = await startWorld(copy.root);
    const { model, telegram, feishu } = world;
    return { model, telegram, feishu, close: () => world.close() };
  }

  it("lets nobody else's settings through", async () => {
    section("en", "s09_resilience");
    const theirs = { FALLBACK_MODELS: "theirs", ANTHROPIC_API_KEY_4: "sk-theirs" };
    const hours = { HEARTBEAT_ACTIVE_START: "3", HEARTBEAT_ACTIVE_END: "4" };
    writeFileSync(join(copy.root, ".env"), "HEARTBEAT_INTERVAL=7\n");
    const { output } = await start(["s09"], "", { ...theirs, ...hours });
    const [, later = ""] = /^later (.*)$/m.exec(output) ?? [];
    expect(JSON.parse(later)).toEqual({ ...HEARTBEAT, ...KEYS });
  });

  it("lets a person say how often the heart beats", async () => {
    section("en", "s07_heartbeat_cron");
    const { output } = await start(["s07", "--set", "HEARTBEAT_INTERVAL=20"]);
    expect(output).toContain('"HEARTBEAT_INTERVAL":"20"');
  });

  it("takes the key of .env.example for none", async () => {
    const env = "ANTHROPIC_API_KEY=sk-ant-your-key-here\nMODEL_ID=mine\n";
    writeFileSync(join(copy.root, ".env"), env);
    const { output } = await start([], "", { ANTHROPIC_API_KEY: undefined });
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
    expect(existsSync(join(copy.root, ".practice"))).toBe(false);
    await model.close();
  });
});

const processOf = (output: string): number => Number(/process (\d+), words/.exec(output)?.[1]);

describe("npm run practice", () => {
  it("turns the knobs of the world that npm start has started", async () => {
    const { child, done, says } = copy.launch("start.ts", ["s02"]);
    const pid = processOf(await says(/section s02.*\n/));
    const status = (await knob()).output;
    expect(status).toContain(`s02 (en) is running in process ${pid}.\n`);
    expect(status).toMatch(/ANTHROPIC_API_KEY=practice ANTHROPIC_BASE_URL=http:/);
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
    child.stdin.end();
    expect((await done).code).toBe(0);
    // The world stays, with its log.
    expect((await knob("log", "--last", "2")).output.split("\n")).toEqual(log);
    expect((await knob()).output).toContain("No section is running; npm start runs one.");
  });

  it("refuses a second section, and names the one that has the workspace", async () => {
    const { child, done, says } = copy.launch("start.ts", ["s02"]);
    const pid = processOf(await says(/section s02.*\n/));
    for (const args of [["s01"], ["s01", "--fresh"]]) {
      const { code, output } = await start(args);
      expect(code).toBe(1);
      expect(output).toBe(
        `s02 (en) is running in process ${pid} and has the practice workspace. ` +
          "Leave it with quit, or kill it with npm run practice -- kill.\n",
      );
    }
    child.stdin.end();
    await done;
    expect((await start(["s01"])).code).toBe(0);
  });

  it("breaks one key of three, or a platform, and shows which key was used", async () => {
    section("en", "s09_resilience");
    const { child, done, says } = copy.launch("start.ts", ["s09"]);
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
    child.stdin.end();
    await done;
  });

  it("says what it does not understand", async () => {
    const cases: [string[], string][] = [
      [["fail", "418"], 'There is no failure "418"; there are: 400'],
      [["fail", "529", "--times", "many"], '--times wants a whole number, not "many"'],
      [["fail", "529", "--for", "ever"], "--for ever? Say --for 5s."],
      [["slow", "soon"], "slow soon? Say slow 5s, or slow off."],
      [["jump"], 'There is no "jump".'],
      [["--loud"], "There is no option --loud."],
      [["--loud"], "npm run practice -- fail 529"],
      [["jump", "--lang", "zh"], "没有“jump”这个命令。"],
      [["--loud", "--lang", "ja"], "--loudというオプションはありません。"],
      [["stop"], "No practice world is running."],
      [["kill"], "No practice world is running."],
    ];
    for (const [args, sentence] of cases) {
      const { code, output } = await knob(...args);
      expect(code).toBe(1);
      expect(output).toContain(sentence);
    }
  });

  it("starts the world when there is none, also after one was killed, and ends it", async () => {
    expect(await knob("log")).toEqual({ code: 0, output: "No requests yet." });
    await copy.endWorld(); // with SIGKILL
    expect((await start(["s01", "--fresh"], "hi\n")).output).toContain("reply Hello");
    expect(await knob("stop")).toEqual({ code: 0, output: "The practice world has ended." });
    expect(copy.processes()).toEqual([]);
  });

  it("has a model for a section that somebody starts with settings of their own", async () => {
    const [, url = ""] = /ANTHROPIC_BASE_URL=(\S+)/.exec((await knob()).output) ?? [];
    const env = { ANTHROPIC_API_KEY: "practice", ANTHROPIC_BASE_URL: url };
    expect((await start(["s01"], "hi\n", env)).output).toContain("reply Hello");
    expect((await knob("log")).output).toMatch(/1 message {2}end_turn$/);
  });

  it("has help in three languages", async () => {
    const heads = {
      en: "says which section",
      zh: "显示正在运行的章节",
      ja: "実行中の章と練習環境を表示",
    };
    for (const [language, head] of Object.entries(heads)) {
      const { code, output } = await knob("--help", "--lang", language);
      expect(code).toBe(0);
      expect(output).toContain(head);
      expect(output).toContain("npm run practice -- fail telegram 429");
      expect(output).toContain("529");
    }
  });
});

describe.skipIf(process.platform === "win32")("signals", () => {
  it("SIGTERM goes on to the section", async () => {
    const { child, done, says } = copy.launch("start.ts", []);
    await says("section s01");
    child.kill("SIGTERM");
    expect((await done).code).toBe(143);
  });

  it("kill and stop end the section that runs", async () => {
    const first = copy.launch("start.ts", []);
    const pid = processOf(await first.says(/section s01.*\n/));
    expect((await knob("kill")).output).toBe(`Killed s01 (en), process ${pid}, with SIGKILL.`);
    const { code, output } = await first.done;
    expect(code).toBe(137);
    expect(output).toContain(
      "s01 (en) was killed. What it had accepted is on disk; npm start -- s01",
    );
    expect(await knob("kill")).toEqual({
      code: 1,
      output: "No section is running; npm start runs one.",
    });
    const second = copy.launch("start.ts", []);
    await second.says("section s01");
    expect((await knob("stop")).output).toBe("The practice world has ended, and s01 (en) with it.");
    expect((await second.done).code).toBe(143);
  });

  it("a section that has lost its npm start keeps the workspace until it is killed", async () => {
    const lasting = `console.log("section: process " + process.pid + ", words");
      setInterval(() => {}, 60_000);`;
    copy.section("en", "s02_tool_use", lasting);
    const { child, done, says } = copy.launch("start.ts", ["s02"]);
    const pid = processOf(await says(/section:.*\n/));
    child.kill("SIGKILL");
    expect((await start(["s01"])).output).toContain(`s02 (en) is running in process ${pid}`);
    expect((await knob("kill")).output).toBe(`Killed s02 (en), process ${pid}, with SIGKILL.`);
    await done;
    expect((await start(["s01"])).code).toBe(0);
  });

  it("in a terminal there is a menu, and Ctrl+C belongs to the section", async () => {
    section("zh", "s01_agent_loop");
    const { says, type, exit } = copy.startInTerminal();
    await says("Language (en English, zh 中文) [en]: ");
    type("\r");
    await says("not there yet: s03 s04 s05 s06 s07 s08 s09 s10");
    await says("Section [s01]: ");
    type("2\r");
    await says("section s02_tool_use en");
    type("\x03");
    await says("stopped a reply");
    type("what is 2+3\r");
    await says("reply 2+3 = 5");
    type("exit 4\r");
    expect(await exit).toBe(4);
  });

  it("the menu asks again after a wrong answer", async () => {
    section("zh", "s01_agent_loop");
    const { says, type, exit } = copy.startInTerminal();
    await says("[en]: ");
    type("fr\r");
    await says('There is no language "fr"; there are: en, zh.');
    await says("[en]: ", 2);
    type("ZH\r");
    await says("章节 [s01]：");
    type("s12\r");
    await says("没有“s12”这一节，可选 s01 到 s10。");
    await says("章节 [s01]：", 2);
    type("7\r");
    await says("s07 还没有中文版。可选：s01_agent_loop。");
    await says("章节 [s01]：", 3);
    type("1\r");
    await says("section s01_agent_loop zh");
    type("exit 0\r");
    expect(await exit).toBe(0);
  });

  it.each([
    [{ LC_ALL: "", LC_MESSAGES: "", LANG: "zh_CN.UTF-8" }, "语言（zh 中文、en English）[zh]："],
    [{ LC_ALL: "ja_JP.UTF-8", LANG: "zh_CN.UTF-8" }, "Language (en English, zh 中文) [en]: "], // no ja here
    [{ LC_ALL: "", LC_MESSAGES: "zh", LANG: "en_US.UTF-8" }, "语言（zh 中文、en English）[zh]："],
    [{ LC_ALL: "C", LANG: "zh_CN.UTF-8" }, "Language (en English, zh 中文) [en]: "],
  ])("the menu offers the machine's language first: %j", async (locale, offer) => {
    section("zh", "s01_agent_loop");
    const { says, type, exit } = copy.startInTerminal([], locale);
    await says(offer);
    type("\x03");
    expect(await exit).toBe(0);
  });

  it("Ctrl+C in the menu leaves", async () => {
    const { says, type, exit, output } = copy.startInTerminal();
    await says("Section [s01]");
    type("\x03");
    expect(await exit).toBe(0);
    expect(output.text).not.toContain("section s01");
  });

  it("Ctrl+Z suspends the whole job, so that the shell comes back, and fg goes on", async () => {
    copy.section("en", "s01_agent_loop", TERMINAL_SECTION);
    const shell = await copy.shell();
    shell.type("node --import tsx practice/start.ts s01\r");
    await shell.says("You > ");
    await suspend(shell);
    await shell.says("You > ", 2);
    shell.type("hello\r");
    await shell.says("heard hello");
    shell.type("quit\r");
    await shell.says("shell> ", PROMPTS);
    shell.type("exit\r");
    await shell.exit;
  });
});
