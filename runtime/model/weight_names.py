"""Names and shapes of the tensors in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Tensor names of one family. `layer` and the names below it are stems: add `.weight` or `.bias`."""

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


def tensor_shapes(config: ModelConfig, names: WeightNames) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of `config` must hold, with its shape ([out, in] for weights)."""
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


def is_ignorable(config: ModelConfig, names: WeightNames, name: str) -> bool:
    """Whether a tensor that isn't in `tensor_shapes` may be skipped: RoPE buffers and the head of a tied model."""
    return (config.tie_word_embeddings and name == names.head) or name.endswith("rotary_emb.inv_freq")
