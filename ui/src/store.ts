// The conversations, and which one is open.

import { computed, signal } from "@preact/signals";
import { type Answer, type Conversation, isRunning, newConversation, newId } from "./conversation";
import * as storage from "./storage";

const SAVE_EVERY = 500; // milliseconds, while an answer streams

export const conversations = signal<Conversation[]>(storage.readAll());
const blank = signal<Conversation>(newConversation()); // begun, nothing asked yet
const openId = signal<string>(location.hash.slice(1) || blank.value.id);
export const storageFull = signal(false);

export const current = computed<Conversation>(
  () => conversations.value.find((one) => one.id === openId.value) ?? blank.value,
);
export const newestFirst = computed(() => conversations.value.toSorted((a, b) => b.updated - a.updated));
export const busy = computed(() => current.value.turns.some((turn) => turn.answers.some(isRunning)));

export function open(id: string): void {
  openId.value = id;
  history.replaceState(null, "", find(id) ? `#${id}` : location.pathname);
}

export function begin(): void {
  blank.value = newConversation(current.value.system);
  open(blank.value.id);
}

export const find = (id: string): Conversation | undefined =>
  id === blank.value.id && !conversations.value.some((one) => one.id === id)
    ? blank.value
    : conversations.value.find((one) => one.id === id);

/** Puts a conversation in the place of the one with its id, or adds it; kept once it has a turn. */
export function put(changed: Conversation): void {
  if (!changed.turns.length && changed.id === blank.value.id) {
    blank.value = changed;
    return;
  }
  const others = conversations.value.filter((one) => one.id !== changed.id);
  conversations.value = [...others, changed];
  if (changed.id === openId.value) open(changed.id);
  save(changed.id);
}

export function change(id: string, how: (conversation: Conversation) => Conversation): void {
  const conversation = find(id);
  if (conversation) put(how(conversation));
}

/** Changes one answer, if it is still there. */
export function changeAnswer(id: string, turnId: string, column: number, how: (answer: Answer) => Answer): void {
  change(id, (conversation) => ({
    ...conversation,
    turns: conversation.turns.map((turn) =>
      turn.id === turnId
        ? { ...turn, answers: turn.answers.map((answer, at) => (at === column ? how(answer) : answer)) }
        : turn,
    ),
  }));
}

export function removeConversation(id: string): void {
  conversations.value = conversations.value.filter((one) => one.id !== id);
  unsaved.delete(id);
  storage.remove(id);
  storageFull.value = false;
  if (openId.value === id) begin();
}

/** Takes in conversations from a file, under new ids; returns how many they were. */
export function importConversations(text: string): number {
  const parsed: unknown = JSON.parse(text);
  const found = (Array.isArray(parsed) ? parsed : [parsed]).filter(storage.isConversation);
  found.forEach((one) => put({ ...one, id: newId() }));
  return found.length;
}

const unsaved = new Set<string>();

function save(id: string): void {
  if (!unsaved.size) setTimeout(flush, SAVE_EVERY);
  unsaved.add(id);
}

function flush(): void {
  for (const id of unsaved) {
    const conversation = conversations.value.find((one) => one.id === id);
    if (conversation) storageFull.value = !storage.write(conversation);
  }
  unsaved.clear();
}

addEventListener("pagehide", flush);
document.addEventListener("visibilitychange", flush);
storage.onForeignChange((id, changed) => {
  const mine = conversations.value.find((one) => one.id === id);
  if (mine?.turns.some((turn) => turn.answers.some(isRunning))) return; // this tab writes it
  const others = conversations.value.filter((one) => one.id !== id);
  conversations.value = changed ? [...others, changed] : others;
});
