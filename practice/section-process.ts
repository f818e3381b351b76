/** The section as a child process of `npm start`. */

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { constants } from "node:os";
import { ROOT } from "./world.ts";

export interface SectionCommand {
  file: string;
  words: string[];
  settings: Record<string, string>;
  /** Is told the process of the section. */
  onStart?(pid: number): Promise<unknown>;
}

export interface Ended {
  code: number;
  isKilled: boolean;
}

/** Runs a section until it ends. */
export async function runSection(command: SectionCommand): Promise<Ended> {
  const { file, words, settings, onStart } = command;
  const child = spawn(process.execPath, ["--import", "tsx", file, ...words], {
    cwd: ROOT,
    stdio: "inherit",
    env: { ...process.env, ...settings },
  });
  // Ctrl+C goes to all processes of the terminal, so the child has received it and decides what to
  // do. The other signals come to this process alone and are passed on.
  process.on("SIGINT", () => {});
  for (const signal of ["SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => child.kill(signal));
  }
  if (process.stdin.isTTY) suspendWith(child);
  const ended = new Promise<Ended>((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, signal) => {
      const exitCode = code ?? 128 + (signal ? constants.signals[signal] : 0);
      resolve({ code: exitCode, isKilled: signal === "SIGKILL" });
    });
  });
  if (child.pid !== undefined) await onStart?.(child.pid);
  return await ended;
}

/**
 * Ctrl+Z in a section stops the section alone, because readline takes the key and stops its own
 * process. The shell would then wait for npm and for us, so the whole job has to stop.
 */
function suspendWith(child: ChildProcess): void {
  process.on("SIGCHLD", () => {
    if (child.exitCode === null && isStopped(child.pid)) process.kill(0, "SIGTSTP");
  });
}

function isStopped(pid: number | undefined): boolean {
  try {
    return execFileSync("ps", ["-o", "stat=", "-p", String(pid)], { encoding: "utf8" })[0] === "T";
  } catch {
    return false; // the process has ended, or this system has no such ps
  }
}
