/** s09 as people run it: several keys, a kill in between, Ctrl+C while it waits. */

import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { englishFrom, practice, say, settings, start } from "./helper.ts";
import { rpc } from "./s08-helper.ts";
import { lastText, openWorld } from "./world.ts";

const SECRETS = ["sk-secret-one", "sk-secret-two", "sk-secret-three"];
const KEYS = {
  ANTHROPIC_API_KEY: "sk-secret-one",
  ANTHROPIC_API_KEY_2: "sk-secret-two",
  ANTHROPIC_API_KEY_9: "sk-secret-three",
  FALLBACK_MODELS: "second-model, third-model",
};

/** The files below a folder that have one of these words in them. */
function filesWith(folder: string, words: string[]): string[] {
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" });
  const files = names.filter((name) => statSync(join(folder, name)).isFile());
  expect(files.length).toBeGreaterThan(5);
  return files.filter((name) => {
    const content = readFileSync(join(folder, name), "utf8");
    return words.some((word) => content.includes(word));
  });
}

describe.each(englishFrom("s09"))("$name", (section) => {
  it("keeps what must rest over kill -9, shows it, and tells nobody a key", async () => {
    const given = { telegram: false, feishu: false, settings: KEYS };
    const world = await openWorld(section, given);
    const { model } = world;
    model.brain = (request) => say(`re: ${lastText(request)}`);
    model.fail({ kind: "402", key: "sk-secret-one" });
    const first = await world.program.ask("hello");
    expect(first).toMatch(/\(billing: ANTHROPIC_API_KEY, claude-\S+\).*re: hello/s);
    const screens = [world.program.text];

    await world.kill();
    const program = await world.start();
    expect(await program.ask("hello again")).not.toContain("billing");
    expect(model.log.map(({ key }) => key)).toEqual(
      ["one", "two", "two"].map((name) => `sk-secret-${name}`),
    );
    const rests = /^ANTHROPIC_API_KEY \w{8} +billing +\d{4}-\S+Z$/m;
    expect(await program.ask("/cooldowns")).toMatch(rests);
    expect(await program.ask("/profiles")).toMatch(
      /ANTHROPIC_API_KEY +\d{4}\S+Z +1 billing\nANTHROPIC_API_KEY_2 +now +0 *\nANTHROPIC_API_KEY_9 +now/,
    );
    expect(await program.ask("/fallback")).toMatch(/^claude-\S+\nsecond-model\nthird-model$/m);
    expect(await rpc(world, "profiles.list")).toEqual([
      { name: "ANTHROPIC_API_KEY", ready: expect.any(String), reason: "billing", failures: 1 },
      { name: "ANTHROPIC_API_KEY_2", ready: "now", reason: "", failures: 0 },
      { name: "ANTHROPIC_API_KEY_9", ready: "now", reason: "", failures: 0 },
    ]);

    // Ctrl+C while it waits for the first that is ready.
    const limited = { kind: "429", retryAfter: 100, times: 3 }; // for each of the three models
    for (const key of SECRETS.slice(1)) model.fail({ ...limited, key });
    const before = model.log.length;
    program.write("patience\n");
    await program.until(/\(waiting \d+ s\)\n/);
    program.kill("SIGINT");
    const rest = await program.prompt();
    expect(rest).toContain("(interrupted)");
    expect(rest).not.toMatch(/waiting|rate_limit|Failed/);
    expect(model.log.slice(before).filter(({ aborted }) => !aborted)).toHaveLength(6);
    expect((await program.ask("/cooldowns")).match(/rate_limit/g)).toHaveLength(6);

    // Cleared, the first one is good again; what was said before is not forgotten.
    expect(await program.ask("/cooldowns clear")).not.toMatch(/billing|rate_limit/);
    expect(await program.ask("and now?")).toContain("re: and now?");
    expect(JSON.stringify(model.log.at(-1)?.request.messages)).toContain("patience");
    expect(await program.ask("/cooldowns")).not.toMatch(/billing|rate_limit/);

    // A failure that is ordered is told like any other, and passes.
    expect(await program.ask("/simulate-failure overloaded 2")).toContain("2 of overloaded");
    expect(await program.ask("and this?")).toMatch(
      /\(overloaded: ANTHROPIC_API_KEY\w*, claude-\S+\)\n.*\(overloaded: ANTHROPIC_API_KEY\w*, second-model\)\n.*re: and this\?/s,
    );
    expect(model.log.at(-1)?.model).toBe("third-model");
    expect((await program.finish()).code).toBe(0);
    screens.push(program.text);

    for (const screen of screens) expect(screen).not.toContain("sk-secret");
    expect(existsSync(join(world.state, "profiles.json"))).toBe(true);
    expect(filesWith(world.workspace, SECRETS)).toEqual([]);

    // A file that makes no sense is quarantined and named, and it runs.
    writeFileSync(join(world.state, "profiles.json"), '{"ANTHROPIC');
    const third = await world.start();
    expect(third.text).toMatch(/profiles\.json is quarantined/);
    expect(await third.ask("still there?")).toContain("re: still there?");
  });

  it("names the setting of a key that no request could carry, and shows none of it", async () => {
    const model = await practice();
    const odd = { ANTHROPIC_API_KEY: "good-key", ANTHROPIC_API_KEY_3: "sk-secret-…three" };
    const { code, text } = await start(section, settings(model, odd)).finish();
    expect(code).toBe(1);
    expect(text).toContain("ANTHROPIC_API_KEY_3");
    expect(text).not.toContain("sk-secret");
    expect(model.log).toEqual([]);
  });
});
