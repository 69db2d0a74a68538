// One column of the compare view: which model, with which settings, and what it answers.

import { menu } from "./catalogue.js";
import { controls, title } from "./controls.js";
import { button, h, labelled } from "./dom.js";
import { Meter, describe } from "./meter.js";
import { fault } from "./patience.js";

/**
 * Makes a column.
 * @param {string} letter what it is called
 * @param {import("./schema.js").Field[]} fields settings of its own
 * @param {{model?: string, sampling?: object}} saved
 * @param {{changed: () => void, remove: () => void}} events
 */
export function variant(letter, fields, saved, { changed, remove }) {
  const model = menu("generate", saved.model);
  // What is left empty is as for all.
  const summary = h("summary", {});
  const own = controls(fields.map((field) => ({ ...field, optional: true, default: null })), { saved: saved.sampling, changed: told, help: false, empty: "as for all" });
  const text = h("div", { class: "plain-text answer" });
  const notes = h("p", { class: "notes" });
  const problem = h("div", {});
  const drop = button("Remove", remove, { class: "quiet", "aria-label": `Remove ${letter}` });
  const element = h(
    "section",
    { class: "variant", "aria-label": `Variant ${letter}` },
    h("div", { class: "dialog-top" }, h("h2", {}, letter), drop),
    labelled("Model", model),
    h("details", {}, summary, own.element),
    text,
    notes,
    problem,
  );
  model.addEventListener("change", changed);

  function tell(values) {
    const told = Object.entries(values).map(([name, value]) => `${title(name).toLowerCase()} ${typeof value === "object" ? "…" : value}`);
    summary.textContent = ["Settings of this variant", told.join(", ")].filter(Boolean).join(": ");
  }
  function told(values) {
    tell(values);
    changed();
  }
  tell(own.values());
  let meter;

  return {
    element,
    drop,
    check: own.check,
    saved: () => ({ model: model.value, sampling: own.values() }),
    request: () => ({ label: letter, ...(model.value ? { model: model.value } : {}), ...own.values() }),

    /** An answer is about to come. */
    begin() {
      meter = new Meter();
      text.textContent = "";
      notes.textContent = "…";
      problem.replaceChildren();
      element.setAttribute("aria-busy", "true");
    },

    /** A piece of it has come. @param {string} piece */
    add(piece) {
      if (!piece) return;
      meter.add(1);
      text.append(piece);
      notes.textContent = describe({ firstToken: meter.firstToken, rate: meter.rate(), tokens: meter.tokens }).join(" · ");
    },

    /** It is complete, or has failed. @param {any} answer as the service tells it */
    end(answer) {
      element.removeAttribute("aria-busy");
      if (answer.error) {
        notes.textContent = "";
        problem.replaceChildren(fault(answer.error));
        return;
      }
      if (text.textContent !== answer.text) text.textContent = answer.text;
      notes.textContent = [
        answer.model,
        ...describe({
          firstToken: answer.time_to_first_token_seconds,
          rate: answer.tokens_per_second,
          tokensIn: answer.prompt_tokens,
          tokens: answer.completion_tokens,
          finish: answer.finish_reason,
        }),
      ].join(" · ");
    },

    /** Nothing more will come. @param {string} why */
    cut(why) {
      if (!element.hasAttribute("aria-busy")) return;
      element.removeAttribute("aria-busy");
      notes.textContent = [notes.textContent.replace("…", ""), why].filter(Boolean).join(" · ");
    },
  };
}
