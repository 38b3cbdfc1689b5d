"""The GPU's worker, run on the CPU with reference kernels: the answers of the plain worker, token for token."""

import numpy as np
import pytest
import torch

from shoal.runtime.block_sampler import BlockSampler
from shoal.runtime.canvas_slots import CanvasSlots
from shoal.runtime.cuda_runner import CudaRunner
from shoal.runtime.cuda_worker import CudaWorker
from shoal.runtime.forward_graphs import ForwardGraphs
from shoal.runtime.sampling_params import SamplingParams

from .tiny import make_engine, tokens, write_model, write_profile


def on_cuda_path(engine, batch_sizes=(1, 2, 4, 8)):
    """Put the GPU's worker in the place of the engine's."""
    parts = engine._parts
    runner = parts.worker.runner
    slots = CanvasSlots(32, 160, 32, parts.scheduler.memory.config.num_bands, runner.kv.page_size, torch.device("cpu"))
    fused = CudaRunner(runner.decoder, runner.kv, runner.boundary, slots)
    sampler = BlockSampler(fused.layers, slots)
    worker = CudaWorker(fused, sampler, ForwardGraphs(fused, sampler, batch_sizes, capture=False))
    parts.scheduler._worker = worker
    return worker


@pytest.fixture(scope="module", params=["llada", "dream"])
def folder(request, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp(request.param), request.param)


PARAMS = [
    {"steps": 9},
    {"steps": 24},
    {"threshold": 0.4},
    {"factor": 0.8},
    {"steps": 12, "strategy": "margin"},
    {"threshold": 0.3, "strategy": "entropy"},
    {"threshold": 0.5, "ignore_eos": True},
]


def requests(mode):
    shared = tokens(21, seed=1)
    prompts = [shared + tokens(3 + 2 * i, seed=10 + i) for i in range(5)] + [tokens(9, seed=50)]
    params = [SamplingParams(max_new_tokens=24, **PARAMS[(i + mode) % len(PARAMS)]) for i in range(len(prompts))]
    return prompts, params


@pytest.mark.parametrize("interval", [None, 1, 5])
@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_same_answers_as_the_plain_worker(folder, tmp_path, mode, interval):
    profile = write_profile(tmp_path / "p.json", 6 if "llada" in str(folder) else 7, [[0.3, 2], [0.6, 4]], interval)
    outputs = []
    for cuda in (False, True):
        with make_engine(folder, depth_profile=profile) as engine:
            worker = on_cuda_path(engine) if cuda else engine._parts.worker
            got = []
            for turn in range(3):
                prompts, params = requests(turn)
                got += engine.generate(prompts, params, cache_mode=mode)
            outputs.append(got)
            assert worker.num_requests == 0
    for plain, fused in zip(*outputs, strict=True):
        assert fused.token_ids == plain.token_ids
        assert (fused.nfe, fused.canvas_tokens, fused.computed_token_layers, fused.cached_tokens, fused.depth) == (
            plain.nfe, plain.canvas_tokens, plain.computed_token_layers, plain.cached_tokens, plain.depth,
        )  # fmt: skip


def test_templates_and_scores(folder):
    fixed = tokens(24, seed=9)
    template = [-1 if i % 3 else token for i, token in enumerate(fixed)]
    outputs = []
    for cuda in (False, True):
        with make_engine(folder) as engine:
            if cuda:
                on_cuda_path(engine)
            params = SamplingParams(max_new_tokens=24, steps=12)
            filled = engine.generate(tokens(21), params, canvas=template)
            scores = engine.score(tokens(21), [tokens(3, seed=1), tokens(5, seed=2)])
            outputs.append((filled.token_ids, filled.nfe, scores))
    (plain, nfe, expected), (fused, fused_nfe, got) = outputs
    assert (fused, fused_nfe) == (plain, nfe)
    assert got.nfe == expected.nfe
    for fresh, old in zip(got.choices, expected.choices, strict=True):
        np.testing.assert_allclose(fresh.token_scores, old.token_scores, rtol=1e-4)
