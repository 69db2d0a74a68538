// The line below the header that says why there are no answers yet. /health is always 200, so asking is no error.

import { json } from "./api.js";
import { refresh } from "./catalogue.js";
import { h } from "./dom.js";
import { advice } from "./patience.js";
import { poll } from "./poll.js";

const WAITING = 1; // seconds between questions while something is amiss
const WELL = 10;

/** Starts watching the service. */
export function watchHealth() {
  const element = document.getElementById("banner");
  let well = false;
  let shown;

  function show(...parts) {
    const text = parts.map((part) => part.textContent ?? part).join("");
    if (text !== shown) element.replaceChildren(...parts);
    shown = text;
    element.hidden = parts.length === 0;
  }

  const ask = async (signal) => {
    try {
      const { status, models } = await json("GET", "health", undefined, signal);
      const first = models[0];
      const before = well;
      well = status === "ok" || status === "idle";
      if (well !== before) await refresh(signal);
      if (status === "loading") show(...loading(first));
      else if (status === "failed") show(`${first.id} cannot answer: ${first.error ?? "its engine has stopped"}`);
      else if (status === "draining") show("The service is shutting down.");
      else show();
    } catch (error) {
      if (signal.aborted) return;
      well = false;
      show(`${error.message} ${advice(error)}`);
    }
  };
  const loop = poll(ask, () => (well ? WELL : WAITING));
  loop.start();
  document.addEventListener("key", () => {
    loop.stop();
    loop.start();
  });
}

/** A load's progress, in words and as a bar. @param {{id: string, stage: string|null, progress: number|null}} model */
export function loading({ id, stage, progress }) {
  const known = progress !== null && progress !== undefined;
  const text = `${id} is loading${stage ? `: ${stage}` : ""}${known ? ` ${Math.round(progress * 100)} %` : " …"}`;
  return [h("span", {}, text), h("progress", { "aria-label": `Loading ${id}`, max: 1, value: known ? progress : null })];
}
