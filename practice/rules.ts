/**
 * What the practice model says: fixed rules over the last text block of the user, and over the
 * tool results that came after it. The words are in phrases.ts, the tool calls in plan.ts.
 */

import type Anthropic from "@anthropic-ai/sdk";
import { longText } from "./long-text.ts";
import { LANGUAGES, type Language, type Patterns } from "./phrases.ts";
import { type Call, findPaths, makePlan, type Plan, trimWords } from "./plan.ts";
import type { PracticeRequest, Scripted } from "./reply.ts";
import { countTokens } from "./tokens.ts";

/** A text as long as this is a document, not a request. */
const LONG = 2000;

type Block = Anthropic.ContentBlockParam;
type Groups = Record<string, string | undefined>;

/** What the rules look at. */
interface Situation {
  /** The request; of a long text its end, where the question is. */
  text: string;
  /** The same in full, for a conversation that is to be summarised. */
  whole: string;
  language: Language;
  /** What the user said before that, oldest first. */
  earlier: string[];
  /** What the program remembered, of all turns; and for this one. */
  memories: string[];
  remembered: string[];
  /** What the program says of the time, as "10:05". */
  clock: string;
  /** The blocks after the text: calls and their results. */
  after: Block[];
  /** How many replies with tool calls came after the text. */
  rounds: number;
  paused: boolean;
  system: string;
  tools: readonly Anthropic.ToolUnion[];
}

export function answer(request: PracticeRequest): Scripted {
  return cutAt(request.max_tokens, decide(look(request)));
}

function decide(now: Situation): Scripted {
  const { say } = now.language;
  if (now.paused) return speak(say.resumed);
  if (isHeartbeat(now)) return speak(heartbeat(now));
  if (wantsSummary(now)) return speak(summarise(now));
  const plan = planFor(now);
  const calls = nextCalls(plan, now);
  if (calls.length > 0) return callTools(calls, now);
  if (now.after.some((block) => block.type === "tool_result")) return speak(report(now));
  return inWords(now, plan);
}

function look(request: PracticeRequest): Situation {
  const said = request.messages.flatMap(({ role, content }, message) => {
    const text = { type: "text" as const, text: String(content) };
    const blocks: Block[] = typeof content === "string" ? [text] : content;
    return blocks.map((block) => ({ role, block, message }));
  });
  const last = said.findLastIndex(({ role, block }) => role === "user" && block.type === "text");
  const after = said.slice(last + 1);
  const calls = after.filter(({ block }) => block.type === "tool_use");
  const whole = textOf(said[last]?.block);
  const text = whole.length > LONG ? whole.slice(-500) : whole;
  const { system } = request;
  const before = said.slice(0, Math.max(0, last)).filter(({ role }) => role === "user");
  const contexts = before.filter(({ block }) => CONTEXT.test(textOf(block)));
  const here = contexts.filter(({ message }) => message === said[last]?.message);
  return {
    text,
    whole,
    language: LANGUAGES.findLast(({ script }) => script.test(text)) ?? firstLanguage(),
    earlier: before.flatMap(({ block }) => {
      return block.type === "text" && !CONTEXT.test(block.text)
        ? [block.text.slice(0, 2 * LONG)]
        : [];
    }),
    memories: contexts.flatMap(({ block }) => memoriesIn(textOf(block))),
    remembered: here.flatMap(({ block }) => memoriesIn(textOf(block))),
    clock: here.map(({ block }) => CLOCK.exec(textOf(block))?.[1] ?? "").join(""),
    after: after.map(({ block }) => block),
    rounds: new Set(calls.map(({ message }) => message)).size,
    paused: request.messages.at(-1)?.role === "assistant",
    system: typeof system === "string" ? system : (system ?? []).map(textOf).join("\n"),
    tools: request.tools ?? [],
  };
}

/** What a program puts before the user's words in their message: it is not of the user's saying. */
const CONTEXT = /^<context>\n/;

/** "It is Mon Jan 05 2026 10:05:00 GMT+0000 …" */
const CLOCK = /^It is \w+ \w+ \d+ \d+ (\d\d:\d\d)/m;

function memoriesIn(context: string): string[] {
  return [...context.matchAll(/^You remember: (.+)$/gm)].map((match) => match[1] ?? "");
}

function firstLanguage(): Language {
  const [english] = LANGUAGES;
  if (!english) throw new Error("phrases.ts has no language");
  return english;
}

function textOf(block: Block | undefined): string {
  return block?.type === "text" ? block.text : "";
}

function speak(text: string): Scripted {
  return { content: [{ type: "text", text }] };
}

/** A reply that is longer than max_tokens allows ends in the middle, and says so. */
function cutAt(limit: number, scripted: Scripted): Scripted {
  if (limit === 0) return { content: [], stopReason: "max_tokens" };
  const [first, ...others] = scripted.content ?? [];
  if (first?.type !== "text" || others.length > 0) return scripted;
  const text = String(first.text);
  if (countTokens(text) <= limit) return scripted;
  return { ...speak([...text].slice(0, limit * 4).join("")), stopReason: "max_tokens" };
}

// ---- Heartbeats ----

/** The last line asks for HEARTBEAT_OK; but one line that asks for a tool only talks about it. */
function isHeartbeat(now: Situation): boolean {
  if (!/(?:^|\n)[^\n`"“「]*HEARTBEAT_OK[^\n`"”」?？]{0,60}\s*$/.test(now.whole)) return false;
  return now.whole.includes("\n") || planFor(now).steps.length === 0;
}

/** Says what a task plainly asks for, like "Tell the owner: …"; what takes judgement it leaves. */
function heartbeat({ whole, clock }: Situation): string {
  const said = whole.split("\n").flatMap((line) => {
    const task = line.replace(/^[\s\-*+]*(?:\d+\.\s+)?(?:\[.?\]\s*)?/, "").trim();
    for (const { patterns, say } of LANGUAGES) {
      for (const pattern of patterns.tell) {
        const found: Groups | undefined = pattern.exec(task)?.groups;
        if (!found) continue;
        const { content, greeting = "", name = "" } = found;
        return isTime(clock, found) ? (content ?? say.greet(greeting, name)) : [];
      }
    }
    return [];
  });
  return said.join("\n") || "HEARTBEAT_OK";
}

function isTime(clock: string, { after, before }: Groups): boolean {
  const minutes = (time: string): number => {
    const [hours = 0, rest = 0] = time.split(":").map(Number);
    return hours * 60 + rest;
  };
  if (after === undefined && before === undefined) return true;
  if (clock === "") return false; // nobody has said how late it is
  const now = minutes(clock);
  return now >= minutes(after ?? "0") && now < minutes(before ?? "24");
}

// ---- Tools ----

function planFor(now: Situation): Plan {
  const { text, tools, language } = now;
  if (now.whole.length > LONG) return { steps: [], missing: [] };
  const before = now.earlier.flatMap((earlier) => findPaths(earlier)).at(-1) ?? "";
  return makePlan(text.replace(language.forever, ""), tools, language, before);
}

function nextCalls(plan: Plan, now: Situation): Call[] {
  const { steps } = plan;
  const endless = now.language.forever.test(now.text);
  return steps[endless && steps.length > 0 ? now.rounds % steps.length : now.rounds] ?? [];
}

function callTools(calls: Call[], now: Situation): Scripted {
  const { say, forever, gap = " " } = now.language;
  const quiet = now.rounds > 0 && forever.test(now.text);
  const text = calls.map((call) => say.before(call.what, call.on)).join(gap);
  const uses = calls.map(({ name, input }) => ({ type: "tool_use", name, input }));
  return { content: quiet ? uses : [{ type: "text", text }, ...uses] };
}

/** What the tools said, in the order of the calls. */
function report(now: Situation): string {
  const { say } = now.language;
  const results = now.after.filter((block) => block.type === "tool_result");
  const sentences = results.map((result) => {
    const use = now.after.find((b) => b.type === "tool_use" && b.id === result.tool_use_id);
    const { name, input } = use?.type === "tool_use" ? use : { name: "The tool", input: {} };
    const { content } = result;
    const text = typeof content === "string" ? content : (content ?? []).map(partText).join("\n");
    return result.is_error
      ? say.failed(name, shorten(text))
      : say.result(name, about(input), shorten(text));
  });
  return sentences.join("\n\n");
}

function partText(part: { type: string; text?: string }): string {
  return part.text ?? `[${part.type}]`;
}

/** What a call was about: the first of its arguments that is a text. */
function about(input: unknown): string {
  const values = Object.values(Object(input));
  return String(values.find((value) => typeof value === "string") ?? ".");
}

function shorten(text: string): string {
  const trimmed = text.trim();
  const lines = trimmed.split("\n").slice(0, 12).join("\n").slice(0, 700).trimEnd();
  return lines.length < trimmed.length ? `${lines}\n…` : lines;
}

// ---- Words ----

type Rule = (now: Situation, found: Groups) => string | Scripted | undefined;

/** What is answered in words, in this order; a rule may decline by giving undefined. */
const RULES: [keyof Patterns, Rule][] = [
  ["identity", (now) => now.language.say.identity(/\bYou are (\p{Lu}\w+)/u.exec(now.system)?.[1])],
  ["calculate", (now, { expression = "" }) => calculate(expression, now.language)],
  ["capital", (now, { place = "" }) => capital(place, now.language)],
  ["think", (now, { topic = "" }) => think(topic, now.language)],
  ["count", (_now, { from, to }) => count(Number(from ?? 1), Number(to))],
  ["whatDidISay", (now) => now.language.say.youSaid(requestsOf(now).at(-1))],
  ["history", (now) => now.language.say.history(requestsOf(now).map(oneLine))],
  ["remind", remind],
  [
    "say",
    ({ language: { say } }, { content = "", short, name = "" }) =>
      short || name ? say.greet(content, name) : content,
  ],
  ["haiku", (now) => now.language.say.haiku],
  ["long", (now, found) => longText(now.language, wantedOf(now, found))],
  ["story", (now) => story(now.language)],
  ["joke", (now) => now.language.say.joke],
  ["explain", (now) => now.language.explanations.find(([word]) => word.test(now.text))?.[1]],
  ["howAreYou", (now) => now.language.say.howAreYou],
  ["greeting", (now) => now.language.say.greeting],
  ["goodbye", (now) => now.language.say.goodbye],
  ["thanks", (now) => now.language.say.thanks],
];

function inWords(now: Situation, plan: Plan): Scripted {
  const { say, patterns } = now.language;
  const names = now.tools.flatMap((tool) => ("name" in tool ? [tool.name] : []));
  if (plan.missing.includes("tool")) return speak(say.noTool(names));
  if (plan.missing.includes("clock")) return speak(say.noClock);
  // CacheRequest comes before telling: "my name is Ada, what is my name?" is a question.
  // And "which tea do I like best?" is one that a memory may answer.
  const isQuestion = /[?？]|か。?$/.test(now.text);
  const [memory] = isQuestion ? now.remembered : [];
  const fact = asked(now) ?? (memory ? undefined : told(now));
  if (fact) return speak(fact);
  if (plan.missing.includes("memory")) return speak(say.noMemory);
  for (const [name, rule] of RULES) {
    const found = find(patterns[name], now);
    const result = found && rule(now, found);
    if (result) return typeof result === "string" ? speak(result) : result;
  }
  if (memory) return speak(say.remembered(memory));
  return speak(say.help(names));
}

/** With and without the words round the request: "hello" is one of them, and a request too. */
function find(patterns: RegExp[], now: Situation): Groups | undefined {
  const bare = now.text.trim().replace(now.language.after, "");
  for (const text of [trimWords(now.text, now.language), bare]) {
    for (const pattern of patterns) {
      const match = pattern.exec(text);
      if (match) return { ...match.groups };
    }
  }
  return undefined;
}

function asked(now: Situation): string | undefined {
  const { facts, say } = now.language;
  for (const fact of facts) {
    for (const pattern of fact.ask) {
      const match = pattern.exec(now.text.trim());
      if (!match) continue;
      const key = fact.key ?? match.groups?.key?.toLowerCase() ?? "";
      const told = [...now.memories, ...now.earlier, now.text];
      const value = collectFacts(told, now.language).get(key);
      if (value) return say.known(key, value);
      const [memory] = now.remembered;
      return memory ? say.remembered(memory) : say.unknown(key);
    }
  }
  return undefined;
}

function told(now: Situation): string | undefined {
  const [fact] = collectFacts([now.text], now.language);
  return fact && now.language.say.told(...fact);
}

/** Everything that the user told, the newest wins. */
function collectFacts(texts: string[], language: Language): Map<string, string> {
  return new Map(texts.flatMap((text) => [...factsIn(text, language)]));
}

/** The table's last entry takes any key, so what an entry before it found stays as it is. */
function factsIn(text: string, language: Language): Map<string, string> {
  const found = new Map<string, string>();
  for (const { key, tell } of language.facts) {
    for (const pattern of tell) {
      for (const { groups } of text.matchAll(new RegExp(pattern, `${pattern.flags}g`))) {
        const name = key ?? groups?.key?.toLowerCase() ?? "";
        const value = cleanValue(groups?.value ?? "");
        if (value && (key || !found.has(name))) found.set(name, value);
      }
    }
  }
  return found;
}

/** "blue and I live in Paris" is the value "blue". */
function cleanValue(value: string): string {
  return value.replace(/\s+(?:and|but|so)\s+(?:i|my|you|please|what|tell)\b.*$/i, "").trim();
}

function capital(place: string, language: Language): string | undefined {
  const city = language.capitals[place.trim().toLowerCase()];
  return city && language.say.capital(place.trim(), city);
}

function think(topic: string, language: Language): Scripted {
  const { say } = language;
  return {
    content: [
      { type: "thinking", thinking: say.thinking(topic) },
      { type: "text", text: say.thought(topic) },
    ],
  };
}

function count(from: number, to: number): string {
  const numbers = Array.from({ length: Math.min(1000, Math.max(0, to - from + 1)) });
  return numbers.map((_, index) => String(from + index)).join(" ");
}

function wantedOf({ text, language }: Situation, { list }: Groups) {
  const code = language.patterns.code.some((pattern) => pattern.test(text));
  return { list: list !== undefined, code };
}

/** A job reminds; a person has to be told that it takes a job. */
function remind(now: Situation, { what = "", why = "", question }: Groups): string {
  const { say } = now.language;
  const [, channel = "cron"] = /^# Channel\n\n(\w+)/m.exec(now.system) ?? [];
  return channel === "cron" ? say.reminder(what, why, question !== undefined) : say.noReminder;
}

function story(language: Language): string {
  return Array.from({ length: 24 }, (_, index) => language.say.storyLine(index)).join(
    language.gap ?? " ",
  );
}

/** Two passes, for multiplication and division come first. */
function calculate(expression: string, language: Language): string | undefined {
  const plain = language.operators.reduce(
    (text, [word, sign]) => text.replace(word, sign),
    expression,
  );
  const tokens = plain.match(/(?<=^|[-+*/]\s*)-?[\d.]+|[-+*/]/g) ?? [];
  const sums = [Number(tokens[0])];
  for (let i = 1; i + 1 < tokens.length; i += 2) {
    const value = Number(tokens[i + 1]);
    const last = sums.at(-1) ?? 0;
    if (tokens[i] === "*") sums[sums.length - 1] = last * value;
    else if (tokens[i] === "/") sums[sums.length - 1] = last / value;
    else sums.push(tokens[i] === "-" ? -value : value);
  }
  const result = sums.reduce((sum, part) => sum + part, 0);
  if (Number.isNaN(result)) return undefined;
  return language.say.sum(plain.trim(), String(Number(result.toFixed(6))));
}

// ---- Summaries ----

function wantsSummary(now: Situation): boolean {
  const { whole: text, system, language } = now;
  const { summary, summarySystem } = language.patterns;
  // "Summarise notes.txt" is about a file.
  if (text.length < 200 && findPaths(text).length > 0) return false;
  // A conversation may be written out between the request's beginning and its end.
  const ends = text.length < 1000 ? [text] : [text.slice(0, 500), text.slice(-500)];
  return (
    ends.some((end) => summary.some((pattern) => pattern.test(end.trim()))) ||
    summarySystem.some((pattern) => pattern.test(system.slice(0, 2000).trim()))
  );
}

/** A summary that a program put into the conversation is not a request of the user's. */
function requestsOf({ earlier, language }: Situation): string[] {
  return earlier.filter((text) => !language.isSummary.test(text));
}

/** Keeps what a later question may need: what the user told, the files, the last requests. */
function summarise(now: Situation): string {
  const texts = [...now.earlier, now.whole];
  const line = /^[^\w\n]{0,9}(?:user|human)[^\w\n]{0,9}?[:\]] *([^\s[].+)$/gim;
  const written = [...now.whole.matchAll(line)];
  const requests = [...requestsOf(now), ...written.map((match) => match[1] ?? "")].map(oneLine);
  const facts = [...collectFacts(texts, now.language)].slice(-12);
  const files = [...new Set(texts.flatMap((text) => findPaths(text)))].slice(0, 12);
  return now.language.say.summary(facts, files, requests.filter(Boolean).slice(-5));
}

function oneLine(text: string): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}
