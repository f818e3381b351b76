/** s03 as people run it: killed, started again, twice at once; and its commands. */

import fs from "node:fs";
import { createServer, type Socket } from "node:net";
import path from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import {
  call,
  calls,
  englishFrom,
  outline,
  practice,
  results,
  SEVERAL,
  say,
  settings,
  start,
  temporaryFolder,
} from "./helper.ts";

/** Stays until the test lets it go: also when the program that started it is dead. */
const HOLD = `
  import { connect } from "node:net";
  connect(Number(process.argv[2]), "127.0.0.1").on("close", () => process.exit()).write("here");
`;

let close = () => {};
afterEach(() => close());

/** The port of a server, and the moment at which somebody comes there. */
async function meetingPoint() {
  const sockets: Socket[] = [];
  let come = () => {};
  const came = new Promise<void>((resolve) => {
    come = resolve;
  });
  const server = createServer((socket) => {
    sockets.push(socket.on("error", () => {}));
    come();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  close = () => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  const address = server.address();
  return { port: typeof address === "object" && address ? address.port : 0, came };
}

const sessionFiles = (workspace: string) =>
  fs
    .readdirSync(path.join(workspace, ".state"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".jsonl"))
    .map((name) => path.join(workspace, ".state", name));

describe.each(englishFrom("s03"))("$name", SEVERAL, (section) => {
  it("remembers after kill -9: in a tool, in the tool loop and in a stream", async () => {
    const workspace = temporaryFolder();
    const model = await practice();
    const given = settings(model, { CLAW0_WORKSPACE: workspace });
    fs.writeFileSync(path.join(workspace, "hold.mjs"), HOLD);
    const { port, came } = await meetingPoint();

    // In a tool that runs
    const first = start(section, given);
    expect(await first.prompt()).toContain("/help");
    expect(await first.ask("My name is Ada.")).toContain("Ada");
    model.script(calls(["bash", { command: `node hold.mjs ${port}` }]));
    first.write("wait\n");
    await came;
    // Meanwhile a second one is told who has the workspace.
    const second = await start(section, given).finish("hi\n");
    expect(second.code).toBe(1);
    expect(second.text).toContain(String(first.pid));
    expect(second.text).toContain("CLAW0_WORKSPACE");
    expect(second.text).not.toContain("You >");
    first.kill("SIGKILL");
    await first.end();
    close();

    // In the loop: the result is stored, and the model is being asked.
    const third = start(section, given);
    await third.prompt();
    const held = model.hold();
    third.write("What is my name?\n");
    const entry = await held.waiting;
    expect(results(entry)).toMatchObject([
      { is_error: true, content: "interrupted; it may have run" },
    ]);
    expect(outline(entry).at(-1)).toBe("user: tool_result | What is my name?");
    held.release();
    expect(await third.prompt()).toContain("Ada");
    model.script({ content: [call("list_directory", {})] });
    // The request for that call is held by nobody; the one after it never gets its answer.
    model.script(say("Never read to its end, as the program is killed.", { holdAfter: 4 }));
    third.write("look\n");
    await third.until("Never r");
    third.kill("SIGKILL");
    await third.end();

    const fourth = start(section, given);
    await fourth.prompt();
    expect(await fourth.ask("What is my name?")).toContain("Ada");
    expect(outline(model.log.at(-1)).slice(-3)).toEqual([
      "user: look",
      "assistant: tool_use",
      "user: tool_result | What is my name?",
    ]);
    expect(await fourth.finish()).toMatchObject({ code: 0 });
    expect(sessionFiles(workspace)).toHaveLength(1);
    expect(fs.readdirSync(path.join(workspace, ".state"))).not.toContain("lock");
  });

  it("of two that find a dead one's lock only one gets it", async () => {
    const workspace = temporaryFolder();
    const given = settings(await practice(), { CLAW0_WORKSPACE: workspace });
    fs.mkdirSync(path.join(workspace, ".state"));
    fs.writeFileSync(path.join(workspace, ".state", "lock"), "0 killed");
    const programs = [1, 2].map(() => start(section, given));
    const outcomes = await Promise.all(
      programs.map((program) =>
        program.prompt().then(
          () => "runs",
          () => program.end(),
        ),
      ),
    );
    const running = programs.filter((_program, index) => outcomes[index] === "runs");
    expect(running).toHaveLength(1);
    for (const outcome of outcomes) {
      if (outcome !== "runs") expect(outcome).toMatchObject({ code: 1 });
    }
    expect(await running[0]?.finish("quit\n")).toMatchObject({ code: 0 });
  });

  it("has commands, which cost no call of the model", async () => {
    const workspace = temporaryFolder();
    const model = await practice();
    const given = settings(model, { CLAW0_WORKSPACE: workspace });
    const program = start(section, given);
    const [, id = ""] = /Session (\w+)/.exec(await program.prompt()) ?? [];
    expect(id).not.toBe("");

    const help = await program.ask("/help");
    for (const name of ["help", "new", "list", "switch", "context", "compact"]) {
      expect(help).toMatch(new RegExp(`^/${name}\\b +\\S`, "m"));
    }
    expect(await program.ask("/compact")).toMatch(/nothing/i);
    expect(await program.ask("/context")).toMatch(/\d+ of 180000 tokens/);
    for (const unknown of ["/nosuch", "/", "/constructor", "/toString now", "/__proto__"]) {
      expect(await program.ask(unknown)).toMatch(/no command.*\/help/);
    }
    expect(model.log).toHaveLength(0);

    await program.ask("My name is Ada.");
    const begun = await program.ask("/new second one");
    const [, newId = ""] = /Session (\w+)/.exec(begun) ?? [];
    expect(newId).not.toBe(id);
    expect(await program.ask("What is my name?")).not.toContain("Ada");
    const list = (await program.ask("/list")).trimEnd().split("\n");
    expect(list).toHaveLength(2);
    expect(list[0]).toContain(id);
    expect(list[1]).toContain(newId);
    expect(list[1]).toContain("second one");
    expect(list.map((line) => line.trim().startsWith("*"))).toEqual([false, true]);

    for (const prefix of ["", "nosuch"]) {
      expect(await program.ask(`/switch ${prefix}`)).toMatch(/\d+ sessions.*\/list/);
    }
    expect(await program.ask(`/switch ${id}`)).toContain(id);
    expect(await program.ask("What is my name?")).toContain("Ada");

    model.script(say(`A long story: ${"word ".repeat(800)}`));
    await program.ask("tell me something long");
    const before = model.log.length;
    expect(await program.ask("/compact")).not.toMatch(/nothing/i);
    expect(model.log).toHaveLength(before + 1);
    expect(await program.ask("What is my name?")).toContain("Ada");
    // Without an end of the line, as a pipe may end.
    expect(await program.finish("/list")).toMatchObject({ code: 0 });
  });

  it("names a setting that makes no sense, and what would", async () => {
    const runs = ["abc", "10"].map((CONTEXT_TOKENS) =>
      start(section, settings(undefined, { CONTEXT_TOKENS })).finish("hi\n"),
    );
    for (const { code, text } of await Promise.all(runs)) {
      expect(code).toBe(1);
      expect(text).toMatch(/CONTEXT_TOKENS.*number/);
      expect(text).not.toMatch(/^\s+at /m);
    }
  });
});
