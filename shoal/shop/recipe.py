"""Recipes: which network, data and schedule make a bundled model, and its second of another shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .dream_network import SHOP_DREAM_CONFIG, DreamNetwork
from .network import SHOP_CONFIG, Network, TrainingNetwork
from .rows import SHOP_MIX, Mix


@dataclass(frozen=True, slots=True)
class Phase:
    """Training up to step `stop`, with a learning rate that falls to zero from `decay_start` on.

    The model as it is at `stop` is published in a folder of the phase's name. `peak` scales the learning rate.
    """

    name: str
    stop: int
    decay_start: int
    peak: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made; `reuse_depths` are those that its evaluation reports."""

    config: dict[str, Any]
    network: Callable[[dict[str, Any]], TrainingNetwork]
    mix: Mix
    phases: tuple[Phase, ...]
    reuse_depths: tuple[int, ...]


RECIPES = {
    "shop": Recipe(SHOP_CONFIG, Network, SHOP_MIX, (Phase("model", 34_000, 27_162),), (8, 12, 16)),
    "shop-dream": Recipe(
        SHOP_DREAM_CONFIG,
        DreamNetwork,
        Mix("shop-dream", reuse_start=15_000, reuse_depth=6, plain_start=4_000, plain_share=0.15),
        (Phase("natural", 15_000, 10_500), Phase("model", 19_500, 16_500, peak=0.7)),
        (2, 4, 6, 8, 12),
    ),
}


def learning_rate_factor(step: int, steps: int, decay_start: int, warm_up: int) -> float:
    """Factor on the learning rates at a step of one phase, 0 to 1."""
    if step < warm_up:
        return (step + 1) / warm_up
    if step < decay_start:
        return 1.0
    return max(0.0, (steps - step) / max(1, steps - decay_start))


def scheduled(step: int, phases: tuple[Phase, ...], warm_up: int) -> float:
    """Factor on the learning rates at a step; each phase warms up and decays on its own. 0 behind the last."""
    start = 0
    for phase in phases:
        if step < phase.stop:
            return phase.peak * learning_rate_factor(
                step - start, phase.stop - start, phase.decay_start - start, warm_up
            )
        start = phase.stop
    return 0.0
