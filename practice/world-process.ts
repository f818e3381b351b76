/**
 * The background process of a practice world. Its argument is the folder of the checkout. It ends
 * at once if another world of this checkout is running already.
 */

import { ping } from "./world-client.ts";
import { claimWorldFile, readWorldFile } from "./world-file.ts";
import { startWorld } from "./world-server.ts";

const [root = ""] = process.argv.slice(2);
const { number, file } = readWorldFile(root);
const other = file && (await ping(file));
if (!other) {
  const world = await startWorld(root, { onEnd: () => process.exit() });
  const mine = { id: world.id, pid: process.pid, url: world.url };
  if (!claimWorldFile(root, number, mine)) process.exit();
}
