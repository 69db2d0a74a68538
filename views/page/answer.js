// One answer on the page: its text while it comes, its tokens' colours, its figures, and what went wrong.

import { generate } from "./generation.js";
import { answerParts } from "./answer_parts.js";
import { h, say } from "./dom.js";
import { show } from "./markdown.js";
import { describe } from "./meter.js";
import { fault } from "./patience.js";
import { legend, tokenView } from "./token_view.js";
import { summary } from "./tokens.js";

const REDRAW = 60; // milliseconds; reading Markdown anew for each token would be too much

/**
 * Asks, and shows the answer as it comes.
 * @param {object} options
 * @param {"chat"|"complete"} options.kind
 * @param {object} options.body
 * @param {AbortSignal} options.signal
 * @param {boolean} options.colours whether the body asks for log-probabilities
 * @param {boolean} options.markdown whether the text is Markdown
 * @param {HTMLElement} options.element where; what it held is replaced
 * @param {() => void} options.again what "Try again" does
 * @param {() => void} [options.grown] told when the answer has grown on the page
 * @returns {Promise<{text: string, reasoning: string, calls: import("./generation.js").Call[], notes: string[], model?: string, stopped: boolean, failed: boolean}>} never fails
 */
export async function ask({ kind, body, signal, colours, markdown, element, again, grown = () => {} }) {
  const text = h("div", { class: markdown && !colours ? "markdown" : "plain-text" });
  const tokens = colours ? tokenView("The answer's tokens") : null;
  const parts = answerParts();
  const notes = h("p", { class: "notes" }, "…");
  element.replaceChildren(parts.reasoning, ...(tokens ? [legend(), tokens.element] : [text]), parts.calls, notes);
  element.setAttribute("aria-busy", "true");
  say("Writing the answer.");
  let latest = { text: "", reasoning: "", calls: [], entries: [], figures: null };
  let timer = null;

  const draw = (whole) => {
    timer = null;
    if (tokens) tokens.update(latest.text, latest.entries);
    else if (markdown) show(text, latest.text, whole);
    else text.textContent = latest.text;
    parts.update(latest);
    if (latest.figures) notes.textContent = noted(latest).join(" · ");
    grown();
  };

  let failure = null;
  try {
    await generate(kind, body, {
      signal,
      progress: (answer) => {
        latest = answer;
        timer ??= setTimeout(draw, REDRAW, false);
      },
      waiting: (why) => (notes.textContent = why || "…"),
    });
  } catch (error) {
    failure = error;
  }
  clearTimeout(timer);
  draw(true);
  const stopped = failure !== null && signal.aborted;
  const said = [...(latest.figures ? noted(latest) : []), ...(stopped ? ["stopped"] : [])];
  notes.textContent = said.join(" · ");
  if (failure && !stopped) element.append(fault(failure, again));
  element.removeAttribute("aria-busy");
  say(stopped ? "Stopped." : failure ? "" : spoken(latest));
  const { text: written, reasoning, calls, model } = latest;
  return { text: written, reasoning, calls, notes: said, model, stopped, failed: failure !== null && !stopped };
}

function noted({ figures, entries }) {
  const found = summary(entries);
  return [...describe(figures), ...(found ? [`perplexity ${found.perplexity.toFixed(2)}`] : [])];
}

/** An answer for screen readers. */
function spoken({ text, calls }) {
  return [text, ...calls.map((call) => `Calls ${call.function.name}.`)].filter(Boolean).join(" ") || "The answer is empty.";
}
