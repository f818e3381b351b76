/**
 * What the servers of the practice world are made of: loopback, something to wait for instead of
 * sleeping, the knobs, and the stream that `npm run phone` reads.
 */

import { once } from "node:events";
import { get, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { readBody, sendJson } from "./exchange.ts";

/** Fields of a request or an update whose form is the platform's business. */
export type Fields = Record<string, unknown>;

/** Resolves with the server's address. */
export function listen(server: Server, port = 0): Promise<string> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => {
      const { port: chosen } = server.address() as AddressInfo; // a TCP server's is one
      resolve(`http://127.0.0.1:${chosen}`);
    });
  });
}

export function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

/** A body as an object: JSON, a form, or nothing. */
export async function readFields(request: IncomingMessage): Promise<Fields> {
  const type = request.headers["content-type"] ?? "";
  if (type.includes("form")) {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk);
    const headers = { "content-type": type };
    const form = await new Response(Buffer.concat(chunks), { headers }).formData();
    return Object.fromEntries(form);
  }
  const fields: unknown = JSON.parse((await readBody(request)) || "{}");
  if (typeof fields === "object" && fields !== null && !Array.isArray(fields)) return { ...fields };
  throw new SyntaxError("the body is no JSON object");
}

/** Wakes those who wait for something to become true: no test needs to sleep. */
export class ConditionVariable {
  private readonly checks = new Set<() => void>();

  notifyAll(): void {
    for (const check of [...this.checks]) check();
  }

  /** Resolves with what `find` gives, as soon as that is not undefined. */
  until<T>(find: () => T | undefined): Promise<T> {
    const now = find();
    if (now !== undefined) return Promise.resolve(now);
    return new Promise((resolve) => {
      const check = (): void => {
        const found = find();
        if (found === undefined) return;
        this.checks.delete(check);
        resolve(found);
      };
      this.checks.add(check);
    });
  }
}

/** What the bot has sent, in order. */
export class Outbox<Item extends { chat: string | number }> {
  readonly all: Item[] = [];
  private readonly taken = new Set<Item>();
  private readonly changes: ConditionVariable;

  constructor(changes: ConditionVariable) {
    this.changes = changes;
  }

  add(item: Item): void {
    this.all.push(item);
    this.changes.notifyAll();
  }

  /** The next one to a chat, or to any, that no call of this has given yet. */
  next(chat?: string | number): Promise<Item> {
    return this.changes.until(() => {
      const found = this.all.find(
        (one) => !this.taken.has(one) && (chat === undefined || one.chat === chat),
      );
      if (found) this.taken.add(found);
      return found;
    });
  }
}

/** Requests that hang until somebody lets them go on, or their client hangs up. */
export class HeldRequests {
  private readonly held = new Set<() => void>();

  /** Gives whether the client is still there. */
  async wait(response: ServerResponse): Promise<boolean> {
    await new Promise<void>((resolve) => {
      const goOn = (): void => {
        this.held.delete(goOn);
        resolve();
      };
      this.held.add(goOn);
      response.once("close", goOn);
    });
    return !response.destroyed;
  }

  release(): void {
    for (const goOn of this.held) goOn();
  }
}

/** The servers in front of the real platforms speak HTML. */
export function sendBadGateway(response: ServerResponse): void {
  response.writeHead(502, { "content-type": "text/html" });
  response.end("<html><head><title>502 Bad Gateway</title></head></html>");
}

/** What the knobs of a server do; what they give is the answer. */
export type ControlHandlers = Record<string, (input: Fields, response: ServerResponse) => unknown>;

/** `/_practice/<knob>`, for commands; an error of the knob's is told to whoever has turned it. */
export async function handleControl(
  request: IncomingMessage,
  response: ServerResponse,
  knobs: ControlHandlers,
): Promise<void> {
  // A page in a browser can reach loopback too; it says where it comes from, a command does not.
  if (request.headers.origin) return sendJson(response, 403, { error: "not from a browser" });
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
  const [, knob] = Object.entries(knobs).find(([name]) => pathname === `/_practice/${name}`) ?? [];
  if (!knob) return sendJson(response, 404, { error: `there is no ${pathname}` });
  try {
    const input = { ...Object.fromEntries(searchParams), ...(await readFields(request)) };
    const result = await knob(input, response);
    if (!response.headersSent) sendJson(response, 200, result ?? {});
  } catch (error) {
    sendJson(response, 400, { error: error instanceof Error ? error.message : String(error) });
  }
}

/** What a person's phone shows. */
export type PhoneEvent = { type: "typing" } | { type: "sent"; text: string };

/** What a person types on the phone, the same for both platforms. */
export interface PhoneInput {
  person: string;
  group?: string;
  text: string;
  photos?: number;
  /** An answer to the bot's last message there. */
  reply?: boolean;
}

/** The phones that look on: one connection each, kept open, one line of JSON an event. */
export class Phones {
  private readonly open = new Map<ServerResponse, string>();

  watch(response: ServerResponse, chat: string): void {
    this.open.set(response, chat);
    response.once("close", () => this.open.delete(response));
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.flushHeaders();
  }

  show(chat: string, event: PhoneEvent): void {
    for (const [response, shown] of this.open) {
      if (shown === chat) response.write(`${JSON.stringify(event)}\n`);
    }
  }
}

/** The other end: shows what comes, for as long as the world is there. */
export async function watchPhone(
  url: string,
  show: (event: PhoneEvent) => void,
): Promise<IncomingMessage> {
  const [response] = (await once(get(url), "response")) as [IncomingMessage]; // what http gives
  const events = createInterface({ input: response.setEncoding("utf8") });
  events.on("line", (line) => show(JSON.parse(line)));
  for (const source of [events, response]) source.on("error", () => {}); // its close says it, too
  return response;
}
