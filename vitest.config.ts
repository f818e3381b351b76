import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/**/*.test.ts"],
    // Process cases start several Node processes; two workers fit the two cores of CI.
    maxWorkers: 2,
    // A safety net, not a measure: cases wait for events, and a busy machine may take its time.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
