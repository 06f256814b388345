// As worker.py: `node worker.mjs FILE SETTINGS RESULTS`, in the folder of the client's packages.
import { appendFileSync, copyFileSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { pathToFileURL } from "node:url";

const [file, settings, results] = process.argv.slice(2);
const given = JSON.parse(readFileSync(settings, "utf8"));
const write = (line) => appendFileSync(results, JSON.stringify(line) + "\n");
// Packages are looked for beside the file that imports them.
const copy = join(given.environment, basename(file));
copyFileSync(file, copy);
try {
  const checks = await import(pathToFileURL(copy).href);
  for (const [check, run] of Object.entries(checks.default)) {
    try {
      const [seen, expected] = await run(given);
      write({ check, seen: seen ?? null, expected: expected ?? null });
    } catch (error) {
      write({ check, error: `${error?.name}: ${error?.message}`.slice(0, 1500) });
    }
  }
  write({ check: "end" });
} catch (error) {
  write({ check: "import", error: String(error) });
}
process.exit(0);
