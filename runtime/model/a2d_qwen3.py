"""a2d-qwen3: a causal Qwen3 without its causal mask. Queries and keys are normalised per head; no biases."""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, expect_full_attention, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    """`shift_logits` is shoal's own key, as in `a2d_llama.py`."""
    expect_full_attention(fields)
    fields.expect("attention_bias", False, None, default=False)
    return {
        **hugging_face_fields(fields),
        "head_dim": fields.integer("head_dim", default=128),
        "qkv_bias": False,
        "qk_norm": True,
        "shift_logits": fields.boolean("shift_logits", default=False),
    }


A2D_QWEN3 = Family(
    name="a2d-qwen3",
    models="a Qwen3 made bidirectional",
    architectures=("A2DQwen3LMHeadModel",),
    model_types=("a2d-qwen3",),
    read=_read,
    weight_names=HUGGING_FACE_NAMES,
    published={
        # The mask is `<|mask|>` of its tokenizer.
        "a2d-qwen3-0.6b": {
            "model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "hidden_size": 1024, "head_dim": 128,
            "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28,
            "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
            "eos_token_id": 151645, "pad_token_id": 151643, "mask_token_id": 151669, "tie_word_embeddings": True,
        },
    },
    depth_table="a2d",
)  # fmt: skip
