/** Texts that are longer than any platform takes in one message, the same each time. */

import type { Language } from "./phrases.ts";

/** In UTF-16 units, as Telegram counts: more than one of its messages, and less than 8192 tokens. */
const ENOUGH = 5000;
const PARAGRAPH = 6; // sentences
const CODE_LINES = 40;

export interface Wanted {
  /** Lines with numbers, instead of paragraphs. */
  list: boolean;
  /** A block of code that lies across the end of Telegram's first message. */
  code: boolean;
}

export function longText(language: Language, { list, code }: Wanted): string {
  const { say, gap = " " } = language;
  let text = "";
  let day = 0;
  const next = (): string => say.storyLine(day++);
  const growTo = (length: number): void => {
    while (text.length < length) {
      const lines = Array.from({ length: PARAGRAPH }, next);
      const numbered = lines.map((line, index) => `${day - PARAGRAPH + index + 1}. ${line}`);
      text += list ? `${numbered.join("\n")}\n` : `${lines.join(gap)}\n\n`;
    }
  };
  if (code) {
    growTo(ENOUGH / 2);
    text = `${text.trimEnd()}\n\n${say.code}\n\n\`\`\`ts\n${program()}\n\`\`\`\n\n`;
  }
  growTo(ENOUGH);
  return `${text.trimEnd()}\n\n${say.end}`;
}

/** With empty lines in it: whoever cuts between paragraphs cuts here. */
function program(): string {
  const lines = Array.from({ length: CODE_LINES }, (_, index) => {
    const line = `days.push({ day: ${index + 1}, lane: "main", ends: ${index % 7 === 6} });`;
    return index % 7 === 0 ? `\n// Week ${index / 7 + 1}\n${line}` : line;
  });
  return ["const days: { day: number; lane: string; ends: boolean }[] = [];", ...lines].join("\n");
}
