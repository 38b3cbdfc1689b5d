"""Puts an engine's parts together: model, pools, tree, worker and scheduler, from an EngineConfig."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ...radix_cache.config import TreeConfig
from ...radix_cache.depth_profile import DepthProfile
from ...radix_cache.errors import RadixCacheError
from ..config import EngineConfig
from ..errors import ConfigError
from ..model.decoder import Decoder
from ..model.hub import resolve_model_folder
from ..model.loader import load_model
from ..model.settings import (
    boundary_depths,
    check_pool,
    default_block_length,
    layers_of_band,
    load_profile,
    load_tokenizer,
    pool_sizes,
)
from ..request.facts import Facts, build_scheduler
from ..scheduler.reuse import ReusePlanner
from ..scheduler.scheduler import Scheduler
from ..text.tokenizer import Tokenizer
from ..worker.cpu.executor import CpuExecutor
from ..worker.device import choose_device, choose_dtype
from ..worker.executor import Executor
from ..worker.gpu.build import build_cuda_executor, max_block_length, with_cuda_budget
from ..worker.gpu.slots import MAX_STOP_IDS
from ..worker.pools import BoundaryPool, KVPool
from ..worker.worker import Worker


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    facts: Facts
    decoder: Decoder
    tokenizer: Tokenizer | None
    profile: DepthProfile
    scheduler: Scheduler
    worker: Worker


def build_parts(
    config: EngineConfig, *, profile: DepthProfile | None = None, planner: type[ReusePlanner] = ReusePlanner
) -> Parts:
    """Load the model and set up everything around it. Raises ModelLoadError or ConfigError.

    `profile` and `planner` replace the configuration's choice, for measurements.
    """
    worker, facts = build_worker(config, profile)
    with _limits_of_memory(config, facts.device):
        scheduler = build_scheduler(config, facts, worker, planner)
    tokenizer = load_tokenizer(config, facts.folder)
    profile = scheduler.memory.profile
    return Parts(facts, worker.executor.decoder, tokenizer, profile, scheduler, worker)


def build_worker(config: EngineConfig, profile: DepthProfile | None = None) -> tuple[Worker, Facts]:
    """Load the model, allocate the pools. Raises ModelLoadError or ConfigError."""
    folder = resolve_model_folder(config.model_path)
    device = torch.device(choose_device(config.device))
    config = replace(config, device=str(device)).for_device(device.type)
    page_size = config.page_size
    assert page_size is not None
    dtype = choose_dtype(config.dtype, device)
    decoder = load_model(folder, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed)
    model = decoder.config
    band = layers_of_band(config.layers_per_band, model.num_layers)
    profile = profile or load_profile(config, folder, model)
    profile = profile.floor_to(band)
    tree = TreeConfig(
        page_size, model.num_layers, band, boundary_depths(config, profile, band),
        config.eviction_policy,
        kv_page_bytes=KVPool.page_bytes(model, page_size, band, dtype),
        boundary_page_bytes=BoundaryPool.page_bytes(model, page_size, dtype),
    )  # fmt: skip
    block_length = config.block_length or default_block_length(folder)
    if device.type == "cuda":
        config = with_cuda_budget(config, model, block_length, dtype)
    kv_pages, boundary_pages = pool_sizes(config, tree, profile)
    check_pool(config, kv_pages, tree.num_bands, block_length)
    with _limits_of_memory(config, str(device)):
        kv = KVPool(model, kv_pages, page_size, band, dtype, device)
        boundary = BoundaryPool(model, boundary_pages, page_size, dtype, device)
    facts = Facts(
        folder=str(folder), model=model, block_length=block_length,
        kv_pages=kv_pages, boundary_pages=boundary_pages, kv_page_bytes=tree.kv_page_bytes,
        boundary_page_bytes=tree.boundary_page_bytes, depth_profile=profile.to_json(), device=str(device),
        dtype=str(dtype).removeprefix("torch."), page_size=page_size, layers_per_band=band,
        max_block_length=max_block_length(model, block_length) if device.type == "cuda" else None,
        max_stop_ids=MAX_STOP_IDS if device.type == "cuda" else None,
    )  # fmt: skip
    executor: Executor
    if device.type == "cuda":
        executor = build_cuda_executor(config, decoder, kv, boundary, tree.num_bands, block_length)
    else:
        executor = CpuExecutor(decoder, kv, boundary)
    return Worker(executor), facts


@contextlib.contextmanager
def _limits_of_memory(config: EngineConfig, device: str) -> Iterator[None]:
    """Turn errors inside into a ConfigError: the pools are too large."""
    try:
        yield
    # torch raises RuntimeError for memory that it does not get, NumPy MemoryError, the allocator for its own limit.
    except (RuntimeError, MemoryError, RadixCacheError) as error:
        name = "kv_cache_bytes" if config.kv_cache_tokens is None else "kv_cache_tokens"
        value, allowed = getattr(config, name), f"what the memory of {device} allows"
        message = f"{name} is {value}; it must be {allowed}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(message, field=name, value=value, limit=allowed) from error
