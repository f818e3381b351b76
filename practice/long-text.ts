/** Texts that are longer than any platform takes in one message, and the same each time. */

import type { Language } from "./phrases.ts";

/**
 * In UTF-16 units, as Telegram counts: more than one of its messages, and less than 8192 tokens.
 */
const MIN_LENGTH = 5000;
const SENTENCES_PER_PARAGRAPH = 6;
const CODE_LINES = 40;

export interface LongTextOptions {
  /** Numbered lines instead of paragraphs. */
  list: boolean;
  /** With a block of code that lies across the end of Telegram's first message. */
  code: boolean;
}

/** A story of numbered days in the language, at least 5000 UTF-16 units long. */
export function longText(language: Language, { list, code }: LongTextOptions): string {
  const { say } = language;
  const paragraphs = paragraphsOf(language, list);
  let text = "";
  if (code) {
    text = grow(text, MIN_LENGTH / 2, paragraphs);
    text = `${text.trimEnd()}\n\n${say.code}\n\n\`\`\`ts\n${program()}\n\`\`\`\n\n`;
  }
  text = grow(text, MIN_LENGTH, paragraphs);
  return `${text.trimEnd()}\n\n${say.end}`;
}

/** Adds paragraphs until the text has the length. */
function grow(text: string, length: number, paragraphs: Iterator<string, never>): string {
  let grown = text;
  while (grown.length < length) grown += paragraphs.next().value;
  return grown;
}

function* paragraphsOf({ say, gap = " " }: Language, list: boolean): Generator<string, never> {
  for (let day = 0; ; day += SENTENCES_PER_PARAGRAPH) {
    const days = Array.from({ length: SENTENCES_PER_PARAGRAPH }, (_, index) => day + index);
    yield list
      ? days.map((one) => `${one + 1}. ${say.storyLine(one)}\n`).join("")
      : `${days.map((one) => say.storyLine(one)).join(gap)}\n\n`;
  }
}

/** Code with empty lines in it, because a program that cuts between paragraphs cuts there. */
function program(): string {
  const lines = Array.from({ length: CODE_LINES }, (_, index) => {
    const line = `days.push({ day: ${index + 1}, lane: "main", ends: ${index % 7 === 6} });`;
    return index % 7 === 0 ? `\n// Week ${index / 7 + 1}\n${line}` : line;
  });
  return ["const days: { day: number; lane: string; ends: boolean }[] = [];", ...lines].join("\n");
}
