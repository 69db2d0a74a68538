// Markdown from a model, shown so that it can do nothing: no HTML of its own, no images, no address is asked for.

import { button, copy, h } from "./dom.js";

const { marked, DOMPurify } = globalThis;

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

const reader = new marked.Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escaped(text)}</p>` : escaped(text)), // as it was written
    image: ({ text, href }) => escaped(`[image: ${text || href}]`),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

// The second lock on the door, and the only way past the page's trusted types.
const ALLOWED = {
  ALLOWED_TAGS: "p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li table thead tbody tr th td a".split(" "),
  ALLOWED_ATTR: ["href", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

/**
 * Shows a text.
 * @param {HTMLElement} element its content is replaced
 * @param {string} text Markdown
 * @param {boolean} whole whether the text is complete, and its code may be copied
 */
export function show(element, text, whole) {
  element.innerHTML = DOMPurify.sanitize(reader.parse(text), ALLOWED);
  for (const link of element.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    // A model may write one address and mean another.
    if (link.textContent !== link.getAttribute("href")) link.after(h("span", { class: "address" }, ` (${link.getAttribute("href")})`));
  }
  for (const heading of element.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    // An answer's headings are none of the page's.
    heading.replaceWith(h("p", { class: `heading ${heading.tagName.toLowerCase()}` }, ...heading.childNodes));
  }
  for (const block of element.querySelectorAll("pre, table")) {
    const box = h("div", { class: "block", tabindex: "0", role: "group", "aria-label": block.tagName === "PRE" ? "Code" : "Table", "data-copy": true });
    block.replaceWith(box);
    box.append(block);
    if (whole && block.tagName === "PRE") {
      const text = block.textContent;
      box.append(button("Copy", (event) => copy(text, event.currentTarget), { class: "quiet copies" }));
    }
  }
}
