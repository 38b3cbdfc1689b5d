"""Model folders without weights, of published shapes, for `load_format="dummy"`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoal.runtime.model.registry import published

# Longer contexts than the checkpoints were trained for do not change what a token costs.
LLADA_8B: dict[str, Any] = {**published("llada-8b"), "max_sequence_length": 8192}
DREAM_7B: dict[str, Any] = {**published("dream-7b"), "max_position_embeddings": 8192}
LLADA_MOE_7B: dict[str, Any] = published("llada-moe-7b")
A2D_QWEN3_06B: dict[str, Any] = {**published("a2d-qwen3-0.6b"), "max_position_embeddings": 8192}
TINY: dict[str, Any] = {
    **LLADA_8B, "d_model": 64, "n_heads": 4, "n_kv_heads": 4, "n_layers": 8, "mlp_hidden_size": 128,
    "vocab_size": 512, "embedding_size": 512, "max_sequence_length": 1024, "eos_token_id": 500, "pad_token_id": 500,
    "mask_token_id": 501,
}  # fmt: skip
"""To try a benchmark out on a CPU; its figures mean nothing."""
SHAPES = {
    "llada-8b": LLADA_8B, "dream-7b": DREAM_7B, "llada-moe-7b": LLADA_MOE_7B, "a2d-qwen3-0.6b": A2D_QWEN3_06B,
    "tiny": TINY,
}  # fmt: skip
DEPTHS = {"llada-8b": 16, "dream-7b": 12, "llada-moe-7b": 8, "a2d-qwen3-0.6b": 12, "tiny": 4}
"""Layers reused: half of them, or nearly."""


def write_shape(name: str, folder: Path) -> Path:
    """A folder that holds the `config.json` of a shape and nothing else."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(SHAPES[name]))
    return target
