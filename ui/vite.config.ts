import { defineConfig } from "vite";
import { record } from "./record.ts";

export default defineConfig({
  base: "./",
  plugins: [record()],
  build: {
    outDir: "../jaxchat/serve/page",
    emptyOutDir: true,
    target: ["chrome123", "firefox121", "safari17.5"],
    assetsInlineLimit: 0, // the server's policy allows no inline script, style or data
    modulePreload: { polyfill: false },
  },
});
