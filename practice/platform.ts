/** What both fake platforms offer to tests and commands: looking, waiting and fault injection. */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type Failure, FaultInjector } from "./fault-injection.ts";
import {
  CodedError,
  ConditionVariable,
  closeServer,
  type Fields,
  HeldRequests,
  handleControl,
  listen,
  Outbox,
  type PhoneInput,
  Phones,
  sendBadGateway,
} from "./web.ts";

interface Item {
  chat: string | number;
  text: string;
}

export abstract class FakePlatform<Sent extends Item> {
  url = "";
  protected readonly now: () => number;
  protected readonly changes = new ConditionVariable();
  protected readonly outbox = new Outbox<Sent>(this.changes);
  protected readonly holds = new HeldRequests();
  protected readonly phones = new Phones();
  private readonly failures: FaultInjector;
  readonly server: Server;

  constructor(kinds: string[], now: () => number = Date.now) {
    this.now = now;
    this.failures = new FaultInjector(kinds, now);
    this.server = createServer((request, response) => {
      const isControl = request.url?.startsWith("/_practice/");
      void (isControl
        ? handleControl(request, response, this.controls)
        : this.serve(request, response));
    });
    this.server.requestTimeout = 0; // a held request may outlast Node's five minutes
  }

  async listen(port?: number): Promise<void> {
    this.url = await listen(this.server, port);
  }

  close(): Promise<void> {
    return closeServer(this.server);
  }

  /** The id of a person's direct chat or of a group, as a section's settings want it. */
  abstract chatId(name: string | number): Sent["chat"];

  /** The id of a group, which is created if there is none of this name. */
  protected abstract groupId(name: string): Sent["chat"];

  protected abstract serve(request: IncomingMessage, response: ServerResponse): Promise<void>;

  /** Handles what was typed on a phone. Throws what the person should be told. */
  protected abstract receiveFromPhone(input: PhoneInput, answered?: Sent): unknown;

  /** What the bot has sent, in order. */
  get sent(): Sent[] {
    return this.outbox.all;
  }

  /** The texts that a chat has received. */
  textsTo(chat: string | number): string[] {
    const id = this.chatId(chat);
    return this.sent.filter((one) => one.chat === id).map((one) => one.text);
  }

  /** The next message to a chat that no call of this method has given yet; waits for it. */
  nextSent(chat?: string | number): Promise<Sent> {
    return this.outbox.next(chat === undefined ? undefined : this.chatId(chat));
  }

  /** Resolves when the condition is true. It is checked after every request and every answer. */
  until(condition: () => boolean): Promise<true> {
    return this.changes.until(() => condition() || undefined);
  }

  /** The next requests fail, or those that the failure names. */
  fail(failure: Failure): void {
    this.failures.inject(failure);
  }

  /** Injects a failure; without a kind, ends all of them. */
  setFailure(failure: Partial<Failure>): void {
    this.failures.set(failure);
  }

  /** Ends all failures. */
  clearFailures(): void {
    this.failures.clear();
  }

  /** Lets the requests go on that hang. */
  release(): void {
    this.holds.release();
  }

  /** The failure that was injected for a request; `chats` are the id and the name of its chat. */
  protected takeFailure(
    method: string,
    chats: (string | number | undefined)[],
  ): Failure | undefined {
    return this.failures.take(
      ({ method: wanted = "sendMessage", chat }) =>
        wanted.toLowerCase() === method.toLowerCase() &&
        (chat === undefined || chats.some((one) => String(one) === String(chat))),
    );
  }

  /** Breaks or holds the connection. Gives false if the request goes on afterwards. */
  protected async breakConnection(
    kind: string,
    call: { status: number },
    response: ServerResponse,
  ): Promise<boolean> {
    if (kind === "hang") return !(await this.holds.wait(response));
    if (kind === "502") {
      call.status = 502;
      sendBadGateway(response);
    } else {
      response.destroy();
    }
    return true;
  }

  private chatOf({ person, group }: Pick<PhoneInput, "person" | "group">): Sent["chat"] {
    return group ? this.groupId(group) : this.chatId(person);
  }

  private readonly controls = {
    /** The stream that `npm run phone` reads. */
    stream: (fields: Fields, response: ServerResponse) => {
      const input = fields as unknown as PhoneInput; // phone.ts sends its fields
      this.phones.watch(response, String(this.chatOf(input)), String(fields.bot ?? "bot"));
    },
    say: async (fields: Fields) => {
      const input = fields as unknown as PhoneInput; // phone.ts sends them
      const chat = this.chatOf(input);
      const last = this.sent.findLast((one) => one.chat === chat);
      if (input.reply && !last) throw new CodedError("nothingSent");
      this.phones.keep(String(chat), input.line ?? input.text, input.person);
      await this.receiveFromPhone(input, input.reply ? last : undefined);
    },
    fail: (failure: Fields) => this.setFailure(failure),
  };
}
