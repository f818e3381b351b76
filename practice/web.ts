/**
 * What the servers of the practice world have in common: they listen on loopback, let tests wait
 * for a condition instead of sleeping, take the commands of `npm run practice`, and stream to
 * phones.
 */

import { once } from "node:events";
import { get, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { readBody, sendJson } from "./exchange.ts";

/** The fields of a JSON object whose form the platform's own code knows. */
export type Fields = Record<string, unknown>;

/** Starts a server on loopback and gives its address. Port 0 picks a free one. */
export function listen(server: Server, port = 0): Promise<string> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => {
      const { port: chosen } = server.address() as AddressInfo; // a string only for a Unix socket
      resolve(`http://127.0.0.1:${chosen}`);
    });
  });
}

/** Stops a server at once: connections that are open are cut. */
export function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}

/** The body of a request as an object: JSON, a form, or nothing. Throws a SyntaxError. */
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

/**
 * A condition variable: `until` waits for a condition, and whoever changes something calls
 * `notifyAll`, so that it is checked again. No test has to sleep for a guessed time.
 */
export class ConditionVariable {
  private readonly checks = new Set<() => void>();

  notifyAll(): void {
    for (const check of [...this.checks]) check();
  }

  /** Resolves with what `find` gives, as soon as it gives something. */
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

/** The messages that the bot has sent, in order. */
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

  /** The next message to a chat, or to any, that no call of this method has given yet. */
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

/** Requests that hang until `release` is called or their client hangs up. */
export class HeldRequests {
  private readonly held = new Set<() => void>();

  /** Resolves when the request may go on; with false if its client has hung up. */
  async wait(response: ServerResponse): Promise<boolean> {
    await new Promise<void>((resolve) => {
      const resume = (): void => {
        this.held.delete(resume);
        resolve();
      };
      this.held.add(resume);
      response.once("close", resume);
    });
    return !response.destroyed;
  }

  release(): void {
    for (const resume of this.held) resume();
  }
}

/** A 502 as the proxies in front of the real platforms send it: in HTML, and not in JSON. */
export function sendBadGateway(response: ServerResponse): void {
  response.writeHead(502, { "content-type": "text/html" });
  response.end("<html><head><title>502 Bad Gateway</title></head></html>");
}

/** What a server does for each command of `npm run practice`; the result is sent as JSON. */
export type ControlHandlers = Record<string, (input: Fields, response: ServerResponse) => unknown>;

/** Serves `/_practice/<name>`. What the handler throws goes to the command that called it. */
export async function handleControl(
  request: IncomingMessage,
  response: ServerResponse,
  handlers: ControlHandlers,
): Promise<void> {
  // A web page that is open in a browser can reach loopback as well. Browsers send at least one of
  // two headers that say where a request comes from, and our commands send neither.
  const { origin, "sec-fetch-site": site } = request.headers;
  if (origin ?? site) return sendJson(response, 403, { error: "not from a browser" });
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
  const [, handle] =
    Object.entries(handlers).find(([name]) => pathname === `/_practice/${name}`) ?? [];
  if (!handle) return sendJson(response, 404, { error: `there is no ${pathname}` });
  try {
    const input = { ...Object.fromEntries(searchParams), ...(await readFields(request)) };
    const result = await handle(input, response);
    if (!response.headersSent) sendJson(response, 200, result ?? {});
  } catch (error) {
    const words = error instanceof Error ? error.message : String(error);
    const coded = error instanceof CodedError && { code: error.code, values: error.values };
    sendJson(response, 400, { error: words, ...coded });
  }
}

/** An error that the tools explain in the person's language, by its code and values. */
export class CodedError extends Error {
  readonly code: string;
  readonly values: Fields;

  constructor(code: string, values: Fields = {}) {
    super(`${code} ${JSON.stringify(values)}`);
    this.code = code;
    this.values = values;
  }
}

/**
 * What is sent to a phone, to be shown there: first the last lines of the chat, then "ready", then
 * what happens.
 */
export type PhoneEvent =
  | { type: "typing" }
  | { type: "sent"; text: string }
  | { type: "past"; from: string; text: string }
  | { type: "ready" };

/** What a person types on the phone, the same for both platforms. */
export interface PhoneInput {
  person: string;
  group?: string;
  text: string;
  photos?: number;
  /** Whether it answers the bot's last message in this chat. */
  reply?: boolean;
  /** What was typed, if that was a command such as /photo. */
  line?: string;
}

/** How many lines of its chat a phone shows when it is switched on. */
const SHOWN_LINES = 20;

/**
 * The chats, and the phones that show them. Each phone keeps a connection open and gets one line of
 * JSON an event.
 */
export class Phones {
  private readonly open = new Map<ServerResponse, string>();
  /** The last lines of each chat, with who wrote them; without it, the bot did. */
  private readonly chats = new Map<string, { from?: string; text: string }[]>();

  /** `bot` is what the person calls the bot. */
  watch(response: ServerResponse, chat: string, bot: string): void {
    this.open.set(response, chat);
    response.once("close", () => this.open.delete(response));
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.flushHeaders();
    for (const line of this.chats.get(chat) ?? []) {
      send(response, { type: "past", from: line.from ?? bot, text: line.text });
    }
    send(response, { type: "ready" });
  }

  show(chat: string, event: PhoneEvent): void {
    if (event.type === "sent") this.keep(chat, event.text);
    for (const [response, shownChat] of this.open) {
      if (shownChat === chat) send(response, event);
    }
  }

  /** Keeps what somebody wrote. It stands on the writer's phone already. */
  keep(chat: string, text: string, from?: string): void {
    const lines = [...(this.chats.get(chat) ?? []), { from, text }];
    this.chats.set(chat, lines.slice(-SHOWN_LINES));
  }
}

function send(response: ServerResponse, event: PhoneEvent): void {
  response.write(`${JSON.stringify(event)}\n`);
}

/**
 * The phone's side of the stream: calls `show` with each event, for as long as the world runs.
 * Resolves when the last lines of the chat were shown.
 */
export async function watchPhone(
  url: string,
  show: (event: PhoneEvent) => void,
): Promise<IncomingMessage> {
  const [response] = (await once(get(url), "response")) as [IncomingMessage]; // the event has one argument
  const events = createInterface({ input: response.setEncoding("utf8") });
  // After an error comes a close, to which the caller listens.
  for (const source of [events, response]) source.on("error", () => {});
  await new Promise<void>((resolve) => {
    events.on("line", (line) => {
      const event: PhoneEvent = JSON.parse(line);
      if (event.type === "ready") resolve();
      else show(event);
    });
    response.once("close", resolve);
  });
  return response;
}
