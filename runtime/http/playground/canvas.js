// The canvas of one answer: cells that fill in, and a slider that goes back through the passes.

import { el, visible } from "./api.js";

const PACE_MS = 90; // a pass of a small model is faster than an eye
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Canvas {
  constructor(stopTokens) {
    this.stops = new Set(stopTokens);
    this.cells = [];
    this.shown = 0;
    this.snapshot = { tokens: [], texts: [], confidences: [], steps: [], blocks: [], step: 0 };
    this.grid = el("div", { className: "cells", role: "img", "aria-label": "empty canvas" });
    this.play = el("button", { type: "button", disabled: true }, "Replay");
    this.slider = el("input", { type: "range", min: 0, max: 0, value: 0, disabled: true, "aria-label": "Pass to show" });
    this.counter = el("output", {}, "pass 0");
    this.element = el("div", {}, this.grid, el("div", { className: "replay" }, this.play, this.slider, this.counter));
    this.slider.addEventListener("input", () => { this.pause(); this.show(Number(this.slider.value)); });
    this.play.addEventListener("click", () => { this.show(0); this.run(); });
  }

  /** A canvas of masks, before anything is known of it. */
  expect(length, blockLength) {
    const blocks = [];
    for (let stop = blockLength; stop < length + blockLength; stop += blockLength) blocks.push(Math.min(stop, length));
    this.snapshot = {
      tokens: Array(length).fill(-1), texts: Array(length).fill(""), confidences: Array(length).fill(null),
      steps: Array(length).fill(0), blocks, step: 0,
    };
    this.show(0);
  }

  /** Take a newer snapshot; from pass `at` on the view follows at a pace that eyes can follow too. */
  update(snapshot, at = this.shown) {
    Object.assign(this, { snapshot, shown: at });
    this.slider.max = snapshot.step;
    this.slider.disabled = this.play.disabled = false;
    this.run();
  }

  /** Resolves when the newest pass is on view. */
  async caughtUp() {
    while (this.timer) await new Promise((resolve) => setTimeout(resolve, 30));
  }

  run() {
    this.show(still.matches ? this.snapshot.step : this.shown);
    this.timer ??= setInterval(() => {
      const behind = this.snapshot.step - this.shown;
      if (behind <= 0) this.pause();
      else this.show(this.shown + Math.max(1, Math.floor(behind / 20)));
    }, PACE_MS);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
  }

  /** Draw the canvas as it was after a pass: a cell is full from the pass that committed it on. */
  show(step) {
    const { tokens, texts, confidences, steps, blocks } = this.snapshot;
    this.shown = step;
    while (this.cells.length > tokens.length) this.cells.pop().remove();
    while (this.cells.length < tokens.length) {
      this.cells.push(el("span"));
      this.grid.append(this.cells.at(-1));
    }
    const ends = new Set(blocks.slice(0, -1));
    this.grid.tabIndex = this.grid.scrollHeight > this.grid.clientHeight ? 0 : -1; // so that keys can scroll it
    let filled = 0;
    tokens.forEach((token, at) => {
      const cell = this.cells[at];
      const full = token >= 0 && steps[at] <= step;
      const end = full && this.stops.has(token);
      filled += full;
      const kind = `cell${full ? (end ? " end" : " full") : ""}${ends.has(at + 1) ? " last" : ""}` +
        (full && steps[at] === step && step > 0 ? " fresh" : "");
      if (cell.className !== kind) cell.className = kind;
      const text = full ? (end ? "·" : visible(texts[at].trim() || texts[at]).replace(/\n/g, "⏎") || " ") : "";
      if (cell.textContent !== text) cell.textContent = text;
      const sure = confidences[at];
      cell.style.setProperty("--sure", full ? Math.max(0, Math.min(1, sure ?? 0.6)) : 0);
      cell.title = full ? `${end ? "end of text" : visible(texts[at])}: pass ${steps[at]}` +
        (sure === null ? "" : `, ${Math.round(100 * sure)}% sure`) : "mask";
    });
    this.slider.value = step;
    this.counter.textContent = `pass ${step} of ${this.snapshot.step}`;
    this.grid.setAttribute("aria-label", `canvas: ${filled} of ${tokens.length} cells filled after pass ${step}`);
  }
}
