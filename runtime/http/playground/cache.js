// The radix tree, live; and what a prompt would reuse.

import { bytes, el, json, mayAsk, percent, tile, visible, whole } from "./api.js";
import { messagesFor, reuseFields } from "./chat.js";
import { kv, one, scrape } from "./metrics.js";

const $ = (id) => document.getElementById(id);
const MOST_ROWS = 300;
const texts = new Map();
let drawn = "", latest = null, known = "";

/** Text of a node's first tokens, where the server shows them (admin key). */
async function opening(tokens) {
  const key = tokens.join(" ");
  if (!texts.has(key)) {
    if (texts.size > 1000) texts.clear();
    texts.set(key, (await json("detokenize", { tokens, skip_special_tokens: false })).text);
  }
  return texts.get(key);
}

function rows(namespace) {
  const found = [], left = namespace.nodes.map((node) => [node, 0]).reverse();
  while (left.length) {
    const [node, start] = left.pop();
    found.push([node, start]);
    left.push(...node.children.map((child) => [child, start + node.tokens]).reverse());
  }
  return found;
}

/** Draw the pool, and the tree if it has changed. */
export async function refresh() {
  const load = await scrape();
  const events = ["tree_stored_tokens_total", "tree_trimmed_total", "tree_evicted_total", "prefix_cache_hits_total"];
  const now = JSON.stringify([...events.map((name) => one(load, name)), kv(load, "tree")]);
  try {
    if (now !== known) latest = await json("cache");
    known = now;
  } catch (error) {
    if (error.code !== "admin_key_needed") throw error;
    $("tree").replaceChildren(el("p", { className: "note" }, "The tree needs the admin key: reload and give it when asked."));
    return;
  }
  const tree = latest;
  const [all, free, requests] = ["all", "free", "requests"].map((held) => kv(load, held));
  const idle = Math.max(0, all - free - requests);
  $("totals").replaceChildren(
    tile(whole(tree.num_tokens), "prompt tokens kept"), tile(whole(tree.num_nodes), "nodes"),
    tile(bytes(tree.kv_bytes + tree.boundary_bytes), "memory"), tile(percent(one(load, "cache_hit_rate")), "of prompt tokens reused"),
    tile(whole(tree.events.evicted ?? 0), "evictions"), tile(whole(tree.events.trimmed ?? 0), "trims of depth"));
  $("pool").replaceChildren(
    el("div", { className: "meter", role: "img", "aria-label": `pool: ${percent(requests / all)} running, ${percent(idle / all)} cached` },
      el("span", { className: "key", "--share": requests / all }), el("span", { "--share": idle / all })),
    el("p", { className: "faint" }, `Eviction pressure: running requests hold ${percent(requests / all)} of the pool, ` +
      `${percent(idle / all)} is cache that may be dropped for others, ${percent(free / all)} is free. ` +
      (free / all > 0.02 ? "Nothing has to go yet." : "The pool is full: what was used longest ago goes first.")));
  const state = JSON.stringify(tree.namespaces);
  if (state === drawn) return;
  drawn = state;
  await draw(tree);
}

async function draw(tree) {
  const parts = [];
  for (const namespace of tree.namespaces) {
    const nodes = rows(namespace);
    const longest = Math.max(1, ...nodes.map(([node, start]) => start + node.tokens));
    const salt = namespace.salt ? `tenant ${namespace.salt}` : "no salt: shared by all who send none";
    parts.push(el("h3", {}, `${salt} · ${whole(nodes.length)} nodes`));
    for (const [node, start] of nodes.slice(0, MOST_ROWS)) {
      const size = node.bytes_by_band.reduce((sum, each) => sum + each, 0) + node.boundary_bytes;
      const pins = node.pins ? ` · pinned ${node.pins}×` : "", drift = node.drifted ? " · drifted" : "";
      const numbers = `${whole(node.tokens)} tokens · depth ${node.depth} of ${tree.num_layers} · ${whole(node.hits)} ${node.hits === 1 ? "hit" : "hits"} · ${bytes(size)}${pins}${drift}`;
      const begins = node.first_tokens ? `begins "${visible(await opening(node.first_tokens))}"` : "";
      parts.push(el("div", { className: node.pins ? "node pinned" : "node", title: begins },
        el("div", { className: "track" }, el("div", { className: "bar", "--from": start / longest,
          "--size": node.tokens / longest, "--deep": node.depth / tree.num_layers })),
        el("div", { className: "said-so" }, numbers, begins ? el("br") : "", begins)));
    }
    if (nodes.length > MOST_ROWS) parts.push(el("p", { className: "faint" }, `and ${whole(nodes.length - MOST_ROWS)} more`));
  }
  if (!parts.length) parts.push(el("p", { className: "note" }, "The cache is empty. Ask something in the chat and come back."));
  $("tree").replaceChildren(...parts);
}

$("match").addEventListener("submit", async (event) => {
  event.preventDefault();
  mayAsk();
  try {
    const messages = messagesFor($("prompt").value);
    const { tokens } = await json("tokenize", { messages });
    const found = await json("cache/match", { input_ids: tokens, ...reuseFields() });
    const text = async (ids) => (ids.length
      ? visible((await json("detokenize", { tokens: ids, skip_special_tokens: false })).text) : "");
    const [reused, held, rest] = await Promise.all(
      [tokens.slice(0, found.cut), tokens.slice(found.cut, found.cached_tokens), tokens.slice(found.cached_tokens)].map(text));
    const words = found.cut
      ? `The first ${whole(found.cut)} of ${whole(tokens.length)} tokens would come from the cache, ${found.depth} of ` +
        `${found.num_layers} layers deep. ` +
        (held ? "What is underlined is cached too, but stands too near to where the prompts part to be safe. " : "")
      : `Nothing would be reused${found.cached_tokens ? `, though ${whole(found.cached_tokens)} tokens are cached` : ""}. `;
    $("matched").replaceChildren(el("p", {}, words, "The rest would be computed."),
      el("div", { className: "prompt", tabIndex: 0, role: "region", "aria-label": "The prompt" }, el("mark", {}, reused), el("mark", { className: "held" }, held), rest));
  } catch (error) {
    $("matched").replaceChildren(el("p", { className: "note bad" }, visible(error.message)));
  }
});
