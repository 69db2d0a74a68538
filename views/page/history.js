// The list of chats that this browser has kept.

import { button, h, say, uid } from "./dom.js";
import { chats, dropChat, dropChats, titleOf } from "./store.js";

/**
 * Makes the list.
 * @param {{open: (chat: import("./store.js").Chat|null) => void, current: () => string}} options open: told which chat
 *   to show, null for a new one; current: the id of the one shown
 * @returns {{element: HTMLElement, update: () => void}}
 */
export function historyPanel({ open, current }) {
  const heading = h("h2", { id: uid("chats") }, "Chats");
  const list = h("ul", {});
  const clear = button("Delete all", () => confirm("Delete all chats from this browser?") && forget(dropChats), { class: "quiet" });
  const element = h(
    "aside",
    { class: "panel history", "aria-labelledby": heading.id },
    heading,
    button("New chat", () => pick(null), { class: "wide" }),
    list,
    h("p", { class: "help" }, "Chats are stored in this browser only, not by the service."),
    clear,
  );

  function pick(chat) {
    element.dispatchEvent(new Event("close-drawer"));
    open(chat);
  }

  function forget(drop) {
    drop();
    say("Deleted.");
    if (!chats().some(({ id }) => id === current())) open(null);
    update();
    (list.querySelector("button") ?? element.querySelector("button.wide")).focus();
  }

  function update() {
    const all = chats();
    list.replaceChildren(
      ...all.map((chat) => {
        const title = titleOf(chat);
        return h(
          "li",
          {},
          button(title, () => pick(chat), { class: "quiet chat", "aria-current": chat.id === current() ? "true" : null }),
          button("×", () => forget(() => dropChat(chat.id)), { class: "quiet", "aria-label": `Delete the chat ${title}` }),
        );
      }),
    );
    clear.hidden = all.length === 0;
  }

  update();
  return { element, update };
}
