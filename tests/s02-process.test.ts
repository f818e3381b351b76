/** s02 as people run it: a command that runs, seen from a terminal. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  calls,
  englishFrom,
  outline,
  practice,
  results,
  SEVERAL,
  say,
  settings,
  startInTerminal,
} from "./helper.ts";

describe.each(englishFrom("s02"))("$name in a terminal", SEVERAL, (section) => {
  it("shows what runs; Ctrl+C stops a command, and the next turn works", async () => {
    const model = await practice({ rules: false });
    const given = settings(model);
    const program = startInTerminal(section, given);
    await program.prompt();

    model.script(calls(["bash", { command: "echo made> made.txt" }]), say("Made."));
    program.write("make it\r");
    expect(await program.until("Made.")).toContain("bash");
    expect(existsSync(join(String(given.CLAW0_WORKSPACE), "made.txt"))).toBe(true);
    await program.prompt();

    // It says that it runs by the title that the program shows, which it does before it runs.
    const wait = 'node -e "setTimeout(() => {}, 600000)"';
    model.script(calls(["bash", { command: wait }]));
    program.write("wait\r");
    await program.until("600000");
    program.write("\x03");
    expect(await program.prompt()).toContain("(interrupted)");

    model.script(say("Still here."));
    program.write("go on\r");
    await program.until("Still here.");
    await program.prompt();
    expect(outline(model.log.at(-1)).slice(-4)).toEqual([
      "assistant: tool_use",
      "user: tool_result",
      "assistant: (interrupted)",
      "user: go on",
    ]);
    expect(results(model.log[1])).toHaveLength(1);
    program.write("\x04");
    expect(await program.end()).toMatchObject({ code: 0 });
  });
});
