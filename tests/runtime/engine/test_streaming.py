"""Streams, stop conditions, finish reasons, counts and timings, in the synchronous and the asynchronous calls."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams

from ..freeze import Freeze, frozen_with
from ..tiny import CHARACTERS, EOS, assert_nothing_lost, make_engine, tokens

LONG = SamplingParams(max_new_tokens=48, threshold=0.6, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(folders) -> Iterator[Engine]:
    with make_engine(folders["llada"]) as made:
        yield made
        assert_nothing_lost(made)


def any_text(outputs: Sequence[RequestOutput]) -> bool:
    """For Freeze: something was committed."""
    return any(output.token_ids for output in outputs)


def check_stream(outputs: Sequence[RequestOutput], whole: RequestOutput) -> None:
    for early, late in itertools.pairwise(outputs):
        assert late.text.startswith(early.text)
        assert late.token_ids[: len(early.token_ids)] == early.token_ids
        assert late.nfe > early.nfe
        assert late.canvas_tokens >= early.canvas_tokens
        assert early.finish_reason is None
        assert late.timings.total >= early.timings.total
    last = outputs[-1]
    for name in ("text", "token_ids", "finish_reason", "matched_stop", "nfe", "computed_token_layers"):
        assert getattr(last, name) == getattr(whole, name)


def plain_text(engine: Engine, params: SamplingParams, wanted: int = 20) -> tuple[list[int], RequestOutput]:
    """A prompt whose answer has a lot of text."""
    for seed in range(100):
        output = engine.generate(tokens(9, seed), params, cache_mode="dual")
        if len(output.text) >= wanted and len(set(output.text)) > 5:
            return tokens(9, seed), output
    raise AssertionError("no such prompt")


@pytest.mark.parametrize("mode", ["none", "dual", "lm", "bicache"])
def test_text_only_grows_and_ends_as_generate_does(engine, mode):
    for seed in range(3):
        engine.flush_cache()
        whole = engine.generate(tokens(9, seed), LONG, cache_mode=mode)
        engine.flush_cache()
        outputs = list(engine.stream(tokens(9, seed), LONG, cache_mode=mode))
        assert len(outputs) > 5
        check_stream(outputs, whole)


async def test_asynchronous_streams_run_side_by_side(engine):
    whole = [engine.generate(tokens(9, seed), LONG, cache_mode="dual") for seed in range(4)]

    async def collect(seed: int) -> list[RequestOutput]:
        return [output async for output in engine.async_stream(tokens(9, seed), LONG, cache_mode="dual")]

    for outputs, expected in zip(await asyncio.gather(*map(collect, range(4))), whole, strict=True):
        check_stream(outputs, expected)


async def test_async_generate_of_lists_and_singles_at_once(engine):
    prompts = [tokens(9, seed) for seed in range(5)]
    whole = engine.generate(prompts, LONG, cache_mode="dual")
    single, several = await asyncio.gather(
        engine.async_generate(prompts[0], LONG, cache_mode="dual"),
        engine.async_generate(prompts, LONG, cache_mode="dual"),
    )
    assert single.token_ids == whole[0].token_ids
    assert [o.token_ids for o in several] == [o.token_ids for o in whole]


def test_closing_a_stream_early_aborts_and_gives_pages_back(engine):
    stream = engine.stream(tokens(30, 1), LONG)
    with Freeze(engine, any_text):
        assert not next(stream).finished
        assert engine.core.parts.scheduler.num_running == 1
        stream.close()
    engine.check()
    assert engine.core.parts.scheduler.num_running == 0
    assert_nothing_lost(engine)


async def test_leaving_an_asynchronous_stream_early_aborts(engine):
    stream = engine.async_stream(tokens(30, 1), LONG)
    with Freeze(engine, any_text):
        assert not (await anext(stream)).finished
        assert engine.core.parts.scheduler.num_running == 1
        await stream.aclose()
    engine.check()
    assert engine.core.parts.scheduler.num_running == 0
    assert_nothing_lost(engine)


async def test_cancelling_async_generate_aborts_its_requests(engine):
    with frozen_with(engine, 4) as frozen:
        task = asyncio.create_task(engine.async_generate([tokens(30, s) for s in range(4)], LONG))
        await asyncio.to_thread(frozen.held.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    engine.check()
    assert not engine.core.parts.scheduler.has_work
    assert_nothing_lost(engine)


def test_abort_by_id_ends_the_stream_with_what_is_there(engine):
    outputs: list[RequestOutput] = []
    with Freeze(engine, lambda last: bool(last) and last[0].nfe >= 5) as frozen:
        for output in engine.stream(tokens(9, 1), LONG):
            outputs.append(output)
            if len(outputs) == 3:
                engine.abort(output.rid)
                frozen.go_on()
    assert outputs[-1].finish_reason == "abort"
    assert outputs[-1].error is None
    assert outputs[-1].nfe < 40
    engine.abort(outputs[-1].rid)
    engine.abort("nobody")
    engine.check()


# Stops


def test_a_stop_string_over_several_tokens_ends_the_text_and_is_held_back(engine):
    params = SamplingParams(max_new_tokens=32, threshold=0.9, ignore_eos=True)
    prompt, whole = plain_text(engine, params)
    for at, length in ((10, 3), (6, 5), (0, 2)):
        stop = whole.text[at : at + length]
        text = whole.text[: whole.text.index(stop)]
        stopping = SamplingParams(max_new_tokens=32, threshold=0.9, ignore_eos=True, stop=["??", stop])
        outputs = list(engine.stream(prompt, stopping, cache_mode="dual"))
        assert outputs[-1].text == text
        assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", stop)
        assert all(text.startswith(output.text) for output in outputs)
        assert outputs[-1].nfe < whole.nfe
        check_stream(outputs, engine.generate(prompt, stopping, cache_mode="dual"))


def test_what_was_held_back_comes_at_the_end(engine):
    params = SamplingParams(max_new_tokens=32, threshold=0.9, ignore_eos=True)
    prompt, whole = plain_text(engine, params)
    stop = whole.text[-2:] + "?"
    outputs = list(engine.stream(prompt, SamplingParams(max_new_tokens=32, threshold=0.9, ignore_eos=True, stop=stop),
                                 cache_mode="dual"))  # fmt: skip
    assert outputs[-1].text == whole.text
    assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("length", None)


def test_token_ids_of_a_stopped_text_end_with_the_stop_string(engine):
    """Several tokens may be committed at once: those behind the stop string are none of the answer's."""
    params = SamplingParams(max_new_tokens=32, threshold=0.3, block_length=32, ignore_eos=True)
    prompt, whole = plain_text(engine, params, wanted=12)
    stop = whole.text[4:6]
    end = whole.text.index(stop) + len(stop)
    stopping = SamplingParams(max_new_tokens=32, threshold=0.3, block_length=32, ignore_eos=True, stop=stop)
    output = engine.generate(prompt, stopping, cache_mode="dual")
    assert engine.tokenizer.decode(output.token_ids) == whole.text[:end]
    assert output.completion_tokens == len(output.token_ids)


def test_stop_tokens_end_of_text_and_ignore_eos(engine):
    _, whole = plain_text(engine, LONG)
    prompt, whole = plain_text(engine, LONG)
    token = whole.token_ids[7]
    at = whole.token_ids.index(token)
    stopping = SamplingParams(max_new_tokens=48, threshold=0.6, stop_token_ids=[63, token])
    output = engine.generate(prompt, stopping, cache_mode="dual")
    if EOS not in whole.token_ids[:at]:
        assert output.token_ids == whole.token_ids[:at]
        assert (output.finish_reason, output.matched_stop) == ("stop", token)
    ignoring = SamplingParams(max_new_tokens=48, threshold=0.6, stop_token_ids=[token], ignore_eos=True)
    output = engine.generate(prompt, ignoring, cache_mode="dual")
    assert (output.token_ids, output.finish_reason) == (whole.token_ids, "length")


def test_end_of_text_in_every_way_of_running(llada):
    """Mask by mask, EOS among the answers: text and reason agree with the answer that ignores it."""
    for options in ({}, {"max_steps_per_message": 3}):
        stops = 0
        with make_engine(llada, **options) as engine:
            for seed in (0, 1, 26, *range(2, 40)):  # the first whose answer has one comes early
                if stops:
                    break
                whole = engine.generate(tokens(9, seed), LONG, cache_mode="dual")
                stopping = SamplingParams(max_new_tokens=48, threshold=0.6)
                output = engine.generate(tokens(9, seed), stopping, cache_mode="dual")
                at = whole.token_ids.index(EOS) if EOS in whole.token_ids else 48
                assert output.token_ids == whole.token_ids[:at]
                assert output.finish_reason == ("stop" if at < 48 else "length")
                assert output.matched_stop == (EOS if at < 48 else None)
                stops += at < 48
            assert_nothing_lost(engine)
        assert stops == 1


def test_counts_and_timings(engine):
    """By hand: 6 layers, prompt 9 + canvas 16 in blocks of 8, two steps a block, dual."""
    before = time.monotonic()
    params = SamplingParams(max_new_tokens=16, steps=4, ignore_eos=True)
    output = engine.generate(tokens(9, 1), params, cache_mode="dual")
    took = time.monotonic() - before
    assert (output.prompt_tokens, output.cached_tokens, output.completion_tokens) == (9, 0, 16)
    assert (output.canvas_tokens, output.nfe, output.prefix_refreshes) == (16, 4, 2)
    assert output.computed_token_layers == 6 * (25 + 8 + 25 + 8)
    assert output.text == engine.tokenizer.decode(output.token_ids)
    times = output.timings
    assert times.first_text is not None
    assert 0 <= times.queue <= times.first_text <= times.total <= took
    none = engine.generate(tokens(9, 1), SamplingParams(max_new_tokens=0))
    assert none.timings.first_text is None


def test_on_output_sees_every_end_once_and_may_fail(engine, caplog):
    seen = []

    def listen(output: RequestOutput) -> None:
        seen.append(output.rid)
        raise RuntimeError("the caller's own mistake")

    outputs = engine.generate([tokens(9, s) for s in range(3)], LONG, on_output=listen)
    assert sorted(seen) == sorted(output.rid for output in outputs)
    assert "the caller's own mistake" in caplog.text
    assert engine.generate(tokens(5), LONG).finish_reason == "length"


def test_a_callback_that_would_end_its_thread_ends_nothing(engine, caplog):
    """`sys.exit` in a callback: the engine's thread goes on, nobody waits for ever."""

    def leave(output: RequestOutput) -> None:
        raise SystemExit(3)

    outputs = engine.generate([tokens(9, s) for s in range(3)], LONG, on_output=leave)
    assert [output.finish_reason for output in outputs] == ["length"] * 3
    assert "SystemExit" in caplog.text
    assert engine.generate(tokens(5), LONG).finish_reason == "length"


def test_the_tokenizer_of_these_tests_has_one_token_a_character(engine):
    assert engine.tokenizer.decode(engine.tokenizer.encode(CHARACTERS)) == CHARACTERS
    assert len(engine.tokenizer.encode(CHARACTERS)) == len(CHARACTERS)
