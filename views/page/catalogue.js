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
 * A menu of the models.
 * @param {string} saved a model's id; "" is the default
 * @returns {HTMLSelectElement} its value is an id, or "" for whichever is the default
 */
export function menu(saved = "") {
  const select = h("select", {});
  let wanted = saved;
  let listed;
  select.addEventListener("change", () => (wanted = select.value));
  watch((all) => {
    const ids = all.map(({ id }) => id);
    const names = [`Default${ids.length ? ` (${ids[0]})` : ""}`, ...ids].join("\n");
    if (names === listed) return; // an open menu stays open
    listed = names;
    select.replaceChildren(...["", ...ids].map((id) => h("option", { value: id }, id || names.split("\n")[0])));
    select.value = ids.includes(wanted) ? wanted : "";
  });
  return select;
}
