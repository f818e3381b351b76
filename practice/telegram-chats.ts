/** The people and chats of the fake Telegram, and the messages that people write there. */

import type { Fields } from "./web.ts";

/** Telegram's limit for a text, in UTF-16 units. */
export const MAX_TEXT = 4096;

export interface Person {
  id: number;
  is_bot: boolean;
  first_name: string;
  username: string;
  language_code?: string;
}

export interface Chat {
  id: number;
  type: "private" | "group" | "supergroup" | "channel";
  title?: string;
  first_name?: string;
  username?: string;
  is_forum?: true;
}

export interface Message extends Fields {
  message_id: number;
  from?: Person;
  chat: Chat;
  date: number;
  text?: string;
}

/** A number that depends on the name only, so that ids do not depend on who wrote first. */
export function numberOf(name: string): number {
  let hash = 7;
  for (const character of name) hash = (hash * 31 + (character.codePointAt(0) ?? 0)) % 90_000;
  return hash;
}

const PEOPLE = ["alice", "bob", "mallory"];
const GROUPS = ["family", "club"];

export class Directory {
  readonly bot: Person;
  private readonly people = new Map<string, Person>();
  private readonly chats = new Map<number, Chat>();
  private readonly names = new Map<string, number>();
  /** The new ids of groups that became supergroups, by their old ones. */
  readonly upgraded = new Map<number, number>();
  private readonly topics = new Map<number, Map<number, string>>();

  constructor(botId: number) {
    this.bot = { id: botId, is_bot: true, first_name: "Luna", username: "practice_bot" };
    for (const name of PEOPLE) this.person(name);
    this.group("family");
    this.group("club", { topics: { 2: "Plans", 3: "Music" } });
    this.group("news", { type: "channel" });
  }

  /** A person by name, who is created if there is none of this name. */
  person(name: string): Person {
    const known = this.people.get(name);
    if (known) return known;
    const place = PEOPLE.indexOf(name);
    const id = place >= 0 ? 1001 + place : 10_000 + numberOf(name);
    const first_name = name.charAt(0).toUpperCase() + name.slice(1);
    const person = { id, is_bot: false, first_name, username: name, language_code: "en" };
    this.people.set(name, person);
    this.chats.set(id, { id, type: "private", first_name, username: name });
    this.names.set(name, id);
    return person;
  }

  /** A group by its name, created if there is none. With topics it is a forum. */
  group(
    name: string,
    options: { type?: "group" | "supergroup" | "channel"; topics?: Record<number, string> } = {},
  ): Chat {
    const known = this.chats.get(this.names.get(name) ?? 0);
    if (known) return known;
    const { type = "supergroup", topics } = options;
    const place = GROUPS.indexOf(name);
    const number = place >= 0 ? place + 1 : 100 + numberOf(name);
    // Groups of the old kind have short ids; supergroups and channels begin with -100.
    const id = type === "group" ? -number : -(1_001_000_000_000 + number);
    const chat: Chat = { id, type, title: name, ...(topics && { is_forum: true as const }) };
    this.chats.set(id, chat);
    this.names.set(name, id);
    const numbered = Object.entries(topics ?? {}).map(([key, title]) => [Number(key), title]);
    this.topics.set(id, new Map(numbered as [number, string][])); // pairs, as the line above makes
    return chat;
  }

  /** The supergroup that a group has become. It has the same name, and another id. */
  upgrade(old: Chat): Chat {
    const id = -1_001_000_000_000 + old.id;
    const chat: Chat = { ...old, id, type: "supergroup" };
    this.chats.set(id, chat);
    this.chats.delete(old.id);
    this.names.set(old.title ?? "", id);
    this.upgraded.set(old.id, id);
    return chat;
  }

  chat(nameOrId: string | number): Chat | undefined {
    const id = this.names.get(String(nameOrId)) ?? Number(nameOrId);
    return this.chats.get(id);
  }

  /** The name of a topic. The topic General, number 1, is not listed. */
  topic(chat: Chat, thread: number): string | undefined {
    return this.topics.get(chat.id)?.get(thread);
  }
}

const ENTITIES: [string, RegExp][] = [
  ["bot_command", /(?<=^|\s)\/[a-z\d_]{1,32}(?:@\w+)?/gi],
  ["mention", /(?<=^|[\s(])@\w{3,32}/g],
  ["url", /https?:\/\/[^\s]+/g],
];

/** The entities that Telegram marks in a text; offsets are in UTF-16 units, as in JavaScript. */
export function entitiesOf(text: string): { type: string; offset: number; length: number }[] {
  const found = ENTITIES.flatMap(([type, pattern]) =>
    [...text.matchAll(pattern)].map(({ index, 0: { length } }) => ({
      type,
      offset: index,
      length,
    })),
  );
  return found.sort((a, b) => a.offset - b.offset);
}

/** Cuts a text as the app does if it is too long for one message; the server trims every part. */
export function cutText(text: string): string[] {
  const parts: string[] = [];
  let rest = text.trim();
  while (rest.length > MAX_TEXT) {
    const splitsPair = /[\uD800-\uDBFF]/.test(rest.charAt(MAX_TEXT - 1));
    const at = splitsPair ? MAX_TEXT - 1 : MAX_TEXT;
    parts.push(rest.slice(0, at).trimEnd());
    rest = rest.slice(at).trimStart();
  }
  return [...parts, rest];
}

function file(kind: string, id: number): { file_id: string; file_unique_id: string } {
  return { file_id: `practice-${kind}-${id}`, file_unique_id: `${kind}${id}` };
}

const PLACE = { latitude: 48.2, longitude: 16.37 };

/** Everything but text that a message can consist of. */
const MEDIA = {
  photo: (id: number) => [
    { ...file("photo-small", id), width: 90, height: 67, file_size: 1200 },
    { ...file("photo", id), width: 1280, height: 960, file_size: 120_000 },
  ],
  document: (id: number) => ({
    ...file("document", id),
    file_name: "notes.pdf",
    mime_type: "application/pdf",
    file_size: 30_000,
  }),
  voice: (id: number) => ({ ...file("voice", id), duration: 3, mime_type: "audio/ogg" }),
  audio: (id: number) => ({ ...file("audio", id), duration: 180, title: "Song" }),
  video: (id: number) => ({ ...file("video", id), width: 640, height: 480, duration: 5 }),
  video_note: (id: number) => ({ ...file("video_note", id), length: 240, duration: 5 }),
  animation: (id: number) => ({ ...file("animation", id), width: 320, height: 240, duration: 2 }),
  sticker: (id: number) => ({
    ...file("sticker", id),
    type: "regular",
    width: 512,
    height: 512,
    is_animated: false,
    is_video: false,
    emoji: "👍",
  }),
  location: () => PLACE,
  venue: () => ({ location: PLACE, title: "Café", address: "Ring 1" }),
  contact: () => ({ phone_number: "+431234567", first_name: "Carol" }),
  dice: () => ({ emoji: "🎲", value: 4 }),
  poll: (id: number) => ({
    id: String(id),
    question: "Tea or coffee?",
    options: ["Tea", "Coffee"].map((text) => ({ persistent_id: text, text, voter_count: 0 })),
    total_voter_count: 0,
    is_closed: false,
    is_anonymous: true,
    type: "regular",
    allows_multiple_answers: false,
    allows_revoting: true,
    members_only: false,
  }),
};

export type Media = keyof typeof MEDIA;

/** All kinds of media, for tests that go through them. */
export const MEDIA_KINDS = Object.keys(MEDIA) as Media[]; // the keys of the table above

const WITH_CAPTION = "photo document voice audio video animation".split(" ");

/** The content fields of a message: a text, or a medium with its caption if it can have one. */
export function contentOf(text: string, media: Media | undefined, id: number): Fields {
  const entities = entitiesOf(text);
  if (!media) return { text, ...(entities.length > 0 && { entities }) };
  const content: Fields = { [media]: MEDIA[media](id) };
  // For old clients Telegram adds the location to a venue, and a document to an animation.
  if (media === "venue") content.location = PLACE;
  if (media === "animation") content.document = MEDIA.document(id);
  if (text === "" || !WITH_CAPTION.includes(media)) return content;
  return { ...content, caption: text, ...(entities.length > 0 && { caption_entities: entities }) };
}
