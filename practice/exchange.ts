/** One request to the model over HTTP, its answer, and its entry in the log. */

import type { IncomingMessage, ServerResponse } from "node:http";
import type { PracticeRequest, StreamEvent, Usage } from "./reply.ts";

export interface LoggedRequest {
  at: number;
  key: string;
  model: string;
  request: PracticeRequest;
  /** The validator's sentence, if it refused the request. */
  problem?: string;
  /** Any other error that was answered or sent in the stream: "type: message". */
  error?: string;
  status: number;
  stopReason?: string;
  /** What the answer says, or began to say, about its tokens. */
  usage?: Usage;
  /** Whether the client hung up before the end of the answer. */
  aborted?: boolean;
}

/** One request and its answer. What is sent is noted in the log entry as well. */
export class Exchange {
  readonly entry: LoggedRequest;
  readonly id: string;
  readonly number: number;
  readonly version: string;
  readonly parsed: boolean;
  /** Resolves when the client is gone, or everything was sent. */
  readonly hungUp: Promise<void>;
  ended = false;
  private readonly response: ServerResponse;

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    body: string,
    number: number,
    at: number,
  ) {
    const { headers } = request;
    const json = parseJson(body);
    this.response = response;
    this.number = number;
    this.id = `req_practice${String(number).padStart(6, "0")}`;
    this.version = String(headers["anthropic-version"] ?? "");
    this.parsed = json !== undefined;
    const read = json as PracticeRequest | undefined; // the validator checks it later
    this.entry = {
      at,
      key: String(headers["x-api-key"] ?? headers.authorization ?? "").replace(/^Bearer /i, ""),
      model: String(read?.model ?? ""),
      request: read ?? ({} as PracticeRequest), // the body was no JSON, so there is nothing to show
      status: 0,
    };
    this.hungUp = new Promise((resolve) => {
      response.once("close", () => {
        if (!this.ended) this.entry.aborted = true;
        resolve();
      });
    });
  }

  send(status: number, body: unknown): void {
    this.ended = true;
    this.entry.status = status;
    sendJson(this.response, status, body, { "request-id": this.id });
  }

  refuse(status: number, type: string, message: string, headers?: Record<string, string>): void {
    this.ended = true;
    this.entry.status = status;
    if (!this.entry.problem) this.entry.error = `${type}: ${message}`;
    sendError(this.response, status, type, message, headers ?? {}, this.id);
  }

  /** Answers 200 with an empty body. */
  sendNothing(): void {
    this.beginStream();
    this.entry.error = "an empty body";
    this.end();
  }

  beginStream(): void {
    this.entry.status = 200;
    const headers = { "content-type": "text/event-stream", "cache-control": "no-cache" };
    this.response.writeHead(200, { ...headers, "request-id": this.id });
  }

  /**
   * Resolves when the event was written, because a connection that is cut earlier would lose it.
   */
  event(event: StreamEvent): Promise<void> {
    return new Promise((resolve) => {
      const text = `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
      this.response.write(text, () => resolve());
    });
  }

  end(): void {
    this.ended = true;
    this.response.end();
  }

  /** Breaks the connection from the server's side. */
  drop(): void {
    this.ended = true;
    this.entry.error = "connection dropped";
    this.response.destroy();
  }
}

/** Answers with a body in JSON. */
export function sendJson(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(body));
}

/** Answers with an error as the Messages API writes it. */
export function sendError(
  response: ServerResponse,
  status: number,
  type: string,
  message: string,
  headers: Record<string, string>,
  id: string,
): void {
  const body = { type: "error", error: { type, message }, request_id: id };
  sendJson(response, status, body, { "request-id": id, ...headers });
}

/** The body of a request as UTF-8. */
export async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString("utf8");
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
