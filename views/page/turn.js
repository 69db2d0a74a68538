// One turn of a chat on the page: yours, with a way to edit it, or the model's, with a way to have it again and to give
// the results of the functions that it calls.

import { answerParts } from "./answer_parts.js";
import { button, copy, h } from "./dom.js";
import { show } from "./markdown.js";

/**
 * A turn.
 * @param {import("./store.js").Chat["messages"][number]} message
 * @param {{redo: (content: string|null) => void, results: (contents: string[]) => void, busy: () => boolean}} chat redo:
 *   with a text, says that instead and has it answered; with null, has this answered anew; results: has the results of
 *   this answer's calls answered, in place of what follows
 * @returns {{element: HTMLElement, body: HTMLElement, asks: () => void}} asks: adds the fields for the results of calls
 */
export function turn(message, { redo, results, busy }) {
  const mine = message.role === "user";
  const result = message.role === "tool";
  const body = h("div", { class: "said" });
  const actions = h("div", { class: "actions" });
  const who = mine ? "You" : result ? `Result of ${message.name}` : message.model || "The model";
  const element = h("li", { class: `turn ${message.role}` }, h("h2", { class: "who" }, who), body, actions);

  const view = () => {
    if (mine || result) body.replaceChildren(h("p", { class: "plain-text" }, message.content));
    else {
      const text = h("div", { class: "markdown" });
      const parts = answerParts();
      show(text, message.content, true);
      parts.update(message);
      body.replaceChildren(parts.reasoning, text, parts.calls, h("p", { class: "notes" }, (message.notes ?? []).join(" · ")));
      asks();
    }
  };

  const edit = () => {
    if (busy()) return;
    const input = h("textarea", { rows: Math.min(8, message.content.split("\n").length + 1), "aria-label": "Your message" });
    input.value = message.content;
    const cancel = () => {
      view();
      actions.hidden = false;
      actions.querySelector("button").focus();
    };
    const send = () => input.value.trim() && redo(input.value.trim());
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    body.replaceChildren(input, h("p", { class: "help" }, "The messages after this one are replaced."), h("div", { class: "actions" }, button("Send", send, { class: "primary" }), button("Cancel", cancel, { class: "quiet" })));
    actions.hidden = true;
    input.focus();
  };

  /** Fields for the results of the calls; the page calls no functions itself. */
  function asks() {
    const calls = message.calls ?? [];
    if (!calls.length) return;
    const inputs = calls.map(({ function: { name } }) => h("textarea", { rows: 1, "aria-label": `Result of ${name}`, placeholder: `Result of ${name}` }));
    const send = (event) => {
      event.preventDefault();
      if (!busy()) results(inputs.map((input) => input.value));
    };
    body.append(h("form", { class: "results", onsubmit: send }, ...inputs, h("button", {}, calls.length > 1 ? "Send the results" : "Send the result")));
  }

  if (mine) actions.append(button("Edit", edit, { class: "quiet", "aria-label": "Edit this message" }));
  else if (!result) {
    actions.append(
      button("Regenerate", () => busy() || redo(null), { class: "quiet" }),
      button("Copy", (event) => copy(message.content, event.currentTarget), { class: "quiet", "aria-label": "Copy this answer" }),
    );
  }
  view();
  return { element, body, asks };
}
