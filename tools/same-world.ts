// Loaded into a section before it is recorded (`node --import`): each recording begins at the same
// time of the same day and draws the same ids, so the next recording prints the same.
import crypto, { createHash } from "node:crypto";
import { syncBuiltinESMExports } from "node:module";

const { RECORD_SHIFT: shift = "0", RECORD_START: start = "" } = process.env;
// They are no settings of the program, and none of its children has to know them.
delete process.env.RECORD_SHIFT;
delete process.env.RECORD_START;

let drawn = 0;
function randomUUID() {
  drawn++;
  const hex = createHash("sha256").update(`${start} ${drawn}`).digest("hex");
  return hex.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/, "$1-$2-4$3-8$4-$5");
}
Object.assign(crypto, { randomUUID });
Object.assign(globalThis.crypto, { randomUUID });
syncBuiltinESMExports();
Math.random = () => 0.5;

const realNow = Date.now;
Date.now = () => realNow() + Number(shift);
globalThis.Date = new Proxy(Date, {
  construct: (target, args, newTarget) =>
    Reflect.construct(target, args.length === 0 ? [Date.now()] : args, newTarget),
});
