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
from ..model.ranks import Ranks
from ..model.registry import load_config
from ..model.settings import default_block_length, load_profile
from ..model.slices import check_tp_size
from ..request.facts import Facts
from ..request.structure import load_vocabulary
from .cpu.executor import CpuExecutor
from .device import choose_dtype, device_of_rank
from .executor import Executor
from .facts import make_facts
from .gpu.build import build_cuda_executor, check_fp8, max_block_length, with_cuda_budget
from .gpu.fp8_linear import quantize_layer
from .gpu.precompile import compile_ahead
from .gpu.slots import MAX_STOP_IDS, UNSERVED
from .pools import BoundaryPool, KVPool
from .worker import Worker

BuildExecutor = Callable[[EngineConfig, Decoder, KVPool, BoundaryPool, Facts], Executor]


def build_worker(
    config: EngineConfig, profile: DepthProfile | None = None, build_executor: BuildExecutor | None = None,
    ranks: Ranks | None = None,
) -> tuple[Worker, Facts]:  # fmt: skip
    """Load the model, allocate the pools. Raises ModelLoadError or ConfigError.

    Args:
        config: the engine's options.
        profile: in place of the one that the options choose.
        build_executor: in place of the device's own, for tests: the executor of a GPU also works on a CPU.
        ranks: the group that shares the model, joined on this rank's device; needed for a `tp_size` above 1.
    """
    folder = resolve_model_folder(config.model_path)
    if config.tp_size != (1 if ranks is None else ranks.size):
        message = f"tp_size is {config.tp_size}; an engine in one process has one rank: use a server's processes"
        raise ConfigError(message, field="tp_size", value=config.tp_size, limit=1)
    device = torch.device(device_of_rank(config.device, 0 if ranks is None else ranks.rank, config.tp_size))
    config = replace(config, device=str(device)).for_device(device.type)
    dtype, on_gpu = choose_dtype(config.dtype, device), device.type == "cuda"
    model = load_config(folder, config.mask_token_id)
    check_tp_size(model, config.tp_size)
    check_fp8(config, model, device, dtype)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else torch.float8_e4m3fn
    with compile_ahead(config, model, device) if on_gpu and build_executor is None else contextlib.nullcontext():
        decoder = load_model(
            folder, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed,
            mask_token_id=config.mask_token_id, lora=config.lora, ranks=ranks,
            finish_layer=quantize_layer if config.quantization else None,
        )  # fmt: skip
    profile = profile or load_profile(config, folder, model)
    block_length = config.block_length or default_block_length(folder)
    if on_gpu:
        torch.cuda.empty_cache()  # what was quantised is free for KVs
        if ranks is not None:
            assert config.max_refresh_tokens is not None
            ranks.reserve(config.max_refresh_tokens, model.hidden_size, dtype)
        config = with_cuda_budget(config, decoder.config, dtype)
        if ranks is not None and config.kv_cache_bytes is not None:  # one page table serves all of them
            config = replace(config, kv_cache_bytes=ranks.least(config.kv_cache_bytes))
    facts = make_facts(
        config, folder, model, profile, block_length, device=str(device), dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize, kv_itemsize=kv_dtype.itemsize,
        max_block_length=max_block_length(model, block_length) if on_gpu else None,
        max_stop_ids=MAX_STOP_IDS if on_gpu else None, unserved=UNSERVED if on_gpu else (),
    )  # fmt: skip
    with limits_of_memory(config, facts.device):
        kv = KVPool(decoder.config, facts.kv_pages, facts.page_size, facts.layers_per_band, kv_dtype, device)
        boundary = BoundaryPool(model, facts.boundary_pages, facts.page_size, dtype, device, ranks)
    if build_executor is None:
        build_executor = build_cuda_executor if on_gpu else _build_cpu_executor
    return Worker(build_executor(config, decoder, kv, boundary, facts)), facts


def _build_cpu_executor(
    _: EngineConfig, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, facts: Facts
) -> CpuExecutor:
    return CpuExecutor(decoder, kv, boundary, lambda: load_vocabulary(facts))


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
