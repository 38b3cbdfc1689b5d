"""Values at the ends of what a field takes, one by one and mixed: an answer, or an error that names the field; no
failure of the model and no hang."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import EOS, VOCABULARY, assert_nothing_lost, make_engine, tokens
from ..worker.cuda_path import cuda_executor

HUGE = (10**9, 2**63 - 1, 2**63, 10**400, 10**5000)
TINY = (5e-324, 1e-60, 1e-40, 1e-9)
EXTREMES: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (0, 1, 159, 160, *HUGE),
    "block_length": (1, 159, *HUGE),
    "steps": (1, *HUGE),
    "threshold": (*TINY, 1.0),
    "factor": (*TINY, 1e308, 10**400),
    "canvas_window": (0, 1, *HUGE),
    "refresh_schedule": ("full", "settled"),
    "full_refresh_every": (1, *HUGE),
    "entropy_bound": (0, *TINY, 1e308, 10**400),
    "threshold_decay": (*TINY, 1),
    "kl_threshold": (*TINY, 1e308, 10**400),
    "kl_history": (1, *HUGE),
    "refresh_entropy": (0, *TINY, 1e308, 10**400),
    "strategy": ("entropy", "margin", "random", "origin"),
    "schedule": ("linear",),
    "eps": (*TINY, 1.0),
    "alg_temp": (*TINY, 100.0, 1e308, 10**400),
    "temperature": (*TINY, 100.0, 1e308, 10**400),
    "top_k": (-1, 1, VOCABULARY, *HUGE),
    "top_p": (0, *TINY, 1),
    "min_p": (*TINY, 1),
    "ranking": ("model", "sampled"),
    "repetition_penalty": (*TINY, 100, 10**400),
    "presence_penalty": (-100, 100, 10**400),
    "frequency_penalty": (-100, 100, 10**400),
    "logit_bias": ({5: 100, 6: -100}, {5: 10**400}, {2**63: 1}, dict.fromkeys(range(VOCABULARY), -100)),
    "min_tokens": (1, *HUGE),
    "eos_penalty": (-100, 100, 10**400),
    "logits_eos_inf": (True,),
    "confidence_eos_eot_inf": (True,),
    "seed": (0, 2**63 - 1, 2**63, 2**64, 10**400),
    "stop": (["a"], [chr(97 + n % 26) * 60 for n in range(1024)], ["a" * 10**6]),
    "stop_token_ids": ([EOS], list(range(VOCABULARY)), [2**63], [10**400]),
    "ignore_eos": (True,),
}


@pytest.fixture(scope="module")
def engine(folders) -> Iterator[Engine]:
    with make_engine(folders["llada"], kv_cache_tokens=2048) as engine:
        yield engine
        assert_nothing_lost(engine)


@pytest.fixture(scope="module")
def cuda_engine(folders) -> Iterator[Engine]:
    with make_engine(folders["llada"], executor=cuda_executor, kv_cache_tokens=2048) as engine:
        yield engine
        assert_nothing_lost(engine)


def ends_well(engine: Engine, fields: dict[str, Any]) -> None:
    error: InvalidRequestError | None = None
    try:
        output = engine.generate(tokens(12, 5), SamplingParams(**fields))
        assert output.finish_reason in ("stop", "length"), fields
    except InvalidRequestError as refusal:
        error = refusal
    if error is not None:
        assert error.field in {*fields, "steps", "prompt"}, (fields, error.message)
        assert len(error.message) < 400


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", EXTREMES)
def test_one_field(engine, name):
    for value in EXTREMES[name]:
        ends_well(engine, {"max_new_tokens": 8, name: value})
        if name not in ("threshold", "factor"):
            ends_well(engine, {"max_new_tokens": 8, "steps": 8, "temperature": 1.0, name: value})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", sorted(EXTREMES.keys() - {"stop_token_ids"}))
def test_one_field_on_a_gpus_executor(cuda_engine, name):
    """More stop tokens than a GPU takes are refused by what its worker reports, which this one does not."""
    for value in EXTREMES[name]:
        ends_well(cuda_engine, {"max_new_tokens": 8, name: value})
        if name not in ("threshold", "factor"):
            ends_well(cuda_engine, {"max_new_tokens": 8, "steps": 8, "temperature": 1.0, name: value})


@pytest.mark.timeout(120)
def test_many_fields(engine):
    """Of four fields often one is refused, so that three are drawn."""
    chooser = random.Random(1)
    for _ in range(150):
        names = chooser.sample(sorted(EXTREMES.keys() - {"max_new_tokens"}), 3)
        ends_well(engine, {"max_new_tokens": 8, **{name: chooser.choice(EXTREMES[name]) for name in names}})
