// The online softmax's arithmetic: what is kept of a query's keys while they come in tile after tile. Pure.
import { count } from "./shared.js";

// What is kept before the first tile and after each: {from, to, highest, rescale, total, acc}; from and to count arrivals.
// scores: a number per key. values: a list of numbers per key, all of one length, which is acc's. keys: the order in which they come.
export function states(scores, values, keys, tile) {
  const found = [{ from: 0, to: 0, highest: -Infinity, rescale: 1, total: 0, acc: values[0].map(() => 0) }];
  for (let from = 0; from < keys.length; from += tile) {
    const before = found[found.length - 1], to = Math.min(keys.length, from + tile), mine = keys.slice(from, to);
    const highest = Math.max(before.highest, ...mine.map((key) => scores[key]));
    const rescale = before.to ? Math.exp(before.highest - highest) : 1; // nothing was summed yet
    const weights = mine.map((key) => Math.exp(scores[key] - highest));
    found.push({ from, to, highest, rescale, total: before.total * rescale + weights.reduce((a, b) => a + b, 0),
                 acc: before.acc.map((kept, d) => kept * rescale + weights.reduce((sum, w, i) => sum + w * values[mine[i]][d], 0)) });
  }
  return found;
}

// Softmax with all scores in hand, and the mean of the values under it.
export function whole(scores, values) {
  const highest = Math.max(...scores), weights = scores.map((s) => Math.exp(s - highest)), total = weights.reduce((a, b) => a + b, 0);
  return values[0].map((_, d) => weights.reduce((sum, w, i) => sum + w * values[i][d], 0) / total);
}

export const digits = (x) => (Number.isFinite(x) ? x.toFixed(3) : "−∞").replace("-", "−");

// What a step did, in a sentence.
export function tellStep(all, step) {
  const now = all[step], before = all[step - 1];
  if (!step) return "Nothing has been read yet: the highest score is −∞ and both sums are 0.";
  const end = step === all.length - 1 ? " That was the last tile: divide acc by the total." : "";
  if (step === 1) return `The first ${count(now.to - now.from, "key")}: highest score ${digits(now.highest)}, and every weight is relative to it.${end}`;
  return (now.highest > before.highest
    ? `A higher score: ${digits(now.highest)} in place of ${digits(before.highest)}. All that was summed is multiplied by e^(old − new) = ${digits(now.rescale)}.`
    : `No higher score in this tile: what was summed stays as it is (the factor is 1).`) + end;
}
