// The API key: kept for this tab, sent as a bearer token, never stored anywhere else.

import { apiKey, setApiKey } from "./api.js";
import { button, dialog, h, labelled, say } from "./dom.js";

/** Wires the button at the top. */
export function keyButton() {
  const opener = document.getElementById("key");
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  const mark = () => {
    opener.textContent = apiKey() ? "API key ✓" : "API key";
    opener.setAttribute("aria-label", apiKey() ? "API key, set" : "API key, not set");
  };
  const set = (key) => {
    setApiKey(key);
    mark();
    box.close();
    say(key ? "The key is kept until this tab closes." : "The key was removed.");
    document.dispatchEvent(new Event("key"));
  };
  const form = h(
    "form",
    {
      onsubmit: (event) => {
        event.preventDefault();
        set(input.value.trim());
      },
    },
    labelled("Key", input, "Sent with each request as a bearer token. It is kept in this tab only, and gone when the tab closes."),
    h("div", { class: "actions" }, h("button", { class: "primary" }, "Use it"), button("Forget it", () => set(""), { class: "quiet" })),
  );
  const box = dialog("API key", form);
  opener.addEventListener("click", () => {
    input.value = apiKey();
    box.showModal();
    input.focus();
  });
  mark();
}
