// Elements, and the few things that all views do with them.

/**
 * Makes an element. Text goes in as text: nothing here ever parses HTML.
 * @param {string} tag
 * @param {Record<string, unknown>} [properties] attributes; `onclick` and the like are listeners; true sets an empty
 *   attribute, false and null leave it out
 * @param {...(Node|string|null|false)} children null and false are left out
 * @returns {HTMLElement}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

let numbers = 0;

/** An id that no other element has. @param {string} name */
export const uid = (name) => `${name}-${(numbers += 1)}`;

/** A button. @param {string} text @param {(event: Event) => void} onclick @param {Record<string, unknown>} [more] */
export const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);

/**
 * A control with its label and, if given, a line of help that screen readers tell with it.
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [help]
 */
export function labelled(label, control, help) {
  control.id ||= uid("field");
  const hint = help ? h("p", { class: "help", id: `${control.id}-help` }, help) : null;
  if (hint) control.setAttribute("aria-describedby", hint.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint);
}

/** Has screen readers say something, once, when they are done with what they say now. @param {string} text */
export function say(text) {
  const region = document.getElementById("said");
  region.textContent = "";
  region.append(h("p", {}, text)); // a new node is news even if the text is the same
}

/** Sets a text only where it changes, so that a selection in it stays. @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Copies a text, and says so on the button. @param {string} text @param {HTMLElement} from */
export async function copy(text, from) {
  const before = from.textContent;
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Press Ctrl+C"; // no clipboard without HTTPS or permission: select it instead
    getSelection().selectAllChildren(from.closest("[data-copy]")?.querySelector("code") ?? from);
  }
  say(from.textContent);
  setTimeout(() => (from.textContent = before), 1500);
}

/**
 * A panel that stands beside the content where there is room, and slides over it on demand where there is none.
 * @param {string} name what the button says
 * @param {HTMLElement} panel
 * @returns {HTMLElement} the button; it shows on narrow windows only (see base.css)
 */
export function drawer(name, panel) {
  panel.id ||= uid("panel");
  const toggle = button(name, () => set(true), { class: "quiet opens", "aria-expanded": "false", "aria-controls": panel.id });
  const set = (open) => {
    panel.classList.toggle("open", open);
    toggle.setAttribute("aria-expanded", String(open));
    if (open) close.focus();
    else if (panel.contains(document.activeElement)) toggle.focus();
  };
  const close = button("Close", () => set(false), { class: "quiet closes" });
  panel.prepend(close);
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && panel.classList.contains("open")) set(false);
  });
  panel.addEventListener("close-drawer", () => set(false));
  return toggle;
}

/** A modal dialog with a heading and a way out; the browser keeps the focus in it. @param {string} title */
export function dialog(title, ...children) {
  const heading = h("h2", { id: uid("dialog") }, title);
  const element = h(
    "dialog",
    { "aria-labelledby": heading.id },
    h("div", { class: "dialog-top" }, heading, button("Close", () => element.close(), { class: "quiet" })),
    ...children,
  );
  element.addEventListener("click", (event) => event.target === element && element.close()); // the backdrop
  document.body.append(element);
  return element;
}
