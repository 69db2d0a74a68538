// A chart with its figures beside it, and the same as a table for who cannot see it or wants numbers.

import { h, setText, uid } from "./dom.js";

const { uPlot } = globalThis;
const HEIGHT = 170; // pixels
const ROWS = 20; // of the table
const DASHES = [[], [6, 4], [2, 3]]; // so that colour is not all that tells lines apart

const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hourCycle: "h23" });
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Makes a chart over time.
 * @param {string} title
 * @param {string[]} names of its lines
 * @param {(value: number) => string} format how a value is written
 * @returns {{element: HTMLElement, update: (rows: number[][]) => void}} rows: Unix times, then the values of each line
 */
export function chart(title, names, format) {
  const figure = h("div", { class: "plot" });
  const values = names.map(() => h("b", {}, "–"));
  const keys = names.map((name, at) => h("li", {}, h("span", { class: `line line${at}` }), `${name} `, values[at]));
  const heading = h("h2", { id: uid("chart") }, title);
  const body = h("tbody", {});
  const heads = ["Time", ...names].map((name) => h("th", { scope: "col" }, name));
  const table = h("table", {}, h("caption", { class: "hidden" }, `${title}, the latest first`), h("thead", {}, h("tr", {}, ...heads)), body);
  const more = h("details", { ontoggle: () => fill() }, h("summary", {}, "As a table", h("span", { class: "hidden" }, `: ${title}`)), h("div", { class: "block", tabindex: "0", role: "group", "aria-label": title }, table));
  const element = h("section", { class: "card chart", "aria-labelledby": heading.id }, heading, h("ul", { class: "keys" }, ...keys), figure, more);
  figure.setAttribute("aria-hidden", "true"); // the figures and the table say the same
  let plot = null;
  let rows = [[], ...names.map(() => [])];

  const write = (value) => (value === null || value === undefined ? "–" : format(value));

  function draw() {
    plot?.destroy();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    plot = new uPlot(
      {
        width: figure.clientWidth || 320,
        height: HEIGHT,
        legend: { show: false },
        cursor: { drag: { x: false, y: false } },
        scales: { y: { range: (_, least, most) => [Math.min(0, least ?? 0), most > 0 ? most * 1.1 : 1] } },
        axes: [
          { ...axis, space: 70, size: 30, incrs: [1, 2, 5, 10, 15, 30, 60, 120], values: (_, times) => times.map(clock) },
          { ...axis, size: 64, values: (_, ticks) => ticks.map(format) },
        ],
        series: [{}, ...names.map((name, at) => ({ label: name, stroke: colour(`line${at}`), width: 2, dash: DASHES[at], points: { show: false }, spanGaps: false }))],
      },
      rows,
      figure,
    );
  }

  function fill() {
    if (!more.open) return;
    const latest = rows[0].map((_, at) => at).slice(-ROWS).reverse();
    body.replaceChildren(
      ...latest.map((at) => h("tr", {}, h("th", { scope: "row" }, clock(rows[0][at])), ...rows.slice(1).map((line) => h("td", {}, write(line[at]))))),
    );
  }

  new ResizeObserver(() => plot?.setSize({ width: figure.clientWidth, height: HEIGHT })).observe(figure);
  document.addEventListener("theme", () => plot && draw());

  return {
    element,
    update(next) {
      rows = next;
      if (plot) plot.setData(rows);
      else if (figure.clientWidth) draw();
      values.forEach((value, at) => setText(value, write(rows[at + 1].at(-1))));
      fill();
    },
  };
}
