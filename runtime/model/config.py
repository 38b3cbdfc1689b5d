"""Shapes and constants of a LLaDA, Dream or a2d checkpoint, read from its Hugging Face `config.json`.

Sources of the field names: the published configurations of GSAI-ML/LLaDA-8B-Instruct and
Dream-org/Dream-v0-Instruct-7B. What the decoder cannot run is refused here, before a weight is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelLoadError
from .config_fields import Fields

Architecture = Literal["llada", "dream", "a2d"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder and the loader need to know about one model.

    `vocab_size` counts the tokens that logits are computed for; `embedding_size` (>= vocab_size) counts the
    rows stored in the embedding and head tables. With `shift_logits`, the token at position i is predicted by
    the hidden state of position i - 1. `mask_token_id` is what unfilled canvas positions hold.

    Raises (on construction): ModelLoadError naming the field that is out of range.
    """

    architecture: Architecture
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    embedding_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    qkv_bias: bool
    tie_word_embeddings: bool
    shift_logits: bool
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "rope_theta",
            "rms_norm_eps",
        ):
            if not getattr(self, name) > 0:
                _refuse(name, getattr(self, name), "> 0")
        if self.num_heads % self.num_kv_heads:
            _refuse("num_kv_heads", self.num_kv_heads, f"a divisor of num_heads = {self.num_heads}")
        if self.head_dim % 2:
            _refuse("head_dim", self.head_dim, "an even number (RoPE rotates pairs)")
        if self.embedding_size < self.vocab_size:
            _refuse("embedding_size", self.embedding_size, f">= vocab_size = {self.vocab_size}")
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.embedding_size:
                _refuse(name, getattr(self, name), f"0 <= id < embedding_size = {self.embedding_size}")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads (or all value heads) together."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Stored weights, biases included; a tied head counts once."""
        per_layer = (
            self.hidden_size * (2 * self.q_size + 2 * self.kv_size + 3 * self.intermediate_size + 2)
            + (self.q_size + 2 * self.kv_size) * self.qkv_bias
        )
        tables = self.embedding_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * per_layer + tables + self.hidden_size

    @property
    def config_digest(self) -> str:
        """SHA-256 (hex) of all fields: equal for configurations that compute the same function shapes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read the parsed content of a `config.json`.

        Raises: ModelLoadError naming the key, its value and what is supported: for another `model_type`, a
        missing or ill-typed key, or a feature that the decoder does not have (ALiBi, scaled RoPE, biases
        beyond q/k/v, QK norm, sliding windows, quantised weights, other block or activation types).
        """
        if not isinstance(values, dict):
            _refuse("config.json", values, "a JSON object")
        model_type = values.get("model_type")
        fields = Fields(values)
        if model_type == "llada":
            return cls(**_llada_fields(fields))
        if isinstance(model_type, str) and model_type.lower() == "dream":
            return cls(**_dream_fields(fields))
        if model_type == "a2d-llama":
            return cls(**_a2d_llama_fields(fields))
        raise ModelLoadError(
            f"model_type {model_type!r} is not supported: shoal runs 'llada' (LLaDA), 'Dream' (Dream, DiffuCoder) and "
            "'a2d-llama' (a Llama made bidirectional)",
            field="model_type",
            value=model_type,
            limit="'llada', 'Dream' or 'a2d-llama'",
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> ModelConfig:
        """Read `folder/config.json`. Raises: ModelLoadError when it is missing, unreadable or unsupported."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelLoadError(
                f"no config.json in {str(folder)!r}: a model folder holds config.json, safetensors and a tokenizer",
                field="config.json",
                value=str(folder),
                limit="an existing file",
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelLoadError(
                f"config.json in {str(folder)!r} can't be read: {error}",
                field="config.json",
                value=str(path),
                limit="a JSON object in UTF-8",
            ) from error
        return cls.from_dict(values)


def _refuse(field: str, value: object, supported: str) -> None:
    raise ModelLoadError(
        f"{field} = {value!r} in the model's configuration: expected {supported}",
        field=field,
        value=value,
        limit=supported,
    )


def _llada_fields(fields: Fields) -> dict[str, Any]:
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
    if hidden_size % max(num_heads, 1):
        _refuse("n_heads", num_heads, f"a divisor of d_model = {hidden_size}")
    one_kv_head = bool(fields.get("multi_query_attention"))
    vocab_size = fields.integer("vocab_size")
    eos = fields.token_id("eos_token_id")
    return {
        "architecture": "llada",
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
        "mask_token_id": fields.token_id("mask_token_id"),
        "eos_token_id": eos,
        "pad_token_id": fields.token_id("pad_token_id", default=eos),
    }


def _dream_fields(fields: Fields) -> dict[str, Any]:
    fields.expect("hidden_act", "silu", default="silu")
    fields.expect("use_sliding_window", False, None, default=False)
    fields.expect("use_mrope", False, None, default=False)
    fields.expect_unquantized()
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    if "head_dim" not in fields and hidden_size % max(num_heads, 1):
        _refuse("num_attention_heads", num_heads, f"a divisor of hidden_size = {hidden_size}")
    vocab_size = fields.integer("vocab_size")
    eos = fields.token_id("eos_token_id")
    return {
        "architecture": "dream",
        "num_layers": fields.integer("num_hidden_layers"),
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": fields.integer("num_key_value_heads", default=num_heads),
        "head_dim": fields.integer("head_dim", default=hidden_size // max(num_heads, 1)),
        "intermediate_size": fields.integer("intermediate_size"),
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "max_position_embeddings": fields.integer("max_position_embeddings"),
        "rope_theta": fields.rope_theta(default=10000.0),
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-6),
        # Not a key of these configurations: the published code always has q/k/v biases, as Qwen2's.
        "qkv_bias": fields.boolean("attention_bias", default=True),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=False),
        "shift_logits": True,
        "mask_token_id": fields.token_id("mask_token_id"),
        "eos_token_id": eos,
        "pad_token_id": fields.token_id("pad_token_id", default=eos),
    }


def _a2d_llama_fields(fields: Fields) -> dict[str, Any]:
    """A causal Llama without its causal mask. `shift_logits` is shoal's own key: true where each token is still
    predicted by the position before it, as the causal model did."""
    for key in ("attention_bias", "mlp_bias"):
        fields.expect(key, False, None, default=False)
    return {
        **_dream_fields(fields),
        "architecture": "a2d",
        "qkv_bias": False,
        "shift_logits": fields.boolean("shift_logits", default=False),
    }


LLADA_8B = ModelConfig(
    architecture="llada",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    intermediate_size=12288,
    vocab_size=126464,
    embedding_size=126464,
    max_position_embeddings=4096,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    tie_word_embeddings=False,
    shift_logits=False,
    mask_token_id=126336,
    eos_token_id=126081,
    pad_token_id=126081,
)

DREAM_7B = ModelConfig(
    architecture="dream",
    num_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=18944,
    vocab_size=152064,
    embedding_size=152064,
    max_position_embeddings=131072,
    rope_theta=1000000.0,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    tie_word_embeddings=False,
    shift_logits=True,
    mask_token_id=151666,
    eos_token_id=151643,
    pad_token_id=151643,
)
