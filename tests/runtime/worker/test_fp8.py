"""fp8 emulated on a CPU: what it does to logits and answers of the bundled model, and where it is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal import Engine
from shoal.runtime.config import EngineConfig
from shoal.runtime.errors import ConfigError
from shoal.runtime.model.decoder import Decoder
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.worker.gpu import build as build_cuda
from shoal.runtime.worker.gpu import fp8_linear
from shoal.runtime.worker.gpu.executor import CudaExecutor
from shoal.runtime.worker.gpu.fp8_layers import Fp8Layers
from shoal.runtime.worker.gpu.fp8_linear import quantize_layer
from shoal.runtime.worker.pools import KVPool
from shoal.shop.task import KINDS, chat, make_list, make_question

from ..tiny import engine_with, make_engine, tokens, worker_of
from .cuda_path import cuda_executor


def fp8_executor(config: EngineConfig, decoder: Decoder, *rest: Any, **options: Any) -> CudaExecutor:
    """A GPU's, of quantised weights."""
    for weights in decoder.layers:
        quantize_layer(weights)
    return cuda_executor(config, decoder, *rest, **options)


def fp8_kv_executor(config: EngineConfig, decoder: Decoder, kv: KVPool, *rest: Any, **options: Any) -> CudaExecutor:
    """A GPU's, with keys and values in fp8."""
    kv.data = torch.zeros_like(kv.data, dtype=torch.float8_e4m3fn)
    return cuda_executor(config, decoder, kv, *rest, **options)


def logits_of(engine: Engine, prompt: Any, quantised: bool) -> torch.Tensor:
    """Of a refresh of prompt and masks."""
    runner, found = worker_of(engine).executor.runner, []
    assert isinstance(runner.layers, Fp8Layers) == quantised
    head = runner.layers.logits

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        found.append(head(hidden))
        return found[-1]

    runner.layers.logits = keep
    engine.generate(prompt, SamplingParams(max_new_tokens=32, steps=1), cache_mode="none")
    return found[0].float()


@pytest.mark.parametrize("most", [0, 10_000])
def test_logits_of_the_bundled_model(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With final products, as in refreshes, and with products that others scale, as in block steps."""
    monkeypatch.setattr(fp8_linear, "MOST_UNSCALED_ROWS", most)
    rng = random.Random(3)
    prices = make_list(rng, 40, held_out=True)
    question = chat(prices, [], make_question(rng, prices, KINDS[0]).text)
    found = []
    config = EngineConfig(model_path="shop", device="cpu", kv_cache_tokens=2048)
    for quantised in (False, True):
        executor = partial(fp8_executor if quantised else cuda_executor, max_tokens=512)
        with engine_with(config, executor) as engine:
            found.append(logits_of(engine, question, quantised))
    plain, fp8 = found
    error = float((fp8 - plain).norm() / plain.norm())
    same = float((fp8.argmax(-1) == plain.argmax(-1)).float().mean())
    print(f"relative error of logits {error:.4f}, same token {same}")
    assert 0.001 < error < 0.06
    assert same >= 0.9


@pytest.mark.parametrize("what", ["products", "keys and values"])
def test_answers_of_the_bundled_model(what: str) -> None:
    rng = random.Random(5)
    prices = [make_list(rng, size, held_out=True) for size in (12, 40)]
    questions = [make_question(rng, prices[i % 2], KINDS[i % len(KINDS)]) for i in range(24)]
    chats = [chat(prices[i % 2], [], question.text) for i, question in enumerate(questions)]
    config = EngineConfig(model_path="shop", device="cpu", kv_cache_tokens=1 << 14, max_running_requests=16)
    executor = fp8_executor if what == "products" else fp8_kv_executor
    with engine_with(config, partial(executor, batch_sizes=(1, 4, 16), max_tokens=512)) as engine:
        for mode in ("none", "bicache"):
            outputs = engine.generate(chats, SamplingParams(max_new_tokens=32), cache_mode=mode)
            right = sum(out.text.strip() == q.answer for out, q in zip(outputs, questions, strict=True))
            assert right >= len(questions) - 1, mode


def test_steps_behind_joins_and_captures_are_those_of_refreshes(folder: Any) -> None:
    """The rows that a layer leaves for the next one are used by that layer on those hidden states alone."""
    answers = []
    for ahead in (True, False):
        with make_engine(folder, executor=fp8_executor) as engine:
            layers = worker_of(engine).executor.runner.layers
            project = layers._project

            def alone(*arguments: Any, layers: Any = layers, project: Any = project) -> Any:
                layers._ahead = None
                return project(*arguments)

            if not ahead:
                layers._project = alone
            prompts = [tokens(21, seed=1) + tokens(3 + i, seed=10 + i) for i in range(4)]
            params = SamplingParams(max_new_tokens=24, steps=9)
            for _ in range(2):
                answers.append([out.token_ids for out in engine.generate(prompts, params, cache_mode="bicache")])
    assert answers[:2] == answers[2:]


@pytest.mark.parametrize(("changes", "capability", "dtype", "words"), [
    ({}, None, torch.bfloat16, "the device is cpu"), ({}, (8, 6), torch.bfloat16, "compute capability 8.6"),
    ({}, (9, 0), torch.float32, "needs bfloat16"), ({"num_experts": 4}, (9, 0), torch.bfloat16, "has experts"),
    ({"hidden_size": 40}, (9, 0), torch.bfloat16, "multiples of 16"),
])  # fmt: skip
def test_where_it_is_refused(
    changes: dict[str, int], capability: Any, dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    sizes = {"hidden_size": 32, "q_size": 32, "kv_size": 32, "intermediate_size": 48, "num_experts": 0}
    model: Any = SimpleNamespace(architecture="a", **{**sizes, **changes})
    device = torch.device("cpu" if capability is None else "cuda:0")
    config = EngineConfig(quantization="fp8")
    with pytest.raises(ConfigError, match=words) as caught:
        build_cuda.check_fp8(config, model, device, dtype)
    assert caught.value.field == "quantization"
    build_cuda.check_fp8(replace(config, quantization=None), model, device, dtype)
    config = EngineConfig(kv_cache_dtype="fp8_e4m3")
    if changes:  # keys and values of any model
        build_cuda.check_fp8(config, model, device, dtype)
    else:
        with pytest.raises(ConfigError, match=f"kv_cache_dtype is fp8_e4m3, but .*{words}"):
            build_cuda.check_fp8(config, model, device, dtype)


def test_an_engine_on_a_cpu_refuses_it(llada: Any) -> None:
    with pytest.raises(ConfigError, match="quantization is fp8, but the device is cpu"):
        make_engine(llada, quantization="fp8")
    with pytest.raises(ConfigError, match="kv_cache_dtype is fp8_e4m3, but the device is cpu"):
        make_engine(llada, kv_cache_dtype="fp8_e4m3")
    with pytest.raises(ConfigError, match="quantization"):
        EngineConfig(quantization="int4")  # type: ignore[arg-type]
