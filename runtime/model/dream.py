"""Dream, Dream-Coder, DiffuCoder and DreamOn: Qwen2.5 with shifted logits.

Source of the keys: the published configuration of Dream-org/Dream-v0-Instruct-7B. Turns end with `<|im_end|>` (151645),
texts with `<|endoftext|>` (151643). The folders' tokenizer class is custom code: `Tokenizer.load` reads its files as an
ordinary Qwen2 tokenizer.

DreamOn's `<|expand|>` asks its own sampler for two masks in place of one. A canvas here keeps its length, so the token
is never chosen. Its sampler deletes a position at EOS; here EOS ends the text.
"""

from __future__ import annotations

from typing import Any

from .config_fields import Fields
from .family import Family
from .hugging_face import HUGGING_FACE_NAMES, hugging_face_fields


def _read(fields: Fields) -> dict[str, Any]:
    return {
        **hugging_face_fields(fields),
        # Not a key of these configurations: the published code always has q/k/v biases, as Qwen2's.
        "qkv_bias": fields.boolean("attention_bias", default=True),
        "shift_logits": True,
    }


DREAM = Family(
    name="dream",
    models="Dream, Dream-Coder, DiffuCoder, DreamOn",
    architectures=("DreamModel",),
    model_types=("dream",),
    read=_read,
    weight_names=HUGGING_FACE_NAMES,
    published={
        "dream-7b": {
            "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28, "vocab_size": 152064,
            "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "bos_token_id": 151643,
            "eos_token_id": 151643, "pad_token_id": 151643, "mask_token_id": 151666, "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
    },
    depth_table="dream",
    never_chosen=("<|expand|>",),
)  # fmt: skip
