// What differs from one recording to the next becomes the same: times, ports, folders.

/** When every recording takes place. */
export const START = Date.UTC(2026, 0, 5, 10);
const DURATION = 5 * 60_000; // ms; no recording takes longer

/** `folders` has for each folder of this machine the name that a reader sees in its stead. */
export function normalise(text: string, folders: Record<string, string>): string {
  let result = text;
  for (const [folder, name] of Object.entries(folders)) {
    const rename = (_path: string, rest = "") => name + rest.replace(/\\+/g, "/");
    result = result.replace(writtenAs(folder), rename);
  }
  return (
    withFixedTimes(result)
      .replace(/(127\.0\.0\.1|localhost|\[::1\]):\d{2,5}\b/g, "$1:8765")
      // The id of a cooldown ends with a hash of the base URL, in which there is a free port.
      .replace(
        / [0-9a-f]{8}(?= {2}(rate_limit|overloaded|auth|billing|timeout|unknown) {2})/g,
        " 3fbdfe1c",
      )
      .replace(/[ \t]+$/gm, "")
  );
}

/** Finds a folder, and what is in it, in each way in which systems write its path. */
function writtenAs(folder: string): RegExp {
  const escaped = folder.split(/[\\/]+/).map((part) => part.replace(/\W/g, "\\$&"));
  const [drive = "", ...parts] = escaped;
  // C:\x is also C:\\x in JSON, C:/x, and /c/x in Git Bash.
  const anyDrive = drive.replace(/^(\w)\\:$/, "(?:$1:|[\\\\/]$1(?=/))");
  const whole = [anyDrive, ...parts].join("[\\\\/]+");
  return new RegExp(`${whole}(?!\\w)([\\\\/][\\w.%\\\\/-]*)?`, "gi");
}

/**
 * A time of the first five minutes becomes their beginning. The same half an hour and an hour later,
 * because a heartbeat and a job may be due then.
 */
function withFixedTimes(text: string): string {
  const zeros = (time: string) => `${time.slice(0, 4)}0${time.slice(5).replace(/\d/g, "0")}`;
  const isOurs = (ms: number) => ms >= START && ms < START + DURATION;
  return text
    .replace(/(?<!\d)(10:0|10:3|11:0)[0-4](:[0-5]\d)?([.,]\d{3})?/g, zeros)
    .replace(/\b\d{13}\b/g, (ms) => (isOurs(Number(ms)) ? String(START) : ms))
    .replace(/("uptime": )\d+/g, "$112");
}
