"""What the floors of phases count, and what the steps commit that are timed."""

from functools import partial

import pytest

from benchmarks import gpu_phases
from benchmarks.device_rates import Rates
from benchmarks.gpu_phases import BLOCK, Batch, experts_during, floor

from ..runtime.tiny import make_engine, worker_of, write_model
from ..runtime.worker.cuda_path import cuda_executor


def test_the_last_layer_counts_what_it_computes(tmp_path):
    """Behind the projections of q, k and v the last layer of a refresh has the rows alone that are read."""
    folder = write_model(tmp_path, "llada")
    with make_engine(folder) as engine:
        model = engine.model_config
    rates = Rates(1.0, 1.0)
    requests, queries, keys, rows = 3, 20, 30, 4
    _, whole = floor(model, rates, requests, queries, keys, 0, queries)
    _, some = floor(model, rates, requests, queries, keys, 0, rows)
    width, spared = model.hidden_size, requests * (queries - rows)
    mlp_and_output = 2 * width * (model.q_size + 3 * model.intermediate_size)
    assert whole - some == spared * (mlp_and_output + 4 * keys * model.q_size)
    per_layer = 2 * width * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)
    assert whole == model.num_layers * requests * queries * (per_layer + 4 * keys * model.q_size)


def test_pages_that_requests_share_are_read_once(tmp_path):
    with make_engine(write_model(tmp_path, "llada")) as engine:
        model = engine.model_config
    rates = Rates(1.0, 1.0)
    apart, flops = floor(model, rates, 3, 4, 30, 0, 4)
    shared, same_flops = floor(model, rates, 3, 4, 30, 0, 4, shared_token_layers=20 * 2)
    assert flops == same_flops
    assert apart - shared == 2 * (3 - 1) * 20 * 2 * 2 * model.kv_size  # two bytes of a key and of a value
    one, _ = floor(model, rates, 1, 4, 30, 0, 4)
    assert one == floor(model, rates, 1, 4, 30, 0, 4, shared_token_layers=20 * 2)[0]


def test_every_step_that_is_timed_has_masks_left(tmp_path):
    """On the path of a GPU: as many steps as `measure` makes commit a token each."""
    executor = partial(cuda_executor, max_tokens=1024)
    with make_engine(write_model(tmp_path, "llada"), executor=executor, kv_cache_tokens=4096, page_size=16) as engine:
        batch, worker = Batch(engine, 2, 40), worker_of(engine)
        items = batch.block()
        for steps in (1, 25):
            blocks = worker.executor.graphs.run(items, worker.enter(items), steps)
            for item, block in zip(items, blocks, strict=True):
                worker.canvas(item.rid).take(block[:BLOCK], steps)
        assert ((blocks[:, :BLOCK] >= 0).sum(1) == 26).all()
        batch.close()


def test_experts_are_counted_in_each_step_that_is_timed(tmp_path, monkeypatch):
    """The steps fill masks, so a count before them would miss the experts of what they filled in."""
    executor = partial(cuda_executor, max_tokens=1024)
    with make_engine(write_model(tmp_path, "llada"), executor=executor, kv_cache_tokens=4096, page_size=16) as engine:
        batch, worker = Batch(engine, 1, 40), worker_of(engine)
        items, state = batch.block(), worker.executor.runner.slots.state

        def filled(*_):
            slot = worker.canvas(items[0].rid).slot
            return int((state.masked[slot, 40 : 40 + BLOCK] == 0).sum())

        monkeypatch.setattr(gpu_phases, "experts_of", filled)
        canvases = worker.enter(items)
        found = experts_during(batch, items, lambda: worker.executor.graphs.run(items, canvases, 1), 4, 2)
        assert found == pytest.approx(3.5)
        batch.close()
