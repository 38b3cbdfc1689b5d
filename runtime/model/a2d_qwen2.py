"""a2d-qwen2: a causal Qwen2 or Qwen2.5 without its causal mask. Biases on q, k and v; embeddings tied or not."""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, expect_full_attention, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    """`shift_logits` is shoal's own key, as in `a2d_llama.py`."""
    expect_full_attention(fields)
    return {
        **hugging_face_fields(fields),
        # Not a key of these configurations: the published code always has q/k/v biases.
        "qkv_bias": fields.boolean("attention_bias", default=True),
        "shift_logits": fields.boolean("shift_logits", default=False),
    }


A2D_QWEN2 = Family(
    name="a2d-qwen2",
    models="a Qwen2 or Qwen2.5 made bidirectional",
    architectures=("A2DQwen2LMHeadModel",),
    model_types=("a2d-qwen2",),
    read=_read,
    weight_names=HUGGING_FACE_NAMES,
    published={
        # Qwen2.5-0.5B's shapes; the mask is the first id behind that tokenizer's.
        "a2d-qwen2-0.5b": {
            "model_type": "a2d-qwen2", "architectures": ["A2DQwen2LMHeadModel"], "hidden_size": 896,
            "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24,
            "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
            "eos_token_id": 151645, "pad_token_id": 151643, "mask_token_id": 151665, "tie_word_embeddings": True,
        },
    },
    depth_table="a2d",
)  # fmt: skip
