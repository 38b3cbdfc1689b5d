"""a2d-llama: a causal Llama without its causal mask. No biases; embeddings tied or not."""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    """`shift_logits` is shoal's own key: true where each token is still predicted by the position before it, as the
    causal model did."""
    for key in ("attention_bias", "mlp_bias"):
        fields.expect(key, False, None, default=False)
    return {
        **hugging_face_fields(fields),
        "qkv_bias": False,
        "shift_logits": fields.boolean("shift_logits", default=False),
    }


A2D_LLAMA = Family(
    name="a2d-llama",
    models="a Llama made bidirectional",
    architectures=("A2DLlamaLMHeadModel",),
    model_types=("a2d-llama",),
    read=_read,
    weight_names=HUGGING_FACE_NAMES,
    depth_table="a2d",
)
