/**
 * The prompt cache, by the rules in Anthropic's documentation ("Prompt caching" on
 * platform.claude.com, as of October 2026, and skills/claude-api/shared/prompt-caching.md in
 * github.com/anthropics/skills):
 *
 * - The prompt is tools, system, messages. Only a cache breakpoint stores something: all of the
 *   prompt up to its block. A request reads the longest stored prefix that it begins with, block by
 *   block.
 * - From each breakpoint the search goes back over at most 20 positions, the breakpoint's own
 *   included. Calls (`tool_use`) in a row are one position, and so are results in a row.
 * - A prefix below the model's minimum is not stored, and no error says so.
 * - An entry lives for 5 minutes or an hour from the start of the request that wrote it or last
 *   read it. Requests that came before the answer of the writer had begun do not see it.
 * - An entry belongs to one organisation (here: one key) and one model. A change of `thinking`,
 *   `output_config`, `tool_choice`, or from no image to some invalidates the messages; a change of
 *   `speed` invalidates the system prompt, too.
 *
 * The documentation calls it model-specific whether the tools and system prompt survive a change of
 * `thinking`; here they do. It leaves open how long an entry of 5 minutes lives once a breakpoint
 * asks for an hour; here it stays at 5 minutes.
 */

import { createHash } from "node:crypto";
import { hasBreakpoints, type PromptBlock, promptBlocks, ttlOf } from "./cache-breakpoints.ts";
import type { PracticeRequest } from "./reply.ts";

/**
 * What became of the tokens before the last breakpoint. Those after it are neither read nor
 * written.
 */
export interface CacheUse {
  read: number;
  written5m: number;
  written1h: number;
}

/** One request, and where it stands among the others. */
export interface CacheLookup {
  key: string;
  request: PracticeRequest;
  startedAt: number;
  /** The requests are numbered from 1 in the order in which they came. */
  number: number;
  /** The number of the newest request when the answer to this one began. */
  arrived: number;
}

interface Entry {
  lifetime: number;
  usedAt: number;
  /** The number of the last request that came too early to see the entry. */
  hiddenUpTo: number;
}

const MINUTE = 60_000;
const LIFETIMES = { "5m": 5 * MINUTE, "1h": 60 * MINUTE };
const MAX_LOOKBACK = 20;

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

/** The cache of a model. It knows prefixes by their hashes only. */
export class PromptCache {
  private readonly entries = new Map<string, Entry>();

  /** Reads, refreshes and writes for a request whose answer begins now. */
  use(lookup: CacheLookup): CacheUse {
    const use = { read: 0, written5m: 0, written1h: 0 };
    const blocks = promptBlocks(lookup.request);
    if (!hasBreakpoints(blocks)) return use;
    this.forget(lookup.startedAt);
    const hashes = prefixHashes(lookup, blocks);
    const hit = this.search(lookup, blocks, hashes);
    use.read = prefixSizes(blocks)[hit] ?? 0;
    this.refresh(lookup, hashes.slice(0, hit + 1));
    this.write(lookup, blocks, hashes, hit, use);
    return use;
  }

  private forget(now: number): void {
    for (const [hash, { usedAt, lifetime }] of this.entries) {
      if (now - usedAt >= lifetime) this.entries.delete(hash);
    }
  }

  /** The index of the last block of the longest prefix that is stored, or -1. */
  private search(lookup: CacheLookup, blocks: PromptBlock[], hashes: string[]): number {
    const positions = positionsOf(blocks);
    const isVisible = (hash: string): boolean => {
      const entry = this.entries.get(hash);
      return entry !== undefined && lookup.number > entry.hiddenUpTo;
    };
    for (const breakpoint of breakpointsIn(blocks).reverse()) {
      const first = (positions[breakpoint] ?? 0) - MAX_LOOKBACK + 1;
      const hit = hashes.findLastIndex((hash, index) => {
        const isInReach = index <= breakpoint && (positions[index] ?? 0) >= first;
        return isInReach && isVisible(hash);
      });
      if (hit >= 0) return hit;
    }
    return -1;
  }

  /** What is read lives longer, and so does every stored prefix of it. */
  private refresh(lookup: CacheLookup, hashes: string[]): void {
    for (const hash of hashes) {
      const entry = this.entries.get(hash);
      if (entry) entry.usedAt = Math.max(entry.usedAt, lookup.startedAt);
    }
  }

  /** Stores the prefix of each breakpoint behind the hit, and notes in `use` how many tokens. */
  private write(
    lookup: CacheLookup,
    blocks: PromptBlock[],
    hashes: string[],
    hit: number,
    use: CacheUse,
  ): void {
    const minimum = minimumFor(lookup.request.model);
    const sizes = prefixSizes(blocks);
    let counted = use.read;
    for (const index of breakpointsIn(blocks)) {
      const tokens = sizes[index] ?? 0;
      const breakpoint = blocks[index]?.breakpoints.at(-1);
      if (index <= hit || tokens < minimum || !breakpoint) continue;
      const ttl = ttlOf(breakpoint);
      use[ttl === "1h" ? "written1h" : "written5m"] += tokens - counted;
      counted = tokens;
      const hash = hashes[index] ?? "";
      // A request at the same time may have stored the same prefix: then the better values stay.
      const other = this.entries.get(hash);
      this.entries.set(hash, {
        lifetime: Math.max(LIFETIMES[ttl], other?.lifetime ?? 0),
        usedAt: Math.max(lookup.startedAt, other?.usedAt ?? 0),
        hiddenUpTo: Math.min(lookup.arrived, other?.hiddenUpTo ?? lookup.arrived),
      });
    }
  }
}

/** The indexes of the blocks with a breakpoint. */
function breakpointsIn(blocks: PromptBlock[]): number[] {
  return [...blocks.keys()].filter((index) => blocks[index]?.breakpoints.length);
}

/** For each block the sum of the tokens up to it. */
function prefixSizes(blocks: PromptBlock[]): number[] {
  let sum = 0;
  return blocks.map(({ tokens }) => {
    sum += tokens;
    return sum;
  });
}

/** For each block its position, by which the search counts. */
function positionsOf(blocks: PromptBlock[]): number[] {
  let position = 0;
  return blocks.map(({ type }, index) => {
    const inRow =
      (type === "tool_use" || type === "tool_result") && blocks[index - 1]?.type === type;
    if (!inRow) position += 1;
    return position;
  });
}

/** For each block a hash of the prompt up to it and of the settings that change it. */
function prefixHashes({ key, request }: CacheLookup, blocks: PromptBlock[]): string[] {
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
