"""The GPU's parts of an engine: memory budget, canvas slots and CUDA graphs."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import NoReturn

import torch

from ....kernels.attention.tiling import most_shared_memory, shared_memory
from ...config import EngineConfig
from ...errors import ConfigError
from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...request.facts import Facts
from ...request.structure import load_vocabulary
from ..device import on_device
from ..pools import BoundaryPool, KVPool
from .executor import CudaExecutor
from .graphs import ForwardGraphs
from .memory import forward_bytes, gpu_budget, slot_bytes
from .runner import CudaRunner
from .sampler import MOST_HEAD_ROWS, BlockSampler
from .slots import CanvasSlots

logger = logging.getLogger(__name__)
MAX_BLOCK_LENGTH = 1024
"""Positions of the longest block that a GPU decodes, unless the engine's own block length is longer."""
_RESERVED_SHARED_MEMORY = 2 << 10
"""Bytes of a program's shared memory that are not available for queries, keys and values."""
_BATCH_SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)


def with_cuda_budget(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> EngineConfig:
    """The configuration with `kv_cache_bytes` from what is free now that the weights are loaded, unless it is given.

    Raises ConfigError when nothing is left for KVs.
    """
    if config.kv_cache_bytes is not None or config.kv_cache_tokens is not None:
        return config
    assert config.max_refresh_tokens is not None
    rows = max(config.max_refresh_tokens, model.max_position_embeddings)
    forwards = forward_bytes(model, rows, MOST_HEAD_ROWS, dtype.itemsize)
    forwards += slot_bytes(model, config.max_running_requests)
    budget = gpu_budget(config.mem_fraction_static, torch.device(config.device), forwards)
    gib = 1 << 30
    logger.info(
        "GPU memory: %.1f GiB in all, %.1f in use with the weights, %.1f for forwards, %.1f for KVs",
        budget.total / gib, budget.used / gib, budget.forwards / gib, budget.pools / gib,
    )  # fmt: skip
    return replace(config, kv_cache_bytes=budget.pools)


def check_fp8(config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError where the options `quantization` or `kv_cache_dtype` can't be honoured."""
    if config.kv_cache_dtype != "auto" and (reason := _no_fp8(device, dtype)):
        _refuse("kv_cache_dtype", config.kv_cache_dtype, reason)
    if config.quantization is None:
        return
    sizes = (model.hidden_size, model.q_size, model.kv_size, model.intermediate_size)
    reason = _no_fp8(device, dtype)
    if reason is None and model.num_experts:
        reason = f"{model.architecture!r} has experts, whose products run in bfloat16 alone"
    elif reason is None and any(size % 16 for size in sizes):
        reason = f"hidden, attention and MLP sizes are {sizes}; they must be multiples of 16"
    if reason is not None:
        _refuse("quantization", config.quantization, reason)


def _no_fp8(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a device or a dtype has no fp8; None: it has."""
    if device.type != "cuda":
        return f"the device is {device}: it needs a GPU of compute capability 8.9"
    if (found := torch.cuda.get_device_capability(device)) < (8, 9):
        return f"{device} has compute capability {found[0]}.{found[1]}; it needs 8.9"
    return None if dtype == torch.bfloat16 else f"dtype is {str(dtype).removeprefix('torch.')}; it needs bfloat16"


def _refuse(field: str, value: str, reason: str) -> NoReturn:
    raise ConfigError(f"{field} is {value}, but {reason}", field=field, value=value, limit=None)


def max_block_length(model: ModelConfig, default: int) -> int:
    """Positions of the longest block that a request may ask for on a GPU; `default` is the engine's block length."""
    return min(model.max_position_embeddings, max(MAX_BLOCK_LENGTH, default))


def check_kernels_fit(config: EngineConfig, decoder: Decoder) -> None:
    """Raise ConfigError for shapes, and an option, that the kernels do not take, on this GPU or on any."""
    assert config.page_size is not None
    model, device = decoder.config, decoder.device
    if config.refresh_entropy is not None:
        message = f"refresh_entropy is {config.refresh_entropy:g}, which shoal does not serve on a GPU: leave it out"
        raise ConfigError(message, field="refresh_entropy", value=config.refresh_entropy)
    for name, value, low in (("page_size", config.page_size, 1), ("head_dim", model.head_dim, 16)):
        if value < low or value & (value - 1):
            limit = f"a power of two of at least {low}"
            raise ConfigError(f"{name} is {value}; on a GPU it must be {limit}", field=name, value=value, limit=limit)
    group, wide = model.num_heads // model.num_kv_heads, decoder.dtype == torch.float32
    have = shared_memory(device)
    need = most_shared_memory(group, config.page_size, model.head_dim, wide, have)
    if need > have - _RESERVED_SHARED_MEMORY:
        message = (
            f"head_dim is {model.head_dim}: attention takes {need / 1024:.0f} KiB of shared memory for it; "
            f"a program on {device} can have {have / 1024:.0f}"
        )
        raise ConfigError(message, field="head_dim", value=model.head_dim, limit=f"{have / 1024:.0f} KiB")


def build_cuda_executor(
    config: EngineConfig, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, facts: Facts,
    capture: bool | None = None, graphs: type[ForwardGraphs] = ForwardGraphs,
) -> CudaExecutor:  # fmt: skip
    """An executor with a canvas slot for every running request, and its block steps captured.

    `capture` None: on a GPU, unless the options disable it. `graphs`: the class that captures.
    """
    check_kernels_fit(config, decoder)
    block_length = facts.block_length
    slots = CanvasSlots(
        config.max_running_requests,
        facts.max_tokens,
        max_block_length(decoder.config, facts.block_length),
        facts.num_bands,
        kv.page_size,
        decoder.device,
        decoder.config.vocab_size,
        decoder.config.eos_token_id,
    )
    if config.fold_norms and config.quantization is None and decoder.dtype != torch.float32:
        decoder.fold_norms()
    runner = CudaRunner(decoder, kv, boundary, slots)
    sampler = BlockSampler(runner.layers, slots)
    sizes = [size for size in _BATCH_SIZES if size < config.max_running_requests] + [config.max_running_requests]
    if capture is None:
        capture = decoder.device.type == "cuda" and not config.disable_cuda_graph
    captured = graphs(runner, sampler, sizes, capture)
    assert config.max_refresh_tokens is not None
    executor = CudaExecutor(runner, sampler, captured, config.max_refresh_tokens, lambda: load_vocabulary(facts))
    if capture:
        with on_device(decoder.device):
            started = time.perf_counter()
            captured.warm_up(block_length + int(decoder.config.shift_logits), block_length, config.cache_mode != "dual")
            between = time.perf_counter()
            executor.warm_up(block_length, config.max_refresh_tokens)
            seconds = (between - started, time.perf_counter() - between)
            logger.info("warmed up: block steps in %.1f s, refreshes in %.1f s", *seconds)
    return executor
