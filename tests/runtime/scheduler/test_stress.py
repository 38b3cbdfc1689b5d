"""Random mixes of everything that a scheduler can be asked: see `stress.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.runtime.request.output import RequestOutput

from ..tiny import assert_nothing_lost, make_engine, open_requests
from .stress import EXACT, Stress


def facts(output: RequestOutput, counted: bool) -> tuple[Any, ...]:
    """`counted`: with what it took."""
    return (output.token_ids, output.text, output.finish_reason, output.matched_stop, output.holes, output.scores,
            *((output.nfe, output.canvas_tokens) if counted else ()))  # fmt: skip


def run(seed: int, folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> Stress:
    """A scenario; then every request whose answer company must not change is asked alone."""
    clock = [1.0]
    monkeypatch.setattr("shoal.runtime.scheduler.scheduler.time.monotonic", lambda: clock[0])
    stress = Stress(seed, folder, 6 if name == "llada" else 7, tmp_path / "profile.json", clock)
    with stress.engine as engine:
        stress.run(steps)
        assert_nothing_lost(engine)
        counters = stress.scheduler.counters
        assert counters.requests == len(stress.ends)
        assert not stress.grows or stress.growths
        assert counters.preemptions == sum(output.preemptions for _, output in stress.ends)
    compared = 0
    with make_engine(folder, **stress.options) as engine:
        for request, output in stress.ends:
            drawn = request.spec.sampling.temperature > 0 or request.spec.sampling.strategy == "random"
            settled = request.spec.sampling.refresh_schedule == "settled"  # a restart computes settled blocks again
            if output.finish_reason not in ("stop", "length") or (output.preemptions and (drawn or settled)):
                continue
            cold = request.spec.cache_mode == "bicache" and not output.cached_tokens and request.tally.captured_tokens
            if request.spec.cache_mode not in EXACT and (not cold or output.preemptions):
                continue
            spec = request.spec
            canvas = None if spec.template is None else [spec.template.tolist()]
            pairs = None if spec.targets is None else [[(int(at), int(token)) for at, token in spec.targets]]
            (alone,) = open_requests(
                engine, [spec.prompt.tolist()], spec.sampling, spec.cache_mode, "", canvas, targets=pairs
            )
            (expected,) = engine._run([alone])
            engine.flush_cache()
            if output.preemptions:
                assert output.token_ids == expected.token_ids
                assert output.text == expected.text
            else:
                # A worker that takes several steps at a time learns too late of a stop string.
                counted = stress.options["max_steps_per_message"] == 1 or not isinstance(output.matched_stop, str)
                assert facts(output, counted) == facts(expected, counted)
            compared += 1
    assert compared > 0
    return stress


@pytest.mark.parametrize("seed", range(6))
def test_random_mixes_lose_nothing_and_change_no_answer(folder, name, seed, tmp_path, monkeypatch):
    run(seed, folder, name, tmp_path, monkeypatch, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(4))
def test_many_more_random_mixes(folder, name, part, tmp_path, monkeypatch):
    seen = [run(1000 * (part + 1) + n, folder, name, tmp_path, monkeypatch, 120) for n in range(25)]
    preempted = sum(output.preemptions for stress in seen for _, output in stress.ends)
    assert preempted > 50
    assert sum(stress.scheduler.counters.timed_out for stress in seen) > 10
    assert sum(stress.failures for stress in seen) > 10
    assert sum(stress.flushes for stress in seen) > 10
    assert sum(stress.scheduler.auditor.shrunk_nodes for stress in seen) > 10
