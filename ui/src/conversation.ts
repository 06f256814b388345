// A conversation: turns of one question and an answer of each model that was asked.

import type { Message, Part } from "./wire";

/** A token as it came: its text, log probability, whether it was sampled, and the likeliest. */
export interface Token {
  text: string;
  logprob: number;
  sampled: boolean; // else forced: what a tool gave back
  likeliest: [text: string, logprob: number][];
}

export interface Stats {
  promptTokens?: number;
  tokens?: number;
  rate?: number; // tokens per second
  firstToken?: number; // seconds from the question to the first token
  full?: boolean; // the context ended before the answer did
}

export interface Failure {
  kind: "unreachable" | "compiling" | "broken" | "busy" | "full" | "refused";
  message: string;
  retryAt?: number; // milliseconds since the epoch
}

export interface Answer {
  model: string;
  status: "waiting" | "streaming" | "done" | "stopped" | "failed";
  parts: Part[];
  tokens?: Token[];
  finish?: string;
  stats?: Stats;
  failure?: Failure;
}

export interface Turn {
  id: string;
  text: string;
  answers: Answer[]; // one per column: two when models stand side by side
}

export interface Conversation {
  id: string;
  title: string; // "" until it is named
  created: number; // milliseconds since the epoch
  updated: number;
  system: string;
  turns: Turn[];
  forgotten: number; // the number of oldest turns that are no longer sent
}

export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(9)); // randomUUID is missing over plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(system = ""): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, turns: [], forgotten: 0 };
}

export function titleOf(conversation: Conversation): string {
  const first = conversation.turns[0]?.text.trim().split("\n")[0] ?? "";
  return conversation.title || (first.length > 60 ? `${first.slice(0, 60).trimEnd()}…` : first) || "New chat";
}

export const isRunning = (answer: Answer): boolean =>
  answer.status === "waiting" || answer.status === "streaming";

export const textOf = (answer: Answer): string =>
  answer.parts
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");

/** Adds a streamed piece to the parts; a new part begins where the type changes. */
export function appendPart(parts: Part[], piece: Part): Part[] {
  const last = parts.at(-1);
  if (last?.type !== piece.type) return [...parts, { ...piece }];
  return [...parts.slice(0, -1), { type: last.type, text: last.text + piece.text }];
}

/** The messages that ask column `column` for the answer to turn `index`; unanswered turns are left out. */
export function messagesFor(conversation: Conversation, index: number, column: number): Message[] {
  const messages: Message[] = [];
  if (conversation.system.trim()) messages.push({ role: "system", content: conversation.system });
  conversation.turns.slice(conversation.forgotten, index).forEach((turn) => {
    const answer = turn.answers[column] ?? turn.answers[0];
    const parts = answer?.parts.filter((part) => part.type !== "text" || part.text);
    if (!parts?.length) return;
    messages.push({ role: "user", content: turn.text }, { role: "assistant", content: parts });
  });
  const asked = conversation.turns[index];
  if (asked) messages.push({ role: "user", content: asked.text });
  return messages;
}

/** A conversation whose streams have ended, with the page or otherwise: what came is kept. */
export function settled(conversation: Conversation): Conversation {
  const failure: Failure = { kind: "broken", message: "Interrupted before the answer was complete." };
  const settle = (answer: Answer): Answer =>
    isRunning(answer) ? { ...answer, status: "failed", failure } : answer;
  return {
    ...conversation,
    turns: conversation.turns.map((turn) => ({ ...turn, answers: turn.answers.map(settle) })),
  };
}
