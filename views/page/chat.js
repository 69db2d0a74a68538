// The chat view.

import { ask } from "./answer.js";
import { composer } from "./composer.js";
import { button, drawer, h, labelled, say } from "./dom.js";
import { KINDS } from "./generation.js";
import { historyPanel } from "./history.js";
import { requestButton } from "./request_dialog.js";
import { settingsPanel } from "./settings_panel.js";
import { keep, keepChat, newChat, recall } from "./store.js";
import { turn } from "./turn.js";

const SYSTEM = "warmstart.system";
const ALTERNATIVES = 5;
const NEAR_END = 120; // pixels from the end within which the page follows what is written
const IDEAS = ["What is the capital of France?", "Write a haiku about rain.", "Explain a hash table to a child."];

/** A message as the model gets it. @param {import("./store.js").Message} message */
function sent({ role, content, reasoning, calls, call }) {
  return {
    ...{ role, content },
    ...(reasoning ? { reasoning_content: reasoning } : {}),
    ...(calls ? { tool_calls: calls } : {}),
    ...(call ? { tool_call_id: call } : {}),
  };
}

/** Makes the view. @returns {{element: HTMLElement}} */
export function chatView() {
  const system = h("textarea", { rows: 3, placeholder: "none" });
  system.value = recall(SYSTEM, "");
  system.addEventListener("input", () => {
    chat.system = system.value;
    keep(SYSTEM, system.value);
  });
  let chat = newChat(system.value);
  const settings = settingsPanel("chat", "/chat/completions", {
    more: [labelled("System prompt", system, "Instructions for the model before the chat.")],
  });
  const list = h("ol", { class: "transcript", role: "list" });
  const empty = h(
    "div",
    { class: "empty" },
    h("h2", {}, "Ask something"),
    h("div", { class: "ideas" }, ...IDEAS.map((idea) => button(idea, () => field.busy() || submit(idea)))),
  );
  const field = composer({
    label: "Your message",
    placeholder: "Write a message",
    verb: "Send",
    send: (text, signal) => {
      field.input.value = "";
      return speak(text.trim(), signal);
    },
  });
  const past = historyPanel({ open, current: () => chat.id });
  const body = (messages = asked()) => KINDS.chat.body({ messages, ...settings.request() }, settings.probabilities() ? ALTERNATIVES : null);
  const column = h(
    "div",
    { class: "column" },
    h("div", { class: "bar-of-buttons" }, drawer("Chats", past.element), drawer("Settings", settings.element), requestButton("chat", KINDS.chat.path, () => body(preview()))),
    empty,
    list,
    field.element,
  );

  let atEnd = true;
  addEventListener("scroll", () => {
    const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
    atEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
  });

  const submit = (text) => field.run((signal) => speak(text, signal));

  /** The messages as the model gets them. */
  function asked() {
    const before = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
    return [...before, ...chat.messages.map(sent)];
  }

  /** The same with what stands in the field, or an example where there is nothing to send yet. */
  function preview() {
    const text = field.input.value.trim();
    if (text || !chat.messages.length) return [...asked(), { role: "user", content: text || IDEAS[0] }];
    const all = asked();
    return all.at(-1).role === "assistant" ? all.slice(0, -1) : all;
  }

  async function speak(text, signal) {
    chat.messages.push({ role: "user", content: text });
    atEnd = true;
    append(chat.messages.length - 1);
    await answer(signal);
  }

  async function answer(signal) {
    const message = { role: "assistant", content: "" };
    empty.hidden = true;
    if (!settings.check()) {
      say("A setting is out of range.");
      return;
    }
    const request = body();
    const at = chat.messages.push(message) - 1;
    const mine = chat;
    const { element, body: place, asks } = append(at);
    element.querySelector(".actions").hidden = true;
    keepChat(mine);
    past.update();
    const done = await ask({
      kind: "chat",
      body: request,
      signal,
      colours: settings.probabilities(),
      markdown: true,
      element: place,
      again: () => redo(at, null),
      grown: follow,
    });
    Object.assign(message, { content: done.text, notes: done.notes, model: done.model });
    if (done.reasoning) message.reasoning = done.reasoning;
    if (done.calls.length && !done.failed) {
      message.calls = done.calls;
      asks();
    }
    if (done.model) element.querySelector(".who").textContent = done.model;
    element.querySelector(".actions").hidden = done.failed;
    // An answer of which nothing came is no turn: the model would be shown an empty one.
    if (!done.text && !message.calls) mine.messages.splice(at);
    keepChat(mine);
    past.update();
    follow();
  }

  /** Says turn `at` again, in other words or (null) in the model's new ones; what came after it goes. */
  function redo(at, content) {
    if (field.busy()) return;
    shorten(at);
    field.run((signal) => (content === null ? answer(signal) : speak(content, signal)));
    field.input.focus();
  }

  /** Has the results of the calls of answer `at` answered; what came after it goes. */
  function results(at, contents) {
    shorten(at + 1);
    for (const [index, call] of chat.messages[at].calls.entries()) {
      append(chat.messages.push({ role: "tool", content: contents[index], call: call.id, name: call.function.name }) - 1);
    }
    field.run(answer);
    field.input.focus();
  }

  function shorten(length) {
    chat.messages.length = Math.min(length, chat.messages.length);
    while (list.children.length > length) list.lastChild.remove();
  }

  function append(at) {
    empty.hidden = true;
    const made = turn(chat.messages[at], {
      redo: (content) => redo(at, content),
      results: (contents) => results(at, contents),
      busy: field.busy,
    });
    list.append(made.element);
    follow();
    return made;
  }

  /** Stays at the end while somebody reads there, and nowhere else. */
  function follow() {
    if (atEnd) document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
  }

  function open(other) {
    field.stop();
    chat = other ?? newChat(system.value);
    if (other) system.value = chat.system;
    list.replaceChildren();
    for (const at of chat.messages.keys()) append(at);
    empty.hidden = chat.messages.length > 0;
    past.update();
    field.input.focus();
  }

  return { element: h("div", { class: "view with-panels with-history" }, past.element, column, settings.element) };
}
