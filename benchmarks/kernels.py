"""Every Triton kernel on a CUDA GPU: against the torch equivalent, and against its floor on the same GPU.

    python benchmarks/kernels.py --out benchmarks/results/kernels.csv
    python benchmarks/kernels.py --only refresh --out refresh.csv     # one group; --check runs each once, untimed

A row is one variant (a tiling, a backend) on one shape: microseconds a call (median of graph replays, inputs rotated so
that they do not sit in the cache), its bytes and operations with every input read and every output written once, the
floor these give with the copy bandwidth and matmul rate measured in the same run, and the relative error against fp32
formulas. Rows are written as they are made; a variant that can not run says why.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoal.kernels.attention import attend_reference
from shoal.kernels.attention_batch import AttentionBatch
from shoal.kernels.attention_tiling import AttentionTiling, choose_splits
from shoal.kernels.canvas_state import CanvasState, acceptance_bounds
from shoal.kernels.confidence import confidence_reference
from shoal.kernels.rms_norm import rms_norm_reference
from shoal.kernels.rope import apply_rope_reference, rope_table
from shoal.kernels.shared_groups import SharedGroups, plan_shared_groups
from shoal.kernels.swiglu import swiglu_reference
from shoal.provenance import commit, hardware

DEVICE = "cuda"
BF16 = torch.bfloat16
HEAD_DIM = 128
MHA, GQA = (32, 32), (28, 4)
Call = Callable[[], object]


@dataclass(slots=True)
class Variant:
    """One way to do a piece of work; `calls` do it on different inputs; `error` compares with the formulas."""

    group: str
    shape: str
    name: str
    calls: Sequence[Call]
    bytes: float
    flops: float = 0.0
    error: Callable[[], float] | None = None
    fields: dict[str, object] = field(default_factory=dict)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def seconds_a_call(calls: Sequence[Call], budget: float = 0.15) -> float:
    """Median over graph replays; a replay runs every call in turn, about 20 ms in all."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    once = (time.perf_counter() - begin) / len(calls)
    rounds = max(1, min(64, int(0.01 / (once * len(calls)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    spent = 0.0
    while len(times) < 5 or (spent < budget and len(times) < 50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / rounds / len(calls))
        spent += times[-1] * rounds * len(calls)
    return sorted(times)[len(times) // 2]


def ceilings() -> tuple[float, float]:
    """(bytes a second of a large copy, read and written; operations a second of a large bf16 product)."""
    a = torch.randn(2**31, device=DEVICE, dtype=BF16)
    b = torch.empty_like(a)
    times = []
    for _ in range(12):  # not from a graph: there a copy is a node of another kind, and slower
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        b.copy_(a)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    copy = 2 * a.nbytes / sorted(times[2:])[5]
    x, y = (torch.randn(8192, 8192, device=DEVICE, dtype=BF16) for _ in range(2))
    return copy, 2 * 8192**3 / seconds_a_call([partial(torch.matmul, x, y)])


# Attention


class Pool:
    """A batch with pages in random order, in as many layers as it takes to exceed the cache."""

    def __init__(
        self, queries: list[int], keys: list[int], heads: tuple[int, int], page_size: int, layers: int,
        head_major: bool = False, shared: int = 0, sharers: int = 1,
    ):  # fmt: skip
        self.heads, self.kv_heads = heads
        self.queries, self.keys, self.page_size = queries, keys, page_size
        counts = [-(-n // page_size) for n in keys]
        total = sum(counts)
        shape: tuple[int, ...] = (total, layers, 2, page_size, self.kv_heads, HEAD_DIM)
        if head_major:
            shape = (total, layers, 2, self.kv_heads, page_size, HEAD_DIM)
        data = torch.randn(shape, device=DEVICE, dtype=BF16)
        self.pages = [data[:, i].transpose(2, 3) if head_major else data[:, i] for i in range(layers)]
        self.tables = torch.zeros((len(keys), 1, max(counts)), dtype=torch.int32)
        ids = torch.randperm(total).to(torch.int32)
        for number, own in enumerate(ids.split(counts)):
            self.tables[number, 0, : len(own)] = own
            leader = number - number % sharers
            self.tables[number, 0, : shared // page_size] = self.tables[leader, 0, : shared // page_size]
        self.batch = AttentionBatch.build(self.tables.to(DEVICE), range(len(keys)), queries, keys)
        width = self.heads + 2 * self.kv_heads
        self.qkv = [torch.randn(sum(queries), width, HEAD_DIM, device=DEVICE, dtype=BF16) for _ in range(layers)]
        self.q = [x[:, : self.heads] for x in self.qkv]
        kv = [x[:, self.heads :].split(self.kv_heads, 1) for x in self.qkv]
        self.fresh = [(k, v) for k, v in kv]
        pages = len(set(self.tables.flatten().tolist())) if shared else total
        self.kv_bytes = pages * page_size * 2 * self.kv_heads * HEAD_DIM * 2
        self.bytes = sum(keys) * 2 * self.kv_heads * HEAD_DIM * 2 + 2 * sum(queries) * self.heads * HEAD_DIM * 2
        self.flops = 4.0 * self.heads * HEAD_DIM * sum(q * k for q, k in zip(queries, keys, strict=True))

    def error(self, run: Callable[[int], Tensor], fresh: bool) -> float:
        """Of layer 0, for the first and the last request."""
        out, errors = run(0), []
        starts = self.batch.query_starts.tolist()
        for r in {0, len(self.keys) - 1}:
            count, keys = min(512, self.queries[r]), self.keys[r]
            own = slice(starts[r], starts[r] + count)
            table = self.tables[r, 0].to(DEVICE).long()
            k, v = (self.pages[0][:, i].index_select(0, table).flatten(0, 1)[:keys].float() for i in (0, 1))
            if fresh:
                rows = slice(starts[r], starts[r + 1])
                for pages, new in zip((k, v), self.fresh[0], strict=True):
                    pages[keys - self.queries[r] :] = new[rows].float()
            errors.append(relative(out[own], attend_reference(self.q[0][own], k, v)[0]))
        return max(errors)


def attend(pool: Pool, layer: int, tiling: AttentionTiling | None, splits: int, fresh: bool) -> Tensor:
    from shoal.kernels.attention_triton import attention_triton

    kv = pool.fresh[layer] if fresh else None
    return attention_triton(
        pool.q[layer], pool.pages[layer], 0, pool.batch, num_splits=splits, tiling=tiling, fresh_kv=kv
    )[0]


def attend_hopper(pool: Pool, layer: int, block_keys: int, stages: int, fresh: bool) -> Tensor:
    from shoal.kernels.attention_hopper_triton import attention_hopper

    return attention_hopper(
        pool.q[layer], pool.pages[layer], 0, pool.batch, fresh_kv=pool.fresh[layer] if fresh else None,
        block_keys=block_keys, stages=stages,
    )[0]  # fmt: skip


def hopper_variants(group: str, shape: str, pool: Pool, fresh: bool) -> Iterator[Variant]:
    for block_keys, stages in ((128, 2), (64, 4), (64, 3)):
        run = partial(attend_hopper, pool, block_keys=block_keys, stages=stages, fresh=fresh)
        calls = [partial(run, layer) for layer in range(len(pool.q))]
        name = f"hopper {block_keys} s{stages}" + " fresh" * fresh
        yield Variant(group, shape, name, calls, pool.bytes, pool.flops, partial(pool.error, run, fresh))


def attention_variants(
    group: str, shape: str, pool: Pool, tilings: Sequence[AttentionTiling | None], splits: Sequence[int], fresh: bool
) -> Iterator[Variant]:
    for tiling in tilings:
        for count in splits:
            name = "default" if tiling is None else (
                f"{tiling.block_rows}x{tiling.block_keys} w{tiling.num_warps} s{tiling.num_stages}"
                + " bulk" * tiling.bulk + " heads" * tiling.heads_first
            )  # fmt: skip
            run = partial(attend, pool, tiling=tiling, splits=count, fresh=fresh)
            calls = [partial(run, layer) for layer in range(len(pool.q))]
            name += f" /{count}" + " fresh" * fresh
            yield Variant(group, shape, name, calls, pool.bytes, pool.flops, partial(pool.error, run, fresh))


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def sdpa_variants(group: str, shape: str, requests: int, queries: int, keys: int, heads: tuple[int, int], pool: Pool
                  ) -> Iterator[Variant]:  # fmt: skip
    q = torch.randn(requests, heads[0], queries, HEAD_DIM, device=DEVICE, dtype=BF16)
    k, v = (torch.randn(requests, heads[1], keys, HEAD_DIM, device=DEVICE, dtype=BF16) for _ in range(2))
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        call = partial(sdpa, q, k, v, backend)
        yield Variant(group, shape, f"torch {backend.name}", [call], pool.bytes, pool.flops)


LONG = [
    AttentionTiling(128, 64, 8, 2), AttentionTiling(128, 64, 8, 3), AttentionTiling(128, 64, 8, 4),
    AttentionTiling(128, 128, 8, 2), AttentionTiling(128, 128, 8, 3), AttentionTiling(128, 32, 8, 4),
    AttentionTiling(64, 64, 4, 3), AttentionTiling(64, 128, 4, 2), AttentionTiling(128, 64, 4, 3),
    AttentionTiling(64, 64, 4, 2), AttentionTiling(64, 32, 4, 3), AttentionTiling(128, 32, 8, 3),
    AttentionTiling(256, 64, 16, 3),
]  # fmt: skip
STEP = [
    AttentionTiling(64, 64, 4, 3, heads_first=True), AttentionTiling(32, 128, 4, 2, heads_first=True),
    AttentionTiling(64, 32, 4, 4, heads_first=True), AttentionTiling(64, 32, 4, 6, heads_first=True),
    AttentionTiling(32, 64, 4, 3, heads_first=True),
]  # fmt: skip


SHARED_TILINGS = [AttentionTiling(128, 64, 8, 3, bulk=True), AttentionTiling(128, 128, 8, 3, bulk=True)]
OWN = [
    AttentionTiling(64, 64, 4, 3, heads_first=True), AttentionTiling(64, 64, 4, 2, heads_first=True),
    AttentionTiling(64, 32, 4, 3, heads_first=True), AttentionTiling(64, 32, 4, 2, heads_first=True),
    AttentionTiling(32, 32, 4, 3, heads_first=True), AttentionTiling(64, 64, 4, 3),
]  # fmt: skip


def bulk(tilings: Sequence[AttentionTiling]) -> list[AttentionTiling]:
    return [AttentionTiling(**{**{k: getattr(t, k) for k in t.__slots__}, "bulk": True}) for t in tilings]


def refresh() -> Iterator[Variant]:
    for heads in (MHA, GQA):
        shape = f"8 x 2256 all fresh, {heads[0]}/{heads[1]} heads"
        pool = Pool([2256] * 8, [2256] * 8, heads, 16, 1)
        yield from sdpa_variants("refresh", shape, 8, 2256, 2256, heads, pool)
        yield from hopper_variants("refresh", shape, pool, True)
        yield from attention_variants("refresh", shape, pool, [LONG[4], LONG[1], LONG[6]], [1], True)
        for page_size in (16, 64):
            pool = Pool([2256] * 8, [2256] * 8, heads, page_size, 1)
            tilings = [LONG[1], LONG[4]]
            yield from hopper_variants("refresh", f"{shape} p{page_size}", pool, False)
            yield from attention_variants(
                "refresh", f"{shape} p{page_size}", pool, bulk(tilings[:1]) if page_size == 64 else tilings, [1], False
            )
    shape = "32 x (356 fresh of 2356), 32/32 heads"
    for page_size in (16, 64):
        pool = Pool([356] * 32, [2356] * 32, MHA, page_size, 1)
        if page_size == 16:
            yield from sdpa_variants("refresh", shape, 32, 356, 2356, MHA, pool)
        for fresh in (True, False):
            yield from hopper_variants("refresh", f"{shape} p{page_size}", pool, fresh)
            yield from attention_variants("refresh", f"{shape} p{page_size}", pool, bulk([LONG[1]]), [1], fresh)
    for page_size in (16, 64):
        pool = Pool([356], [2356], MHA, page_size, 6)
        shape = f"1 x (356 of 2356) p{page_size}"
        yield from hopper_variants("refresh", shape, pool, False)
        yield from attention_variants("refresh", shape, pool, bulk([LONG[1], LONG[6]]), [1, 2], False)


def step() -> Iterator[Variant]:
    for requests, layers, splits in (
        (32, 1, (1,)),
        (1, 8, (3, 4, 6, 8)),
        (2, 4, (2, 4, 5)),
        (4, 2, (1, 2, 3)),
        (8, 2, (1, 2)),
    ):
        keys = [2300 - 7 * (r % 9) for r in range(requests)]
        for page_size in (16, 64):
            pool = Pool([32] * requests, keys, MHA, page_size, layers)
            tilings = STEP if page_size == 16 else bulk(STEP[:1] + STEP[2:])
            shape = f"{requests} x 32 of 2300 p{page_size}"
            yield from attention_variants("step", shape, pool, tilings, splits, False)
    for requests, layers, splits in ((32, 6, (1, 2)), (8, 12, (1, 2, 4)), (1, 48, (4, 6, 8, 12))):
        keys = [2300 - 7 * (r % 9) for r in range(requests)]
        for page_size in (16, 64):
            pool = Pool([33] * requests, keys, GQA, page_size, layers)
            shape = f"{requests} x 33 of 2300 p{page_size} 28/4"
            tilings = [AttentionTiling(64, 64, 4, 3), AttentionTiling(128, 64, 8, 3), AttentionTiling(64, 128, 4, 2)]
            tilings = bulk(tilings[:2]) if page_size == 64 else tilings
            yield from attention_variants("step", shape, pool, tilings, splits, False)
            yield from hopper_variants("step", shape, pool, False)


def shared() -> Iterator[Variant]:
    from shoal.kernels.shared_attention_triton import shared_attention_triton

    keys = 2300
    for requests, sharers in ((32, 2), (32, 4), (32, 32), (4, 4), (8, 8)):
        for page_size in (16, 64):
            if page_size == 64 and (requests, sharers) not in ((32, 4), (4, 4), (8, 8)):
                continue
            layers = max(1, 4 // requests)
            pool = Pool([32] * requests, [keys] * requests, MHA, page_size, layers, shared=1984, sharers=sharers)
            starts = pool.batch.query_starts.tolist()
            plan = plan_shared_groups(
                pool.tables.numpy(), range(requests), starts, pool.keys, page_size, *MHA, min_sharers=2
            )
            groups = SharedGroups.empty(1, requests, 32 * requests, *MHA, DEVICE)
            groups.load(plan)
            shape = f"{requests} x 32 of {keys}, {sharers} share 1984, p{page_size}"
            splits = [choose_splits(32 * requests, requests, *MHA, keys)]
            yield from attention_variants("shared", shape, pool, [None], splits, False)
            floor = pool.kv_bytes + 4 * 32 * requests * 32 * HEAD_DIM
            for tiling in OWN if page_size == 16 else bulk(OWN):
                for long in SHARED_TILINGS[: 1 + (tiling == OWN[0])]:

                    def run(layer: int, p: Pool = pool, g: SharedGroups = groups, t: AttentionTiling = tiling,
                            by: AttentionTiling = long) -> Tensor:  # fmt: skip
                        return shared_attention_triton(
                            p.q[layer], p.pages[layer], 0, p.batch, g, shared_tiling=by, tiling=t
                        )[0]

                    calls = [partial(run, layer) for layer in range(layers)]
                    name = f"shared {long.block_keys} own {tiling.block_rows}x{tiling.block_keys} s{tiling.num_stages}"
                    yield Variant("shared", shape, name, calls, floor, pool.flops, partial(pool.error, run, False))
    for page_size in (16, 64):
        pool = Pool([32] * 32, [300] * 32, MHA, page_size, 2)
        for tiling in OWN if page_size == 16 else bulk(OWN):
            yield from attention_variants("shared", f"32 x 32 of 300 p{page_size}", pool, [tiling], [1], False)


# Rows


def rows() -> Iterator[Variant]:
    from shoal.kernels import rms_norm_triton, swiglu_triton
    from shoal.kernels.kv_write_triton import rope_write_kv_triton

    cos, sin = rope_table(4608, HEAD_DIM, 5e5, DEVICE)
    for requests, queries, heads in ((32, 2256, MHA), (1, 32, MHA), (32, 32, MHA), (32, 32, GQA)):
        tokens, copies = requests * queries, 2 if queries > 32 else 8
        pool = Pool([queries] * requests, [2256] * requests, heads, 16, copies if queries == 32 else 1)
        positions = torch.arange(queries, dtype=torch.int32, device=DEVICE).repeat(requests)
        number = torch.arange(requests, dtype=torch.int32, device=DEVICE).repeat_interleave(queries)
        layers = len(pool.q)
        q_out = torch.empty_like(pool.q[0].contiguous())
        moved = 2.0 * tokens * HEAD_DIM * (2 * heads[0] + 4 * heads[1])
        for block in ((4, 8), (4, 4), (4, 2), (8, 8), (2, 4), (8, 2), (16, 2), (1, 8), (2, 1)):

            def rope(layer: int, p: Pool = pool, at: Tensor = positions, n: Tensor = number, out: Tensor = q_out,
                     b: tuple[int, int] = block) -> Tensor:  # fmt: skip
                k, v = p.fresh[layer]
                return rope_write_kv_triton(p.q[layer], k, v, cos, sin, at, n, p.batch, 0, p.pages[layer], q_out=out,
                                            block=b)  # fmt: skip

            def rope_error(p: Pool = pool, at: Tensor = positions, run: Callable[[int], Tensor] = rope) -> float:
                long = at.long()
                return relative(run(0)[:500], apply_rope_reference(p.q[0], cos[long], sin[long])[:500])

            shape = f"{tokens} tokens {heads[0]}/{heads[1]}"
            calls = [partial(rope, layer) for layer in range(layers)]
            yield Variant("rope", shape, f"{block[0]}x{block[1]}", calls, moved, error=rope_error)
    weight = torch.randn(4096, device=DEVICE, dtype=BF16)
    for tokens in (72192, 1024, 32):
        copies = 2 if tokens > 10000 else 16
        x = [torch.randn(tokens, 4096, device=DEVICE, dtype=BF16) for _ in range(copies)]
        for warps in (2, 4, 8, 16):

            def norm(i: int, xs: list[Tensor] = x, w: int = warps) -> tuple[Tensor, Tensor]:
                return rms_norm_triton.add_rms_norm_triton(xs[i], xs[i - 1], weight, 1e-5, num_warps=w)

            def norm_error(run: Callable[[int], tuple[Tensor, Tensor]] = norm) -> float:
                found, total = run(1)
                return relative(found[:500], rms_norm_reference(total[:500].float(), weight.float(), 1e-5))

            norms: list[Call] = [partial(norm, i) for i in range(copies)]
            yield Variant("add_rms_norm", f"{tokens} x 4096", f"w{warps}", norms, 8.0 * tokens * 4096, error=norm_error)
        plain = [partial(lambda a, b: F.rms_norm(a + b, (4096,), weight, 1e-5), x[i], x[i - 1]) for i in range(copies)]
        yield Variant("add_rms_norm", f"{tokens} x 4096", "torch", plain, 8.0 * tokens * 4096)
        del x
        g = [torch.randn(tokens, 2 * 12288, device=DEVICE, dtype=BF16) for _ in range(2 if tokens > 10000 else 8)]
        for size in (1024, 2048, 4096):
            calls = [partial(swiglu_triton.swiglu_triton, each, size) for each in g]

            def gated(b: int = size, gs: list[Tensor] = g) -> float:
                return relative(swiglu_triton.swiglu_triton(gs[0], b)[:99], swiglu_reference(gs[0][:99].float()))

            yield Variant("swiglu", f"{tokens} x 12288", f"{size}", calls, 6.0 * tokens * 12288, error=gated)
        calls = [partial(swiglu_reference, each) for each in g]
        yield Variant("swiglu", f"{tokens} x 12288", "torch", calls, 6.0 * tokens * 12288)
        del g


def canvas(requests: int, block: int = 32) -> tuple[CanvasState, AttentionBatch, Tensor]:
    state = CanvasState.empty(requests, 4608, block, 4, DEVICE)
    state.masked[:, 2000:] = 1
    state.block_starts[:] = 2000
    state.block_stops[:] = 2000 + block
    state.bounds[:] = acceptance_bounds(0.9, None, block).to(DEVICE)
    tables = torch.zeros((requests, 1, 1), dtype=torch.int32, device=DEVICE)
    batch = AttentionBatch.build(tables, range(requests), [block] * requests, [2300] * requests)
    return state, batch, torch.full((requests,), 2000, dtype=torch.int32, device=DEVICE)


def sampling() -> Iterator[Variant]:
    from shoal.kernels.commit_triton import commit_triton
    from shoal.kernels.confidence_triton import block_confidence_triton
    from shoal.kernels.masked_rows_triton import masked_rows_triton

    vocabulary = 126464
    for requests in (1, 8, 32):
        state, batch, first = canvas(requests)
        count = 32 * requests
        masked = masked_rows_triton(state, batch, first, count)
        logits = [
            torch.randn(count, vocabulary, device=DEVICE, dtype=BF16) * 3 for _ in range(8 if requests < 8 else 2)
        ]
        shape = f"{count} x {vocabulary}"
        for lanes, warps in ((256, 8), (256, 4), (128, 4), (512, 8), (512, 16), (128, 2)):

            def run(i: int, ls: list[Tensor] = logits, s: CanvasState = state, m: Any = masked, n: int = lanes,
                    w: int = warps, draw: bool = False) -> Any:  # fmt: skip
                return block_confidence_triton(ls[i], s, m, impossible_token=7, draw=draw, lanes=n, num_warps=w)

            def worst(ls: list[Tensor] = logits, call: Callable[[int], Any] = run) -> float:
                found, limited = call(0), ls[0][:64].float()
                limited[:, 7] = -torch.inf
                expected = confidence_reference(limited)
                pairs = zip(found[1:], expected[1:], strict=True)
                chosen = limited.gather(1, found.token[:64, None])[:, 0]  # the best logit may be there twice
                wrong = float((chosen != limited.max(1).values).sum())
                return max(wrong, *(relative(a[:64], b) for a, b in pairs))

            calls = [partial(run, i) for i in range(len(logits))]
            yield Variant("confidence", shape, f"{lanes} lanes w{warps}", calls, logits[0].nbytes, error=worst)
        state.temperatures[:] = 0.7
        for lanes, warps in ((256, 8), (128, 4)):
            calls = [partial(run, i, n=lanes, w=warps, draw=True) for i in range(len(logits))]
            yield Variant("confidence", shape, f"{lanes} lanes w{warps} with draws", calls, logits[0].nbytes)
        calls = [partial(lambda x: x.float().softmax(-1).max(-1), each) for each in logits]
        yield Variant("confidence", shape, "torch softmax max", calls, logits[0].nbytes)
        confidence = block_confidence_triton(logits[0], state, masked, draw=False)
        find: Call = partial(masked_rows_triton, state, batch, first, count)
        yield Variant("masked_rows", f"{requests} blocks", "", [find], 10.0 * count)
        take: Call = partial(commit_triton, state, batch, masked, confidence, vocabulary)
        yield Variant("commit", f"{requests} blocks", "", [take], 30.0 * count)
        del logits


def merging() -> Iterator[Variant]:
    from shoal.kernels.drift_triton import drift_triton
    from shoal.kernels.merge_state_triton import merge_states_triton

    for tokens, parts in ((32, 8), (1024, 2)):
        data = [torch.randn(parts, tokens, 32, HEAD_DIM, device=DEVICE) for _ in range(8)]
        lses = torch.randn(parts, tokens, 32, device=DEVICE)
        out, lse = torch.empty(tokens, 32, HEAD_DIM, device=DEVICE, dtype=BF16), torch.empty(tokens, 32, device=DEVICE)
        calls: list[Call] = [partial(merge_states_triton, each, lses, out, lse) for each in data]
        yield Variant("merge", f"{tokens} x 32, {parts} parts", "", calls, float(data[0].nbytes + out.nbytes))
    pages = torch.randn(512, 4, 2, 16, 32, HEAD_DIM, device=DEVICE, dtype=BF16)
    ids = torch.randperm(512, device=DEVICE).to(torch.int32).view(2, 256)
    calls = [partial(drift_triton, pages, ids[0], ids[1], 4096)]
    yield Variant("drift", "4096 tokens, 4 layers", "", calls, float(pages.nbytes))


def layers() -> Iterator[Variant]:
    """A whole layer of a block step (LLaDA-8B shape), products by cuBLAS."""
    from shoal.kernels.attention_triton import attention_triton
    from shoal.kernels.kv_write_triton import rope_write_kv_triton
    from shoal.kernels.rms_norm_triton import add_rms_norm_triton
    from shoal.kernels.swiglu_triton import swiglu_triton

    cos, sin = rope_table(4608, HEAD_DIM, 5e5, DEVICE)
    width, inner, copies = 4096, 12288, 4
    shapes = ((width, 3 * width), (width, width), (width, 2 * inner), (inner, width))
    weights = [[torch.randn(n, m, device=DEVICE, dtype=BF16) / n**0.5 for n, m in shapes] for _ in range(copies)]
    scale = torch.ones(width, device=DEVICE, dtype=BF16)
    for requests in (1, 4, 32):
        tokens, splits = 32 * requests, max(1, 8 // requests)
        pool = Pool([32] * requests, [2300] * requests, MHA, 64, copies if requests < 32 else 1)
        positions = torch.arange(2268, 2300, dtype=torch.int32, device=DEVICE).repeat(requests)
        number = torch.arange(requests, dtype=torch.int32, device=DEVICE).repeat_interleave(32)
        x = torch.randn(tokens, width, device=DEVICE, dtype=BF16)
        zero = torch.zeros_like(x)

        def layer(i: int, p: Pool = pool, hidden: Tensor = x, none: Tensor = zero, at: Tensor = positions,
                  n: Tensor = number, parts: int = splits) -> Tensor:  # fmt: skip
            to_qkv, to_out, to_gates, to_down = weights[i % copies]
            y, hidden = add_rms_norm_triton(hidden, none, scale, 1e-5)
            q, k, v = (y @ to_qkv).view(-1, 96, HEAD_DIM).split([32, 32, 32], 1)
            pages = p.pages[i % len(p.pages)]
            rope_write_kv_triton(q, k, v, cos, sin, at, n, p.batch, 0, pages, q_out=q)
            attended = attention_triton(q, pages, 0, p.batch, num_splits=parts)[0]
            y, hidden = add_rms_norm_triton(attended.view(-1, width) @ to_out, hidden, scale, 1e-5)
            return torch.addmm(hidden, swiglu_triton(y @ to_gates), to_down)

        moved = sum(w.nbytes for w in weights[0]) + pool.bytes
        flops = pool.flops + 2.0 * tokens * sum(n * m for n, m in shapes)
        calls = [partial(layer, i) for i in range(copies)]
        yield Variant("layers", f"{requests} x 32 of 2300", "", calls, moved, flops)


GROUPS: dict[str, Callable[[], Iterator[Variant]]] = {
    "refresh": refresh, "step": step, "shared": shared, "rows": rows, "sampling": sampling, "merging": merging,
    "layers": layers,
}  # fmt: skip
COLUMNS = ("group", "shape", "variant", "us", "gb_s", "tflop_s", "floor_us", "of_floor", "error", "failure")


def measure(variant: Variant, copy: float, matmul: float, check: bool) -> dict[str, object]:
    row: dict[str, object] = {"group": variant.group, "shape": variant.shape, "variant": variant.name}
    try:
        if variant.error is not None:
            row["error"] = f"{variant.error():.2e}"
        if check:
            variant.calls[0]()
            torch.cuda.synchronize()
            return row
        spent = seconds_a_call(variant.calls)
    except Exception as error:  # a variant that does not fit the device is a result too
        row["failure"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        return row
    floor = max(variant.bytes / copy, variant.flops / matmul)
    row |= {"us": f"{spent * 1e6:.2f}", "gb_s": f"{variant.bytes / spent / 1e9:.0f}"}
    row |= {"tflop_s": f"{variant.flops / spent / 1e12:.1f}", "floor_us": f"{floor * 1e6:.2f}"}
    return row | {"of_floor": f"{floor / spent:.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="CSV to write, row by row")
    parser.add_argument("--only", choices=GROUPS, action="append", help="a group; all by default")
    parser.add_argument("--skip", default="", help="leave out variants whose name begins with this")
    parser.add_argument("--check", action="store_true", help="run each variant once and compare, without timing")
    parser.add_argument("--seconds", type=float, default=600, help="start no variant after so long")
    parser.add_argument("--commit", default=commit(), help="what the results file names as the commit")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/kernels.py needs a CUDA GPU; nothing was measured")
        return
    begin = time.monotonic()
    torch.manual_seed(int(time.time()))
    torch.backends.cuda.matmul.allow_tf32 = False
    copy, matmul = (1.0, 1.0) if options.check else ceilings()
    import triton

    stamp = {
        "copy_gb_s": f"{copy / 1e9:.0f}", "matmul_tflop_s": f"{matmul / 1e12:.0f}", "hardware": hardware(),
        "command": " ".join(["python", "benchmarks/kernels.py", *sys.argv[1:]]), "commit": options.commit,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, triton {triton.__version__}",
    }  # fmt: skip
    print(f"copy {copy / 1e12:.2f} TB/s, matmul {matmul / 1e12:.0f} TFLOP/s", flush=True)
    file = writer = None
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        file = options.out.open("w", newline="", encoding="utf-8")
        writer = csv.DictWriter(file, fieldnames=[*COLUMNS, *stamp], lineterminator="\n")
        writer.writeheader()
    best: dict[tuple[str, str, bool], dict[str, object]] = {}
    for group in options.only or GROUPS:
        for variant in GROUPS[group]():
            if options.skip and variant.name.startswith(options.skip):
                continue
            if time.monotonic() - begin > options.seconds:
                print(f"stopped in {group} after {options.seconds} s")
                break
            row = measure(variant, copy, matmul, options.check)
            if writer is not None and file is not None:
                writer.writerow(row | stamp)
                file.flush()
            bad = "failure" in row or float(str(row.get("error", 0))) > 1e-2
            if options.check and bad:
                print(row, flush=True)
            key = (variant.group, variant.shape, variant.name.startswith("torch"))
            if "us" in row and (key not in best or float(str(row["us"])) < float(str(best[key]["us"]))):
                best[key] = row
    for row in best.values():
        print(
            f"{row['group']:12} {row['shape']:44} {row['variant']:36} {row['us']:>10} us {row['gb_s']:>5} GB/s "
            f"{row['tflop_s']:>6} TF {row['of_floor']} {row.get('error', '')}"
        )


if __name__ == "__main__":
    main()
