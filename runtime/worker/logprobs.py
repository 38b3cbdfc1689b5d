"""Log-probabilities of committed tokens."""

from __future__ import annotations

import math

from torch import Tensor

from ..request.forward import Logprob


def logprobs_of(logits: Tensor, tokens: Tensor, top: int | None) -> list[Logprob]:
    """Natural log-probabilities of tokens [n] by logits [n, vocab], with those of the `top` most probable ones.

    Their step is 1. `top` None: an empty list.
    """
    if top is None:
        return []
    every = logits.float().log_softmax(-1)
    own = every.gather(1, tokens[:, None])[:, 0].tolist()
    values, ids = every.topk(min(top, every.shape[1]), dim=-1)
    return [
        Logprob(1, one, tuple((token, value) for token, value in zip(*best, strict=True) if value > -math.inf))
        for one, *best in zip(own, ids.tolist(), values.tolist(), strict=True)
    ]
