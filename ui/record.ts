// What the build says of itself: from which sources it was made, and whose code is in it.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";

// tests/serve/test_page_build.py has the same list
const SOURCES = ["index.html", "package-lock.json", "package.json", "record.ts", "tsconfig.json", "vite.config.ts"];

const sha256 = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("hex");

/** One hash of all sources: of the lines `hash path`, sorted by path. */
function hashOfSources(root: string): string {
  const inside = readdirSync(join(root, "src"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length + 1));
  const paths = [...SOURCES, ...inside].sort((a, b) => (a < b ? -1 : 1));
  return sha256(paths.map((path) => `${sha256(readFileSync(join(root, path)))} ${path}\n`).join(""));
}

/** The licences of the packages that the modules come from. */
function licences(modules: string[]): string {
  const folders = new Set(modules.map((id) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id)?.[0]));
  const texts = [...folders].filter((folder) => folder !== undefined).map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    const text = file ? readFileSync(join(folder, file), "utf8").trim() : `License: ${license}`;
    return `${name} ${version} (${license})\n\n${text}\n`;
  });
  return texts.sort().join(`\n${"-".repeat(80)}\n\n`);
}

export function record(): Plugin {
  let root = "";
  return {
    name: "record",
    apply: "build",
    enforce: "post",
    configResolved: (config) => void (root = config.root),
    generateBundle(_, bundle) {
      const modules = Object.values(bundle).flatMap((file) => (file.type === "chunk" ? file.moduleIds : []));
      this.emitFile({ type: "asset", fileName: "THIRD_PARTY.txt", source: licences(modules) });
    },
    writeBundle({ dir }) {
      const out = dir as string;
      const names = readdirSync(out, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name !== "BUILD.json")
        .map((entry) => join(entry.parentPath, entry.name).slice(out.length + 1))
        .sort();
      const files = Object.fromEntries(names.map((name) => [name, sha256(readFileSync(join(out, name)))]));
      const text = JSON.stringify({ sources: hashOfSources(root), files }, null, 2);
      this.fs.writeFile(join(out, "BUILD.json"), `${text}\n`);
    },
  };
}
