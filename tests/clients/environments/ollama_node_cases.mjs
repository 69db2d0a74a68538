// Ollama's client for Node: chats, prompts, streams, tools, formats, vectors, models and errors.

import { Ollama } from "ollama";
import { ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, assert, collect, main, rejects } from "./cases.mjs";

const client = new Ollama({ host: URL });
const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }];
const options = { temperature: 0, num_predict: 48 };
const ask = { model: MODEL, messages, options };
const city = { type: "string", maxLength: 20 };
const schema = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters: schema } }];

await main({
  async chat() {
    const answer = await client.chat(ask);
    assert(answer.done && answer.message.role === "assistant" && answer.eval_count > 0 && answer.total_duration > 0);
  },
  async stream() {
    const parts = await collect(await client.chat({ ...ask, stream: true }));
    const whole = await client.chat(ask);
    assert(parts.map((part) => part.message.content).join("") === whole.message.content);
    assert(parts.at(-1).done && parts.length > 2);
  },
  async abort() {
    const stream = await client.chat({ ...ask, options: { num_predict: 2000 }, stream: true });
    const error = await rejects(async () => {
      for await (const part of stream) if (part) stream.abort();
    });
    assert(error.name === "AbortError");
  },
  async format() {
    const answer = await client.chat({ ...ask, format: schema });
    assert(typeof JSON.parse(answer.message.content).city === "string");
  },
  async tool_results() {
    const call = { function: { name: "get_weather", arguments: { city: "Rome" } } };
    const turn = [{ role: "assistant", content: "", tool_calls: [call] }, { role: "tool", content: "sunny", tool_name: "get_weather" }];
    const answer = await client.chat({ ...ask, messages: [...messages, ...turn], tools });
    assert(answer.done);
  },
  async generate() {
    const prompt = "What is the capital of France?";
    const answer = await client.generate({ model: MODEL, prompt, options });
    assert(answer.response.includes("Paris"), answer.response);
    const raw = await client.generate({ model: MODEL, prompt, raw: true, options });
    assert(raw.done);
  },
  async vectors() {
    const { embeddings } = await client.embed({ model: EMBEDDER, input: [QUESTION, ...CORPUS] });
    const similar = embeddings.map((vector) => vector.reduce((sum, value, i) => sum + value * embeddings[0][i], 0));
    assert(CORPUS[similar.indexOf(Math.max(...similar.slice(1))) - 1] === ANSWER);
    const { embedding } = await client.embeddings({ model: EMBEDDER, prompt: QUESTION });
    assert(embedding.length === embeddings[0].length);
  },
  async models() {
    const { models } = await client.list();
    assert(models.some((model) => model.name === MODEL));
    assert((await client.ps()).models.length > 0);
    assert((await client.show({ model: MODEL })).capabilities.includes("completion"));
    assert((await client.version()).version);
  },
  async unknown_model() {
    const error = await rejects(() => client.chat({ ...ask, model: "other" }), { status_code: 404 });
    assert(error.message.includes("no model"));
  },
  async wrong_key() {
    const headers = { Authorization: `Bearer ${KEY}` };
    await rejects(() => new Ollama({ host: WITH_KEYS, headers }).chat(ask), { status_code: 401 });
  },
});
