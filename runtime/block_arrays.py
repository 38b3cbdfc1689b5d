"""Each request's current block, as sampling kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .device_arrays import Array
from .host_canvas import HostCanvas
from .messages import ForwardItem
from .sampling_params import DEFAULT_THRESHOLD

STRATEGIES = {"low_confidence": 0, "margin": 1, "entropy": 2}


@dataclass(frozen=True, slots=True)
class BlockArrays:
    """Device arrays, [requests] each.

    first, size: int32, the block's positions (size 0: nothing is sampled). masks: int32, masks that it began with.
    step: int32, its forwards so far; sampling counts it up. steps: int32, its quota of forwards, 0 for none.
    threshold, factor: fp32, what decides without a quota; factor 0 means that the threshold does.
    strategy: int32, see STRATEGIES.
    """

    first: Tensor
    size: Tensor
    masks: Tensor
    step: Tensor
    steps: Tensor
    threshold: Tensor
    factor: Tensor
    strategy: Tensor


def block_arrays(
    items: Sequence[ForwardItem], canvases: Sequence[HostCanvas], skip: Sequence[bool]
) -> dict[str, Array]:
    """Host arrays of a batch by name; requests to `skip` get a block of no positions."""
    size = [0 if out else item.block_stop - item.block_start for item, out in zip(items, skip, strict=True)]
    params = [canvas.sampling for canvas in canvases]
    integers = {
        "first": [item.block_start for item in items],
        "size": size,
        "masks": [canvas.block_masks for canvas in canvases],
        "step": [canvas.block_step for canvas in canvases],
        "steps": [canvas.steps_per_block or 0 for canvas in canvases],
        "strategy": [STRATEGIES.get(p.strategy, 0) for p in params],
    }
    arrays: dict[str, Array] = {name: np.array(values, np.int32) for name, values in integers.items()}
    thresholds = [DEFAULT_THRESHOLD if p.threshold is None else p.threshold for p in params]
    arrays["threshold"] = np.array(thresholds, np.float32)
    arrays["factor"] = np.array([p.factor or 0.0 for p in params], np.float32)
    return arrays


def on_device(canvas: HostCanvas) -> bool:
    """Whether a request is sampled without the host: greedy, by a strategy that needs no draws."""
    return canvas.sampling.temperature == 0 and canvas.sampling.strategy in STRATEGIES
