/**
 * A small copy of the tutorial with sections of our own, in which the tools of the practice world
 * run as processes. `endAll` ends them and the world, and looks that nothing is left.
 */

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type IPty, spawn as spawnTerminal } from "@lydell/node-pty";
import { readWorldFile } from "../practice/world-file.ts";

const PROJECT = join(import.meta.dirname, "..");

/** Nobody's own key, no terminal's menu, and English, unless a case says otherwise. */
const ENV = { ANTHROPIC_API_KEY: "", TELEGRAM_BOT_TOKEN: "somebody's", LC_ALL: "C" };

/** Output that can be waited for. */
export class Output {
  text = "";
  isOver = false;
  private readonly watchers = new Set<() => void>();

  add(chunk: string): void {
    this.text += chunk.replaceAll("\r", "");
    this.notify();
  }

  end(): void {
    this.isOver = true;
    this.notify();
  }

  /** Resolves with all output when it has this, for the second or third time if wanted. */
  says(wanted: string | RegExp, times = 1): Promise<string> {
    const pattern = typeof wanted === "string" ? RegExp(escaped(wanted), "g") : wanted;
    const all = new RegExp(pattern, `${pattern.flags.replace("g", "")}g`);
    return new Promise((resolve, reject) => {
      const watch = (): void => {
        const isThere = (this.text.match(all)?.length ?? 0) >= times;
        if (!isThere && !this.isOver) return;
        this.watchers.delete(watch);
        if (isThere) resolve(this.text);
        else reject(new Error(`"${wanted}" never came in:\n${this.text}`));
      };
      this.watchers.add(watch);
      watch();
    });
  }

  private notify(): void {
    for (const watch of this.watchers) watch();
  }
}

type Env = Record<string, string | undefined>;

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** Stops the command of a shell with Ctrl+Z, uses the shell, and brings the command back. */
export async function suspend(shell: Awaited<ReturnType<Copy["shell"]>>): Promise<void> {
  shell.type("\x1a");
  await shell.says("Stopped");
  shell.type("echo back $((1 + 1))\r");
  await shell.says("back 2");
  shell.type("fg\r");
}

/** How often a shell shows its prompt: at the beginning, after `suspend` and its echo, at the end. */
export const PROMPTS = 4;

export class Copy {
  readonly root = realpathSync.native(mkdtempSync(join(tmpdir(), "practice-")));
  private readonly running = new Set<ChildProcess>();
  private readonly terminals = new Set<IPty>();

  constructor() {
    cpSync(join(PROJECT, "practice"), join(this.root, "practice"), { recursive: true });
    mkdirSync(join(this.root, "sessions"));
    const names = join("sessions", "names.ts");
    cpSync(join(PROJECT, names), join(this.root, names));
    symlinkSync(join(PROJECT, "node_modules"), join(this.root, "node_modules"), "junction");
    writeFileSync(join(this.root, "package.json"), '{ "type": "module" }');
    mkdirSync(join(this.root, "workspace", ".state"), { recursive: true });
    this.workspaceFile("SOUL.md", "I am Luna.");
  }

  workspaceFile(name: string, text: string): void {
    writeFileSync(join(this.root, "workspace", name), text);
  }

  section(language: string, name: string, code: string): void {
    const folder = join(this.root, "sessions", language);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `${name}.ts`), code);
  }

  /** Starts a tool as a process. */
  launch(script: string, args: string[], env: Env = {}) {
    const words = ["--import", "tsx", join(this.root, "practice", script), ...args];
    const options = { cwd: this.root, env: { ...process.env, ...ENV, ...env } };
    const child = spawn(process.execPath, words, options);
    this.running.add(child);
    const output = new Output();
    child.stdin.on("error", () => {}); // it may be gone before it has read anything
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (chunk) => output.add(chunk));
    }
    const done = new Promise<{ code: number | null; output: string }>((resolve) => {
      child.once("close", (code) => {
        this.running.delete(child);
        resolve({ code, output: output.text });
        output.end();
      });
    });
    const says = (wanted: string | RegExp, times?: number) => output.says(wanted, times);
    return { child, done, says };
  }

  /** Runs a tool to its end, with some lines as its input. */
  run(script: string, args: string[], input = "", env: Env = {}) {
    const { child, done } = this.launch(script, args, env);
    child.stdin.end(input);
    return done;
  }

  /** A command in a terminal of its own. */
  terminal(command: string, args: string[], env: Env = {}) {
    const { CI: _, ...own } = process.env;
    const terminal = spawnTerminal(command, args, {
      cwd: this.root,
      cols: 120,
      rows: 30,
      env: { ...own, ...ENV, ...env },
    });
    this.terminals.add(terminal);
    const output = new Output();
    terminal.onData((data) => output.add(data));
    const exit = new Promise<number>((resolve) => {
      terminal.onExit(({ exitCode }) => {
        this.terminals.delete(terminal);
        output.end();
        resolve(exitCode);
      });
    });
    const says = (wanted: string | RegExp, times?: number) => output.says(wanted, times);
    return { terminal, output, exit, says, type: (text: string) => terminal.write(text) };
  }

  /** A shell in a terminal of its own, ready for a command. */
  async shell() {
    const shell = this.terminal("bash", ["--norc", "-i"], { PS1: "shell> " });
    await shell.says("shell> ");
    return shell;
  }

  /** `npm start` in a terminal of its own. */
  startInTerminal(args: string[] = [], env: Env = {}) {
    return this.terminal(process.execPath, ["--import", "tsx", "practice/start.ts", ...args], env);
  }

  /** Ends the processes and the world, and removes the copy. */
  async remove(): Promise<void> {
    await this.endAll();
    rmSync(this.root, { recursive: true, force: true, maxRetries: 5 });
  }

  /** Ends all processes; fails if one is left. */
  async endAll(): Promise<void> {
    const ends = [...this.running].map((child) => {
      const end = once(child, "close");
      child.kill("SIGKILL");
      return end;
    });
    const closed = [...this.terminals].map((terminal) => {
      const end = new Promise((resolve) => terminal.onExit(resolve));
      terminal.kill("SIGKILL");
      return end;
    });
    await Promise.all([...ends, ...closed, this.endWorld()]);
    const left = this.processes();
    if (left.length > 0) throw new Error(`These processes are left:\n${left.join("\n")}`);
  }

  /** Kills the world and waits until it is gone. */
  async endWorld(): Promise<void> {
    const { file } = readWorldFile(this.root);
    if (!file) return;
    const socket = connect(Number(new URL(file.url).port), "127.0.0.1");
    const gone = new Promise((resolve) => socket.once("close", resolve)); // after an error as well
    socket.on("error", () => {});
    socket.once("connect", () => process.kill(file.pid, "SIGKILL"));
    await gone;
  }

  /** What runs in this copy, but for sections that are about to notice that their input ended. */
  processes(): string[] {
    if (process.platform === "win32") return [];
    const all = execFileSync("ps", ["-eo", "pid=,stat=,args="], { encoding: "utf8" }).split("\n");
    const isWorld = (line: string) => /world-process/.test(line) && !/^\s*\d+\s+Z/.test(line);
    return all.filter((line) => line.includes(this.root) && isWorld(line));
  }
}
