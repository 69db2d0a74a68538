// One turn of a chat on the page: yours, with a way to edit it, or the model's, with a way to have it again.

import { button, copy, h } from "./dom.js";
import { show } from "./markdown.js";

/**
 * A turn.
 * @param {import("./store.js").Chat["messages"][number]} message
 * @param {{redo: (content: string|null) => void, busy: () => boolean}} chat redo: with a text, says that instead and
 *   has it answered; with null, has this answered anew
 * @returns {{element: HTMLElement, body: HTMLElement}}
 */
export function turn(message, { redo, busy }) {
  const mine = message.role === "user";
  const body = h("div", { class: "said" });
  const actions = h("div", { class: "actions" });
  const who = mine ? "You" : message.model || "The model";
  const element = h("li", { class: `turn ${message.role}` }, h("h2", { class: "who" }, who), body, actions);

  const view = () => {
    if (mine) body.replaceChildren(h("p", { class: "plain-text" }, message.content));
    else {
      const text = h("div", { class: "markdown" });
      show(text, message.content, true);
      body.replaceChildren(text, h("p", { class: "notes" }, (message.notes ?? []).join(" · ")));
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

  if (mine) actions.append(button("Edit", edit, { class: "quiet", "aria-label": "Edit this message" }));
  else {
    actions.append(
      button("Regenerate", () => busy() || redo(null), { class: "quiet" }),
      button("Copy", (event) => copy(message.content, event.currentTarget), { class: "quiet", "aria-label": "Copy this answer" }),
    );
  }
  view();
  return { element, body };
}
