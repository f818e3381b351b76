/** s03: middleware, the layers that stand round every turn. */

import { describe, expect, it } from "vitest";
import type { Middleware } from "../sessions/en/s03_sessions.ts";
import { load, practice, say, sectionsFrom, settings } from "./helper.ts";

describe.each(sectionsFrom("s03"))("$name, middleware", (file) => {
  async function open() {
    const model = await practice({ rules: false });
    const section = await load("s03", file, settings(model));
    const conversation = new section.Conversation();
    const order: string[] = [];
    const layer =
      (name: string): Middleware =>
      async (_conversation, options, next) => {
        order.push(`${name} in`);
        await next(options);
        order.push(`${name} out`);
      };
    return { model, section, conversation, order, layer };
  }

  it("runs the layers from the outermost to the innermost, and out again", async () => {
    const { model, section, conversation, order, layer } = await open();
    section.MIDDLEWARE.push(layer("inner"));
    section.MIDDLEWARE.unshift(layer("outer"));
    model.script(say("Hello."));
    expect(await section.runTurn(conversation, "hi", {})).toBe("Hello.");
    expect(order).toEqual(["outer in", "inner in", "inner out", "outer out"]);
  });

  it("hands on the options that the layer outside it gave", async () => {
    const { model, section, conversation } = await open();
    const heard: string[] = [];
    section.MIDDLEWARE.unshift((_conversation, options, next) =>
      next({ ...options, onText: (piece) => heard.push(piece) }),
    );
    model.script(say("Hello."));
    await section.runTurn(conversation, "hi", {});
    expect(heard.join("")).toBe("Hello.");
  });

  it("a layer that calls next again asks the model again, of the same conversation", async () => {
    const { model, section, conversation } = await open();
    section.MIDDLEWARE.push((_conversation, options, next) =>
      next(options).catch(() => next(options)),
    );
    model.script({ error: { status: 400, type: "invalid_request_error", message: "bad luck" } });
    model.script(say("At last."));
    expect(await section.runTurn(conversation, "hi", {})).toBe("At last.");
    expect(conversation.messages).toHaveLength(2);
  });

  it("runs no layer when the answer is stored already", async () => {
    const { model, section, conversation, order, layer } = await open();
    model.script(say("Hello."));
    await section.runTurn(conversation, "hi", {});
    section.MIDDLEWARE.unshift(layer("outer"));
    expect(await section.finishTurn(conversation, {})).toBe("Hello.");
    expect(order).toEqual([]);
  });
});
