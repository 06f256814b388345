// Conversations in the browser's localStorage: written at once, so that closing the page loses nothing.

import { type Conversation, settled } from "./conversation";

/** A storage of the browser, or null where the reader's settings forbid it. */
function kept(name: "localStorage" | "sessionStorage"): Storage | null {
  try {
    return globalThis[name];
  } catch {
    return null;
  }
}
const local = kept("localStorage");
export const session = kept("sessionStorage");

const PREFIX = "jaxchat.conversation.";

export function readAll(): Conversation[] {
  return Object.keys(local ?? {})
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => readOne(key))
    .filter((conversation) => conversation !== null);
}

function readOne(key: string): Conversation | null {
  try {
    const found = JSON.parse(local?.getItem(key) ?? "null") as Conversation;
    return isConversation(found) ? settled(found) : null;
  } catch {
    return null; // not ours, or broken: left where it is
  }
}

/** Whether a value that was read has the shape of a conversation. */
export function isConversation(value: unknown): value is Conversation {
  const { id, title, system, turns, updated, forgotten } = (value ?? {}) as Conversation;
  return (
    [id, title, system].every((text) => typeof text === "string") &&
    Number.isFinite(updated) &&
    Number.isInteger(forgotten) &&
    Array.isArray(turns) &&
    turns.every(
      (turn) =>
        typeof turn?.id === "string" &&
        typeof turn.text === "string" &&
        Array.isArray(turn.answers) &&
        turn.answers.every(
          (answer) =>
            typeof answer?.model === "string" &&
            Array.isArray(answer.parts) &&
            answer.parts.every((part) => typeof part?.type === "string" && typeof part.text === "string"),
        ),
    )
  );
}

/** Writes a conversation; false when the storage is full, even without its tokens' probabilities. */
export function write(conversation: Conversation): boolean {
  return put(conversation) || put(withoutTokens(conversation));
}

function put(conversation: Conversation): boolean {
  try {
    local?.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return local !== null;
  } catch {
    return false; // the quota
  }
}

const withoutTokens = (conversation: Conversation): Conversation => ({
  ...conversation,
  turns: conversation.turns.map((turn) => ({
    ...turn,
    answers: turn.answers.map(({ tokens: _, ...answer }) => answer),
  })),
});

export const remove = (id: string): void => local?.removeItem(PREFIX + id);

/** Calls back with the id of a conversation that another tab wrote (the conversation) or removed (null). */
export function onForeignChange(changed: (id: string, conversation: Conversation | null) => void): void {
  addEventListener("storage", ({ key }) => {
    if (key?.startsWith(PREFIX)) changed(key.slice(PREFIX.length), readOne(key));
  });
}

/** A small value under a name, with a default; what cannot be kept is lost with the page. */
export function readValue<T>(name: string, fallback: T): T {
  try {
    return (JSON.parse(local?.getItem(`jaxchat.${name}`) ?? "null") as T) ?? fallback;
  } catch {
    return fallback;
  }
}

export function writeValue(name: string, value: unknown): void {
  try {
    local?.setItem(`jaxchat.${name}`, JSON.stringify(value));
  } catch {
    // full: the conversations say so
  }
}
