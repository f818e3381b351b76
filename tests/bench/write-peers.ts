/** What is kept on the disk, beside the same bytes written with nothing but the same flushes. */

import fs, {
  appendFileSync,
  closeSync,
  fsyncSync,
  openSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { DeliveryQueue, Inbox, SessionStore } from "../../sessions/en/s10_concurrency.ts";
import { type Row, sideBySide } from "./time.ts";

const ROUNDS = 101;
const TEXT = "Where does my sister live, and since when? ".repeat(5);

function flush(file: string): void {
  const handle = openSync(file, "r");
  fsyncSync(handle);
  closeSync(handle);
}

function appendBare(file: string, record: object): void {
  const handle = openSync(file, "a");
  appendFileSync(handle, `${JSON.stringify(record)}\n`);
  fsyncSync(handle);
  closeSync(handle);
}

/** A new file that is there as a whole or not at all: written beside, flushed, and renamed. */
function writeBare(file: string, entry: object): void {
  const handle = openSync(`${file}.tmp`, "w");
  writeFileSync(handle, JSON.stringify(entry));
  fsyncSync(handle);
  closeSync(handle);
  renameSync(`${file}.tmp`, file);
  flush(path.dirname(file));
}

/** How often fsync is called. Both sides must do it as often, or the ratio says nothing. */
function flushesOf(run: () => void): number {
  const original = fs.fsyncSync;
  let count = 0;
  fs.fsyncSync = (handle) => {
    count += 1;
    original(handle);
  };
  run();
  fs.fsyncSync = original;
  return count;
}

/** What the program must flush for one of these: a record, or a file, its folder and the id. */
function checkFlushes(what: string, expected: number, run: () => void): void {
  run(); // what is new is flushed once more
  const flushes = flushesOf(run);
  if (flushes === expected) return;
  throw new Error(`${what} flushes ${flushes} times, and its peer ${expected} times`);
}

function sessionRow(folder: string) {
  const session = new SessionStore(path.join(folder, "sessions")).create("bench");
  const message = { role: "user" as const, content: [{ type: "text" as const, text: TEXT }] };
  const bare = path.join(folder, "bare.jsonl");
  const ours = () => session.append(message);
  checkFlushes("a session", 1, ours);
  const theirs = () => appendBare(bare, { at: new Date().toISOString(), message });
  return { what: "session, one message appended", ours, theirs };
}

/** One entry through a folder of files: written, its id noted as processed, and removed. */
function bareSpool(folder: string): (entry: { id: string }) => void {
  fs.mkdirSync(folder);
  let number = 0;
  return (entry) => {
    const file = path.join(folder, `${number++}.json`);
    writeBare(file, entry);
    appendBare(path.join(folder, "processed.jsonl"), { at: new Date(), id: entry.id });
    rmSync(file);
  };
}

function inboxRow(folder: string) {
  const inbox = new Inbox(path.join(folder, "inbox"));
  const bare = bareSpool(path.join(folder, "bare-inbox"));
  let number = 0;
  const message = () => ({
    ...{ id: `telegram:1:2:${number++}`, channel: "telegram", accountId: "1", peerId: "2" },
    ...{ senderId: "2", isGroup: false, text: TEXT, media: [], at: 0 },
    ...{ sessionKey: "agent:luna:main", agentId: "luna" },
  });
  const ours = () => {
    const entry = message();
    inbox.add(entry);
    inbox.acknowledge([entry]);
  };
  checkFlushes("the inbox", 3, ours);
  return { what: "inbox, one message in and out", ours, theirs: () => bare(message()) };
}

function deliveryRow(folder: string) {
  const queue = new DeliveryQueue(path.join(folder, "delivery"));
  const bare = bareSpool(path.join(folder, "bare-delivery"));
  let number = 0;
  const delivery = () => ({
    ...{ id: `telegram:1:2:${number++}#0`, channel: "telegram", to: "2", text: TEXT },
    ...{ enqueuedAt: 0, nextAttemptAt: 0, failures: 0, unfinished: 0 },
  });
  const ours = () => {
    const entry = delivery();
    queue.add(entry);
    queue.acknowledge(entry);
  };
  checkFlushes("the delivery queue", 3, ours);
  return { what: "delivery, one part in and out", ours, theirs: () => bare(delivery()) };
}

export async function writeRows(folder: string): Promise<Row[]> {
  const rows: Row[] = [];
  for (const { what, ours, theirs } of [
    sessionRow(folder),
    inboxRow(folder),
    deliveryRow(folder),
  ]) {
    const times = await sideBySide(ROUNDS, ours, theirs);
    rows.push({ what, peer: "the same writes and flushes", ...times });
  }
  return rows;
}
