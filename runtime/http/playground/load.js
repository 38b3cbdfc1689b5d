// Small charts of the server's load, from /metrics.

import { el, percent, whole } from "./api.js";
import { buckets, kv, one, quantile, scrape } from "./metrics.js";

const KEPT = 150;
const WINDOW = 30;
const RATE = 4;
const seconds = (value) => (value === null ? "no answers" : value < 1 ? `${whole(1000 * value)} ms` : `${value.toFixed(1)} s`);
const CHARTS = [
  ["Running requests", whole, (m) => one(m, "num_running_reqs")],
  ["Waiting requests", whole, (m) => one(m, "num_queue_reqs")],
  ["Tokens a second", whole, rate("generation_tokens_total")],
  ["Memory pages in use", percent, (m) => 1 - kv(m, "free") / Math.max(1, kv(m, "all"))],
  ["Prompt tokens from cache", percent, (m) => one(m, "cache_hit_rate")],
  ["Answer time, p50 and p99", seconds, ...quantiles("e2e_request_latency_seconds")],
  ["First text, p50 and p99", seconds, ...quantiles("time_to_first_token_seconds")],
];

/** A reader of how fast a counter has grown over the latest scrapes. */
function rate(name) {
  const seen = [];
  return (found) => {
    seen.push([performance.now() / 1000, one(found, name)]);
    if (seen.length > RATE) seen.shift();
    const [[begin, low], [end, high]] = [seen[0], seen.at(-1)];
    return end > begin ? Math.max(0, high - low) / (end - begin) : 0;
  };
}

/** Readers of p50 and p99 over the answers of the last minute or so. */
function quantiles(name) {
  const seen = [];
  const recent = (found) => {
    seen.push(buckets(found, name));
    if (seen.length > WINDOW) seen.shift();
    return new Map([...seen.at(-1)].map(([bound, count]) => [bound, count - (seen[0].get(bound) ?? 0)]));
  };
  let counts;
  return [(found) => quantile((counts = recent(found)), 0.5), () => quantile(counts, 0.99)];
}

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const drawn = CHARTS.map(([title, words, ...reads]) => {
  const svg = shape("svg", { viewBox: "0 0 300 84", preserveAspectRatio: "none", role: "img" });
  const lines = reads.map((_, at) => shape("path", at ? { class: "second" } : {}));
  svg.append(shape("line", { x1: 0, x2: 300, y1: 83, y2: 83 }), ...lines);
  const now = el("b", {}, "…"), most = el("span", { className: "faint" });
  document.getElementById("charts").append(el("section", { className: "chart" }, el("h3", {}, title, most), now, svg));
  return { title, words, reads, svg, lines, now, most, series: reads.map(() => []) };
});

/** Scrape once and draw; the page keeps the latest points only. */
export async function refresh() {
  const found = await scrape();
  for (const chart of drawn) {
    chart.reads.forEach((read, at) => {
      chart.series[at].push(read(found));
      if (chart.series[at].length > KEPT) chart.series[at].shift();
    });
    const known = chart.series.flat().filter((value) => value !== null);
    const top = Math.max(...known, 1e-9);
    chart.series.forEach((values, at) => {
      const width = Math.max(WINDOW, values.length) - 1;
      const points = values.map((value, x) => [300 - 300 * (values.length - 1 - x) / width, value])
        .filter(([, value]) => value !== null);
      chart.lines[at].setAttribute("d", points.map(([x, value], i) =>
        `${i ? "L" : "M"}${x.toFixed(1)} ${(81 - 76 * (value / top)).toFixed(1)}`).join(""));
    });
    const last = chart.series.map((values) => chart.words(values.at(-1)));
    chart.now.textContent = last.every((value) => value === last[0]) ? last[0] : last.join(" · ");
    chart.most.textContent = known.length > 1 ? `most ${chart.words(top <= 1e-9 ? 0 : top)}` : "";
    chart.svg.setAttribute("aria-label", `${chart.title}: now ${last.join(" and ")}`);
  }
}
