"""Forwards as graphs, with stand-ins for captures: the same answers, and how many there may be."""

from dataclasses import fields
from functools import partial

import pytest
import torch

from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu import graphs as forward_graphs
from shoal.runtime.worker.gpu.graphs import ForwardGraphs

from ..tiny import make_engine, worker_of, write_profile
from .cuda_path import cuda_executor
from .test_cuda_worker import requests


class Graph:
    """What a capture leaves, by calling again: a replay writes where the captured run did."""

    replays = 0

    def __init__(self, run, result):
        self.run, self.result = run, result

    def replay(self):
        Graph.replays += 1
        result = self.run()
        if self.result is not None:
            self.result.copy_(result)


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "bicache"])
def test_graphs_of_steps_and_small_refreshes_give_the_same_answers(folder, tmp_path, monkeypatch, mode):
    profile = write_profile(tmp_path / "p.json", 6 if "llada" in str(folder) else 7, [[0.3, 2], [0.6, 4]], 5)
    held = []

    def captured(self, run):
        """Captured while the body's arrays hold no requests: running changes nothing."""
        state = self._runner.slots.state.clone()
        result = run()
        held.append(all(torch.equal(getattr(state, f.name), getattr(self._runner.slots.state, f.name))
                        for f in fields(state)))  # fmt: skip
        return Graph(run, result), result

    monkeypatch.setattr(ForwardGraphs, "_captured", captured)
    outputs = []
    for cuda in (False, True):
        executor = partial(cuda_executor, capture=True) if cuda else None
        with make_engine(folder, executor=executor, depth_profile=profile, max_steps_per_message=4) as engine:
            if cuda:
                graphs = worker_of(engine).executor.graphs
            got = []
            for turn in range(3):
                prompts, params = requests(turn)
                got += engine.generate(prompts, params, cache_mode=mode)
            outputs.append(got)
    assert [(out.token_ids, out.nfe) for out in outputs[0]] == [(out.token_ids, out.nfe) for out in outputs[1]]
    assert all(held)
    assert Graph.replays > len(held)
    refreshes = [bucket for bucket in graphs.bodies if bucket.width > bucket.block + 1]
    assert refreshes, graphs.bodies.keys()
    assert all(bucket.width % 32 == 0 for bucket in refreshes)


def test_what_is_captured_while_serving_has_a_limit_and_the_rest_runs_without_graphs(folder, monkeypatch, caplog):
    """Blocks of many lengths, as clients choose them; with room for three graphs, or for all."""
    params = [SamplingParams(max_new_tokens=n, block_length=b, steps=n) for n, b in ((5, 5), (9, 3), (7, 7), (12, 6))]

    def captured(self, run):
        result = run()
        return Graph(run, result), result

    monkeypatch.setattr(ForwardGraphs, "_captured", captured)
    monkeypatch.setattr(forward_graphs, "_MOST_PLAIN", 2)
    outputs = []
    for most in (3, 1000):
        monkeypatch.setattr(forward_graphs, "MOST_LATE_CAPTURES", most)
        with make_engine(folder, executor=partial(cuda_executor, capture=True)) as engine:
            graphs = worker_of(engine).executor.graphs
            graphs.warm_up(9, 8, False)
            before = len(graphs.bodies)
            outputs.append([engine.generate([1] * 40, each).token_ids for each in params for _ in range(2)])
            assert (len(graphs.bodies) - before == most) is (most == 3)
            assert bool(graphs.uncaptured) is (most == 3)
            assert len(graphs.uncaptured) <= 2
            assert all(body.graph is None for body in graphs.uncaptured.values())
    assert outputs[0] == outputs[1]
    assert len([record for record in caplog.records if "3 graphs were captured" in record.message]) == 1


def test_the_library_of_products_is_put_back(monkeypatch):
    chosen = ["before"]

    def choose(name=None):
        chosen.append(name or chosen[-1])
        return chosen[-1]

    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", choose)
    with forward_graphs.products_by("cublaslt"):
        assert chosen[-1] == "cublaslt"
    assert chosen[-1] == "before"
    capture = forward_graphs.products_by("cublaslt")(pytest.fail)
    with pytest.raises(pytest.fail.Exception, match="of a capture"):
        capture("of a capture")
    assert chosen[-1] == "before"
