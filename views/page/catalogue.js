// The served models, as the page knows them, and the menus that list them.

import { json } from "./api.js";
import { h } from "./dom.js";

let entries = [];
const watchers = new Set();

/** The models as last told, the default first. */
export const models = () => entries;

/** Asks for the models and tells everyone who watches. @param {AbortSignal} [signal] */
export async function refresh(signal) {
  entries = (await json("GET", "models", undefined, signal)).data;
  for (const watcher of watchers) watcher(entries);
  return entries;
}

/** Calls a function with the models, now and whenever they are told anew. @param {(models: any[]) => void} watcher */
export function watch(watcher) {
  watchers.add(watcher);
  watcher(entries);
}

/**
 * A menu of the models that do something, and of those that are not loaded, of which that is not known.
 * @param {"generate"|"embed"} task
 * @param {string} [saved] a model's id; "" is the default
 * @returns {HTMLSelectElement} its value is an id, or "" for whichever is the default
 */
export function menu(task, saved = "") {
  const suits = ({ tasks }) => tasks?.includes(task) ?? true;
  const select = h("select", {});
  let wanted = saved;
  let listed;
  select.addEventListener("change", () => (wanted = select.value));
  watch((all) => {
    const ids = all.filter(suits).map(({ id }) => id);
    const first = !all.length || suits(all[0]) ? [`Default${ids.length ? ` (${ids[0]})` : ""}`] : ids.length ? [] : ["None is served"];
    const names = [...first, ...ids].join("\n");
    if (names === listed) return; // an open menu stays open
    listed = names;
    select.replaceChildren(...first.map((name) => h("option", { value: "" }, name)), ...ids.map((id) => h("option", { value: id }, id)));
    select.value = ids.includes(wanted) ? wanted : first.length ? "" : (ids[0] ?? "");
  });
  return select;
}
