"""Settings from a model folder's files beside the weights and from the engine's options. Imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path

from ...radix_cache.config import DEFAULT_LAYERS_PER_BAND, TreeConfig
from ...radix_cache.depth_profile import DepthProfile
from ...radix_cache.errors import ProfileError
from ..config import EngineConfig
from ..errors import ConfigError, ModelLoadError
from ..text.tokenizer import Tokenizer
from .config import ModelConfig
from .generation_config import read_generation_config
from .registry import family_named

logger = logging.getLogger(__name__)
PROFILE_FILE = "depth_profile.json"
DEFAULT_BLOCK_LENGTH = 32


def load_tokenizer(config: EngineConfig, folder: str | Path) -> Tokenizer | None:
    """The tokenizer of a model folder; None with dummy weights."""
    return Tokenizer.load(folder) if config.load_format == "auto" else None


def layers_of_band(asked: int | None, num_layers: int) -> int:
    """Layers that are paged together, from the option `layers_per_band` and the model's layers.

    Raises ConfigError when it asks for more than the model has.
    """
    if asked is None:
        return min(DEFAULT_LAYERS_PER_BAND, num_layers)
    if asked > num_layers:
        message = f"layers_per_band is {asked}; the model has {num_layers} layers"
        raise ConfigError(message, field="layers_per_band", value=asked, limit=num_layers)
    return asked


def load_profile(config: EngineConfig, folder: Path, model: ModelConfig, check_model: bool = True) -> DepthProfile:
    """The depth profile: a constant depth, the file named, the file beside the weights, or a built-in table.

    Raises ConfigError for an invalid file or one of another model. `check_model=False` skips the latter, which reads
    the weights.
    """
    num_layers = model.num_layers
    if config.depth is not None:
        band = layers_of_band(config.layers_per_band, num_layers)
        if config.depth > num_layers or (config.depth % band and config.depth != num_layers):
            limit = f"whole bands of {band} layers up to {num_layers}"
            raise ConfigError(f"depth is {config.depth}; it must be {limit}", field="depth", value=config.depth,
                              limit=limit)  # fmt: skip
        return DepthProfile.constant(config.depth, num_layers)
    path = Path(config.depth_profile) if config.depth_profile else folder / PROFILE_FILE
    if config.depth_profile or path.exists():
        try:
            digest = None
            if check_model:
                from .digest import model_digest  # imports torch

                digest = model_digest(folder, config.mask_token_id, config.lora)
            profile = DepthProfile.load(path, num_layers=num_layers, model_digest=digest)
            if profile.capture != "first":
                raise ProfileError("capture", f"is {profile.capture!r}; the engine captures 'first' forwards only")
            return profile
        except (OSError, ProfileError) as error:
            limit = "a profile of this model"
            message = f"depth_profile is {str(path)!r}; it must be {limit}: {error}"
            raise ConfigError(message, field="depth_profile", value=str(path), limit=limit) from error
    table = family_named(model.architecture).depth_table
    profile = DepthProfile.builtin(table, num_layers) if table else DepthProfile.conservative(num_layers)
    logger.warning("no %s beside the weights: using the %s", PROFILE_FILE, profile.source)
    return profile


def boundary_depths(config: EngineConfig, profile: DepthProfile, layers_per_band: int) -> tuple[int, ...]:
    """Depths at which boundary states are kept: the profile's, and with audits some to fall back to."""
    if not config.audit_rate:
        return profile.depths
    return fallback_depths(profile.depths, profile.max_depth, layers_per_band)


def fallback_depths(depths: tuple[int, ...], deepest: int, layers_per_band: int) -> tuple[int, ...]:
    """Boundary depths of an engine that audits: the profile's own, and quarters of the deepest, in whole bands.

    A node can only be shrunk to a depth with boundary states; without these a finding would cost the whole prefix.
    """
    quarters = (deepest * part // 4 // layers_per_band * layers_per_band for part in (1, 2, 3))
    return tuple(sorted({*depths, *quarters} - {0}))


def pool_sizes(config: EngineConfig, tree: TreeConfig, profile: DepthProfile) -> tuple[int, int]:
    """Pages of the KV pool and of the boundary pool, in the proportion in which captures take them.

    So captures fill both pools at the same time, and neither evicts because the other is full. A KV pool of given size
    (`kv_cache_tokens`) gets the matching boundary pool. Raises ConfigError for less than a page of all layers.
    """
    bands, states = _capture_pages(config, tree, profile)
    if config.kv_cache_tokens is not None:
        assert config.page_size is not None
        kv_pages = -(-config.kv_cache_tokens // config.page_size) * tree.num_bands
        return kv_pages, max(1, -(-kv_pages // bands) * states)
    assert config.kv_cache_bytes is not None
    captured = bands * tree.kv_page_bytes + states * tree.boundary_page_bytes
    captures = config.kv_cache_bytes // captured
    if captures * bands < tree.num_bands:
        least = -(-tree.num_bands // bands) * captured
        message = f"kv_cache_bytes is {config.kv_cache_bytes}; one page of all layers takes {least} bytes"
        raise ConfigError(message, field="kv_cache_bytes", value=config.kv_cache_bytes, limit=least)
    return captures * bands, max(1, captures * states)


def _capture_pages(config: EngineConfig, tree: TreeConfig, profile: DepthProfile) -> tuple[int, int]:
    """KV pages and boundary pages that a capture takes for one page of tokens.

    One of each band and of each stored depth up to the depth of the capture. That is the profile's deepest, or with
    prefix refreshes (see `ReusePlanner`) any of the profile's; of these, the one with the most boundary pages per KV
    page.
    """
    refreshes = profile.refreshes if config.refresh_interval is None else config.refresh_interval > 0
    depths = {depth for _, depth in profile.table} if refreshes else {profile.max_depth}
    needs = [(tree.bands(depth), sum(at <= depth for at in tree.boundary_depths)) for depth in depths if depth]
    return max(needs, key=lambda need: need[1] / need[0], default=(tree.num_bands, 0))


def check_pool(config: EngineConfig, kv_pages: int, num_bands: int, block_length: int) -> None:
    """Raise ConfigError for a KV pool that does not hold one prompt token and a block of canvas."""
    assert config.page_size is not None
    name = "kv_cache_bytes" if config.kv_cache_tokens is None else "kv_cache_tokens"
    tokens = kv_pages // num_bands * config.page_size
    if min(tokens, config.kv_cache_tokens or tokens) <= block_length:
        limit = f"room for at least {block_length + 1} tokens: one of a prompt and a block of {block_length}"
        message = f"{name} is {getattr(config, name)}; it must be {limit}"
        raise ConfigError(message, field=name, value=getattr(config, name), limit=limit)


def default_block_length(folder: Path) -> int:
    """`block_length` of the model's generation_config.json; 32 if it has none."""
    value = read_generation_config(folder).get("block_length")
    if value is None:
        return DEFAULT_BLOCK_LENGTH
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        limit = "an integer of at least 1"
        message = f"block_length in generation_config.json is {value!r}; it must be {limit}"
        raise ModelLoadError(message, field="block_length", value=value, limit=limit)
    return value
