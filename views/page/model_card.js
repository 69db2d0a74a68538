// One model in the models view. It is made once and told the figures anew each second, so that the focus stays in it.

import { json, modelPath, open } from "./api.js";
import { loading } from "./banner.js";
import { button, h, say, setText, uid } from "./dom.js";
import { bytes, seconds, short } from "./meter.js";
import { fault } from "./patience.js";

const STATES = { unloaded: "not loaded", loading: "loading", ready: "ready", draining: "unloading", failed: "failed" };
const FIGURES = {
  "Memory": (model) => memory(model),
  "Running now": (model) => String(model.running),
  "Requests so far": (model) => String(model.requests),
  "Tokens per second": (model) => short(model.tokens_per_second),
  "First token": (model) => seconds(model.time_to_first_token_seconds),
  "Last used": (model) => ago(model.last_used),
};

/** When something was, for people. @param {number|null} time Unix time in seconds */
export function ago(time, now = Date.now() / 1000) {
  if (time === null || time === undefined) return "never";
  const past = Math.max(0, now - time);
  if (past < 5) return "just now";
  const [size, unit] = past < 120 ? [1, "s"] : past < 7200 ? [60, "min"] : past < 172800 ? [3600, "h"] : [86400, "days"];
  return `${Math.floor(past / size)} ${unit} ago`;
}

/** What a model holds, and may come to hold with long texts. */
function memory({ memory_bytes: held, reserved_bytes: most }) {
  if (!held) return most ? `up to ${bytes(most)} when loaded` : "–";
  return most ? `${bytes(held)}, up to ${bytes(most)}` : bytes(held);
}

/** Makes a card. @param {string} id @returns {{element: HTMLElement, update: (model: any) => void}} */
export function modelCard(id) {
  const heading = h("h2", { id: uid("model") }, id);
  const state = h("span", { class: "state" });
  const marks = h("span", { class: "marks" });
  const values = Object.fromEntries(Object.keys(FIGURES).map((name) => [name, h("dd", {})]));
  const progress = h("div", { class: "progress" });
  const reason = h("p", { class: "reason" });
  const problem = h("div", {});
  const act = (text, done, action) => button(text, (event) => run(event.currentTarget, done, action), { "aria-describedby": heading.id });
  const load = act("Load", "is ready", follow);
  const unload = act("Unload", "is unloaded", () => json("POST", modelPath(id, "unload")));
  const prefer = act("Make default", "is the default now", () => json("PUT", "models/default", { model: id }));
  const figures = Object.entries(values).map(([name, value]) => h("div", {}, h("dt", {}, name), value));
  const element = h(
    "article",
    { class: "card", "aria-labelledby": heading.id },
    h("div", { class: "card-top" }, heading, state, marks),
    progress,
    reason,
    h("dl", {}, ...figures),
    h("div", { class: "actions" }, load, unload, prefer),
    problem,
  );

  async function run(from, done, action) {
    problem.replaceChildren();
    from.setAttribute("aria-disabled", "true");
    try {
      const model = await action();
      update(model);
      const still = model.state === "draining" ? "is unloaded as soon as its requests have ended" : done;
      say(model.state === "failed" ? `${id} could not be loaded: ${model.error}` : `${id} ${still}.`);
    } catch (error) {
      problem.replaceChildren(fault(error));
    }
    from.removeAttribute("aria-disabled");
  }

  /** Loads, and shows how far that is, until it is done. */
  async function follow() {
    let model;
    for await (model of (await open(modelPath(id, "load"), { stream: true })).events) update(model);
    return model;
  }

  /** Shows a model's figures. @param {any} model as GET /models tells */
  function update(model) {
    setText(state, STATES[model.state]);
    state.className = `state ${model.state}`;
    setText(marks, [model.default && "default", model.pinned && "pinned"].filter(Boolean).join(" · "));
    for (const [name, value] of Object.entries(values)) setText(value, FIGURES[name](model));
    if (model.state === "loading") progress.replaceChildren(...loading(model));
    else progress.replaceChildren();
    setText(reason, model.state === "failed" ? (model.error ?? "") : "");
    const offer = { load: !["ready", "loading"].includes(model.state), unload: model.state === "ready", prefer: !model.default };
    show(load, offer.load);
    show(unload, offer.unload);
    show(prefer, offer.prefer);
  }

  /** A button that goes hands the focus on, so that the keyboard does not start at the top again. */
  function show(one, offered) {
    const had = document.activeElement === one;
    one.hidden = !offered;
    if (had && !offered) {
      heading.tabIndex = -1;
      ([load, unload, prefer].find((other) => !other.hidden) ?? heading).focus();
    }
  }

  return { element, update };
}
