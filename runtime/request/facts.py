"""Facts known once model and pools exist: everything that scheduler and intake need from the worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...radix_cache.config import TreeConfig
from ...radix_cache.depth_profile import DepthProfile
from ..config import EngineConfig
from ..model.config import ModelConfig
from ..model.settings import boundary_depths
from ..scheduler.auditor import Auditor
from ..scheduler.memory import Memory
from ..scheduler.reuse import ReusePlanner
from ..scheduler.scheduler import Scheduler
from ..scheduler.worker_link import WorkerLink


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts that the worker reports at its start. Plain data, so it can cross processes.

    Attributes:
        folder: of the model.
        model: its shapes and constants.
        block_length: default of the sampling parameter.
        kv_pages, boundary_pages: sizes of the pools, in pages.
        kv_page_bytes, boundary_page_bytes: bytes of a page of each.
        depth_profile: in use, rounded to whole bands, as `DepthProfile.to_json` gives it.
        device, dtype, page_size, layers_per_band: in use.
        max_block_length, max_stop_ids: the worker's limits on block length and on stop tokens (EOS included); None: no
            limit.
    """

    folder: str
    model: ModelConfig
    block_length: int
    kv_pages: int
    boundary_pages: int
    kv_page_bytes: int
    boundary_page_bytes: int
    depth_profile: dict[str, Any]
    device: str
    dtype: str
    page_size: int
    layers_per_band: int
    max_block_length: int | None = None
    max_stop_ids: int | None = None

    @property
    def num_bands(self) -> int:
        """Bands of the whole model."""
        return -(-self.model.num_layers // self.layers_per_band)

    @property
    def pool_tokens(self) -> int:
        """Most tokens, prompt and canvas, that the KV pool holds for one request."""
        return self.kv_pages // self.num_bands * self.page_size

    @property
    def max_tokens(self) -> int:
        """Most tokens, prompt and canvas, that a request may have."""
        return min(self.model.max_position_embeddings, self.pool_tokens)


def build_scheduler(
    config: EngineConfig, facts: Facts, worker: WorkerLink, planner: type[ReusePlanner] = ReusePlanner
) -> Scheduler:
    """The scheduler over a worker with these pools, with its memory and planner."""
    config = config.for_device(facts.device.partition(":")[0])
    assert config.max_refresh_tokens is not None
    assert config.max_steps_per_message is not None
    model, profile = facts.model, DepthProfile.from_json(facts.depth_profile)
    tree = TreeConfig(
        facts.page_size, model.num_layers, facts.layers_per_band,
        boundary_depths(config, profile, facts.layers_per_band), config.eviction_policy,
        kv_page_bytes=facts.kv_page_bytes, boundary_page_bytes=facts.boundary_page_bytes,
    )  # fmt: skip
    memory = Memory(tree, profile, facts.kv_pages, facts.boundary_pages)
    plans = planner(memory, int(model.shift_logits), config.refresh_interval, config.reuse_margin)
    return Scheduler(
        memory, plans, worker, eos_token_id=model.eos_token_id,
        max_running_requests=config.max_running_requests, max_queued_requests=config.max_queued_requests,
        max_overtakes=config.max_overtakes,
        max_refresh_tokens=config.max_refresh_tokens, max_steps_per_message=config.max_steps_per_message,
        policy=config.schedule_policy, log_interval=config.log_interval, check_invariants=config.check_invariants,
        auditor=Auditor(memory, config.audit_rate, config.audit_tolerance, config.seed),
    )  # fmt: skip
