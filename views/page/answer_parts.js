// What an answer has besides its text: the reasoning before it, and the calls of functions after it.

import { h, setText } from "./dom.js";

/**
 * The parts of an answer, empty and hidden at first.
 * @returns {{reasoning: HTMLElement, calls: HTMLElement, update: (answer: {reasoning?: string, calls?: import("./generation.js").Call[]}) => void}}
 *   update shows the parts as far as they have come
 */
export function answerParts() {
  const thought = h("div", { class: "plain-text" });
  const reasoning = h("details", { class: "reasoning", hidden: true }, h("summary", {}, "Reasoning"), thought);
  const calls = h("ul", { class: "calls", role: "list", hidden: true });

  function update({ reasoning: text = "", calls: made = [] }) {
    reasoning.hidden = text === "";
    setText(thought, text);
    calls.hidden = made.length === 0;
    for (const [index, call] of made.entries()) {
      const item = calls.children[index] ?? calls.appendChild(h("li", { class: "call" }, h("p", {}), h("pre", {}, h("code", {}))));
      setText(item.querySelector("p"), `Calls ${call.function.name}`);
      setText(item.querySelector("code"), readable(call.function.arguments));
    }
  }

  return { reasoning, calls, update };
}

/** Arguments on lines of their own; as they are while they are incomplete. @param {string} text */
function readable(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
