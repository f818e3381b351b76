/** s06, the memory: what is noted is found, by whom it should be, and by nobody else. */

import { execFile } from "node:child_process";
import fs, {
  appendFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it, vi } from "vitest";
import {
  answersOf,
  CHANNELS,
  type Channel,
  digestOf,
  evalSet,
  LANGUAGES,
  openedAgain,
  recallOf,
  storeOf,
} from "./bench/evaluation.ts";
import { printed, type SectionFile, sectionsFrom, settings, temporaryFolder } from "./helper.ts";
import { load06 } from "./world.ts";

const ROOT = join(import.meta.dirname, "..");
const DAY = 24 * 3600 * 1000; // ms
const NOW = Date.UTC(2026, 0, 5, 10);
const KEY = "agent:luna:cli:direct:owner";
const OTHER = "agent:luna:telegram:direct:1002";

async function open(section: SectionFile) {
  const { MemoryStore } = await load06(section, settings());
  const folder = temporaryFolder();
  const dir = join(folder, "memory");
  const files = ["MEMORY.md", "USER.md"].map((name) => join(folder, name));
  let now = NOW;
  const restart = () => new MemoryStore(dir, files, () => now);
  let store = restart();
  /** The owner's file, with a time of its own: two saves within a tick of the clock do differ. */
  let saved = 0;
  const put = (name: string, content: string) => {
    writeFileSync(join(folder, name), content);
    saved += 1;
    utimesSync(join(folder, name), saved, saved);
  };
  return {
    folder,
    put,
    log: (day = "2026-01-05") => join(dir, `${day}.jsonl`),
    write: (content: string, key = KEY, category = "fact") => store.write(content, category, key),
    /** The texts of what is found, best first. */
    find: (query: string, more: Parameters<typeof store.search>[1] = {}) =>
      store.search(query, { sessionKey: KEY, ...more }).map(({ text }) => text),
    hits: (query: string, more: Parameters<typeof store.search>[1] = {}) =>
      store.search(query, { sessionKey: KEY, ...more }),
    restart: () => {
      store = restart();
    },
    pass: (days: number) => {
      now += days * DAY;
    },
  };
}

describe.each(sectionsFrom("s06"))("$name, notes", (section) => {
  it("are on disk when write returns, a line each, by day, and found after a restart", async () => {
    const { write, find, log, pass, restart } = await open(section);
    write("Ada's favourite tea is oolong.");
    const lines = (day?: string) => readFileSync(log(day), "utf8").trimEnd().split("\n");
    expect(lines().map((line) => JSON.parse(line))).toEqual([
      {
        at: "2026-01-05T10:00:00.000Z",
        content: "Ada's favourite tea is oolong.",
        category: "fact",
        sessionKey: KEY,
      },
    ]);
    pass(1);
    write("The tea is in the blue tin.", KEY, "place");
    expect(lines()).toHaveLength(1);
    expect(lines("2026-01-06")).toHaveLength(1);
    const found = find("Where is the tea?");
    expect([...found].sort()).toEqual([
      "Ada's favourite tea is oolong.",
      "The tea is in the blue tin.",
    ]);
    restart();
    expect(find("Where is the tea?")).toEqual(found);
    write("Another tea.");
    expect(find("Where is the tea?")).toHaveLength(3);
    expect(lines("2026-01-06")).toHaveLength(2);
  });

  it("say where they are from, and how well they fit, best first", async () => {
    const { write, put, hits } = await open(section);
    write("The bicycle has a flat tyre.");
    write("A flat near the station is for rent.");
    write("The cat is called Olive.");
    put("MEMORY.md", "# MEMORY\n- The bicycle is green.\n");
    const found = hits("Which bicycle has a flat tyre?", { owner: true });
    expect(found[0]).toMatchObject({ text: "The bicycle has a flat tyre.", sessionKey: KEY });
    expect(found[0]?.source).toMatch(/2026-01-05\.jsonl/);
    expect(found.find(({ text }) => text.includes("green"))?.source).toBe("MEMORY.md");
    const scores = found.map(({ score }) => score);
    expect(scores).toEqual([...scores].sort((a, b) => b - a));
    for (const score of scores) expect(score).toBeGreaterThan(0);
    for (const score of scores) expect(score).toBeLessThanOrEqual(1);
  });

  it.each([
    ["English", "My sister lives in Lisbon.", "Where does my sister live?"],
    ["plurals", "The teas are in the tin.", "tea"],
    ["capitals", "LISBON IS WARM", "lisbon"],
    ["another form of the word", "I am allergic to nuts.", "allergies"],
    ["Chinese", "我的妹妹住在里斯本。", "妹妹住在哪里？"],
    [
      "Chinese, one word of a long sentence",
      "上周我们在火车上认识了一位修管风琴的邻居。",
      "管风琴",
    ],
    ["Japanese", "妹はリスボンに住んでいます。", "妹はどこに住んでいますか。"],
    ["words in kana", "すしにはわさびをいれないでほしい。", "わさび"],
    ["katakana", "コーヒーは午後に飲まない。", "コーヒー"],
    ["half-width katakana", "ｺｰﾋｰは午後に飲まない。", "コーヒー"],
    ["full-width letters", "予約番号はＡＢＣ１２３です。", "abc123"],
    ["Korean", "내 여동생은 리스본에 산다.", "여동생은 어디에 사니?"],
    ["several languages in a line", "Mira の誕生日は 3月14日。", "Mira"],
    ["accents", "Größe 42 in shoes", "GRÖSSE 42"],
    ["an accent in the note only", "Ada meets Björn in the café.", "cafe bjorn"],
    ["an accent in the query only", "Ada drinks nothing in a cafe.", "café"],
    ["an accent as a character of its own", "Ada drinks nothing in a cafe\u0301.", "CAFÉ"],
    ["Vietnamese", "Hà Nội có phở.", "ha noi pho"],
    ["Cyrillic", "Ёлка стоит в углу.", "елка"],
    ["numbers", "The door code is 4711.", "4711"],
  ])("%s", async (_what, note, query) => {
    const { write, find } = await open(section);
    for (const other of [
      "The kettle is broken.",
      "天气很好。",
      "きのうは雨でした。",
      "오늘은 맑다.",
    ]) {
      write(other);
    }
    write(note);
    write("Nothing of that.");
    expect(find(query)[0]).toBe(note);
  });

  it("a word without its accents is as good as with them, so it is recalled", async () => {
    const { write, hits } = await open(section);
    write("Ada meets Björn at the café on Fridays.");
    const [plain] = hits("When is she in the cafe?");
    const [accented] = hits("When is she in the café?");
    expect(plain?.score).toBe(accented?.score);
    expect(plain?.score).toBeGreaterThanOrEqual(0.17); // MIN_SCORE
  });

  it.each([
    ["かき", "がき"],
    ["ハハ", "パパ"],
    ["कि", "की"], // the vowel is a mark, too
  ])("%s and %s are two words, for their marks are no accents", async (note, query) => {
    const { write, find } = await open(section);
    write(note);
    expect(find(query)).toEqual([]);
  });

  it("no query does harm, and no more is given than was asked for", async () => {
    const { write, find } = await open(section);
    for (let i = 0; i < 9; i++) write(`tea number ${"abcdefghi"[i]} of ${i * 7919}`);
    for (const query of [
      "",
      " ",
      "?!",
      "👍",
      "\u0000",
      "\ud83d",
      "__proto__",
      "constructor",
      "the",
    ]) {
      expect(Array.isArray(find(query)), query).toBe(true);
    }
    for (const note of ["", "👍", "__proto__", "constructor toString", "\ud83d"]) write(note);
    expect(find("constructor")[0]).toBe("constructor toString");
    expect(find("__proto__")[0]).toBe("__proto__");
    expect(find("tea")).toHaveLength(5);
    for (const topK of [1, 3, 8]) expect(find("tea", { topK })).toHaveLength(topK);
    for (const topK of [0, -1]) expect(find("tea", { topK })).toEqual([]);
    expect(find("nowhere near")).not.toContain("tea number a of 0");
  });
});

describe.each(sectionsFrom("s06"))("$name, whose a note is", (section) => {
  it("no search of another conversation finds it, by any word, weight or number", async () => {
    const { write, find, put, restart } = await open(section);
    for (const note of ["The secret word is swordfish.", "我的秘密是花生。"]) write(note, KEY);
    put("MEMORY.md", "# MEMORY\n- The owner hides the key under the mat.\n");
    put("USER.md", "# USER\n- Name: Ada\n");
    const queries = ["secret word swordfish", "花生", "秘密", "key under the mat", "Ada", "name"];
    const strangers = [
      OTHER,
      "",
      `${KEY}x`,
      KEY.slice(0, -1),
      "agent:luna",
      "undefined",
      "__proto__",
    ];
    const weightings = [{}, ...Object.values(CHANNELS).map((weights) => ({ weights }))];
    const searches = strangers.flatMap((sessionKey) =>
      weightings.map((weighting) => ({ sessionKey, topK: 100, ...weighting })),
    );
    for (const round of ["", "again"]) {
      for (const search of searches) {
        for (const query of queries) {
          expect(find(query, search), `${round} ${search.sessionKey} ${query}`).toEqual([]);
        }
      }
      restart();
    }
    expect(find("swordfish")).toHaveLength(1);
    // The owner's files are the owner's; another's notes are not even that.
    expect(find("Ada", { sessionKey: OTHER, owner: true })).toEqual(["Name: Ada"]);
    expect(find("swordfish", { sessionKey: OTHER, owner: true })).not.toContain(
      "The secret word is swordfish.",
    );
  });

  it("what others have noted does not push out what is theirs", async () => {
    const { write, find } = await open(section);
    write("My tea is oolong.", OTHER);
    for (let i = 0; i < 300; i++) write(`tea ${i} tea tea`, KEY);
    expect(find("tea", { sessionKey: OTHER, topK: 3 })).toEqual(["My tea is oolong."]);
  });
});

describe.each(sectionsFrom("s06"))("$name, the owner's files", (section) => {
  const owner = { owner: true, topK: 50 };

  it("are found line by line, without what nobody has filled in", async () => {
    const { put, find } = await open(section);
    const lines = [
      "# Memory about tea",
      "<!-- tea goes here -->",
      "",
      "- The owner drinks green tea.",
      "  - And black tea on Sundays.",
      "* Tea is bought at Hart's.",
      "A tea in prose.",
      "- Tea:",
    ];
    put("MEMORY.md", lines.join("\r\n"));
    expect([...find("tea", owner)].sort()).toEqual([
      "A tea in prose.",
      "And black tea on Sundays.",
      "Tea is bought at Hart's.",
      "The owner drinks green tea.",
    ]);
  });

  it("also the first line is a fact, if it is one", async () => {
    const { put, find } = await open(section);
    put("MEMORY.md", "- The owner drinks green tea.\n- No coffee.\n");
    expect(find("green tea", owner)).toEqual(["The owner drinks green tea."]);
    put("MEMORY.md", "The owner drinks black tea.\n");
    expect(find("black tea", owner)).toEqual(["The owner drinks black tea."]);
  });

  it("are indexed again when they change, and only then", async () => {
    const { put, find, hits, restart, folder, write } = await open(section);
    write("A note of tea.");
    put("MEMORY.md", "# MEMORY\n- Green tea.\n");
    put("USER.md", "# USER\n- Black tea.\n");
    expect(find("tea", owner)).toHaveLength(3);
    put("MEMORY.md", "# MEMORY\n- White tea.\n- Red tea.\n");
    expect([...find("tea", owner)].sort()).toEqual([
      "A note of tea.",
      "Black tea.",
      "Red tea.",
      "White tea.",
    ]);
    rmSync(join(folder, "MEMORY.md"));
    expect(find("tea", owner)).toHaveLength(2);
    put("MEMORY.md", "# MEMORY\n- Green tea.\n");
    expect(find("tea", owner)).toHaveLength(3);
    // What was taken out leaves nothing behind that counts.
    for (let i = 0; i < 50; i++) put("MEMORY.md", `# Memory\n- Tea ${i}.\n`);
    expect(find("tea", owner)).toContain("Tea 49.");
    expect(find("tea", owner)).toHaveLength(3);
    const scores = hits("tea", owner);
    restart();
    expect(hits("tea", owner)).toEqual(scores);

    const read = vi.spyOn(fs, "readFileSync");
    find("tea", owner);
    expect(read.mock.calls).toEqual([]);
    put("USER.md", "# USER\n- Blue tea.\n");
    find("tea", owner);
    expect(read.mock.calls.map(([file]) => file)).toEqual([join(folder, "USER.md")]);
  });

  it("one that can't be read is said once, and the rest is found", async () => {
    const { put, find, folder, write } = await open(section);
    write("A note of tea.");
    put("USER.md", "# USER\n- Black tea.\n");
    writeFileSync(join(folder, "MEMORY.md"), Buffer.from([0x74, 0x65, 0x61, 0xff, 0xfe]));
    expect([...find("tea", owner)].sort()).toEqual(["A note of tea.", "Black tea."]);
    find("tea", owner);
    expect(printed().split(join(folder, "MEMORY.md"))).toHaveLength(2);
    put("MEMORY.md", "# MEMORY\n- White tea.\n");
    expect(find("tea", owner)).toContain("White tea.");
  });
});

describe.each(sectionsFrom("s06"))("$name, a log that is torn or written by hand", (section) => {
  it("cut at any byte, what is whole is found, and so is what is noted next", async () => {
    const { write, find, log, restart } = await open(section);
    write("The first is about apples.");
    write("第二条是关于梨的。👍");
    const whole = readFileSync(log());
    const first = whole.indexOf("\n") + 1;
    const step = section.lang === "en" ? 1 : 7; // the code is the same in all languages
    for (let length = first; length < whole.length; length += step) {
      writeFileSync(log(), whole.subarray(0, length));
      restart();
      expect(find("apples"), `${length}`).toEqual(["The first is about apples."]);
      write("The next is about cherries.");
      restart();
      expect(find("cherries")).toContain("The next is about cherries.");
      expect(find("apples")).toContain("The first is about apples.");
      // Nothing of what was there has been changed.
      expect(readFileSync(log()).subarray(0, length).equals(whole.subarray(0, length))).toBe(true);
    }
  });

  it("a line that makes no sense is named, stays, and hides no other", async () => {
    const { write, find, log, restart } = await open(section);
    write("The first is about apples.");
    const bad = ["no json", "null", "[]", "7", '{"content":"torn ap', ""];
    appendFileSync(log(), `${bad.join("\n")}\n`);
    // These are objects, but no notes: somebody has edited the file.
    const odd = [
      {},
      { content: 7, sessionKey: KEY },
      { content: "apples without a key" },
      { content: "apples", sessionKey: 7 },
      { sessionKey: KEY, category: "apples" },
      { content: null, sessionKey: null },
    ];
    appendFileSync(log(), odd.map((record) => `${JSON.stringify(record)}\n`).join(""));
    const hand = { content: "apples by hand", sessionKey: KEY, at: "yesterday" };
    appendFileSync(log(), `${JSON.stringify(hand)}\n`);
    const before = readFileSync(log(), "utf8");
    restart();
    write("The last is about apples.");
    expect([...find("apples", { topK: 50 })].sort()).toEqual([
      "The first is about apples.",
      "The last is about apples.",
      "apples by hand",
    ]);
    for (const number of [2, 3, 4, 5, 6]) {
      expect(printed()).toMatch(new RegExp(`2026-01-05\\.jsonl.*(?<!\\d)${number}(?!\\d)`));
    }
    expect(readFileSync(log(), "utf8").startsWith(before)).toBe(true);
    restart();
    expect(find("apples", { topK: 50 })).toHaveLength(3);
    // A note without a key is nobody's; the owner's are the lines of MEMORY.md and USER.md.
    expect(find("apples", { owner: true, topK: 50 })).toHaveLength(3);
    expect(find("apples", { sessionKey: "", topK: 50 })).toEqual([]);
  });

  it("other files in its folder are left alone", async () => {
    const { write, find, log, restart } = await open(section);
    write("The first is about apples.");
    const folder = join(log(), "..");
    mkdirSync(join(folder, "old"));
    writeFileSync(join(folder, "notes.txt"), '{"content":"apples","sessionKey":"x"}');
    restart();
    expect(find("apples")).toHaveLength(1);
  });
});

describe.each(sectionsFrom("s06"))("$name, age", (section) => {
  it("of two that fit as well the younger one comes first; none is forgotten", async () => {
    const { write, hits, find, pass } = await open(section);
    write("Lunch was soup with bread.");
    pass(60);
    write("Lunch was rice with beans.");
    pass(1);
    const score = (text: string) =>
      hits("lunch").find((hit) => hit.text.includes(text))?.score ?? 0;
    expect(find("lunch")[0]).toContain("rice");
    expect(find("soup with bread")[0]).toContain("soup");
    const young = score("soup");
    pass(3_650);
    expect(score("soup")).toBeLessThan(young);
    expect(score("soup")).toBeGreaterThan(0.7 * young); // a name told years ago is still a name
  });

  it("evergreen does not age, and counts as much as what was noted today", async () => {
    const { put, hits, write, pass } = await open(section);
    put("MEMORY.md", "# MEMORY\n- The owner's sister is called Mira.\n");
    write("The neighbour's dog is called Rex.");
    const score = (query: string) => hits(query, { owner: true })[0]?.score;
    write("The owner's sister is called Mira.", OTHER);
    const [mira, rex] = [score("Mira"), score("Rex")];
    expect(hits("Mira", { sessionKey: OTHER })[0]?.score).toBe(mira);
    pass(3_650);
    expect(score("Mira")).toBe(mira);
    expect(score("Rex")).toBeLessThan(rex ?? 0);
  });

  it("a note from tomorrow, for the clock was put back, counts as of today", async () => {
    const { write, hits, pass } = await open(section);
    write("The neighbour's dog is called Rex.");
    const [{ score = 0 } = {}] = hits("Rex");
    pass(-30);
    expect(hits("Rex")[0]?.score).toBe(score);
  });
});

describe.each(sectionsFrom("s06"))("$name, repeats", (section) => {
  it("of what is nearly the same only the best is given, and the place is another's", async () => {
    const { write, find } = await open(section);
    write("Ada's favourite tea is oolong.");
    write("Ada's favourite tea is oolong!");
    write("Favourite tea of Ada's: oolong.");
    write("Ada buys her tea at Hart's, near the station.");
    const found = find("What is Ada's favourite tea?", { topK: 2 });
    expect(found).toHaveLength(2);
    expect(found[1]).toBe("Ada buys her tea at Hart's, near the station.");
  });

  it("what shares words and says something else is kept", async () => {
    const { write, find } = await open(section);
    const notes = [
      "The flight to Lisbon leaves at 06:40 on Monday.",
      "The flight from Lisbon lands at 21:15 on Friday.",
      "The hotel in Lisbon is called Casa do Largo.",
      "花生过敏的是妹妹。",
      "花生酱在厨房的柜子里。",
    ];
    for (const note of notes) write(note);
    expect(find("flight Lisbon", { topK: 3 })).toHaveLength(3);
    expect(find("花生", { topK: 2 }).sort()).toEqual(notes.slice(3).sort());
  });
});

describe.each(sectionsFrom("s06"))("$name, what a search costs", (section) => {
  it("reads no file and indexes nothing again, however much there is", async () => {
    const { write, find, put } = await open(section);
    put("MEMORY.md", "# MEMORY\n- Green tea.\n");
    write("The first tea.");
    find("tea", { owner: true });
    const segment = vi.spyOn(Intl.Segmenter.prototype, "segment");
    const functions = Object.entries(fs).filter(([, value]) => typeof value === "function");
    const touched: string[] = [];
    for (const [name] of functions) {
      if (!name.endsWith("Sync") || name === "statSync") continue;
      const key = name as "readFileSync"; // one of many whose first argument is a file
      const original = fs[key];
      vi.spyOn(fs, key).mockImplementation((...args) => {
        touched.push(`${name} ${args[0]}`);
        return original(...args);
      });
    }
    const cost = () => {
      segment.mockClear();
      touched.length = 0;
      find("Which tea was it?", { owner: true });
      return [segment.mock.calls.length, ...touched];
    };
    const few = cost();
    expect(few).toEqual([1]); // the question is cut into words, and nothing else is
    for (let i = 0; i < 500; i++) write(`Note ${i} of tea and ${i * 7919}.`);
    expect(cost()).toEqual(few);
    // One more is added in memory: only that one is cut into words, and only its line is written.
    segment.mockClear();
    touched.length = 0;
    write("One more tea.");
    expect(segment.mock.calls.length).toBeLessThanOrEqual(1);
    expect(touched.length).toBeGreaterThan(0); // an append is also a write, to Node
    for (const one of touched) expect(one).toMatch(/Sync (\d+|.*2026-01-05\.jsonl)$/); // or its descriptor
    expect(cost()).toEqual(few);
    expect(find("one more tea")[0]).toBe("One more tea.");
  });
});

/** What each section has found, in this process. */
const digests = new Map<string, string>();

describe.each(sectionsFrom("s06"))("$name, the evaluation set", (section) => {
  it("finds what it promises, and the same when it is opened again", async () => {
    const { MemoryStore } = await load06(section, settings());
    const folder = temporaryFolder();
    const answers = answersOf(storeOf(MemoryStore, folder, evalSet().facts));
    for (const lang of LANGUAGES) {
      const at3 = (channel: Channel, shared: boolean) => recallOf(answers, channel, lang, shared);
      const hybrid = at3("hybrid", true);
      expect(hybrid.questions).toBeGreaterThanOrEqual(20);
      expect(hybrid.at3 / hybrid.questions, lang).toBeGreaterThanOrEqual(0.9);
      // Each channel carries by itself: what one of them misses the other may have.
      for (const channel of ["keyword", "vector"] as const) {
        const { at3: found, questions } = at3(channel, true);
        expect(found / questions, `${lang} ${channel}`).toBeGreaterThanOrEqual(0.8);
      }
      for (const shared of [true, false]) {
        for (const at of ["at1", "at3"] as const) {
          const better = Math.max(at3("keyword", shared)[at], at3("vector", shared)[at]);
          expect(at3("hybrid", shared)[at], `${lang} ${shared} ${at}`).toBeGreaterThanOrEqual(
            better - 1,
          );
        }
      }
    }
    const digest = digestOf(answers);
    expect(digestOf(answersOf(openedAgain(MemoryStore, folder)))).toBe(digest);
    digests.set(section.name, digest);
  });
});

describe("npm run bench -- memory", () => {
  const bench = async (...words: string[]) => {
    const args = ["--import", import.meta.resolve("tsx"), "tests/bench.ts", ...words];
    return (await promisify(execFile)(process.execPath, args, { cwd: ROOT })).stdout;
  };

  it("prints recall and times, and finds the same as every other process", async () => {
    const [all, other] = await Promise.all([bench("memory"), bench("memory", "--digest")]);
    for (const lang of LANGUAGES) {
      expect(all).toMatch(new RegExp(`^${lang} +shared +22( +\\d+ +\\d+%){6}$`, "m"));
      expect(all).toMatch(new RegExp(`^${lang} +not shared +22( +\\d+ +\\d+%){6}$`, "m"));
    }
    expect(all).toMatch(/5,000 entries/);
    expect(all).toMatch(/^search +\d+\.\d{3} /m);
    expect(all).toMatch(/^search, each time right after one entry more +\d+\.\d{3} /m);
    const digest = other.trim();
    expect(digest).toMatch(/^[0-9a-f]{16}$/);
    expect(all).toContain(digest);
    // And every section in every language has found that, here in this process.
    for (const [name, one] of digests) expect(one, name).toBe(digest);
  });
});
