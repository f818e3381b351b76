/** Ctrl+Z while a tool reads from the terminal. */

import type { Interface } from "node:readline";

/**
 * Ctrl+Z suspends the whole job. By itself readline stops its own process only, and the shell would
 * then wait for npm, which started it.
 */
export function suspendWholeJob(terminal: Interface): void {
  const { stdin } = process;
  terminal.on("SIGTSTP", () => {
    process.once("SIGCONT", () => {
      stdin.setRawMode(true);
      terminal.prompt(true);
    });
    stdin.setRawMode(false);
    process.kill(0, "SIGTSTP");
  });
}
