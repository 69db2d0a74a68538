// Probabilities of tokens: pure functions. How they look is in token_view.js and base.css.

/**
 * @typedef {{token: string, logprob: number, bytes: number[], id: number, top_logprobs: object[]}} TokenLogprob
 */

/** Least probabilities of the levels 4 (sure) to 1; below them is level 0. */
const LEVELS = [0.9, 0.6, 0.3, 0.1];

/** What each level means, from 4 to 0. */
export const LEGEND = ["90 % and more", "60 to 90 %", "30 to 60 %", "10 to 30 %", "below 10 %"];

/** How sure a token was: 4 (very) to 0 (not at all). @param {number} logprob natural logarithm */
export function level(logprob) {
  const found = LEVELS.findIndex((least) => Math.exp(logprob) >= least);
  return found === -1 ? 0 : LEVELS.length - found;
}

/** A probability for people. @param {number} logprob natural logarithm */
export function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share >= 99.95) return share > 99.995 ? "100 %" : "99.9 %";
  if (share >= 10) return `${share.toFixed(1)} %`;
  return share >= 0.01 ? `${share.toPrecision(2)} %` : "below 0.01 %";
}

/** A token's text so that blanks and line ends show. @param {string} text */
export const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

/**
 * The pieces of a text, each with the token that wrote it. Characters that several tokens share go to the last of them;
 * tokens behind the text (the end mark, a stop string) are left out.
 * @param {string} text
 * @param {TokenLogprob[]} entries
 * @returns {{text: string, entry: TokenLogprob|null}[]} joined, they are the text
 */
export function pieces(text, entries) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const found = [];
  let at = 0;
  for (const entry of entries) {
    const part = decoder.decode(Uint8Array.from(entry.bytes), { stream: true }).slice(0, text.length - at);
    if (part === "") continue;
    if (!text.startsWith(part, at)) break; // a tokenizer whose tokens are not its text's bytes
    found.push({ text: part, entry });
    at += part.length;
  }
  if (at < text.length) found.push({ text: text.slice(at), entry: null });
  return found;
}

/** Mean log-probability and perplexity of tokens. @param {TokenLogprob[]} entries @returns {{mean: number, perplexity: number}|null} */
export function summary(entries) {
  if (!entries.length) return null;
  const mean = entries.reduce((sum, entry) => sum + entry.logprob, 0) / entries.length;
  return { mean, perplexity: Math.exp(-mean) };
}
