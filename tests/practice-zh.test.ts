import type Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it } from "vitest";
import type { PracticeRequest } from "../practice/reply.ts";
import { answer } from "../practice/rules.ts";
import { tool } from "./practice-tools.ts";

const ALL = [
  tool("bash", "command"),
  tool("read_file", "path"),
  tool("write_file", "path", "content"),
  tool("edit_file", "path", "old_text", "new_text"),
  tool("list_directory", "path"),
  tool("get_current_time"),
  tool("memory_write", "content"),
];

/** What the model says to the last of these lines, and the calls as [name, input]. */
function say(lines: string | string[], more: Partial<PracticeRequest> = {}) {
  const messages = [lines].flat().map((line) => ({ role: "user" as const, content: line }));
  const request = {
    model: "claude-sonnet-5-5",
    max_tokens: 1000,
    messages,
    stream: false as const,
  };
  const { content = [] } = answer({ ...request, ...more, stream: false });
  const words = content.flatMap((block) => (block.type === "text" ? [String(block.text)] : []));
  const calls = content.flatMap((block) =>
    block.type === "tool_use" && "name" in block ? [[block.name, block.input]] : [],
  );
  return { words: words.join(""), calls };
}

/** A turn: each call gets "ok", until the model is done. The names of the calls, by rounds. */
function play(line: string, result: { content: string; is_error?: boolean }, limit = 5) {
  const messages: Anthropic.MessageParam[] = [{ role: "user", content: line }];
  const rounds: unknown[][] = [];
  for (;;) {
    const { words, calls } = say("", { messages, tools: ALL });
    if (calls.length === 0 || rounds.length === limit) return { rounds, words };
    rounds.push(calls.map(([name]) => name));
    const uses = calls.map(([name, input], index) => {
      const id = `id_${rounds.length}_${index}`;
      return { type: "tool_use" as const, id, name: String(name), input };
    });
    messages.push({ role: "assistant", content: uses });
    const results = uses.map(({ id }) => ({
      type: "tool_result" as const,
      tool_use_id: id,
      ...result,
    }));
    messages.push({ role: "user", content: results });
  }
}

describe("the practice model in Chinese", () => {
  it.each([
    ["你好", /模拟模型/],
    ["你好！", /模拟模型/],
    ["你是真的模型吗？", /不是真正的语言模型/],
    ["你是谁", /不是真正的语言模型/],
    ["你能做什么？", /几条固定的规则/],
    ["我叫小林。", /^你好，小林，很高兴认识你。$/],
    ["我叫小林，你好", /^你好，小林，/],
    ["我叫什么名字？", /不知道你叫什么/],
    ["2+3 等于几？", /^2\+3 = 5$/],
    ["2 加 3 乘以 4 等于多少", /= 14$/],
    ["从 1 数到 5", /^1 2 3 4 5$/],
    ["解释一下什么是 Agent。", /放在循环里的模型/],
    ["什么是 Agent 循环？", /直到它不再调用工具/],
    ["法国的首都是哪里？", /巴黎/],
    ["说晚安", /^晚安$/],
    ["讲个笑话。", /^Agent 为什么停下来/],
    ["讲个故事。", /^第 1 天.*第 24 天/s],
    ["写首诗", /暗处/],
    ["想一想循环", /^循环，我想过了/],
    ["谢谢", /^不客气/],
    ["再见", /quit/],
    ["读一下 SOUL.md。", /没有工具/],
    ["运行 `ls`。", /没有工具/],
    ["现在几点？", /没有钟/],
    ["记住我喜欢喝茶", /你喜欢喝茶/],
    ["天上的云", /几条固定的规则/],
  ])("without tools: %s", (line, words) => {
    const said = say(line);
    expect(said.words).toMatch(words);
    expect(said.calls).toEqual([]);
  });

  it.each<[string, unknown[]]>([
    ["读一下 SOUL.md。", [["read_file", { path: "SOUL.md" }]]],
    ["请帮我看看 SOUL.md", [["read_file", { path: "SOUL.md" }]]],
    ["SOUL.md 里写了什么？", [["read_file", { path: "SOUL.md" }]]],
    ["读 SOUL.md 和 USER.md", ["SOUL.md", "USER.md"].map((path) => ["read_file", { path }])],
    [
      "读一下 SOUL.md，并运行 `ls skills`。",
      [
        ["read_file", { path: "SOUL.md" }],
        ["bash", { command: "ls skills" }],
      ],
    ],
    ["读 ../workspace-old/plan.txt。", [["read_file", { path: "../workspace-old/plan.txt" }]]],
    ["运行 ls -la", [["bash", { command: "ls -la" }]]],
    ["运行 `echo 一半; exit 3`。", [["bash", { command: "echo 一半; exit 3" }]]],
    [
      "把“先写，再读”写进 notes/list.txt。",
      [["write_file", { path: "notes/list.txt", content: "先写，再读" }]],
    ],
    ["把 hi 写到 x.txt。", [["write_file", { path: "x.txt", content: "hi" }]]],
    [
      "把 notes/list.txt 里的鸡蛋改成茶。",
      [["edit_file", { path: "notes/list.txt", old_text: "鸡蛋", new_text: "茶" }]],
    ],
    ["列出文件。", [["list_directory", { path: "." }]]],
    ["这里有哪些文件？", [["list_directory", { path: "." }]]],
    ["列出 ../ 里的文件。", [["list_directory", { path: "../" }]]],
    ["skills 里有什么？", [["list_directory", { path: "skills" }]]],
    ["现在几点？", [["get_current_time", {}]]],
    ["记住：明天带伞", [["memory_write", { content: "明天带伞" }]]],
  ])("with tools: %s", (line, calls) => {
    expect(say(line, { tools: ALL }).calls).toEqual(calls);
  });

  it.each([
    [["我叫小林。", "我叫什么名字？"], "你叫小林。"],
    [["我叫 Ada", "我是谁？"], "你叫 Ada。"],
    [["我住在杭州。", "我住在哪儿？"], "你住在杭州。"],
    [["我的猫叫汤圆。", "我的猫叫什么？"], "你的猫是汤圆。"],
    [["我最喜欢的颜色是蓝色", "我最喜欢的颜色是什么？"], "你最喜欢的颜色是蓝色。"],
    [["我住在杭州。"], "知道了。你住在杭州。"], // nothing was written down
    [["住在杭州", "住哪来着？"], "你住在杭州。"],
    [["叫小林", "名字呢？"], "你叫小林。"],
    [["我叫小林", "我叫啥来着？"], "你叫小林。"],
    [["我最喜欢的颜色是蓝色", "最喜欢什么颜色来着？"], "你最喜欢的颜色是蓝色。"],
    [["生日是五月三号", "生日是哪天？"], "你的生日是五月三号。"],
    [["我叫小林，住杭州，喜欢喝茶", "我喜欢喝什么来着？"], "你喜欢喝茶。"],
    [["我是程序员", "我做什么工作？"], "你说过你的工作：程序员。"],
    [["我今年三十岁", "我多大了？"], "你的年龄是三十岁。"],
    [["我家猫叫汤圆", "我家猫叫什么？"], "你的猫是汤圆。"],
    [["早上好"], "早上好！我是模拟模型，只按固定的规则回答。想试试什么？"],
    [["晚上好！"], "晚上好！我是模拟模型，只按固定的规则回答。想试试什么？"],
    [["我叫小林。", "你好", "我刚才说了什么？"], "你说的是：“你好”"],
    [["一", "二", "三", "四", "我都跟你说过什么？"], "在这之前，你写过：……“二”“三”“四”。"],
  ])("remembers: %s", (lines, words) => {
    expect(say(lines).words).toBe(words);
  });

  it("one step after the other when one needs the other, and over and over", () => {
    const ok = { content: "ok" };
    expect(play("把“牛奶和鸡蛋”写进 a.txt，然后读一遍。", ok).rounds).toEqual([
      ["write_file"],
      ["read_file"],
    ]);
    expect(play("运行 `true`，然后读 a.txt。", ok).rounds).toEqual([["bash"], ["read_file"]]);
    expect(play("一直运行 `ls`。", ok).rounds).toHaveLength(5);
    expect(play("运行 `ls`", { content: "x", is_error: true }).words).toBe("没成功。bash 说：x");
    expect(play("运行 `ls`", { content: "(no output)" }).words).toBe("`ls` 运行完了，没有输出。");
  });

  it("summarises a conversation that a section wrote out, and knows it from the summary", () => {
    const system = "Summarise this conversation for the assistant who will go on with it.";
    const lines = ["user: 我叫小林，住在杭州。", "assistant: 你好", "user: 读一下 USER.md。"];
    const filler = Array.from({ length: 400 }, () => "assistant: and so on");
    const told = `Summary so far: none\n\nSince then:\n${[...lines, ...filler, "user: 讲个笑话。"].join("\n")}`;
    const { words } = say(told, { system, tools: ALL });
    expect(words).toBe(
      "对话摘要。用户叫小林。用户住在杭州。提到的文件：USER.md。" +
        "最近的请求：我叫小林，住在杭州；读一下 USER.md；讲个笑话。",
    );
    const kept = `Summary of our conversation so far:\n${words}`;
    expect(say([kept, "我叫什么名字？"]).words).toBe("你叫小林。");
    expect(say([kept, "我住在哪里？"]).words).toBe("你住在杭州。");
    expect(say([kept, "你好", "我都跟你说过什么？"]).words).toBe("在这之前，你写过：“你好”。");
  });

  it("leaves other languages alone", () => {
    expect(say("my name is Ada").words).toBe("Nice to meet you, Ada.");
    expect(say("2+3").words).toBe("2+3 = 5");
  });
});
