// LlamaIndex for Node: its OpenAI model and an agent.

import { OpenAI } from "@llamaindex/openai";
import { tool } from "llamaindex";
import { z } from "zod";
import { KEY, MODEL, URL, assert, collect, main, rejects } from "./cases.mjs";

const make = (fields = {}) => new OpenAI({ model: MODEL, apiKey: KEY, baseURL: `${URL}/v1`, temperature: 0, maxTokens: 100, maxRetries: 0, ...fields });
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];

await main({
  async chat() {
    assert((await make().chat({ messages })).message.content);
  },
  async stream() {
    assert((await collect(await make().chat({ messages, stream: true }))).length > 1);
  },
  async complete() {
    assert((await make().complete({ prompt: "Hi" })).text);
  },
  async tool() {
    const weather = tool({
      name: "get_weather", description: "The weather.", parameters: z.object({ city: z.string() }), execute: () => "sunny",
    });
    const answer = await make({ additionalChatOptions: { tool_choice: "required", parallel_tool_calls: false } }).chat({ messages, tools: [weather] });
    assert(answer.message.options.toolCall[0].name === "get_weather");
  },
  async errors() {
    await rejects(() => make({ model: "nosuch" }).chat({ messages }), { status: 404 });
  },
});
