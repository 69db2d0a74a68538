// The panel beside a view: model, sampling, and what else the view adds.

import { menu } from "./catalogue.js";
import { controls } from "./controls.js";
import { h, labelled, uid } from "./dom.js";
import { fault } from "./patience.js";
import { fields, isControl } from "./schema.js";
import { keep, recall } from "./store.js";

/**
 * Makes the panel. Its choices are remembered in this browser.
 * @param {string} view
 * @param {string} route whose fields are the controls
 * @param {{one?: boolean, more?: Node[]}} [options] one: whether one model answers, which is chosen here, and whose
 *   tokens can be coloured; more: put before the sampling controls
 * @returns {{element: HTMLElement, request: () => object, check: () => boolean, probabilities: () => boolean}}
 *   request: the chosen model and those settings that are not the default
 */
export function settingsPanel(view, route, { one = true, more = [] } = {}) {
  const name = `warmstart.settings.${view}`;
  const saved = recall(name, {});
  const model = menu("generate", saved.model);
  const colours = h("input", { type: "checkbox", id: uid("probabilities") });
  colours.checked = Boolean(saved.probabilities);
  let sampling = { values: () => saved.sampling ?? {}, check: () => true };
  const remember = () => keep(name, { model: model.value, probabilities: colours.checked, sampling: sampling.values() });
  const place = h("div", {});
  const heading = h("h2", { id: uid("settings") }, "Settings");
  const element = h(
    "aside",
    { class: "panel", "aria-labelledby": heading.id, onchange: remember },
    heading,
    one && labelled("Model", model),
    one && h("div", { class: "check" }, colours, h("label", { for: colours.id }, "Colour tokens by probability")),
    ...more,
    h("h3", {}, "Sampling"),
    place,
  );

  async function fill() {
    try {
      const found = (await fields(route)).filter(isControl);
      sampling = controls(found, { saved: saved.sampling, changed: remember });
      place.replaceChildren(sampling.element);
    } catch (error) {
      place.replaceChildren(fault(error, fill));
    }
  }
  fill();
  document.addEventListener("key", () => sampling.element || fill());

  return {
    element,
    request: () => ({ ...(one && model.value ? { model: model.value } : {}), ...sampling.values() }),
    check: () => sampling.check(),
    probabilities: () => colours.checked,
  };
}
