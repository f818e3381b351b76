// The people in a recording: what they say on the fake platforms, and what the bot sends them.
import * as fs from "node:fs";
import path from "node:path";
import { type FakeFeishu, startFeishu } from "../practice/feishu.ts";
import { type FakeTelegram, startTelegram } from "../practice/telegram.ts";
import { feishuSettings, telegramSettings } from "../practice/world.ts";
import { read } from "./sections.ts";
import { type Saying, SILENCE } from "./transcripts.ts";

/** How many pictures the commands of a phone send. */
const PHOTOS: Record<string, number> = { photo: 1, album: 3 };

/** The people of a recording, and the fake platforms on which they write. */
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
    const [written = "", command = ""] = /^\/(photo|album|reply) ?/.exec(text) ?? [];
    const words = text.slice(written.length);
    const photos = PHOTOS[command] ?? 0;
    const body = JSON.stringify({ person, group, text: words, photos, reply: command === "reply" });
    const answer = await fetch(`${platform.url}/_practice/say`, { method: "POST", body });
    const { error } = (await answer.json()) as { error?: string }; // our own server's form
    if (error) throw new Error(`${who}: ${error}`);
  }

  /** Telegram has been told that everything arrived. (Feishu has before `say` is over.) */
  isTaken(): boolean {
    return this.telegram.updates.every(({ confirmed }) => confirmed);
  }

  /**
   * Whether nothing will happen by itself: `open` messages are left in the inbox, the bot has sent
   * something if it should have (`answered`), and no delivery can be sent at the moment.
   */
  isQuiet(workspace: string, answered: boolean, open: number): boolean {
    const isDone = this.isTaken() && stored(workspace, "inbox").length === open;
    if (!isDone || (answered && this.#new().length === 0)) return false;
    // `stored` gives the newest first, so the oldest one of each recipient is what stays in the map.
    const first = new Map(stored(workspace, "delivery").map((delivery) => [delivery.to, delivery]));
    const sends = this.telegram.log.filter(({ method }) => method === "sendMessage");
    const hanging = sends.filter(({ status }) => !status).length;
    // Either the platform doesn't answer the request, or the delivery is to be tried again later.
    const isWaiting = ({ failures = 0, unfinished = 0 }) =>
      unfinished > 0 ? unfinished === hanging : failures > 0;
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
    return files.toReversed().map((file) => JSON.parse(read(folder, file)));
  } catch {
    return [{}]; // a file was removed between the two steps, so something is still happening
  }
}
