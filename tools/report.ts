// What the steps of the check found.
import { type Claim, type Language, short } from "./sections.ts";

export class Report {
  /** Each one names a file, and what to do. Any of them fails the check. */
  problems: string[] = [];
  /** Things to know; problems of sections that no language claims yet are among them. */
  notes: string[] = [];
  /** The figures of the summary. */
  facts: string[] = [];

  /** A part of a section is finished when it is claimed; until then its problems are only told. */
  sink(language: Language | undefined, claim: Claim, name: string): string[] {
    return language?.[claim].includes(short(name)) ? this.problems : this.notes;
  }
}

/** A problem, if there are more of something than there may be. */
export const over = (count: number, what: string, limit = Number.POSITIVE_INFINITY, remedy = "") =>
  count > limit ? [`${what}, ${limit} is the limit. ${remedy}`] : [];
