// What is said aside: to screen readers, and in a line that offers to undo.

import { signal } from "@preact/signals";

const SECONDS = 8; // that an offer stands

export const announcement = signal("");
export const offer = signal<{ text: string; undo?: () => void } | null>(null);
let timer = 0;

export const announce = (text: string): void => void (announcement.value = text.slice(0, 1000));

export function say(text: string, undo?: () => void): void {
  clearTimeout(timer);
  offer.value = { text, undo };
  timer = setTimeout(() => (offer.value = null), 1000 * SECONDS);
}

export function takeOffer(): void {
  offer.value?.undo?.();
  offer.value = null;
}
