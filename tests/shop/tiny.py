"""A configuration small enough to train in a test, and a trainer's options for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.shop.dream_network import SHOP_DREAM_CONFIG
from shoal.shop.network import SHOP_CONFIG

TINY: dict[str, Any] = {
    **SHOP_CONFIG,
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 2,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
}

TINY_DREAM: dict[str, Any] = {
    **SHOP_DREAM_CONFIG,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}


def arguments(out: Path, **changed: object) -> list[str]:
    """Command line of a short training on the CPU."""
    options: dict[str, object] = {
        "out": out, "device": "cpu", "steps": 6, "decay-start": 3, "warm-up": 2, "workers": 0, "tokens-per-step": 512,
    } | {name.replace("_", "-"): value for name, value in changed.items()}  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))] + ["--no-compile"]
