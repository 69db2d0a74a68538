// The models view: what is served, in what state, and loading, unloading and switching it.

import { json } from "./api.js";
import { refresh } from "./catalogue.js";
import { h } from "./dom.js";
import { modelCard } from "./model_card.js";
import { bytes } from "./meter.js";
import { fault } from "./patience.js";
import { poll } from "./poll.js";

/** Makes the view. @returns {{element: HTMLElement, shown: () => void, left: () => void}} */
export function modelsView() {
  const cards = new Map();
  const list = h("div", { class: "cards" });
  const memory = h("p", { class: "lead" });
  const problem = h("div", {});

  const ask = async (signal) => {
    try {
      const [models, stats] = await Promise.all([refresh(signal), json("GET", "stats", undefined, signal)]);
      problem.replaceChildren();
      update(models, stats.memory);
    } catch (error) {
      if (!signal.aborted && problem.textContent.indexOf(error.message) < 0) problem.replaceChildren(fault(error));
    }
  };
  const loop = poll(ask, () => 1);

  function update(models, { models_bytes: held, budget_bytes: budget }) {
    memory.textContent = `Loaded models hold ${bytes(held)}${budget ? ` and may grow to ${bytes(budget)}` : ""}.`;
    for (const [id, card] of cards) {
      if (!models.some((model) => model.id === id)) {
        card.element.remove();
        cards.delete(id);
      }
    }
    models.forEach((model, at) => {
      if (!cards.has(model.id)) cards.set(model.id, modelCard(model.id));
      const { element, update: tell } = cards.get(model.id);
      if (list.children[at] !== element && !element.contains(document.activeElement)) list.insertBefore(element, list.children[at] ?? null);
      if (!element.isConnected) list.append(element);
      tell(model);
    });
  }

  return { element: h("div", { class: "view single" }, memory, problem, list), shown: loop.start, left: loop.stop };
}
