"""Scaled RoPE: models whose frequencies were slowed down for longer texts than they were first trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from .config_fields import Fields

RopeKind = Literal["linear", "llama3"]
_SERVED = "one of 'default', 'linear' and 'llama3'"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a model's RoPE frequencies differ from theta^(-2j/D).

    `linear` divides all of them by `factor` (Chen et al. 2023, arXiv 2306.15595); the other fields are 0 then. `llama3`
    divides those of long waves alone: a wave that fits less than `low_freq_factor` times into
    `original_max_position_embeddings` positions is slowed down by `factor`, one that fits more than `high_freq_factor`
    times keeps its frequency.
    """

    kind: RopeKind
    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_position_embeddings: int = 0

    def multipliers(self, head_dim: int, theta: float) -> list[float]:
        """What each of the head_dim / 2 frequencies is multiplied by, the fastest first.

        `llama3`, for a frequency f: with r = original_max_position_embeddings f / 2 pi, how often its wave fits, and
        s = (r - low) / (high - low) held within 0 and 1, it is s + (1 - s) / factor. Source: `apply_scaling` of Llama
        3.1's published code.
        """
        if self.kind == "linear":
            return [1 / self.factor] * (head_dim // 2)
        found = []
        for pair in range(head_dim // 2):
            times = self.original_max_position_embeddings * theta ** (-2 * pair / head_dim) / math.tau
            kept = (times - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = min(max(kept, 0.0), 1.0)
            found.append(kept + (1 - kept) / self.factor)
        return found


def read_rope(fields: Fields, default_theta: float) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a ModelConfig, from the keys that transformers reads.

    These are `rope_theta` and `rope_scaling`, or `rope_parameters` with both (transformers 5). `rope_scaling` decides
    where both are there, as in transformers.

    Raises: ModelLoadError for another type than `default`, `linear` and `llama3`, for a number that is missing or out
    of range, and for heads of which only a part is rotated.
    """
    theta = fields.number("rope_theta", default=default_theta)
    fields.expect("partial_rotary_factor", 1, 1.0, None, default=None)
    key = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    values = fields.get(key)
    if not values:
        return {"rope_theta": theta, "rope_scaling": None}
    if not isinstance(values, dict):
        fields.refuse(key, values, "an object with a rope_type")
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        fields.refuse(key, values, f"a rope_type that is {_SERVED}")
    inner = Fields(values, prefix=f"{key}.")
    inner.expect("partial_rotary_factor", 1, 1.0, None, default=None)
    theta = inner.number("rope_theta", default=theta)
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else _scaling(kind, inner, fields)}


def _scaling(kind: str, inner: Fields, fields: Fields) -> RopeScaling:
    factor = inner.number("factor")
    if factor < 1:
        inner.refuse("factor", factor, "a number of at least 1")
    if kind == "linear":
        return RopeScaling("linear", factor)
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if not low < high:
        inner.refuse("high_freq_factor", high, f"a number above low_freq_factor = {low:g}")
    name = "original_max_position_embeddings"
    outer = fields.get("max_position_embeddings")
    length = fields.integer(name) if name in fields else inner.integer(name, default=outer)
    if length < 1:
        inner.refuse(name, length, "a whole number of at least 1")
    return RopeScaling(cast(RopeKind, kind), factor, low, high, length)
