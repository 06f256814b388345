// Requests to the server that this page came from.

import { session } from "./storage";
import { type Chunk, type ErrorBody, type Message, type Model, events } from "./wire";

/** The server answered, and refused. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly body: ErrorBody,
    readonly retryAfter = 0, // seconds
  ) {
    super(body.message);
  }
}

/** Nobody answered. */
export class UnreachableError extends Error {}

export interface CompletionRequest {
  model: string;
  messages: Message[];
  temperature?: number;
  top_k?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
  logprobs?: boolean;
  top_logprobs?: number;
}

/** Asks the reader for the key; null when they would not say. Set by the page. */
let askForKey: (refused: boolean) => Promise<string | null> = async () => null;
export const onUnauthorized = (ask: typeof askForKey): void => void (askForKey = ask);

const KEY = "jaxchat.key"; // in the session: forgotten with the tab
let keyHere: string | null = null; // where there is no storage

async function call(path: string, body?: object, signal?: AbortSignal): Promise<Response> {
  for (;;) {
    const key = session?.getItem(KEY) ?? keyHere;
    const headers: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {};
    if (body) headers["content-type"] = "application/json";
    let response: Response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        body: body && JSON.stringify(body),
        signal,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new UnreachableError("The server cannot be reached.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const given = await askForKey(key !== null);
      if (given !== null) {
        keyHere = given;
        session?.setItem(KEY, given);
        continue;
      }
    }
    throw await refusal(response);
  }
}

async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  let body: ErrorBody = { message: `The server answered ${response.status}.` };
  try {
    body = (JSON.parse(text) as { error: ErrorBody }).error ?? body;
  } catch {
    // not from our server, perhaps from a proxy before it
  }
  return new ApiError(response.status, body, Number(response.headers.get("retry-after")) || 0);
}

export async function listModels(): Promise<Model[]> {
  return ((await (await call("v1/models")).json()) as { data: Model[] }).data;
}

/** Whether the server is there at all. */
export async function isHealthy(): Promise<boolean> {
  try {
    return (await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(5000) })).ok;
  } catch {
    return false;
  }
}

/** The share of its programs that the server has compiled; null when it does not compile. */
export async function compiledShare(): Promise<number | null> {
  try {
    const response = await fetch("ready", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    const body = (await response.json()) as { status?: string; compiled?: number };
    return body.status === "compiling" ? (body.compiled ?? 0) : null;
  } catch {
    return null;
  }
}

/** How many tokens a conversation takes, of how many. */
export async function countTokens(
  model: string,
  messages: Message[],
  signal: AbortSignal,
): Promise<{ tokens: number; context: number }> {
  const response = await call("v1/count", { model, messages }, signal);
  const counted = (await response.json()) as { prompt_tokens: number; context: number };
  return { tokens: counted.prompt_tokens, context: counted.context };
}

/** The chunks of an answer. Raises ApiError and UnreachableError; aborting `signal` stops it. */
export async function* complete(request: CompletionRequest, signal: AbortSignal): AsyncGenerator<Chunk> {
  const extras = { stream: true, stream_options: { include_usage: true }, parts: true };
  const response = await call("v1/chat/completions", { ...request, ...extras }, signal);
  if (!response.body) throw new UnreachableError("The server sent no answer.");
  try {
    for await (const data of events(response.body)) {
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new ApiError(200, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new UnreachableError("The connection to the server broke.");
  }
}
