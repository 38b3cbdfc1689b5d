"""Which device and dtype a worker computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..errors import ConfigError


def device_of_rank(name: str, rank: int, size: int) -> str:
    """The torch device of a model's rank: the GPUs from the configured one on, or the CPU for all.

    Raises ConfigError, naming `tp_size`, when there are fewer GPUs.
    """
    device = torch.device(choose_device(name))
    if size == 1 or device.type == "cpu":
        return str(device)
    first, count = device.index or 0, torch.cuda.device_count()
    if first + size > count:
        message = f"tp_size is {size}; from cuda:{first} on there are {count - first} GPUs"
        raise ConfigError(message, field="tp_size", value=size, limit=count - first)
    return f"cuda:{first + rank}"


def choose_device(name: str) -> str:
    """The torch device for a configured name; `auto` prefers CUDA. Raises ConfigError for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            message = f"device is {name!r}, but no CUDA device is there; cpu is"
            raise ConfigError(message, field="device", value=name, limit="cpu")
        count = torch.cuda.device_count()
        if (torch.device(name).index or 0) >= count:
            limit = f"cuda:0 to cuda:{count - 1}"
            raise ConfigError(f"device is {name!r}; there are {limit}", field="device", value=name, limit=limit)
    return name


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and KVs; `auto` is fp32 on a CPU and bf16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the thread's current one for a while: kernels of Triton and graphs go there, whatever they work on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
