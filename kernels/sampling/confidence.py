"""Confidence of logits: best token, its probability, margin and entropy (torch reference)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import kernel

_ROWS_AT_ONCE = 1024


class Confidence(NamedTuple):
    """Per row of logits: the most probable token (int64), its probability, margin and entropy (fp32), each [rows]."""

    token: Tensor
    probability: Tensor
    margin: Tensor
    entropy: Tensor


@kernel("confidence_triton.confidence_triton")
def confidence(logits: Tensor) -> Confidence:
    """Summaries of the softmax of logits [rows, vocab]; a token with logit -inf is impossible.

    probability = max softmax, margin = largest less second largest probability, entropy in nats. Rows are worked on
    in slices, so that no fp32 tensor of all rows and the whole vocabulary exists; a row's result does not depend on
    the others.
    """
    parts = [_slice(part) for part in logits.split(_ROWS_AT_ONCE) if len(part)]
    if not parts:
        empty = torch.empty(0, device=logits.device)
        return Confidence(empty.long(), empty, empty, empty)
    return Confidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _slice(logits: Tensor) -> Confidence:
    log_p = logits.float().log_softmax(-1)
    best, token = log_p.topk(2, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=-1e4)).sum(-1)
    top = best.exp()
    return Confidence(token[:, 0], top[:, 0], top[:, 0] - top[:, 1], entropy)
