"""Audits bring a profile that allows too much down to the depth that loses nothing."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest

from shoal.radix_cache.depth_profile import DepthProfile
from shoal.runtime.config import EngineConfig
from shoal.runtime.engine.engine import Engine
from shoal.runtime.model.digest import model_digest
from shoal.runtime.model.hub import resolve_model_folder
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.scheduler.auditor import Auditor
from shoal.shop.task import KINDS, chat, make_list, make_question

from ..tiny import assert_nothing_lost, engine_with
from ..worker.cuda_path import cuda_executor


def questions(count: int, seed: int, lists: int):
    chooser = random.Random(f"audit-{seed}")
    prices = [make_list(chooser, chooser.randint(10, 40), held_out=True) for _ in range(lists)]
    asked = [
        (prices[i % lists], make_question(chooser, prices[i % lists], KINDS[i // lists % 4])) for i in range(count)
    ]
    return [(chat(of, [], question.text), question.answer) for of, question in asked]


def wrong_profile(folder, depth: int) -> str:
    """A profile of `shop` that allows far too much; everything else about it is right."""
    path = folder / "too_deep.json"
    right = json.loads((resolve_model_folder("shop") / "depth_profile.json").read_text())
    profile = DepthProfile(
        16, ((0.2, depth),), max_drift=right.get("max_drift"), model_digest=model_digest(resolve_model_folder("shop"))
    )
    profile.save(path)
    return str(path)


def share_right(engine: Engine, asked) -> float:
    outputs = engine.generate([messages for messages, _ in asked], SamplingParams(max_new_tokens=32))
    return sum(output.text == answer for output, (_, answer) in zip(outputs, asked, strict=True)) / len(asked)


def run_wrong_profile(tmp_path, depth: int, rate: float, warm: int, measured: int, executor=None) -> None:
    """Audits bring a profile that is too deep down to 8, which `shop` bears, and no answer is lost."""
    path = wrong_profile(tmp_path, depth)
    first, second = questions(warm, 1, 6), questions(measured, 2, 6)
    with Engine("shop", device="cpu", depth_profile=path, cache_mode="dual") as engine:
        reference = share_right(engine, second)
    with Engine("shop", device="cpu", depth_profile=path) as engine:
        share_right(engine, first)
        unwatched = share_right(engine, second)
    config = EngineConfig.build(
        model_path="shop", device="cpu", depth_profile=path, audit_rate=rate, check_invariants=True
    )
    with Engine(config=config) if executor is None else engine_with(config, executor) as engine:
        share_right(engine, first)
        watched = share_right(engine, second)
        seen = engine.core.parts.scheduler.stats()
        assert_nothing_lost(engine)
    assert unwatched < reference - 0.1
    assert watched >= reference
    assert seen.audit_depth_limit == 8
    assert seen.audits_differed > 0


def test_audits_bring_the_accuracy_back(tmp_path):
    run_wrong_profile(tmp_path, depth=16, rate=0.5, warm=36, measured=48)


def test_audits_by_predictions_alone_bring_the_accuracy_back(tmp_path, monkeypatch):
    """However much drift is allowed; the executor is a GPU's, with reference kernels."""
    monkeypatch.setattr(Auditor, "_safe_depth", lambda watch, errors, depth: depth)
    run_wrong_profile(tmp_path, 16, 1.0, 96, 48, partial(cuda_executor, max_tokens=640))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "rate"), [(16, 0.25), (12, 0.1)])
def test_audits_bring_the_accuracy_back_within_200_requests(tmp_path, depth, rate):
    run_wrong_profile(tmp_path, depth, rate, warm=200, measured=200)
