// LangChain and LangGraph for Node: ChatOpenAI (chat completions and Responses), OpenAI, agents.

import { ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import { createAgent } from "langchain";
import { z } from "zod";
import { KEY, MODEL, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

const City = z.object({ name: z.string().max(20), people: z.number().int().min(0).max(99) });
const weather = tool(async () => "sunny", {
  name: "get_weather", description: "The weather in a city.", schema: z.object({ city: z.string().max(20) }),
});
const make = (fields = {}, url = URL, kind = ChatOpenAI) =>
  new kind({ model: MODEL, apiKey: KEY, temperature: 0, maxTokens: 200, maxRetries: 0, configuration: { baseURL: `${url}/v1` }, ...fields });

await main({
  async invoke() {
    const answer = await make().invoke("Hi");
    assert(answer.content && answer.usage_metadata.output_tokens > 0);
  },
  async stream() {
    assert((await collect(await make().stream("Hi"))).length > 1);
  },
  async batch() {
    assert((await make().batch(["One?", "Two?"])).length === 2);
  },
  async fields() {
    assert((await make({ stop: ["x"], topP: 0.9, n: 1, logprobs: true, topLogprobs: 2 }).invoke("Hi")).response_metadata);
  },
  async structured() {
    for (const method of ["jsonSchema", "functionCalling"]) {
      City.parse(await make().withStructuredOutput(City, { method, name: "city" }).invoke("Paris?"));
    }
  },
  async tool() {
    const asked = await make().bindTools([weather], { tool_choice: "get_weather" }).invoke("Weather in Rome?");
    assert("city" in asked.tool_calls[0].args);
    const result = new ToolMessage({ content: "sunny", tool_call_id: asked.tool_calls[0].id });
    const turns = [{ role: "user", content: "Weather in Rome?" }, asked, result];
    assert((await make().bindTools([weather], { tool_choice: "none" }).invoke(turns)).content);
  },
  async tool_stream() {
    const chunks = await collect(await make().bindTools([weather], { tool_choice: "get_weather" }).stream("Rome?"));
    assert(chunks.reduce((total, chunk) => total.concat(chunk)).tool_calls[0].name === "get_weather");
  },
  async agent() {
    const agent = createAgent({ model: make(), tools: [weather] });
    assert((await agent.invoke({ messages: [{ role: "user", content: "Hi" }] })).messages.length > 1);
  },
  async responses() {
    assert((await make({ useResponsesApi: true }).invoke("Hi")).text);
    const asked = await make({ useResponsesApi: true }).bindTools([weather], { tool_choice: "get_weather" }).invoke("Rome?");
    assert(asked.tool_calls[0].name === "get_weather");
  },
  async completion() {
    assert(await make({ maxTokens: 10 }, URL, OpenAI).invoke("Once upon a time"));
  },
  async errors() {
    await rejects(() => make({ model: "nosuch" }).invoke("Hi"), { status: 404 });
    await rejects(() => make({}, WITH_KEYS).invoke("Hi"), { status: 401 });
  },
});
