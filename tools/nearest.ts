// Which of many old texts has each new one come from? The measure is the words that they share.

const ENOUGH = 0.6; // below that an old text is of no help

export interface Pair {
  fresh: string;
  old: string;
  /** Twice the shared words, divided by all words of both: 1 if the words are the same (Dice). */
  share: number;
}

const wordsOf = (text: string) => new Set(text.toLowerCase().match(/\p{L}+/gu));

/** An inverted index: for each word the texts that have it. */
function indexOf(words: Map<string, Set<string>>): Map<string, string[]> {
  const index = new Map<string, string[]>();
  for (const [text, own] of words) {
    for (const word of own) {
      const texts = index.get(word) ?? [];
      texts.push(text);
      index.set(word, texts);
    }
  }
  return index;
}

/**
 * All pairs of a new and an old text that are much alike, the best first. The index keeps this fast
 * when hundreds of comments have changed at once, because it never compares texts without a common
 * word.
 */
function alike(fresh: Iterable<string>, old: Iterable<string>): Pair[] {
  const oldWords = new Map([...old].map((text) => [text, wordsOf(text)]));
  const index = indexOf(oldWords);
  const pairs: Pair[] = [];
  for (const text of fresh) {
    const words = wordsOf(text);
    const common = new Map<string, number>();
    for (const other of [...words].flatMap((word) => index.get(word) ?? [])) {
      common.set(other, (common.get(other) ?? 0) + 1);
    }
    for (const [other, count] of common) {
      const all = words.size + (oldWords.get(other)?.size ?? 0);
      const share = (2 * count) / all;
      if (share > ENOUGH) pairs.push({ fresh: text, old: other, share });
    }
  }
  return pairs.sort((a, b) => b.share - a.share);
}

/** The nearest old text of each new one that has one. An old text may serve several new ones. */
export function nearest(fresh: Iterable<string>, old: Iterable<string>): Map<string, string> {
  const found = new Map<string, string>();
  for (const pair of alike(fresh, old)) {
    if (!found.has(pair.fresh)) found.set(pair.fresh, pair.old);
  }
  return found;
}

/** The same, but each old text serves one new one, that which is most like it. */
export function successors(fresh: Iterable<string>, old: Iterable<string>): Map<string, string> {
  const found = new Map<string, string>();
  const taken = new Set<string>();
  for (const pair of alike(fresh, old)) {
    if (found.has(pair.fresh) || taken.has(pair.old)) continue;
    found.set(pair.fresh, pair.old);
    taken.add(pair.old);
  }
  return found;
}
