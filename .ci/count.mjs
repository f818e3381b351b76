// Reads Vitest's JSON results and the names of the steps that failed; prints the last line of a run.
import { existsSync, readFileSync } from "node:fs";

const [file = "", ...broken] = process.argv.slice(2);
const results = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : undefined;
const passed = results?.numPassedTests ?? 0;
let failed = results?.numFailedTests ?? 0;

// A file that doesn't load has no tests to count, and is a failure all the same.
for (const suite of results?.testResults ?? []) {
  const hasFailedTest = suite.assertionResults.some((test) => test.status === "failed");
  if (suite.status === "failed" && !hasFailedTest) {
    console.log(`failed: ${suite.name}`);
    failed++;
  }
}

// A failed test run is in the count already, unless it broke before it could count anything.
const counted = failed;
for (const step of broken) {
  console.log(`failed: ${step}`);
  if (step !== "npm test" || counted === 0) failed++;
}

console.log(`${passed} passed, ${failed} failed`);
process.exitCode = broken.length > 0 || failed > 0 || passed === 0 ? 1 : 0;
