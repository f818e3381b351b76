/**
 * `npm run node24` is a short pass on Node 24, whatever Node runs the tests: every section starts,
 * answers a line, and from s04 on answers a person on Telegram, all of it through a proxy. npm has
 * packages with the program `node` in them; one is installed into node_modules/.cache.
 */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startFeishu } from "../practice/feishu.ts";
import { startModel } from "../practice/model.ts";
import { startTelegram } from "../practice/telegram.ts";
import { FIRST_WITH, ROOT, settingsFor } from "../practice/world.ts";
import { SECTIONS } from "../sessions/names.ts";
import { startProxy } from "./proxy.ts";

const VERSION = "24";
const TIME_LIMIT = 60_000; // ms for one section

/** Installs Node if it is not there yet; gives the path of the program. */
function nodeProgram(): string {
  if (process.versions.node.startsWith(`${VERSION}.`)) return process.execPath;
  const { platform, arch } = process;
  const isAppleSilicon = platform === "darwin" && arch === "arm64"; // it has a name of its own
  const system = platform === "win32" ? "win" : platform;
  const name = `${isAppleSilicon ? "node-bin" : "node"}-${system}-${arch}`;
  const folder = join(ROOT, "node_modules", ".cache", `node-${VERSION}`);
  const program = join(folder, "node_modules", name, "bin", system === "win" ? "node.exe" : "node");
  if (existsSync(program)) return program;
  mkdirSync(folder, { recursive: true });
  const options = ["--no-save", "--no-audit", "--no-fund", "--ignore-scripts"];
  const words = ["install", ...options, "--prefix", folder, `${name}@${VERSION}`];
  execFileSync("npm", words, { cwd: folder, stdio: "inherit", shell: system === "win" });
  return program;
}

const node = nodeProgram();
const version = execFileSync(node, ["--version"], { encoding: "utf8" }).trim();
assert.match(version, new RegExp(`^v${VERSION}\\.`));

/** Starts a section, waits until it has answered on Telegram and in the terminal, and ends it. */
async function trySection(name: string): Promise<void> {
  const number = Number(name.slice(1, 3));
  const workspace = mkdtempSync(join(tmpdir(), "claw0-node24-"));
  cpSync(join(ROOT, "workspace"), workspace, {
    recursive: true,
    filter: (path) => !path.endsWith(".state"),
  });
  const [model, telegram, feishu, proxy] = await Promise.all([
    startModel(),
    startTelegram(),
    startFeishu(),
    startProxy(),
  ]);
  const world = { model: model.url, telegram, feishu, workspace, port: 0, token: "t".repeat(16) };
  const env = {
    ...process.env,
    ...settingsFor(number, world),
    ...{ HTTP_PROXY: proxy.host, HTTPS_PROXY: "", http_proxy: "", https_proxy: "" },
    ...{ NO_PROXY: "", no_proxy: "", NODE_OPTIONS: "" },
  };
  const file = join(ROOT, "sessions", "en", `${name}.ts`);
  const child = spawn(node, ["--import", "tsx", file], { cwd: ROOT, env, timeout: TIME_LIMIT });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk) => {
      output += chunk;
    });
  }
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  const hasChannels = number >= FIRST_WITH.channels;
  try {
    if (hasChannels) {
      telegram.say("alice", "what is 2+3");
      const gone = ended.then(() => assert.fail("it ended before it answered on Telegram"));
      const sent = await Promise.race([telegram.nextSent("alice"), gone]);
      assert.match(sent.text, /2\+3 = 5/);
    }
    child.stdin.end("what is 3+4\n");
    assert.equal(await ended, 0);
    assert.match(output, /3\+4 = 7/);
    const targets = new Set(proxy.asked.map(({ target }) => target));
    const wanted = hasChannels ? [model.url, telegram.url] : [];
    for (const url of wanted) assert.ok(targets.has(new URL(url).host), `${url} without the proxy`);
  } catch (error) {
    throw new Error(`${name} on Node ${version}: ${error}\n${output}`);
  } finally {
    child.kill("SIGKILL");
    await ended;
    await Promise.all([model.close(), telegram.close(), feishu.close(), proxy.close()]);
    rmSync(workspace, { recursive: true, force: true, maxRetries: 5 });
  }
}

for (const name of SECTIONS) {
  await trySection(name);
  console.log(`${name} on Node ${version}: fine`);
}
