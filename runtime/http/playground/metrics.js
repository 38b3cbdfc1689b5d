// The text exposition of /metrics as numbers, and quantiles of its histograms.

import { call } from "./api.js";

/** Samples by name: [{labels, value}]. */
export async function scrape() {
  const found = new Map();
  for (const line of (await (await call("metrics")).text()).split("\n")) {
    const parts = /^([\w:]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = Object.fromEntries([...(parts[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((m) => [m[1], m[2]]));
    if (!found.has(parts[1])) found.set(parts[1], []);
    found.get(parts[1]).push({ labels, value: Number(parts[3]) });
  }
  return found;
}

export const one = (found, name, labels = {}) => (found.get(`shoal:${name}`) ?? [])
  .filter((sample) => Object.entries(labels).every(([key, value]) => sample.labels[key] === value))
  .reduce((sum, sample) => sum + sample.value, 0);

/** Pages of the KV pool by who holds them. */
export const kv = (found, held) => one(found, "pages", { pool: "kv", held });

/** Counts by upper bound, over all outcomes. */
export function buckets(found, name) {
  const counts = new Map();
  for (const { labels, value } of found.get(`shoal:${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/** The quantile q of a histogram, linear inside a bucket as Prometheus has it; null when it is empty. */
export function quantile(counts, q) {
  const bounds = [...counts.keys()].sort((a, b) => a - b);
  const total = counts.get(Infinity) ?? 0;
  if (!total) return null;
  let below = 0, low = 0;
  for (const bound of bounds) {
    const count = counts.get(bound);
    if (count >= q * total) {
      return bound === Infinity ? low : low + ((bound - low) * (q * total - below)) / Math.max(1, count - below);
    }
    [below, low] = [count, bound];
  }
  return low;
}
