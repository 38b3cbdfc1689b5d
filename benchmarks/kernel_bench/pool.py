"""A batch over paged KVs, for the benchmarks of attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernel_bench.variant import DEVICE, HEAD_DIM, random, relative
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.reference import attend_reference
from shoal.kernels.layers.fp8 import FP8


class Pool:
    """A batch with pages in random order, in as many layers as it takes to exceed the cache."""

    def __init__(
        self, queries: list[int], keys: list[int], heads: tuple[int, int], page_size: int, layers: int,
        head_major: bool = False, shared: int = 0, sharers: int = 1, fp8: bool = False,
    ):  # fmt: skip
        self.heads, self.kv_heads = heads
        self.queries, self.keys, self.page_size = queries, keys, page_size
        counts = [-(-n // page_size) for n in keys]
        total = sum(counts)
        shape: tuple[int, ...] = (total, layers, 2, page_size, self.kv_heads, HEAD_DIM)
        if head_major:
            shape = (total, layers, 2, self.kv_heads, page_size, HEAD_DIM)
        data = random(*shape)
        data = data.to(FP8) if fp8 else data
        self.pages = [data[:, i].transpose(2, 3) if head_major else data[:, i] for i in range(layers)]
        self.tables = torch.zeros((len(keys), 1, max(counts)), dtype=torch.int32)
        ids = torch.randperm(total).to(torch.int32)
        for number, own in enumerate(ids.split(counts)):
            self.tables[number, 0, : len(own)] = own
            leader = number - number % sharers
            self.tables[number, 0, : shared // page_size] = self.tables[leader, 0, : shared // page_size]
        self.batch = AttentionBatch.build(self.tables.to(DEVICE), range(len(keys)), queries, keys)
        width = self.heads + 2 * self.kv_heads
        self.qkv = [random(sum(queries), width, HEAD_DIM) for _ in range(layers)]
        self.q = [x[:, : self.heads] for x in self.qkv]
        self.fresh = [tuple(x[:, self.heads :].split(self.kv_heads, 1)) for x in self.qkv]
        pages = len(set(self.tables.flatten().tolist())) if shared else total
        self.kv_bytes = pages * page_size * 2 * self.kv_heads * HEAD_DIM * data.itemsize
        self.bytes = (
            sum(keys) * 2 * self.kv_heads * HEAD_DIM * data.itemsize + 2 * sum(queries) * self.heads * HEAD_DIM * 2
        )
        self.flops = 4.0 * self.heads * HEAD_DIM * sum(q * k for q, k in zip(queries, keys, strict=True))

    def places(self, first: int) -> tuple[Tensor, Tensor]:
        """int32 [tokens]: position of each query, the first of every request at `first`; its request."""
        starts = [torch.arange(first, first + count, dtype=torch.int32) for count in self.queries]
        requests = torch.arange(len(self.queries), dtype=torch.int32)
        return torch.cat(starts).to(DEVICE), requests.repeat_interleave(torch.tensor(self.queries)).to(DEVICE)

    def error(self, run: Callable[[int], Tensor], fresh: bool) -> float:
        """Of layer 0, for the first and the last request."""
        out, errors = run(0), []
        starts = self.batch.query_starts.tolist()
        for r in {0, len(self.keys) - 1}:
            count, keys = min(512, self.queries[r]), self.keys[r]
            own = slice(starts[r], starts[r] + count)
            table = self.tables[r, 0].to(DEVICE).long()
            pages = self.pages[0].bfloat16()  # torch selects no rows of fp8
            k, v = (pages[:, i].index_select(0, table).flatten(0, 1)[:keys].float() for i in (0, 1))
            if fresh:
                rows = slice(starts[r], starts[r + 1])
                for old, new in zip((k, v), self.fresh[0], strict=True):
                    old[keys - self.queries[r] :] = new[rows].float()
            errors.append(relative(out[own], attend_reference(self.q[0][own], k, v)[0]))
        return max(errors)
