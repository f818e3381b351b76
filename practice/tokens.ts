/** An estimate of tokens. It is good enough for practice; the real tokenizer is not public. */

const WIDE = /[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/g;

/** About one token for each Chinese, Japanese or Korean character, and for four other ones. */
export function countTokens(text: string): number {
  const wide = text.match(WIDE)?.length ?? 0;
  return wide + Math.ceil((text.length - wide) / 4);
}

/** The tokens of all texts anywhere in a value, plus one for each number, list and object. */
export function countTokensIn(value: unknown): number {
  if (typeof value === "string") return countTokens(value);
  if (typeof value === "number") return 1;
  if (typeof value !== "object" || value === null) return 0;
  return Object.values(value).reduce((sum: number, part) => sum + countTokensIn(part), 1);
}
