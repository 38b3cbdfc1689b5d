"""Scores of choices against sums over dense float64 forwards; pins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.sampling_params import SamplingParams
from shoal.runtime.request.scoring import SCORE_METHODS, ScorePlan

from ..oracle import Dense, Session
from ..tiny import MASK, assert_nothing_lost, free_pages, make_engine, tokens

CHOICES = [tokens(1, 50), tokens(3, 51), tokens(9, 52), [tokens(3, 51)[0], 7, tokens(3, 51)[2]]]
BLOCK = 8


@pytest.fixture
def engine(folder) -> Iterator[Engine]:
    with make_engine(folder) as made:
        yield made
        assert_nothing_lost(made)


def by_hand(model: Dense, prompt: Sequence[int], choice: Sequence[int], method: str, length: int) -> list[float]:
    """The formulas of runtime/request/scoring.py, one dense forward a token."""
    out = []
    for at, token in enumerate(choice):
        canvas = [*choice, *[model.mask] * (length - len(choice))] if method == "pseudo" else [model.mask] * length
        canvas[at] = model.mask
        sequence = [*prompt, *canvas]
        hidden = Session(model, len(sequence)).forward(sequence, 0, len(sequence), len(sequence))
        row = len(prompt) + at - model.shift
        out.append(float(model.probabilities(hidden[row : row + 1])[0, token].log()))
    return out


@pytest.mark.parametrize("method", SCORE_METHODS)
@pytest.mark.parametrize("prompt_length", [1, 3, 22])
def test_scores_are_the_formula(engine, oracle, method, prompt_length):
    """No prefix reuse here; canvas of 16: the longest choice has 9 tokens, blocks have 8."""
    prompt = tokens(prompt_length, 3)
    scored = engine.score(prompt, CHOICES, method, cache_mode="none")
    for choice, result in zip(CHOICES, scored.choices, strict=True):
        expected = by_hand(oracle, prompt, choice, method, 2 * BLOCK)
        assert result.token_ids == tuple(choice)
        assert result.token_scores == pytest.approx(expected, abs=2e-3)
        assert result.total == pytest.approx(sum(expected), abs=1e-2)
        assert result.mean == pytest.approx(sum(expected) / len(expected), abs=2e-3)
    means = [choice.mean for choice in scored.choices]
    assert scored.best == means.index(max(means))
    assert scored.prompt_tokens == prompt_length * scored.nfe


def test_cost_one_shot_is_one_forward_and_pseudo_shares_canvases(engine):
    """The second and fourth choice differ in one position only, so that one forward serves both."""
    prompt = tokens(22, 3)
    assert engine.score(prompt, CHOICES, "one_shot", cache_mode="none").nfe == 1
    warm_up = 1
    assert engine.score(prompt, CHOICES, "pseudo", cache_mode="none").nfe == warm_up + 1 + 3 + 9 + 3 - 1
    single = engine.score(prompt, [[5], [6], [7]], "pseudo", cache_mode="none")
    assert single.nfe == 1
    assert single.choices == engine.score(prompt, [[5], [6], [7]], "one_shot", cache_mode="none").choices


def test_choices_share_the_prompt_and_leave_only_clean_captures(engine):
    """Scoring computes the prompt's shallow layers once (in the warm-up), and canvases with answers capture nothing."""
    prompt = tokens(44, 9)
    scored = engine.score(prompt, CHOICES, "pseudo")
    requests = scored.nfe - 1
    whole = (44 - int(engine.model_config.shift_logits)) // 4 * 4
    assert scored.cached_tokens == whole * requests
    assert scored.reused_token_layers == scored.cached_tokens * 4
    snapshot = engine.cache_snapshot()
    assert snapshot["num_tokens"] == whole
    assert engine.score(prompt, CHOICES, "pseudo").choices == scored.choices


def test_texts_as_choices(engine):
    texts = engine.score("abcabc", ["a", "bc"])
    ids = engine.score("abcabc", [engine.tokenizer.encode("a"), engine.tokenizer.encode("bc")])
    assert texts.choices == ids.choices


@pytest.mark.asyncio
async def test_async_score_is_score(engine):
    prompt = tokens(30, 2)
    for method in SCORE_METHODS:
        assert (await engine.async_score(prompt, CHOICES, method)).choices == engine.score(
            prompt, CHOICES, method
        ).choices


@pytest.mark.parametrize(
    ("choices", "method", "words"),
    [
        ([], "pseudo", "choices has 0"),
        ([[]], "pseudo", r"choices\[0\] is empty"),
        ([[1]] * 257, "pseudo", "257"),
        ([[1]], "elbo", "method is 'elbo'"),
        ("ab", "pseudo", "must be a list"),
        ([3], "pseudo", r"choices\[0\] is 3"),
        ([[1, 999]], "pseudo", "999"),
        ([[1, 999]], "one_shot", "999"),
        ([[1, -1]], "one_shot", "-1"),
        ([[1, MASK]], "one_shot", "the mask"),
        ([[5] * 200], "one_shot", "over the model's maximum"),
    ],
)
def test_bad_choices(engine, choices, method, words):
    with pytest.raises(InvalidRequestError, match=words):
        engine.score(tokens(5), choices, method)


def test_plan_needs_no_engine():
    plan = ScorePlan([[5, 6], [5, 7]], "pseudo", 4)
    assert [plan.canvas(i) for i in range(plan.num_forwards)] == [[-1, 6, -1, -1], [5, -1, -1, -1], [-1, 7, -1, -1]]
    assert plan.targets == [[(0, 5)], [(1, 6), (1, 7)], [(0, 5)]]
    one_shot = ScorePlan([[1, 2, 3, 4], [5]], "one_shot", 4)
    assert (one_shot.num_forwards, one_shot.canvas(0)) == (1, [-1] * 8)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_forwards": 5}, "choices has 6 tokens in 2 entries.*at most 5.*max_score_forwards"),
        ({"prompt_tokens": 10, "max_positions": 6 * 14 - 1}, "6 forward passes over 14 tokens each.*at most 83"),
    ],
)
def test_a_plan_is_refused_by_its_cost(limits, words):
    """The last case that fits passes: a limit of one more, and one forward whatever the choices with `one_shot`."""
    choices = [[5, 6, 7], [5, 6, 8]]
    with pytest.raises(InvalidRequestError, match=words) as caught:
        ScorePlan(choices, "pseudo", 4, **limits)
    assert caught.value.field == "choices"
    name = next(name for name in limits if name.startswith("max_"))
    ScorePlan(choices, "pseudo", 4, **{**limits, name: limits[name] + 1})
    ScorePlan(choices, "one_shot", 4, **limits)


def test_a_call_of_the_engine_is_refused_before_anything_of_its_size_is_made(engine):
    """67,108,864 positions are the most: 256 choices of 600 tokens would be 153,600 forwards over 609 each."""
    with pytest.raises(InvalidRequestError, match=r"153600 forward passes over 609 tokens each.*at most 67108864"):
        engine.score([5], [[7] * 600] * 256)


def test_scoring_keeps_few_requests_with_the_scheduler(engine, monkeypatch):
    """As many as may run; what is left of the plan waits outside."""
    most = engine.config.max_running_requests
    held = []
    submit = engine.core.loop.submit

    def watched(requests, listener):
        held.append(len(requests))
        submit(requests, listener)

    monkeypatch.setattr(engine.core.loop, "submit", watched)
    choices = [tokens(40, seed) for seed in range(2)]
    engine.score(tokens(6), choices, cache_mode="none")
    assert sum(held) == 1 + 80
    assert max(held) == most < 80


# --- pins and shared_prefix --------------------------------------------------------------------------------------


def test_pin_keeps_a_prefix_from_eviction(llada):
    prompt = tokens(40, 1)
    with make_engine(llada, kv_cache_tokens=160) as engine:
        with engine.pinned(prompt) as kept:
            assert kept == 40
            for seed in range(6):
                engine.generate(tokens(60, 100 + seed), SamplingParams(max_new_tokens=8))
            assert engine.generate(prompt, SamplingParams(max_new_tokens=8)).cached_tokens == 40
        for seed in range(6):
            engine.generate(tokens(60, 100 + seed), SamplingParams(max_new_tokens=8))
        assert engine.generate(prompt, SamplingParams(max_new_tokens=8)).cached_tokens == 0
        assert_nothing_lost(engine)


def test_pins_count_and_a_cached_prompt_is_not_computed_again(llada):
    prompt = tokens(40, 1)
    with make_engine(llada) as engine:
        assert engine.pin(prompt) == 40
        free = free_pages(engine)
        assert engine.pin(prompt) == 40
        assert free_pages(engine) == free
        engine.unpin(prompt)
        engine.unpin(prompt)
        with pytest.raises(InvalidRequestError, match="not pinned"):
            engine.unpin(prompt)
        assert engine.pin(prompt[:3]) == 0
        assert engine.pin(prompt, cache_salt="other") == 40
        engine.unpin(prompt, cache_salt="other")
        assert_nothing_lost(engine)


def test_shared_prefix_lifts_the_margin_there_and_nowhere_else(llada):
    """A margin of 8: without the hint 8 tokens less are reused; behind the hinted prefix it holds."""
    prompt = tokens(40, 1)
    with make_engine(llada, reuse_margin=8) as engine:
        engine.generate(prompt, SamplingParams(max_new_tokens=0))
        longer = [*prompt, *tokens(20, 2)]
        params = SamplingParams(max_new_tokens=8)
        assert engine.generate([*prompt, *tokens(9, 3)], params).cached_tokens == 32
        assert engine.generate([*prompt, *tokens(9, 4)], params, shared_prefix=40).cached_tokens == 40
        assert engine.generate(longer, params, shared_prefix=40).cached_tokens == 40
        assert engine.generate(longer, params, shared_prefix=40).cached_tokens == 52
        assert_nothing_lost(engine)
