"""A worker's facts: the shape of its pages and pools, from options and a model. Imports no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...radix_cache.config import TreeConfig
from ...radix_cache.depth_profile import DepthProfile
from ..config import EngineConfig
from ..errors import shorten
from ..model.config import ModelConfig
from ..model.generation_config import FILE, eos_ids, read_generation_config
from ..model.mask_token import token_id_of
from ..model.registry import family_named
from ..model.settings import boundary_depths, check_pool, layers_of_band, pool_sizes
from ..model.slices import config_of_rank
from ..request.facts import Facts
from ..request.generation_defaults import sampling_defaults

logger = logging.getLogger(__name__)


def make_facts(
    config: EngineConfig, folder: Path, model: ModelConfig, profile: DepthProfile, block_length: int,
    *, device: str, dtype: str, itemsize: int, kv_itemsize: int | None = None,
    max_block_length: int | None = None, max_stop_ids: int | None = None,
    unserved: tuple[str, ...] = (),
) -> Facts:  # fmt: skip
    """Facts of a worker that does not exist yet; its pools follow from them.

    Args:
        config: with its device's defaults, and a budget for the pools.
        folder: of the model.
        profile: measured or built in, of any depths; what is in use is rounded down to whole bands.
        block_length: default of requests.
        device, dtype: in use; itemsize: bytes of a number in the pools; kv_itemsize: of keys and values, if others.
        max_block_length, max_stop_ids, unserved: see `Facts`.

    Raises ConfigError for pools that are too small, and for options that do not fit the model.
    """
    assert config.page_size is not None
    band = layers_of_band(config.layers_per_band, model.num_layers)
    profile = profile.floor_to(band)
    of_rank = config_of_rank(model, config.tp_size)
    tree = TreeConfig(
        config.page_size, model.num_layers, band, boundary_depths(config, profile, band), config.eviction_policy,
        kv_page_bytes=band * 2 * config.page_size * of_rank.kv_size * (kv_itemsize or itemsize),
        boundary_page_bytes=config.page_size * model.hidden_size // config.tp_size * itemsize,
    )  # fmt: skip
    kv_pages, boundary_pages = pool_sizes(config, tree, profile)
    check_pool(config, kv_pages, tree.num_bands, block_length)
    return Facts(
        folder=str(folder), model=model, block_length=block_length, tree=tree, kv_pages=kv_pages,
        boundary_pages=boundary_pages, depth_profile=profile.to_json(), device=device, dtype=dtype,
        max_block_length=max_block_length, max_stop_ids=max_stop_ids, unserved=unserved,
        eos_ids=eos_ids(folder, model.embedding_size),
        never_chosen=_never_chosen(folder, model),
        generation=_served(sampling_defaults(folder), unserved),
        block_length_source=FILE if "block_length" in read_generation_config(folder) else "built-in",
    )  # fmt: skip


def _never_chosen(folder: Path, model: ModelConfig) -> tuple[int, ...]:
    """Ids of the family's tokens that no request is given, as far as the folder's tokenizer has them."""
    found = (token_id_of(folder, token) for token in family_named(model.architecture).never_chosen)
    return tuple(token for token in found if token is not None and 0 <= token < model.vocab_size)


def _served(defaults: dict[str, Any], unserved: tuple[str, ...]) -> dict[str, Any]:
    """Defaults that the device serves: a request that says nothing must not be refused for the others."""
    out = {name: value for name, value in defaults.items() if name in unserved or f"{name}={value}" in unserved}
    for name, value in out.items():
        logger.warning("%s of %s is left out: this device does not serve %s", name, FILE, shorten(value))
    return {name: value for name, value in defaults.items() if name not in out}
