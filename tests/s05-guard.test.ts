/** s05, what a client must not learn, send or guess; and what an owner can do from afar. */

import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import {
  englishFrom,
  printed,
  type SectionFile,
  sectionsFrom,
  settings,
  start,
  temporaryFolder,
} from "./helper.ts";
import { countOf, wording } from "./wording.ts";
import { afterwards, appOf05, load05, openWorld } from "./world.ts";

const gatewayOnly = (section: SectionFile, more = {}) =>
  openWorld(section, { telegram: false, feishu: false, settings: more });

async function connect(address: string): Promise<WebSocket> {
  const socket = new WebSocket(address);
  afterwards(() => socket.terminate());
  await new Promise((resolve, reject) => socket.once("open", resolve).once("error", reject));
  return socket;
}

async function exchange(socket: WebSocket, message: unknown) {
  socket.send(JSON.stringify(message));
  return new Promise<{ error?: { code: number; message: string }; result?: unknown }>((resolve) =>
    socket.once("message", (data) => resolve(JSON.parse(String(data)))),
  );
}

const status = (id: number) => ({ jsonrpc: "2.0", id, method: "status" });

describe.each(sectionsFrom("s05"))("$name, the list of sessions", (section) => {
  it("names once what it can't read, and lists the others", async () => {
    const { SessionStore } = await load05(section);
    const dir = temporaryFolder();
    const { id } = new SessionStore(dir).create("agent:luna:ws:direct:a", "of Ada");
    mkdirSync(join(dir, "b"));
    writeFileSync(join(dir, "b/torn.jsonl"), "[]\n");
    mkdirSync(join(dir, "b/folder.jsonl"));
    writeFileSync(join(dir, "no-folder"), "");
    const store = new SessionStore(dir);
    for (let count = 0; count < 2; count++) {
      const headers = await store.headers();
      expect(headers.map((one) => `${one.id} ${one.label}`).sort()).toEqual(
        [`${id} of Ada`, "torn "].sort(),
      );
    }
    const badLine = "{this.file}, line {shown}: not readable, skipped. It stays in the file.";
    expect(countOf(printed(), wording(section, badLine, { shown: 1 }))).toBe(1);
    const quarantined = "{file} is quarantined (renamed to {path.basename(name)}): {why}";
    for (const file of [join(dir, "b/folder.jsonl"), join(dir, "no-folder")]) {
      expect(countOf(printed(), wording(section, quarantined, { file })), file).toBe(1);
    }
  });
});

describe.each(sectionsFrom("s05"))("$name, a client", (section) => {
  it("is told that its turn failed, and the log why", async () => {
    const s05 = await load05(section, settings());
    const app = appOf05(s05);
    const secret = "ENOENT: no such file, open '/home/ada/.state/sessions'";
    app.store.current = () => {
      throw new Error(secret);
    };
    const send = async () =>
      s05.METHODS.send?.({ text: "hi" }, app, { peerId: "p", notify: () => {} });
    const error: unknown = await send().catch((reason) => reason);
    expect(error).toMatchObject({ code: -32000, message: expect.stringContaining("failed") });
    expect(String(error)).not.toContain("/home/ada");
    expect(printed()).toContain(secret);
  });

  it("runs the commands that are meant for it, and no other", async () => {
    const s05 = await load05(section, settings());
    const app = appOf05(s05);
    const run = async (line: unknown) =>
      s05.METHODS.command?.({ line }, app, { peerId: "p", notify: () => {} });
    for (const line of ["/inbox retry", "inbox retry", "  /inbox retry  "]) {
      expect(await run(line)).toMatchObject({ text: expect.any(String) });
    }
    const refused = ["/memory", "/search tea", "/prompt", "/inbox", "/inbox retryx", "/new", "", 7];
    for (const line of [...refused, "/constructor", "/help\n/inbox retry"]) {
      const error: unknown = await run(line).catch((reason) => reason);
      expect(error, String(line)).toMatchObject({
        code: -32602,
        message: expect.stringContaining("line"),
      });
    }
    const after: [since: string, line: string][] = [
      ["s08", "/retry"],
      ["s10", "/reset"],
    ];
    for (const [since, line] of after.filter(([first]) => first <= section.id)) {
      expect(await run(line), since).toMatchObject({ text: expect.any(String) });
    }
  });

  it("names a group to /route", async () => {
    const s05 = await load05(section, settings());
    const app = appOf05(s05);
    const route = async (args: string) => String(await s05.COMMANDS.route?.run(args, app, {}));
    expect(await route("telegram 1001")).toContain(":telegram:direct:1001");
    expect(await route("telegram -1007")).toContain(":telegram:group:-1007");
    expect(await route("feishu oc_1 cli_1 tenant")).toContain(":feishu:direct:oc_1");
    expect(await route("feishu oc_1 cli_1 tenant group")).toContain(":feishu:group:oc_1");
    expect(await route("feishu oc_1 group")).toContain(":feishu:group:oc_1");
  });
});

describe.each(englishFrom("s05"))("$name, the gateway", (section) => {
  it("takes at most 100 requests at once, and answers more than 1 MiB to a client that reads", async () => {
    const world = await gatewayOnly(section);
    const socket = await connect(world.gateway);
    const hundred = Array.from({ length: 100 }, (_, id) => status(id));
    expect(await exchange(socket, hundred)).toHaveLength(100);
    expect(await exchange(socket, [...hundred, status(100)])).toMatchObject({
      error: { code: -32600, message: expect.stringContaining("100") },
    });
    // Each answer names the method that there is not, in more words than it was asked for.
    const method = "x".repeat(10_430);
    const long = hundred.map((one) => ({ ...one, method }));
    expect(JSON.stringify(long).length).toBeLessThan(2 ** 20);
    const answers = await exchange(socket, long);
    expect(answers).toHaveLength(100);
    expect(JSON.stringify(answers).length).toBeGreaterThan(2 ** 20);
    expect(await exchange(socket, status(1))).toMatchObject({ id: 1 });
  });

  it("uses the token of its file, whatever ends it, and replaces one that can't be used", async () => {
    const world = await gatewayOnly(section);
    const file = join(world.state, "gateway-token");
    const tokenNow = () => new URL(world.gateway).searchParams.get("token");
    writeFileSync(file, "a-token-by-hand-1\n");
    await world.restart();
    expect(tokenNow()).toBe("a-token-by-hand-1");
    expect(readFileSync(file, "utf8")).toBe("a-token-by-hand-1\n");
    const obstacles = [
      () => writeFileSync(file, "short"),
      () => mkdirSync(file),
      () => symlinkSync(join(world.state, "no", "where"), file),
    ];
    for (const [index, place] of obstacles.entries()) {
      world.program.kill();
      await world.program.end();
      rmSync(file, { force: true });
      place();
      await world.restart();
      expect(tokenNow(), String(index)).toMatch(/^[\w-]{32}$/);
      const names = readdirSync(world.state).filter((name) => name.startsWith("gateway-token."));
      expect(names).toHaveLength(index + 1);
    }
  });

  it("refuses a token that could be guessed, and names it", async () => {
    const program = start(section, settings(undefined, { GATEWAY_TOKEN: "fifteen letters" }));
    const { code, text } = await program.end();
    expect(code).toBe(1);
    expect(text).toMatch(/GATEWAY_TOKEN must have at least 16 characters/);
  });
});
