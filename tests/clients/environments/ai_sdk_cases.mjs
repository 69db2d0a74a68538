// Vercel's AI SDK over openai-compatible, openai (chat, Responses, completions) and anthropic.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, ToolLoopAgent, cosineSimilarity, embed, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

const compatible = createOpenAICompatible({
  name: "warmstart", baseURL: `${URL}/v1`, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: `${URL}/v1`, apiKey: KEY });
const anthropic = createAnthropic({ baseURL: `${URL}/v1`, apiKey: KEY });
const models = {
  compatible: compatible(MODEL), chat: openai.chat(MODEL), responses: openai.responses(MODEL), claude: anthropic(MODEL),
};
const steps = stepCountIs;
const City = z.object({ name: z.string().max(20), people: z.number().int().min(0).max(99) });
const weather = tool({
  description: "The weather in a city.", inputSchema: z.object({ city: z.string().max(20) }), execute: async () => "sunny",
});
const ask = { prompt: "Hi", system: "Be brief.", maxOutputTokens: 100, maxRetries: 0 };
const cases = {};

for (const [name, model] of Object.entries(models)) {
  Object.assign(cases, {
    async [`${name}_text`]() {
      const result = await generateText({ model, ...ask, temperature: 0 });
      assert(result.text && result.usage.outputTokens > 0);
    },
    async [`${name}_stream`]() {
      const result = streamText({ model, ...ask });
      assert((await collect(result.textStream)).length > 1 && (await result.usage).outputTokens > 0);
    },
    async [`${name}_object`]() {
      const { output } = await generateText({ model, ...ask, output: Output.object({ schema: City }), maxOutputTokens: 300 });
      City.parse(output);
    },
    async [`${name}_object_stream`]() {
      const result = streamText({ model, ...ask, output: Output.object({ schema: City }), maxOutputTokens: 300 });
      await collect(result.partialOutputStream);
      City.parse(await result.output);
    },
    async [`${name}_tool`]() {
      const result = await generateText({
        model, ...ask, tools: { weather }, toolChoice: "required", maxOutputTokens: 1000,
        prompt: "What is the weather in Rome?",
      });
      assert(result.toolCalls[0].toolName === "weather" && result.toolResults[0].output === "sunny");
    },
    async [`${name}_loop`]() {
      const result = await generateText({
        model, ...ask, tools: { weather }, stopWhen: steps(2), maxOutputTokens: 500,
        prepareStep: ({ stepNumber }) => ({
          toolChoice: stepNumber ? "none" : { type: "tool", toolName: "weather" },
        }),
      });
      assert(result.steps.length === 2 && result.steps[1].text);
    },
    async [`${name}_tool_stream`]() {
      const result = streamText({
        model, ...ask, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" }, maxOutputTokens: 500,
      });
      await collect(result.fullStream);
      assert((await result.toolCalls)[0].toolName === "weather");
    },
  });
}

await main({
  ...cases,
  async conversation() {
    const messages = [{ role: "user", content: "Hi" }, { role: "assistant", content: "Hello." }, { role: "user", content: "And?" }];
    assert((await generateText({ model: models.compatible, messages, maxOutputTokens: 20 })).text);
  },
  async settings() {
    const settings = { seed: 1, topP: 0.9, presencePenalty: 0.1, frequencyPenalty: 0.1, stopSequences: ["x"] };
    assert((await generateText({ model: models.compatible, ...ask, ...settings })).finishReason);
    const providerOptions = { openai: { logprobs: 2, user: "me" } };
    assert((await generateText({ model: models.chat, ...ask, ...settings, providerOptions })).finishReason);
  },
  async completion() {
    const model = compatible.completionModel(MODEL);
    assert((await generateText({ model, prompt: "Once upon a time", maxOutputTokens: 10 })).text);
  },
  async agent() {
    const agent = new ToolLoopAgent({ model: models.compatible, tools: { weather }, stopWhen: steps(2), maxOutputTokens: 100 });
    assert((await agent.generate({ prompt: "Hi" })).steps.length);
  },
  async embeddings_search() {
    for (const model of [compatible.embeddingModel(EMBEDDER), openai.embedding(EMBEDDER)]) {
      const { embeddings, usage } = await embedMany({ model, values: CORPUS, maxRetries: 0 });
      const { embedding } = await embed({ model, value: QUESTION, maxRetries: 0 });
      const scores = embeddings.map((one) => cosineSimilarity(embedding, one));
      assert(CORPUS[scores.indexOf(Math.max(...scores))] === ANSWER && usage.tokens > 0);
    }
  },
  async errors() {
    await rejects(() => generateText({ ...ask, model: compatible("nosuch") }), { statusCode: 404 });
    const denied = createOpenAICompatible({ name: "denied", baseURL: `${WITH_KEYS}/v1`, apiKey: KEY });
    await rejects(() => generateText({ ...ask, model: denied(MODEL) }), { statusCode: 401 });
    const long = await rejects(() => generateText({ ...ask, model: models.chat, prompt: "word ".repeat(20000) }));
    assert(long.statusCode === 400 && long.message.includes("maximum context length"));
  },
});
