"""Which experts a token goes through, in Triton, and the order of the pairs (token, expert) by expert.

A pair is a token and one of its experts; pairs number token * top_k + n, in the order of the token's experts.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 1024
_ROUTER_SPLITS = 8
_FEW_TOKENS = 256


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


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    parts_ptr, ids_ptr, weights_ptr, tokens, experts, SPLITS: tl.constexpr, TOP_K: tl.constexpr, LANES: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    inside = lanes < experts
    x = tl.zeros([LANES], tl.float32)
    for split in tl.static_range(SPLITS):
        x += tl.load(parts_ptr + (token + split * tokens) * experts + lanes, mask=inside, other=0.0)
    x = tl.where(inside, x, -float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    probability = e / tl.sum(e, 0)
    key = tl.where(probability == probability, probability, 2.0)  # NaN comes first, so that some expert is chosen
    key = tl.where(inside, key, -1.0)
    chosen = lanes < 0
    for _ in tl.static_range(TOP_K):
        left = tl.where(chosen, -2.0, key)
        best = tl.min(tl.where(left == tl.max(left, 0), lanes, LANES), 0)
        chosen = chosen | (lanes == best)
    at = token * TOP_K + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(ids_ptr + at, lanes, mask=chosen)
    tl.store(weights_ptr + at, probability, mask=chosen)


@triton.jit(do_not_specialize=["pairs"])
def _sort_kernel(ids_ptr, tokens_ptr, places_ptr, starts_ptr, pairs, TOP_K: tl.constexpr, CHUNK: tl.constexpr):
    """A program an expert: where its pairs start, their tokens, in order, and where each pair is."""
    expert = tl.program_id(0)
    lanes = tl.arange(0, CHUNK)
    fewer = tl.zeros([CHUNK], tl.int32)
    for first in range(0, pairs, CHUNK):
        ids = tl.load(ids_ptr + first + lanes, mask=first + lanes < pairs, other=2147483647)
        fewer += (ids < expert).to(tl.int32)
    start = tl.sum(fewer, 0)
    tl.store(starts_ptr + expert, start)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, pairs)
    for first in range(0, pairs, CHUNK):
        own = tl.load(ids_ptr + first + lanes, mask=first + lanes < pairs, other=-1) == expert
        place = start + tl.cumsum(own.to(tl.int32), 0) - 1
        tl.store(tokens_ptr + place, (first + lanes) // TOP_K, mask=own)
        tl.store(places_ptr + first + lanes, place, mask=own)
        start += tl.sum(own.to(tl.int32), 0)


def route(x: Tensor, router: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Each token's experts, ascending (int32 [pairs]), and their probabilities (fp32 [pairs])."""
    (tokens, hidden), experts = x.shape, router.shape[0]
    lanes, exact = max(16, triton.next_power_of_2(experts)), x.dtype == torch.float32
    rows = 16 if tokens <= _FEW_TOKENS else 64
    inputs = 32 if exact or lanes > 64 else 64
    split_inputs = triton.cdiv(triton.cdiv(hidden, _ROUTER_SPLITS), inputs) * inputs
    splits = triton.cdiv(hidden, split_inputs)
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=x.device)
    _router_kernel[(triton.cdiv(tokens, rows), splits)](
        x, router, parts, x.stride(0), tokens, hidden, experts, split_inputs,
        ROWS=rows, INPUTS=inputs, LANES=lanes, EXACT=exact, num_warps=4,
    )  # fmt: skip
    ids = torch.empty(tokens * top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(tokens * top_k, dtype=torch.float32, device=x.device)
    _route_kernel[(tokens,)](parts, ids, weights, tokens, experts, SPLITS=splits, TOP_K=top_k, LANES=lanes, num_warps=1)
    return ids, weights


def sort_pairs(ids: Tensor, experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of pairs with experts `ids`: their tokens sorted by expert, each pair's place there (int32 [pairs] both), and
    where each expert's pairs start (int32 [experts + 1])."""
    pairs, device = ids.shape[0], ids.device
    tokens, places = (torch.empty(pairs, dtype=torch.int32, device=device) for _ in range(2))
    starts = torch.empty(experts + 1, dtype=torch.int32, device=device)
    _sort_kernel[(experts,)](ids, tokens, places, starts, pairs, TOP_K=top_k, CHUNK=_CHUNK, num_warps=4)
    return tokens, places, starts
