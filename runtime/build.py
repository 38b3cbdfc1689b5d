"""Puts an engine's parts together: model, pools, tree, worker and scheduler, from an EngineConfig."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ..radix_cache.config import TreeConfig
from ..radix_cache.depth_profile import DepthProfile
from ..radix_cache.errors import ProfileError, RadixCacheError
from .decoder import Decoder
from .engine_config import EngineConfig
from .errors import ConfigError, ModelLoadError
from .hub import resolve_model_folder
from .kv_pool import BoundaryPool, KVPool
from .loader import load_model
from .memory import Memory
from .model_digest import model_digest
from .model_runner import ModelRunner
from .reuse import ReusePlanner
from .scheduler import Scheduler
from .tokenizer import Tokenizer
from .worker import Worker

logger = logging.getLogger(__name__)
PROFILE_FILE = "depth_profile.json"
DEFAULT_BLOCK_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of."""

    folder: Path
    decoder: Decoder
    tokenizer: Tokenizer | None
    profile: DepthProfile
    scheduler: Scheduler
    worker: Worker
    block_length: int


def build_parts(config: EngineConfig) -> Parts:
    """Load the model and set up everything around it. Raises ModelLoadError or ConfigError."""
    folder = resolve_model_folder(config.model_path)
    device = torch.device(choose_device(config.device))
    dtype = choose_dtype(config.dtype, device)
    decoder = load_model(folder, dtype=dtype, device=device, load_format=config.load_format, seed=config.seed)
    tokenizer = Tokenizer.load(folder) if config.load_format == "auto" else None
    model = decoder.config
    if config.layers_per_band > model.num_layers:
        limit = model.num_layers
        message = f"layers_per_band is {config.layers_per_band}; the model has {limit} layers"
        raise ConfigError(message, field="layers_per_band", value=config.layers_per_band, limit=limit)
    profile = load_profile(config, folder, model.architecture, model.num_layers).floor_to(config.layers_per_band)
    tree = TreeConfig(
        config.page_size, model.num_layers, config.layers_per_band, profile.depths, config.eviction_policy,
        kv_page_bytes=KVPool.page_bytes(model, config.page_size, config.layers_per_band, dtype),
        boundary_page_bytes=BoundaryPool.page_bytes(model, config.page_size, dtype),
    )  # fmt: skip
    kv_pages, boundary_pages = pool_sizes(config, tree)
    try:
        kv = KVPool(model, kv_pages, config.page_size, config.layers_per_band, dtype, device)
        boundary = BoundaryPool(model, boundary_pages, config.page_size, dtype, device)
        memory = Memory(tree, profile, kv_pages, boundary_pages)
    # torch raises RuntimeError for memory that it does not get, NumPy MemoryError, the allocator for its own limit.
    except (RuntimeError, MemoryError, RadixCacheError) as error:
        name = "kv_cache_bytes" if config.kv_cache_tokens is None else "kv_cache_tokens"
        value, allowed = getattr(config, name), f"what the memory of {device} allows"
        message = f"{name} is {value}; it must be {allowed}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(message, field=name, value=value, limit=allowed) from error
    worker = Worker(ModelRunner(decoder, kv, boundary))
    interval = profile.refresh_interval if config.refresh_interval is None else (config.refresh_interval or None)
    planner = ReusePlanner(memory, int(model.shift_logits), interval, config.reuse_margin)
    scheduler = Scheduler(
        memory, planner, worker, eos_token_id=model.eos_token_id,
        max_running_requests=config.max_running_requests, max_refresh_tokens=config.max_refresh_tokens,
        max_steps_per_message=config.max_steps_per_message, policy=config.schedule_policy,
        check_invariants=config.check_invariants,
    )  # fmt: skip
    block_length = config.block_length or default_block_length(folder)
    return Parts(folder, decoder, tokenizer, profile, scheduler, worker, block_length)


def choose_device(name: str) -> str:
    """The torch device for a configured name; `auto` prefers CUDA."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}: {error}", field="device", value=name) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but no CUDA device is there", field="device", value=name, limit="cpu")
    return name


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and KVs."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_profile(config: EngineConfig, folder: Path, architecture: str, num_layers: int) -> DepthProfile:
    """The depth profile: a constant depth, the file named, the file beside the weights, or the built-in table."""
    if config.depth is not None:
        band = config.layers_per_band
        if config.depth > num_layers or (config.depth % band and config.depth != num_layers):
            limit = f"whole bands of {band} layers up to {num_layers}"
            raise ConfigError(f"depth is {config.depth}; it must be {limit}", field="depth", value=config.depth,
                              limit=limit)  # fmt: skip
        return DepthProfile.constant(config.depth, num_layers)
    path = Path(config.depth_profile) if config.depth_profile else folder / PROFILE_FILE
    if config.depth_profile or path.exists():
        try:
            profile = DepthProfile.load(path, num_layers=num_layers, model_digest=model_digest(folder))
            if profile.capture != "first":
                raise ProfileError("capture", f"is {profile.capture!r}; the engine captures 'first' forwards only")
            return profile
        except (OSError, ProfileError) as error:
            limit = "a profile of this model"
            message = f"depth_profile is {str(path)!r}; it must be {limit}: {error}"
            raise ConfigError(message, field="depth_profile", value=str(path), limit=limit) from error
    profile = DepthProfile.builtin(architecture, num_layers)
    logger.warning("no %s beside the weights: using the %s", PROFILE_FILE, profile.source)
    return profile


def pool_sizes(config: EngineConfig, tree: TreeConfig) -> tuple[int, int]:
    """Pages of the KV pool and of the boundary pool.

    Boundary pages hold a state for every token and stored depth, so the two pools are sized for the same tokens.
    """
    bands, depths = tree.num_bands, max(1, len(tree.boundary_depths))
    per_page = bands * tree.kv_page_bytes + depths * tree.boundary_page_bytes
    pages = config.kv_cache_bytes // per_page
    if config.kv_cache_tokens is not None:
        pages = -(-config.kv_cache_tokens // config.page_size)
    if pages < 1:
        message = f"kv_cache_bytes is {config.kv_cache_bytes}; one page of all layers takes {per_page} bytes"
        raise ConfigError(message, field="kv_cache_bytes", value=config.kv_cache_bytes, limit=per_page)
    return pages * bands, pages * depths


def default_block_length(folder: Path) -> int:
    """`block_length` of the model's generation_config.json; 32 where it says nothing."""
    path = folder / "generation_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        message = f"generation_config.json in {str(folder)!r} can't be read: {error}"
        raise ModelLoadError(message, field="generation_config.json", value=str(path), limit="a JSON object") from error
    value = values.get("block_length") if isinstance(values, dict) else None
    if value is None:
        return DEFAULT_BLOCK_LENGTH
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        limit = "an integer of at least 1"
        message = f"block_length in generation_config.json is {value!r}; it must be {limit}"
        raise ModelLoadError(message, field="block_length", value=value, limit=limit)
    return value
