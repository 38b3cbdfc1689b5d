"""LLaDA-8B and LLaDA-1.5: OLMo's layout, no biases, an attention head for every query head.

Source of the keys: the published configuration of GSAI-ML/LLaDA-8B-Instruct. Its turns end with `<|eot_id|>` (126348),
its texts with `<|endoftext|>` (126081); its chat template appends the header of an answer whatever it is asked.
"""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .weight_names import WeightNames


def _read(fields: Fields) -> dict[str, Any]:
    fields.expect("block_type", "llama", default="sequential")
    fields.expect("activation_type", "silu", "swiglu", default="swiglu")
    fields.expect("layer_norm_type", "rms", default="default")
    fields.expect("layer_norm_with_affine", True, default=True)
    fields.expect("rope", True, default=False)
    for key in (
        "alibi",
        "attention_layer_norm",
        "bias_for_layer_norm",
        "include_bias",
        "input_emb_norm",
        "scale_logits",
    ):
        fields.expect(key, False, None, default=False)
    fields.expect("block_group_size", 1, default=1)
    fields.expect("clip_qkv", None, default=None)
    fields.expect("rope_scaling", None, default=None)
    fields.expect_unquantized()
    hidden_size = fields.integer("d_model")
    num_heads = fields.integer("n_heads")
    fields.expect_divisor("n_heads", num_heads, "d_model", hidden_size)
    one_kv_head = bool(fields.get("multi_query_attention"))
    vocab_size = fields.integer("vocab_size")
    eos = fields.token_id("eos_token_id")
    return {
        "num_layers": fields.integer("n_layers"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("n_kv_heads", default=1 if one_kv_head else num_heads),
        "head_dim": hidden_size // max(num_heads, 1),
        "intermediate_size": fields.integer("mlp_hidden_size"),
        "vocab_size": vocab_size,
        "embedding_size": fields.integer("embedding_size", default=vocab_size),
        "max_position_embeddings": fields.integer("max_sequence_length"),
        "rope_theta": fields.number("rope_theta", default=10000.0),
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-5),
        "qkv_bias": fields.boolean("include_qkv_bias", default=False),
        "tie_word_embeddings": fields.boolean("weight_tying", default=True),
        "shift_logits": False,
        "eos_token_id": eos,
        "pad_token_id": fields.token_id("pad_token_id", default=eos),
    }


LLADA = Family(
    name="llada",
    models="LLaDA-8B, LLaDA-1.5",
    architectures=("LLaDAModelLM",),
    model_types=("llada",),
    marker="d_model",
    read=_read,
    weight_names=WeightNames(
        embedding="model.transformer.wte.weight",
        final_norm="model.transformer.ln_f.weight",
        head="model.transformer.ff_out.weight",
        layer="model.transformer.blocks.{}",
        attention_norm="attn_norm",
        q="q_proj",
        k="k_proj",
        v="v_proj",
        attention_out="attn_out",
        mlp_norm="ff_norm",
        gate="ff_proj",
        up="up_proj",
        down="ff_out",
    ),
    published={
        "llada-8b": {
            "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
            "n_layers": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
            "max_sequence_length": 4096, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "eos_token_id": 126081,
            "pad_token_id": 126081, "mask_token_id": 126336, "weight_tying": False, "include_bias": False,
            "include_qkv_bias": False, "rope": True, "alibi": False, "layer_norm_type": "rms",
            "activation_type": "silu", "block_type": "llama",
        },
    },
    depth_table="llada",
)  # fmt: skip
