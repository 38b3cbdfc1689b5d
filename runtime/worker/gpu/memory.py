"""How much of a GPU's memory the pools may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import ConfigError
from ...model.config import ModelConfig

_GRAPHS = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuBudget:
    """Bytes: the card's memory, in use once the weights are loaded, needed by forwards, left for pools."""

    total: int
    used: int
    forwards: int
    pools: int


def forward_bytes(model: ModelConfig, rows: int, head_rows: int, itemsize: int) -> int:
    """Bytes at the peak of a forward of `rows` tokens whose head runs on `head_rows`, and of CUDA graphs.

    A layer holds the hidden states twice and either q, k, v and the attended values, or gate, up and their product; of
    experts the product and the output of each that a token chooses, and hidden states in fp32 for the router.
    """
    attention = 3 * model.q_size + 2 * model.kv_size
    mlp = 3 * model.intermediate_size
    if model.num_experts:
        chosen = model.experts_per_token
        mlp = chosen * (model.intermediate_size + model.hidden_size) + 4 * model.hidden_size // itemsize
    widest = max(attention, mlp)
    layer = rows * (3 * model.hidden_size + widest) * itemsize
    head = head_rows * (model.vocab_size + model.hidden_size) * itemsize
    return layer + head + _GRAPHS


def slot_bytes(model: ModelConfig, slots: int) -> int:
    """Bytes of the slots' counts and biases of all tokens."""
    return (slots + 1) * model.vocab_size * 8


def gpu_budget(fraction: float, device: torch.device, forwards: int) -> GpuBudget:
    """Memory for pools if weights and pools together may take `fraction` of the card.

    Leaves at least `forwards` bytes free. Raises ConfigError if nothing is left for pools.
    """
    free, total = torch.cuda.mem_get_info(device)
    used = total - free
    pools = min(int(fraction * total) - used, free - forwards)
    if pools <= 0:
        raise ConfigError(
            f"mem_fraction_static is {fraction}: of {total / 2**30:.1f} GiB, weights and others take "
            f"{used / 2**30:.1f} GiB and a forward of max_refresh_tokens {forwards / 2**30:.1f} GiB: no room for KVs",
            field="mem_fraction_static", value=fraction, limit=(used + 1) / total,
        )  # fmt: skip
    return GpuBudget(total, used, forwards, pools)
