/** So many columns may a line of code take, comments included. */
export const LIMIT = 100;

/** Characters that take two columns. The ambiguous ones (… “ ” → and the boxes) count as one. */
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

/** The columns of a line: a wide character is in two of them. */
export const columns = (line: string): string[] =>
  [...line].flatMap((character) => (WIDE.test(character) ? [character, character] : character));
