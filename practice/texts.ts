/**
 * What the tools of the practice world say to people: one table for each language. Commands, names
 * and what the system says stay as they are.
 */

import type { LanguageCode } from "../sessions/names.ts";
import type { Failure } from "./fault-injection.ts";
import { ENGLISH } from "./texts.en.ts";
import { JAPANESE } from "./texts.ja.ts";
import { CHINESE } from "./texts.zh.ts";

/** What the world refuses for a reason that the person should know; the values depend on it. */
type Refusals = Record<string, (values: Record<string, string>) => string>;

/** A failure as `npm run practice -- fail` has read it, for the sentence that says what happens. */
export type AnnouncedFailure = Failure & {
  server: "model" | "telegram" | "feishu";
  /** How many requests fail: Infinity if `seconds` limits the failure. */
  count: number;
};

export interface Texts {
  /** For lists of names. */
  comma: string;
  refused: Refusals;
  start: {
    help: string;
    noLanguage(given: string, known: string): string;
    noSection(given: string): string;
    notThere(section: string, language: string, others: string[], there: string[]): string;
    askLanguage(names: string, first: string): string;
    askSection(first: string): string;
    missing(sections: string): string;
    offline: string[];
    phone: string;
    killed(user: string, command: string): string;
    freshWithKey: string;
    envInUtf16: string;
    badSetting(given: string, known: string): string;
  };
  phone: {
    help: string;
    bot: string;
    typing: string;
    ended: string;
    /** No section with channels is running; `user` is the section that runs without them. */
    waits(user: string | undefined): string;
  };
  rpc: {
    help: string;
    noGateway(user: string | undefined): string;
    badParameter(word: string): string;
    unreachable(host: string, why: string): string;
    closed(host: string, code: number): string;
    gaveUp(host: string, seconds: number): string;
    typing: string;
  };
  practice: {
    help: string;
    kinds: string;
    noCommand(given: string): string;
    section(user: string, pid: number | undefined): string;
    noSection: string;
    world(pid: number, model: string): string;
    byHand: string;
    more: string;
    killed(user: string, pid: number): string;
    ended(user: string | undefined): string;
    noWorld: string;
    noMoreFailures: string;
    slow(seconds: number): string;
    slowWhat(given: string): string;
    noRequests: string;
    noFailure(given: string, known: string): string;
    oneFailure(surplus: string): string;
    chatOption: string;
    modelOptions: string;
    failure(failure: AnnouncedFailure): string;
  };
  log: {
    key(number: string): string;
    messages(count: number): string;
    stopped: string;
    underWay: string;
    cache(cached: number, written: number, fresh: number): string;
  };
  unknownOption(given: string, help: string): string;
  noValue(option: string, help: string): string;
  wholeNumber(option: string, given: string): string;
  duration(option: string, given: string): string;
  worldDidNotStart(log: string): string;
  worldHangs(pid: number): string;
}

/** The texts of each language. */
export const TEXTS: Record<LanguageCode, Texts> = {
  en: ENGLISH,
  zh: CHINESE,
  ja: JAPANESE,
};
