"""Batches for the attention kernels: pages scattered over a pool of NaN, page tables among others, answers."""

from __future__ import annotations

import math

import torch

from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.layers.fp8 import FP8

from .checks import DEVICE, fresh

NOWHERE = 2**30
"""Page ids from here on are in no pool."""


def paged(layout: str, pages: int, page_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """An empty layer of a pool: one of several layers of a page, or head-major."""
    if layout == "layers":
        return torch.full((pages, 3, 2, page_size, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)[:, 1]
    if layout == "head-major":
        whole = torch.full((pages, 2, 2, kv_heads, page_size, head_dim), torch.nan, dtype=dtype, device=DEVICE)[:, 1]
        return whole.permute(0, 1, 3, 2, 4)
    assert layout == "transposed"
    whole = torch.full((2, kv_heads, pages, head_dim, page_size), torch.nan, dtype=dtype, device=DEVICE)
    return whole.permute(2, 0, 4, 1, 3)


class World:
    """A batch with its pages scattered over a pool that is NaN wherever no key of the batch is.

    `shared[r]` names a request whose first pages r uses too, and how many of them. `fp8`: the pages are in e4m3, and
    every key and value is a number that e4m3 holds.
    """

    def __init__(
        self, queries: list[int], keys: list[int], heads: int, kv_heads: int, head_dim: int, page_size: int = 16,
        layout: str = "layers", dtype: torch.dtype = torch.float32, shared: dict[int, tuple[int, int]] | None = None,
        fp8: bool = False,
    ):  # fmt: skip
        self.queries, self.keys, self.dtype, self.page_size = queries, keys, dtype, page_size
        counts = [-(-length // page_size) for length in keys]
        self.pool = paged(layout, sum(counts) + 3, page_size, kv_heads, head_dim, dtype)
        ids = torch.randperm(sum(counts) + 3)[: sum(counts)].to(torch.int32)
        self.page_tables = list(ids.split(counts))
        self.q = fresh(sum(queries) + 3, heads + 2, head_dim, dtype=dtype)[: sum(queries), 1:-1]
        self.kv = [fresh(2, length, kv_heads, head_dim, dtype=dtype) for length in keys]
        if fp8:
            self.kv = [kv.to(FP8).to(dtype) for kv in self.kv]
        for request, (owner, pages) in (shared or {}).items():
            self.page_tables[request][:pages] = self.page_tables[owner][:pages]
            self.kv[request][:, : pages * page_size] = self.kv[owner][:, : pages * page_size]
        slots = torch.randperm(len(keys) + 2)[: len(keys)]
        shape = (len(keys) + 2, 3, max(counts) + 1)
        tables = NOWHERE + torch.randperm(shape[0] * shape[1] * shape[2]).view(shape).to(torch.int32)
        for slot, table, kv in zip(slots.tolist(), self.page_tables, self.kv, strict=True):
            tables[slot, 1, : len(table)] = table
            for at in range(kv.shape[1]):
                self.pool[table[at // page_size], :, at % page_size] = kv[:, at]
        if fp8:
            self.pool = self.pool.to(FP8)
        self.batch = AttentionBatch.build(tables.to(DEVICE), slots.tolist(), queries, keys)

    def fresh_kv(self, poison: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The last keys and values of each request, as many as it has queries; with `poison` NaN in their pages."""
        rows = [kv[:, kv.shape[1] - min(q, kv.shape[1]) :] for q, kv in zip(self.queries, self.kv, strict=True)]
        kv_heads, head_dim = self.kv[0].shape[2:]
        qkv = torch.full((sum(self.queries), 3 + 2 * kv_heads, head_dim), torch.nan, dtype=self.dtype, device=DEVICE)
        begin = 0
        for count, part in zip(self.queries, rows, strict=True):
            end = begin + part.shape[1]
            qkv[begin:end, 3 : 3 + kv_heads], qkv[begin:end, 3 + kv_heads :] = part[0], part[1]
            begin += count
        if poison:
            for count, keys, table in zip(self.queries, self.keys, self.page_tables, strict=True):
                for at in range(max(0, keys - count), keys):
                    self.pool[table[at // self.page_size], :, at % self.page_size] = torch.nan
        return qkv[:, 3 : 3 + kv_heads], qkv[:, 3 + kv_heads :]

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs and log-sum-exps in float64."""
        outs, lses = [], []
        for q, kv in zip(self.q.double().cpu().split(self.queries), self.kv, strict=True):
            group = q.shape[1] // kv.shape[2]
            k, v = kv.double().cpu().repeat_interleave(group, dim=2)
            scores = torch.einsum("qhd,khd->qhk", q, k) / math.sqrt(q.shape[-1])
            lses.append(scores.logsumexp(-1))
            outs.append(torch.einsum("qhk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(outs), torch.cat(lses)
