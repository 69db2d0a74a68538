// Anthropic's client for Node: messages, streams, tools and its tool runner, formats, counts and errors.

import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { KEY, MODEL, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0 });
const City = z.object({ name: z.string().max(20), people: z.number().int().min(0).max(99) });
const messages = [{ role: "user", content: "Hi" }];
const ask = { model: MODEL, messages, max_tokens: 100, system: "Be brief." };
const schema = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const tools = [{ name: "get_weather", description: "The weather.", input_schema: schema }];
const tool_choice = { type: "tool", name: "get_weather" };

await main({
  async message() {
    const message = await client.messages.create({ ...ask, stop_sequences: ["x"] });
    assert(message.content[0].type === "text" && message.usage.output_tokens > 0);
  },
  async stream() {
    const events = await collect(await client.messages.create({ ...ask, stream: true }));
    assert(events.at(-1).type === "message_stop");
  },
  async stream_helper() {
    const pieces = [];
    const stream = client.messages.stream(ask).on("text", (piece) => pieces.push(piece));
    assert((await stream.finalText()) === pieces.join(""));
  },
  async tool() {
    const first = await client.messages.create({ ...ask, tools, tool_choice });
    const use = first.content.find((block) => block.type === "tool_use");
    assert("city" in use.input);
    const result = { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "sunny" }] };
    const turns = [...messages, { role: "assistant", content: first.content }, result];
    assert((await client.messages.create({ ...ask, messages: turns, tools })).content.length);
  },
  async tool_stream() {
    const message = await client.messages.stream({ ...ask, tools, tool_choice }).finalMessage();
    assert("city" in message.content.find((block) => block.type === "tool_use").input);
  },
  async tool_runner() {
    const tool = betaZodTool({
      name: "get_weather", description: "The weather.", inputSchema: z.object({ city: z.string() }), run: () => "sunny",
    });
    const last = await client.beta.messages.toolRunner({ ...ask, tools: [tool], max_iterations: 2 });
    assert(last.stop_reason);
  },
  async format() {
    const format = { type: "json_schema", schema: z.toJSONSchema(City) };  // zodOutputFormat leaves the limits out
    const message = await client.messages.create({ ...ask, output_config: { format } });
    City.parse(JSON.parse(message.content[0].text));
  },
  async format_helper() {
    const Word = z.object({ word: z.enum(["yes", "no"]) });
    const message = await client.messages.parse({ ...ask, output_config: { format: zodOutputFormat(Word) } });
    Word.parse(message.parsed_output);
  },
  async count_tokens() {
    const { input_tokens } = await client.messages.countTokens({ model: MODEL, messages });
    assert(input_tokens > 1);
  },
  async models() {
    assert((await client.models.list()).data.some((model) => model.id === MODEL));
  },
  async errors() {
    assert((await rejects(() => client.messages.create({ ...ask, model: "nosuch" }))) instanceof Anthropic.NotFoundError);
    assert((await rejects(() => client.messages.create({ ...ask, max_tokens: 0 }))) instanceof Anthropic.BadRequestError);
    const denied = new Anthropic({ baseURL: WITH_KEYS, apiKey: KEY, maxRetries: 0 });
    assert((await rejects(() => denied.messages.create(ask))) instanceof Anthropic.AuthenticationError);
  },
});
