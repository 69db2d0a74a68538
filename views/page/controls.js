// Sampling controls, made from the fields of a request.

import { button, h, labelled, uid } from "./dom.js";

const SLIDER_WIDTH = 10; // ranges wider than this are typed

/** A field's name for people. @param {string} name */
export const title = (name) => name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

/**
 * A group of controls.
 * @param {import("./schema.js").Field[]} fields
 * @param {{saved?: Record<string, any>, changed?: (values: Record<string, any>) => void, help?: boolean, empty?: string}} [options]
 *   saved: values from another time; changed: told the values after each change; help: whether to show each field's;
 *   empty: what a number that is left out is called
 * @returns {{element: HTMLElement, values: () => Record<string, any>, check: () => boolean}} values are those that are
 *   not the default; check shows what is wrong and says whether all is well
 */
export function controls(fields, { saved = {}, changed = () => {}, help = true, empty = "not set" } = {}) {
  const made = fields.map((field) => control(field, saved[field.name], help, empty));
  const values = () => Object.fromEntries(made.flatMap(({ name, get }) => (get() === undefined ? [] : [[name, get()]])));
  const reset = button("Reset to defaults", () => {
    for (const { clear } of made) clear();
    changed(values());
  });
  reset.className = "quiet";
  const element = h("div", { class: "controls", oninput: () => changed(values()) }, ...made.map((one) => one.element), reset);
  return {
    element,
    values,
    check: () => made.every(({ input }) => input.reportValidity()),
  };
}

function control(field, saved, help, empty) {
  const { kind } = field;
  const made = (MAKERS[kind] ?? number)(field, empty);
  if (saved !== undefined) made.set(saved);
  const hint = help ? [field.help, range(field)].filter(Boolean).join(" ") : "";
  const element = labelled(title(field.name), made.input, hint);
  if (made.slider) {
    made.slider.setAttribute("aria-labelledby", uid("slider"));
    element.querySelector("label").id = made.slider.getAttribute("aria-labelledby");
    element.insertBefore(h("div", { class: "slide" }, made.slider, made.input), element.children[1]);
  }
  element.dataset.name = field.name;
  return { name: field.name, element, input: made.input, get: made.get, clear: () => made.set(field.default) };
}

/** A field's range in words. @param {import("./schema.js").Field} field */
export function range({ kind, minimum, maximum, above, default: usual }) {
  if (kind !== "number" && kind !== "integer") return "";
  const least = above !== undefined ? `above ${above}` : minimum;
  const bounds = Number.isSafeInteger(maximum) || kind === "number" ? `${least} to ${maximum}` : "any integer";
  return `(${bounds}${usual === null ? "" : `; default ${usual}`})`;
}

function number({ kind, minimum, maximum, above, optional, default: usual, help }, empty) {
  const step = kind === "integer" ? 1 : "any";
  const safe = (bound) => (bound === undefined ? null : Math.max(Number.MIN_SAFE_INTEGER, Math.min(Number.MAX_SAFE_INTEGER, bound)));
  const bounds = { min: safe(minimum ?? above), max: safe(maximum), step };
  const input = h("input", { type: "number", inputmode: "decimal", required: !optional, placeholder: optional ? empty : null, title: help, ...bounds });
  const narrow = kind === "number" && !optional && maximum - (minimum ?? above) <= SLIDER_WIDTH;
  const slider = narrow ? h("input", { type: "range", ...bounds, step: 0.01, tabindex: "-1" }) : null;
  const settle = () => {
    if (slider) slider.value = input.value;
    input.setCustomValidity(above !== undefined && input.value !== "" && Number(input.value) <= above ? `Must be above ${above}.` : "");
  };
  input.addEventListener("input", settle);
  slider?.addEventListener("input", () => {
    input.value = slider.value;
    settle();
  });
  const set = (value) => {
    input.value = value ?? "";
    settle();
  };
  set(usual);
  return { input, slider, set, get: () => (input.value === "" || Number(input.value) === usual ? undefined : Number(input.value)) };
}

function tick({ default: usual }) {
  const input = h("input", { type: "checkbox" });
  const set = (value) => (input.checked = Boolean(value));
  set(usual);
  return { input, set, get: () => (input.checked === Boolean(usual) ? undefined : input.checked) };
}

/** A text, which is left out where it is empty. */
function line({ default: usual }) {
  const input = h("input", { type: "text", spellcheck: "false", placeholder: "not set" });
  const set = (value) => (input.value = value ?? "");
  set(usual);
  return { input, set, get: () => (input.value === "" || input.value === usual ? undefined : input.value) };
}

/** An object or a list, written as JSON. */
function structure({ kind }) {
  const input = h("textarea", { rows: 2, spellcheck: "false", placeholder: kind === "list" ? "JSON, as in [ … ]" : "JSON, as in { … }" });
  const read = () => {
    try {
      return JSON.parse(input.value);
    } catch {
      return undefined;
    }
  };
  const check = () => input.setCustomValidity(input.value.trim() === "" || read() !== undefined ? "" : "This is not JSON.");
  input.addEventListener("input", check);
  const set = (value) => {
    input.value = value === null || value === undefined ? "" : JSON.stringify(value, null, 1);
    check();
  };
  return { input, set, get: () => read() ?? undefined };
}

/** Texts, one a line; or, for a map, a name and a number a line, with an equals sign between them. */
function lines({ kind }) {
  const map = kind === "map";
  const input = h("textarea", { rows: 2, spellcheck: "false", placeholder: map ? "11126 = -100" : "one per line" });
  const pairs = () => input.value.split("\n").filter((line) => line.trim()).map((line) => line.split("=").map((part) => part.trim()));
  if (map) {
    input.addEventListener("input", () => {
      const wrong = pairs().find(([id, bias]) => !/^\d+$/.test(id) || !bias || Number.isNaN(Number(bias)));
      input.setCustomValidity(wrong ? `Write a token id, = and a number, not ${wrong.join(" = ")}.` : "");
    });
  }
  const get = () => {
    if (map) return pairs().length ? Object.fromEntries(pairs().map(([id, bias]) => [id, Number(bias)])) : undefined;
    const texts = input.value.split("\n").filter((line) => line !== "");
    return texts.length ? texts : undefined;
  };
  const set = (value) => {
    const listed = map ? Object.entries(value ?? {}).map((pair) => pair.join(" = ")) : (value ?? []);
    input.value = listed.join("\n");
  };
  return { input, set, get };
}

const MAKERS = { texts: lines, map: lines, boolean: tick, text: line, object: structure, list: structure };
