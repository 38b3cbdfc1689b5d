"""Merging attention over parts of the keys in Triton; the formula is in `merge_state.py`.

A program takes a few rows (token, head). It loads their log-sum-exps of all parts at once, so that the weights are
known before the first value arrives, and the values of the parts are loads that do not wait for one another.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK_ROWS = 8


@triton.jit(do_not_specialize=["num_rows"])
def _merge_kernel(
    parts_ptr, parts_lse_ptr, out_ptr, lse_ptr, num_rows,
    NUM_PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    in_rows = rows < num_rows
    dims = tl.arange(0, HEAD_DIM)
    parts = tl.arange(0, BLOCK_PARTS).to(tl.int64)
    at = parts[:, None] * num_rows + rows[None, :]
    lses = tl.load(parts_lse_ptr + at, mask=(parts < NUM_PARTS)[:, None] & in_rows[None, :], other=-float("inf"))
    top = tl.max(lses, 0)
    base = tl.where(top > -float("inf"), top, 0.0)
    total = tl.sum(tl.exp(lses - base[None, :]), 0)
    safe = tl.where(total > 0.0, total, 1.0)
    acc = tl.zeros([BLOCK_ROWS, HEAD_DIM], tl.float32)
    for part in tl.static_range(NUM_PARTS):
        place = rows + part * tl.cast(num_rows, tl.int64)
        lse = tl.load(parts_lse_ptr + place, mask=in_rows, other=-float("inf"))
        has_keys = lse > -float("inf")
        x = tl.load(parts_ptr + place[:, None] * HEAD_DIM + dims[None, :], mask=has_keys[:, None], other=0.0)
        weight = tl.exp(lse - base) / safe
        acc += x.to(tl.float32) * weight[:, None]
    tl.store(out_ptr + rows[:, None] * HEAD_DIM + dims[None, :], acc.to(out_ptr.dtype.element_ty), in_rows[:, None])
    tl.store(lse_ptr + rows, tl.where(total > 0.0, top + tl.log(safe), -float("inf")), in_rows)


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
            parts, parts_lse, out, lse, rows,
            NUM_PARTS=parts.shape[0], BLOCK_PARTS=triton.next_power_of_2(parts.shape[0]), HEAD_DIM=parts.shape[-1],
            BLOCK_ROWS=_BLOCK_ROWS, num_warps=4,
        )  # fmt: skip
