"""What LLaDA, Dream and a2d models compute, written again in plain float64 PyTorch, from the stored tensor names.

Shares no code with shoal: dense bidirectional attention one head at a time, RoPE as complex rotations, norms and
activations spelled out. Slow on purpose.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LLADA_TINY: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 48,
    "embedding_size": 104,
    "eos_token_id": 3,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 95,
    "max_sequence_length": 64,
    "mlp_hidden_size": 80,
    "multi_query_attention": None,
    "n_heads": 3,
    "n_kv_heads": 3,
    "n_layers": 3,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 97,
    "weight_tying": False,
}

DREAM_TINY: dict[str, Any] = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 4,
    "eos_token_id": 4,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 112,
    "mask_token_id": 90,
    "max_position_embeddings": 128,
    "max_window_layers": 28,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 93,
}

A2D_TINY: dict[str, Any] = {
    "model_type": "a2d-llama",
    "architectures": ["A2DLlamaLMHeadModel"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 112,
    "mask_token_id": 16,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "shift_logits": True,
    "tie_word_embeddings": True,
    "vocab_size": 93,
}

_LLADA_LAYER = {
    "attn_norm": "norm1",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "attn_out": "o",
    "ff_norm": "norm2",
    "ff_proj": "gate",
    "up_proj": "up",
    "ff_out": "down",
}
_DREAM_LAYER = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


def random_state_dict(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under the names a checkpoint of `config` uses, large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])).to(dtype)

    def norm(size: int) -> Tensor:
        return (1 + 0.3 * torch.randn(size, generator=generator)).to(dtype)

    state: dict[str, Tensor] = {}
    if config["model_type"] == "llada":
        hidden, ffn = config["d_model"], config["mlp_hidden_size"]
        head_dim = hidden // config["n_heads"]
        kv = (config["n_kv_heads"] or config["n_heads"]) * head_dim
        rows = config["embedding_size"]
        state["model.transformer.wte.weight"] = weight(rows, hidden) * math.sqrt(hidden)
        stem, names, layers = "model.transformer.blocks.{}.", _LLADA_LAYER, config["n_layers"]
        biased = config["include_qkv_bias"]
        state["model.transformer.ln_f.weight"] = norm(hidden)
        if not config["weight_tying"]:
            state["model.transformer.ff_out.weight"] = weight(rows, hidden)
    else:
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        kv = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
        state["model.embed_tokens.weight"] = weight(config["vocab_size"], hidden) * math.sqrt(hidden)
        stem, names, layers = "model.layers.{}.", _DREAM_LAYER, config["num_hidden_layers"]
        biased = config["model_type"] == "Dream"
        state["model.norm.weight"] = norm(hidden)
        if not config["tie_word_embeddings"]:
            state["lm_head.weight"] = weight(config["vocab_size"], hidden)
    shapes = {
        "q": (hidden, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, hidden),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    for index in range(layers):
        for name, role in names.items():
            full = stem.format(index) + name
            state[full + ".weight"] = norm(hidden) if role in ("norm1", "norm2") else weight(*shapes[role])
            if biased and role in ("q", "k", "v"):
                state[full + ".bias"] = weight(shapes[role][0])
    return state


def oracle_logits(config: dict[str, Any], state: dict[str, Tensor], token_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits [T, vocab] in float64 of tokens [T] that all see each other. Not shifted."""
    state = {name: tensor.double() for name, tensor in state.items()}
    llada = config["model_type"] == "llada"
    heads = config["n_heads"] if llada else config["num_attention_heads"]
    kv_heads = (config["n_kv_heads"] or heads) if llada else config["num_key_value_heads"]
    layers = config["n_layers"] if llada else config["num_hidden_layers"]
    stem = "model.transformer.blocks.{}." if llada else "model.layers.{}."
    names = {role: name for name, role in (_LLADA_LAYER if llada else _DREAM_LAYER).items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]

    x = state["model.transformer.wte.weight" if llada else "model.embed_tokens.weight"][token_ids]
    for index in range(layers):

        def part(role: str, of: Tensor, prefix: str = stem.format(index)) -> Tensor:
            y = of @ state[f"{prefix}{names[role]}.weight"].T
            bias = state.get(f"{prefix}{names[role]}.bias")
            return y if bias is None else y + bias

        y = _norm(x, state[stem.format(index) + names["norm1"] + ".weight"], eps)
        q, k, v = part("q", y), part("k", y), part("v", y)
        size = q.shape[1] // heads
        outputs = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            q_h = _rotate(q[:, head * size : (head + 1) * size], positions, theta)
            k_h = _rotate(k[:, shared * size : (shared + 1) * size], positions, theta)
            scores = q_h @ k_h.T / math.sqrt(size)
            outputs.append(torch.softmax(scores, dim=-1) @ v[:, shared * size : (shared + 1) * size])
        x = x + part("o", torch.cat(outputs, dim=1))
        y = _norm(x, state[stem.format(index) + names["norm2"] + ".weight"], eps)
        gate = part("gate", y)
        x = x + part("down", gate / (1 + torch.exp(-gate)) * part("up", y))
    x = _norm(x, state["model.transformer.ln_f.weight" if llada else "model.norm.weight"], eps)
    head_name = "model.transformer.ff_out.weight" if llada else "lm_head.weight"
    if config["weight_tying" if llada else "tie_word_embeddings"]:
        head_name = "model.transformer.wte.weight" if llada else "model.embed_tokens.weight"
    return (x @ state[head_name].T)[:, : config["vocab_size"]]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [T, D]: the pair (j, j + D/2) is a complex number turned by position * theta^(-2j/D)."""
    half = x.shape[1] // 2
    pairs = torch.complex(x[:, :half], x[:, half:])
    speed = torch.tensor([theta ** (-2 * j / x.shape[1]) for j in range(half)], dtype=torch.float64)
    angle = positions.double()[:, None] * speed[None]
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=1)
