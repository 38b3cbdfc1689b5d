"""Names and shapes of the tensors in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from .config import ModelConfig


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Tensor names of one family. `layer` and the names below it are stems: add `.weight` or `.bias`.

    `q_norm` and `k_norm` are for models with `qk_norm`. In models with experts `gate`, `up` and `down` are parts of an
    expert, whose stem is `expert`.
    """

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
    q_norm: str = ""
    k_norm: str = ""
    router: str = ""
    expert: str = ""

    def of_layer(self, index: int, part: str, kind: str = "weight") -> str:
        """Full name of a layer's tensor; `part` is a field of this class, such as `q` or `mlp_norm`."""
        return f"{self.layer.format(index)}.{getattr(self, part)}.{kind}"

    def of_expert(self, index: int, expert: int, part: str) -> str:
        """Full name of a weight of an expert in a layer; `part` is `gate`, `up` or `down`."""
        return f"{self.layer.format(index)}.{self.expert.format(expert)}.{getattr(self, part)}.weight"


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
    }
    mlp = {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
    if config.qk_norm:
        parts |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    parts |= {"router": (config.num_experts, hidden)} if config.num_experts else mlp
    shapes: dict[str, tuple[int, ...]] = {names.embedding: (config.embedding_size, hidden)}
    for index in range(config.num_layers):
        for part, shape in parts.items():
            shapes[names.of_layer(index, part)] = shape
            if part in ("q", "k", "v") and config.qkv_bias:
                shapes[names.of_layer(index, part, "bias")] = shape[:1]
        for expert in range(config.num_experts):
            shapes |= {names.of_expert(index, expert, part): shape for part, shape in mlp.items()}
    shapes[names.final_norm] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[names.head] = (config.embedding_size, hidden)
    return shapes


def is_ignorable(config: ModelConfig, names: WeightNames, name: str) -> bool:
    """Whether a tensor that isn't in `tensor_shapes` may be skipped: RoPE buffers and the head of a tied model."""
    return (config.tie_word_embeddings and name == names.head) or name.endswith("rotary_emb.inv_freq")
