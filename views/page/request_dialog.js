// "Show request": what the page would send, as curl and as Python.

import { address, apiKey } from "./api.js";
import { button, copy, dialog, h, uid } from "./dom.js";
import { curl, python } from "./snippets.js";

/**
 * A button that shows a request.
 * @param {"chat"|"complete"|"compare"|"embed"} kind
 * @param {string} path
 * @param {() => object} body the request as it would be sent now
 */
export function requestButton(kind, path, body) {
  let made;
  return button(
    "Show request",
    () => {
      made ??= make();
      const shown = body();
      const url = address(path);
      made.fill(curl(url, shown, Boolean(apiKey())), python(kind, url, shown, Boolean(apiKey())));
      made.box.showModal();
    },
    { class: "quiet" },
  );
}

function make() {
  const parts = ["as curl", "as Python"].map((name) => {
    const code = h("code", {});
    const heading = h("h3", { id: uid("snippet") }, name);
    const head = h("div", { class: "dialog-top" }, heading, button("Copy", (event) => copy(code.textContent, event.currentTarget), { class: "quiet", "aria-label": `Copy ${name}` }));
    const element = h("section", { class: "snippet", "aria-labelledby": heading.id, "data-copy": true }, head, h("pre", { tabindex: "0" }, code));
    return { code, element };
  });
  const note = h("p", { class: "help" }, "The key, if one is set, is read from the environment variable API_KEY; it is not written out here.");
  return {
    box: dialog("This request", ...parts.map(({ element }) => element), note),
    fill: (...texts) => texts.forEach((text, index) => (parts[index].code.textContent = text)),
  };
}
