// The view of embeddings: a few texts, and a picture of how alike they are.

import { json } from "./api.js";
import { menu } from "./catalogue.js";
import { composer } from "./composer.js";
import { h, labelled, say } from "./dom.js";
import { seconds } from "./meter.js";
import { fault, patiently } from "./patience.js";
import { requestButton } from "./request_dialog.js";
import { lines, matrix, scale } from "./similarity.js";
import { keep, recall } from "./store.js";

const ROUTE = "v1/embeddings";
const SAVED = "warmstart.settings.embed";
const MOST = 16; // texts, so that the picture has room
const EXAMPLE = "A cat sleeps on the sofa.\nThe kitten naps on the couch.\nThe stock market fell today.\nShares lost value this morning.";

/** Makes the view. @returns {{element: HTMLElement}} */
export function embedView() {
  const model = menu("embed", recall(SAVED, {}).model);
  model.addEventListener("change", () => keep(SAVED, { model: model.value }));
  const outcome = h("div", {});
  const request = (text) => ({ ...(model.value ? { model: model.value } : {}), input: lines(text) });
  const field = composer({ label: "Texts, one per line", placeholder: EXAMPLE, verb: "Compare", rows: 5, send: embed });

  async function embed(text, signal) {
    const texts = lines(text);
    if (texts.length < 2 || texts.length > MOST) {
      outcome.replaceChildren(h("p", { class: "fault", role: "alert" }, `Write between 2 and ${MOST} different texts, one per line.`));
      return;
    }
    const began = performance.now();
    try {
      const answer = await patiently(() => json("POST", ROUTE, request(text), signal), signal, (why) => outcome.replaceChildren(why));
      const time = (performance.now() - began) / 1000;
      const vectors = answer.data.map(({ embedding }) => embedding);
      const notes = [answer.model, `${vectors[0].length} dimensions`, `${answer.usage.prompt_tokens} tokens`, seconds(time)];
      outcome.replaceChildren(picture(texts, matrix(vectors)), h("p", { class: "notes" }, notes.join(" · ")));
      say("The similarities are there.");
    } catch (error) {
      if (signal.aborted) outcome.replaceChildren();
      else outcome.replaceChildren(fault(error, () => field.element.requestSubmit()));
    }
  }

  return {
    element: h(
      "div",
      { class: "view single" },
      h("div", { class: "bar-of-buttons" }, requestButton("embed", ROUTE, () => request(field.input.value || EXAMPLE))),
      h("p", { class: "lead" }, "A model for embeddings turns each text into a vector; texts with like meanings have like vectors."),
      labelled("Model", model),
      field.element,
      outcome,
    ),
  };
}

/** The similarities as a coloured table. @param {string[]} texts @param {number[][]} rows */
function picture(texts, rows) {
  const strength = scale(rows);
  const cell = (value) => {
    const made = h("td", {}, value.toFixed(2));
    made.style.setProperty("--share", strength(value).toFixed(3));
    return made;
  };
  const head = (text, at) => h("th", { scope: "col", title: text }, h("span", { class: "hidden" }, `Text `), String(at + 1));
  const row = (text, at) => h("tr", {}, h("th", { scope: "row", title: text }, `${at + 1}  ${text}`), ...rows[at].map(cell));
  return h(
    "div",
    { class: "block", tabindex: "0", role: "group", "aria-label": "Similarities" },
    h(
      "table",
      { class: "heat" },
      h("caption", {}, "Cosine similarity: 1 is the same direction. The stronger the colour, the more alike the two texts."),
      h("thead", {}, h("tr", {}, h("td", {}), ...texts.map(head))),
      h("tbody", {}, ...texts.map(row)),
    ),
  );
}
