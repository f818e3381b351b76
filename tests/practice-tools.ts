import type Anthropic from "@anthropic-ai/sdk";

/** A tool as a request offers it: its name, and the names of its parameters. */
export const tool = (name: string, ...names: string[]): Anthropic.Tool => ({
  name,
  input_schema: {
    type: "object",
    properties: Object.fromEntries(names.map((one) => [one, { type: "string" }])),
  },
});
