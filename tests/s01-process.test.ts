/** s01 as people run it: a program that reads lines, in a pipe and in a terminal. */

import { describe, expect, it } from "vitest";
import {
  changed,
  englishFrom,
  outline,
  practice,
  SEVERAL,
  say,
  sectionsFrom,
  settings,
  start,
  startInTerminal,
} from "./helper.ts";

const ANSI = new RegExp(String.fromCharCode(27));
const prompts = (text: string) => text.split("You > ").length - 1;

describe.each(sectionsFrom("s01"))("$name, one scripted run", SEVERAL, (section) => {
  it("answers, goes on after an error, and leaves", async () => {
    const model = await practice();
    // English the way readers start it; the code of the other languages is the same.
    const runner = section.lang === "en" ? "tsx" : "fast";
    const program = start(section, settings(model), { runner });
    await program.prompt();
    expect(await program.ask("My name is Ada.")).toContain("Ada");
    model.fail("400"); // which nobody tries again
    expect(await program.ask("hello")).toContain("refused because you asked");
    expect(await program.ask("What is my name?")).toContain("Ada");
    // Each language's own words for what came later; more than one run of each would cost too much.
    if (section.id >= "s04") {
      const help = await program.ask("/help");
      for (const name of ["/channels", "/accounts", "/new"]) expect(help).toContain(name);
      expect(await program.ask("/channels")).toMatch(/\S/); // none is set up, which it says
      expect(await program.ask("/accounts")).toContain("TELEGRAM_BOT_TOKEN");
    }
    const { code, text } = await program.finish("quit\nnot read any more\n");
    expect(code).toBe(0);
    expect(text).not.toContain("not read");
    expect(program.raw).not.toMatch(ANSI);
  });
});

describe.each(englishFrom("s01"))("$name in a pipe", SEVERAL, (section) => {
  it("answers line by line, and says what went wrong", async () => {
    const model = await practice({ rules: false });
    const program = start(section, settings(model));
    await program.prompt();

    model.script(say("Hello."));
    expect(await program.ask("hi")).toBe("Hello.\n");
    // Settings that are empty count as unset.
    expect(model.log[0]?.model).toBe("claude-sonnet-5-5");
    expect(model.log[0]?.key).toBe("test-key");

    // Nothing typed, nothing asked.
    expect(await program.ask("")).toBe("");
    expect(await program.ask("   ")).toBe("");
    expect(model.log).toHaveLength(1);

    model.script(say("One.\nTwo.\n"));
    expect(await program.ask("  count  ")).toBe("One.\nTwo.\n");
    expect(outline(model.log[1]).at(-1)).toBe("user: count");

    // What may pass is tried again by s09, after a rest; then these are its own cases.
    const mayPass = [
      ["429", "rate limit"],
      ["529", "Overloaded"],
      ["stream-error", "Overloaded"],
    ];
    const failures = [
      ["400", "refused because you asked"],
      // From s03 on the guard shortens a conversation that is too long.
      ...(section.id < "s03" ? [["413", "maximum size"]] : []),
      ...(changed(section, "own retries") ? [] : mayPass),
      ["401", "invalid x-api-key"],
    ];
    for (const [kind = "", words] of failures) {
      model.fail(kind);
      const shown = await program.ask(`line ${kind}`);
      expect(shown).toContain(words);
      expect(shown).not.toMatch(/^\s+at /m); // a person gets no stack
      expect(shown.endsWith("\n")).toBe(true);
    }
    // A key that was refused rests for minutes.
    const forgiven = changed(section, "own retries") ? ["/cooldowns clear"] : [];
    for (const line of forgiven) await program.ask(line);
    model.script(say("Cut", { stopReason: "max_tokens" }), say("No.", { stopReason: "refusal" }));
    expect(await program.ask("a long one")).toMatch(/^Cut\n\(The reply was cut off.*\)\n$/);
    expect(await program.ask("a bad one")).toMatch(/^No\.\n\(The model refused.*\)\n$/);

    model.script(say("Grüße, 你好 👋"));
    expect(await program.ask("Größe 大小 🙂")).toBe("Grüße, 你好 👋\n");
    expect(outline(model.log.at(-1)).at(-1)).toContain("Größe 大小 🙂");

    expect(prompts(program.text)).toBe(8 + failures.length + forgiven.length);
    expect(program.raw).not.toMatch(ANSI);
    if (process.platform === "win32") return; // no signals there that a program could handle

    // SIGINT stops a reply; at the prompt it leaves.
    model.script(say("The beginning, and then the rest.", { holdAfter: 4 }));
    program.write("hi\n");
    await program.until("The beg");
    program.kill("SIGINT");
    expect(await program.prompt()).toMatch(/\(interrupted\)\n$/);
    model.script(say("Here."));
    expect(await program.ask("go on")).toBe("Here.\n");
    expect(outline(model.log.at(-1)).at(-2)).toMatch(/^assistant: The beg.* \| \(interrupted\)$/);
    program.kill("SIGINT");
    expect(await program.end()).toMatchObject({ code: 0 });
  });

  it("answers all of 2,000 lines that come at once, the last one without a line end", async () => {
    const model = await practice({ rules: false });
    const program = start(section, settings(model, { MODEL_ID: "claude-haiku-5-5" }));
    // Most lines are empty: each is read and gets its prompt, and only ten go to the model.
    const lines = Array.from({ length: 2000 }, (_, i) => (i % 200 === 199 ? `line ${i + 1}` : ""));
    for (let i = 1; i <= 10; i++) model.script(say(`Answer ${i}.`));
    const { code, text } = await program.finish(lines.join("\r\n"));
    expect(code).toBe(0);
    expect(prompts(text)).toBe(2001);
    expect(model.log.map((entry) => outline(entry).at(-1))).toEqual(
      Array.from({ length: 10 }, (_, i) => `user: line ${(i + 1) * 200}`),
    );
    expect(text.match(/Answer \d+/g)).toEqual(
      lines.filter(Boolean).map((_, i) => `Answer ${i + 1}`),
    );
    expect(model.log[0]?.model).toBe("claude-haiku-5-5");
  });

  it("says in two lines that there is no key, and exits with 1", async () => {
    const given = settings();
    const runs = ["", "sk-ant-your-key-here"].map((key) =>
      start(section, { ...given, ANTHROPIC_API_KEY: key }).finish("hi\n"),
    );
    for (const { code, text } of await Promise.all(runs)) {
      expect(code).toBe(1);
      expect(text.trim().split("\n")).toHaveLength(2);
      expect(text).toContain("ANTHROPIC_API_KEY");
      expect(text).toContain(".env");
      expect(text).toContain("npm start");
    }
  });
});

describe.each(englishFrom("s01"))("$name in a terminal", SEVERAL, (section) => {
  const HELD = "The beginning, and then the rest of it.";

  it("Ctrl+C stops a reply and then leaves; what is typed meanwhile waits for the prompt", async () => {
    const model = await practice({ rules: false });
    const program = startInTerminal(section, settings(model));
    await program.prompt();

    // Keys typed while a reply streams are not echoed into it, and not lost.
    model.script(say(HELD, { holdAfter: 4 }), say("Second."));
    program.write("first\r");
    await program.until("The beg");
    program.write("typed ah");
    program.write("ead\rha");
    // An echo would come before what follows, for a terminal does everything in order.
    model.release();
    const reply = await program.until("rest of it.");
    expect(reply).not.toContain("typed");
    // The line after that was begun, and is shown when it is its turn.
    expect(await program.until("Second.")).toMatch(/You > typed ahead\nSecond\.$/);
    await program.until("ha");
    model.script(say("Third."));
    program.write("lf\r");
    await program.until("Third.");
    await program.prompt();
    expect(model.log.map((entry) => outline(entry).at(-1))).toEqual([
      "user: first",
      "user: typed ahead",
      "user: half",
    ]);

    // Ctrl+C in a reply
    model.script(say(HELD, { holdAfter: 4 }));
    program.write("fourth\r");
    await program.until("The beg");
    program.write("\x03");
    expect(await program.prompt()).toContain("(interrupted)");

    // Ctrl+C right behind other keys, which the terminal hands over in one piece
    model.script(say(HELD, { holdAfter: 4 }));
    program.write("fifth\r");
    await program.until("The beg");
    program.write("xyz\x03");
    expect(await program.prompt()).toContain("(interrupted)");

    // An error is red.
    model.fail("400");
    program.write("sixth\r");
    await program.until("refused because you asked");
    await program.prompt();
    expect(program.raw).toContain(`${String.fromCharCode(27)}[31m`);

    // Ctrl+C at the prompt
    program.write("\x03");
    expect(await program.end()).toMatchObject({ code: 0 });
  });
});

// From s02 on the case of a command in a terminal leaves this way.
describe.each(englishFrom("s01").slice(0, 1))("$name in a terminal", SEVERAL, (section) => {
  it("Ctrl+D leaves", async () => {
    const program = startInTerminal(section, settings());
    await program.prompt();
    program.write("\x04");
    expect(await program.end()).toMatchObject({ code: 0 });
  });
});
