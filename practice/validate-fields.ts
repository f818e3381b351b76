/** The small checks that the request and its messages share. */

export type Json = Record<string, unknown>;

/** Carries the sentence out of the nested checks. */
export class Refusal extends Error {}

export function refuse(sentence: string): never {
  throw new Refusal(sentence);
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Fields that the API does not know are refused, in the request and in every block. */
export function checkFields(object: Json, at: string, allowed: string): void {
  const names = allowed.split(/\s+/);
  for (const name of Object.keys(object)) {
    if (!names.includes(name)) refuse(`${at}${name}: Extra inputs are not permitted`);
  }
}

export function checkString(object: Json, at: string, name: string, min = 1, form?: RegExp): void {
  const value = object[name];
  if (value === undefined) refuse(`${at}${name}: Field required`);
  if (typeof value !== "string") refuse(`${at}${name}: Input should be a valid string`);
  if (value.length < min) refuse(`${at}${name}: String should have at least ${min} character`);
  if (form && !form.test(value)) {
    refuse(`${at}${name}: String should match pattern '${form.source}'`);
  }
}
