/** What a line means that a person types on the phone. */

import type { PhoneInput } from "./web.ts";

/** Reads a line: a text, or one of the few commands. */
export function readPhoneLine(line: string): Omit<PhoneInput, "person" | "group"> {
  const [, command = "", rest = ""] = /^\/(photo|album|long|reply)\b\s*(.*)$/s.exec(line) ?? [];
  if (command === "long") return { text: "This text is very long. ".repeat(250) };
  const photos = { photo: 1, album: 3 }[command];
  return { text: command ? rest : line, photos, reply: command === "reply" };
}
