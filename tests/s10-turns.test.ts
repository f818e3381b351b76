/** s10, turns in lanes: who waits for whom, what becomes of one that hangs, and a reset. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { PracticeRequest } from "../practice/model.ts";
import { calls, outline, say, sectionsFrom } from "./helper.ts";
import {
  Grace,
  hangingTool,
  keyOf,
  LaneClock,
  openRoad,
  type Road,
  turns,
  until,
} from "./s10-helper.ts";
import { delivered, echo, lastText } from "./world.ts";

// One line in the section's language; what the model says here begins with "re:".
const SORRY = /^(?!re:)[^\n]*\S[^\n]*$/;

/** Calls the tool that hangs, if asked to, and says what it heard. */
function brain(request: PracticeRequest) {
  const last = request.messages.at(-1);
  const isAnswered = JSON.stringify(last).includes("tool_result");
  return lastText(request).includes("hang") && !isAnswered ? calls(["hang", {}]) : echo(request);
}

/** Scripts the model for as long as a case lasts. */
function script({ model }: Road): void {
  model.script(...new Array(50).fill(brain));
}

/** A person whose turn hangs in a tool. */
async function hung(road: Road, peerId = "1001") {
  const tool = hangingTool(road.s10);
  const done = road.write(peerId, "please hang");
  await until(() => tool.calls.length === 1);
  return { ...tool, done };
}

/** Four people whose turns take all the places of `main`, until their answers are released. */
async function fillMain(road: Road) {
  const people = ["1", "2", "3", "4"];
  const holds = people.map(() => road.model.hold());
  const answers = people.map((who) => road.write(who, `from ${who}`));
  await Promise.all(holds.map(({ waiting }) => waiting));
  return { people, holds, answers };
}

const ofOwner = (road: Road) => road.app.heartbeat.run(road.app, true);

function job(road: Road, id: string, more: object = {}) {
  const due = `2027-01-04T10:00:0${road.app.inbox.pending().length}.000Z`;
  const rest = { channel: "cron", accountId: "local", senderId: "owner", job: { isEvent: false } };
  return road.write(id, `job ${id}`, { ...rest, id: `cron:${id}:${due}`, ...more });
}

describe.each(sectionsFrom("s10"))("$name: who waits for whom", (section) => {
  it("a person's second message waits for the first; two people don't wait", async () => {
    const road = await openRoad(section);
    script(road);
    const hold = road.model.hold();
    const first = road.write("1001", "one");
    await hold.waiting;
    const second = road.write("1001", "two");
    expect(await road.write("1002", "three")).toBe("re: three");
    await turns();
    expect(road.asked("two")).toEqual([]);
    expect(road.lane(keyOf("1001")).waiting.size).toBe(1);
    expect([road.lane("main").active, road.lane("main").waiting.size]).toEqual([1, 0]);
    hold.release();
    expect(await Promise.all([first, second])).toEqual(["re: one", "re: two"]);
    await delivered(road.app);
    await turns();
    expect([...road.s10.LANES.lanes.keys()]).toEqual(["main", "cron", "heartbeat"]);
  });

  it("four people are answered side by side, and the fifth waits", async () => {
    const road = await openRoad(section);
    script(road);
    const { people, holds, answers } = await fillMain(road);
    const fifth = road.write("5", "from 5");
    await turns();
    expect([road.lane("main").active, road.lane("main").waiting.size]).toEqual([4, 1]);
    expect(road.model.log).toHaveLength(4);
    expect(road.app.inbox.pending().map(({ attempts }) => attempts)).toEqual([
      1,
      1,
      1,
      1,
      undefined,
    ]);
    holds[2]?.release(); // whichever it is
    expect(await fifth).toBe("re: from 5");
    for (const { release } of holds) release();
    expect(await Promise.all(answers)).toEqual(people.map((who) => `re: from ${who}`));
  });

  it("commands and what can't be read don't wait for a place, and nobody without one sees typing", async () => {
    const road = await openRoad(section);
    script(road);
    const typing: string[] = [];
    Object.assign(road.telegram, { typing: async (to: string) => void typing.push(to) });
    const { people, holds, answers } = await fillMain(road);
    const fifth = road.write("5", "from 5");
    const noticed: object[] = [];
    const connection = { peerId: "ws1", notify: (method: string) => noticed.push({ method }) };
    const call = road.s10.METHODS.send?.({ text: "from a client" }, road.app as never, connection);
    expect(await road.write("6", "/help")).toMatch(SORRY);
    expect(await road.write("6", "/new@our_bot")).toMatch(SORRY);
    expect(await road.write("7", "")).toMatch(SORRY);
    await turns();
    expect([road.lane("main").active, road.lane("main").waiting.size]).toEqual([4, 2]);
    expect(typing).toEqual([...people, "6", "6", "7"]);
    expect(noticed).toEqual([]);
    for (const { release } of holds) release();
    expect(await fifth).toBe("re: from 5");
    expect(await call).toMatchObject({ reply: "re: from a client" });
    expect(noticed[0]).toEqual({ method: "typing" });
    expect(typing).toContain("5");
    expect(await Promise.all(answers)).toEqual(people.map((who) => `re: from ${who}`));
  });

  it("in a group a command is plain text, and waits for a place; in a shutdown none overtakes", async () => {
    const road = await openRoad(section);
    script(road);
    const { holds, answers } = await fillMain(road);
    const group = road.write("-7", "/new", { isGroup: true });
    await turns();
    expect(road.lane("main").waiting.size).toBe(1);
    const later = [road.write("1", "second"), road.write("1", "/new")];
    const refused = Promise.allSettled([group, ...later]);
    const end = road.s10.LANES.shutDown();
    for (const { release } of holds) release();
    await Promise.all(answers);
    await end;
    expect((await refused).map(({ status }) => status)).toEqual(new Array(3).fill("rejected"));
    expect(road.app.inbox.pending().map(({ text }) => text)).toEqual(["/new", "second", "/new"]);
  });

  it("jobs run one at a time, and so does the heartbeat; people wait for neither", async () => {
    const road = await openRoad(section);
    script(road);
    const holds = [road.model.hold(), road.model.hold()];
    const jobs = [job(road, "a")];
    jobs.push(job(road, "b"));
    await holds[0]?.waiting;
    await turns();
    expect([road.lane("cron").active, road.lane("cron").waiting.size]).toEqual([1, 1]);
    expect(await ofOwner(road)).toBe("cron-in-progress");
    const person = road.write("1001", "me");
    await holds[1]?.waiting; // its request is there while the job's is not answered
    holds[1]?.release();
    expect(await person).toBe("re: me");
    expect(road.asked("job b")).toEqual([]);
    holds[0]?.release();
    expect(await Promise.all(jobs)).toEqual(["re: job a", "re: job b"]);
    const hold = road.model.hold();
    const heartbeat = ofOwner(road);
    await hold.waiting;
    expect(road.lane("heartbeat").active).toBe(1);
    expect(await ofOwner(road)).toBe("under-way");
    hold.release();
    await heartbeat;
    expect(road.files()).toEqual([]);
  });

  it("no lane waits for itself, with one place in each", async () => {
    const road = await openRoad(section);
    script(road);
    const { COMMANDS } = road.s10;
    for (const name of ["main", "cron", "heartbeat"])
      await COMMANDS.concurrency?.run(`${name} 1`, road.app, {});
    const person = road.write("1001", "me");
    await COMMANDS.enqueue?.run("main of mine", road.app, {});
    await COMMANDS.enqueue?.run("odd of mine too", road.app, {});
    const both = [job(road, "a"), job(road, "b")];
    const second = road.write("1001", "me again");
    expect(await Promise.all([person, second])).toEqual(["re: me", "re: me again"]);
    expect(await Promise.all(both)).toEqual(["re: job a", "re: job b"]);
    expect(await ofOwner(road)).not.toBe("failed");
    await until(() => road.s10.LANES.lanes.size === 3);
    expect(road.asked("of mine")).toHaveLength(1);
    expect(road.asked("of mine too")).toHaveLength(1);
  });

  it("a job waits for people, whatever becomes of its lane meanwhile, and begins when they are done", async () => {
    const clock = new LaneClock();
    const road = await openRoad(section);
    script(road);
    const { calls: open, done } = await hung(road);
    const waits = job(road, "a");
    await turns();
    expect(clock.running).toEqual([1800]); // it waits for as long as it takes
    expect(road.lane("cron").reset()).toBe(0);
    expect(road.app.inbox.pending().map(({ attempts = 0 }) => attempts)).toEqual([1, 0]);
    open[0]?.("at last");
    expect(await done).toBe("re: please hang");
    expect(await waits).toBe("re: job a");
    expect(road.asked("job a")).toHaveLength(1);
    expect(road.files()).toEqual([]);
  });

  it("a job in line lets people who come meanwhile go before it", async () => {
    const road = await openRoad(section);
    script(road);
    const [first, person] = [road.model.hold(), road.model.hold()];
    const jobs = [job(road, "a"), job(road, "b")];
    await first.waiting;
    const answer = road.write("1001", "me");
    await person.waiting;
    first.release();
    expect(await jobs[0]).toBe("re: job a");
    await turns();
    expect(road.asked("job b")).toEqual([]); // its lane is free, but somebody is served
    person.release();
    expect(await answer).toBe("re: me");
    expect(await jobs[1]).toBe("re: job b");
  });
});

describe.each(sectionsFrom("s10"))("$name: a turn that hangs", (section) => {
  it("is ended by the clock; its conversation goes on 2 s later", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const road = await openRoad(section);
    script(road);
    const {
      calls: open,
      turns: [turn],
      done,
    } = await hung(road);
    const next = road.write("1001", "still there?");
    const other = job(road, "a");
    expect(await ofOwner(road)).toBe("requests-in-flight");
    expect(clock.running).toContain(1800);
    clock.pass(1800);
    await turns();
    expect(turn?.signal?.aborted).toBe(true);
    expect(grace.asked).toContain(2000);
    expect(road.asked("still there?")).toEqual([]); // it may still come to its end
    await grace.pass();
    expect(await done).toMatch(SORRY);
    expect(await next).toBe("re: still there?");
    // `serving` is free again: jobs and heartbeats go on.
    expect(await other).toBe("re: job a");
    expect(await ofOwner(road)).not.toBe("requests-in-flight");
    expect(road.files()).toEqual([]);
    await delivered(road.app);
    const told = road.telegram.sent.filter(({ to }) => to === "1001").map(({ text }) => text);
    expect(told[0]).toMatch(SORRY);
    expect(told[0]?.split("\n")).toHaveLength(1);
    expect(told.slice(1)).toContain("re: still there?");
    // The call that was open has a result, or the API would refuse all that follows.
    const last = road.asked("still there?")[0]?.request.messages;
    expect(JSON.stringify(last)).toContain("interrupted");
    // And when it comes back after all, nothing of it gets into the conversation.
    const before = road.session(keyOf("1001"));
    open[0]?.("too late");
    await turns();
    expect(road.session(keyOf("1001"))).toBe(before);
    expect(before).not.toContain("too late");
    const late = {
      role: "user" as const,
      content: [{ type: "text" as const, text: "an afterthought" }],
    };
    expect(() => turn?.conversation.append(late)).toThrow("closed");
    expect(() => turn?.conversation.append(late)).toThrow("closed"); // and again
    expect(road.session(keyOf("1001"))).toBe(before);
    expect(await road.write("1001", "and now?")).toBe("re: and now?");
    expect(JSON.stringify(road.model.log.at(-1)?.request)).not.toMatch(/an afterthought|too late/);
  });

  it("may append its ending within the 2 s", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const road = await openRoad(section);
    script(road);
    const { calls: open, done } = await hung(road);
    clock.pass(1800);
    await turns();
    open[0]?.("just in time");
    expect(await done).toMatch(SORRY);
    await grace.pass();
    expect(road.session(keyOf("1001"))).toContain("just in time");
    expect(await road.write("1001", "next")).toBe("re: next");
    const shown = JSON.stringify(road.asked("next")[0]?.request.messages);
    expect(shown).toContain("just in time");
    expect(shown).toContain("(interrupted)");
    expect(road.lane("main").active).toBe(0);
  });

  it("does the same in the lanes of jobs and of the heartbeat", async () => {
    const grace = new Grace();
    const clock = new LaneClock();
    const road = await openRoad(section);
    script(road);
    const tool = hangingTool(road.s10);
    const waits = job(road, "a", { text: "hang, job" });
    const behind = job(road, "b");
    await until(() => tool.calls.length === 1);
    clock.pass(3600);
    await grace.pass();
    expect(await waits).toBe("");
    expect(await behind).toBe("re: job b");
    expect(road.files()).toEqual([]);
    writeFileSync(join(road.workspace, "HEARTBEAT.md"), "- Does the picture hang?");
    const heartbeat = ofOwner(road);
    await until(() => tool.calls.length === 2);
    expect(clock.running).toEqual([600]);
    clock.pass(600);
    await grace.pass();
    expect(tool.turns.map(({ signal }) => signal?.aborted)).toEqual([true, true]);
    expect(await heartbeat).toBe("failed");
    expect(road.lane("heartbeat").active).toBe(0);
    writeFileSync(join(road.workspace, "HEARTBEAT.md"), "- Look at the door.");
    expect(await ofOwner(road)).toBe("delivered"); // the lane is free
  });

  it("is left by the terminal 2 s after Ctrl+C", async () => {
    const grace = new Grace();
    const road = await openRoad(section);
    script(road);
    const tool = hangingTool(road.s10);
    const control = new AbortController();
    const line = { id: "cli:1", channel: "cli", peerId: "owner", text: "hang here" };
    const message = { accountId: "local", senderId: "owner", isGroup: false, media: [], at: 1 };
    const { done } = road.s10.accept(road.app, { ...message, ...line }, control.signal);
    const failure = done.catch(String);
    await until(() => tool.calls.length === 1);
    control.abort();
    await grace.pass();
    expect(await failure).toMatch(/2 s/);
    const next = road.s10.accept(road.app, { ...message, ...line, id: "cli:2", text: "next" });
    expect(await next.done).toBe("re: next");
  });
});

describe.each(sectionsFrom("s10"))("$name: waiting in line", (section) => {
  it("Ctrl+C keeps what was said, and goes by the others", async () => {
    const road = await openRoad(section);
    script(road);
    await road.s10.COMMANDS.concurrency?.run("main 1", road.app, {});
    const hold = road.model.hold();
    const first = road.write("1001", "one");
    await hold.waiting;
    const control = new AbortController();
    const message = { accountId: "local", senderId: "owner", isGroup: false, media: [], at: 1 };
    const line = { id: "cli:1", channel: "cli", peerId: "owner", text: "never mind", ...message };
    const { done } = road.s10.accept(road.app, line, control.signal);
    await turns();
    expect(road.lane("main").waiting.size).toBe(1);
    control.abort();
    expect(await done).toContain("(interrupted)");
    expect(road.model.log.filter(({ aborted }) => !aborted)).toHaveLength(1); // no call was paid
    expect(road.session(road.app.key)).toContain("never mind");
    hold.release();
    expect(await first).toBe("re: one");
    const next = road.s10.accept(road.app, { ...line, id: "cli:2", text: "go on" });
    expect(await next.done).toBe("re: go on");
    expect(outline(road.asked("go on")[0])[0]).toContain("never mind");
  });
});

describe.each(sectionsFrom("s10"))("$name: a reset", (section) => {
  it("ends what runs with one sentence; what waits runs, in order", async () => {
    const grace = new Grace();
    const road = await openRoad(section);
    script(road);
    const { COMMANDS } = road.s10;
    await COMMANDS.concurrency?.run("main 1", road.app, {});
    const {
      calls: open,
      turns: [turn],
      done,
    } = await hung(road);
    const hold = road.model.hold();
    const second = road.write("1002", "two");
    const third = road.write("1003", "three");
    const own = road.write("1001", "mine again");
    await turns();
    expect(await COMMANDS.reset?.run("", road.app, {})).toMatch(/\b1\b/);
    await hold.waiting; // the second has begun, at once
    expect(turn?.signal?.aborted).toBe(true);
    await grace.pass();
    expect(await done).toMatch(SORRY);
    expect([road.lane("main").active, road.lane("main").generation]).toEqual([1, 1]);
    const before = road.session(keyOf("1001"));
    open[0]?.("too late");
    await turns();
    // It has given back no place, and put nothing into its conversation.
    expect([road.lane("main").active, road.lane("main").waiting.size]).toEqual([1, 2]);
    expect(road.session(keyOf("1001"))).toBe(before);
    expect(road.asked("three")).toEqual([]);
    hold.release();
    expect(await Promise.all([second, third, own])).toEqual([
      "re: two",
      "re: three",
      "re: mine again",
    ]);
    const order = road.model.log.map(({ request }) => lastText(request));
    expect(order).toEqual(["please hang", "two", "three", "mine again"]);
    expect(road.files()).toEqual([]);
    await delivered(road.app);
    const told = road.telegram.sent.filter(({ to }) => to === "1001").map(({ text }) => text);
    expect(told).toEqual([expect.stringMatching(SORRY), "re: mine again"]);
    expect(road.lane("main").active).toBe(0);
    // The lane takes new work.
    expect(await road.write("1004", "four")).toBe("re: four");
  });

  it("is told to a program at the gateway, whose next send is answered", async () => {
    const grace = new Grace();
    const road = await openRoad(section);
    script(road);
    const { METHODS, COMMANDS } = road.s10;
    const tool = hangingTool(road.s10);
    const connection = { peerId: "door", notify: () => {} };
    const send = async (text: string) => METHODS.send?.({ text }, road.app, connection);
    const failure = send("please hang").catch((error) => error);
    const next = send("next");
    await until(() => tool.calls.length === 1);
    await COMMANDS.reset?.run("", road.app, {});
    await grace.pass();
    expect(await failure).toMatchObject({ code: -32000 });
    expect(await next).toMatchObject({ reply: "re: next" });
    expect(road.lane("main").active).toBe(0);
  });

  it("in the middle of a reply keeps what had arrived, and the next request is valid", async () => {
    const road = await openRoad(section);
    road.model.script({ ...say("a reply that is not whole"), holdAfter: 3 });
    script(road);
    const done = road.write("1001", "one");
    await until(() => road.model.log.length === 1);
    await until(() => road.lane("main").active === 1);
    await road.s10.COMMANDS.reset?.run("", road.app, {});
    expect(await done).toMatch(SORRY);
    expect(road.session(keyOf("1001"))).toContain("(interrupted)");
    expect(await road.write("1001", "two")).toBe("re: two");
    road.model.release();
  });
});

describe.each(sectionsFrom("s10"))("$name: the commands and the method of the lanes", (section) => {
  it("show what runs, what waits, and how often it was reset", async () => {
    const road = await openRoad(section);
    script(road);
    const { COMMANDS, METHODS } = road.s10;
    const run = async (name: string, args = "") =>
      [await COMMANDS[name]?.run(args, road.app, {})].flat().join("\n");
    const connection = { peerId: "p", notify: () => {} };
    const list = () => METHODS["lanes.list"]?.({}, road.app, connection);
    expect(await list()).toEqual([
      { name: "main", limit: 4, active: 0, waiting: 0, generation: 0 },
      { name: "cron", limit: 1, active: 0, waiting: 0, generation: 0 },
      { name: "heartbeat", limit: 1, active: 0, waiting: 0, generation: 0 },
    ]);
    await run("concurrency", "main 1");
    const hold = road.model.hold();
    const first = road.write("1001", "one");
    await hold.waiting;
    const second = road.write("1002", "two");
    await turns();
    const key = keyOf("1001");
    expect(await list()).toEqual([
      { name: "main", limit: 1, active: 1, waiting: 1, generation: 0 },
      { name: "cron", limit: 1, active: 0, waiting: 0, generation: 0 },
      { name: "heartbeat", limit: 1, active: 0, waiting: 0, generation: 0 },
      { name: key, limit: 1, active: 1, waiting: 0, generation: 0 },
      { name: keyOf("1002"), limit: 1, active: 1, waiting: 0, generation: 0 },
    ]);
    const lines = (await run("lanes")).split("\n");
    expect(lines[0]).toMatch(/^main +1\/1 +\+1$/);
    expect(lines[3]).toContain(key);
    expect(await run("enqueue", "main hello there")).toMatch(/^main\D*2/);
    expect((await run("generation")).split("\n")[0]).toMatch(/^main +0$/);
    // More places are taken at once.
    await run("concurrency", "main 2");
    expect(await second).toBe("re: two");
    hold.release();
    expect(await first).toBe("re: one");
    await until(() => road.asked("hello there").length === 1);
    await until(() => road.lane("main").active === 0);
    expect(await run("reset")).toMatch(/\b0\b/);
    expect((await run("generation")).split("\n")[0]).toMatch(/^main +1$/);
    expect(await run("help")).toMatch(/\/lanes/);
    for (const name of ["lanes", "enqueue", "concurrency", "generation", "reset"])
      expect(COMMANDS[name]?.help).not.toBe("");
  });

  it("refuse what makes no sense, and say what would", async () => {
    const { s10, app } = await openRoad(section);
    const run = async (name: string, args: string) => s10.COMMANDS[name]?.run(args, app, {});
    for (const args of ["", "main"])
      await expect(run("enqueue", args)).rejects.toThrow("/enqueue main hello");
    // In the lane of a conversation its messages would wait for that turn, which has no timeout.
    const ofConversation = `${keyOf("1001")} hello`;
    await expect(run("enqueue", ofConversation)).rejects.toThrow("the lane of a conversation");
    for (const args of ["", "nobody 2", "__proto__ 2", "constructor 2"])
      await expect(run("concurrency", args)).rejects.toThrow("main, cron, heartbeat");
    for (const n of ["", "0", "-1", "1.5", "1000", "many", "1e2", "NaN", "Infinity"])
      await expect(run("concurrency", `main ${n}`)).rejects.toThrow("1 to 999");
    expect(s10.LANES.lanes.get("main")?.limit).toBe(4);
    await run("concurrency", "main 999");
    expect(s10.LANES.lanes.get("main")?.limit).toBe(999);
    expect([...s10.LANES.lanes.keys()]).toEqual(["main", "cron", "heartbeat"]);
  });

  it("a conversation keeps its one place", async () => {
    const road = await openRoad(section);
    script(road);
    const hold = road.model.hold();
    const first = road.write("1001", "one");
    await hold.waiting;
    const second = road.write("1001", "two");
    const { COMMANDS } = road.s10;
    const more = async () => COMMANDS.concurrency?.run(`${keyOf("1001")} 5`, road.app, {});
    await expect(more()).rejects.toThrow("main, cron, heartbeat");
    await turns();
    expect(road.asked("two")).toEqual([]);
    hold.release();
    expect(await Promise.all([first, second])).toEqual(["re: one", "re: two"]);
  });

  it("a turn of /enqueue that waits does not begin after the end has begun", async () => {
    const road = await openRoad(section);
    script(road);
    const { COMMANDS, LANES } = road.s10;
    const hold = road.model.hold();
    await COMMANDS.enqueue?.run("mine first", road.app, {});
    await COMMANDS.enqueue?.run("mine second", road.app, {});
    await hold.waiting;
    const over = LANES.shutDown();
    hold.release();
    await over;
    expect(road.asked("first")).toHaveLength(1);
    expect(road.asked("second")).toEqual([]);
  });

  it("a note of /enqueue is found by such a turn and by the terminal, and by nobody else", async () => {
    const road = await openRoad(section);
    const note = { content: "The key is under the mat.", category: "fact" };
    road.model.script(calls(["memory_write", note]), say("noted"));
    road.model.script(calls(["memory_search", { query: "key mat" }]), say("found"));
    await road.s10.COMMANDS.enqueue?.run("main note it", road.app, {});
    await until(() => road.model.log.length === 2 && road.lane("main").active === 0);
    await road.s10.COMMANDS.enqueue?.run("main look it up", road.app, {});
    await until(() => road.model.log.length === 4 && road.lane("main").active === 0);
    expect(JSON.stringify(road.model.log.at(-1)?.request.messages)).toContain("under the mat");
    const find = (sessionKey?: string) =>
      road.app.memory.search("key mat", { sessionKey }).map(({ text }) => text);
    expect(find(road.app.key)).toEqual([note.content]);
    expect([find(), find(keyOf("1001"))]).toEqual([[], []]);
  });

  it("a failing turn of /enqueue is said, and the lane goes on", async () => {
    const road = await openRoad(section);
    script(road);
    const { COMMANDS, LANES } = road.s10;
    await COMMANDS.enqueue?.run("mine this will !fail", road.app, {});
    await COMMANDS.enqueue?.run("mine this will not", road.app, {});
    await until(() => !LANES.isBusy("mine"));
    expect(road.asked("this will not")).toHaveLength(1);
    await turns();
    expect(LANES.lanes.has("mine")).toBe(false);
  });
});
