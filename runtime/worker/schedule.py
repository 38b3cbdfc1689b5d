"""How many masks of a block each forward commits when a request has a quota of steps."""

from __future__ import annotations

import numpy as np
import torch

from ..request.sampling_params import SamplingParams


def commits_of_block(params: SamplingParams, masks: int, steps: int) -> tuple[int, ...]:
    """Masks to commit at each forward of a block of `masks` masks; their sum is `masks`, none is 0.

    `even` spreads them, early forwards first, as LLaDA does. `linear` is Dream's: with `steps` + 1 times from 1 to eps,
    a forward from time t to s commits int(left * (1 - s / t)) of the masks that are left, in fp32, and the last one all
    of them. A forward that commits nothing by that rule is left out: the next one would compute the same again.
    """
    if params.schedule != "linear":
        base, extra = divmod(masks, steps)
        return tuple(base + (step < extra) for step in range(min(steps, masks)))
    counts, left = [], masks
    for share in transfer_shares(params.eps, steps).numpy():
        count = left if share == 1 else int(np.float32(left) * share)
        if count:
            counts.append(count)
            left -= count
    return tuple(counts)


def transfer_shares(eps: float, steps: int) -> torch.Tensor:
    """fp32 [steps]: 1 - s / t of each forward of Dream's schedule; 1 at the last."""
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float32)
    shares = 1 - times[1:] / times[:-1]
    shares[-1] = 1
    return shares
