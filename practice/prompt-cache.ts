/**
 * The prompt cache, by the rules in Anthropic's documentation ("Prompt caching" on
 * platform.claude.com, as of October 2026, and skills/claude-api/shared/prompt-caching.md in
 * github.com/anthropics/skills):
 *
 * - The prompt is tools, system, messages. A mark stores all of it up to its block, and only marks
 *   store. A request reads the longest stored prefix that it begins with, block by block.
 * - From each mark the search goes back over at most 20 positions, the mark's own included. Calls
 *   (`tool_use`) in a row are one position, and so are results in a row.
 * - Below the model's minimum nothing is stored, and nothing is said.
 * - An entry lives for 5 minutes or an hour from the start of the request that wrote it or last
 *   read it. Requests that came before the answer of the writer had begun do not see it.
 * - It belongs to one organisation (here: one key) and one model. A change of `thinking`,
 *   `output_config`, `tool_choice`, or from no image to some loses the messages; one of `speed`
 *   loses the system prompt too.
 *
 * The documentation calls it model-specific whether the tools and system prompt survive a change
 * of `thinking`; here they do. How long an entry of 5 minutes lives once a mark asks for an hour
 * it leaves open; here it stays at 5 minutes.
 */

import { createHash } from "node:crypto";
import { hasBreakpoints, type PromptBlock, promptBlocks, ttlOf } from "./cache-breakpoints.ts";
import type { PracticeRequest } from "./reply.ts";

/** What became of the tokens before the last mark; those after it are neither. */
export interface CacheUse {
  read: number;
  written5m: number;
  written1h: number;
}

/** One request, and where it stands among the others. */
export interface CacheRequest {
  key: string;
  request: PracticeRequest;
  startedAt: number;
  /** The how-manieth request it is, from 1. */
  number: number;
  /** How many requests had come when its answer began. */
  arrived: number;
}

interface Entry {
  lifetime: number;
  usedAt: number;
  /** The last request that came too early to see it. */
  hiddenUpTo: number;
}

const MINUTE = 60_000;
const LIFETIMES = { "5m": 5 * MINUTE, "1h": 60 * MINUTE };
const POSITIONS = 20;

/** The smallest prefix that is stored, by the beginning of the model's name. */
const MINIMUMS: [tokens: number, models: RegExp][] = [
  [4096, /^claude-(opus-4-[56]|haiku-4-5)/],
  [2048, /^claude-(opus-4-7|mythos-preview|3-haiku|3-5-haiku)/],
  [1024, /^claude-(opus-4|sonnet-4|sonnet-5(?!-5)|3)/],
  [512, /^claude-(opus-5|sonnet-5-5|haiku-5-5|fable-5|mythos-5)/],
];

/** A name that is not in the list counts as one of the majority in 2025 and 2026. */
export function minimumFor(model: string): number {
  return MINIMUMS.find(([, models]) => models.test(model))?.[0] ?? 1024;
}

export class PromptCache {
  private readonly entries = new Map<string, Entry>();

  /** Reads, refreshes and writes for a request whose answer begins now. */
  use(asking: CacheRequest): CacheUse {
    const use = { read: 0, written5m: 0, written1h: 0 };
    const blocks = promptBlocks(asking.request);
    if (!hasBreakpoints(blocks)) return use;
    this.forget(asking.startedAt);
    const hashes = prefixHashes(asking, blocks);
    const hit = this.search(asking, blocks, hashes);
    use.read = prefixSizes(blocks)[hit] ?? 0;
    this.refresh(asking, hashes.slice(0, hit + 1));
    this.write(asking, blocks, hashes, hit, use);
    return use;
  }

  private forget(now: number): void {
    for (const [hash, { usedAt, lifetime }] of this.entries) {
      if (now - usedAt >= lifetime) this.entries.delete(hash);
    }
  }

  /** The index of the last block of the longest prefix that is stored, or -1. */
  private search(asking: CacheRequest, blocks: PromptBlock[], hashes: string[]): number {
    const places = positions(blocks);
    for (const mark of marked(blocks).reverse()) {
      for (let i = mark; i >= 0 && (places[mark] ?? 0) - (places[i] ?? 0) < POSITIONS; i--) {
        const entry = this.entries.get(hashes[i] ?? "");
        if (entry && asking.number > entry.hiddenUpTo) return i;
      }
    }
    return -1;
  }

  /** What was read has been used, and so has every shorter prefix of it. */
  private refresh(asking: CacheRequest, hashes: string[]): void {
    for (const hash of hashes) {
      const entry = this.entries.get(hash);
      if (entry) entry.usedAt = Math.max(entry.usedAt, asking.startedAt);
    }
  }

  private write(
    asking: CacheRequest,
    blocks: PromptBlock[],
    hashes: string[],
    hit: number,
    use: CacheUse,
  ): void {
    const minimum = minimumFor(asking.request.model);
    const sizes = prefixSizes(blocks);
    let done = use.read;
    for (const index of marked(blocks)) {
      const tokens = sizes[index] ?? 0;
      const mark = blocks[index]?.marks.at(-1);
      if (index <= hit || tokens < minimum || !mark) continue;
      const ttl = ttlOf(mark);
      use[ttl === "1h" ? "written1h" : "written5m"] += tokens - done;
      done = tokens;
      const hash = hashes[index] ?? "";
      const other = this.entries.get(hash); // of a request at the same time: it stays
      this.entries.set(hash, {
        lifetime: Math.max(LIFETIMES[ttl], other?.lifetime ?? 0),
        usedAt: Math.max(asking.startedAt, other?.usedAt ?? 0),
        hiddenUpTo: Math.min(asking.arrived, other?.hiddenUpTo ?? asking.arrived),
      });
    }
  }
}

function marked(blocks: PromptBlock[]): number[] {
  return [...blocks.keys()].filter((index) => blocks[index]?.marks.length);
}

/** For each block the sum of the tokens up to it. */
function prefixSizes(blocks: PromptBlock[]): number[] {
  let sum = 0;
  return blocks.map(({ tokens }) => (sum += tokens));
}

function positions(blocks: PromptBlock[]): number[] {
  let position = 0;
  return blocks.map(({ type }, index) => {
    const inRow =
      (type === "tool_use" || type === "tool_result") && blocks[index - 1]?.type === type;
    if (!inRow) position += 1;
    return position;
  });
}

/** For each block a hash of all up to it, and of what else changes the prompt there. */
function prefixHashes({ key, request }: CacheRequest, blocks: PromptBlock[]): string[] {
  const { thinking, tool_choice: choice, output_config: output } = request;
  const speed = "speed" in request ? request.speed : undefined;
  const images = blocks.some(({ content }) => content.includes('"type":"image"'));
  const chosen = choice?.type === "auto" ? undefined : choice;
  const settings = {
    tools: "",
    system: JSON.stringify([speed]),
    messages: JSON.stringify([speed, thinking, output, chosen, images]),
  };
  let hash = JSON.stringify([key, request.model]);
  return blocks.map(({ part, content }) => {
    const parts = JSON.stringify([hash, part, settings[part], content]);
    hash = createHash("sha256").update(parts).digest("base64");
    return hash;
  });
}
