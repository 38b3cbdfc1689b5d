// One answer: its canvas, its text, and in plain words what it cost and what the cache spared it.

import { el, events, percent, visible, whole } from "./api.js";
import { Canvas } from "./canvas.js";

export const MODES = {
  bicache: "bicache: reuses what earlier prompts share with this one, as deep into the network as is safe.",
  dual: "dual: within one answer, keeps everything but the current block.",
  prefix: "prefix: within one answer, keeps what stands before the current block.",
  none: "none: every pass computes everything. Slow, and the reference.",
  lm: "lm: reuses all layers, as a server for ordinary language models does. It breaks answers: that is why it is here.",
};

export class Answer {
  /** `kept`: the mode, and what `kept()` gave before a reload. */
  constructor(info, kept, retry) {
    Object.assign(this, { info, mode: kept.mode });
    this.canvas = new Canvas(info.stop_token_ids);
    this.said = el("p", { className: "said" });
    this.cost = el("div");
    this.again = el("button", { type: "button", className: "retry", onclick: () => retry(this) }, "Retry");
    this.element = el("article", { className: "answer", "data-mode": this.mode },
      el("h2", {}, el("span", {}, `cache mode ${this.mode}`), this.again), this.canvas.element, this.said, this.cost);
    if (kept.said === undefined) return;
    Object.assign(this, { text: kept.text, meta: kept.meta, usage: kept.usage, seconds: kept.seconds });
    this.said.textContent = kept.said || "(stopped)";
    this.said.classList.toggle("bad", kept.bad);
    if (kept.snapshot) this.canvas.update(kept.snapshot, kept.snapshot.step);
    if (this.meta) this.account();
  }

  /** What shows this answer again. */
  kept() {
    const { mode, text = "", meta, usage, seconds, said, canvas: { snapshot } } = this;
    return { mode, text, meta, usage, seconds, said: said.textContent, bad: said.classList.contains("bad"),
      snapshot: snapshot.step ? snapshot : undefined };
  }

  /** Ask the server and show what comes; resolves to the text. Throws when it fails or is stopped. */
  async run(body, signal) {
    this.text = this.said.textContent = "";
    this.meta = null;
    this.said.classList.remove("bad");
    this.cost.replaceChildren();
    this.again.disabled = true;
    this.canvas.expect(body.max_tokens, body.block_length);
    const begin = performance.now();
    let meta = null, usage = {}, live = 0;
    const asked = { ...body, cache_mode: this.mode, stream: true, stream_mode: "denoise",
      stream_options: { include_usage: true } };
    const path = body.messages ? "v1/chat/completions" : "v1/completions";
    try {
      for await (const event of events(path, asked, signal)) {
        usage = event.usage ?? usage;
        const choice = event.choices[0];
        if (!choice) continue;
        this.text += choice.delta ? choice.delta.content ?? "" : choice.text;
        if (choice.snapshot) this.canvas.update(choice.snapshot);
        meta = choice.meta_info ?? meta;
        live = performance.now();
      }
      await this.canvas.caughtUp();
      this.said.textContent = visible(this.text) || "(an empty answer)";
      Object.assign(this, { meta, usage, seconds: (live - begin) / 1000 });
      this.account();
    } catch (error) {
      this.canvas.pause();
      const stopped = error.name === "AbortError";
      this.said.textContent = stopped ? `${visible(this.text)} (stopped)` : visible(error.message);
      this.said.classList.toggle("bad", !stopped);
      throw error;
    } finally {
      this.again.disabled = false;
    }
    return this.text;
  }

  account() {
    const { meta, usage, seconds } = this;
    const prompt = usage.prompt_tokens, layers = this.info.num_layers;
    const cached = meta.depth ? Math.round(meta.reused_token_layers / meta.depth) : 0;
    const spared = meta.reused_token_layers / (prompt * layers);
    const all = meta.reused_token_layers + meta.computed_token_layers;
    const facts = {
      "Forward passes": whole(meta.nfe), "Tokens a second": whole(usage.completion_tokens / seconds),
      "Seconds": seconds.toFixed(2), "Prompt from cache": `${whole(cached)} of ${whole(prompt)}`,
      "Depth of reuse": `${meta.depth} of ${layers} layers`,
      "Work spared in all": percent(meta.reused_token_layers / all),
    };
    this.cost.replaceChildren(
      el("p", { className: "cache-words" }, this.words(cached, prompt, meta.depth, layers, spared)),
      el("div", { className: "meter", role: "img", "aria-label": `${percent(spared)} of the reading came from the cache` },
        el("span", { className: "key", "--share": spared })),
      el("dl", { className: "facts" }, ...Object.entries(facts).map(([name, value]) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
  }

  words(cached, prompt, depth, layers, spared) {
    if (cached) {
      return `The cache had already read the first ${whole(cached)} of ${whole(prompt)} prompt tokens for an earlier ` +
        `request, ${depth} of ${layers} layers deep: ${percent(spared)} of the work of reading this prompt was skipped.`;
    }
    if (this.mode === "bicache" || this.mode === "lm") {
      return "The cache knew nothing of this prompt yet, so all of it was read. Ask again about the same text.";
    }
    return `Mode ${this.mode} takes nothing from other requests: all ${whole(prompt)} prompt tokens were read.`;
  }
}

/** A sentence about two answers to one question. */
export function comparison(first, second) {
  if (!first.meta || !second.meta) return "";
  const [a, b] = [first, second].map((answer) => answer.meta.computed_token_layers);
  const [less, more] = a <= b ? [first, second] : [second, first];
  const times = Math.max(a, b) / Math.max(1, Math.min(a, b));
  const alike = first.text === second.text ? "The answers are the same." : "The answers differ.";
  return times < 1.005 ? `${alike} Both did the same amount of computing.`
    : `${alike} ${less.mode} did ${times.toFixed(1)} times less computing than ${more.mode}.`;
}
