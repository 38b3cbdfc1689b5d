"""iLLaDA-8B: LLaDA with grouped-query attention, tied embeddings and the key names of Hugging Face.

Its mask token stands neither in `config.json` nor in the tokenizer. Its architecture name has not been seen here: what
says `model_type: llada` or `illada` and has `hidden_size` in place of `d_model` is taken for it.
"""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, expect_full_attention, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    expect_full_attention(fields)
    for key in ("attention_bias", "mlp_bias"):
        fields.expect(key, False, None, default=False)
    return {**hugging_face_fields(fields), "qkv_bias": False, "shift_logits": False}


ILLADA = Family(
    name="illada",
    models="iLLaDA-8B",
    architectures=("ILLaDAModelLM", "iLLaDAModelLM", "LLaDAModelLM"),
    model_types=("illada", "llada"),
    marker="hidden_size",
    read=_read,
    weight_names=HUGGING_FACE_NAMES,
    published={
        "illada-8b": {
            "model_type": "illada", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 155136, "max_position_embeddings": 8192,
            "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
        },
    },
    mask_token_id=5,
)  # fmt: skip
