"""Streams of snapshots in one process: what they show, that answers stay the same, and that a slow reader gets few."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.engine.mailbox import AsyncMailbox, Mailbox
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.forward import Forward, MarkedResult, StepResult
from shoal.runtime.request.sampling_params import SamplingParams

from ..tiny import assert_nothing_lost, make_engine, tokens
from ..worker.cuda_path import cuda_executor

LONG = SamplingParams(max_new_tokens=24, block_length=8, threshold=0.6, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(folders) -> Iterator[Engine]:
    with make_engine(folders["llada"]) as made:
        yield made
        assert_nothing_lost(made)


def test_a_snapshot_shows_every_commit_once_and_where_it_was_made(engine):
    whole = engine.generate(tokens(9, 1), LONG, cache_mode="dual")
    outputs = list(engine.stream(tokens(9, 1), LONG, cache_mode="dual", stream_mode="denoise"))
    end = outputs[-1]
    assert (end.token_ids, end.text, end.nfe) == (whole.token_ids, whole.text, whole.nfe)
    for early, late in itertools.pairwise([output.snapshot for output in outputs]):
        assert (len(late.tokens), late.blocks) == (24, (8, 16, 24))
        for at, token in enumerate(early.tokens):
            if token >= 0:
                assert (late.tokens[at], late.texts[at]) == (token, early.texts[at])
                assert (late.steps[at], late.confidences[at]) == (early.steps[at], early.confidences[at])
            elif late.tokens[at] >= 0:
                assert early.step < late.steps[at] <= late.step
    shown = end.snapshot
    assert shown.tokens == end.token_ids
    assert shown.texts == tuple(engine.tokenizer.decode([t], skip_special_tokens=False) for t in shown.tokens)
    assert all(0 < confidence <= 1 for confidence in shown.confidences)
    of_step = {step: [at for at, s in enumerate(shown.steps) if s == step] for step in shown.steps}
    assert len(of_step) > 2
    # A threshold commits what is at least that sure, or the one mask that is surest.
    assert all(len(at) == 1 or min(shown.confidences[p] for p in at) >= 0.6 for at in of_step.values())


async def test_an_asynchronous_stream_and_a_plain_one(engine):
    outputs = [o async for o in engine.async_stream(tokens(9, 2), LONG, cache_mode="dual", stream_mode="denoise")]
    plain = [o async for o in engine.async_stream(tokens(9, 2), LONG, cache_mode="dual")]
    assert outputs[-1].snapshot.tokens == outputs[-1].token_ids == plain[-1].token_ids
    assert {o.snapshot for o in plain} == {None}


def test_marks_cost_nothing_where_nobody_asked(engine, monkeypatch):
    worker = engine.core.parts.worker
    forward = worker.forward
    seen: list[list[StepResult]] = []

    def watched(message: Forward) -> list[StepResult]:
        seen.append(forward(message))
        return seen[-1]

    monkeypatch.setattr(worker, "forward", watched)
    engine.generate(tokens(9, 3), LONG)
    assert {type(result) for results in seen for result in results} == {StepResult}
    seen.clear()
    list(engine.stream(tokens(9, 3), LONG, stream_mode="denoise"))
    assert {type(result) for results in seen for result in results} == {MarkedResult}


def test_a_template_shows_its_fixed_tokens_from_the_start(engine):
    canvas = [7, -1, -1, 8, -1]
    outputs = list(engine.stream(tokens(9, 4), canvas=canvas, stream_mode="denoise"))
    for output in outputs:
        assert (output.snapshot.tokens[0], output.snapshot.tokens[3]) == (7, 8)
        assert (output.snapshot.steps[0], output.snapshot.confidences[3]) == (0, None)
    assert min(outputs[-1].snapshot.tokens) >= 0


async def test_untaken_snapshots_are_replaced_and_plain_outputs_are_not(engine):
    denoised = [o async for o in engine.async_stream(tokens(9, 5), LONG, stream_mode="denoise")]
    plain = [o async for o in engine.async_stream(tokens(9, 5), LONG)]
    box, other = Mailbox(), AsyncMailbox()
    for output in denoised:
        box.put(output)
        other.put(output)
    assert box.get() is (await other.get()) is denoised[-1]
    for output in plain:
        box.put(output)
    assert [box.get() for _ in plain] == plain


def test_generate_and_unknown_modes_are_refused(engine):
    with pytest.raises(InvalidRequestError, match="call stream or async_stream"):
        engine.generate(tokens(9, 1), LONG, stream_mode="denoise")
    with pytest.raises(InvalidRequestError, match="stream_mode is 'pixels'; it must be one of text, denoise"):
        next(engine.stream(tokens(9, 1), LONG, stream_mode="pixels"))


@pytest.mark.parametrize("options", [
    {"steps": 12}, {"steps": 12, "strategy": "margin"}, {"steps": 6, "strategy": "entropy", "schedule": "linear"},
    {"threshold": 0.3}, {"steps": 6, "confidence_eos_eot_inf": True}, {"steps": 6, "logprobs": 0},
    {"steps": 6, "choice": ["ab", "abc"], "ignore_eos": False},
], ids=str)  # fmt: skip
def test_on_a_gpu_confidences_and_passes_are_those_of_a_cpu(folders, options):
    """With the GPU's worker on the CPU: several steps of a message are read back at once."""
    params = SamplingParams(**{"max_new_tokens": 24, "block_length": 8, "ignore_eos": True, **options})
    shown = []
    for made in (make_engine(folders["llada"]), make_engine(folders["llada"], executor=cuda_executor,
                                                            max_steps_per_message=3)):  # fmt: skip
        with made:
            *_, last = made.stream(tokens(9, 1), params, cache_mode="dual", stream_mode="denoise")
        shown.append(last.snapshot)
    cpu, gpu = shown
    assert cpu is not None
    assert gpu is not None
    assert (gpu.tokens, gpu.steps, gpu.step) == (cpu.tokens, cpu.steps, cpu.step)
    assert len(set(gpu.steps)) > (1 if "choice" in options else 2)
    known = [(a, b) for a, b in zip(gpu.confidences, cpu.confidences, strict=True) if b is not None]
    assert known
    assert all(a == pytest.approx(b, abs=1e-4) for a, b in known)


def test_a_canvas_that_grows_is_shown_as_far_as_it_exists(engine):
    params = SamplingParams(max_new_tokens=24, block_length=8, steps=6, ignore_eos=True, canvas_window=4)
    outputs = list(engine.stream(tokens(9, 6), params, cache_mode="dual", stream_mode="denoise"))
    shown = [output.snapshot for output in outputs]
    # A reader that is late gets the newest snapshot alone, so a block may not show at all.
    exists = {0: (12, (8, 12)), 1: (20, (8, 16, 20)), 2: (24, (8, 16, 24))}
    assert all((len(s.tokens), s.blocks) == exists[s.block] for s in shown[:-1])
    assert (len(shown[-1].tokens), shown[-1].blocks) == (24, (8, 16, 24))
    assert shown[-1].tokens == outputs[-1].token_ids
