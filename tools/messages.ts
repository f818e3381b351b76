// What a translator sees of a section: its comments and its terminal texts, as messages; and the
// way back, from translations to a file that is otherwise the same, byte for byte.
import { parse } from "./code.ts";
import { commentMessages } from "./comments.ts";
import { isWordy, textMessage, textNodes } from "./texts.ts";

export interface Message {
  /** The offsets of what is replaced by the translation. */
  start: number;
  end: number;
  /** What is to be translated; also the key in the catalogue. */
  id: string;
  /** For the translator: what it is, and how much room there is. */
  note: string;
  isPrinted: boolean;
  /** A translation as source text. Throws if it can't stand there. `part` gives a part of it. */
  write(translation: string, part: (from: number, to: number) => string): string;
}

/** All messages of a section, in their order. */
export function findMessages(source: string, file: string): Message[] {
  const { comments, program } = parse(source, file);
  const texts = textNodes(program).map((node) => textMessage(source, node));
  const found = [...commentMessages(source, comments), ...texts];
  return found.filter(({ id }) => isWordy(id)).sort((a, b) => a.start - b.start);
}
