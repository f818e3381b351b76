/** Whether a process is alive. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0); // signal 0 is not delivered; it only tests the process
    return true;
  } catch (error) {
    // EPERM means that the process lives, but belongs to another user.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}
