"""Chooses the masks of a block to commit after a forward, and their tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....kernels.sampling.confidence import confidence
from ....kernels.sampling.shaping import LEAST_TEMPERATURE
from ...errors import EngineError
from ...request.sampling_params import DEFAULT_THRESHOLD, SamplingParams
from ..executor import NOT_FINITE

_ROWS_AT_ONCE = 8


def choose_tokens(logits: Tensor, params: SamplingParams, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Token and confidence (fp32) for each masked position: logits [masks, vocab] -> two tensors [masks].

    With a temperature T, tokens are the argmax of logits + T * Gumbel noise, that is, draws from softmax(logits / T),
    or from what `cut` leaves of it. Their confidence comes from the logits without noise (ranking `model`, LLaDA's) or
    from the distribution that they are drawn from (`sampled`, Dream's). `generator` (on the CPU) is needed for a
    temperature and for the strategy `random`; its draws depend on the number of masks alone.

    A token whose logit is -inf is impossible, like the mask token: never chosen, however much of the request's bias it
    gets. Raises EngineError for a row with NaN or +inf, or without a possible token.
    """
    best = confidence.reference(logits)
    if not best.probability.isfinite().all():
        raise EngineError(NOT_FINITE, field="logits")
    token, sampled = best.token, None
    if params.ranks_sampled or params.uses_cuts:
        sampled = cut(tempered(logits, params.temperature), params)
    if params.draws:
        token = _draw(logits, params.temperature, generator) if sampled is None else _draw(sampled, 1.0, generator)
    ranked = logits
    if params.ranks_sampled and sampled is not None:
        ranked, best = sampled, confidence.reference(sampled)
    if params.strategy in ("low_confidence", "origin"):
        return token, ranked.float().log_softmax(-1).gather(-1, token[:, None])[:, 0].exp()
    if params.strategy == "margin":
        return token, best.margin
    if params.strategy == "entropy":
        return token, -best.entropy if params.alg_temp else 1 - best.entropy / math.log(logits.shape[-1])
    return token, torch.rand(token.shape, generator=generator).to(logits.device)


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats, fp32 [rows], of the softmax of logits [rows, vocab]."""
    return confidence.reference(logits).entropy


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """fp32 logits / temperature, shifted so that the largest of a row is 0; undivided at temperature 0."""
    logits = logits.float()
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature or 1.0, LEAST_TEMPERATURE)


def cut(logits: Tensor, params: SamplingParams) -> Tensor:
    """fp32 logits [rows, vocab] with -inf for tokens that top_k, top_p or min_p leave out.

    A token stays if all three keep it, each looking at the whole distribution: the top_k largest logits (ties of the
    last included), the tokens of which all more probable ones sum to top_p at most, and those at least min_p times as
    probable as the best. The best one always stays. Source: sample_tokens of Dream's published code, and vLLM's min_p.
    """
    if not params.cuts:
        return logits
    out = torch.zeros_like(logits, dtype=torch.bool)
    if 0 < params.top_k < logits.shape[-1]:
        out |= logits < logits.topk(params.top_k, dim=-1).values[:, -1:]
    if params.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(-1)
        before = torch.nn.functional.pad(p.cumsum(-1)[:, :-1], (1, 0))
        first_of_equals = torch.searchsorted(-ordered, -ordered)
        past = before.gather(-1, first_of_equals) > params.top_p
        out |= torch.zeros_like(out).scatter(-1, order, past)
    if params.min_p > 0:
        out |= logits < logits.amax(-1, keepdim=True) + math.log(params.min_p)
    return logits.masked_fill(out, -torch.inf)


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


def choose_commits(
    confidence: Tensor, params: SamplingParams, count: int | None, generator: torch.Generator | None = None,
    share: float | None = None, threshold: float | None = None,
) -> Tensor:  # fmt: skip
    """Indices (int64, in order of position) of the masks to commit; confidence [masks], at least one mask.

    `count` is the quota when the request has one (`steps`); it commits at least one. Else the threshold (`threshold`
    takes the place of the request's own) or factor decides; with a factor a mask that would be left alone is committed
    with the others, as Fast-dLLM does. Ties go to the earlier position. With `alg_temp` the quota is drawn without
    replacement from softmax(confidence / alg_temp), as in Dream; with `share` (strategy `origin`) each mask is
    committed with that probability, perhaps none.
    """
    if share is not None:
        return torch.nonzero(torch.rand(confidence.shape, generator=generator) < share)[:, 0].to(confidence.device)
    if count is not None and params.alg_temp > 0:
        # The largest of logits with Gumbel noise are draws without replacement (arXiv 1903.06059).
        noise = gumbel(torch.rand(confidence.shape, dtype=torch.float64, generator=generator))
        confidence = confidence.double() / params.alg_temp + noise.to(confidence.device)
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
        if threshold is None:
            threshold = DEFAULT_THRESHOLD if params.threshold is None else params.threshold
        chosen = max(1, int((confidence >= threshold).sum()))
    return order[:chosen].sort().values
