"""What a caller can get wrong: always a shoal error that names field, value and limit, and the engine goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import (
    ConfigError,
    InvalidRequestError,
    ModelLoadError,
    PoolTooSmallError,
    ShoalError,
)
from shoal.runtime.request.parameter_checks import CHECKS
from shoal.runtime.request.sampling_params import DEFAULTS, SamplingParams
from shoal.runtime.text.conversation import Conversation
from shoal.runtime.worker.device import choose_device

from ..tiny import TEMPLATE, VOCABULARY, assert_nothing_lost, make_engine, tokens, worker_of

SMALL = SamplingParams(max_new_tokens=8, steps=1, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(folders) -> Iterator[Engine]:
    with make_engine(folders["llada"], kv_cache_tokens=96) as made:
        yield made
        assert_nothing_lost(made)


def test_the_error_is_one_of_shoals():
    for kind in (ConfigError, InvalidRequestError, ModelLoadError, PoolTooSmallError):
        assert issubclass(kind, ShoalError)
    assert issubclass(InvalidRequestError, ValueError)


# Prompts

LONE_SURROGATE = "ab\ud800"
PROMPTS: list[tuple[Any, Any]] = [
    ("", None), ([[]], None), ([""], None), (3.5, 3.5), (None, None), (True, None), (b"abc", b"abc"),
    ({"role": "user", "content": "a"}, None), ([3.5], 3.5), ([None], None), ([[5, "a"]], [5, "a"]),
    ([5, "a"], [5, "a"]), ([5, True], None), ([[5], [5, -1]], -1), ([VOCABULARY], VOCABULARY), ([10**30], 10**30),
    (np.array([5.0, 6.0]), None), (LONE_SURROGATE, LONE_SURROGATE), ([{"role": "user"}, 5], None),
    ([{"role": "user", "content": "a"}, {"content": 3, "role": None}, "x"], None), (iter([5, 6]), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user"}, "content is missing; it must be text"),
        ({"role": "user", "text": "a"}, "content is missing; it must be text"),
        ({"role": "user", "content": None}, "content is None; it must be text"),
        ({"role": "user", "content": ["a"]}, "content\\[0\\] is 'a'; it must be a part"),
        ({"content": "a"}, "role is missing; it must be text"),
    ],
)
def test_messages(message, words):
    with Engine("shop", kv_cache_tokens=256) as shop:
        with pytest.raises(InvalidRequestError, match=f"^prompts\\[0\\]\\[1\\]\\.{words}") as caught:
            shop.generate([{"role": "system", "content": "a"}, message], SMALL)
        assert caught.value.field == "prompts"


@pytest.mark.parametrize(("prompt", "value"), PROMPTS, ids=lambda v: ascii(v)[:24])
def test_prompts(engine, prompt, value):
    with pytest.raises(InvalidRequestError) as caught:
        engine.generate(prompt, SMALL)
    assert caught.value.field == "prompts"
    assert "prompts" in str(caught.value)
    if value is not None:
        assert caught.value.value == value
    assert engine.generate([5, 6], SMALL).finish_reason == "length"


def test_ids_may_be_any_kind_of_integers(engine):
    expected = engine.generate([5, 6, 7], SMALL, cache_mode="dual").token_ids
    for prompt in ((5, 6, 7), np.array([5, 6, 7]), [np.int32(5), 6, 7], range(5, 8)):
        assert engine.generate(prompt, SMALL, cache_mode="dual").token_ids == expected
    several = engine.generate(np.array([[5, 6, 7], [5, 6, 7]]), SMALL, cache_mode="dual")
    assert [output.token_ids for output in several] == [expected, expected]
    assert engine.generate([], SMALL) == []


def test_text_ids_and_messages_mean_the_same(engine):
    ids = engine.tokenizer.encode("ab;cd:")
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}]
    outputs = engine.generate(["ab;cd:", ids, messages], SMALL, cache_mode="dual")
    assert len({output.token_ids for output in outputs}) == 1
    for chat in (messages, Conversation(messages=messages), Conversation(messages=messages, template=TEMPLATE)):
        assert engine.generate(chat, SMALL, cache_mode="dual").token_ids == outputs[0].token_ids


@pytest.mark.parametrize(
    ("prompt", "size", "field", "value", "advice"),
    [(tokens(90), 80, "max_new_tokens", 170, "send max_new_tokens of at most 6"),
     (tokens(160), 8, "prompts", 168, "shorten prompts[0] by 72 tokens, to at most 88"),
     ([5], 10**15, "max_new_tokens", 10**15 + 1, "send max_new_tokens of at most 95")],
)  # fmt: skip
def test_more_than_the_models_maximum(engine, prompt, size, field, value, advice):
    """What is advised fits the pool of 96 too."""
    with pytest.raises(InvalidRequestError, match="maximum of 160") as caught:
        engine.generate(prompt, SamplingParams(max_new_tokens=size))
    assert (caught.value.field, caught.value.value, caught.value.limit) == (field, value, 96)
    assert str(caught.value).endswith(advice)


def test_more_than_the_pool(engine):
    words = r"prompts\[1\] has 90 tokens and max_new_tokens is 16: 106, over the 96 that the KV pool holds"
    with pytest.raises(PoolTooSmallError, match=words) as caught:
        engine.generate([[5], tokens(90)], SamplingParams(max_new_tokens=16))
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("max_new_tokens", 106, 96)
    assert engine.generate(tokens(80), SamplingParams(max_new_tokens=16, ignore_eos=True)).completion_tokens == 16


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"cache_mode": "fast"}, "cache_mode"), ({"cache_mode": ""}, "cache_mode"), ({"cache_mode": 3}, "cache_mode"),
    ({"cache_salt": 3}, "cache_salt"), ({"cache_salt": None}, "cache_salt"),
    ({"sampling_params": {"max_new_tokens": 3}}, "sampling_params"), ({"sampling_params": 3}, "sampling_params"),
    ({"sampling_params": [SMALL, SMALL]}, "sampling_params"), ({"sampling_params": []}, "sampling_params"),
    ({"sampling_params": ["greedy"]}, "sampling_params"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "field"), OTHERS, ids=lambda v: ascii(v)[:40])
def test_other_arguments(engine, arguments, field):
    with pytest.raises(InvalidRequestError, match=field) as caught:
        engine.generate([5, 6], **arguments)
    assert caught.value.field == field
    with pytest.raises(InvalidRequestError):
        next(engine.stream([5, 6], **arguments))
    assert engine.generate([5, 6], SMALL).finish_reason == "length"


def test_one_bad_prompt_of_a_list_and_none_runs(engine):
    before = engine.core.parts.scheduler.num_running, worker_of(engine).num_requests
    with pytest.raises(InvalidRequestError, match=r"prompts\[1\]"):
        engine.generate([[5], [], [6]], SMALL)
    assert (engine.core.parts.scheduler.num_running, worker_of(engine).num_requests) == before == (0, 0)


async def test_the_same_errors_from_the_asynchronous_calls(engine):
    with pytest.raises(InvalidRequestError):
        await engine.async_generate([[5], []], SMALL)
    with pytest.raises(PoolTooSmallError):
        await engine.async_generate(tokens(90), SamplingParams(max_new_tokens=16))
    with pytest.raises(InvalidRequestError):
        async for _ in engine.async_stream("", SMALL):
            pass


def test_without_a_tokenizer_text_and_stop_strings_are_refused(llada, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(llada / "config.json", folder)
    with make_engine(folder, load_format="dummy") as engine:
        assert engine.tokenizer is None
        for prompt in ("abc", [{"role": "user", "content": "a"}]):
            with pytest.raises(InvalidRequestError, match="tokenizer") as caught:
                engine.generate(prompt, SMALL)
            assert caught.value.field == "prompts"
        with pytest.raises(InvalidRequestError) as caught:
            engine.generate([5], SamplingParams(max_new_tokens=8, stop="x"))
        assert caught.value.field == "stop"
        output = engine.generate([5], SMALL)
        assert (output.text, output.completion_tokens) == ("", 8)
        assert_nothing_lost(engine)


# SamplingParams

PARAMS: list[tuple[dict[str, Any], str]] = [
    *(({"max_new_tokens": v}, "max_new_tokens") for v in (-1, 3.5, "8", None, True)),
    *(({"block_length": v, "max_new_tokens": 8}, "block_length") for v in (0, -8, 2.0, False)),
    *(({"steps": v}, "steps") for v in (0, -1, 1.5, "4")),
    *(({"threshold": v}, "threshold") for v in (0, 0.0, -0.5, 1.01, float("nan"), "0.9", True)),
    *(({"factor": v}, "factor") for v in (0, -1, float("inf"), "1")),
    *(({"temperature": v}, "temperature") for v in (-0.1, float("nan"), float("inf"), None)),
    *(({"strategy": v}, "strategy") for v in ("confident", "", None, 3)),
    *(({"seed": v}, "seed") for v in (-1, 2**63, 1.5)),
    *(({"stop": v}, "stop") for v in ("", ["a", ""], [3], 3, ["a"] * 17)),
    *(({"stop_token_ids": v}, "stop_token_ids") for v in (3, [-1], ["a"], "a", [1.5])),
    *(({"ignore_eos": v}, "ignore_eos") for v in (1, None, "no")),
    ({"steps": 4, "threshold": 0.9}, "threshold"),
    ({"steps": 4, "factor": 1.0}, "factor"),
    ({"threshold": 0.9, "factor": 1.0}, "factor"),
]


@pytest.mark.parametrize(("options", "field"), PARAMS, ids=lambda v: ascii(v)[:50])
def test_sampling_params(options, field):
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert caught.value.limit is not None


def test_every_sampling_parameter_has_a_check_that_takes_its_default():
    """Values at their defaults are not checked again, so these must be right."""
    assert set(CHECKS) == set(DEFAULTS)
    given = {name: default for name, default in DEFAULTS.items() if default is not None}
    assert {name: CHECKS[name](name, default) for name, default in given.items()} == given


def test_sampling_params_that_are_right():
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[3], max_new_tokens=20)
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (3,))
    assert SamplingParams(stop="ab").stop == ("ab",)
    nothing: Any = None
    assert SamplingParams(stop=nothing, stop_token_ids=nothing).stop == ()
    assert params.blocks(8) == ((0, 8), (8, 16), (16, 20))
    assert SamplingParams(max_new_tokens=0).blocks(8) == ()
    assert SamplingParams(max_new_tokens=16, block_length=16).blocks(8) == ((0, 16),)
    SamplingParams(threshold=1.0)
    SamplingParams(max_new_tokens=0, block_length=8, steps=3)


# EngineConfig

CONFIG: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, name)
        for name in ("page_size", "layers_per_band", "kv_cache_bytes", "kv_cache_tokens", "max_running_requests",
                     "max_refresh_tokens", "max_steps_per_message", "target_first_text_ms", "block_length")
        for value in (0, -1, 1.5, "4", True)
    ),
    *(({name: value}, name) for name in ("refresh_interval", "depth", "seed", "reuse_margin") for value in (-1, 0.5)),
    ({"cache_mode": "fast"}, "cache_mode"), ({"cache_mode": None}, "cache_mode"), ({"dtype": "float64"}, "dtype"),
    ({"load_format": "pickle"}, "load_format"), ({"schedule_policy": "random"}, "schedule_policy"),
    ({"eviction_policy": "fifo"}, "eviction_policy"), ({"pages": 3}, "pages"), ({"device": 3}, "device"),
    *(({"device": name}, "device") for name in (None, "tpu", "mps", "meta", "cuda:", "cuda:x", "cuda:-1", "")),
    ({"depth_profile": 3}, "depth_profile"), ({"model_path": None}, "model_path"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "field"), CONFIG, ids=lambda v: ascii(v)[:40])
def test_engine_config(options, field):
    with pytest.raises(ConfigError) as caught:
        EngineConfig.build(**options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert caught.value.limit is not None


ENGINE: list[tuple[dict[str, Any], str]] = [
    ({"depth": 3}, "depth"), ({"depth": 8}, "depth"), ({"layers_per_band": 7, "depth": 0}, "layers_per_band"),
    ({"kv_cache_tokens": None, "kv_cache_bytes": 10}, "kv_cache_bytes"),
    ({"kv_cache_tokens": None, "kv_cache_bytes": 9000}, "kv_cache_bytes"),
    ({"kv_cache_tokens": 1}, "kv_cache_tokens"), ({"kv_cache_tokens": 8}, "kv_cache_tokens"),
    ({"kv_cache_tokens": 10**14}, "kv_cache_tokens"),
    ({"kv_cache_tokens": None, "kv_cache_bytes": 10**17}, "kv_cache_bytes"),
    ({"unknown": 1}, "unknown"), ({"config": EngineConfig()}, "config"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "field"), ENGINE, ids=lambda v: ascii(v)[:40])
def test_engine_options_that_the_model_or_the_machine_can_not_do(llada, options, field):
    with pytest.raises(ConfigError) as caught:
        make_engine(llada, **options)
    assert caught.value.field == field


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without")
def test_cuda_where_there_is_none(llada):
    with pytest.raises(ConfigError) as caught:
        make_engine(llada, device="cuda")
    assert caught.value.field == "device"


def test_a_gpu_that_is_not_there(llada, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device is 'cuda:2'; there are cuda:0 to cuda:1"):
        make_engine(llada, device="cuda:2")
    assert [choose_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]


def test_config_must_be_an_engine_config(llada):
    with pytest.raises(ConfigError) as caught:
        Engine(config={"model_path": str(llada)})  # type: ignore[arg-type]
    assert caught.value.field == "config"
    with Engine(config=EngineConfig(model_path=str(llada), kv_cache_tokens=64)) as engine:
        assert engine.generate([5], SMALL).finish_reason == "length"


@pytest.mark.parametrize(
    ("make", "name", "near", "kind"),
    [
        (SamplingParams, "treshold", "threshold", InvalidRequestError),
        (SamplingParams, "max_tokens", "max_new_tokens", InvalidRequestError),
        (EngineConfig, "cache_mod", "cache_mode", ConfigError),
    ],
)
def test_unknown_options_in_python_are_refused_with_the_nearest_name(make, name, near, kind):
    with pytest.raises(kind, match=rf"{name}.*did you mean {near}\?") as caught:
        make(**{name: 1})
    assert caught.value.field == name
