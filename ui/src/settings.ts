// What the reader chose; the same in all conversations, kept in the browser.

import { effect, signal } from "@preact/signals";
import { readValue, writeValue } from "./storage";

export interface Settings {
  models: string[]; // ids; none is the server's default, two stand side by side
  // how answers are sampled; null leaves it to the server
  temperature: number | null;
  topK: number | null; // 0 is all
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
  showTokens: boolean;
  theme: "system" | "light" | "dark";
}

export const DEFAULTS: Settings = {
  models: [],
  temperature: null,
  topK: null,
  topP: null,
  maxTokens: null,
  seed: null,
  showTokens: false,
  theme: "system",
};

export const settings = signal<Settings>({ ...DEFAULTS, ...readValue<Partial<Settings>>("settings", {}) });

export const set = (changed: Partial<Settings>): void => {
  settings.value = { ...settings.value, ...changed };
};

effect(() => writeValue("settings", settings.value));
effect(() => {
  document.documentElement.dataset.theme = settings.value.theme;
});
