// OpenAI's client for Node: chat completions, completions, Responses, its helpers and its errors.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { KEY, MODEL, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: KEY, maxRetries: 0 });
const City = z.object({ name: z.string().max(20), people: z.number().int().min(0).max(99) });
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];
const ask = { model: MODEL, messages, temperature: 0, max_tokens: 100 };
const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters } }];
const named = { type: "function", function: { name: "get_weather" } };
const question = { model: MODEL, input: "Hi", temperature: 0, max_output_tokens: 100 };

await main({
  async chat() {
    const answer = await client.chat.completions.create(ask);
    assert(answer.choices[0].message.content && answer.usage.completion_tokens > 0);
  },
  async chat_stream() {
    const stream = await client.chat.completions.create({
      ...ask, stream: true, stream_options: { include_usage: true },
    });
    const chunks = await collect(stream);
    assert(chunks.at(-1).usage.completion_tokens > 0);
  },
  async chat_stream_helper() {
    const pieces = [];
    const stream = client.chat.completions.stream(ask).on("content", (piece) => pieces.push(piece));
    assert((await stream.finalContent()) === pieces.join(""));
  },
  async chat_fields() {
    const answer = await client.chat.completions.create({
      ...ask, temperature: 1, n: 2, seed: 1, stop: ["x"], logprobs: true, top_logprobs: 2, logit_bias: { 5: -100 },
    });
    assert(answer.choices.length === 2 && answer.choices[0].logprobs.content[0].top_logprobs.length === 2);
  },
  async chat_parse() {
    const answer = await client.chat.completions.parse({ ...ask, response_format: zodResponseFormat(City, "city") });
    City.parse(answer.choices[0].message.parsed);
  },
  async chat_tool() {
    const answer = await client.chat.completions.create({ ...ask, tools, tool_choice: named });
    const [call] = answer.choices[0].message.tool_calls;
    assert("city" in JSON.parse(call.function.arguments));
    const turns = [...messages, answer.choices[0].message, { role: "tool", tool_call_id: call.id, content: "sunny" }];
    const last = await client.chat.completions.create({ ...ask, messages: turns, tools, tool_choice: "none" });
    assert(last.choices[0].message.content);
  },
  async chat_tool_stream() {
    const stream = client.chat.completions.stream({ ...ask, tools, tool_choice: named });
    assert((await stream.finalMessage()).tool_calls[0].function.name === "get_weather");
  },
  async chat_run_tools() {
    const runner = client.chat.completions.runTools({
      ...ask, tool_choice: named,
      tools: [{ type: "function", function: { name: "get_weather", parameters, parse: JSON.parse, function: () => "sunny" } }],
    });
    assert((await runner.finalFunctionToolCallResult()) === "sunny");
  },
  async chat_abort() {
    const stop = new AbortController();
    const stream = await client.chat.completions.create({ ...ask, max_tokens: 2000, stream: true }, { signal: stop.signal });
    for await (const chunk of stream) if (chunk.choices[0].delta.content) stop.abort();
  },
  async completions() {
    const answer = await client.completions.create({ model: MODEL, prompt: ["One", "Two"], max_tokens: 5, logprobs: 2, echo: true });
    assert(answer.choices.length === 2 && answer.choices[0].logprobs.tokens.length > 5);
  },
  async completions_stream() {
    const stream = await client.completions.create({ model: MODEL, prompt: "Once", max_tokens: 5, stream: true });
    assert((await collect(stream)).length > 2);
  },
  async responses() {
    const answer = await client.responses.create(question);
    assert(answer.output_text && answer.usage.output_tokens > 0);
  },
  async responses_stream() {
    const events = await collect(await client.responses.create({ ...question, stream: true }));
    assert(["response.completed", "response.incomplete"].includes(events.at(-1).type));
  },
  async responses_stream_helper() {
    const response = await client.responses.stream(question).finalResponse();
    assert(response.output_text);
  },
  async responses_parse() {
    const answer = await client.responses.parse({ ...question, text: { format: zodTextFormat(City, "city") } });
    City.parse(answer.output_parsed);
  },
  async responses_tool() {
    const functions = [{ type: "function", name: "get_weather", parameters, strict: false }];
    const first = await client.responses.create({ ...question, tools: functions, tool_choice: "required", parallel_tool_calls: false });
    const call = first.output.find((item) => item.type === "function_call");
    const input = [
      { role: "user", content: "Weather?" }, ...first.output,
      { type: "function_call_output", call_id: call.call_id, output: "sunny" },
    ];
    assert((await client.responses.create({ ...question, input, tools: functions, tool_choice: "none" })).output_text);
  },
  async models() {
    assert((await collect(client.models.list())).some((model) => model.id === MODEL));
    assert((await client.models.retrieve(MODEL)).id === MODEL);
  },
  async raw_response() {
    const { data, request_id } = await client.chat.completions.create(ask).withResponse();
    assert(data.choices && request_id);
  },
  async errors() {
    await rejects(() => client.chat.completions.create({ ...ask, model: "nosuch" }), { status: 404, code: "model_not_found" });
    const long = [{ role: "user", content: "word ".repeat(20000) }];
    await rejects(() => client.chat.completions.create({ ...ask, messages: long }), { code: "context_length_exceeded" });
    const denied = new OpenAI({ baseURL: `${WITH_KEYS}/v1`, apiKey: KEY, maxRetries: 0 });
    assert((await rejects(() => denied.models.list())) instanceof OpenAI.AuthenticationError);
    const wrong = await rejects(() => client.chat.completions.create({ ...ask, temperature: 3 }), { status: 400 });
    assert(wrong.param === "temperature" && wrong instanceof OpenAI.BadRequestError);
  },
});
