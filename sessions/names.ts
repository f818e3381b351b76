// The one list of the sections and of the languages. The tools, the practice world and the tests
// import it; a section never does. To add a section or a language, add its name here.

const NAMES = [
  "s01_agent_loop",
  "s02_tool_use",
  "s03_sessions",
  "s04_channels",
  "s05_gateway",
  "s06_intelligence",
  "s07_heartbeat_cron",
  "s08_delivery",
  "s09_resilience",
  "s10_concurrency",
] as const;

/** "s01" to "s10". */
export type SectionId = IdOf<(typeof NAMES)[number]>;
type IdOf<Name> = Name extends `${infer Id}_${string}` ? Id : never;

/** The names of the sections without a folder and without an extension, in their order. */
export const SECTIONS: readonly string[] = NAMES;

export const LANGUAGES = ["en", "zh", "ja"] as const;
export type LanguageCode = (typeof LANGUAGES)[number];

/** What each language calls itself, by its code. */
export const LANGUAGE_NAMES: Record<LanguageCode, string> = {
  en: "English",
  zh: "中文",
  ja: "日本語",
};
