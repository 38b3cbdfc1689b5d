"""The scheduler's counters are the sums of what the replies say; throughputs end with the work."""

from __future__ import annotations

import pytest

from shoal.runtime.config import CACHE_MODES
from shoal.runtime.request.output import RequestOutput
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.scheduler.throughput import WINDOW_S, Throughput

from ..tiny import by_hand, make_engine, open_requests, tokens


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_counters_are_the_sums_of_the_replies(folder, mode):
    """Also with stop strings, EOS, templates, and the pass with which mode `lm` ends."""
    prompts = [tokens(17 + seed, seed) for seed in range(6)]
    with make_engine(folder) as engine:
        outputs: list[RequestOutput] = []
        for turn in range(2):
            outputs += engine.generate(prompts, SamplingParams(max_new_tokens=24, steps=12), cache_mode=mode)
            outputs += engine.generate(
                prompts, SamplingParams(max_new_tokens=24, factor=1.0, temperature=0.6, seed=turn), cache_mode=mode
            )
        whole = engine.generate(
            prompts[0], SamplingParams(max_new_tokens=24, block_length=1, steps=24, ignore_eos=True), cache_mode=mode
        )
        outputs.append(whole)
        stops = [whole.text[at : at + 2] for at in (len(whole.text) // 3, len(whole.text) * 2 // 3)]
        for stop in stops:
            params = SamplingParams(max_new_tokens=24, block_length=1, steps=24, ignore_eos=True, stop=(stop,))
            outputs.append(engine.generate(prompts[0], params, cache_mode=mode))
            assert outputs[-1].finish_reason == "stop"
        template = [-1 if at % 3 else token for at, token in enumerate(tokens(24, 9))]
        outputs.append(
            engine.generate(prompts[1], SamplingParams(max_new_tokens=24, steps=12), canvas=template, cache_mode=mode)
        )
        stats = engine.core.parts.scheduler.stats()
    assert stats.requests == stats.finished_stop + stats.finished_length == len(outputs)
    assert stats.prompt_tokens == sum(output.prompt_tokens for output in outputs)
    assert stats.generated_tokens == sum(output.completion_tokens for output in outputs)
    assert stats.canvas_tokens == sum(output.canvas_tokens for output in outputs)
    assert stats.computed_token_layers == sum(output.computed_token_layers for output in outputs)
    assert stats.reused_token_layers == sum(output.reused_token_layers for output in outputs)
    assert stats.cache_hit_tokens == sum(output.cached_tokens for output in outputs)
    assert stats.prefix_refreshes == sum(output.prefix_refreshes for output in outputs)
    assert stats.nfe == sum(output.nfe for output in outputs)
    assert stats.gen_throughput == stats.input_throughput == 0


def test_throughput_is_of_the_last_seconds_of_work():
    rate = Throughput()
    assert rate.rate(5.0, 100) == 0
    rate.note(5.0, 100)
    assert rate.rate(5.1, 110) == 10  # over a second at least: the first forward says nothing of a rate
    for tenth in range(1, 601):
        rate.note(5.0 + tenth / 10, 100 + 2 * tenth)
    assert rate.rate(65.0, 1300) == pytest.approx(20)
    assert rate.rate(65.0 + WINDOW_S, 1300) == pytest.approx(10, rel=0.1)
    rate.rest()
    assert rate.rate(65.1, 1300) == 0
    rate.note(1000.0, 1300)
    assert rate.rate(1002.0, 1340) == 20  # the rest does not thin it


def test_throughputs_say_something_while_a_request_runs(llada):
    with make_engine(llada) as engine:
        scheduler = by_hand(engine)
        params = SamplingParams(max_new_tokens=24, block_length=1, steps=24, ignore_eos=True)
        (request,) = open_requests(engine, [tokens(20)], params, "dual", "")
        scheduler.add(request)
        for _ in range(8):
            scheduler.step()
        assert scheduler.stats().gen_throughput > 0
        assert scheduler.stats().input_throughput > 0
        scheduler.abort(request.rid)
        assert scheduler.stats().gen_throughput == scheduler.stats().input_throughput == 0
