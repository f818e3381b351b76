/** A proxy on this machine, and what it was asked for. */

import { createServer } from "node:http";
import { connect } from "node:net";
import { closeServer, listen } from "../practice/web.ts";

export async function startProxy() {
  const asked: { target: string; authorization: string | undefined }[] = [];
  const server = createServer();
  server.on("connect", (request, socket) => {
    const target = request.url ?? "";
    asked.push({ target, authorization: request.headers["proxy-authorization"] });
    const [host, port] = target.split(":");
    const beyond = connect(Number(port), host, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      socket.pipe(beyond).pipe(socket);
    });
    for (const one of [socket, beyond]) one.on("error", () => {});
  });
  const { host } = new URL(await listen(server));
  const close = () => {
    server.closeAllConnections();
    return closeServer(server);
  };
  return { host, asked, close };
}
