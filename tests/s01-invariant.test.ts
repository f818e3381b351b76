/** The check that runs after every test must itself see what it is there for. */

import type Anthropic from "@anthropic-ai/sdk";
import { describe, expect, it } from "vitest";
import { allow, breaches, practice, sectionsFrom, wrongIn } from "./helper.ts";

type Param = Anthropic.MessageParam;
type Block = Anthropic.ContentBlockParam;

const text = (words: string): Block => ({ type: "text", text: words });
const use = (id: string): Block => ({ type: "tool_use", id, name: "bash", input: {} });
const result = (id: string, content = "ok"): Block => ({
  type: "tool_result",
  tool_use_id: id,
  content,
});
const user = (...content: Block[]): Param => ({ role: "user", content });
const assistant = (...content: Block[]): Param => ({ role: "assistant", content });
const search: Block = { type: "server_tool_use", id: "s1", name: "web_search", input: {} };
const thinking: Block = { type: "thinking", thinking: "Hm.", signature: "c2ln" };

const hi = user(text("hi"));

describe("a valid request passes", () => {
  const valid: [string, Param[]][] = [
    ["one line", [hi]],
    ["content as a string", [{ role: "user", content: "hi" }]],
    ["calls, answered", [hi, assistant(use("a"), use("b")), user(result("a"), result("b"))]],
    ["results and then a text", [hi, assistant(use("a")), user(result("a"), text("go on"))]],
    ["a paused reply", [hi, assistant(text("Wait."), search)]],
    ["thinking before a text", [hi, assistant(thinking, text("Hello.")), hi]],
  ];
  it.each(valid)("%s", (_name, messages) => {
    expect(breaches({ messages })).toEqual([]);
  });
});

describe("what breaks a rule is found", () => {
  const wrong: [string, Param[]][] = [
    ["nothing", []],
    ["the assistant first", [assistant(text("Hello.")), hi]],
    ["two of the user's", [hi, hi]],
    ["an empty message", [hi, assistant(), hi]],
    ["an empty string", [{ role: "user", content: "" }]],
    ["a blank text", [user(text("hi"), text(" \n"))]],
    ["an empty result", [hi, assistant(use("a")), user(result("a", ""))]],
    ["an open call", [hi, assistant(use("a")), hi]],
    ["an open call at the end", [hi, assistant(use("a"))]],
    ["one of two answered", [hi, assistant(use("a"), use("b")), user(result("a"))]],
    ["two results for one call", [hi, assistant(use("a")), user(result("a"), result("a"))]],
    [
      "results in another order",
      [hi, assistant(use("a"), use("b")), user(result("b"), result("a"))],
    ],
    ["a result without a call", [user(result("a"))]],
    ["a text before a result", [hi, assistant(use("a")), user(text("go on"), result("a"))]],
    [
      "an id twice in a message",
      [hi, assistant(use("a"), use("a")), user(result("a"), result("a"))],
    ],
    [
      "an id twice in the request",
      [hi, assistant(use("a")), user(result("a")), assistant(use("a")), user(result("a"))],
    ],
    ["thinking last", [hi, assistant(text("Hello."), thinking), hi]],
    [
      "thinking that is not signed",
      [hi, assistant({ type: "thinking", thinking: "Hm", signature: "" }, text("Hello.")), hi],
    ],
    ["a reply last", [hi, assistant(text("Hello."))]],
    ["half a character", [user(text("\ud83d"))]],
    ["half a character in a result", [hi, assistant(use("a")), user(result("a", "x\ude00"))]],
  ];
  it.each(wrong)("%s", (_name, messages) => {
    expect(breaches({ messages })).not.toEqual([]);
  });
});

describe("the log", () => {
  it("is searched for what the model has refused, but for what a test allows", async () => {
    const model = await practice();
    const body = JSON.stringify({ model: "m", max_tokens: 9, messages: [hi, user(text("and?"))] });
    const headers = { "x-api-key": "k", "anthropic-version": "2026-10-21" };
    const send = (bytes: string) =>
      fetch(`${model.url}/v1/messages`, { method: "POST", body: bytes, headers });
    await send(body);
    await send(body.replace('"max_tokens":9', '"max_tokens":"9"'));
    const [first, second] = model.log;
    expect(wrongIn(model.log).join("\n")).toContain("roles must take turns");
    expect(wrongIn(model.log).join("\n")).toContain("max_tokens");
    allow(model, first);
    allow(model, second);
  });

  it("is that of sections which exist", () => {
    expect(sectionsFrom("s01").map(({ name }) => name)).toContain("en/s01_agent_loop");
    expect(sectionsFrom("s02").map(({ id }) => id)).not.toContain("s01");
  });
});
