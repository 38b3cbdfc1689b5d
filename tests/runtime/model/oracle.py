"""What the models of every family compute, written again in plain float64 PyTorch, from the stored tensor names.

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
    # Of the 8 frequencies of a head one is kept, one lies between, the others are divided.
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "rope_theta": 100000.0,
    "shift_logits": True,
    "tie_word_embeddings": True,
    "vocab_size": 93,
}

A2D_QWEN3_TINY: dict[str, Any] = {
    **{key: value for key, value in A2D_TINY.items() if key not in ("mlp_bias", "rope_scaling", "shift_logits")},
    "model_type": "a2d-qwen3",
    "architectures": ["A2DQwen3LMHeadModel"],
    "layer_types": ["full_attention"] * 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}

A2D_QWEN2_TINY: dict[str, Any] = {
    **{key: value for key, value in A2D_QWEN3_TINY.items() if key not in ("attention_bias", "head_dim")},
    "model_type": "a2d-qwen2",
    "architectures": ["A2DQwen2LMHeadModel"],
}

ILLADA_TINY: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["ILLaDAModelLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_size": 48,
    "intermediate_size": 112,
    "max_position_embeddings": 128,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 93,
}

LLADA_MOE_TINY: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "dense_intermediate_size": 112,
    "eos_token_id": 3,
    "expert_intermediate_size": 20,
    "hidden_act": "silu",
    "hidden_size": 48,
    "mask_token_id": 90,
    "max_position_embeddings": 128,
    "moe_layer_freq": [1, 1, 1],
    "norm_topk_prob": None,
    "num_attention_heads": 3,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 3,
    "pad_token_id": 3,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "vocab_size": 93,
}

TINY: dict[str, dict[str, Any]] = {
    "llada": LLADA_TINY, "llada-moe": LLADA_MOE_TINY, "illada": ILLADA_TINY, "dream": DREAM_TINY,
    "a2d-llama": A2D_TINY, "a2d-qwen2": A2D_QWEN2_TINY, "a2d-qwen3": A2D_QWEN3_TINY,
}  # fmt: skip
"""A configuration of every family."""

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
    if "d_model" in config:
        hidden, ffn = config["d_model"], config["mlp_hidden_size"]
        head_dim = hidden // config["n_heads"]
        kv = (config["n_kv_heads"] or config["n_heads"]) * head_dim
        query, rows, experts = hidden, config["embedding_size"], 0
        state["model.transformer.wte.weight"] = weight(rows, hidden) * math.sqrt(hidden)
        stem, names, layers = "model.transformer.blocks.{}.", _LLADA_LAYER, config["n_layers"]
        biased = config["include_qkv_bias"]
        state["model.transformer.ln_f.weight"] = norm(hidden)
        if not config["weight_tying"]:
            state["model.transformer.ff_out.weight"] = weight(rows, hidden)
    else:
        experts = config.get("num_experts", 0)
        hidden, ffn = config["hidden_size"], config["expert_intermediate_size" if experts else "intermediate_size"]
        head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
        query, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        state["model.embed_tokens.weight"] = weight(config["vocab_size"], hidden) * math.sqrt(hidden)
        stem, names, layers = "model.layers.{}.", _DREAM_LAYER, config["num_hidden_layers"]
        biased = config["model_type"] in ("Dream", "a2d-qwen2")
        state["model.norm.weight"] = norm(hidden)
        if not config["tie_word_embeddings"]:
            state["lm_head.weight"] = weight(config["vocab_size"], hidden)
    shapes = {
        "q": (query, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, query),
        "gate": (ffn, hidden),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }
    for index in range(layers):
        if config["model_type"] == "a2d-qwen3" or config.get("qk_layernorm"):
            for name in ("q_norm", "k_norm"):
                state[f"{stem.format(index)}self_attn.{name}.weight"] = norm(head_dim)
        if experts:
            state[stem.format(index) + "mlp.gate.weight"] = weight(experts, hidden)
        for name, role in names.items():
            full = stem.format(index) + name
            if experts and role in ("gate", "up", "down"):
                for expert in range(experts):
                    own = full.replace("mlp.", f"mlp.experts.{expert}.")
                    state[own + ".weight"] = 2 * weight(*shapes[role])
                continue
            state[full + ".weight"] = norm(hidden) if role in ("norm1", "norm2") else weight(*shapes[role])
            if biased and role in ("q", "k", "v"):
                state[full + ".bias"] = weight(shapes[role][0])
    return state


def oracle_logits(config: dict[str, Any], state: dict[str, Tensor], token_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits [T, vocab] in float64 of tokens [T] that all see each other. Not shifted."""
    state = {name: tensor.double() for name, tensor in state.items()}
    llada = "d_model" in config
    heads = config["n_heads"] if llada else config["num_attention_heads"]
    kv_heads = (config["n_kv_heads"] or heads) if llada else config["num_key_value_heads"]
    layers = config["n_layers"] if llada else config["num_hidden_layers"]
    stem = "model.transformer.blocks.{}." if llada else "model.layers.{}."
    names = {role: name for name, role in (_LLADA_LAYER if llada else _DREAM_LAYER).items()}
    eps = config["rms_norm_eps"]
    speeds = rope_speeds(config, config.get("head_dim", config["d_model" if llada else "hidden_size"] // heads))

    x = state["model.transformer.wte.weight" if llada else "model.embed_tokens.weight"][token_ids]
    for index in range(layers):

        def part(role: str, of: Tensor, prefix: str = stem.format(index)) -> Tensor:
            y = of @ state[f"{prefix}{names[role]}.weight"].T
            bias = state.get(f"{prefix}{names[role]}.bias")
            return y if bias is None else y + bias

        y = _norm(x, state[stem.format(index) + names["norm1"] + ".weight"], eps)
        q, k, v = part("q", y), part("k", y), part("v", y)
        size = q.shape[1] // heads
        if f"{stem.format(index)}self_attn.q_norm.weight" in state:
            q = _norm_heads(q, state[f"{stem.format(index)}self_attn.q_norm.weight"], eps)
            k = _norm_heads(k, state[f"{stem.format(index)}self_attn.k_norm.weight"], eps)
        outputs = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            q_h = _rotate(q[:, head * size : (head + 1) * size], positions, speeds)
            k_h = _rotate(k[:, shared * size : (shared + 1) * size], positions, speeds)
            scores = q_h @ k_h.T / math.sqrt(size)
            outputs.append(torch.softmax(scores, dim=-1) @ v[:, shared * size : (shared + 1) * size])
        x = x + part("o", torch.cat(outputs, dim=1))
        y = _norm(x, state[stem.format(index) + names["norm2"] + ".weight"], eps)
        if config.get("num_experts"):
            x = x + _experts(y, state, stem.format(index) + "mlp.", config["num_experts_per_tok"])
        else:
            x = x + part("down", _silu(part("gate", y)) * part("up", y))
    x = _norm(x, state["model.transformer.ln_f.weight" if llada else "model.norm.weight"], eps)
    head_name = "model.transformer.ff_out.weight" if llada else "lm_head.weight"
    if config["weight_tying" if llada else "tie_word_embeddings"]:
        head_name = "model.transformer.wte.weight" if llada else "model.embed_tokens.weight"
    return (x @ state[head_name].T)[:, : config["vocab_size"]]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _norm_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, heads * D]: each head by itself."""
    return torch.cat([_norm(head, weight, eps) for head in x.split(len(weight), dim=1)], dim=1)


def _experts(x: Tensor, state: dict[str, Tensor], stem: str, top_k: int) -> Tensor:
    """One token after the other; the probabilities of the chosen experts are not made to add up to one."""
    rows = []
    for row in x:
        scores = (state[stem + "gate.weight"] @ row).exp()
        scores = scores / scores.sum()
        total = torch.zeros_like(row)
        for expert in sorted(range(len(scores)), key=lambda e: -float(scores[e]))[:top_k]:
            gate, up, down = (state[f"{stem}experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            total = total + scores[expert] * (down @ (_silu(gate @ row) * (up @ row)))
        rows.append(total)
    return torch.stack(rows)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + eps) * weight


def rope_speeds(config: dict[str, Any], head_dim: int) -> Tensor:
    """By how much each position turns pair j of a head: theta^(-2j/D), as the configuration scales it."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta: float = scaling.get("rope_theta") or config["rope_theta"]
    speeds = []
    for pair in range(head_dim // 2):
        speed = theta ** (-2 * pair / head_dim)
        wave = 2 * math.pi / speed
        if scaling.get("rope_type") == "linear":
            speed /= scaling["factor"]
        if scaling.get("rope_type") == "llama3":
            length = scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wave > length / low:
                speed /= scaling["factor"]
            elif wave >= length / high:
                smooth = (length / wave - low) / (high - low)
                speed = (1 - smooth) * speed / scaling["factor"] + smooth * speed
        speeds.append(speed)
    return torch.tensor(speeds, dtype=torch.float64)


def _rotate(x: Tensor, positions: Tensor, speeds: Tensor) -> Tensor:
    """x [T, D]: the pair (j, j + D/2) is a complex number turned by position * speeds[j]."""
    half = x.shape[1] // 2
    pairs = torch.complex(x[:, :half], x[:, half:])
    angle = positions.double()[:, None] * speeds[None]
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=1)
