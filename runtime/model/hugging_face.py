"""The layout that Qwen2, Qwen3 and Llama share: their keys in `config.json` and their tensor names."""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .rope_scaling import read_rope
from .weight_names import WeightNames

HUGGING_FACE_NAMES = WeightNames(
    embedding="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
    layer="model.layers.{}",
    attention_norm="input_layernorm",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    attention_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
)


def expect_full_attention(fields: Fields) -> None:
    """Raises: ModelLoadError for layers with another attention than that of every token to every token."""
    layers = fields.integer("num_hidden_layers")
    fields.expect("layer_types", ["full_attention"] * layers, None, default=None)


def hugging_face_fields(fields: Fields, intermediate_size: int | None = None) -> dict[str, Any]:
    """The fields that these configurations share. A family adds `qkv_bias` and `shift_logits`, and may replace others.

    `intermediate_size` is for configurations that call it otherwise.

    Raises: ModelLoadError for a key that is missing or ill-typed, for RoPE that `read_rope` refuses, sliding windows,
    another activation and quantised weights.
    """
    fields.expect("hidden_act", "silu", default="silu")
    fields.expect("use_sliding_window", False, None, default=False)
    fields.expect("use_mrope", False, None, default=False)
    fields.expect_unquantized()
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if "head_dim" not in fields:
        fields.expect_divisor("num_attention_heads", num_heads, "hidden_size", hidden_size)
    vocab_size = fields.integer("vocab_size")
    eos = fields.token_id("eos_token_id")
    return {
        "num_layers": fields.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", default=num_heads),
        "head_dim": fields.integer("head_dim", default=hidden_size // max(num_heads, 1)),
        "intermediate_size": fields.integer("intermediate_size") if intermediate_size is None else intermediate_size,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        **read_rope(fields, default_theta=10000.0),
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-6),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=False),
        "eos_token_id": eos,
        "pad_token_id": fields.token_id("pad_token_id", default=eos),
    }
