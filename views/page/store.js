// What the page remembers. It stays in this browser; the service keeps no chats.

const CHATS = "warmstart.chats";
const MOST_CHATS = 50;

/** Reads a value. @param {string} name @param {any} otherwise where there is none, or none that can be read */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keeps a value. @param {string} name @param {any} value @returns {boolean} false where there is no room or no storage */
export function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/**
 * A message of a chat. An answer may have reasoning and calls of functions; a tool's message is the result of one.
 * @typedef {object} Message
 * @property {"user"|"assistant"|"tool"} role
 * @property {string} content
 * @property {string} [reasoning]
 * @property {import("./generation.js").Call[]} [calls]
 * @property {string} [call] of a tool's message: the id of the call
 * @property {string} [name] of a tool's message: the function
 * @property {string} [model]
 * @property {string[]} [notes]
 */

/**
 * A chat.
 * @typedef {object} Chat
 * @property {string} id
 * @property {string} system
 * @property {Message[]} messages
 * @property {number} updated Unix time in milliseconds
 */

/** All chats, the latest first. @returns {Chat[]} */
export function chats() {
  const found = recall(CHATS, []);
  return Array.isArray(found) ? found.filter((chat) => typeof chat?.id === "string" && Array.isArray(chat.messages)) : [];
}

/** Keeps a chat; the oldest others go where there is no room. @param {Chat} chat @returns {boolean} whether it is kept */
export function keepChat(chat) {
  const all = [{ ...chat, updated: Date.now() }, ...chats().filter(({ id }) => id !== chat.id)].slice(0, MOST_CHATS);
  while (all.length && !keep(CHATS, all)) all.pop();
  return all.length > 0;
}

/** Forgets a chat. @param {string} id */
export const dropChat = (id) => keep(CHATS, chats().filter((chat) => chat.id !== id));

/** Forgets all chats. */
export const dropChats = () => localStorage.removeItem(CHATS);

/** A new, empty chat. @param {string} system @returns {Chat} */
export const newChat = (system) => ({
  id: `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`,
  system,
  messages: [],
  updated: Date.now(),
});

/** What a chat is called: how it begins. @param {Chat} chat */
export const titleOf = (chat) => chat.messages[0]?.content.trim().replace(/\s+/g, " ").slice(0, 60) || "New chat";
