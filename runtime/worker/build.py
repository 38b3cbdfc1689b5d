"""Builds a worker from an EngineConfig: model, pools, and the executor of its device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ...radix_cache.depth_profile import DepthProfile
from ...radix_cache.errors import RadixCacheError
from ..config import EngineConfig
from ..errors import ConfigError
from ..model.decoder import Decoder
from ..model.hub import resolve_model_folder
from ..model.loader import load_model
from ..model.registry import load_config
from ..model.settings import default_block_length, load_profile
from ..request.facts import Facts
from .cpu.executor import CpuExecutor
from .device import choose_device, choose_dtype
from .executor import Executor
from .facts import make_facts
from .gpu.build import build_cuda_executor, check_quantization, max_block_length, with_cuda_budget
from .gpu.fp8_linear import quantize_layer
from .gpu.slots import MAX_STOP_IDS, UNSERVED
from .pools import BoundaryPool, KVPool
from .worker import Worker

BuildExecutor = Callable[[EngineConfig, Decoder, KVPool, BoundaryPool, Facts], Executor]


def build_worker(
    config: EngineConfig, profile: DepthProfile | None = None, build_executor: BuildExecutor | None = None
) -> tuple[Worker, Facts]:
    """Load the model, allocate the pools. Raises ModelLoadError or ConfigError.

    Args:
        config: the engine's options.
        profile: in place of the one that the options choose.
        build_executor: in place of the device's own, for tests: the executor of a GPU also works on a CPU.
    """
    folder = resolve_model_folder(config.model_path)
    device = torch.device(choose_device(config.device))
    config = replace(config, device=str(device)).for_device(device.type)
    dtype, on_gpu = choose_dtype(config.dtype, device), device.type == "cuda"
    if config.quantization is not None:
        check_quantization(config, load_config(folder, config.mask_token_id), device, dtype)
    decoder = load_model(
        folder, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed,
        mask_token_id=config.mask_token_id, lora=config.lora,
        finish_layer=quantize_layer if config.quantization else None,
    )  # fmt: skip
    model = decoder.config
    profile = profile or load_profile(config, folder, model)
    block_length = config.block_length or default_block_length(folder)
    if on_gpu:
        torch.cuda.empty_cache()  # what was quantised is free for KVs
        config = with_cuda_budget(config, model, dtype)
    facts = make_facts(
        config, folder, model, profile, block_length, device=str(device), dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize, max_block_length=max_block_length(model, block_length) if on_gpu else None,
        max_stop_ids=MAX_STOP_IDS if on_gpu else None, unserved=UNSERVED if on_gpu else (),
    )  # fmt: skip
    with limits_of_memory(config, facts.device):
        kv = KVPool(model, facts.kv_pages, facts.page_size, facts.layers_per_band, dtype, device)
        boundary = BoundaryPool(model, facts.boundary_pages, facts.page_size, dtype, device)
    if build_executor is None:
        build_executor = build_cuda_executor if on_gpu else _build_cpu_executor
    return Worker(build_executor(config, decoder, kv, boundary, facts)), facts


def _build_cpu_executor(
    _: EngineConfig, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, __: Facts
) -> CpuExecutor:
    return CpuExecutor(decoder, kv, boundary)


@contextlib.contextmanager
def limits_of_memory(config: EngineConfig, device: str) -> Iterator[None]:
    """Turn errors inside into a ConfigError: the pools are too large."""
    try:
        yield
    # torch raises RuntimeError for memory that it does not get, NumPy MemoryError, the allocator for its own limit.
    except (RuntimeError, MemoryError, RadixCacheError) as error:
        name = "kv_cache_bytes" if config.kv_cache_tokens is None else "kv_cache_tokens"
        value, allowed = getattr(config, name), f"what the memory of {device} allows"
        message = f"{name} is {value}; it must be {allowed}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(message, field=name, value=value, limit=allowed) from error
