// One generation, whatever its route: the request as it is sent, and the answer as it comes.

import { open } from "./api.js";
import { Meter } from "./meter.js";
import { patiently } from "./patience.js";

/**
 * The routes that write a text.
 * @type {Record<"chat"|"complete", {path: string, body: (request: object, top: number|null) => object, piece: (event: any) => object}>}
 */
export const KINDS = {
  chat: {
    path: "chat/completions",
    body: (request, top) => ({
      ...request,
      ...(top === null ? {} : { logprobs: true, top_logprobs: top }),
      stream: true,
      stream_options: { include_usage: true },
    }),
    piece: ({ choices: [choice], usage, model }) => ({
      text: choice?.delta.content ?? "",
      reasoning: choice?.delta.reasoning_content ?? "",
      calls: choice?.delta.tool_calls ?? [],
      entries: choice?.logprobs?.content ?? [],
      finish: choice?.finish_reason ?? null,
      usage,
      model,
    }),
  },
  complete: {
    path: "complete",
    body: (request, top) => ({ ...request, ...(top === null ? {} : { logprobs: top }), stream: true }),
    piece: ({ text, logprobs, finish_reason, usage, model }) => ({
      text: text ?? "",
      reasoning: "",
      calls: [],
      entries: logprobs ?? [],
      finish: finish_reason ?? null,
      usage,
      model,
    }),
  },
};

/**
 * A call of a function, as it is put back into the history.
 * @typedef {{id: string, type: "function", function: {name: string, arguments: string}}} Call
 */

/**
 * An answer so far.
 * @typedef {object} Answer
 * @property {string} text
 * @property {string} reasoning
 * @property {Call[]} calls the functions that the model calls; the last one's arguments may be incomplete
 * @property {import("./tokens.js").TokenLogprob[]} entries empty unless log-probabilities were asked for
 * @property {string|null} finish
 * @property {string|undefined} model
 * @property {object} figures see `describe` in meter.js
 */

/**
 * Sends a request and follows its answer. What had come by the time it fails or is stopped has been told.
 * @param {"chat"|"complete"} kind
 * @param {object} body
 * @param {{signal: AbortSignal, progress: (answer: Answer) => void, waiting: (text: string) => void}} options
 *   progress: told after each piece; waiting: told why it has not begun, "" when it has
 * @returns {Promise<Answer>}
 */
export async function generate(kind, body, { signal, progress, waiting }) {
  const { path, piece } = KINDS[kind];
  const answer = { text: "", reasoning: "", calls: [], entries: [], finish: null, model: undefined, figures: null };
  let meter;
  const opened = await patiently(
    () => {
      meter = new Meter();
      return open(path, body, signal);
    },
    signal,
    waiting,
  );
  const status = opened.headers.get("X-Cache")?.toLowerCase();
  let usage;
  for await (const event of opened.events) {
    const { text, reasoning, calls, entries, finish, usage: counted, model } = piece(event);
    if (text || reasoning || calls.length || entries.length) meter.add(entries.length || 1);
    answer.text += text;
    answer.reasoning += reasoning;
    for (const call of calls) extend(answer.calls, call);
    answer.entries.push(...entries);
    answer.finish ??= finish;
    answer.model ??= model;
    usage = counted ?? usage;
    const tokens = usage?.completion_tokens ?? meter.tokens;
    answer.figures = {
      firstToken: meter.firstToken,
      rate: meter.rate(tokens),
      tokens,
      tokensIn: usage?.prompt_tokens,
      cached: usage?.prompt_tokens_details?.cached_tokens,
      cache: usage?.cache ?? (status ? { status, age_seconds: Number(opened.headers.get("Age")) } : null),
      finish: answer.finish,
    };
    progress(answer);
  }
  return answer;
}

/** Adds a chunk's part of a call to the calls so far. @param {Call[]} calls @param {any} part */
function extend(calls, { index, id, type, function: { name, arguments: text } }) {
  calls[index] ??= { id, type, function: { name, arguments: "" } };
  calls[index].function.arguments += text ?? "";
}
