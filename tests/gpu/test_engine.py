"""Engines on a GPU against engines on the CPU: the same weights, the same requests."""

import random

import pytest
import torch

from shoal import Engine
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.cpu.executor import CpuExecutor
from shoal.shop.task import KINDS, chat, make_list, make_question

from ..runtime import tiny
from ..runtime.tiny import make_engine, tokens, worker_of, write_model, write_profile
from ..runtime.worker.test_cuda_worker import requests

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(scope="module", params=["llada", "dream"])
def folder(request, tmp_path_factory):
    """Heads of 16, the least that the kernels take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.DREAM, "hidden_size", 64)
        return write_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("graphs", [True, False])
def test_the_seed_decides_the_draws_whatever_else_runs(folder, graphs):
    prompts = [tokens(5 + 3 * i, seed=i) for i in range(5)]
    params = [SamplingParams(max_new_tokens=16, steps=8, temperature=1.5, seed=i) for i in range(5)]
    options = {"device": "cuda", "dtype": "float32", "disable_cuda_graph": not graphs, "max_running_requests": 6}
    with make_engine(folder, **options) as engine:
        together = engine.generate(prompts, params, cache_mode="dual")
        alone = [engine.generate(p, s, cache_mode="dual") for p, s in zip(prompts, params, strict=True)]
        other = engine.generate(prompts[0], SamplingParams(max_new_tokens=16, steps=8, temperature=1.5, seed=99))
    assert [out.token_ids for out in together] == [out.token_ids for out in alone]
    assert other.token_ids != alone[0].token_ids


@pytest.mark.parametrize("graphs", [True, False])
def test_company_changes_nothing_in_fp32(folder, graphs):
    prompts = [tokens(5 + 3 * i, seed=i) for i in range(7)]
    params = SamplingParams(max_new_tokens=24, steps=12)
    options = {"device": "cuda", "dtype": "float32", "disable_cuda_graph": not graphs, "max_running_requests": 8}
    with make_engine(folder, **options) as engine:
        together = engine.generate(prompts, params, cache_mode="dual")
        alone = [engine.generate(prompt, params, cache_mode="dual") for prompt in prompts]
    assert [out.token_ids for out in together] == [out.token_ids for out in alone]


def test_memory_is_sized_from_what_is_free(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(17e9), int(20e9)))
    with Engine(
        str(folder), device="cuda", mem_fraction_static=0.45, depth=4, layers_per_band=2, max_running_requests=2
    ) as engine:
        runner = worker_of(engine).executor.runner
        pools = sum(x.numel() * x.itemsize for x in (runner.kv.data, runner.boundary.data))
    assert 5.5e9 < pools <= 6e9


def test_running_out_of_memory_fails_the_requests_and_not_the_engine(folder, monkeypatch):
    with make_engine(folder, device="cuda", max_running_requests=2) as engine:
        runner = worker_of(engine).executor.runner
        real = runner.refresh

        def refresh(plan):
            if plan.layouts[0].num_rows > 60:
                return torch.empty(1 << 50, device="cuda")
            return real(plan)

        monkeypatch.setattr(runner, "refresh", refresh)
        with pytest.raises(Exception, match="out of GPU memory"):
            engine.generate(tokens(50), SamplingParams(max_new_tokens=24))
        assert engine.generate(tokens(10), SamplingParams(max_new_tokens=8)).finish_reason in ("length", "stop")
        engine.check()


def test_shop_answers_as_on_the_cpu():
    rng = random.Random(5)
    prices = [make_list(rng, size, held_out=True) for size in (12, 40)]
    questions = [make_question(rng, prices[i % 2], KINDS[i % len(KINDS)]) for i in range(64)]
    chats = [chat(prices[i % 2], [], question.text) for i, question in enumerate(questions)]
    right = {}
    for device in ("cpu", "cuda"):
        with Engine("shop", device=device, max_running_requests=16, kv_cache_tokens=1 << 15) as engine:
            for mode in ("none", "prefix", "dual", "bicache", "lm"):
                outputs = engine.generate(chats, SamplingParams(max_new_tokens=32), cache_mode=mode)
                pairs = zip(outputs, questions, strict=True)
                right[device, mode] = sum(out.text.strip() == q.answer for out, q in pairs)
                engine.flush_cache()
    for mode in ("none", "prefix", "dual", "bicache"):
        assert right["cuda", mode] >= right["cpu", mode] - 1, right
    assert right["cuda", "lm"] < right["cuda", "none"], right


@pytest.mark.parametrize(("interval", "graphs", "steps"), [(5, True, 8), (None, True, 1), (5, False, 1)])
@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_fp32_answers_are_those_of_the_cpu(folder, tmp_path, mode, interval, graphs, steps):
    profile = write_profile(tmp_path / "p.json", 6 if "llada" in str(folder) else 7, [[0.3, 2], [0.6, 4]], interval)
    outputs = []
    for device in ("cpu", "cuda"):
        with make_engine(
            folder, depth_profile=profile, device=device, dtype="float32", disable_cuda_graph=not graphs,
            max_running_requests=6, max_steps_per_message=steps if device == "cuda" else 1,
        ) as engine:  # fmt: skip
            assert isinstance(worker_of(engine).executor, CpuExecutor) == (device == "cpu")
            got = []
            for turn in range(2):
                prompts, params = requests(turn)
                got += engine.generate(prompts, params, cache_mode=mode)
            outputs.append(got)
    same = sum(a.token_ids == b.token_ids and a.nfe == b.nfe for a, b in zip(*outputs, strict=True))
    assert same >= len(outputs[0]) - 1  # sums differ in the last bits: a near tie may fall the other way
