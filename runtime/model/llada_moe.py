"""LLaDA-MoE-7B-A1B: experts, queries and keys normalised per head, the key names of Hugging Face.

Its `model_type` is `llada` too: the architecture tells it apart. Its mask token does not stand in `config.json`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    for key in ("attention_bias", "norm_topk_prob", "moe_router_enable_expert_bias"):
        fields.expect(key, False, None, default=False)
    for key in ("clip_qkv", "shared_expert_intermediate_size"):
        fields.expect(key, None, default=None)
    fields.expect("moe_router_score_function", "softmax", None, default=None)
    for key in ("routed_scaling_factor", "partial_rotary_factor"):
        fields.expect(key, 1, 1.0, None, default=None)
    layers = fields.integer("num_hidden_layers")
    every_layer = [1] * layers
    fields.expect("moe_layer_freq", every_layer, 1, None, default=None)
    expert = fields.integer("expert_intermediate_size")
    return {
        **hugging_face_fields(fields, intermediate_size=expert),
        "qkv_bias": False,
        "qk_norm": fields.boolean("qk_layernorm", default=False),
        "num_experts": fields.integer("num_experts"),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-5),
        "shift_logits": False,
    }


LLADA_MOE = Family(
    name="llada-moe",
    models="LLaDA-MoE-7B-A1B",
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    model_types=("llada", "llada_moe", "lladamoe"),
    marker="num_experts",
    read=_read,
    weight_names=replace(
        HUGGING_FACE_NAMES, router="mlp.gate", expert="mlp.experts.{}", gate="gate_proj", up="up_proj", down="down_proj"
    ),
    published={
        "llada-moe-7b": {
            "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "hidden_size": 2048,
            "expert_intermediate_size": 1024, "dense_intermediate_size": 8192, "shared_expert_intermediate_size": None,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 16, "num_experts": 64,
            "num_experts_per_tok": 8, "moe_layer_freq": [1] * 16, "qk_layernorm": True, "vocab_size": 157184,
            "max_position_embeddings": 8192, "rope_theta": 50000.0, "rms_norm_eps": 1e-5, "eos_token_id": 156892,
            "pad_token_id": 156892, "tie_word_embeddings": False,
        },
    },
    mask_token_id=156895,
)  # fmt: skip
