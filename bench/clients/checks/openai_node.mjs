// The openai package for Node.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const Measure = z.object({
  thing: z.enum(["table", "river", "mountain"]),
  digits: z.number().int().min(1).max(9),
});
const client = (s) => new OpenAI({ baseURL: s.url, apiKey: "none" });
const messages = (s) => [{ role: "user", content: s.question }];
const body = (s) => ({ model: s.model, messages: messages(s), temperature: 0 });
const text = (answer) => answer.choices[0].message.content;
const counts = (u) => ({
  prompt: u.prompt_tokens,
  completion: u.completion_tokens,
  total: u.total_tokens,
});

export default {
  chat: async (s) => [text(await client(s).chat.completions.create(body(s))), s.chat],
  stream: async (s) => {
    let seen = "";
    for await (const chunk of await client(s).chat.completions.create({ ...body(s), stream: true }))
      seen += chunk.choices[0]?.delta?.content ?? "";
    return [seen, s.chat];
  },
  stream_helper: async (s) => {
    const runner = client(s).chat.completions.stream(body(s));
    let pieces = 0;
    runner.on("content", () => pieces++);
    return [[await runner.finalContent(), pieces > 2], [s.chat, true]];
  },
  usage_of_a_stream: async (s) => {
    const asked = { ...body(s), stream: true, stream_options: { include_usage: true } };
    const runner = client(s).chat.completions.stream(asked);
    return [counts(await runner.totalUsage()), s.usage];
  },
  tools_run: async (s) => {
    const tool = { type: "function", function: { ...s.tool, parse: JSON.parse, function: () => "888" } };
    const runner = client(s).chat.completions.runTools({ ...body(s), tools: [tool] });
    return [await runner.finalContent(), s.chat];
  },
  tools_required: async (s) => {
    const tools = [{ type: "function", function: s.tool }];
    const asked = { ...body(s), tools, tool_choice: "required" };
    const call = (await client(s).chat.completions.create(asked)).choices[0].message.tool_calls[0];
    const { name, arguments: given } = call.function;
    return [{ name, arguments: JSON.parse(given) }, s.call];
  },
  structured_parse: async (s) => {
    const asked = { ...body(s), response_format: zodResponseFormat(Measure, "measure") };
    const answer = await client(s).chat.completions.parse(asked);
    return [answer.choices[0].message.parsed, s.document];
  },
  completions: async (s) => {
    const asked = { model: s.model, prompt: s.prompt, temperature: 0, max_tokens: 32 };
    return [(await client(s).completions.create(asked)).choices[0].text, s.completion];
  },
  responses: async (s) => {
    const answer = await client(s).responses.create({ model: s.model, input: s.question, temperature: 0 });
    return [answer.output_text, s.chat];
  },
  responses_streamed: async (s) => {
    const events = client(s).responses.stream({ model: s.model, input: s.question, temperature: 0 });
    return [(await events.finalResponse()).output_text, s.chat];
  },
  responses_parse: async (s) => {
    const answer = await client(s).responses.parse({
      model: s.model, input: s.question, temperature: 0,
      text: { format: zodTextFormat(Measure, "measure") },
    });
    return [answer.output_parsed, s.document];
  },
  models: async (s) => {
    const names = [];
    for await (const model of client(s).models.list()) names.push(model.id);
    return [[names, (await client(s).models.retrieve(s.model)).id], [[s.model, s.long], s.model]];
  },
  aborted: async (s) => {
    const chunks = await client(s).chat.completions.create({ ...body(s), stream: true });
    for await (const chunk of chunks) if (chunk.choices[0]?.delta?.content) break;
    return [text(await client(s).chat.completions.create(body(s))), s.chat];
  },
};
