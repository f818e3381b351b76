/** s04 in a terminal: what arrives while a line is being typed does not destroy the line. */

import { describe, expect, it } from "vitest";
import { englishFrom, settings, start, startInShell } from "./helper.ts";
import { echoModel, openWorld } from "./world.ts";

/** What a screen of so many columns shows after these bytes: enough of a terminal for this. */
function screen(raw: string, columns: number): string[] {
  const rows: string[][] = [[]];
  let [row, column] = [0, 0];
  const esc = String.fromCharCode(27);
  const line = () => {
    while (rows.length <= row) rows.push([]);
    return rows[row] ?? [];
  };
  /** The control sequences that move the cursor or erase, by their last letter. */
  const sequences: Record<string, (count: number) => void> = {
    A: (count) => (row = Math.max(0, row - count)),
    B: (count) => (row += count),
    C: (count) => (column += count),
    D: (count) => (column = Math.max(0, column - count)),
    G: (count) => (column = count - 1),
    K: () => line().splice(column),
    J: () => {
      line().splice(column);
      rows.splice(row + 1);
    },
  };
  const put = (character: string) => {
    // The cursor of a real terminal waits at the edge until the next character comes.
    if (column >= columns) [row, column] = [row + 1, 0];
    const cells = line();
    while (cells.length < column) cells.push(" ");
    cells[column] = character;
    column += 1;
  };
  for (const piece of raw.match(new RegExp(`${esc}\\[([?\\d;]*)([A-Za-z])|[^]`, "gu")) ?? []) {
    const [, numbers = "", letter] =
      new RegExp(`^${esc}\\[([?\\d;]*)([A-Za-z])$`).exec(piece) ?? [];
    if (letter) sequences[letter]?.(Number(numbers || 1));
    else if (piece === "\r") column = 0;
    else if (piece === "\n") row += 1;
    else if (piece >= " ") put(piece);
  }
  return rows.map((cells) => cells.join("").trimEnd());
}

describe.each(englishFrom("s04"))("$name in a terminal", (section) => {
  const COLUMNS = 60;

  it("prints above the line that is being typed, also above one that wraps", async () => {
    const world = await openWorld(section, { feishu: false, columns: COLUMNS });
    const { telegram, program } = world;
    const asked = () => world.model.log.length;
    const shown = () => screen(program.raw, COLUMNS);

    for (const typed of ["half a li", "0123456789".repeat(14), "你好世界".repeat(20)]) {
      program.write(typed);
      await program.until(typed.slice(-4));
      const said = `news ${typed.length}`;
      telegram.say("alice", said);
      await telegram.nextSent("alice");
      await program.until(`"${said}"`);
      // Keys go on where they were.
      program.write("END");
      await program.until("END");
      if (!typed.startsWith("你")) {
        const rows = shown();
        const joined = rows.join("");
        expect(joined).toContain(`You > ${typed}END`);
        expect(joined.split(`"${said}"`)).toHaveLength(2);
        expect(rows.filter((row) => row.startsWith("You > "))).toHaveLength(asked() === 1 ? 1 : 2);
      }
      program.write("\r");
      await program.until(`re: ${typed}END`);
      await program.prompt();
    }
    // What was typed arrived whole, and nothing else with it.
    const lines = world.requestsAbout("END").map(({ request }) => request.messages.at(-1)?.content);
    expect(JSON.stringify(lines)).toContain(`${"0123456789".repeat(14)}END`);
    program.write("\x03");
    expect((await program.end()).code).toBe(0);
  });

  it("a person's turn streams while others are answered, and Ctrl+C stops only that turn", async () => {
    const world = await openWorld(section, { feishu: false, columns: 100 });
    const { telegram, model, program } = world;
    const held = model.hold();
    program.write("a slow one\r");
    await held.waiting;
    telegram.say("alice", "meanwhile");
    expect((await telegram.nextSent("alice")).text).toBe("re: meanwhile");
    program.write("\x03");
    await program.until(/interrupted/);
    await program.prompt();
    held.release();
    telegram.say("alice", "and then");
    expect((await telegram.nextSent("alice")).text).toBe("re: and then");
    program.write("next\r");
    await program.until("re: next");
    await program.prompt();
    program.write("quit\r");
    expect((await program.end()).code).toBe(0);
  });

  it("takes a pasted text of several lines as one message", async () => {
    const world = await openWorld(section, { feishu: false, columns: 100 });
    const { program } = world;
    // As terminals send it: the line ends are those of the Enter key, between two marks.
    program.write("see: \x1b[200~first\rsecond\r\nthird\x1b[201~ end\r");
    await program.until("third end");
    await program.prompt();
    const [asked] = world.requestsAbout("second");
    expect(JSON.stringify(asked?.request.messages)).toContain("see: first\\nsecond\\nthird end");
    expect(world.model.log).toHaveLength(1);
    program.write("quit\r");
    expect((await program.end()).code).toBe(0);
  });

  it("a second Ctrl+C right after the one that stopped a reply does not leave", async () => {
    const world = await openWorld(section, { feishu: false, columns: 100 });
    const { telegram, model, program } = world;
    const held = model.hold();
    program.write("a slow one\r");
    await held.waiting;
    program.write("\x03");
    await program.until(/interrupted/);
    program.write("\x03");
    held.release();
    await program.prompt();
    // Whoever has answered this has read the key as well, which came earlier.
    telegram.say("alice", "meanwhile");
    await telegram.nextSent("alice");
    program.write("still here\r");
    await program.until("re: still here");
    await program.prompt();
    program.write("quit\r");
    expect((await program.end()).code).toBe(0);
  });

  it("Ctrl+Z gives the shell back, also during a reply, and fg goes on", async () => {
    const model = await echoModel();
    const shell = startInShell(section, settings(model));
    await shell.prompt();
    shell.write("half a li");
    await shell.until("half a li");
    shell.write("\x1a");
    await shell.until("Stopped");
    await shell.until("$ ");
    shell.write("fg\r");
    await shell.until("half a li");
    const held = model.hold();
    shell.write("ne\r");
    await held.waiting;
    shell.write("\x1a");
    await shell.until("Stopped");
    await shell.until("$ ");
    held.release();
    shell.write("fg\r");
    await shell.until("re: half a line");
    await shell.prompt();
    shell.write("quit\r");
    await shell.until("$ ");
    shell.write("exit\r");
    expect((await shell.end()).code).toBe(0);
  });
});

describe.each(englishFrom("s04"))("$name in a pipe", (section) => {
  it("answers its lines, all of them, and leaves at the end of the input", async () => {
    const model = await echoModel();
    const program = start(section, settings(model));
    const { code, text } = await program.finish("one\n\n/help\n/channels\n/accounts\ntwo\n");
    expect(code).toBe(0);
    expect(text).toContain("re: one");
    expect(text).toContain("re: two");
    for (const name of ["/channels", "/accounts", "/new"]) expect(text).toContain(name);
    expect(text.split("You > ")).toHaveLength(8);
    expect(model.log).toHaveLength(2);
  });

  it("goes on with --serve when nobody reads the log, whose lines begin with the time", async () => {
    const world = await openWorld(section, { feishu: false, serve: true });
    const { telegram, program } = world;
    const lines = program.text.trimEnd().split("\n");
    const withoutTime = lines.filter((line) => !/^\d{4}-\d\d-\d\dT[\d:.]+Z /.test(line));
    expect(withoutTime).toEqual([]);
    // Nobody sits at a terminal, so there is no reply to stop there, and no command to type.
    expect(program.text).toContain("Ctrl+C stops the program.");
    expect(program.text).not.toMatch(/quit|\/help/);
    program.stopReading();
    telegram.say("mallory", "a stranger, whose message is a line of the log");
    await telegram.nextSent("mallory");
    telegram.say("alice", "still there?");
    expect((await telegram.nextSent("alice")).text).toBe("re: still there?");
    program.kill("SIGTERM");
    expect((await program.end()).code).toBe(0);
  });
});
