/** The checks of single fields, for the request and for its messages. */

export type Json = Record<string, unknown>;

/** What a check throws; its message is the API's sentence. */
export class Refusal extends Error {}

/** Throws a Refusal. */
export function refuse(sentence: string): never {
  throw new Refusal(sentence);
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Refuses fields that the API does not know. `allowed` names the others, separated by spaces. */
export function checkFields(object: Json, at: string, allowed: string): void {
  const names = allowed.split(/\s+/);
  for (const name of Object.keys(object)) {
    if (!names.includes(name)) refuse(`${at}${name}: Extra inputs are not permitted`);
  }
}

/** A required string of at least `min` characters that fits the pattern, if there is one. */
export function checkString(
  object: Json,
  at: string,
  name: string,
  min = 1,
  pattern?: RegExp,
): void {
  const value = object[name];
  if (value === undefined) refuse(`${at}${name}: Field required`);
  if (typeof value !== "string") refuse(`${at}${name}: Input should be a valid string`);
  if (value.length < min) refuse(`${at}${name}: String should have at least ${min} character`);
  if (pattern && !pattern.test(value)) {
    refuse(`${at}${name}: String should match pattern '${pattern.source}'`);
  }
}
