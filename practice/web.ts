/**
 * What the fake platforms have in common: a server on loopback, something to wait for instead of
 * sleeping, failures that can be ordered, and the stream that `npm run phone` reads.
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
export class Changes {
  private readonly checks = new Set<() => void>();

  announce(): void {
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
  private readonly changes: Changes;

  constructor(changes: Changes) {
    this.changes = changes;
  }

  add(item: Item): void {
    this.all.push(item);
    this.changes.announce();
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
export class Holds {
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

/** An order for the next requests to fail. */
export interface Failure {
  /** 429, 403, 400 and so on as the platform says it; or drop, refuse, hang. */
  kind: string;
  /** Only for this method; without it, for those that send a message. */
  method?: string;
  /** Only for this chat: its name or its id. */
  chat?: string | number;
  times?: number;
  /** Seconds, for 429. */
  retryAfter?: number;
}

export class Failures {
  private readonly orders: (Failure & { left: number })[] = [];

  order(failure: Failure): void {
    this.orders.push({ ...failure, left: failure.times ?? 1 });
  }

  /** The failure of this request, which is used up by it. */
  take(method: string, chats: (string | number | undefined)[]): Failure | undefined {
    const found = this.orders.find(
      (order) =>
        (order.method ?? "sendMessage").toLowerCase() === method.toLowerCase() &&
        (order.chat === undefined || chats.some((chat) => String(chat) === String(order.chat))),
    );
    if (!found) return undefined;
    found.left -= 1;
    if (found.left <= 0) this.orders.splice(this.orders.indexOf(found), 1);
    return found;
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

  /** `GET /_practice/stream` and `POST /_practice/say`; `say` gives what went wrong, if anything. */
  async serve(
    request: IncomingMessage,
    response: ServerResponse,
    chatOf: (person: string, group?: string) => string,
    say: (input: PhoneInput) => Promise<string | undefined>,
  ): Promise<void> {
    // A page in a browser can reach loopback too; it says where it comes from, a command does not.
    if (request.headers.origin) return sendJson(response, 403, { error: "not from a browser" });
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    if (pathname === "/_practice/stream") {
      const group = searchParams.get("group") ?? undefined;
      this.open.set(response, chatOf(searchParams.get("person") ?? "", group));
      response.once("close", () => this.open.delete(response));
      response.writeHead(200, { "content-type": "application/x-ndjson" });
      response.flushHeaders();
    } else if (pathname === "/_practice/say") {
      const problem = await say((await readFields(request)) as unknown as PhoneInput); // our phone's
      sendJson(response, 200, problem ? { error: problem } : {});
    } else {
      sendJson(response, 404, { error: `there is no ${pathname}` });
    }
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
