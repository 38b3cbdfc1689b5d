"""Commit rules beside quota, threshold and factor: entropy bound, decaying threshold, settled distributions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...request.sampling_params import DEFAULT_THRESHOLD, SamplingParams

_LEAST = -1e4
"""Stands for log 0, so that 0 * log 0 is 0."""


def by_entropy_bound(entropy: Tensor, bound: float) -> Tensor:
    """Indices (int64, in order of position) of the masks to commit; entropy [masks] in nats, at least one mask.

    Sorted by entropy, the longest prefix with sum(H) - max(H) <= bound, which is the sum of all but its last; at least
    one mask. Ties go to the earlier position. Source: EB-sampler, arXiv 2505.24857, with entropy as its order.
    """
    ranked, order = torch.sort(entropy.double().clamp(min=0), stable=True)
    fits = ranked.cumsum(0) - ranked <= bound
    return order[: max(1, int(fits.long().cumprod(0).sum()))].sort().values


def decayed_threshold(params: SamplingParams, masks: int, of: int) -> float:
    """threshold * (1 - alpha * (1 - r)), with r = masks / of: `masks` of a block's `of` masks are left.

    Without a decay (alpha = 0) it is the threshold itself.

    Source: Streaming-dLLM, arXiv 2601.17917.
    """
    threshold = DEFAULT_THRESHOLD if params.threshold is None else params.threshold
    return threshold * (1 - params.threshold_decay * (1 - masks / max(of, 1))) if params.threshold_decay else threshold


class Stability:
    """Which masks of a block have settled distributions, for `kl_threshold` (KLASS, arXiv 2511.05664).

    Holds the latest log-probabilities of a block's masks, fp32 [masks, vocab].
    """

    def __init__(self) -> None:
        self._block = (-1, -1)
        self._positions: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._log_p = torch.empty(0, 0)
        self._passes = torch.empty(0, dtype=torch.int64)

    def passes(self, block: tuple[int, int], positions: npt.NDArray[np.int64], logits: Tensor, bound: float) -> Tensor:
        """int64 [masks]: consecutive passes, up to this one, in which KL(p_t || p_{t-1}) was below `bound`.

        A block's first pass has none before it: 0. `positions` int64 [masks], ascending; logits [masks, vocab].
        """
        log_p = logits.float().log_softmax(-1).clamp(min=_LEAST)
        passes = torch.zeros(len(positions), dtype=torch.int64, device=logits.device)
        if block == self._block:
            at = torch.from_numpy(np.searchsorted(self._positions, positions)).to(logits.device)
            divergence = (log_p.exp() * (log_p - self._log_p[at])).sum(-1)
            passes = torch.where(divergence < bound, self._passes[at] + 1, 0)
        self._block, self._positions, self._log_p, self._passes = block, positions, log_p, passes
        return passes


def by_stability(confidence: Tensor, stable: Tensor, threshold: float) -> Tensor:
    """Indices (int64, in order) of the masks to commit: stable ones whose confidence reaches the threshold.

    Where there is none, the most confident mask, the earliest of equal ones. confidence, stable [masks].
    """
    chosen = torch.nonzero(stable & (confidence >= threshold))[:, 0]
    return chosen if len(chosen) else torch.sort(confidence, descending=True, stable=True).indices[:1]
