"""Chooses the masks of a block to commit after a forward, and their tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....kernels.sampling.confidence import confidence
from ...errors import EngineError
from ...request.sampling_params import DEFAULT_THRESHOLD, SamplingParams
from ..executor import NOT_FINITE

_ROWS_AT_ONCE = 8


def choose_tokens(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Token and confidence (fp32) for each masked position: logits [masks, vocab] -> two tensors [masks].

    With a temperature T, tokens are the argmax of logits + T * Gumbel noise, that is, draws from softmax(logits / T);
    their confidence comes from the logits without noise. `generator` (on the CPU) is needed for a temperature and
    for the strategy `random`; its draws depend on the number of masks alone.

    Raises EngineError for a row with NaN or +inf, or without a possible token.
    """
    best = confidence.reference(logits)
    if not best.probability.isfinite().all():
        raise EngineError(NOT_FINITE, field="logits")
    token, probability = best.token, best.probability
    if params.temperature > 0:
        token = _draw(logits, params.temperature, generator)
        probability = logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0].exp()
    if params.strategy == "low_confidence":
        return token, probability
    if params.strategy == "margin":
        return token, best.margin
    if params.strategy == "entropy":
        return token, 1 - best.entropy / math.log(logits.shape[-1])
    return token, torch.rand(token.shape, generator=generator).to(logits.device)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Argmax of each row of logits with noise. Works in slices to bound the noise's memory; the draws are those of the
    whole.
    """
    parts = []
    for some in logits.split(_ROWS_AT_ONCE):
        uniform = torch.rand(some.shape, dtype=torch.float64, generator=generator)
        noise = gumbel(uniform).float().to(some.device)
        parts.append(noise.mul_(temperature).add_(some).argmax(-1))
    return torch.cat(parts)


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise -log E with E = -log(1 - u) from uniform u in [0, 1), float64 of any shape; overwrites `uniform`.

    The smallest u give the largest noise, which decides the draw: with the 53 bits of a float64 uniform it reaches 37.
    The 24 bits of an fp32 uniform would end it at 16.6, and a token further behind the best one would never be drawn.
    """
    return uniform.clamp_(min=2.0**-54).neg_().log1p_().neg_().log_().neg_()


def choose_commits(confidence: Tensor, params: SamplingParams, count: int | None) -> Tensor:
    """Indices (int64, in order of position) of the masks to commit; confidence [masks], at least one mask.

    `count` is the quota when the request has one (`steps`); it commits at least one. Otherwise threshold or factor
    decides; a factor also commits a single mask that would be left, as Fast-dLLM does. Ties go to the earlier position.
    """
    order = torch.sort(confidence, descending=True, stable=True).indices
    if count is not None:
        chosen = max(1, count)
    elif params.factor is not None:
        ranked = confidence[order]
        number = torch.arange(1, len(ranked) + 1, device=ranked.device)
        passes = ranked >= 1 - params.factor / (number + 1)
        chosen = max(1, int(passes.long().cumprod(0).sum()))
        chosen += chosen == len(ranked) - 1
    else:
        threshold = DEFAULT_THRESHOLD if params.threshold is None else params.threshold
        chosen = max(1, int((confidence >= threshold).sum()))
    return order[:chosen].sort().values
