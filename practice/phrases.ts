/**
 * What the practice model understands and says, as one table per language. The logic in rules.ts
 * and plan.ts contains no word of any language, so to add a language, add an entry to LANGUAGES.
 *
 * A pattern is applied to one request, or one part of it, without polite words before and after it.
 * What it finds is in its named groups.
 */

import { JAPANESE } from "./phrases.ja.ts";
import { CHINESE } from "./phrases.zh.ts";

export type Patterns = Record<(typeof PATTERN_NAMES)[number], RegExp[]>;

const PATTERN_NAMES = [
  // what a tool does: see plan.ts
  "read",
  "run",
  "write",
  "edit",
  "list",
  "time",
  "remember",
  "recall",
  // a line of HEARTBEAT.md that asks for something to be said
  "tell",
  // what is answered in words: see rules.ts
  "summary",
  "summarySystem",
  "identity",
  "help",
  "greeting",
  "goodbye",
  "thanks",
  "howAreYou",
  "count",
  "haiku",
  "long",
  "code",
  "story",
  "joke",
  "think",
  "remind",
  "say",
  "whatDidISay",
  "history",
  "capital",
  "calculate",
  "explain",
] as const;

export interface Language {
  /** Matches a text in this language. */
  script: RegExp;
  /** Matches a text that may be in this language: it is if an earlier one was. */
  alsoScript?: RegExp;
  patterns: Patterns;
  /**
   * Facts that the user tells in one message and asks for in another. The answer names the key: that
   * of the table, or the group `key` of a pattern behind the prefix.
   */
  facts: { key?: string; prefix?: string; tell: RegExp[]; ask: RegExp[] }[];
  /** Matches what separates two requests. With a group `then`, the second waits for the first. */
  separator: RegExp;
  /** Polite words before and after a request, which are removed. */
  before: RegExp;
  after: RegExp;
  /** "it", for the file that was named before: as the whole path, and anywhere in a request. */
  pronoun: RegExp;
  refers: RegExp;
  /** Matches a summary of the conversation. */
  isSummary: RegExp;
  /** Matches "over and over", with which people try the limit of tool rounds. */
  forever: RegExp;
  explanations: [RegExp, string][];
  /** The words for + - * and /. */
  operators: [RegExp, string][];
  capitals: Record<string, string>;
  /** What separates two sentences; a space by default. */
  gap?: string;
  say: Sentences;
}

/** What a tool is asked to do. */
export type Kind = "read" | "run" | "write" | "edit" | "list" | "time" | "remember" | "recall";

export interface Sentences {
  identity(persona: string | undefined): string;
  help(tools: string[]): string;
  noTool(tools: string[]): string;
  noClock: string;
  noMemory: string;
  before(what: Kind, on: string): string;
  result(tool: string, on: string, text: string): string;
  failed(tool: string, text: string): string;
  /** `hour` is a greeting that fits some hours only, such as "Good morning": it is returned. */
  greeting(hour: string | undefined): string;
  goodbye: string;
  thanks: string;
  howAreYou: string;
  told(key: string, value: string): string;
  known(key: string, value: string): string;
  /** The answer to a question about which the program has remembered something. */
  remembered(memory: string): string;
  unknown(key: string): string;
  youSaid(text: string | undefined): string;
  history(requests: string[]): string;
  summary(facts: [string, string][], files: string[], requests: string[]): string;
  thinking(topic: string): string;
  thought(topic: string): string;
  sum(expression: string, value: string): string;
  capital(place: string, city: string): string;
  haiku: string;
  joke: string;
  storyLine(number: number): string;
  /** What stands before the block of code in a long text, and at the end of the text. */
  code: string;
  end: string;
  /** "Good morning, Ada." */
  greet(greeting: string, name: string): string;
  /** What a job says to remind of something; `why` is the sentence before the request. */
  reminder(what: string, why: string, question: boolean): string;
  /** Tells a person that the model can't remind anybody, because nothing wakes it later. */
  noReminder: string;
  resumed: string;
}

/** A file or folder: text in quotes, or a word with a dot or a slash in it. */
const PATH = "(?<path>`[^`]+`|\"[^\"]+\"|'[^']+'|[\\w~@./\\\\-]*[./\\\\][\\w~@./\\\\-]*|it)";
/** A file or folder after words such as "the file called". */
const NAMED =
  "(?:(?:(?:a|an|the|my) )?(?:new )?(?:text )?(?:file|folder|directory) )?(?:called |named " +
  `)?${PATH}`;
const NEW_FILE =
  "(?:an? |the )?(?:new |empty )*(?:\\w+ )?(?:(?:file|script|program) )?(?:called |named " +
  `)?${PATH}`;
/** "in skills", "in the skills folder", "in the current directory". */
const WHERE =
  "(?: (?:in|of|under|inside) (?:(?:the|this|my|your|current|working) )*" +
  "(?:workspace|here|(?:folder|directory)(?: (?<path>\\S+))?|(?<path2>[\\w~@./\\\\-]+))" +
  "(?: (?:folder|directory))?)?";
const VERB =
  "(?:please )?(?:read|show|open|cat|run|execute|write|create|make|save|put|replace|change|edit|" +
  "list|tell me the (?:time|date)|what time|what is the (?:time|date)|what(?:'s| is) in|remember|" +
  "search|print|look at)\\b";

/** "If it is after 08:00 and before 12:00, ". */
const WHEN =
  "(?:(?:if|when) it is (?:after (?<after>[\\d:]+))?(?: and )?(?:before (?<before>[\\d:]+))?,? )?";

function patterns(...sources: string[]): RegExp[] {
  return sources.map((source) => new RegExp(source, "isu"));
}

const ENGLISH: Patterns = {
  read: patterns(
    "^(?:read|open|show(?: me)?|cat|(?:call|use) read_file (?:on|for|with)|print|display" +
      "|view|look at|summari[sz]e)(?: what is in| the contents? of)? (?<paths>.*[./\\\\].*|it" +
      "(?: again)?)$",
    "^what(?:'s| is) (?:in|inside) (?<paths>.*[./\\\\].*|it)$",
    `^what does ${NAMED} (?:say|contain)$`,
  ),
  run: patterns(
    "^(?:use bash to )?(?:run|execute)(?: the)?(?: shell)?(?: command)?:? `(?<command>[^`]+)`",
    "^(?:use bash to )?(?:run|execute)(?: the (?:shell )?command)?:? (?!(?:the|an?|in|out" +
      "|it|away)\\b)(?<command>.+)$",
    "^`(?<command>[^`]+)`$",
    "^(?:run|execute) (?<script>it)$",
  ),
  write: patterns(
    `^(?:write|save|put|store) (?<content>.+) (?:to|into|in|as) ${NAMED}$`,
    `^(?:create|make|write|save) ${NEW_FILE}[,:]? (?:and )?(?:saying|that says|which says` +
      "|containing|that contains|with)(?: the)?(?: (?:texts?|contents?|words?|lines?))?:? " +
      "(?<content>.+)$",
    `^(?:create|make|write) ${NEW_FILE} (?:that|which) prints (?<prints>.+)$`,
    `^(?:create|make) ${NEW_FILE}$`,
  ),
  edit: patterns(
    `^(?:in|edit) ${NAMED}[,:]? (?:and )?(?:replace|change) (?<old>.+?) (?:with|to|by|into) ` +
      "(?<new>.+)$",
    `^(?:replace|change) (?<old>.+?) (?:with|to|by|into) (?<new>.+?) in ${NAMED}$`,
    "^(?:replace|change) (?<old>.+?) (?:with|to|by|into) (?<new>.+)$",
  ),
  list: patterns(
    "^(?:list|show)(?: me)?(?: all)?(?: of)?(?: the| my| your)? (?:files?|folders?|director" +
      `(?:y|ies)|workspace)(?: and folders)?${WHERE}$`,
    "^(?:what|which|how many) (?:files?|folders?)(?: and folders)? (?:are there|are here" +
      `|exist|do you (?:have|see)|can you see|are)${WHERE}$`,
    `^(?:what(?:'s| is)|list what is)${WHERE.replace(/\?$/, "")}$`,
    "^ls$",
  ),
  time: patterns(
    "^(?:what(?:'s| is) the|tell me the|do you know the|give me the|check the) (?:current " +
      "|local )?(?:time|date)",
    "^what (?:time|day|date) is it",
    "^(?:what(?:'s| is) )?today's date",
    "^what is today",
  ),
  remember: patterns(
    "^(?:remember|note|memori[sz]e|don't forget)(?: down)?(?: that| this)?:? (?<content>.+)$",
  ),
  recall: patterns(
    "^(?:search|look in|check)(?: in)?(?: your| the| my)? memor(?:y|ies)(?: for| about)? " +
      "(?<query>.+)$",
    "^what do you (?:remember|know) about (?<query>.+)$",
    "^what (?:did|have) i (?:ever )?(?:tell|told|say|said)(?: to)?(?: you)? about (?<query>.+)$",
  ),
  tell: patterns(
    `^${WHEN}tell the owner(?: that|:) (?<content>.+)$`,
    `^${WHEN}(?:say|wish the owner a) (?<greeting>good (?:morning|afternoon|evening|night))` +
      "(?: to (?<name>[^.!]+))?[.!]*$",
  ),
  summary: patterns(
    "\\bsummari[sz](?:e|ing)\\b.{0,60}\\b(?:conversation|chat|talk|discussion|dialog(?:ue)?" +
      "|transcript|messages|history|so far|above|below|this|we)\\b",
    "\\b(?:write|give|make|produce|create|provide)\\b.{0,40}\\bsummary\\b",
    "^summari[sz]e",
    "\\bsummary of (?:the|this|our) (?:conversation|chat|messages|history)",
  ),
  summarySystem: patterns(
    "\\b(?:you|your task is to|please) (?:only )?summari[sz]e (?:a |the |this |long |older " +
      ")*(?:conversation|chat|transcript|dialog|messages|history)",
    "^summari[sz]e ",
  ),
  identity: patterns(
    "\\bare you (?:really |actually |just )?(?:an? )?(?:real|claude|chatgpt|gpt|ai" +
      "|artificial|human|person|bot|robot|machine|language model|llm|model|program|fake|mock" +
      "|practice)",
    "\\b(?:who|what) are you\\b",
    "\\b(?:which|what) (?:\\w+ )?model\\b.*\\b(?:you|this|using|talking)\\b",
    "\\bis this (?:a )?(?:real|fake|mock|practice|claude|an? (?:ai|model|real))",
    "\\b(?:what is|what's) your name\\b",
    "\\b(?:introduce|about) yourself\\b",
  ),
  help: patterns(
    "\\bwhat can (?:you|i) (?:do|ask|type|try)\\b",
    "^help(?: me)?$",
    "\\bwhat (?:tools|abilities) do you have\\b",
  ),
  greeting: patterns(
    "^(?:hi|hello|hey|hiya|howdy|greetings|(?<hour>good (?:morning|afternoon|evening))|yo|test" +
      "(?:ing)?|ping)(?:,? (?:there|again|world|luna|sage|claude))?\\b[\\s,.!]*$",
  ),
  goodbye: patterns("^(?:bye|goodbye|good bye|see you|good night|farewell)\\b"),
  thanks: patterns(
    "^(?:thanks|thank you|thx|great|nice|cool|good|perfect|ok|okay|well done" +
      "|wow)\\b[\\s,.!]*(?:thanks|thank you|job)?[\\s.!]*$",
  ),
  howAreYou: patterns("\\bhow are you\\b", "\\bhow(?:'s| is) it going\\b"),
  count: patterns("\\bcount(?: slowly)?(?: from (?<from>\\d+))?(?: up)? to (?<to>\\d+)"),
  haiku: patterns("\\b(?:haiku|poem)\\b"),
  long: patterns(
    "\\b(?:long|detailed) (?:(?<list>list)|story|tale|essay|article|answer|reply|text|explanation" +
      "|message|report|letter)\\b",
    "\\b(?:say|write|tell me) something (?:very )?long\\b",
  ),
  code: patterns("\\bcode\\b"),
  story: patterns("\\b(?:story|tale|essay|article)\\b"),
  joke: patterns("\\bjoke\\b"),
  think: patterns("^think(?: hard| carefully| deeply)?(?: about)? (?<topic>.+)$"),
  remind: patterns(
    "^(?:(?<why>[^.!?]+[.!]) )?remind me (?:to |that |of |about )?(?<what>.+?)" +
      "(?<question>,? and suggest .+)?$",
  ),
  say: patterns(
    "^say (?<content>hello|hi|good (?:morning|afternoon|evening|night)) to (?<name>[^.!]+)$",
    "^(?:say|repeat(?: after me)?|echo|reply with|answer with|respond with):? (?<content>.+?)" +
      "(?<short> in (?:one|a)(?: short| single)? (?:line|sentence))?$",
  ),
  whatDidISay: patterns(
    "\\bwhat did i (?:just )?(?:say|ask|tell you|write|type)\\b",
    "\\bwhat was my (?:last|previous) (?:message|question)\\b",
  ),
  history: patterns(
    "\\bwhat (?:have|did) we (?:talk|discuss|do|done|talked|discussed|say|said)",
    "\\bwhat (?:have|did) i (?:asked?|told|tell)(?: you)?\\b",
    "\\bdo you remember (?:our|this|the) conversation\\b",
    "^what do you (?:still )?remember$",
    "\\bhow many (?:messages|questions)\\b",
  ),
  calculate: patterns(
    "^(?:what(?:'s| is)|calculate|compute|how much is|and)? ?(?<expression>-?[\\d.]+(?: ?" +
      "(?:[-+*/x×÷]|plus|minus|times|divided by) ?-?[\\d.]+)+)(?: ?=)?$",
  ),
  explain: patterns(
    "^(?:what(?:'s| is| are| does)|explain|define|tell me about|how (?:does|do))\\b",
  ),
  capital: patterns("\\bcapital (?:city )?of (?<place>[\\p{L} ]+)$"),
};

/** A name: one word, and more words if they begin with a capital letter. */
const NAME = "(?<value>\\p{L}[\\p{L}'-]*(?: \\p{Lu}[\\p{L}'-]*)*)";

const ENGLISH_FACTS = [
  {
    key: "name",
    tell: [
      new RegExp(`\\b[Mm]y name(?: is|'s) ${NAME}`, "u"),
      new RegExp(`\\b[Cc]all me ${NAME}`, "u"),
      /\bI(?: am|'m) (?<value>\p{Lu}\p{L}+)(?=[.,!]| and\b|$)/u,
      new RegExp(`\\b[Tt]he user's name is ${NAME}`, "u"),
      new RegExp(`\\b[Tt]he user is called ${NAME}`, "u"),
    ],
    ask: [
      /\b(?:what(?:'s| is| was)|do you (?:know|remember)|tell me|say|and)\b.*\bmy name\b/iu,
      /^my name\?*$/iu,
      /\bwho am i\b/iu,
      /\bdo you (?:know|remember) (?:me|who i am)\b/iu,
    ],
  },
  {
    key: "home",
    tell: [/\bI live in (?<value>[\p{L} -]+)/u],
    ask: [/\bwhere do i live\b/iu],
  },
  {
    key: "job",
    tell: [/\bI work (?:as|at|for|in) (?<value>[\p{L} -]+)/u],
    ask: [/\b(?:where|what) do i work\b/iu, /\bwhat is my job\b/iu],
  },
  {
    key: "taste",
    tell: [/\bI (?:really )?(?:like|love|prefer) (?<value>[\p{L}\d ]+)/u],
    ask: [/\bwhat do i (?:like|love|prefer)\b/iu],
  },
  {
    // Any other fact, such as "my cat is called Tom" or "my favourite colour is blue".
    tell: [
      /\bmy (?<key>[\p{L}' -]{2,40}?)(?: is called| is| are|:) (?<value>[^.!?,;\n]+)/iu,
      /\bthe user's (?<key>[\p{L} -]{2,40}?)(?: is| are) (?<value>[^.!?,;\n]+)/iu,
    ],
    ask: [
      /\b(?:what(?:'s| is| are)|who is|tell me) my (?<key>[\p{L}' -]{2,40}?)(?: called| again)?\s*[?.!]*$/iu,
      /\bdo you (?:know|remember) (?:what )?my (?<key>[\p{L}' -]{2,40}?)(?: is| are)?\s*[?.!]*$/iu,
    ],
  },
];

const EXPLANATIONS: [RegExp, string][] = [
  [
    /\bheartbeat(?:_ok)?\b/iu,
    "At a heartbeat I look at HEARTBEAT.md without being asked. If nothing needs you, I say " +
      "HEARTBEAT_OK, and you hear nothing.",
  ],
  [
    /\blanes?\b/iu,
    "A lane is a queue with a limit: so many tasks of it run at a time, the others wait in order.",
  ],
  [
    /\bagent loop\b/iu,
    "An agent loop asks the model, runs the tools that it calls, gives it the results, and " +
      "asks again until it stops calling.",
  ],
  [
    /\bagent\b/iu,
    "An agent is a model in a loop: it is asked, it may call tools, it gets the results, " +
      "and it goes on until it has an answer.",
  ],
  [
    /\bstop[_ ]reason\b/iu,
    "The stop reason says why a reply ended: end_turn when it is complete, tool_use when a " +
      "tool is to be run, max_tokens when it was cut.",
  ],
  [
    /\btool\b/iu,
    "A tool is a function of the program that the model may ask for: a name, a description " +
      "and a schema for its input.",
  ],
  [
    /\bgateway\b/iu,
    "A gateway stands between people on many platforms and the agents that answer them: it " +
      "routes, remembers and delivers.",
  ],
  [
    /\btokens?\b/iu,
    "A token is a piece of text, about four letters of English; models read, write and " +
      "charge by tokens.",
  ],
  [
    /\bsession\b/iu,
    "A session is one conversation that is kept, so that it can be continued later.",
  ],
];

const KEY_SENTENCES: Record<string, (value: string) => string> = {
  name: (value) => `Your name is ${value}.`,
  home: (value) => `You live in ${value}.`,
  job: (value) => `You told me that your work is: ${value}.`,
  taste: (value) => `You like ${value}.`,
};

const BEFORE: Record<Kind, (on: string) => string> = {
  read: (on: string) => `Let me read ${on}.`,
  run: (on: string) => `Let me run \`${on}\`.`,
  write: (on: string) => `I will write ${on}.`,
  edit: (on: string) => `I will change ${on}.`,
  list: (on: string) => (on === "." ? "Let me look at the files." : `Let me look into ${on}.`),
  time: () => "Let me look at the clock.",
  remember: () => "I will make a note of that.",
  recall: () => "Let me look in my memory.",
};

const RESULTS: Record<string, (on: string, text: string) => string> = {
  read_file: (on, text) => (text ? `${on} says:\n\n${text}` : `${on} is empty.`),
  bash: (on, text) =>
    !text || text === "(no output)"
      ? `\`${on}\` ran and printed nothing.`
      : `\`${on}\` printed:\n\n${text}`,
  write_file: (on, text) => `Done, ${on} is written. (${text})`,
  edit_file: (on, text) => `Done, ${on} is changed. (${text})`,
  list_directory: (on, text) =>
    `${on === "." ? "The workspace" : on} has:\n\n${text || "(nothing)"}`,
  get_current_time: (_on, text) => `It is ${text}.`,
  memory_write: () => "It is in my memory now.",
  memory_search: (_on, text) =>
    text && text !== "nothing found" ? `I remember:\n\n${text}` : "I remember nothing about that.",
};

const STORY = [
  "On day %, the little gateway woke before its messages did and counted its lanes.",
  "A question came in on day %, a long one, and the gateway gave it a session of its own.",
  "The model thought for a while on day %, called a tool, and read the answer twice.",
  "A cable was loose on day %, so the gateway wrote everything down before it slept.",
  "Two friends wrote at once on day %, and each was answered, in order, as if alone.",
  "Nothing at all happened on day %, and the heartbeat said so by saying nothing.",
];

function listed(names: string[]): string {
  if (names.length < 2) return names.join("");
  return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

function example(tools: string[]): string {
  if (tools.includes("read_file")) return ' (try "read SOUL.md")';
  return tools.includes("bash") ? " (try `run ls`)" : "";
}

const ENGLISH_SENTENCES: Sentences = {
  identity: (persona) =>
    `${persona ? `I answer as ${persona} here, but ` : ""}I am the practice model of this ` +
    "tutorial: a small program with fixed rules, no real language model. Put a key into .env " +
    "to talk to a real one.",
  help: (tools) =>
    "I am a practice stand-in with a few fixed rules. I can remember what you tell me " +
    '("my name is Ada"), calculate ("what is 2+3"), count and tell a long story' +
    (tools.length > 0
      ? `, and I have tools: ${listed(tools)}${example(tools)}.`
      : ". I have no tools here."),
  noTool: (tools) =>
    tools.length > 0
      ? `I have no tool for that here; I have ${listed(tools)}.`
      : "I can't do that: I have no tools here, I can only talk.",
  noClock: "I don't know: I have no clock and no tool that would tell me.",
  noMemory:
    "I will remember it as long as it is in this conversation; I have no other memory here.",
  before: (what, on) => BEFORE[what](on),
  result: (tool, on, text) => (RESULTS[tool] ?? (() => `${tool} gave:\n\n${text}`))(on, text),
  failed: (tool, text) => `That failed. ${tool} said: ${text}`,
  greeting: (hour = "hello") =>
    `${hour.charAt(0).toUpperCase()}${hour.slice(1).toLowerCase()}! ` +
    "I am the practice model, a stand-in with fixed rules. What shall we try?",
  goodbye: "Goodbye! (Type quit to leave.)",
  thanks: "You are welcome.",
  howAreYou: "As well as a small program can be, thank you.",
  told: (key, value) =>
    key === "name"
      ? `Nice to meet you, ${value}.`
      : `All right. ${ENGLISH_SENTENCES.known(key, value)}`,
  known: (key, value) => KEY_SENTENCES[key]?.(value) ?? `Your ${key} is ${value}.`,
  remembered: (memory) => `I remember this: ${memory}`,
  unknown: (key) =>
    key in KEY_SENTENCES && key !== "name"
      ? "I don't know: you have not told me in the messages that I was sent."
      : `I don't know your ${key}: it is not in the messages that I was sent.`,
  youSaid: (text) => (text ? `You said: "${text}"` : "Nothing, in the messages that I was sent."),
  history: (requests) => {
    if (requests.length === 0) return "This is the first message of yours that I was sent.";
    const last = requests.slice(-3).map((text) => `"${text}"`);
    return `Before this, you wrote: ${requests.length > 3 ? "…, " : ""}${last.join(", ")}.`;
  },
  summary: (facts, files, requests) =>
    [
      "Summary of the conversation so far.",
      ...facts.map(([key, value]) => `The user's ${key} is ${value}.`),
      files.length > 0 ? `Files mentioned: ${files.join(", ")}.` : "",
      requests.length > 0
        ? `The last requests: ${requests.join("; ")}.`
        : "There were no requests.",
    ]
      .filter(Boolean)
      .join(" "),
  thinking: (topic) =>
    `The user wants me to think about ${topic}. I am a program with rules, so this is short.`,
  thought: (topic) =>
    `I have thought about ${topic}, as far as a stand-in can: it deserves a real model.`,
  sum: (expression, value) => `${expression} = ${value}`,
  capital: (place, city) => `The capital of ${place} is ${city}.`,
  haiku: "A loop in the dark:\nit asks, it calls, it listens,\nand then it is still.",
  joke: "Why did the agent stop? It had no reason to go on. (Its stop reason was end_turn.)",
  storyLine: (number) => (STORY[number % STORY.length] ?? "").replace("%", String(number + 1)),
  code: "The gateway kept its diary in code:",
  end: "That is the whole of it, so far.",
  greet: (greeting, name) =>
    `${greeting.charAt(0).toUpperCase()}${greeting.slice(1)}${name && `, ${name}`}.`,
  reminder: (what, why, question) =>
    [why, `Remember: ${what}.`, question && "You could ask what the year has brought."]
      .filter(Boolean)
      .join(" "),
  noReminder:
    "Nobody wakes me when the time comes. Put a job into CRON.json that asks me for it, and I will.",
  resumed: "I have searched, but the practice world has no network: there was nothing to find.",
};

export const LANGUAGES: Language[] = [
  {
    script: /[a-z]/i,
    patterns: ENGLISH,
    facts: ENGLISH_FACTS,
    separator: new RegExp(
      `\\s*[,;.]?\\s+(?:(?<then>and then|then|after that)|and|&),?\\s+(?=${VERB})` +
        `|[.;,]\\s+(?=${VERB})`,
      "gi",
    ),
    before: new RegExp(
      "^(?:please|now|ok(?:ay)?|then|and|also|so|well|luna|sage|hi|hello|hey|let's|try to|" +
        "(?:could|can|would|will) you(?: please)?|i (?:want|would like|need) you to|" +
        "go ahead and|use (?:the )?\\w+ tool to)[,!]?\\s+",
      "i",
    ),
    after: /(?:[\s,]+(?:please|for me|now|thanks|thank you))?[\s.!?]*$/i,
    pronoun: /^it(?: again)?$/i,
    refers: /\bit\b/i,
    isSummary: /^\W*(?:a )?summary of\b/i,
    forever: /,? (?:forever|again and again|over and over|and never stop)\b/i,
    explanations: EXPLANATIONS,
    operators: [
      [/plus/gi, "+"],
      [/minus/gi, "-"],
      [/times|x|×/gi, "*"],
      [/divided by|÷/gi, "/"],
    ],
    capitals: {
      france: "Paris",
      japan: "Tokyo",
      china: "Beijing",
      germany: "Berlin",
      italy: "Rome",
      spain: "Madrid",
      england: "London",
      "the united kingdom": "London",
      "the united states": "Washington, D.C.",
    },
    say: ENGLISH_SENTENCES,
  },
  CHINESE,
  JAPANESE,
];
