"""Merging attention over parts of the keys by log-sum-exp (torch reference).

Attention over disjoint sets of keys, each part with its output o_i and log-sum-exp s_i of its scores, merges to
attention over all of them: s = log(sum_i exp(s_i)), o = sum_i exp(s_i - s) o_i (Dao et al. 2023, "Flash-Decoding").
A part without keys has s_i = -inf and its o_i is never looked at, so it may hold anything.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_state_reference(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Merge the attention of the same queries over two disjoint sets of keys, in fp32.

    Args:
        out_a, out_b: [tokens, heads, head_dim], any float dtype.
        lse_a, lse_b: fp32 [tokens, heads], natural logarithm; -inf where that part had no keys.
        dtype: of the merged output; out_a's by default.

    Returns new tensors: the output and its log-sum-exp (fp32). Without keys in either part: zeros and -inf.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    out = torch.zeros(out_a.shape, dtype=torch.float32, device=out_a.device)
    for part, part_lse in ((out_a, lse_a), (out_b, lse_b)):
        weighted = part.float() * (part_lse - finite).exp()[..., None]
        out += torch.where((part_lse == -torch.inf)[..., None], 0.0, weighted)
    return out.to(out_a.dtype if dtype is None else dtype), lse
