// From answers of GET /stats to points of charts: pure functions.

/** Answers kept: five minutes of one a second. */
export const KEPT = 300;

const RECENT = 60; // seconds over which the recent hit rate is taken

/**
 * The oldest of the answers within the last minute before one.
 * @param {any[]} history the latest last
 * @param {number} at which one
 */
export function tail(history, at) {
  let from = at;
  while (from > 0 && history[at].time - history[from - 1].time <= RECENT) from -= 1;
  return history[from];
}

/**
 * One point of every line. Of several models, counts are summed, and of the rest the worst is shown.
 * @param {any} stats an answer of /stats
 * @param {string} model whose figures; "" for all
 * @param {any} before an earlier answer, for the recent hit rate
 */
export function sample(stats, model, before) {
  const chosen = stats.models.filter(({ id }) => !model || id === model);
  const sum = (name) => chosen.reduce((total, one) => total + one[name], 0);
  const worst = (values) => (values.some((value) => value !== null && value !== undefined) ? Math.max(...values.filter(Number.isFinite)) : null);
  const { hits, shared, misses } = stats.cache;
  const answered = hits + shared - before.cache.hits - before.cache.shared;
  const asked = answered + misses - before.cache.misses;
  return {
    time: stats.time,
    running: sum("running"),
    waiting: sum("waiting"),
    rate: sum("tokens_per_second"),
    firstMiddle: worst(chosen.map((one) => one.time_to_first_token?.p50)),
    firstWorst: worst(chosen.map((one) => one.time_to_first_token?.p95)),
    kv: worst(chosen.map((one) => one.kv_usage)),
    hits: hits + shared + misses > 0 ? stats.cache.rate : null,
    recentHits: asked > 0 ? answered / asked : null,
    memory: stats.memory.process_bytes,
    held: stats.memory.models_bytes,
  };
}
