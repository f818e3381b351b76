import type Anthropic from "@anthropic-ai/sdk";
import { answer } from "../practice/rules.ts";

/** A tool as a request offers it: its name, and the names of its parameters. */
export const tool = (name: string, ...names: string[]): Anthropic.Tool => ({
  name,
  input_schema: {
    type: "object",
    properties: Object.fromEntries(names.map((one) => [one, { type: "string" }])),
  },
});

const ALL = [
  tool("bash", "command"),
  tool("read_file", "path"),
  tool("write_file", "path", "content"),
  tool("list_directory", "path"),
  tool("memory_write", "content", "category"),
  tool("memory_search", "query", "topK"),
];

const text = (words: string) => ({ type: "text" as const, text: words });

/** What is around a line that somebody says. */
export interface Around {
  /** What the section's block of context says, before the line. */
  clock?: string;
  remembered?: string;
  channel?: string;
  tools?: Anthropic.Tool[];
}

/** What is said to a line, and the calls as [name, input]. */
export function say(line: string, around: Around = {}) {
  const { clock = "10:05", remembered, channel = "cli", tools = ALL } = around;
  const time = `It is Mon Jan 05 2026 ${clock}:00 GMT+0000 (Coordinated Universal Time).`;
  const lines = [time, ...(remembered ? [`You remember: ${remembered}`] : [])];
  const context = text(`<context>\n${lines.join("\n")}\n</context>`);
  const { content = [] } = answer({
    model: "claude-sonnet-5-5",
    max_tokens: 8192,
    messages: [{ role: "user", content: clock ? [context, text(line)] : line }],
    system: `You are Luna.\n\n# Channel\n\n${channel}, one person`,
    tools,
    stream: false,
  });
  const words = content.flatMap((block) => (block.type === "text" ? String(block.text) : []));
  const calls = content.flatMap((block) =>
    block.type === "tool_use" && "name" in block ? [[block.name, block.input]] : [],
  );
  return { words: words.join("\n"), calls };
}
