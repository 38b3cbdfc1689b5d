"""Facts known once model and pools exist: everything that scheduler and intake need from the worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...radix_cache.config import TreeConfig
from ..model.config import ModelConfig
from .sampling_params import DEFAULT_MAX_NEW_TOKENS, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts that the worker reports at its start. Plain data, so it can cross processes.

    Attributes:
        folder: of the model.
        model: its shapes and constants.
        block_length: default of the sampling parameter; `block_length_source` is its source, the flag aside.
        tree: pages, bands and stored depths.
        kv_pages, boundary_pages: sizes of the pools, in pages.
        depth_profile: in use, rounded to whole bands, as `DepthProfile.to_json` gives it.
        device, dtype: in use.
        max_block_length, max_stop_ids: the worker's limits on block length and on stop tokens (the model's included);
            None: no limit.
        unserved: sampling parameters that the worker does not serve, or `name=value` for one value of one.
        eos_ids: every `eos_token_id` of the model's configuration files.
        never_chosen: tokens that no request is given (`Family.never_chosen`).
        generation: sampling parameters that generation_config.json sets for requests that say nothing about them.
    """

    folder: str
    model: ModelConfig
    block_length: int
    tree: TreeConfig
    kv_pages: int
    boundary_pages: int
    depth_profile: dict[str, Any]
    device: str
    dtype: str
    max_block_length: int | None = None
    max_stop_ids: int | None = None
    block_length_source: str = "built-in"
    unserved: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    never_chosen: tuple[int, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)

    def stop_ids(self, more: Iterable[int] = ()) -> tuple[int, ...]:
        """All tokens that end a text, sorted: the model's, and `more` of its tokenizer as far as the model has them."""
        found = {self.model.eos_token_id, *self.eos_ids, *(t for t in more if 0 <= t < self.model.embedding_size)}
        return tuple(sorted(found - {self.model.mask_token_id}))

    @property
    def default_sampling(self) -> SamplingParams:
        """Of requests that give none: what generation_config.json says, and a canvas as long as fits."""
        return SamplingParams(**{"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, **self.generation})

    @property
    def page_size(self) -> int:
        """Token positions in a page."""
        return self.tree.page_size

    @property
    def layers_per_band(self) -> int:
        """Layers that are paged together."""
        return self.tree.layers_per_band

    @property
    def num_bands(self) -> int:
        """Bands of the whole model."""
        return self.tree.num_bands

    @property
    def pool_tokens(self) -> int:
        """Most tokens, prompt and canvas, that the KV pool holds for one request."""
        return self.kv_pages // self.num_bands * self.page_size

    @property
    def max_tokens(self) -> int:
        """Most tokens, prompt and canvas, that a request may have."""
        return min(self.model.max_position_embeddings, self.pool_tokens)
