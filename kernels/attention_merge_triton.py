"""Merging attention over parts of the keys by log-sum-exp: torch reference and Triton kernel.

Attention over disjoint sets of keys, each part with its output o_i and log-sum-exp s_i of its scores, merges to
attention over all of them: s = log(sum_i exp(s_i)), o = sum_i exp(s_i - s) o_i (Dao et al. 2023, "Flash-Decoding").
A part without keys has s_i = -inf and its o_i is never looked at, so it may hold anything.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_ROWS = 16


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


@triton.jit
def _merge_kernel(
    parts_ptr, parts_lse_ptr, out_ptr, lse_ptr,
    num_rows, num_parts,
    HEAD_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    dims = tl.arange(0, HEAD_DIM)
    in_rows = rows < num_rows
    top = tl.full([BLOCK_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    at = rows
    for _ in range(num_parts):
        lse = tl.load(parts_lse_ptr + at, mask=in_rows, other=-float("inf"))
        has_keys = lse > -float("inf")
        x = tl.load(parts_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=has_keys[:, None], other=0.0)
        new_top = tl.maximum(top, lse)
        base = tl.where(new_top > -float("inf"), new_top, 0.0)
        kept = tl.exp(top - base)
        weight = tl.exp(lse - base)
        acc = acc * kept[:, None] + x.to(tl.float32) * weight[:, None]
        total = total * kept + weight
        top = new_top
        at += num_rows
    has_any = total > 0.0
    safe = tl.where(has_any, total, 1.0)
    out = acc / safe[:, None]
    tl.store(out_ptr + rows[:, None] * HEAD_DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), in_rows[:, None])
    tl.store(lse_ptr + rows, tl.where(has_any, top + tl.log(safe), -float("inf")), in_rows)


def merge_states_triton(parts: Tensor, parts_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    """Merge any number of parts: what folding `merge_state_reference` over them gives, in one pass.

    Args:
        parts: contiguous [parts, tokens, heads, head_dim], any float dtype; head_dim a power of two.
        parts_lse: contiguous fp32 [parts, tokens, heads]; -inf where a part had no keys.
        out: contiguous [tokens, heads, head_dim], any float dtype, written.
        lse: contiguous fp32 [tokens, heads], written.
    """
    for tensor in (parts, parts_lse, out, lse):
        if not tensor.is_contiguous():
            raise ValueError("merging needs contiguous tensors")
    if parts.shape[1:] != out.shape or parts_lse.shape != parts.shape[:-1] or lse.shape != out.shape[:-1]:
        raise ValueError(f"shapes differ: {parts.shape}, {parts_lse.shape} into {out.shape}, {lse.shape}")
    rows = lse.numel()
    if rows:
        _merge_kernel[(triton.cdiv(rows, _BLOCK_ROWS),)](
            parts, parts_lse, out, lse, rows, parts.shape[0],
            HEAD_DIM=parts.shape[-1], BLOCK_ROWS=_BLOCK_ROWS, num_warps=4,
        )  # fmt: skip
