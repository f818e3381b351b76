/**
 * What counts as stored survives a power cut. Nobody can cut the power here, so this watches what a
 * section asks of the file system: whatever was written has to be flushed, and so has the folder in
 * which a name appeared, before the step is over.
 */

import fs from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { calls, load, practice, say, sectionsFrom, settings, temporaryFolder } from "./helper.ts";
import { appOf, delivered, inbound, load04, type S04, silentChannel } from "./world.ts";

/** Watches a folder. Gives what was written in it and is not flushed. */
function watchFlushes(root: string) {
  const open = new Map<number, string>();
  const unflushed = new Set<string>();
  let writes = 0;
  const original = { ...fs };
  const nameOf = (file: fs.PathOrFileDescriptor) =>
    typeof file === "number" ? (open.get(file) ?? "") : String(file);
  const appears = (file: string) => {
    if (!original.existsSync(file)) unflushed.add(dirname(file));
  };
  const isFlushed = (options: fs.WriteFileOptions = {}) =>
    options !== null && typeof options === "object" && options.flush === true;
  const written = (file: fs.PathOrFileDescriptor, options?: fs.WriteFileOptions) => {
    writes += 1;
    unflushed.add(nameOf(file));
    if (typeof file !== "number") appears(String(file));
    return () => isFlushed(options) && unflushed.delete(nameOf(file));
  };
  vi.spyOn(fs, "openSync").mockImplementation((file, flags, mode) => {
    if (flags !== "r") appears(String(file));
    const handle = original.openSync(file, flags, mode);
    open.set(handle, String(file));
    return handle;
  });
  vi.spyOn(fs, "writeFileSync").mockImplementation((file, data, options) => {
    const flushed = written(file, options);
    original.writeFileSync(file, data, options);
    flushed();
  });
  vi.spyOn(fs, "appendFileSync").mockImplementation((file, data, options) => {
    const flushed = written(file, options);
    original.appendFileSync(file, data, options);
    flushed();
  });
  vi.spyOn(fs, "mkdirSync").mockImplementation((folder, options) => {
    const isNew = !original.existsSync(folder);
    const first = original.mkdirSync(folder, options);
    if (isNew) unflushed.add(dirname(String(folder)));
    return first;
  });
  vi.spyOn(fs, "renameSync").mockImplementation((from, to) => {
    // A new name for content that is not on the disk yet would survive without it.
    if (unflushed.has(String(from))) unflushed.add(`${to}, renamed before it was flushed`);
    original.renameSync(from, to);
    unflushed.add(dirname(String(to)));
  });
  vi.spyOn(fs, "fsyncSync").mockImplementation((handle) => {
    original.fsyncSync(handle);
    unflushed.delete(open.get(handle) ?? "");
  });
  const isHere = (file: string) => file.startsWith(root);
  return { unflushed: () => [...unflushed].filter(isHere), writes: () => writes };
}

describe.each(sectionsFrom("s03"))("$name", (section) => {
  it("lets no other user of the machine into the state folder", async () => {
    const s03 = await load("s03", section);
    const state = join(temporaryFolder(), ".state");
    s03.lockFolder(state);
    if (process.platform !== "win32") expect(fs.statSync(state).mode & 0o777).toBe(0o700);
  });

  it("has each record of a session, its file and the pointer to it on the disk", async () => {
    const model = await practice();
    const s03 = await load("s03", section, settings(model));
    const root = join(temporaryFolder(), "sessions");
    const watched = watchFlushes(root);
    const store = new s03.SessionStore(root);
    const session = store.current("agent:luna:cli:direct:owner");
    expect(watched.unflushed()).toEqual([]);
    await s03.runTurn(session, "hello", {});
    expect(watched.unflushed()).toEqual([]);
    store.create("agent:luna:cli:direct:owner", "another");
    expect(watched.unflushed()).toEqual([]);
    expect(watched.writes()).toBeGreaterThan(4);
  });
});

describe.each(sectionsFrom("s04"))("$name", (section) => {
  it("has a message, its turn, its notes and its reply on the disk at each step", async () => {
    const model = await practice({ rules: false });
    const s04: S04 = await load04(section, settings(model));
    const folder = temporaryFolder();
    const app = appOf(s04, folder);
    const telegram = silentChannel();
    app.channels.set("telegram", telegram);
    const watched = watchFlushes(folder);
    const seen: string[][] = [];
    model.script(
      () => {
        seen.push(watched.unflushed()); // accepted, and the question stored
        return s04.HANDLERS.memory_write
          ? calls(["memory_write", { content: "a note", category: "note" }])
          : calls(["get_current_time", {}]);
      },
      () => {
        seen.push(watched.unflushed()); // the call and its result
        return say("Hello.");
      },
    );
    const { done } = s04.accept(app, inbound());
    expect(watched.unflushed()).toEqual([]);
    await done;
    await delivered(app);
    expect(seen).toEqual([[], []]);
    expect(watched.unflushed()).toEqual([]);
    expect(telegram.sent).toHaveLength(1);
  });
});
