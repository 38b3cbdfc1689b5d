"""Builds a scheduler from an EngineConfig and what its worker reported."""

from __future__ import annotations

from ...radix_cache.depth_profile import DepthProfile
from ..config import EngineConfig
from ..request.facts import Facts
from .auditor import Auditor
from .memory import Memory
from .pace import Pace
from .reuse import ReusePlanner
from .scheduler import Scheduler
from .worker_link import WorkerLink


def build_scheduler(
    config: EngineConfig, facts: Facts, worker: WorkerLink, planner: type[ReusePlanner] = ReusePlanner
) -> Scheduler:
    """The scheduler over a worker with these pools, with its memory and planner."""
    config = config.for_device(facts.device.partition(":")[0])
    assert config.max_refresh_tokens is not None
    assert config.max_steps_per_message is not None
    model, profile = facts.model, DepthProfile.from_json(facts.depth_profile)
    memory = Memory(facts.tree, profile, facts.kv_pages, facts.boundary_pages)
    plans = planner(memory, int(model.shift_logits), config.refresh_interval, config.reuse_margin)
    target_s = None if config.target_first_text_ms is None else config.target_first_text_ms / 1000
    pace = Pace(config.max_refresh_tokens, config.max_steps_per_message, facts.tree.num_layers, target_s)
    return Scheduler(
        memory, plans, worker, pace,
        max_running_requests=config.max_running_requests, max_queued_requests=config.max_queued_requests,
        max_overtakes=config.max_overtakes,
        policy=config.schedule_policy, log_interval=config.log_interval, check_invariants=config.check_invariants,
        auditor=Auditor(memory, config.audit_rate, config.audit_tolerance, config.audit_divergence, config.seed),
    )  # fmt: skip
