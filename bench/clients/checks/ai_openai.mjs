// The AI SDK with @ai-sdk/openai, whose default is /v1/responses.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const Measure = z.object({
  thing: z.enum(["table", "river", "mountain"]),
  digits: z.number().int().min(1).max(9),
});
const provider = (s) => createOpenAI({ baseURL: s.url, apiKey: "none" });
const chat = (s) => ({ model: provider(s).chat(s.model), prompt: s.question, temperature: 0 });
const response = (s) => ({ model: provider(s)(s.model), prompt: s.question, temperature: 0 });
const counts = (u) => ({ prompt: u.inputTokens, completion: u.outputTokens, total: u.totalTokens });
const tools = { measure: tool({ description: "Measures a thing.", inputSchema: Measure }) };
const called = ({ toolName, input }) => ({ name: toolName, arguments: input });

async function streamed(answer) {
  let seen = "";
  for await (const piece of answer.textStream) seen += piece;
  return [seen, await answer.finishReason];
}

export default {
  chat: async (s) => [(await generateText(chat(s))).text, s.chat],
  stream: async (s) => [await streamed(streamText(chat(s))), [s.chat, "stop"]],
  usage_of_a_stream: async (s) => [counts(await streamText(chat(s)).usage), s.usage],
  tools_auto: async (s) => [(await generateText({ ...chat(s), tools })).text, s.chat],
  tools_required: async (s) => {
    const answer = await generateText({ ...chat(s), tools, toolChoice: "required" });
    return [called(answer.toolCalls[0]), s.call];
  },
  structured: async (s) => {
    const answer = await generateText({ ...chat(s), output: Output.object({ schema: Measure }) });
    return [answer.output, s.document];
  },
  completions: async (s) => {
    const model = provider(s).completion(s.model);
    const answer = streamText({ model, prompt: s.question, temperature: 0, maxOutputTokens: 8 });
    const [text, reason] = await streamed(answer);
    return [[typeof text, ["stop", "length"].includes(reason)], ["string", true]];
  },
  responses: async (s) => {
    const answer = await generateText(response(s));
    return [[answer.text, answer.finishReason], [s.chat, "stop"]];
  },
  responses_streamed: async (s) => [await streamed(streamText(response(s))), [s.chat, "stop"]],
  responses_cut: async (s) => {
    const [text, reason] = await streamed(streamText({ ...response(s), maxOutputTokens: 2 }));
    return [[s.chat.startsWith(text), reason], [true, "length"]];
  },
  responses_usage: async (s) => [counts(await streamText(response(s)).usage), s.usage],
  responses_tools_auto: async (s) => [(await generateText({ ...response(s), tools })).text, s.chat],
  responses_tools_required: async (s) => {
    const answer = await generateText({ ...response(s), tools, toolChoice: "required" });
    return [called(answer.toolCalls[0]), s.call];
  },
  responses_structured: async (s) => {
    const answer = await generateText({ ...response(s), output: Output.object({ schema: Measure }) });
    return [answer.output, s.document];
  },
};
