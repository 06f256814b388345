// What the reader chose; the same in all conversations, kept in the browser.

import { effect, signal } from "@preact/signals";
import { readValue, writeValue } from "./storage";

export interface Settings {
  models: string[]; // ids; none is the server's default, two stand side by side
  temperature: number;
  topK: number; // 0 is all
  topP: number;
  maxTokens: number | null; // null is as many as fit
  seed: number | null; // null is another one each time
  showTokens: boolean;
  theme: "system" | "light" | "dark";
}

export const DEFAULTS: Settings = {
  models: [],
  temperature: 0.6,
  topK: 50,
  topP: 1,
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
