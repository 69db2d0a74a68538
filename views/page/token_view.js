// A text whose tokens show how sure the model was, and on hover or focus what else it might have said.

import { h, uid } from "./dom.js";
import { LEGEND, level, percent, pieces, visible } from "./tokens.js";

const LINGER = 150; // milliseconds in which the pointer may move from a token to its alternatives

let tip;
let hiding;

function tooltip() {
  if (tip) return tip;
  tip = h("div", { class: "tip", role: "tooltip", id: uid("alternatives"), hidden: true, onmouseenter: () => clearTimeout(hiding), onmouseleave: hide });
  (document.getElementById("main")).append(tip);
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  document.addEventListener("scroll", () => (tip.hidden = true), true);
  return tip;
}

function hide() {
  clearTimeout(hiding);
  hiding = setTimeout(() => (tip.hidden = true), LINGER);
}

function reveal(span, entry) {
  clearTimeout(hiding);
  const box = tooltip();
  const others = entry.top_logprobs.map((other) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${Math.exp(other.logprob) * 100}%`;
    const chosen = other.id === entry.id;
    return h("li", { class: chosen ? "chosen" : null }, h("code", {}, visible(other.token)), h("span", { class: "track" }, bar), h("span", {}, percent(other.logprob)));
  });
  box.replaceChildren(
    h("p", {}, h("code", {}, visible(entry.token)), ` ${percent(entry.logprob)}`, h("small", {}, ` log-probability ${entry.logprob.toFixed(3)}, id ${entry.id}`)),
    others.length ? h("ol", {}, ...others) : "",
  );
  box.hidden = false;
  const at = span.getClientRects()[0];
  const left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8));
  const below = at.bottom + 6 + box.offsetHeight < innerHeight;
  box.style.left = `${left}px`;
  box.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - box.offsetHeight - 6)}px`;
  span.setAttribute("aria-describedby", box.id);
}

/** What the colours and lines mean. */
export const legend = () =>
  h(
    "p",
    { class: "legend" },
    "Probability of each token: ",
    ...LEGEND.map((text, index) => h("span", { class: `token level${4 - index}` }, text)),
    " Point at a token, or reach it with the arrow keys, for what else it might have said.",
  );

/**
 * An empty text.
 * @param {string} label what it is, for screen readers
 * @returns {{element: HTMLElement, update: (text: string, entries: import("./tokens.js").TokenLogprob[]) => void}}
 *   update shows a text that begins with the one before
 */
export function tokenView(label) {
  const element = h("div", { class: "tokens", role: "listbox", "aria-label": label, "aria-orientation": "horizontal" });
  const entryOf = new WeakMap();
  let shown = [];
  const tokenAt = (event) => event.target.closest?.(".token");
  const on = (type, act) => element.addEventListener(type, (event) => tokenAt(event) && act(tokenAt(event), event));
  on("mouseover", (span) => reveal(span, entryOf.get(span)));
  on("mouseout", hide);
  on("focusin", (span) => {
    element.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    span.setAttribute("tabindex", "0");
    reveal(span, entryOf.get(span));
  });
  on("focusout", hide);
  on("keydown", (span, event) => {
    const all = [...element.querySelectorAll(".token")];
    const at = all.indexOf(span);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    all[next]?.focus();
  });

  function span({ text, entry }, index) {
    if (!entry) return h("span", { class: "plain", role: "presentation" }, text);
    const made = h(
      "span",
      { class: `token level${level(entry.logprob)}`, role: "option", "aria-label": `${visible(text)}, ${percent(entry.logprob)}`, tabindex: index ? "-1" : "0" },
      text,
    );
    entryOf.set(made, entry);
    return made;
  }

  function update(text, entries) {
    const now = pieces(text, entries);
    let same = 0;
    while (same < shown.length && same < now.length && shown[same].entry === now[same].entry && shown[same].text === now[same].text) same += 1;
    while (element.childNodes.length > same) element.lastChild.remove();
    element.append(...now.slice(same).map((piece, index) => span(piece, same + index)));
    shown = now;
  }

  return { element, update };
}
