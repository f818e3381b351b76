/** The practice world: one for each checkout, which ends when nobody uses it. */

import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { startTelegram } from "../practice/telegram.ts";
import { TEXTS, type Texts } from "../practice/texts.ts";
import { claimWorldFile, readWorldFile } from "../practice/world-file.ts";
import { type PracticeWorld, startWorld } from "../practice/world-server.ts";
import { Copy } from "./practice-copy.ts";

vi.setConfig({ testTimeout: 60_000 });

describe("the world's file", () => {
  let root: string;
  const file = (id: string) => ({ id, pid: 1, url: "http://127.0.0.1:1" });
  const files = () => readdirSync(join(root, ".practice"));

  beforeEach(() => {
    root = realpathSync.native(mkdtempSync(join(tmpdir(), "practice-file-")));
  });

  afterEach(() => rmSync(root, { recursive: true }));

  it("belongs to the first world that claims it", () => {
    expect(readWorldFile(root)).toEqual({ number: 0 });
    expect(claimWorldFile(root, 0, file("a"))).toBe(true);
    expect(claimWorldFile(root, 0, file("b"))).toBe(false);
    expect(readWorldFile(root)).toEqual({ number: 1, file: file("a") });
    expect(files()).toEqual(["world-1.json"]);
  });

  it("passes on to one successor", () => {
    claimWorldFile(root, 0, file("a"));
    expect(claimWorldFile(root, 1, file("b"))).toBe(true);
    expect(claimWorldFile(root, 1, file("c"))).toBe(false);
    expect(readWorldFile(root).file).toEqual(file("b"));
    expect(files()).toEqual(["world-2.json"]);
  });

  it("does not go to a starter that has looked a long time ago", () => {
    claimWorldFile(root, 0, file("a"));
    claimWorldFile(root, 1, file("b"));
    claimWorldFile(root, 2, file("c"));
    expect(claimWorldFile(root, 1, file("late"))).toBe(false);
    expect(readWorldFile(root)).toEqual({ number: 3, file: file("c") });
    expect(files()).toEqual(["world-3.json"]);
  });

  it("may be torn: then the next world takes the next number", () => {
    mkdirSync(join(root, ".practice"));
    writeFileSync(join(root, ".practice", "world-7.json"), '{"id":');
    expect(readWorldFile(root)).toEqual({ number: 7, file: undefined });
    expect(claimWorldFile(root, 7, file("a"))).toBe(true);
    expect(readWorldFile(root).number).toBe(8);
  });

  it("is not made in a folder that is gone", () => {
    expect(() => claimWorldFile(join(root, "gone"), 0, file("a"))).toThrow("ENOENT");
  });
});

describe("several starters", () => {
  it("get the same world, also at the same moment", async () => {
    const copy = new Copy();
    try {
      const starters = ["knobs.ts", "knobs.ts", "knobs.ts"].map((tool) => copy.run(tool, []));
      const phone = copy.run("phone.ts", ["telegram", "alice"]);
      const said = (await Promise.all([...starters, phone])).map(({ output }) => output);
      const worlds = said.flatMap((output) => /world is process (\d+)/.exec(output)?.[1] ?? []);
      expect(worlds).toHaveLength(3);
      expect(new Set(worlds).size).toBe(1);
      expect(copy.processes()).toHaveLength(1);
      expect(copy.processes()[0]).toContain(worlds[0]);
    } finally {
      await copy.remove();
    }
  });
});

describe("a world that nobody uses", () => {
  let world: PracticeWorld;
  let ended = 0;
  /** What would happen after ten minutes; undefined while something is attached. */
  let due: { action: () => void; ms: number } | undefined;

  beforeEach(async () => {
    ended = 0;
    const timers = {
      set(action: () => void, ms: number) {
        due = { action, ms };
        return due;
      },
      clear(timer: unknown) {
        if (due === timer) due = undefined;
      },
    };
    world = await startWorld("/nowhere", { timers, onEnd: () => (ended += 1) });
  });

  afterEach(() => world.close());

  /** An open connection, and how to end it. */
  async function open(url: string, body?: object) {
    const call = request(url, { agent: false, method: body ? "POST" : "GET" });
    call.end(body && JSON.stringify(body));
    const [response] = (await once(call, "response")) as [IncomingMessage];
    response.on("error", () => {}).resume();
    return response;
  }

  async function untilIdle(): Promise<void> {
    await vi.waitFor(() => expect(due).toBeDefined());
  }

  it("ends after ten minutes", () => {
    expect(due?.ms).toBe(600_000);
    due?.action();
    expect(ended).toBe(1);
  });

  it("does not end while a phone is open", async () => {
    const phone = await open(`${world.telegram.url}/_practice/stream?person=alice`);
    expect(due).toBeUndefined();
    phone.destroy();
    await untilIdle();
    due?.action();
    expect(ended).toBe(1);
  });

  it("does not end while a section lives whose npm start is gone", async () => {
    const take = `${world.url}/_practice/take`;
    const seat = await open(take, { user: "s04 (en)", number: 4 });
    expect(due).toBeUndefined();
    await (await open(`${world.url}/_practice/running`, { pid: process.pid })).destroy();
    seat.destroy();
    await untilIdle();
    due?.action();
    expect(ended).toBe(0);
    expect(due?.ms).toBe(600_000); // it looks again
    const refused = await open(take, { user: "s05 (en)", number: 5 });
    expect(refused.statusCode).toBe(400);
  });

  it("listens to no page in a browser", async () => {
    const headers = [
      ["origin", "https://example.com"],
      ["sec-fetch-site", "cross-site"],
    ] satisfies [string, string][];
    for (const header of headers) {
      const sent = { method: "POST", headers: [header] };
      const answer = await fetch(`${world.url}/_practice/end`, sent);
      expect(answer.status).toBe(403);
    }
    expect((await fetch(`${world.url}/_practice/end`)).status).toBe(405); // as <img> would ask
    expect(ended).toBe(0);
  });
});

describe("2,000 waiting messages on Telegram", () => {
  it("are given in order, and each is confirmed by itself", async () => {
    const telegram = await startTelegram();
    const said = Array.from({ length: 2000 }, (_, i) => telegram.say("alice", `message ${i}`));
    const confirmed: number[] = [];
    for (const [i, one] of said.entries()) void one.confirmed.then(() => confirmed.push(i));
    const ask = async (offset: number): Promise<number[]> => {
      const url = `${telegram.url}/bot${telegram.token}/getUpdates?offset=${offset}`;
      const { result } = (await (await fetch(url)).json()) as { result: { update_id: number }[] };
      return result.map((update) => update.update_id);
    };
    const given: number[] = [];
    for (let batch = await ask(0); batch.length > 0; batch = await ask((given.at(-1) ?? 0) + 1)) {
      given.push(...batch);
      expect(confirmed).toHaveLength(given.length - batch.length);
    }
    expect(given).toEqual(said.flatMap((one) => one.updates));
    expect(confirmed).toEqual(said.map((_, i) => i));
    await telegram.close();
  });
});

describe("the texts of the tools", () => {
  const NAMES =
    /@\w+|`[^`]*`|--[\w-]+(?:[ =](?:\d+\w*|zh|ja|alice))?|npm (?:start|run \w+)|(?:\/|\.)\w[\w./-]*|ws:\S+|[A-Z_]*(?:API_KEY|BASE_URL)\S*|text="|\w+=|SIG[A-Z]+|UTF-\d+|kill -9/g;
  const WORDS = new Set(
    `claw alice bob family practice_bot reply quit telegram feishu Telegram token s
     fail off drop slow log kill stop status send bindings set list sessions agents sage peerId
     Feishu hang silent break tool empty body model npm start run x y z Ctrl lang en zh ja ms env
     peerId`.split(/\s+/),
  );

  /** Every sentence of a table, with samples in the place of its parameters. */
  function sentences(table: object): string[] {
    return Object.values(table).flatMap((entry: unknown) => {
      if (typeof entry === "string") return [entry];
      if (typeof entry !== "function") return sentences(Object(entry));
      const failure = { kind: "529", server: "model", key: "2", chat: "x", seconds: 5, count: 3 };
      const refusal = { user: "s", pid: "7", status: "500", address: "ws://x" };
      const samples = [["x", "y", ["x"], ["y"]], [undefined, "y"], [failure], [refusal], [0, 1, 2]];
      const made = samples.flatMap((values) => {
        try {
          return [String(entry(...values))];
        } catch {
          return []; // this is no sample for it
        }
      });
      const right = made.filter((text) => !/undefined|\[object/.test(text));
      expect(right, `no sample fits ${entry}`).not.toEqual([]);
      return right;
    });
  }

  it.each(["zh", "ja"] as const)("have no English words in %s", (language) => {
    const texts: Texts = TEXTS[language];
    const found = sentences(texts).flatMap((text) =>
      (text.replaceAll(NAMES, " ").match(/[A-Za-z]{2,}/g) ?? []).filter((word) => !WORDS.has(word)),
    );
    expect(new Set(found)).toEqual(new Set());
  });
});
