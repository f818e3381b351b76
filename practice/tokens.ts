/** A count of tokens that is good enough to practise with: nobody has the real tokenizer. */

const WIDE = /[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/g;

/** About one token for a Chinese, Japanese or Korean character, four other characters a token. */
export function countTokens(text: string): number {
  const wide = text.match(WIDE)?.length ?? 0;
  return wide + Math.ceil((text.length - wide) / 4);
}

/** All the text anywhere in a value, plus a little for its structure. */
export function countTokensIn(value: unknown): number {
  if (typeof value === "string") return countTokens(value);
  if (typeof value === "number") return 1;
  if (typeof value !== "object" || value === null) return 0;
  return Object.values(value).reduce((sum: number, part) => sum + countTokensIn(part), 1);
}
