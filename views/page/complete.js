// The completion view: a raw prompt, and how the model goes on.

import { ask } from "./answer.js";
import { composer } from "./composer.js";
import { drawer, h, say, uid } from "./dom.js";
import { KINDS } from "./generation.js";
import { requestButton } from "./request_dialog.js";
import { settingsPanel } from "./settings_panel.js";

const ALTERNATIVES = 5;
const EXAMPLE = "Once upon a time";

/** Makes the view. @returns {{element: HTMLElement}} */
export function completeView() {
  const settings = settingsPanel("complete", "/complete");
  const output = h("div", { class: "said" });
  const heading = h("h2", { id: uid("continuation") }, "Continuation");
  const result = h("section", { class: "result", "aria-labelledby": heading.id, hidden: true }, heading, output);
  const body = (prompt) => KINDS.complete.body({ prompt, ...settings.request() }, settings.probabilities() ? ALTERNATIVES : null);

  async function complete(prompt, signal) {
    if (!settings.check()) {
      say("A setting is out of range.");
      return;
    }
    result.hidden = false;
    await ask({
      kind: "complete",
      body: body(prompt),
      signal,
      colours: settings.probabilities(),
      markdown: false,
      element: output,
      again: () => field.element.requestSubmit(),
    });
  }

  const field = composer({ label: "Prompt", placeholder: EXAMPLE, verb: "Complete", rows: 6, send: complete });
  const column = h(
    "div",
    { class: "column" },
    h("div", { class: "bar-of-buttons" }, drawer("Settings", settings.element), requestButton("complete", KINDS.complete.path, () => body(field.input.value || EXAMPLE))),
    h("p", { class: "lead" }, "The prompt goes to the model as it is, without a chat around it. Control tokens written in it count."),
    field.element,
    result,
  );
  return { element: h("div", { class: "view with-panels" }, column, settings.element) };
}
