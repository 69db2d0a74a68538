// How alike vectors are: pure functions. How it looks is in embed.js and views.css.

/** The cosine of the angle between two vectors; 0 if one has no direction. @param {number[]} one @param {number[]} other */
export function cosine(one, other) {
  const dot = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  const lengths = Math.sqrt(dot(one, one) * dot(other, other));
  return lengths ? dot(one, other) / lengths : 0;
}

/** The similarities of all vectors, row by row. @param {number[][]} vectors @returns {number[][]} */
export const matrix = (vectors) => vectors.map((one) => vectors.map((other) => cosine(one, other)));

/**
 * How strongly a similarity is coloured, from 0 to 1: the least one of two different texts is pale, 1 is full.
 * @param {number[][]} rows a matrix of similarities
 * @returns {(value: number) => number}
 */
export function scale(rows) {
  const others = rows.flatMap((row, at) => row.filter((_, index) => index !== at));
  const least = Math.min(0.99, ...others);
  return (value) => Math.max(0, Math.min(1, (value - least) / (1 - least)));
}

/** The texts of a field: its lines that are not blank, without repetitions. @param {string} text */
export const lines = (text) => [...new Set(text.split("\n").map((line) => line.trim()).filter(Boolean))];
