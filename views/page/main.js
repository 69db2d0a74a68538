// Where the page begins: the views, and which of them an address shows.

import { watchHealth } from "./banner.js";
import { chatView } from "./chat.js";
import { compareView } from "./compare.js";
import { completeView } from "./complete.js";
import { h } from "./dom.js";
import { embedView } from "./embed.js";
import { keyButton } from "./key.js";
import { liveView } from "./live.js";
import { modelsView } from "./models.js";

const VIEWS = {
  chat: ["Chat", chatView],
  complete: ["Complete", completeView],
  compare: ["Compare", compareView],
  embed: ["Embed", embedView],
  models: ["Models", modelsView],
  live: ["Live", liveView],
};
const main = document.getElementById("main");
const made = new Map();
let current = null;

function view(name) {
  if (!made.has(name)) {
    const [title, make] = VIEWS[name];
    const { element, shown = () => {}, left = () => {} } = make();
    const heading = h("h1", { class: "hidden", tabindex: "-1" }, title);
    element.prepend(heading);
    element.id = `view-${name}`;
    element.hidden = true;
    main.append(element);
    made.set(name, { element, heading, shown, left });
  }
  return made.get(name);
}

function route(moved) {
  if (location.hash && !location.hash.startsWith("#/")) return; // a place within the view
  const asked = location.hash.slice(2);
  const name = asked in VIEWS ? asked : "chat";
  const next = view(name);
  if (next === current) return;
  if (current) {
    current.element.hidden = true;
    current.left();
  }
  current = next;
  next.element.hidden = false;
  next.shown();
  document.title = `${VIEWS[name][0]} · Warmstart`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (moved) next.heading.focus({ preventScroll: true }); // screen readers tell where one is now
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});
addEventListener("hashchange", () => route(true));
keyButton();
watchHealth();
route(false);
