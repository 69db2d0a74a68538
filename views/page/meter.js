// The clock of one answer: time to first token, tokens per second. Pure; the time comes from outside.

/** Counts tokens as they come. */
export class Meter {
  /** @param {() => number} now milliseconds */
  constructor(now = () => performance.now()) {
    this.now = now;
    this.start = now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
  }

  /** Tokens have come. @param {number} count */
  add(count) {
    this.last = this.now();
    this.first ??= this.last;
    this.tokens += count;
  }

  /** Seconds until the first token; null before it. */
  get firstToken() {
    return this.first === null ? null : (this.first - this.start) / 1000;
  }

  /**
   * Tokens per second after the first; null where that cannot be told yet.
   * @param {number} [tokens] the true count, where the service has told it
   */
  rate(tokens = this.tokens) {
    const seconds = (this.last - this.first) / 1000;
    return this.first === null || tokens < 2 || seconds <= 0 ? null : (tokens - 1) / seconds;
  }
}

/** A number with as many digits as people read. @param {number} value */
export const short = (value) => (value === 0 || value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** Seconds for people. @param {number|null} value */
export const seconds = (value) => (value === null || value === undefined ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${short(value)} s`);

/** Bytes for people. @param {number|null} value */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const unit = value >= 1e9 ? [1e9, "GB"] : value >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${short(value / unit[0])} ${unit[1]}`;
}

const counted = (count) => `${count} token${count === 1 ? "" : "s"}`;

/**
 * One line of figures.
 * @param {{firstToken: number|null, rate: number|null, tokensIn?: number, tokens: number, cached?: number, cache?: object|null, finish?: string|null}} figures
 * @returns {string[]}
 */
export function describe({ firstToken, rate, tokensIn, tokens, cached, cache, finish }) {
  const kept = cache && ["hit", "shared"].includes(cache.status);
  return [
    kept ? (cache.status === "hit" ? `from the cache${cache.age_seconds ? `, ${Math.round(cache.age_seconds)} s old` : ""}` : "shared with an identical request") : null,
    rate === null || kept ? null : `${short(rate)} tokens/s`,
    firstToken === null ? null : `first token ${seconds(firstToken)}`,
    tokensIn === undefined ? counted(tokens) : `${counted(tokensIn)} in${cached ? ` (${cached} reused)` : ""}, ${tokens} out`,
    finish === "length" ? "cut at the token limit" : null,
  ].filter(Boolean);
}
