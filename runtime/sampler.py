"""Which masks of a block are committed after a forward, and to which tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels.confidence import confidence_reference
from .sampling_params import DEFAULT_THRESHOLD, SamplingParams


def choose_tokens(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Token and confidence (fp32) for each masked position: logits [masks, vocab] -> two tensors [masks].

    With a temperature T, tokens are the argmax of logits + T * Gumbel noise, that is, draws from softmax(logits / T);
    confidence is what the undisturbed logits say of them. `generator` (on the CPU) is needed for a temperature and
    for the strategy `random`; its draws depend on the number of masks alone.
    """
    best = confidence_reference(logits)
    token, probability = best.token, best.probability
    if params.temperature > 0:
        uniform = torch.rand(logits.shape, generator=generator).to(logits.device).clamp_(1e-20, 1 - 1e-7)
        noisy = logits.float() - params.temperature * torch.log(-torch.log(uniform))
        token = noisy.argmax(-1)
        probability = logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0].exp()
    if params.strategy == "low_confidence":
        return token, probability
    if params.strategy == "margin":
        return token, best.margin
    if params.strategy == "entropy":
        return token, 1 - best.entropy / math.log(logits.shape[-1])
    return token, torch.rand(token.shape, generator=generator).to(logits.device)


def quota(masks_in_block: int, steps_in_block: int, step: int) -> int:
    """Masks to commit at `step` (from 0) when a block's masks are spread evenly over its steps, early steps first."""
    base, extra = divmod(masks_in_block, steps_in_block)
    return base + (step < extra)


def choose_commits(confidence: Tensor, params: SamplingParams, count: int | None) -> Tensor:
    """Indices (int64, in order of position) of the masks to commit; confidence [masks], at least one mask.

    `count` is the quota when the request has one (`steps`); it commits at least one. Else the threshold or factor
    decides. Ties go to the earlier position.
    """
    order = torch.sort(confidence, descending=True, stable=True).indices
    if count is not None:
        chosen = max(1, count)
    elif params.factor is not None:
        ranked = confidence[order]
        number = torch.arange(1, len(ranked) + 1, device=ranked.device)
        passes = ranked >= 1 - params.factor / (number + 1)
        chosen = max(1, int(passes.long().cumprod(0).sum()))
    else:
        threshold = DEFAULT_THRESHOLD if params.threshold is None else params.threshold
        chosen = max(1, int((confidence >= threshold).sum()))
    return order[:chosen].sort().values
