"""Names and shapes of the tensors in LLaDA, Dream and a2d checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Tensor names of one architecture. `layer` and the names in `parts` are stems: add `.weight` or `.bias`."""

    embedding: str
    final_norm: str
    head: str
    layer: str
    attention_norm: str
    q: str
    k: str
    v: str
    attention_out: str
    mlp_norm: str
    gate: str
    up: str
    down: str

    def of_layer(self, index: int, part: str, kind: str = "weight") -> str:
        """Full name of a layer's tensor; `part` is a field of this class, such as `q` or `mlp_norm`."""
        return f"{self.layer.format(index)}.{getattr(self, part)}.{kind}"


WEIGHT_NAMES = {
    "llada": WeightNames(
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
    "dream": WeightNames(
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
    ),
}
WEIGHT_NAMES["a2d"] = WEIGHT_NAMES["dream"]
"""Qwen2 and Llama name their tensors alike."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of `config` must hold, with its shape ([out, in] for weights)."""
    names = WEIGHT_NAMES[config.architecture]
    hidden, ffn = config.hidden_size, config.intermediate_size
    parts: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "q": (config.q_size, hidden),
        "k": (config.kv_size, hidden),
        "v": (config.kv_size, hidden),
        "attention_out": (hidden, config.q_size),
        "mlp_norm": (hidden,),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {names.embedding: (config.embedding_size, hidden)}
    for index in range(config.num_layers):
        for part, shape in parts.items():
            shapes[names.of_layer(index, part)] = shape
            if part in ("q", "k", "v") and config.qkv_bias:
                shapes[names.of_layer(index, part, "bias")] = shape[:1]
    shapes[names.final_norm] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[names.head] = (config.embedding_size, hidden)
    return shapes


def is_ignorable(config: ModelConfig, name: str) -> bool:
    """Whether a tensor that isn't in `tensor_shapes` may be skipped: RoPE buffers and the head of a tied model."""
    tied_head = config.tie_word_embeddings and name == WEIGHT_NAMES[config.architecture].head
    return tied_head or name.endswith("rotary_emb.inv_freq")
