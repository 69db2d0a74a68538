// The compare view: one prompt, two or three models or settings, side by side.

import { open } from "./api.js";
import { composer } from "./composer.js";
import { button, drawer, h, labelled, say } from "./dom.js";
import { bytes, seconds, short } from "./meter.js";
import { fault, patiently } from "./patience.js";
import { requestButton } from "./request_dialog.js";
import { fields, isControl } from "./schema.js";
import { settingsPanel } from "./settings_panel.js";
import { keep, recall } from "./store.js";
import { variant } from "./variant.js";

const ROUTE = "/models/compare";
const SAVED = "warmstart.variants";
const LETTERS = ["A", "B", "C"];
const EXAMPLE = "What is the capital of France?";

/** Makes the view. @returns {{element: HTMLElement}} */
export function compareView() {
  const settings = settingsPanel("compare", ROUTE, { one: false });
  const raw = h("select", {}, h("option", { value: "" }, "A question in a chat"), h("option", { value: "raw" }, "A raw prompt"));
  const columns = h("div", { class: "variants" });
  const outcome = h("div", {});
  const problem = h("div", {});
  let variants = [];
  let own = [];

  const add = button("Add a variant", () => {
    put({});
    remember();
    variants.at(-1).element.querySelector("select").focus();
  });
  const field = composer({ label: "Prompt for all", placeholder: EXAMPLE, verb: "Compare", rows: 2, send: compare });
  const column = h(
    "div",
    { class: "column wide" },
    h("div", { class: "bar-of-buttons" }, drawer("Settings", settings.element), requestButton("compare", ROUTE.slice(1), () => request(field.input.value || EXAMPLE)), add),
    labelled("Kind of prompt", raw),
    field.element,
    problem,
    columns,
    outcome,
  );

  const request = (prompt) => ({
    ...(raw.value ? { prompt } : { messages: [{ role: "user", content: prompt }] }),
    variants: variants.map((one) => one.request()),
    ...settings.request(),
    stream: true,
  });
  const remember = () => keep(SAVED, variants.map((one) => one.saved()));

  function put(saved) {
    const letter = LETTERS.find((free) => !variants.some((one) => one.letter === free));
    const made = variant(letter, own, saved, {
      changed: remember,
      remove: () => {
        variants = variants.filter((one) => one !== made);
        made.element.remove();
        settle();
        remember();
        add.focus();
      },
    });
    made.letter = letter;
    variants.push(made);
    columns.append(made.element);
    settle();
  }

  function settle() {
    add.hidden = variants.length === LETTERS.length;
    for (const one of variants) one.drop.hidden = variants.length <= 2;
  }

  async function fill() {
    problem.replaceChildren();
    try {
      own = (await fields(ROUTE, "variants")).filter(isControl);
      const saved = recall(SAVED, [{}, {}]);
      for (const one of saved.slice(0, LETTERS.length)) put(one);
    } catch (error) {
      problem.replaceChildren(fault(error, fill));
    }
  }

  async function compare(prompt, signal) {
    if (!settings.check() || !variants.every((one) => one.check())) {
      say("A setting is out of range.");
      return;
    }
    const asked = variants;
    outcome.replaceChildren();
    problem.replaceChildren();
    for (const one of asked) one.begin();
    add.disabled = true;
    for (const one of asked) one.drop.disabled = true;
    say("Writing the answers.");
    try {
      const waiting = (why) => problem.replaceChildren(why);
      const { events } = await patiently(() => open(ROUTE.slice(1), request(prompt), signal), signal, waiting);
      for await (const event of events) {
        if (event.answers) outcome.replaceChildren(table(event.answers));
        else if (event.answer) asked[event.index].end(event.answer);
        else asked[event.index].add(event.text);
      }
      say("All answers are complete.");
    } catch (error) {
      for (const one of asked) one.cut(signal.aborted ? "stopped" : "incomplete");
      if (signal.aborted) say("Stopped.");
      else problem.replaceChildren(fault(error, () => field.element.requestSubmit()));
    } finally {
      add.disabled = false;
      for (const one of asked) one.drop.disabled = false;
    }
  }

  fill();
  document.addEventListener("key", () => own.length || fill());
  return { element: h("div", { class: "view with-panels" }, column, settings.element) };
}

/** The figures side by side. @param {any[]} answers */
function table(answers) {
  const models = [...new Set(answers.flatMap(({ mean_logprobs: means }) => Object.keys(means ?? {})))];
  const heads = ["", "Model", "Tokens", "First token", "Tokens/s", "Memory", ...models.map((id) => `Mean log-prob. under ${id}`)];
  const cell = (value) => h("td", {}, value === null || value === undefined ? "–" : value);
  const rows = answers.map((one) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, one.label ?? LETTERS[one.index]),
      cell(one.model),
      cell(String(one.completion_tokens ?? "–")),
      cell(seconds(one.time_to_first_token_seconds)),
      cell(one.tokens_per_second && short(one.tokens_per_second)),
      cell(bytes(one.memory_bytes)),
      ...models.map((id) => cell(one.mean_logprobs?.[id]?.toFixed(3))),
    ),
  );
  return h(
    "div",
    { class: "block", tabindex: "0", role: "group", "aria-label": "Figures" },
    h(
      "table",
      {},
      h("caption", {}, "Statistics. The closer a mean log-probability is to 0, the more likely the text is for the model."),
      h("thead", {}, h("tr", {}, ...heads.map((head) => (head ? h("th", { scope: "col" }, head) : h("td", {}))))),
      h("tbody", {}, ...rows),
    ),
  );
}
