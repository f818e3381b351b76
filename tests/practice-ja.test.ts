import type Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it } from "vitest";
import { answer } from "../practice/rules.ts";
import { tool } from "./practice-tools.ts";

type Params = Anthropic.MessageCreateParamsNonStreaming;

const tools = [
  tool("bash", "command"),
  tool("read_file", "path"),
  tool("write_file", "path", "content"),
  tool("edit_file", "path", "old_text", "new_text"),
];
const later = [tool("list_directory", "path"), tool("get_current_time")];

/** The words, and the calls as [name, input], after these lines of the user's. */
function say(lines: string[], more: Partial<Params> = {}) {
  const messages = lines.map((line) => ({ role: "user" as const, content: line }));
  const request = { model: "claude-sonnet-5-5", max_tokens: 8192, messages, ...more };
  const { content = [] } = answer(request);
  const words = content.flatMap((block) => (block.type === "text" ? [String(block.text)] : []));
  const calls = content.flatMap((block) =>
    block.type === "tool_use" && "name" in block ? [[block.name, block.input]] : [],
  );
  return { words: words.join(" "), calls };
}

describe("the practice model in Japanese", () => {
  it.each([
    ["こんにちは", /練習用モデル/],
    ["あなたは本物のモデルですか？", /本物の言語モデルではありません/],
    ["何ができますか？", /練習用モデル/],
    ["2+3は？", /^2\+3 = 5$/],
    ["2足す3かける4はいくつですか？", /= 14$/],
    ["私の名前は葵です。", /^葵さんですね。/],
    ["私の名前は？", /^お名前はわかりません/],
    ["5まで数えて", /^1 2 3 4 5$/],
    ["エージェントとは何か説明して。", /ループの中に置いたモデル/],
    ["フランスの首都はどこ？", /パリ/],
    ["「おやすみ」と言って", /^おやすみ$/],
    ["ジョークを言って。", /end_turn/],
    ["お話をしてください。", /^1日目、.*24日目.{9,80}$/],
    ["SOUL.mdを読んで。", /ツールがなく/],
    ["今何時ですか？", /時計も/],
    ["それはそうと、緑の考えが眠る", /練習用モデル/],
  ])("without tools: %s", (line, words) => {
    const said = say([line]);
    expect(said.words).toMatch(words);
    expect(said.calls).toEqual([]);
  });

  it.each<[string, unknown[]]>([
    ["SOUL.mdを読んでください。", [["read_file", { path: "SOUL.md" }]]],
    ["SOUL.mdには何が書いてありますか？", [["read_file", { path: "SOUL.md" }]]],
    ["SOUL.mdとUSER.mdを読んで", ["SOUL.md", "USER.md"].map((path) => ["read_file", { path }])],
    ["`ls`を実行して。", [["bash", { command: "ls" }]]],
    ["`ls`をずっと実行し続けて。", [["bash", { command: "ls" }]]],
    [
      'SOUL.mdを読んで、`echo "実行して、"`を実行して。',
      [
        ["read_file", { path: "SOUL.md" }],
        ["bash", { command: 'echo "実行して、"' }],
      ],
    ],
    [
      "notes/list.txtに「牛乳と卵」と書いて、それから読み返して。",
      [["write_file", { path: "notes/list.txt", content: "牛乳と卵" }]],
    ],
    ["x.txtにhiと書いて", [["write_file", { path: "x.txt", content: "hi" }]]],
    [
      "notes/list.txtの卵を紅茶に変えて。",
      [["edit_file", { path: "notes/list.txt", old_text: "卵", new_text: "紅茶" }]],
    ],
    ["ファイルの一覧を見せて。", [["list_directory", { path: "." }]]],
    ["../のファイル一覧を見せて。", [["list_directory", { path: "../" }]]],
    ["skillsフォルダーには何がありますか？", [["list_directory", { path: "skills" }]]],
    ["いま何時？", [["get_current_time", {}]]],
  ])("with tools: %s", (line, calls) => {
    expect(say([line], { tools: [...tools, ...later] }).calls).toEqual(calls);
  });

  it("takes the second step after the first", () => {
    const messages = (line: string): Anthropic.MessageParam[] => [
      { role: "user", content: line },
      { role: "assistant", content: [{ type: "tool_use", id: "a", name: "x", input: {} }] },
      { role: "user", content: [{ type: "tool_result", tool_use_id: "a", content: "ok" }] },
    ];
    const read = "a.txtに「はい」と書いてから、読み返して。";
    expect(say([], { tools, messages: messages(read) }).calls).toEqual([
      ["read_file", { path: "a.txt" }],
    ]);
    const run = "「はい」と出力するスクリプトa.jsを作って、実行して。";
    expect(say([], { tools, messages: messages(run) }).calls).toEqual([
      ["bash", { command: "node a.js" }],
    ]);
  });

  it("remembers what is in the messages, and only that", () => {
    const told = "こんにちは、葵です。京都に住んでいて、紅茶が好きです。私の猫の名前はタマです。";
    const home = "京都に住んでいます。";
    expect(say([told, "私の名前は何ですか？"]).words).toBe("葵さんです。");
    expect(say([told, "私の名前を覚えていますか？"]).words).toBe("葵さんです。");
    expect(say([told, "私の猫の名前は？"]).words).toBe("猫の名前はタマです。");
    expect(say([home, "私はどこに住んでいますか？"]).words).toBe("京都にお住まいです。");
    expect(say(["私の名前は何ですか？", "私の名前は？"]).words).toMatch(/わかりません/);
    expect(say(["2+3は？", "ジョークを言って", "私はこれまでに何を話しましたか？"]).words).toBe(
      "これより前に受け取ったのは、「2+3は？」「ジョークを言って」です。",
    );
  });

  it.each([
    ["好きな色は青です", "好きな色は？", "好きな色は青です。"],
    ["好きな色は青", "好きな色、なんだっけ？", "好きな色は青です。"],
    ["私の好きな色は青だよ", "好きな色って覚えてる？", "好きな色は青です。"],
    ["葵です", "名前、何だっけ？", "葵さんです。"],
    ["名前は葵です。", "名前覚えてる？", "葵さんです。"],
    ["葵っていいます", "私の名前、わかる？", "葵さんです。"],
    ["僕は健太だよ", "俺の名前なんだっけ", "健太さんです。"],
    ["大阪在住です", "どこに住んでるっけ？", "大阪にお住まいです。"],
    ["私は大阪在住です", "住まいは？", "大阪にお住まいです。"],
    ["大阪に在住しています", "私はどこに住んでいますか？", "大阪にお住まいです。"],
    ["仕事はエンジニアです", "仕事、何だっけ？", "お仕事はエンジニアと聞いています。"],
    ["看護師やってます", "仕事は？", "お仕事は看護師と聞いています。"],
    ["大阪出身です", "出身どこだっけ？", "出身は大阪です。"],
    ["30歳です", "何歳だっけ？", "年齢は30歳です。"],
    ["おはよう、葵です", "名前は？", "葵さんです。"],
    ["紅茶好きです", "何が好きだっけ？", "紅茶がお好きです。"],
    ["紅茶が好き", "好きなものは？", "紅茶がお好きです。"],
    ["猫の名前はタマです", "猫の名前は？", "猫の名前はタマです。"],
    ["誕生日は5月3日", "誕生日いつだっけ？", "誕生日は5月3日です。"],
  ])("without pronouns: %s %s", (told, asked, words) => {
    expect(say([told, asked]).words).toBe(words);
    expect(say([asked]).words).toMatch(/わかりません/);
  });

  it.each([
    "大丈夫です",
    "そうです",
    "今日は晴れです",
    "学生です",
    "大阪出身です",
    "あなたの名前は？",
  ])("takes no fact from %s", (line) => {
    expect(say([line, "名前は？"]).words).toMatch(/^お名前はわかりません/);
  });

  it("greets as it is greeted, and by no hour otherwise", () => {
    const rest = "決まったルールで答える練習用モデルです。何を試しましょうか。";
    expect(say(["おはようございます"]).words).toBe(`おはようございます。${rest}`);
    expect(say(["こんばんは"]).words).toBe(`こんばんは。${rest}`);
    expect(say(["やあ"]).words).toBe(rest);
  });

  it("goes on in Japanese after a line without kana", () => {
    expect(say(["紅茶が好き", "大阪在住"]).words).toBe("わかりました。大阪にお住まいです。");
  });

  it("summarises, and knows names and files from the summary", () => {
    const lines = ["私の名前は葵です。", "京都に住んでいます。", "SOUL.mdを読んで", "3まで数えて"];
    const summary = say([...lines, "ここまでの会話を要約して。"]).words;
    expect(summary).toContain("ユーザーの名前は葵です。ユーザーの住まいは京都です。");
    expect(summary).toContain("出てきたファイル：SOUL.md。");
    const kept = `Summary of our conversation so far:\n${summary}`;
    expect(say([kept, "私の名前は？"]).words).toBe("葵さんです。");
    expect(say([kept, "私はどこに住んでいますか？"]).words).toBe("京都にお住まいです。");
    const written = `Since then:\n${lines.map((line) => `user: ${line}`).join(`\nassistant: ${"はい。".repeat(20)}\n`)}`;
    const system = "Summarise this conversation for the assistant who will go on with it.";
    expect(say([written], { system }).words).toMatch(/名前は葵です。.*SOUL\.mdを読んで；3まで/);
  });

  it("reports failures", () => {
    const messages: Anthropic.MessageParam[] = [
      { role: "user", content: "x.mdを読んで" },
      { role: "assistant", content: [{ type: "tool_use", id: "a", name: "read_file", input: {} }] },
      {
        role: "user",
        content: [{ type: "tool_result", tool_use_id: "a", content: "no", is_error: true }],
      },
    ];
    expect(say([], { tools, messages }).words).toBe("うまくいきませんでした。read_fileの返事：no");
  });
});
