/** What the lessons of s06 to s10 type, in three languages, and what the model says to it. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import Anthropic from "@anthropic-ai/sdk";
import { Bot, type GrammyError } from "grammy";
import { describe, expect, it } from "vitest";
import { startModel } from "../practice/model.ts";
import { startTelegram } from "../practice/telegram.ts";
import { countTokens } from "../practice/tokens.ts";
import { type Around, say } from "./practice-tools.ts";

/** As s07 asks. */
const heartbeat = (file: string, around?: Around) =>
  say(`${file}\n\nIf nothing needs the owner, answer HEARTBEAT_OK and nothing else.`, around);

describe("a heartbeat", () => {
  const SHIPPED = readFileSync(join(import.meta.dirname, "../workspace/HEARTBEAT.md"), "utf8");

  it.each([
    ["the file as it is shipped", SHIPPED],
    ["without a file", ""],
    ["in doubt", "- Is the house on fire?\n- Tell the owner only what matters."],
    ["a task in a comment", "<!-- Tell the owner: hi. -->"],
    ["a long file", "Look at the notes.\n".repeat(200)],
  ])("is quiet: %s", (_what, file) => {
    expect(heartbeat(file)).toEqual({ words: "HEARTBEAT_OK", calls: [] });
  });

  it.each([
    ["Tell the owner: water the plants.", "water the plants."],
    [`${SHIPPED}\n- Tell the owner: water the plants.`, "water the plants."],
    [
      "1. Tell the owner that it is late.\n- [ ] Tell the owner: go to bed!",
      "it is late.\ngo to bed!",
    ],
    ["Say good morning to Ada.", "Good morning, Ada."],
    ["- 告诉主人：该浇花了。", "该浇花了。"],
    ["* 提醒主人 早点睡", "早点睡"],
    ["跟小林说早上好。", "早上好，小林。"],
    ["- 持ち主に伝える：水やりの時間です。", "水やりの時間です。"],
    ["オーナーに「水やりの時間です」と伝えて。", "水やりの時間です"],
    ["葵に『おはよう』と言う。", "葵さん、おはよう。"],
    ["葵に「おはようございます」と言う。", "葵さん、おはようございます。"],
  ])("says what a task plainly asks for: %s", (file, words) => {
    expect(heartbeat(file)).toEqual({ words, calls: [] });
  });

  it.each([
    ["If it is after 08:00, say good morning to Ada.", "Good morning, Ada."],
    ["If it is before 8:00, tell the owner: sleep on.", "sleep on."],
    ["If it is after 22:30 and before 24:00, tell the owner: go to bed.", "go to bed."],
    ["过了 08:00，就告诉主人：早上好。", "早上好。"],
    ["8:00を過ぎていたら、持ち主に伝える：おはようございます。", "おはようございます。"],
  ])("by the clock: %s", (file, words) => {
    const times = ["07:59", "08:00", "22:29", "22:30"];
    const said = times.filter((clock) => heartbeat(file, { clock }).words === words);
    const after8 = ["08:00", "22:29", "22:30"];
    expect(said).toEqual(
      file.includes("before 8") ? ["07:59"] : file.includes("22:30") ? ["22:30"] : after8,
    );
    expect(heartbeat(file, { clock: "" }).words).toBe("HEARTBEAT_OK");
  });

  it.each([
    ["Run `grep HEARTBEAT_OK HEARTBEAT.md`.", "bash"],
    ['Write "HEARTBEAT_OK" to a.txt.', "write_file"],
    ["Write HEARTBEAT_OK to a.txt.", "write_file"],
    ['Write "Tell the owner: hi." to HEARTBEAT.md.', "write_file"],
    ["把“告诉主人：该浇花了。”写进 HEARTBEAT.md。", "write_file"],
    ["HEARTBEAT.mdに「持ち主に伝える：水やり。植木に。」と書いて。", "write_file"],
  ])("is not whoever speaks of it: %s", (line, name) => {
    expect(say(line).calls).toMatchObject([[name, {}]]);
  });

  it.each([
    ["What does HEARTBEAT_OK mean?", /you hear nothing/],
    ["HEARTBEAT_OK 是什么意思？", /什么也不会收到/],
    ["HEARTBEAT_OKとは何ですか？", /何も届きません/],
    ["What is a lane?", /the others wait/],
    ["什么是车道？", /按顺序等/],
    ["レーンとは？", /順番に待ちます/],
  ])("explains: %s", (line, words) => {
    expect(say(line).words).toMatch(words);
  });
});

describe("a job", () => {
  const jobs = JSON.parse(readFileSync(join(import.meta.dirname, "../workspace/CRON.json"), "utf8"))
    .jobs as { id: string; payload: { message?: string } }[]; // the file of this repository
  const shipped = (id: string) => jobs.find((job) => job.id === id)?.payload.message ?? "";

  it.each([
    ["Say good morning in one line.", "Good morning."],
    ["Say good night", "good night"],
    ["Say good night to Ada.", "Good night, Ada."],
    ["一句话说晚安", "晚安。"],
    ["Remind me to call Mira.", "Remember: call Mira."],
    ["用一句话说早上好。", "早上好。"],
    ["提醒我给小美打电话。", "提醒一下：给小美打电话。"],
    ["一言で「おはようございます」と言って。", "おはようございます。"],
    ["ミラに電話することを思い出させて。", "お忘れなく：ミラに電話する。"],
    [
      shipped("birthday"),
      "It is Mira's birthday. Remember: call her. You could ask what the year has brought.",
    ],
    [
      "今天是小美的生日。提醒我给她打电话，并想一个问题。",
      "今天是小美的生日。提醒一下：给她打电话。可以问问这一年过得怎么样。",
    ],
  ])("%s", (line, words) => {
    expect(say(line, { channel: "cron" })).toEqual({ words, calls: [] });
  });

  it("looks into a folder", () => {
    const calls = [["list_directory", { path: "notes/" }]];
    expect(say(shipped("morning"), { channel: "cron" }).calls).toEqual(calls);
  });

  it.each([
    ["Remind me to call Mira at five.", /job into CRON\.json/],
    ["提醒我五点给小美打电话。", /CRON\.json 里加一个任务/],
    ["5時にミラに電話するように知らせて。", /CRON\.jsonにジョブ/],
  ])("is what a person has to ask for: %s", (line, words) => {
    expect(say(line).words).toMatch(words);
    expect(say(line, { channel: "telegram" }).words).toMatch(words);
  });
});

describe("a long text", () => {
  const FENCE = "```";

  it.each([
    ["Write a long reply.", false, false],
    ["Tell me a long story.", false, false],
    ["Write something very long.", false, false],
    ["请写一段长文。", false, false],
    ["Write a long reply with code.", false, true],
    ["Give me a long list with code, please.", true, true],
    ["写一个很长的故事。", false, false],
    ["写一段很长的回复，带代码。", false, true],
    ["列一个很长的清单。", true, false],
    ["長いお話をしてください。", false, false],
    ["コードの入った長い返事を書いて。", false, true],
    ["長いリストを書いて。", true, false],
  ])("%s", (line, isList, hasCode) => {
    const { words, calls } = say(line);
    expect(calls).toEqual([]);
    expect(say(line).words).toBe(words);
    expect(words.length).toBeGreaterThan(4900);
    expect(countTokens(words)).toBeLessThan(8192);
    expect(words.split("\n\n").length).toBeGreaterThan(isList ? 1 : 5);
    expect(/^1\. .*\n2\. /.test(words)).toBe(isList);
    expect(words.split(FENCE).length).toBe(hasCode ? 3 : 1);
    if (!hasCode) return;
    // Whoever cuts it before 4096 cuts the code, also at an empty line.
    const [begin, end] = [words.indexOf(FENCE), words.lastIndexOf(FENCE)];
    expect(words.slice(begin, 4000)).toContain("\n\n");
    expect(end).toBeGreaterThan(4200);
  });

  it("is a story of 24 days if nobody says long", () => {
    for (const line of ["Tell me a story.", "讲个故事。", "お話をして。"]) {
      const { words } = say(line);
      expect(words).toMatch(/24/);
      expect(words).not.toMatch(/25/);
    }
  });

  it("comes whole from the model, and is too long for Telegram in one piece", async () => {
    const [model, telegram] = await Promise.all([startModel(), startTelegram()]);
    try {
      const client = new Anthropic({ apiKey: "practice", baseURL: model.url, maxRetries: 0 });
      const stream = client.messages.stream({
        model: "claude-sonnet-5-5",
        max_tokens: 8192,
        messages: [{ role: "user", content: "Write a long reply with code." }],
      });
      const long = await stream.finalText();
      expect(long).toBe(say("Write a long reply with code.").words);
      expect((await stream.finalMessage()).stop_reason).toBe("end_turn");
      const { api } = new Bot(telegram.token, { client: { apiRoot: telegram.url } });
      const error = await api.sendMessage(1001, long).then(
        () => expect.fail("this should have failed"),
        (one: GrammyError) => one,
      );
      expect(error).toMatchObject({ description: "Bad Request: message is too long" });
      await api.sendMessage(1001, long.slice(0, 4096));
    } finally {
      await Promise.all([model.close(), telegram.close()]);
    }
  });
});

describe("memory", () => {
  it.each([
    ["Remember that my train leaves at ten.", "memory_write", "my train leaves at ten"],
    ["What did I tell you about Mira?", "memory_search", "Mira"],
    ["What do you know about Mira?", "memory_search", "Mira"],
    ["关于小美，我跟你说过什么？", "memory_search", "小美"],
    ["关于小美，你知道什么？", "memory_search", "小美"],
    ["ミラについて、何を話しましたか？", "memory_search", "ミラ"],
    ["ミラについて何か知っている？", "memory_search", "ミラ"],
  ])("%s", (line, name, words) => {
    const [field, category] =
      name === "memory_write" ? ["content", { category: "fact" }] : ["query"];
    expect(say(line).calls).toEqual([[name, { [String(field)]: words, ...Object(category) }]]);
  });

  it.each([
    [
      "When does my train leave?",
      "my train leaves at ten",
      "I remember this: my train leaves at ten",
    ],
    ["我的火车几点开？", "火车十点开。", "我记得这件事：火车十点开。"],
    [
      "ミラはどこに住んでいる？",
      "妹のミラはリスボンに住んでいる。",
      "こう覚えています。妹のミラはリスボンに住んでいる。",
    ],
  ])("that was remembered answers: %s", (line, remembered, words) => {
    expect(say(line, { remembered, tools: [] }).words).toBe(words);
  });

  it("in Japanese, what is to be remembered is told as well", () => {
    const told = "私の好きなお茶はウーロン茶だと覚えておいて。";
    expect(say(told, { tools: [] }).words).toBe("わかりました。好きなお茶はウーロン茶です。");
  });
});

describe("work that takes its time", () => {
  const NUMBERS = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20";

  it.each([
    ["Count to 20.", "Run `sleep 30`."],
    ["数到 20。", "运行 `sleep 30`。"],
    ["20まで数えて。", "`sleep 30`を実行して。"],
  ])("%s %s", (count, sleep) => {
    expect(say(count).words).toBe(NUMBERS);
    expect(say(sleep).calls).toEqual([["bash", { command: "sleep 30" }]]);
  });
});
