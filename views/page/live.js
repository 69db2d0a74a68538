// The live view: what the service does, second by second, from GET /stats.

import { json } from "./api.js";
import { chart } from "./charts.js";
import { h, labelled, setText } from "./dom.js";
import { bytes, seconds } from "./meter.js";
import { fault } from "./patience.js";
import { poll } from "./poll.js";
import { KEPT, sample, tail } from "./samples.js";

const share = (value) => `${count(value * 100)} %`;
const count = (value) => String(Math.round(value * 10) / 10);

const CHARTS = [
  ["Requests", { running: "running", waiting: "waiting" }, count],
  ["Tokens per second", { rate: "generated" }, count],
  ["Time to first token", { firstMiddle: "median", firstWorst: "95th percentile" }, seconds],
  ["Memory for keys and values in use", { kv: "in use" }, share],
  ["Response cache", { hits: "hits, since the service began", recentHits: "hits, last minute" }, share],
  ["Memory", { memory: "process", held: "models" }, bytes],
];

/** Makes the view. @returns {{element: HTMLElement, shown: () => void, left: () => void}} */
export function liveView() {
  const model = h("select", {}, h("option", { value: "" }, "All models"));
  const facts = h("p", { class: "lead" });
  const problem = h("div", {});
  const charts = CHARTS.map(([title, lines, format]) => ({ lines: Object.keys(lines), ...chart(title, Object.values(lines), format) }));
  const history = []; // answers of /stats while the tab is open, the latest last

  const ask = async (signal) => {
    try {
      history.push(await json("GET", "stats", undefined, signal));
      history.splice(0, history.length - KEPT);
      problem.replaceChildren();
      draw();
    } catch (error) {
      if (!signal.aborted && problem.textContent.indexOf(error.message) < 0) problem.replaceChildren(fault(error));
    }
  };
  const loop = poll(ask, () => 1);

  function draw() {
    const stats = history.at(-1);
    const ids = stats.models.map(({ id }) => id);
    if (ids.join("\n") !== model.dataset.ids) {
      const chosen = model.value;
      model.replaceChildren(...["", ...ids].map((id) => h("option", { value: id }, id || "All models")));
      model.value = ids.includes(chosen) ? chosen : "";
      model.dataset.ids = ids.join("\n");
    }
    setText(facts, `Version ${stats.version}, up for ${duration(stats.uptime_seconds)}. Response cache: ${stats.cache.store}, ${stats.cache.entries} answers kept, ${stats.cache.saved_tokens} tokens saved.`);
    const samples = history.map((one, at) => sample(one, model.value, tail(history, at)));
    const times = samples.map(({ time }) => time);
    for (const { lines, update } of charts) update([times, ...lines.map((line) => samples.map((one) => one[line]))]);
  }

  model.addEventListener("change", () => history.length && draw());
  const element = h(
    "div",
    { class: "view single" },
    h("div", { class: "live-top" }, facts, labelled("Shown", model)),
    problem,
    h("div", { class: "cards charts" }, ...charts.map((one) => one.element)),
    h("p", { class: "help" }, "Updated every second while this view is visible; the last five minutes are kept until the tab closes."),
  );
  return { element, shown: loop.start, left: loop.stop };
}

/** A time span for people. @param {number} value seconds */
function duration(value) {
  const [size, unit] = value < 120 ? [1, "s"] : value < 7200 ? [60, "min"] : value < 172800 ? [3600, "h"] : [86400, "days"];
  return `${Math.floor(value / size)} ${unit}`;
}
