"""The GPU's worker, run on the CPU with reference kernels: the answers of the plain worker, token for token."""

import itertools
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shoal.kernels.attention.reference import attention
from shoal.kernels.attention.tiling import choose_tiling
from shoal.kernels.layers.kv_write import rope_write_kv
from shoal.kernels.layers.swiglu import swiglu
from shoal.kernels.sampling.canvas_state import acceptance_bounds
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker import worker as worker_module
from shoal.runtime.worker.device import on_device
from shoal.runtime.worker.gpu import layers as fused_layers
from shoal.runtime.worker.gpu import sampler as sampler_module
from shoal.runtime.worker.gpu import slots as canvas_slots
from shoal.runtime.worker.gpu.runner import CudaRunner
from shoal.runtime.worker.gpu.warm_up import warm_up_sizes

from ..tiny import EOS, make_engine, tokens, worker_of, write_profile
from .cuda_path import cuda_executor

PARAMS = [
    {"steps": 9},
    {"steps": 24},
    {"threshold": 0.4},
    {"factor": 0.8},
    {"steps": 12, "strategy": "margin"},
    {"threshold": 0.3, "strategy": "entropy"},
    {"threshold": 0.5, "ignore_eos": True},
]
SHAPED: list[dict[str, Any]] = [
    {"steps": 9, "schedule": "linear", "eps": 0.1},
    {"steps": 12, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    {"threshold": 0.4, "logit_bias": {EOS: 3.0, 9: 2.5, 17: -100.0}, "min_tokens": 7},
    {"steps": 8, "eos_penalty": -4.0, "confidence_eos_eot_inf": True, "ignore_eos": True},
    {"steps": 6, "logits_eos_inf": True, "strategy": "margin"},
    {"threshold": 0.5, "top_p": 0.6, "ranking": "sampled"},
    {"steps": 7, "top_k": 5, "min_p": 0.1, "ranking": "sampled", "strategy": "entropy"},
    {"steps": 7, "top_k": 1, "temperature": 0.7, "ranking": "sampled"},
]
"""Options that draw nothing, so that answers are the same wherever they are computed."""


def requests(mode):
    shared = tokens(21, seed=1)
    prompts = [shared + tokens(3 + 2 * i, seed=10 + i) for i in range(5)] + [tokens(9, seed=50)]
    params = [SamplingParams(max_new_tokens=24, **PARAMS[(i + mode) % len(PARAMS)]) for i in range(len(prompts))]
    return prompts, params


@pytest.mark.parametrize(("mode", "interval"), [
    ("none", None), ("prefix", None), ("dual", None), ("lm", None), *(("bicache", n) for n in (None, 1, 5)),
])  # fmt: skip
def test_same_answers_as_the_plain_worker(folder, tmp_path, mode, interval):
    profile = write_profile(tmp_path / "p.json", 6 if "llada" in str(folder) else 7, [[0.3, 2], [0.6, 4]], interval)
    outputs = []
    for cuda in (False, True):
        with make_engine(folder, executor=cuda_executor if cuda else None, depth_profile=profile) as engine:
            worker = worker_of(engine)
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


@pytest.mark.parametrize("mode", ["none", "bicache"])
def test_options_of_sampling_give_the_answers_of_the_plain_worker(folder, monkeypatch, mode):
    """All in one batch, beside requests that have none, and with a head that takes few rows at a time."""
    monkeypatch.setattr(sampler_module, "MOST_HEAD_ROWS", 24)
    prompts = [tokens(15, seed=1) + tokens(3 + i, seed=10 + i) for i in range(len(SHAPED) + 2)]
    params = [SamplingParams(max_new_tokens=24, **options) for options in (*SHAPED, {"steps": 9}, {})]
    outputs = []
    for cuda in (False, True):
        executor = partial(cuda_executor, batch_sizes=(1, 4, 16)) if cuda else None
        with make_engine(folder, executor=executor, max_steps_per_message=4 if cuda else 1) as engine:
            outputs.append(engine.generate(prompts, params, cache_mode=mode))
            again = engine.generate(prompts[1], params[1], cache_mode=mode)  # its slot's counts begin anew
            assert again.token_ids == outputs[-1][1].token_ids
    for plain, fused in zip(*outputs, strict=True):
        assert (fused.token_ids, fused.nfe) == (plain.token_ids, plain.nfe)


DRAWN: list[dict[str, Any]] = [
    {"strategy": "origin", "steps": 9, "temperature": 0.8, "top_p": 0.9},
    {"alg_temp": 0.3, "steps": 8, "min_p": 0.02, "temperature": 1.2, "ranking": "sampled"},
    {"alg_temp": 0.3, "steps": 8, "strategy": "entropy", "schedule": "linear", "logit_bias": {9: 1.0}},
    {"temperature": 1.5, "top_k": 7, "threshold": 0.5, "frequency_penalty": 0.5},
    {"temperature": 1.0, "steps": 8},
]


def check_that_draws_depend_on_the_seed_alone(engine):
    prompts = [tokens(9 + 2 * i, seed=i) for i in range(len(DRAWN))]
    params = [SamplingParams(max_new_tokens=24, seed=i, ignore_eos=True, **each) for i, each in enumerate(DRAWN)]
    together = engine.generate(prompts, params, cache_mode="dual")
    alone = [engine.generate(p, s, cache_mode="dual") for p, s in zip(prompts, params, strict=True)]
    other = engine.generate(prompts[0], replace(params[0], seed=77), cache_mode="dual")
    assert [(out.token_ids, out.nfe) for out in together] == [(out.token_ids, out.nfe) for out in alone]
    assert other.token_ids != alone[0].token_ids
    assert all(len(out.token_ids) == 24 for out in together)


def test_draws_of_every_option_depend_on_the_seed_alone(folder):
    with make_engine(folder, executor=cuda_executor, max_steps_per_message=4) as engine:
        check_that_draws_depend_on_the_seed_alone(engine)


@pytest.mark.parametrize("length", [100, 144])
def test_blocks_as_long_as_published_ones(folder, length):
    """One block is the whole canvas; the engine's own blocks have 8 positions."""
    params = [
        SamplingParams(max_new_tokens=length, block_length=length, steps=12),
        SamplingParams(max_new_tokens=length, block_length=length, threshold=0.6, strategy="margin"),
        SamplingParams(max_new_tokens=24, steps=8),
    ]
    outputs = []
    for cuda in (False, True):
        # In two parts where all three are together.
        executor = partial(cuda_executor, max_block=150, most_rows=300) if cuda else None
        with make_engine(folder, executor=executor) as engine:
            outputs.append(engine.generate([tokens(9 + i, seed=i) for i in range(3)], params, cache_mode="dual"))
    assert [(out.token_ids, out.nfe) for out in outputs[1]] == [(out.token_ids, out.nfe) for out in outputs[0]]


@pytest.mark.parametrize("few", [40, 256])
def test_folded_norms_change_hidden_states_by_rounding_only(folder, monkeypatch, few):
    """In products of few rows, where norms are put off, and of many; the refresh has 56 rows and is whole."""
    monkeypatch.setattr(fused_layers, "_FEW_ROWS", few)
    states, put_off = [], set()

    def note(gate_up, norm=None):
        put_off.add((len(gate_up) > 40, norm is not None))
        return swiglu(gate_up, norm)

    for folded in (False, True):

        def build(config, decoder, *rest, folded=folded):
            with torch.inference_mode():
                scales = torch.rand(decoder.config.hidden_size, generator=torch.Generator().manual_seed(0)) + 0.5
                for weights in decoder.layers:
                    weights.attention_norm.mul_(scales)
                    weights.mlp_norm.mul_(scales.flip(0))
            if folded:
                decoder.fold_norms()
                monkeypatch.setattr(fused_layers, "swiglu", note)
            return cuda_executor(config, decoder, *rest)

        with make_engine(folder, executor=build) as engine:
            decoder, layers = worker_of(engine).executor.decoder, worker_of(engine).executor.runner.layers
            out: list[torch.Tensor] = []

            def keep(*arguments, run, out=out, **options):
                hidden = run(*arguments, **options)
                out.append(hidden.clone())
                return hidden

            for name in ("run", "run_last"):
                monkeypatch.setattr(layers, name, partial(keep, run=getattr(layers, name)))
            engine.generate(tokens(40), SamplingParams(max_new_tokens=16, block_length=8, steps=16), cache_mode="dual")
            states.append(out[: 2 * decoder.num_layers])  # a refresh and a block step; from then on tokens may differ
    assert put_off == ({(True, False), (False, True)} if few == 40 else {(True, True), (False, True)})
    for plain, folded in zip(*states, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
    assert len(states[0]) == 2 * decoder.num_layers


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_many_steps_a_message_and_steps_behind_a_refresh_change_nothing(folder, tmp_path, mode):
    profile = write_profile(tmp_path / "p.json", 6 if "llada" in str(folder) else 7, [[0.3, 2], [0.6, 4]], 5)
    outputs, messages = [], []
    for steps in (1, 4):
        executor = cuda_executor if steps > 1 else None
        with make_engine(folder, executor=executor, depth_profile=profile, max_steps_per_message=steps) as engine:
            worker = worker_of(engine)
            forward = worker.forward

            def record(message, forward=forward):
                messages.append(message)
                return forward(message)

            worker.forward = record
            got = []
            for turn in range(2):
                prompts, params = requests(turn)
                got += engine.generate(prompts, params, cache_mode=mode)
                got.append(engine.generate(prompts[0], params[1], cache_mode=mode))
            outputs.append(got)
            engine.check()
    for one, many in zip(*outputs, strict=True):
        assert many.token_ids == one.token_ids
        assert (many.nfe, many.computed_token_layers) == (one.nfe, one.computed_token_layers)
    assert any(message.then and len(message.items) > 1 for message in messages)
    assert any(not message.then and message.max_steps > 1 for message in messages)


def test_a_warm_up_runs_every_form_of_attention_and_changes_no_answer(folder, monkeypatch):
    prompts, params = requests(0)
    forms = set()

    def record(q, layer_pages, band, batch, *, num_splits=1, fresh_kv=None, **options):
        if q.shape[0]:
            forms.add((num_splits, fresh_kv is not None))
        return attention(q, layer_pages, band, batch, num_splits=num_splits, fresh_kv=fresh_kv, **options)

    outputs = []
    for warm in (False, True):
        executor = partial(cuda_executor, max_tokens=1024)
        with make_engine(folder, executor=executor, kv_cache_tokens=4096) as engine:
            worker = worker_of(engine)
            monkeypatch.setattr(
                worker.executor.runner, "splits", lambda _, rows: next((n for n in (8, 4, 2) if n * rows <= 1024), 1)
            )
            if warm:
                monkeypatch.setattr(fused_layers, "attention", record)
                worker.executor.warm_up(8, 4096)
                monkeypatch.setattr(fused_layers, "attention", attention)
                assert not worker.executor.runner.slots.state.nfe.any()
            outputs.append([out.token_ids for out in engine.generate(prompts, params)])
    assert outputs[0] == outputs[1]
    assert forms == {(number, fresh) for number in (1, 2, 4, 8) for fresh in (False, True)}


@pytest.mark.parametrize(("heads", "kv_heads", "most"), [(32, 32, 32), (28, 4, 32), (4, 4, 32), (32, 8, 100)])
def test_no_refresh_launches_attention_that_the_warm_up_has_not_compiled(heads, kv_heads, most):
    """Blocks of 32, by the kernel that runs on every GPU; of tokens that are scored at least two remain at the end."""
    config = SimpleNamespace(num_heads=heads, num_kv_heads=kv_heads, head_dim=128, num_experts=0)
    decoder = SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("cpu"))
    runner: Any = SimpleNamespace(decoder=decoder, kv=SimpleNamespace(page_size=64))
    runner.splits = partial(CudaRunner.splits, runner)

    def kernel(requests: int, rows: int, splits: int, whole: bool) -> tuple[Any, ...]:
        tiling = choose_tiling(rows, requests, heads // kv_heads, 64, 128, False, whole)
        return tiling, splits, whole, (requests > 1) + (requests > 64)

    def kernels(requests: int, rows: int, last: int, whole: bool) -> set[tuple[Any, ...]]:
        splits = CudaRunner.splits(runner, requests, rows)
        return {kernel(requests, rows, splits, whole), kernel(requests, requests * last, 1, False)}

    compiled: set[tuple[Any, ...]] = set()
    sizes = warm_up_sizes(runner, 32, most, 4096, 16384)
    for requests, rows, last, cached in sizes:
        assert last < rows
        assert requests * rows <= 16384
        compiled |= kernels(requests, requests * rows, last, not cached)
    for requests in range(1, most + 1):
        for rows, whole, last in itertools.product(range(33 * requests, 16384, 57), (False, True), (2, 9, 32)):
            assert kernels(requests, rows, last, whole) <= compiled, (requests, rows, last, whole)
    assert {1, 2, most} <= {size.requests for size in sizes}
    alone = {size for size in sizes if size.requests == 1}
    assert alone == {size for size in warm_up_sizes(runner, 32, most, 4096, 64) if size.requests == 1}


def test_everything_that_touches_the_device_runs_there(folder, monkeypatch):
    """Triton and captures of graphs take the thread's current device, wherever the tensors are."""
    entered: list[bool] = []

    @contextmanager
    def enter(device):
        entered.append(device == worker.executor.decoder.device)
        yield
        entered.pop()

    seen = set()

    def inside(name, call):
        def checked(*arguments, **options):
            seen.add((name, entered == [True]))
            return call(*arguments, **options)

        return checked

    with make_engine(folder, executor=cuda_executor, max_steps_per_message=4) as engine:
        worker = worker_of(engine)
        monkeypatch.setattr(worker_module, "on_device", enter)
        for name in ("refresh", "step", "embed"):
            monkeypatch.setattr(worker.executor.runner, name, inside(name, getattr(worker.executor.runner, name)))
        for name in ("take", "enter_blocks", "read"):
            monkeypatch.setattr(
                worker.executor.runner.slots, name, inside(name, getattr(worker.executor.runner.slots, name))
            )
        engine.generate(tokens(21), SamplingParams(max_new_tokens=16, steps=8))
    assert seen == {(name, True) for name in ("refresh", "step", "embed", "take", "enter_blocks", "read")}


def test_a_gpu_that_is_not_the_first_becomes_the_threads_own(monkeypatch):
    chosen = []

    def device(which):
        chosen.append(which)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    for name in ("cpu", "cuda:1"):
        with on_device(torch.device(name)):
            pass
    assert chosen == [torch.device("cuda:1")]


def test_a_canvas_that_finds_no_memory_is_tried_again_once_and_loses_no_slot(folder, monkeypatch):
    with make_engine(folder, executor=cuda_executor) as engine:
        slots = worker_of(engine).executor.runner.slots
        free, emptied = slots.num_free, []
        failures = [torch.OutOfMemoryError("full")]

        def fail_once(*arguments):
            if failures:
                raise failures.pop()
            return acceptance_bounds(*arguments)

        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(slots.num_free))
        monkeypatch.setattr(canvas_slots, "acceptance_bounds", fail_once)
        output = engine.generate(tokens(21), SamplingParams(max_new_tokens=8, steps=2))
        assert output.finish_reason in ("stop", "length")
        assert emptied == [free]
        assert slots.num_free == free


def test_what_attention_held_is_free_when_the_mlp_runs(folder, monkeypatch):
    projected, dead = [], []

    def note(q, *arguments, **options):
        projected.append(weakref.ref(q))
        return rope_write_kv(q, *arguments, **options)

    def look(gate_up):
        dead.append(projected[-1]() is None)
        return swiglu(gate_up)

    monkeypatch.setattr(fused_layers, "rope_write_kv", note)
    monkeypatch.setattr(fused_layers, "swiglu", look)
    with make_engine(folder, executor=cuda_executor) as engine:
        engine.generate(tokens(21), SamplingParams(max_new_tokens=8, steps=2))
    assert dead
    assert all(dead)


def test_templates_and_scores(folder):
    fixed = tokens(24, seed=9)
    template = [-1 if i % 3 else token for i, token in enumerate(fixed)]
    outputs = []
    for cuda in (False, True):
        with make_engine(folder, executor=cuda_executor if cuda else None) as engine:
            params = SamplingParams(max_new_tokens=24, steps=12)
            filled = engine.generate(tokens(21), params, canvas=template)
            scores = engine.score(tokens(21), [tokens(3, seed=1), tokens(5, seed=2)])
            outputs.append((filled.token_ids, filled.nfe, scores))
    (plain, nfe, expected), (fused, fused_nfe, got) = outputs
    assert (fused, fused_nfe) == (plain, nfe)
    assert got.nfe == expected.nfe
    for fresh, old in zip(got.choices, expected.choices, strict=True):
        np.testing.assert_allclose(fresh.token_scores, old.token_scores, rtol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (28, 4)])
def test_splits_leave_at_most_one_program_per_sm(heads, kv_heads):
    config = SimpleNamespace(num_heads=heads, num_kv_heads=kv_heads)
    runner: Any = SimpleNamespace(decoder=SimpleNamespace(config=config, device=torch.device("cpu")))
    for requests, rows_each in itertools.product((1, 2, 4, 8, 32), (32, 33, 96, 320, 2356)):
        splits = CudaRunner.splits(runner, requests, requests * rows_each)
        rows = rows_each * heads // kv_heads
        programs = requests * kv_heads * -(-rows // (64 if rows <= 512 else 128))
        assert splits in (1, 2, 4, 8)
        assert splits == 1 or splits * programs <= 132
        assert splits == 8 or 2 * splits * programs > 132
