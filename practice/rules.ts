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

/** A text of more characters is a document, so its request is looked for at its end only. */
const MAX_REQUEST = 2000;

type Block = Anthropic.ContentBlockParam;
type Groups = Record<string, string | undefined>;

/** What the rules decide by. */
interface Situation {
  /** The request; of a long text its end, where the question is. */
  text: string;
  /** The same in full, for a conversation that is to be summarised. */
  whole: string;
  language: Language;
  /** What the user said before that, oldest first. */
  earlier: string[];
  /** What the program remembered, in all turns. */
  memories: string[];
  /** What it remembered for this turn. */
  remembered: string[];
  /** The time that the program gave, as "10:05"; empty if it gave none. */
  clock: string;
  /** The blocks after the text: calls and their results. */
  after: Block[];
  /** How many replies with tool calls came after the text. */
  rounds: number;
  paused: boolean;
  system: string;
  tools: readonly Anthropic.ToolUnion[];
}

/** The reply of the practice model to a request. The same request always gets the same reply. */
export function answer(request: PracticeRequest): Scripted {
  return cutAt(request.max_tokens, decide(readSituation(request)));
}

function decide(now: Situation): Scripted {
  const { say } = now.language;
  if (now.paused) return speak(say.resumed);
  if (isHeartbeat(now)) return speak(heartbeat(now));
  if (wantsSummary(now)) return speak(summarise(now));
  const plan = planFor(now);
  const calls = nextCalls(plan, now);
  if (calls.length > 0) return callTools(calls, now);
  if (now.after.some((block) => block.type === "tool_result")) return speak(reportResults(now));
  return answerInWords(now, plan);
}

interface PlacedBlock {
  role: string;
  block: Block;
  /** The index of its message. */
  message: number;
}

function blocksOf(request: PracticeRequest): PlacedBlock[] {
  return request.messages.flatMap(({ role, content }, message) => {
    const text = { type: "text" as const, text: String(content) };
    const blocks: Block[] = typeof content === "string" ? [text] : content;
    return blocks.map((block) => ({ role, block, message }));
  });
}

function readSituation(request: PracticeRequest): Situation {
  const all = blocksOf(request);
  const isWords = ({ role, block }: PlacedBlock) =>
    role === "user" && block.type === "text" && !CONTEXT.test(block.text);
  const last = all.findLastIndex(isWords);
  const after = all.slice(last + 1).filter(({ block }) => !CONTEXT.test(textOf(block)));
  const calls = after.filter(({ block }) => block.type === "tool_use");
  const whole = textOf(all[last]?.block);
  const text = whole.length > MAX_REQUEST ? whole.slice(-500) : whole;
  const { system } = request;
  const before = all.slice(0, Math.max(0, last)).filter(({ role }) => role === "user");
  const contexts = before.filter(({ block }) => CONTEXT.test(textOf(block)));
  const contextsOfTurn = contexts.filter(({ message }) => message === all[last]?.message);
  const requests = before.filter(({ block }) => block.type === "text" && !CONTEXT.test(block.text));
  const earlier = requests.map(({ block }) => textOf(block).slice(0, 2 * MAX_REQUEST));
  return {
    text,
    whole,
    language: languageOf(text, earlier),
    earlier,
    memories: contexts.flatMap(({ block }) => memoriesIn(textOf(block))),
    remembered: contextsOfTurn.flatMap(({ block }) => memoriesIn(textOf(block))),
    clock: contextsOfTurn.map(({ block }) => CLOCK.exec(textOf(block))?.[1] ?? "").join(""),
    after: after.map(({ block }) => block),
    rounds: new Set(calls.map(({ message }) => message)).size,
    paused: request.messages.at(-1)?.role === "assistant",
    system: typeof system === "string" ? system : (system ?? []).map(textOf).join("\n"),
    tools: request.tools ?? [],
  };
}

/**
 * A block that a program puts beside the user's words in their message: the user did not say it.
 */
const CONTEXT = /^<context>\n/;

/** "It is Mon Jan 05 2026 10:05:00 GMT+0000 …" */
const CLOCK = /^It is \w+ \w+ \d+ \d+ (\d\d:\d\d)/m;

function memoriesIn(context: string): string[] {
  return [...context.matchAll(/^You remember: (.+)$/gm)].map((match) => match[1] ?? "");
}

/** 「大阪在住」 has no kana, so by itself it could be Chinese, but not after a line in Japanese. */
function languageOf(text: string, earlier: string[]): Language {
  const likely = LANGUAGES.find(
    ({ script, alsoScript }) => alsoScript?.test(text) && earlier.some((one) => script.test(one)),
  );
  return likely ?? LANGUAGES.findLast(({ script }) => script.test(text)) ?? firstLanguage();
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

/** A reply that is longer than max_tokens allows ends in the middle; its stop reason says so. */
function cutAt(limit: number, scripted: Scripted): Scripted {
  if (limit === 0) return { content: [], stopReason: "max_tokens" };
  const [first, ...others] = scripted.content ?? [];
  if (first?.type !== "text" || others.length > 0) return scripted;
  const text = String(first.text);
  if (countTokens(text) <= limit) return scripted;
  return { ...speak([...text].slice(0, limit * 4).join("")), stopReason: "max_tokens" };
}

// ---- Heartbeats ----

/**
 * Whether the last line asks for HEARTBEAT_OK. But a single line that also asks for a tool, for
 * example to write HEARTBEAT_OK into a file, is an ordinary request.
 */
function isHeartbeat(now: Situation): boolean {
  if (!/(?:^|\n)[^\n`"“「]*HEARTBEAT_OK[^\n`"”」?？]{0,60}\s*$/.test(now.whole)) return false;
  return now.whole.includes("\n") || planFor(now).steps.length === 0;
}

/** Says what the tasks ask for in plain words, like "Tell the owner: …"; other tasks it ignores. */
function heartbeat({ whole, clock }: Situation): string {
  const said = whole.split("\n").flatMap((line) => {
    const task = line.replace(/^[\s\-*+]*(?:\d+\.\s+)?(?:\[.?\]\s*)?/, "").trim();
    return tell(task, clock) ?? [];
  });
  return said.join("\n") || "HEARTBEAT_OK";
}

/** What one task says, in the first language that understands it, if it is time for it. */
function tell(task: string, clock: string): string | undefined {
  for (const { patterns, say } of LANGUAGES) {
    const found = firstMatch(patterns.tell, task);
    if (!found) continue;
    if (!isTime(clock, found)) return undefined;
    const { content, greeting = "", name = "" } = found;
    return content ?? say.greet(greeting, name);
  }
  return undefined;
}

/** The named groups of the first pattern that matches. */
function firstMatch(patterns: RegExp[], text: string): Groups | undefined {
  for (const pattern of patterns) {
    const match = pattern.exec(text);
    if (match) return { ...match.groups };
  }
  return undefined;
}

function isTime(clock: string, { after, before }: Groups): boolean {
  const minutes = (time: string): number => {
    const [hours = 0, rest = 0] = time.split(":").map(Number);
    return hours * 60 + rest;
  };
  if (after === undefined && before === undefined) return true;
  if (clock === "") return false; // the program gave no time
  const now = minutes(clock);
  return now >= minutes(after ?? "0") && now < minutes(before ?? "24");
}

// ---- Tools ----

function planFor(now: Situation): Plan {
  const { text, tools, language } = now;
  if (now.whole.length > MAX_REQUEST) return { steps: [], missing: [] };
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

/** What the tools gave, in the order of the calls. */
function reportResults(now: Situation): string {
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

/**
 * What is answered in words. The first rule wins whose pattern matches and that does not decline
 * by giving undefined. To add a rule, add a name to PATTERN_NAMES in phrases.ts, its patterns to
 * each language, and an entry here.
 */
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
  ["long", (now, found) => longText(now.language, longTextOptions(now, found))],
  ["story", (now) => story(now.language)],
  ["joke", (now) => now.language.say.joke],
  ["explain", (now) => now.language.explanations.find(([word]) => word.test(now.text))?.[1]],
  ["howAreYou", (now) => now.language.say.howAreYou],
  ["greeting", (now, { hour }) => now.language.say.greeting(hour)],
  ["goodbye", (now) => now.language.say.goodbye],
  ["thanks", (now) => now.language.say.thanks],
];

function answerInWords(now: Situation, plan: Plan): Scripted {
  const { say } = now.language;
  const names = now.tools.flatMap((tool) => ("name" in tool ? [tool.name] : []));
  if (plan.missing.includes("tool")) return speak(say.noTool(names));
  if (plan.missing.includes("clock")) return speak(say.noClock);
  // A question like "which tea do I like best?" can be answered by what the program remembered.
  const isQuestion = /[?？]|か。?$/.test(now.text);
  const [memory] = isQuestion ? now.remembered : [];
  // A question about a fact comes before a statement of one, because "my name is Ada, what is my
  // name?" is a question.
  const fact = answerFact(now) ?? (memory ? undefined : acknowledgeFact(now));
  if (fact) return speak(fact);
  if (plan.missing.includes("memory")) return speak(say.noMemory);
  const ruled = applyRules(now);
  if (ruled) return ruled;
  return speak(memory ? say.remembered(memory) : say.help(names));
}

function applyRules(now: Situation): Scripted | undefined {
  for (const [name, rule] of RULES) {
    const found = findRequest(now.language.patterns[name], now);
    const result = found && rule(now, found);
    if (result) return typeof result === "string" ? speak(result) : result;
  }
  return undefined;
}

/**
 * Looks for a pattern in the request without the words around it, and then in all of it, because
 * "hello" is such a word, and a request as well.
 */
function findRequest(patterns: RegExp[], { text, language }: Situation): Groups | undefined {
  const whole = text.trim().replace(language.after, "");
  return firstMatch(patterns, trimWords(text, language)) ?? firstMatch(patterns, whole);
}

/** The answer to a question about a fact, if this is one: what the user told, or a memory. */
function answerFact(now: Situation): string | undefined {
  const { facts, say } = now.language;
  for (const fact of facts) {
    const found = firstMatch(fact.ask, now.text.trim());
    if (!found) continue;
    const key = fact.key ?? keyOf(fact, found);
    const value = collectFacts(textsWithFacts(now), now.language).get(key);
    if (value) return say.known(key, value);
    const [memory] = now.remembered;
    return memory ? say.remembered(memory) : say.unknown(key);
  }
  return undefined;
}

/** All that may hold facts about the user, the newest last. */
function textsWithFacts({ memories, earlier, text }: Situation): string[] {
  return [...memories, ...earlier, text];
}

/** What is said to a fact that the user tells, if this request tells one. */
function acknowledgeFact(now: Situation): string | undefined {
  const [fact] = collectFacts([now.text], now.language);
  return fact && now.language.say.told(...fact);
}

/** The facts that the texts tell, by key. Of two values for one key the newer one counts. */
function collectFacts(texts: string[], language: Language): Map<string, string> {
  return new Map(texts.flatMap((text) => [...factsIn(text, language)]));
}

/**
 * The facts that one text tells. The last entry of the table takes any key, so it must not
 * overwrite what an entry before it found.
 */
function factsIn(text: string, language: Language): Map<string, string> {
  const found = new Map<string, string>();
  for (const fact of language.facts) {
    for (const { groups = {} } of fact.tell.flatMap((pattern) => allMatches(pattern, text))) {
      const name = fact.key ?? keyOf(fact, groups);
      const value = cleanValue(groups.value ?? "");
      const isFree = fact.key !== undefined || !found.has(name);
      if (value && isFree) found.set(name, value);
    }
  }
  return found;
}

/** The key that a text names: "cat", or with a prefix "最喜欢的颜色". */
function keyOf({ prefix = "" }: { prefix?: string }, { key = "" }: Groups): string {
  return prefix + key.toLowerCase();
}

function allMatches(pattern: RegExp, text: string): RegExpExecArray[] {
  return [...text.matchAll(new RegExp(pattern, `${pattern.flags}g`))];
}

/** Of "blue and I live in Paris" only "blue" is the value. */
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

function longTextOptions({ text, language }: Situation, { list }: Groups) {
  const code = language.patterns.code.some((pattern) => pattern.test(text));
  return { list: list !== undefined, code };
}

/**
 * In a cron job the model reminds of something. A person who asks for it is told that it takes a
 * job, because nobody wakes the model later.
 */
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

/**
 * Calculates a sum such as "2 plus 3 times 4". Multiplications and divisions are done while the
 * terms are read, and then the terms are added, because multiplication binds more strongly.
 */
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

/** What the user asked, without the summaries that a program put into the conversation. */
function requestsOf({ earlier, language }: Situation): string[] {
  return earlier.filter((text) => !language.isSummary.test(text));
}

/** A summary that keeps what a later question may need: facts, files and the last requests. */
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
