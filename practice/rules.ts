/** What the practice model says. (A first version: the table of rules follows.) */
import type { PracticeRequest, Scripted } from "./reply.ts";

export function answer(_request: PracticeRequest): Scripted {
  return { content: [{ type: "text", text: "I am a practice stand-in, not a real model." }] };
}
