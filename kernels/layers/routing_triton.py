"""Which experts a token goes through, in Triton, and the order of the pairs (token, expert) by expert.

A pair is a token and one of its experts; pairs number token * top_k + n, in the order of the token's experts. Sorted by
expert, a pair's place is where its expert's pairs start plus the number of earlier tokens that chose it: tokens are
counted in chunks, so no program reads all pairs.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 32
"""Tokens whose experts a program chooses and places."""
_COUNTED = 64
"""Chunks whose counts are added at once."""
_ROUTER_SPLITS = 8
_FEW_TOKENS = 256


class Routed(NamedTuple):
    """Where pairs go.

    tokens: int32 [pairs], each sorted pair's token. places: int32 [pairs], where each pair is among the sorted.
    starts: int32 [experts + 1], where each expert's sorted pairs start. ids: int32 [pairs], each token's experts,
    ascending. weights: fp32 [pairs], their probabilities.
    """

    tokens: Tensor
    places: Tensor
    starts: Tensor
    ids: Tensor
    weights: Tensor


@triton.jit(do_not_specialize=["tokens"])
def _router_kernel(
    x_ptr, router_ptr, parts_ptr, row_stride, tokens, inputs, experts, split_inputs,
    ROWS: tl.constexpr, INPUTS: tl.constexpr, LANES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """fp32 logits of some rows over one split of the inputs, [splits, tokens, experts].

    A weight in fp32 is the sum of three numbers in bf16, to its last bits: so products with x in bf16 run on the matrix
    units with fp32's precision. EXACT: x is in fp32.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    lanes = tl.arange(0, LANES)
    at = tl.arange(0, INPUTS)
    logits = tl.zeros([ROWS, LANES], tl.float32)
    first = split * split_inputs
    for start in range(first, tl.minimum(first + split_inputs, inputs), INPUTS):
        columns = start + at
        inside = columns < inputs
        x_at = x_ptr + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
        x = tl.load(x_at, mask=(rows < tokens)[:, None] & inside[None, :], other=0.0)
        w_at = router_ptr + lanes[None, :] * inputs + columns[:, None]
        w = tl.load(w_at, mask=(lanes < experts)[None, :] & inside[:, None], other=0.0)
        if EXACT:
            logits = tl.dot(x, w, logits, input_precision="ieee")
        else:
            high = w.to(tl.bfloat16)
            rest = w - high.to(tl.float32)
            middle = rest.to(tl.bfloat16)
            low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
            logits = tl.dot(x, low, logits)
            logits = tl.dot(x, middle, logits)
            logits = tl.dot(x, high, logits)
    to = parts_ptr + (split.to(tl.int64) * tokens + rows[:, None]) * experts + lanes[None, :]
    tl.store(to, logits, mask=(rows < tokens)[:, None] & (lanes < experts)[None, :])


@triton.jit
def _place(chosen, rows, first, tokens_ptr, places_ptr, TOP_K: tl.constexpr):
    """Store what the pairs of some rows tell: `first` [experts] is the place of each expert's first pair of them."""
    place = first[None, :] + tl.cumsum(chosen.to(tl.int32), 0) - 1
    pair = rows[:, None] * TOP_K + tl.cumsum(chosen.to(tl.int32), 1) - 1
    tl.store(tokens_ptr + place, tl.broadcast_to(rows[:, None], place.shape), mask=chosen)
    tl.store(places_ptr + pair, place, mask=chosen)


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    parts_ptr, ids_ptr, weights_ptr, counts_ptr, tokens_ptr, places_ptr, starts_ptr, tokens, experts,
    SPLITS: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Choose a chunk's experts and count them. ALL: there is one chunk, and its pairs are placed too."""
    rows = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    lanes = tl.arange(0, LANES)
    inside = (rows < tokens)[:, None] & (lanes < experts)[None, :]
    x = tl.zeros([CHUNK, LANES], tl.float32)
    for split in tl.static_range(SPLITS):
        at = (split * tokens + rows).to(tl.int64)[:, None] * experts + lanes[None, :]
        x += tl.load(parts_ptr + at, mask=inside, other=0.0)
    x = tl.where((lanes < experts)[None, :], x, -float("inf"))
    e = tl.exp(x - tl.max(x, 1)[:, None])
    probability = e / tl.sum(e, 1)[:, None]
    key = tl.where(probability == probability, probability, 2.0)  # whatever is no number: some expert is chosen
    key = tl.where((lanes < experts)[None, :], key, -1.0)
    chosen = tl.zeros([CHUNK, LANES], tl.int1)
    for _ in tl.static_range(TOP_K):
        left = tl.where(chosen, -2.0, key)
        best = tl.min(tl.where(left == tl.max(left, 1)[:, None], lanes[None, :], LANES), 1)
        chosen = chosen | (lanes[None, :] == best[:, None])
    chosen = chosen & (rows < tokens)[:, None]
    pair = rows[:, None] * TOP_K + tl.cumsum(chosen.to(tl.int32), 1) - 1
    tl.store(ids_ptr + pair, tl.broadcast_to(lanes[None, :], pair.shape), mask=chosen)
    tl.store(weights_ptr + pair, probability, mask=chosen)
    count = tl.sum(chosen.to(tl.int32), 0)
    if ALL:
        end = tl.cumsum(count, 0)
        tl.store(starts_ptr + lanes, end - count, mask=lanes < experts)
        tl.store(starts_ptr + lanes + 1, end, mask=lanes == experts - 1)
        _place(chosen, rows, end - count, tokens_ptr, places_ptr, TOP_K)
    else:
        tl.store(counts_ptr + tl.program_id(0) * experts + lanes, count, mask=lanes < experts)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def _place_kernel(
    ids_ptr, counts_ptr, tokens_ptr, places_ptr, starts_ptr, tokens, experts, chunks,
    TOP_K: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """A program a chunk: where its pairs are."""
    chunk = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.int32)
    before = tl.zeros([LANES], tl.int32)
    for start in range(0, chunks, COUNTED):
        of = start + tl.arange(0, COUNTED)
        at = counts_ptr + of[:, None] * experts + lanes[None, :]
        counts = tl.load(at, mask=(of < chunks)[:, None] & (lanes < experts)[None, :], other=0)
        total += tl.sum(counts, 0)
        before += tl.sum(tl.where((of < chunk)[:, None], counts, 0), 0)
    end = tl.cumsum(total, 0)
    rows = chunk * CHUNK + tl.arange(0, CHUNK)
    chosen = tl.zeros([CHUNK, LANES], tl.int1)
    for n in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + rows * TOP_K + n, mask=rows < tokens, other=-1)
        chosen = chosen | (lanes[None, :] == expert[:, None])
    if chunk == 0:
        tl.store(starts_ptr + lanes, end - total, mask=lanes < experts)
        tl.store(starts_ptr + lanes + 1, end, mask=lanes == experts - 1)
    _place(chosen, rows, end - total + before, tokens_ptr, places_ptr, TOP_K)


def route(x: Tensor, router: Tensor, top_k: int) -> Routed:
    """The `top_k` most probable experts of x [tokens, hidden]; router fp32 [experts, hidden]."""
    (tokens, hidden), experts, device = x.shape, router.shape[0], x.device
    lanes, exact = max(16, triton.next_power_of_2(experts)), x.dtype == torch.float32
    rows = 16 if tokens <= _FEW_TOKENS else 64
    inputs = 32 if exact or lanes > 64 else 64
    split_inputs = triton.cdiv(triton.cdiv(hidden, _ROUTER_SPLITS), inputs) * inputs
    splits = triton.cdiv(hidden, split_inputs)
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=device)
    _router_kernel[(triton.cdiv(tokens, rows), splits)](
        x, router, parts, x.stride(0), tokens, hidden, experts, split_inputs,
        ROWS=rows, INPUTS=inputs, LANES=lanes, EXACT=exact, num_warps=4,
    )  # fmt: skip
    pairs, chunks = tokens * top_k, triton.cdiv(tokens, _CHUNK)
    ids, own, places = (torch.empty(pairs, dtype=torch.int32, device=device) for _ in range(3))
    weights = torch.empty(pairs, dtype=torch.float32, device=device)
    counts = torch.empty((chunks, experts), dtype=torch.int32, device=device)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=device)
    shape = {"TOP_K": top_k, "LANES": lanes, "CHUNK": _CHUNK, "num_warps": 4}
    _route_kernel[(chunks,)](
        parts, ids, weights, counts, own, places, starts, tokens, experts, SPLITS=splits, ALL=chunks == 1, **shape
    )
    if chunks > 1:
        _place_kernel[(chunks,)](ids, counts, own, places, starts, tokens, experts, chunks, COUNTED=_COUNTED, **shape)
    return Routed(own, places, starts, ids, weights)
