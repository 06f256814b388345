// Asks models, and records their answers while they stream.

import { ApiError, type CompletionRequest, UnreachableError, complete, countTokens } from "./client";
import { chosenModels, lost, onReturn, watch } from "./connection";
import {
  type Answer,
  type Conversation,
  type Failure,
  type Token,
  type Turn,
  appendPart,
  messagesFor,
  newId,
  settled,
  textOf,
} from "./conversation";
import { settings } from "./settings";
import { announce, say } from "./notices";
import { change, changeAnswer, conversations, find } from "./store";
import type { Chunk, TokenEntry } from "./wire";

const SHOW_EVERY = 40; // milliseconds: smooth to the eye, and Markdown is rendered again each time
const ALTERNATIVES = 5; // to each token
const MOST_RESENT = 5; // automatically
const LEAST_ROOM = 4; // forgetting the oldest turns leaves 1 / LEAST_ROOM of the context for the answer

const running = new Map<string, AbortController>(); // by conversation, turn and column
let leaving = false; // a page that is left breaks its own streams: that is no fault of the server's
addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => (leaving = false), 2000); // should it stay after all
});
const keyOf = (...names: (string | number)[]): string => names.join(" ");
const fresh = (model: string): Answer => ({ model, status: "waiting", parts: [] });

/** Asks the model of every column; the question becomes the last turn. */
export function ask(id: string, text: string): void {
  const turn: Turn = { id: newId(), text, answers: chosenModels.value.map((model) => fresh(model.id)) };
  change(id, (one) => ({ ...one, updated: Date.now(), turns: [...one.turns, turn] }));
  turn.answers.forEach((_, column) => void answer(id, turn.id, column));
}

/** Asks the model now chosen for a column again; its answer to the last turn is replaced. */
export function askAgain(id: string, turnId: string, column: number): void {
  running.get(keyOf(id, turnId, column))?.abort();
  const model = chosenModels.value[column] ?? chosenModels.value[0];
  changeAnswer(id, turnId, column, (old) => fresh(model?.id ?? old.model));
  void answer(id, turnId, column);
}

/** Puts another question in the place of one; what came after it goes, and can be had back. */
export function edit(id: string, turnId: string, text: string): void {
  const before = find(id);
  const index = before?.turns.findIndex((turn) => turn.id === turnId) ?? -1;
  if (!before || index < 0) return;
  stop(id);
  const kept = before.turns.slice(0, index);
  change(id, (one) => ({ ...one, turns: kept, forgotten: Math.min(one.forgotten, index) }));
  ask(id, text);
  const gone = before.turns.length - index - 1;
  const what = gone ? `The message and ${gone} later ${gone > 1 ? "turns" : "turn"} were replaced.` : "The message was replaced.";
  say(what, () => {
    stop(id);
    change(id, () => settled(before));
  });
}

/** Stops the streams of a conversation; what has arrived is kept. */
export function stop(id: string): void {
  for (const [key, controller] of running) if (key.startsWith(`${id} `)) controller.abort();
}

/** Leaves out as many of the oldest turns as needed, and asks the last one again. */
export async function forgetOldest(id: string, turnId: string, column: number): Promise<void> {
  const conversation = find(id);
  if (!conversation) return;
  const last = conversation.turns.length - 1;
  let forgotten = Math.min(conversation.forgotten + 1, last);
  const model = (chosenModels.value[column] ?? chosenModels.value[0])?.id ?? "";
  try {
    for (; forgotten < last; forgotten++) {
      const messages = messagesFor({ ...conversation, forgotten }, last, column);
      const { tokens, context } = await countTokens(model, messages, AbortSignal.timeout(10_000));
      if (tokens <= context * (1 - 1 / LEAST_ROOM)) break;
    }
  } catch {
    // a server that does not count: one turn at a time
  }
  change(id, (one) => ({ ...one, forgotten }));
  askAgain(id, turnId, column);
}

function requestFor(conversation: Conversation, turnId: string, column: number): CompletionRequest {
  const index = conversation.turns.findIndex((turn) => turn.id === turnId);
  const { temperature, topK, topP, maxTokens, seed, showTokens } = settings.value;
  return {
    model: conversation.turns[index]?.answers[column]?.model ?? "",
    messages: messagesFor(conversation, index, column),
    temperature: temperature ?? undefined, // JSON leaves out what is undefined
    top_k: topK ?? undefined,
    top_p: topP ?? undefined,
    max_tokens: maxTokens ?? undefined,
    seed: seed ?? undefined,
    ...(showTokens ? { logprobs: true, top_logprobs: ALTERNATIVES } : {}),
  };
}

async function answer(id: string, turnId: string, column: number): Promise<void> {
  const conversation = find(id);
  if (!conversation) return;
  const key = keyOf(id, turnId, column);
  const controller = new AbortController();
  running.set(key, controller);
  let state = fresh(requestFor(conversation, turnId, column).model);
  let timer = 0;
  const show = (): void => {
    clearTimeout(timer);
    timer = 0;
    // one that was asked again meanwhile writes for itself
    if (running.get(key) === controller) changeAnswer(id, turnId, column, () => state);
  };
  try {
    const began = performance.now();
    for await (const chunk of complete(requestFor(conversation, turnId, column), controller.signal)) {
      state = grown(state, chunk, began);
      timer ||= setTimeout(show, SHOW_EVERY);
    }
    if (!state.finish) throw new UnreachableError("The connection to the server broke.");
    state = { ...state, status: "done" };
    announce(`${state.model} answered: ${textOf(state)}`);
  } catch (error) {
    if (leaving && error instanceof UnreachableError) return;
    state = controller.signal.aborted
      ? { ...state, status: "stopped" }
      : { ...state, status: "failed", failure: failureOf(error, state) };
    announce(state.failure?.message ?? "Stopped.");
    if (error instanceof UnreachableError) lost();
    if (state.failure?.kind === "compiling") void watch();
  }
  show();
  if (running.get(key) === controller) running.delete(key);
}

/** The answer with one more chunk in it; `began` is when it was asked for. */
function grown(state: Answer, chunk: Chunk, began: number): Answer {
  const next: Answer = { ...state, stats: { ...state.stats } };
  const choice = chunk.choices[0];
  const piece = choice?.delta.part ?? (choice?.delta.content && { type: "text" as const, text: choice.delta.content });
  const entries = choice?.logprobs?.content ?? [];
  if (piece || entries.length) {
    next.status = "streaming";
    next.stats!.firstToken ??= (performance.now() - began) / 1000;
  }
  if (piece) next.parts = appendPart(state.parts, piece);
  if (entries.length) next.tokens = [...(state.tokens ?? []), ...entries.map(tokenOf)];
  if (choice?.finish_reason) next.finish = choice.finish_reason;
  if (chunk.usage) {
    const { prompt_tokens, completion_tokens, total_tokens, jaxchat } = chunk.usage;
    const full = next.finish === "length" && total_tokens >= (jaxchat?.context ?? Infinity) - 1;
    const rate = jaxchat?.tokens_per_second;
    Object.assign(next.stats!, { promptTokens: prompt_tokens, tokens: completion_tokens, rate, full });
  }
  return next;
}

const rounded = (logprob: number): number => Math.round(logprob * 1e4) / 1e4; // it is stored as text

/** A token's text; of one that is no whole character, its bytes. */
function named({ token, bytes }: TokenEntry): string {
  if (!bytes?.length || !token.includes("\uFFFD")) return token;
  return `<0x${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join("")}>`;
}

const tokenOf = (entry: TokenEntry): Token => ({
  text: named(entry),
  logprob: rounded(entry.logprob),
  sampled: entry.jaxchat?.sampled ?? true,
  likeliest: (entry.top_logprobs ?? []).map((other) => [named(other), rounded(other.logprob)]),
});

function failureOf(error: unknown, state: Answer): Failure {
  const { message } = error as Error;
  if (error instanceof UnreachableError) return { kind: state.parts.length ? "broken" : "unreachable", message };
  if (!(error instanceof ApiError)) return { kind: "refused", message: `The answer cannot be read: ${message}` };
  if (error.body.code === "context_length_exceeded") return { kind: "full", message };
  if (error.body.code === "not_ready")
    return { kind: "compiling", message: "The server compiles its programs. The message will be sent when it answers." };
  if (error.status === 429) return { kind: "busy", message, retryAt: Date.now() + 1000 * error.retryAfter };
  return { kind: "refused", message };
}

// What could not be asked is asked when the server is back, a few times.
const resent = new Map<string, number>();
onReturn(() => {
  for (const { id, turns } of conversations.value) {
    const last = turns.at(-1);
    last?.answers.forEach(({ failure }, column) => {
      const key = keyOf(id, last.id, column);
      const times = resent.get(key) ?? 0;
      if ((failure?.kind !== "unreachable" && failure?.kind !== "compiling") || times === MOST_RESENT) return;
      resent.set(key, times + 1);
      askAgain(id, last.id, column);
    });
  }
});

// A conversation that was removed is not answered any more.
conversations.subscribe((all) => {
  for (const [key, controller] of running)
    if (!all.some((one) => key.startsWith(`${one.id} `))) controller.abort();
});
