/** English: what the tools of the practice world say. */

import type { AnnouncedFailure, Texts } from "./texts.ts";

const REQUESTS = {
  model: ["request", "requests"],
  telegram: ["message on Telegram", "messages on Telegram"],
  feishu: ["message on Feishu", "messages on Feishu"],
};

/** For example "The next 3 requests with key 2: 529." */
function failure({ kind, server, count, seconds, key, model, chat }: AnnouncedFailure): string {
  const [one, many] = REQUESTS[server];
  const next = count === 1 ? `next ${one}` : `next ${count} ${many}`;
  const conditions = [
    key && `with key ${key}`,
    model && `for ${model}`,
    chat && `to ${chat}`,
    seconds !== undefined && `within ${seconds} s`,
  ].filter(Boolean);
  return `${["The", count === Infinity ? many : next, ...conditions].join(" ")}: ${kind}.`;
}

const RUN_ONE = "npm start -- s04 starts one, and so does each section up to s10.";

export const ENGLISH: Texts = {
  comma: ", ",
  refused: {
    busy: ({ user, pid }) =>
      `${user} is running${pid === "0" ? "" : ` in process ${pid}`} and has the practice workspace. ` +
      "Leave it with quit, or kill it with npm run practice -- kill.",
    nothingSent: () => "The bot has sent nothing here yet.",
    notTaken: ({ status, address }) =>
      `The section did not take the event: ${status === "0" ? "no answer" : `status ${status}`} ` +
      `from ${address}. Feishu will post it again.`,
  },
  start: {
    help: `npm start                        choose a section
npm start -- s02                 run section 2
npm start -- s02 --lang zh       the same in Chinese (ja: Japanese, en: English)
npm start -- s02 --fresh         with a new copy of the workspace
npm start -- s03 --context 1000  with a context window of 1,000 tokens
npm start -- s10 --serve         without a terminal, as a service
npm start -- s04 --set NAME=value   with this setting; more than one --set is possible`,
    noLanguage: (given, known) => `There is no language "${given}"; there are: ${known}.`,
    noSection: (given) => `There is no section "${given}"; there are s01 to s10.`,
    notThere: (section, language, others, there) =>
      `${section} is not there yet in ${language}` +
      `${others.length > 0 ? `, but it is in ${others.join(" and ")}` : ""}.` +
      `${there.length > 0 ? ` There are: ${there.join(", ")}.` : ""}`,
    askLanguage: (names, first) => `Language (${names}) [${first}]: `,
    askSection: (first) => `Section [${first}]: `,
    missing: (sections) => `not there yet: ${sections}`,
    offline: [
      "Offline practice: a stand-in answers by fixed rules, no real model, no cost.",
      "For a real model, copy .env.example to .env and put your key into it.",
    ],
    phone: "Be alice in a second terminal: npm run phone -- telegram alice",
    killed: (user, command) =>
      `${user} was killed. What it had accepted is on disk; ${command} goes on with it.`,
    freshWithKey: "(--fresh is for practice without a key: nothing was renewed.)",
    envInUtf16: ".env is in UTF-16, so its settings can't be read. Save it in UTF-8.",
    badSetting: (given, known) =>
      `--set wants NAME=value, not "${given}". The names are: ${known}.`,
  },
  phone: {
    help: `npm run phone -- telegram alice           alice writes to the bot
npm run phone -- telegram alice --group   alice writes in the group "family", where the bot
                                          answers to @practice_bot, and to /reply
npm run phone -- feishu bob               the same on Feishu
    --lang zh                             in another language

/photo [caption]  /album [caption]  /long (a text of several messages)  /reply <text>  quit`,
    bot: "bot",
    typing: "bot is typing …",
    ended: "The practice world has ended.",
    waits: (user) =>
      user
        ? `(${user} has no channels, so your messages wait. ${RUN_ONE})`
        : `(No section is running, so your messages wait. ${RUN_ONE})`,
  },
  rpc: {
    help: `npm run rpc -- status
npm run rpc -- send text="what time is it?" channel=telegram peerId=1001
npm run rpc -- bindings.set agentId=sage matchKey=peerId matchValue=telegram:1002 priority=5
npm run rpc -- bindings.list | sessions.list | agents.list

It finds the gateway that npm start has started; --url=ws://host:port/?token=… names another.
--timeout=60 waits for 60 seconds instead of 10, --lang=zh speaks another language.`,
    noGateway: (user) =>
      `${user ? `${user} has no gateway` : "No section is running"}: npm start -- s05 has one.`,
    badParameter: (word) => `"${word}" is no parameter: say name=value.`,
    unreachable: (host, why) => `The gateway at ${host} can't be reached: ${why}.`,
    closed: (host, code) => `The gateway at ${host} closed the connection (${code}).`,
    gaveUp: (host, seconds) =>
      `The gateway at ${host} has said nothing for ${seconds} s, so this command stops waiting. ` +
      "The gateway may still be working; --timeout=60 waits longer.",
    typing: "typing …",
  },
  practice: {
    help: `npm run practice                         says which section and which world run
npm run practice -- fail 529             the next request fails; --times 3: the next three
    --for 60s        all of them, for a minute
    --key 2          only with the second key; --model NAME: only for this model
    --retry-after 7  what a 429 says, in seconds
npm run practice -- fail telegram 429    the next message to people; or feishu; --chat alice
npm run practice -- fail off             no more failures; also fail telegram off
npm run practice -- drop                 the next request loses its connection
npm run practice -- slow 5s              wait before every event of a reply; slow off: no more
npm run practice -- log                  the last requests; --last 50: more of them
npm run practice -- kill                 kill the section that runs, with SIGKILL
npm run practice -- stop                 end the practice world, and a section that runs
    --lang zh        in another language`,
    kinds: `    (hang: not a byte comes; silent: a stream stops coming; break and break-tool: it breaks off,
    in a text or in a tool call; empty: a reply of nothing; empty-body: not even that)`,
    noCommand: (given) => `There is no "${given}".`,
    section: (user, pid) => `${user} is running${pid ? ` in process ${pid}` : ""}.`,
    noSection: "No section is running; npm start runs one.",
    world: (pid, model) => `The practice world is process ${pid}, with the model at ${model}.`,
    byHand: "A section that you start yourself uses the model with: ",
    more: "npm run practice -- --help shows what you can turn.",
    killed: (user, pid) => `Killed ${user}, process ${pid}, with SIGKILL.`,
    ended: (user) => `The practice world has ended${user ? `, and ${user} with it` : ""}.`,
    noWorld: "No practice world is running.",
    noMoreFailures: "No more failures.",
    slow: (seconds) => (seconds > 0 ? `A wait of ${seconds} s before every event.` : "No waits."),
    slowWhat: (given) => `slow ${given}? Say slow 5s, or slow off.`,
    noRequests: "No requests yet.",
    noFailure: (given, known) => `There is no failure "${given}"; there are: ${known}.`,
    oneFailure: (surplus) => `What is "${surplus}"? Say one failure at a time.`,
    chatOption: "--chat is for telegram and feishu.",
    modelOptions: "--key and --model are the model's.",
    failure,
  },
  log: {
    key: (number) => `key ${number}`,
    messages: (count) => `${count} message${count === 1 ? "" : "s"}`,
    stopped: "stopped by the client",
    underWay: "under way",
    cache: (cached, written, fresh) => `${cached} cached, ${written} written, ${fresh} fresh`,
  },
  unknownOption: (given, help) => `There is no option ${given}.\n\n${help}`,
  noValue: (option, help) => `${option} does not fit: it wants a value, or none.\n\n${help}`,
  wholeNumber: (option, given) => `${option} wants a whole number, not "${given}".`,
  duration: (option, given) => `${option} ${given}? Say ${option} 5s.`,
  worldDidNotStart: (log) => `The practice world did not start; ${log} says why.`,
  worldHangs: (pid) =>
    `The practice world, process ${pid}, does not answer. Kill it: kill -9 ${pid}`,
};
