// A text field with a button that sends, and stops while an answer is being written.

import { button, h } from "./dom.js";

/**
 * Makes the field. Enter sends and Shift+Enter is a new line; in a field of several rows Ctrl+Enter sends. Escape stops.
 * @param {{label: string, placeholder: string, verb: string, rows?: number, send: (text: string, signal: AbortSignal) => Promise<void>}} options
 *   send: is told what was written; while it runs the button stops it
 * @returns {{element: HTMLFormElement, input: HTMLTextAreaElement, busy: () => boolean, stop: () => void,
 *   run: (task: (signal: AbortSignal) => Promise<void>) => Promise<void>}} run: does another task that the button stops
 */
export function composer({ label, placeholder, verb, rows = 1, send }) {
  let control = null;
  const input = h("textarea", { rows, placeholder, "aria-label": label, autocomplete: "off" });
  const submit = h("button", { class: "primary" }, verb);
  const stop = button("Stop", () => control?.abort(), { class: "stop", hidden: true });
  const element = h(
    "form",
    {
      class: "composer",
      onsubmit: (event) => {
        event.preventDefault();
        if (!control && input.value.trim()) run((signal) => send(input.value, signal));
      },
    },
    input,
    h("div", { class: "actions" }, h("p", { class: "help" }, rows === 1 ? "Enter sends, Shift+Enter is a new line." : "Ctrl+Enter sends."), submit, stop),
  );
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") control?.abort();
    const sends = rows === 1 ? !event.shiftKey : event.ctrlKey || event.metaKey;
    if (event.key === "Enter" && sends && !event.isComposing) {
      event.preventDefault();
      element.requestSubmit();
    }
  });

  async function run(task) {
    const mine = (control = new AbortController());
    submit.hidden = true;
    stop.hidden = false;
    if (document.activeElement === submit) stop.focus();
    try {
      await task(mine.signal);
    } finally {
      if (document.activeElement === stop) input.focus();
      submit.hidden = false;
      stop.hidden = true;
      control = null;
    }
  }

  return { element, input, busy: () => control !== null, stop: () => control?.abort(), run };
}
