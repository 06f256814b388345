// What the reader is writing, and how much of the context it would take with all that was said.

import { effect, signal } from "@preact/signals";
import { UnreachableError, countTokens } from "./client";
import { chosenModels, lost, reachable } from "./connection";
import { messagesFor } from "./conversation";
import { readValue, writeValue } from "./storage";
import { busy, current } from "./store";

const PAUSE = 400; // milliseconds without a key, before tokens are counted

export const draft = signal(readValue("draft", ""));
effect(() => writeValue("draft", draft.value));

/** Tokens used, of those there are; of the fuller model where there are two. Null while unknown. */
export const room = signal<{ tokens: number; context: number } | null>(null);

effect(() => {
  const [conversation, asked, text] = [current.value, chosenModels.value, draft.value.trim()];
  if (busy.value || !reachable.value || !asked.length) return;
  const controller = new AbortController();
  const count = async (id: string, column: number): Promise<NonNullable<typeof room.value>> => {
    const messages = messagesFor(conversation, conversation.turns.length, column);
    if (!messages.length && !text) return { tokens: 0, context: asked[column]?.jaxchat?.context ?? 0 };
    return countTokens(id, [...messages, { role: "user", content: text }], controller.signal);
  };
  const timer = setTimeout(async () => {
    try {
      const counted = await Promise.all(asked.map(({ id }, column) => count(id, column)));
      const fullest = counted.toSorted((a, b) => b.tokens / b.context - a.tokens / a.context)[0];
      room.value = fullest?.context ? fullest : null;
    } catch (error) {
      if (controller.signal.aborted) return;
      room.value = null; // a server that does not count
      if (error instanceof UnreachableError) lost();
    }
  }, PAUSE);
  return () => {
    clearTimeout(timer);
    controller.abort();
  };
});
