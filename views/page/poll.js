// Asking again and again, but only while somebody looks.

import { sleep } from "./patience.js";

/**
 * Runs a task over and over while it is wanted and the tab is visible; never twice at once.
 * @param {(signal: AbortSignal) => Promise<void>} task handles its own errors
 * @param {() => number} seconds between the end of one run and the next
 * @returns {{start: () => void, stop: () => void}}
 */
export function poll(task, seconds) {
  let wanted = false;
  let control = null;

  async function run() {
    if (control || !wanted || document.hidden) return;
    control = new AbortController();
    const { signal } = control;
    try {
      while (!signal.aborted) {
        await task(signal);
        await sleep(seconds(), signal);
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  function end() {
    control?.abort();
    control = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? end() : run()));
  return {
    start() {
      wanted = true;
      run();
    },
    stop() {
      wanted = false;
      end();
    },
  };
}
