"""The copies of running requests' KVs stay in step with their pages, and go with the request."""

from __future__ import annotations

import torch

from shoal.kernels.attention.dense import gather_kv_reference, write_kv_reference
from shoal.runtime.worker.cpu.dense_kv import DenseKV

from ..tiny import make_engine, tokens, worker_of

KEYS, PAGE = 11, 4


def test_copies_equal_the_pages_after_every_write():
    generator = torch.Generator().manual_seed(0)
    pool = torch.full((6, 2, PAGE, 2, 8), torch.nan)
    table = torch.tensor([4, 0, 3])
    dense = DenseKV()
    for start, stop in ((0, KEYS), (4, 8), (7, KEYS), (0, 1)):
        k, v = torch.randn(2, stop - start, 2, 8, generator=generator)
        at = torch.arange(start, stop)
        write_kv_reference(pool, k, v, table[at // PAGE], at % PAGE)
        held = dense.update("a", 0, start, k, v, pool, table, KEYS)
        expected = gather_kv_reference(pool, table, KEYS)
        assert torch.equal(held[0], expected[0])
        assert torch.equal(held[1], expected[1])


def test_an_engine_at_rest_holds_no_copies(llada):
    with make_engine(llada) as engine:
        engine.generate([tokens(12, seed) for seed in range(3)])
        dense = worker_of(engine).executor.runner._dense
        assert dense is not None
        assert dense._copies == {}
