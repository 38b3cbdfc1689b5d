"""Shapes and constants of a model: what its family (`registry.py`) reads from a checkpoint's `config.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from ..errors import ModelLoadError
from .rope_scaling import RopeScaling


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder and the loader need to know about one model.

    `architecture` is the name of its family. `vocab_size` counts the tokens that logits are computed for;
    `embedding_size` (>= vocab_size) counts the rows stored in the embedding and head tables. With `shift_logits`, the
    token at position i is predicted by the hidden state of position i - 1. Unfilled canvas positions hold
    `mask_token_id`. With `qk_norm`, queries and keys are normalised per head before RoPE. With `num_experts`, every
    layer's MLP is as many experts of `intermediate_size`, of which a token takes `experts_per_token`.

    Raises (on construction): ModelLoadError naming the field that is out of range.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    embedding_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    qkv_bias: bool
    tie_word_embeddings: bool
    shift_logits: bool
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    qk_norm: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "rope_theta",
            "rms_norm_eps",
        ):
            if not getattr(self, name) > 0:
                _refuse(name, getattr(self, name), "> 0")
        if self.num_heads % self.num_kv_heads:
            _refuse("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads = {self.num_heads}")
        if self.head_dim % 2:
            _refuse("head_dim", self.head_dim, "an even number (RoPE rotates pairs)")
        if self.embedding_size < self.vocab_size:
            _refuse("embedding_size", self.embedding_size, f">= vocab_size = {self.vocab_size}")
        if self.num_experts < 0:
            _refuse("num_experts", self.num_experts, ">= 0")
        low = min(1, self.num_experts)
        if not low <= self.experts_per_token <= self.num_experts:
            _refuse("experts_per_token", self.experts_per_token, f"{low} to num_experts = {self.num_experts}")
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.embedding_size:
                _refuse(name, getattr(self, name), f"0 <= id < embedding_size = {self.embedding_size}")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads (or all value heads) together."""
        return self.num_kv_heads * self.head_dim

    @property
    def rope_multipliers(self) -> list[float] | None:
        """`RopeScaling.multipliers` of this model; None: RoPE is not scaled."""
        return None if self.rope_scaling is None else self.rope_scaling.multipliers(self.head_dim, self.rope_theta)

    @property
    def num_parameters(self) -> int:
        """Stored weights, biases included; a tied head counts once."""
        mlp = 3 * self.intermediate_size * max(1, self.num_experts) + self.num_experts
        per_layer = (
            self.hidden_size * (2 * self.q_size + 2 * self.kv_size + mlp + 2)
            + (self.q_size + 2 * self.kv_size) * self.qkv_bias
            + 2 * self.head_dim * self.qk_norm
        )
        tables = self.embedding_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * per_layer + tables + self.hidden_size

    @property
    def config_digest(self) -> str:
        """SHA-256 (hex) of all fields: equal for configurations that compute the same function shapes.

        Fields with a default count only where they differ from it: a new one leaves the digests of old models alone.
        """
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _refuse(field: str, value: object, supported: str) -> None:
    raise ModelLoadError(
        f"{field} = {value!r} in the model's configuration: expected {supported}",
        field=field,
        value=value,
        limit=supported,
    )
