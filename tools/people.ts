// The people in a recording: what they say on the fake platforms, and what the bot sends them.
import * as fs from "node:fs";
import path from "node:path";
import { type FakeFeishu, startFeishu } from "../practice/feishu.ts";
import { type FakeTelegram, startTelegram } from "../practice/telegram.ts";
import { feishuSettings, telegramSettings } from "../practice/world.ts";
import { read } from "./sections.ts";
import { type Saying, SILENCE } from "./transcripts.ts";

export class People {
  readonly settings: Record<string, string>;
  readonly telegram: FakeTelegram;
  readonly feishu: FakeFeishu;
  readonly #names = new Map<string, string>(); // of the chats in which something was said
  readonly #shown = new Set<object>();
  #last = "";

  constructor(telegram: FakeTelegram, feishu: FakeFeishu) {
    this.settings = { ...telegramSettings(telegram), ...feishuSettings(feishu) };
    this.telegram = telegram;
    this.feishu = feishu;
  }

  /** `shift`: their clock is so many ms ahead of ours, as the section's is. */
  static async start(shift: number): Promise<People> {
    const now = () => Date.now() + shift;
    return new People(await startTelegram({ now }), await startFeishu({ now }));
  }

  /** From now on a section listens on this port. */
  setPort(port: string): void {
    this.feishu.webhook = `http://127.0.0.1:${port}/feishu/events`;
  }

  /** As the phone does it; `/photo`, `/album` and `/reply` are what they are there. */
  async say({ who, person, feishu, group, text }: Saying): Promise<void> {
    const platform = feishu ? this.feishu : this.telegram;
    this.#names.set(String(platform.chatId(group ?? person)), who);
    this.#last = who;
    const [all = "", command] = /^\/(photo|album|reply) ?/.exec(text) ?? [];
    const photos = command === "photo" ? 1 : command === "album" ? 3 : 0;
    const [words, reply] = [text.slice(all.length), command === "reply"];
    const body = JSON.stringify({ person, group, text: words, photos, reply });
    const answer = await fetch(`${platform.url}/_practice/say`, { method: "POST", body });
    const { error } = (await answer.json()) as { error?: string }; // our own server's form
    if (error) throw new Error(`${who}: ${error}`);
  }

  /** Telegram has been told that everything arrived. (Feishu has before `say` is over.) */
  isTaken(): boolean {
    return this.telegram.updates.every(({ confirmed }) => confirmed);
  }

  /**
   * So many messages are still open in the inbox; the bot has sent something, if it should, and what
   * is in its queue hangs or is to be tried again later.
   */
  isQuiet(workspace: string, answered: boolean, open: number): boolean {
    const isDone = this.isTaken() && stored(workspace, "inbox").length === open;
    if (!isDone || (answered && this.#new().length === 0)) return false;
    const first = new Map(stored(workspace, "delivery").map((one) => [one.to, one]));
    const hanging = this.telegram.log.filter((one) => one.method === "sendMessage" && !one.status);
    const isWaiting = ({ failures = 0, unfinished = 0 }) =>
      unfinished > 0 ? unfinished === hanging.length : failures > 0;
    return [...first.values()].every(isWaiting);
  }

  #new() {
    const sent = [...this.telegram.sent, ...this.feishu.sent];
    return sent.filter((message) => !this.#shown.has(message));
  }

  /** What the bot has sent since the last time, as lines. */
  news(): string {
    const messages = this.#new();
    for (const message of messages) this.#shown.add(message);
    const line = ({ chat, text }: { chat: string | number; text: string }) => {
      const name = this.#names.get(String(chat)) ?? chat;
      return `bot${name === this.#last ? "" : ` to ${name}`} > ${text}\n`;
    };
    return messages.map(line).join("") || `${SILENCE}\n`;
  }

  async close(): Promise<void> {
    await Promise.all([this.telegram.close(), this.feishu.close()]);
  }
}

/** What is in the numbered files of a folder of the section, the last one first. */
function stored(workspace: string, name: string) {
  const folder = path.join(workspace, ".state", name);
  const names = fs.existsSync(folder) ? fs.readdirSync(folder) : [];
  const files = names.filter((file) => /^\d+\.json$/.test(file)).sort();
  try {
    return files.reverse().map((file) => JSON.parse(read(folder, file)));
  } catch {
    return [{}]; // one went while we looked
  }
}
