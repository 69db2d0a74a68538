// OpenAI's Agents SDK for Node over the Responses API and chat completions.

import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, run, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { KEY, MODEL, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

setTracingDisabled(true);
const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, maxRetries: 0 });
const models = { responses: new OpenAIResponsesModel(client, MODEL), chat: new OpenAIChatCompletionsModel(client, MODEL) };
const City = z.object({ name: z.string().max(20), people: z.number().int().min(0).max(99) });
const weather = tool({
  name: "get_weather", description: "The weather in a city.", parameters: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const make = (model, fields = {}, settings = {}) =>
  new Agent({ name: "Helper", instructions: "Be brief.", model, modelSettings: { temperature: 0, maxTokens: 300, ...settings }, ...fields });
const forced = { toolChoice: "required", parallelToolCalls: false };
const cases = {};

for (const [name, model] of Object.entries(models)) {
  Object.assign(cases, {
    async [`${name}_text`]() {
      assert((await run(make(model), "Hi")).finalOutput);
    },
    async [`${name}_stream`]() {
      const result = await run(make(model), "Hi", { stream: true });
      await collect(result);
      assert(result.finalOutput);
    },
    async [`${name}_output`]() {
      City.parse((await run(make(model, { outputType: City }), "Paris?")).finalOutput);
    },
    async [`${name}_tool`]() {
      const agent = make(model, { tools: [weather], toolUseBehavior: "stop_on_first_tool" }, forced);
      assert((await run(agent, "Weather in Rome?")).finalOutput.startsWith("sunny in"));
    },
    async [`${name}_handoff`]() {
      const other = make(model, { name: "Other", handoffDescription: "Knows all." });
      const result = await run(make(model, { handoffs: [other] }, forced), "Ask the other one.");
      assert(result.lastAgent.name === "Other");
    },
    async [`${name}_conversation`]() {
      const first = await run(make(model), "Hi");
      assert((await run(make(model), [...first.history, { role: "user", content: "And?" }])).finalOutput);
    },
  });
}

await main({
  ...cases,
  async errors() {
    await rejects(() => run(make(new OpenAIChatCompletionsModel(client, "nosuch")), "Hi"), { status: 404 });
    const denied = new OpenAI({ baseURL: `${WITH_KEYS}/v1`, apiKey: KEY, maxRetries: 0 });
    await rejects(() => run(make(new OpenAIResponsesModel(denied, MODEL)), "Hi"), { status: 401 });
  },
});
