"""Options of `shoal profile`; a default stands here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..radix_cache.depth_profile import CAPTURES
from ..runtime.checks import OPTION

ONCE = 0
"""The refresh interval that means once per request."""
GPU_BATCH = 256
"""Rows that a GPU decodes together by default."""


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Options of a profile. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        model: `shop` (the bundled model), a folder, or a hub id.
        data: JSON lines; each has `messages`, `prompt` or `tokens`, and may have `answer`, `kind` and `group` (rows of
            a group begin alike, as questions about one document do). Or a .txt or .md file of documents: questions
            about them are made.
        out: folder for the profile, the report and the measurements; default: profile-MODEL.
        ratios: prefix ratios to measure, as in 0.3,0.5,0.7,0.9.
        captures: contexts that a cached prefix may come from: first, alone, final.
        depths: depths in layers, whole bands; none: every band.
        intervals: NFE between prefix refreshes to measure; 0: once per request. The chosen capture is measured at all
            of them, the others once per request.
        margins: tokens before the place where prompts part that are computed afresh, to choose from.
        groups: groups measured at each ratio.
        questions: rows of each group, besides the one that its prefix is captured from.
        max_accuracy_drop: largest loss of right answers against mode none, as a share, in the worst kind of row.
        min_agreement: smallest share of texts that equal those of mode none, in the worst kind of row.
        cosine: smallest mean cosine of cached keys and values to the true ones in every reused layer.
        strict: keep the limits to the row. Otherwise what mode bicache changes with nothing reused is not counted as a
            loss by reuse.
        max_new_tokens: canvas length; none: what generation_config.json says, else 128.
        block_length: canvas positions decoded together; none: what generation_config.json says.
        steps: fixed number of forward passes for the canvas; none: by confidence (threshold).
        threshold: confidence from which a token is committed, without steps.
        seed: of the choice of rows.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32` or `bfloat16`.
        batch: rows decoded together; none: 256 on a GPU, or as many as its memory holds, and those of a group on a CPU.
        page_size: token positions of a page.
        layers_per_band: layers that are paged together; depths are whole bands. None: as the engine's default.
        kv_cache_tokens: token positions that the KV pool holds; none: as many as a batch of these rows needs.
        mask_token_id: as the engine's option.
        lora: as the engine's option; the profile is then of the model with the adapter.
        restart: forget earlier measurements in the folder.
    """

    model: str
    data: str
    out: str | None = None
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    captures: tuple[str, ...] = CAPTURES
    depths: tuple[int, ...] | None = None
    intervals: tuple[int, ...] = (ONCE, 1, 8, 16, 32)
    margins: tuple[int, ...] = (0, 16, 32)
    groups: int = 4
    questions: int = 8
    max_accuracy_drop: float | None = None
    min_agreement: float | None = None
    cosine: float | None = None
    strict: bool = False
    max_new_tokens: int | None = None
    block_length: int | None = None
    steps: int | None = None
    threshold: float | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None
    page_size: int = 16
    layers_per_band: int | None = None
    kv_cache_tokens: int | None = None
    mask_token_id: int | None = None
    lora: str | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        for name in ("groups", "questions", "page_size"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_new_tokens", "kv_cache_tokens", "layers_per_band", "batch"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._check("ratios", bool(self.ratios) and all(0 < r <= 1 for r in self.ratios), "above 0 and at most 1")
        known = ", ".join(CAPTURES)
        self._check("captures", bool(self.captures) and set(self.captures) <= set(CAPTURES), f"some of {known}")
        self._check("captures", "first" in self.captures, "first and others: it is what the engine captures")
        self._check("intervals", ONCE in self.intervals and min(self.intervals) >= 0, "at least 0, and 0 among them")
        self._check("margins", bool(self.margins) and min(self.margins) >= 0, "at least 0")
        for name in ("max_accuracy_drop", "min_agreement", "cosine"):
            value = getattr(self, name)
            self._check(name, value is None or (math.isfinite(value) and 0 <= value <= 1), "from 0 to 1")

    def _check(self, name: str, good: bool, limit: str) -> None:
        if not good:
            OPTION.refuse(name, getattr(self, name), limit)
