"""Model folders without weights: the published shapes of LLaDA-8B and Dream-7B, for `load_format="dummy"`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLADA_8B: dict[str, Any] = {
    "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288,
    "vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 8192, "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5, "eos_token_id": 126081, "pad_token_id": 126081, "mask_token_id": 126336,
    "weight_tying": False, "include_bias": False, "include_qkv_bias": False, "rope": True, "alibi": False,
    "layer_norm_type": "rms", "activation_type": "silu", "block_type": "llama",
}  # fmt: skip
DREAM_7B: dict[str, Any] = {
    "model_type": "Dream", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_key_value_heads": 4, "num_hidden_layers": 28, "vocab_size": 152064, "max_position_embeddings": 8192,
    "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "bos_token_id": 151643, "eos_token_id": 151643,
    "pad_token_id": 151643, "mask_token_id": 151666, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
TINY: dict[str, Any] = {
    **LLADA_8B, "d_model": 64, "n_heads": 4, "n_kv_heads": 4, "n_layers": 8, "mlp_hidden_size": 128,
    "vocab_size": 512, "embedding_size": 512, "max_sequence_length": 1024, "eos_token_id": 500, "pad_token_id": 500,
    "mask_token_id": 501,
}  # fmt: skip
"""To try a benchmark out on a CPU; its figures mean nothing."""
SHAPES = {"llada-8b": LLADA_8B, "dream-7b": DREAM_7B, "tiny": TINY}


def write_shape(name: str, folder: Path) -> Path:
    """A folder that holds the `config.json` of a shape and nothing else."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(SHAPES[name]))
    return target
