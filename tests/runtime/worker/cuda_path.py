"""The executor of a GPU on the CPU, with reference kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoal.runtime.config import EngineConfig
from shoal.runtime.model.decoder import Decoder
from shoal.runtime.request.facts import Facts
from shoal.runtime.request.structure import load_vocabulary
from shoal.runtime.worker.gpu.executor import CudaExecutor
from shoal.runtime.worker.gpu.graphs import ForwardGraphs
from shoal.runtime.worker.gpu.runner import CudaRunner
from shoal.runtime.worker.gpu.sampler import BlockSampler
from shoal.runtime.worker.gpu.slots import CanvasSlots
from shoal.runtime.worker.pools import BoundaryPool, KVPool


def cuda_executor(
    _: EngineConfig, decoder: Decoder, kv: KVPool, boundary: BoundaryPool, facts: Facts, *,
    batch_sizes: Sequence[int] = (1, 2, 4, 8), max_tokens: int = 160, max_block: int = 32, most_rows: int = 8192,
    capture: bool = False,
) -> CudaExecutor:  # fmt: skip
    """For `make_engine(executor=...)`; `capture` needs a stand-in for captures."""
    model = decoder.config
    slots = CanvasSlots(
        32, max_tokens, max_block, facts.num_bands, kv.page_size, torch.device("cpu"), model.vocab_size,
        model.eos_token_id,
    )  # fmt: skip
    runner = CudaRunner(decoder, kv, boundary, slots)
    sampler = BlockSampler(runner.layers, slots)
    graphs = ForwardGraphs(runner, sampler, batch_sizes, capture)
    return CudaExecutor(runner, sampler, graphs, most_rows, lambda: load_vocabulary(facts))
