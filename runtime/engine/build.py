"""Puts an engine's parts together: worker, scheduler and tokenizer, from an EngineConfig."""

from __future__ import annotations

from dataclasses import dataclass

from ...radix_cache.depth_profile import DepthProfile
from ..config import EngineConfig
from ..model.decoder import Decoder
from ..model.settings import load_tokenizer
from ..request.facts import Facts
from ..scheduler.build import build_scheduler
from ..scheduler.reuse import ReusePlanner
from ..scheduler.scheduler import Scheduler
from ..text.tokenizer import Tokenizer
from ..worker.build import build_worker, limits_of_memory
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
    config: EngineConfig,
    *,
    planner: type[ReusePlanner] = ReusePlanner,
    worker: tuple[Worker, Facts] | None = None,
) -> Parts:
    """Load the model and set up everything around it. Raises ModelLoadError or ConfigError.

    `planner` and `worker` (as `build_worker` returns it) replace the configuration's choice, for measurements and
    tests.
    """
    made, facts = worker or build_worker(config)
    with limits_of_memory(config, facts.device):
        scheduler = build_scheduler(config, facts, made, planner)
    tokenizer = load_tokenizer(config, facts.folder)
    return Parts(facts, made.executor.decoder, tokenizer, scheduler.memory.profile, scheduler, made)
