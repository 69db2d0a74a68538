// Errors: when to try again, and what a person can do.

import { ApiError } from "./api.js";
import { button, h } from "./dom.js";

const ATTEMPTS = 20;
const LONGEST_WAIT = 60; // seconds; what takes longer is for the person to decide

/** Sleeps. @param {number} seconds @param {AbortSignal} [signal] ends it at once, with the signal's reason */
export const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });

/**
 * Tries something that has had no effect until it succeeds, waiting as the service asked with Retry-After. An error
 * without one is not tried again.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {AbortSignal} signal
 * @param {(text: string) => void} waiting told each second, and "" when the wait is over
 * @returns {Promise<T>}
 */
export async function patiently(attempt, signal, waiting) {
  for (let left = ATTEMPTS; ; left -= 1) {
    try {
      return await attempt();
    } catch (error) {
      const wait = Math.max(1, error.retryAfter ?? 0);
      const again = error instanceof ApiError && [429, 503].includes(error.status) && error.retryAfter !== null;
      if (!again || left === 1 || wait > LONGEST_WAIT) throw error;
      for (let second = Math.ceil(wait); second > 0; second -= 1) {
        waiting(`${error.message.replace(/\.?$/, ".")} Trying again in ${second} s.`);
        await sleep(1, signal);
      }
      waiting("");
    }
  }
}

const ADVICE = {
  unreachable: "Is it running, and can this machine reach it? Nothing you wrote is lost.",
  connection_lost: "The text received so far is above.",
  queue_full: "There are too many requests at the moment. Try again later.",
  model_loading: "Try again when the model is ready; the Models view shows the progress.",
  model_cannot_encode: "Choose a model for embeddings.",
  model_cannot_generate: "This model computes embeddings only. Choose another one in the settings.",
  model_not_found: "Choose another model in the settings.",
  context_length_exceeded: "Shorten the text, start a new chat, or ask for fewer tokens.",
  draining: "The service is shutting down. Try again when it is back.",
  client_address_denied: "Ask the operator of the service to allow your address (ALLOWED_IPS).",
  insufficient_scope: "Enter another API key with the button at the top.",
  rate_limited: "Your rate limit is used up. Try again later.",
  exceeds_rate_limit: "Shorten the text, or ask for fewer tokens.",
  deadline_exceeded: "Ask for fewer tokens, or try again when the service is less busy.",
};

/** What a person can do about an error. @param {ApiError} error @returns {string} "" if the message says it all */
export function advice(error) {
  if (error.status === 401) return "Set the API key with the button at the top.";
  return ADVICE[error.code] ?? (error.status >= 500 ? "Try again; if the error persists, see the service's log." : "");
}

/**
 * An error where it happened.
 * @param {ApiError} error
 * @param {(() => void)} [again] what its button does
 */
export function fault(error, again) {
  const advised = advice(error);
  return h(
    "div",
    { class: "fault", role: "alert" },
    h("p", {}, h("strong", {}, error.message)),
    advised ? h("p", {}, advised) : null,
    again ? button("Try again", again, { class: "quiet" }) : null,
  );
}
