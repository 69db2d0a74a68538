// The service, as the page calls it: JSON, streams of events, and one kind of error.

import { events } from "./sse.js";

const KEY = "warmstart.key";
const base = new URL(".", location.href); // also where a proxy has put the service below a prefix

/** The key of this tab; "" if there is none. */
export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** Keeps a key until the tab closes; "" forgets it. @param {string} key */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The full address of a route. @param {string} path without a slash in front */
export const address = (path) => new URL(path, base).href;

/** What went wrong, in the service's words where it had any. */
export class ApiError extends Error {
  /** @param {string} message @param {{status?: number, code?: string, param?: string|null, retryAfter?: number|null}} [facts] */
  constructor(message, { status = 0, code = "", param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

async function call(method, path, body, signal) {
  const headers = { Accept: "application/json, text/event-stream" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    // No `cache` option: it would send Cache-Control, by which the service would leave its own cache out, too.
    response = await fetch(address(path), { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The service does not answer.", { code: "unreachable" });
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const fault = said.error ?? said; // OpenAI's shape, or problem details
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  throw new ApiError(fault.message ?? fault.detail ?? `The service answered ${response.status}.`, {
    status: response.status,
    code: fault.code,
    param: fault.param,
    retryAfter: Number.isFinite(wait) ? wait : null,
  });
}

/**
 * One answer.
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function json(method, path, body, signal) {
  return (await call(method, path, body, signal)).json();
}

/**
 * A stream. It is open, or refused with an ApiError, before its first event is read.
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} [signal]
 * @returns {Promise<{headers: Headers, events: AsyncGenerator<any>}>}
 */
export async function open(path, body, signal) {
  const response = await call("POST", path, body, signal);
  return { headers: response.headers, events: read(response, signal) };
}

async function* read(response, signal) {
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, event.error);
      yield event;
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
  }
  if (signal?.aborted) throw signal.reason;
  throw new ApiError("The connection was lost before the answer was complete.", { code: "connection_lost" });
}

/** A model's route; ids may hold slashes. @param {string} id @param {string} action */
export const modelPath = (id, action) => `models/${id.split("/").map(encodeURIComponent).join("/")}/${action}`;
