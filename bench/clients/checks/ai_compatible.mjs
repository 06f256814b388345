// The AI SDK with @ai-sdk/openai-compatible.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const Measure = z.object({
  thing: z.enum(["table", "river", "mountain"]),
  digits: z.number().int().min(1).max(9),
});
const provider = (s) =>
  createOpenAICompatible({
    name: "jaxchat", baseURL: s.url, includeUsage: true, supportsStructuredOutputs: true,
  });
const asked = (s) => ({ model: provider(s)(s.model), prompt: s.question, temperature: 0 });
const counts = (u) => ({ prompt: u.inputTokens, completion: u.outputTokens, total: u.totalTokens });
const measure = (s) => tool({ description: s.tool.description, inputSchema: Measure });
const called = ({ toolName, input }) => ({ name: toolName, arguments: input });

export default {
  chat: async (s) => {
    const answer = await generateText(asked(s));
    return [[answer.text, answer.finishReason], [s.chat, "stop"]];
  },
  chat_history: async (s) => {
    const messages = [
      { role: "user", content: "Hello" },
      { role: "assistant", content: "Hello!" },
      { role: "user", content: s.question },
    ];
    const model = provider(s)(s.model);
    const options = { model, temperature: 0, instructions: "Be brief." };
    const response = await fetch(`${s.url}/chat/completions`, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: s.model, temperature: 0,
        messages: [{ role: "system", content: "Be brief." }, ...messages],
      }),
    });
    const plain = (await response.json()).choices[0].message.content;
    return [(await generateText({ ...options, messages })).text, plain];
  },
  stream: async (s) => {
    const answer = streamText(asked(s));
    let seen = "", pieces = 0;
    for await (const piece of answer.textStream) (seen += piece), pieces++;
    return [[seen, pieces > 2, await answer.finishReason], [s.chat, true, "stop"]];
  },
  usage_of_a_stream: async (s) => [counts(await streamText(asked(s)).usage), s.usage],
  tools_auto: async (s) => {
    const answer = await generateText({ ...asked(s), tools: { measure: measure(s) } });
    return [answer.text, s.chat];
  },
  tools_required: async (s) => {
    const tools = { measure: measure(s) };
    const answer = await generateText({ ...asked(s), tools, toolChoice: "required" });
    return [called(answer.toolCalls[0]), s.call];
  },
  tools_streamed: async (s) => {
    const tools = { measure: measure(s) };
    const answer = streamText({ ...asked(s), tools, toolChoice: { type: "tool", toolName: "measure" } });
    return [called((await answer.toolCalls)[0]), s.call];
  },
  tools_answered: async (s) => {
    const multiply = tool({ inputSchema: z.object({}), execute: async () => "888" });
    const answer = await generateText({
      ...asked(s), tools: { multiply }, stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" }),
    });
    return [[answer.text, answer.steps.length], [s.chat, 2]];
  },
  structured_object: async (s) => {
    const answer = await generateText({ ...asked(s), output: Output.object({ schema: Measure }) });
    return [answer.output, s.document];
  },
  structured_streamed: async (s) => {
    const answer = streamText({ ...asked(s), output: Output.object({ schema: Measure }) });
    let last;
    for await (const part of answer.partialOutputStream) last = part;
    return [last, s.document];
  },
  structured_json: async (s) => {
    const answer = await generateText({ ...asked(s), output: Output.json(), maxOutputTokens: 64 });
    return [typeof answer.output, "object"];
  },
  completions: async (s) => {
    const model = provider(s).completionModel(s.model);
    const response = await fetch(`${s.url}/completions`, {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: s.model, temperature: 0, max_tokens: 16, stop: ["\nuser:"],
        prompt: `user:\n${s.question}\n\nassistant:\n`, // the SDK's own form
      }),
    });
    const answer = await generateText({ model, prompt: s.question, temperature: 0, maxOutputTokens: 16 });
    const { choices: [{ text, finish_reason }] } = await response.json();
    return [[answer.text, answer.finishReason], [text, finish_reason]];
  },
};
