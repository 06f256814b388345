// What goes over the wire: OpenAI's chat completions, with jaxchat's extensions.

export type PartType = "text" | "python" | "python_output";

/** A piece of an answer: text, a program that the model gave to its tool, or what that gave back. */
export interface Part {
  type: PartType;
  text: string;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string | Part[];
}

export interface Model {
  id: string;
  jaxchat?: {
    run: string;
    stage: string;
    parameters: number;
    context: number;
    default: boolean;
    ready?: boolean; // false while the server compiles
  };
}

export interface TokenEntry {
  token: string;
  logprob: number;
  bytes?: number[] | null;
  top_logprobs?: Omit<TokenEntry, "top_logprobs">[];
  jaxchat?: { id: number; sampled: boolean };
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  jaxchat?: { tokens_per_second?: number; context?: number };
}

export interface Chunk {
  choices: {
    delta: { content?: string | null; part?: Part };
    finish_reason: string | null;
    logprobs?: { content: TokenEntry[] | null } | null;
  }[];
  usage?: Usage | null;
  error?: ErrorBody;
}

export interface ErrorBody {
  message: string;
  type?: string;
  param?: string | null;
  code?: string | null;
}

/** The `data` of each event in a text/event-stream, without `[DONE]`. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (pending + value).split(/\r?\n/);
      pending = lines.pop() ?? "";
      for (const line of lines) {
        if (!line.startsWith("data:")) continue; // blank lines, and comments that keep it open
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield data;
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
