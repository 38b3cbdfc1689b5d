"""Canvas templates: fixed tokens and holes, against a plain float64 decoding loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from shoal.runtime.config import CacheMode
from shoal.runtime.engine.engine import Engine
from shoal.runtime.errors import InvalidRequestError
from shoal.runtime.request.request import Request
from shoal.runtime.request.sampling_params import SamplingParams

from ..oracle import Dense, Session, commits
from ..scheduler.test_priorities import EXACT, MODES, Driver
from ..tiny import EOS, assert_nothing_lost, make_engine, open_requests, tokens
from ..tiny import MASK as MASK_ID

GAP = 1e-4
MASK = -1


def expected_fill(
    model: Dense, prompt: Sequence[int], template: Sequence[int], block: int, mode: str, *,
    threshold: float | None = None, steps: int | None = None,
) -> tuple[list[int], int, float]:  # fmt: skip
    """Canvas tokens, forwards and the closest decision's gap, for modes none and dual."""
    length, total = len(prompt), len(prompt) + len(template)
    sequence = [*prompt, *(model.mask if token < 0 else token for token in template)]
    holes = {length + at for at, token in enumerate(template) if token < 0}
    session, nfe, gap = Session(model, total), 0, 1.0
    blocks = [(at, min(at + block, total)) for at in range(length, total, block)]
    for start, stop in blocks:
        step = 0
        masks_in_block = len([at for at in holes if start <= at < stop])
        while masks := sorted(at for at in holes if start <= at < stop):
            whole = mode == "none" or step == 0
            low, high = (0, total) if whole else (start - model.shift, stop)
            hidden = session.forward(sequence, low, high, total)
            rows = torch.tensor([at - model.shift - session.low for at in masks])
            p = model.probabilities(hidden[rows])
            quota = None
            if steps is not None:
                base, extra = divmod(masks_in_block, steps // len(blocks))
                quota = max(1, base + (step < extra))
            chosen, close = commits(p, "low_confidence", threshold, None, quota)
            gap, nfe, step = min(gap, close), nfe + 1, step + 1
            for index in chosen:
                sequence[masks[index]] = int(p[index].argmax())
                holes.discard(masks[index])
    return sequence[length:], nfe, gap


def runs(template: Sequence[int]) -> list[tuple[int, int]]:
    """Holes of a template, position by position."""
    found: list[tuple[int, int]] = []
    for at, token in enumerate(template):
        if token >= 0:
            continue
        if found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
    return found


def before_eos(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(ids[: list(ids).index(EOS)]) if EOS in ids else tuple(ids)


def template_of(*parts: int | list[int]) -> list[int]:
    """Numbers are holes of that length, lists fixed tokens."""
    return [t for part in parts for t in ([MASK] * part if isinstance(part, int) else part)]


TEMPLATES = {
    "holes at both ends": template_of(3, tokens(4, 90), 6, tokens(2, 91), 5),
    "fixed at both ends": template_of(tokens(5, 92), 4, tokens(9, 93), 3, tokens(3, 94)),
    "a block without masks": template_of(2, tokens(18, 95), 4),
    "begins with full blocks": template_of(tokens(17, 96), 7),
    "one hole": template_of(11),
}


@pytest.fixture
def engine(folder) -> Iterator[Engine]:
    with make_engine(folder) as made:
        yield made
        assert_nothing_lost(made)


@pytest.mark.parametrize("mode", ["none", "dual"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_fills_as_the_oracle_does(engine, oracle, mode, template):
    compared = 0
    for seed in range(8):
        prompt = tokens(21, seed)
        canvas, nfe, gap = expected_fill(oracle, prompt, template, 8, mode, threshold=0.6)
        if gap < GAP:
            continue
        compared += 1
        output = engine.generate(prompt, SamplingParams(threshold=0.6), cache_mode=mode, canvas=template)
        holes = [(hole.start, hole.stop, hole.token_ids) for hole in output.holes]
        assert holes == [(low, high, before_eos(canvas[low:high])) for low, high in runs(template)]
        shown = list(canvas)
        for low, high in reversed(runs(template)):
            shown[low:high] = before_eos(canvas[low:high])
        assert list(output.token_ids) == shown
        assert (output.nfe, output.finish_reason, output.error) == (nfe, "length", None)
        assert output.canvas_tokens == sum(token < 0 for token in template)
        assert output.completion_tokens == len(shown)
    assert compared >= 4


def test_a_quota_counts_masks_not_positions(engine, oracle):
    template = TEMPLATES["holes at both ends"] + [MASK] * 4
    assert len(template) == 24
    for seed in range(20):
        canvas, nfe, gap = expected_fill(oracle, tokens(9, seed), template, 8, "none", steps=6)
        if gap > GAP:
            break
    params = SamplingParams(steps=6, schedule="even")
    output = engine.generate(tokens(9, seed), params, cache_mode="none", canvas=template)
    assert output.nfe == nfe == 6
    assert [hole.token_ids for hole in output.holes] == [before_eos(canvas[a:b]) for a, b in runs(template)]


@pytest.mark.parametrize("mode", ["none", "prefix", "dual", "lm", "bicache"])
def test_fixed_tokens_stay_in_every_mode_also_eos(engine, mode):
    """An EOS that is fixed, and one that a hole gets, end nothing; a second request reuses the first one's prefix."""
    template = [*tokens(2, 1), EOS, *[MASK] * 5, EOS, *tokens(3, 2), *[MASK] * 9, EOS]
    for _ in range(2):
        prompt = tokens(40, 7)
        output = engine.generate(prompt, SamplingParams(threshold=0.3), cache_mode=mode, canvas=template)
        ids = list(output.token_ids)
        assert ids[:3] == template[:3]
        first, second = output.holes
        assert (first.start, first.stop, second.start, second.stop) == (3, 8, 12, 21)
        assert ids[3 : 3 + len(first.token_ids)] == list(first.token_ids)
        assert ids[3 + len(first.token_ids) :][:4] == template[8:12]
        assert ids[-1] == EOS
        assert EOS not in first.token_ids + second.token_ids
    assert (output.cached_tokens > 0) == (mode in ("lm", "bicache"))


def test_ignore_eos_and_stop_tokens_are_the_holes_own(engine):
    """With ignore_eos a hole keeps all its tokens; stop_token_ids cut each hole and end nothing."""
    template, prompt = template_of(8, tokens(2, 5), 8), tokens(30, 3)
    every = engine.generate(prompt, SamplingParams(ignore_eos=True), canvas=template)
    assert [len(hole.token_ids) for hole in every.holes] == [8, 8]
    assert every.completion_tokens == len(template)
    one = every.holes[1].token_ids[2]
    cut = engine.generate(prompt, SamplingParams(stop_token_ids=[one]), canvas=template)
    whole = engine.generate(prompt, SamplingParams(), canvas=template)
    for hole, full in zip(cut.holes, whole.holes, strict=True):
        ids = full.token_ids
        assert hole.token_ids == (ids[: ids.index(one)] if one in ids else ids)
    assert cut.finish_reason == "length"


def test_text_of_a_stream_only_grows_and_holes_fill_up(engine):
    template = template_of(4, tokens(5, 8), 9, tokens(2, 9), 6)
    outputs = list(engine.stream(tokens(25, 4), SamplingParams(threshold=0.95), canvas=template))
    assert len(outputs) > 2
    for before, after in pairwise(outputs):
        assert after.text.startswith(before.text)
        for old, new in zip(before.holes, after.holes, strict=True):
            assert new.token_ids[: len(old.token_ids)] == old.token_ids
    tokenizer = engine.tokenizer
    last = outputs[-1]
    assert last.text == tokenizer.decode(last.token_ids)
    assert [hole.text for hole in last.holes] == [tokenizer.decode(hole.token_ids) for hole in last.holes]


def test_templates_and_plain_requests_in_one_batch(engine):
    """A list of prompts with a template for some gives what each gives alone."""
    prompts = [tokens(20 + n, n) for n in range(4)]
    templates: list[Any] = [None, template_of(5, tokens(3, 1), 4), None, template_of(tokens(9, 2), 7)]
    params = SamplingParams(max_new_tokens=16, threshold=0.5)
    together = engine.generate(prompts, params, canvas=templates, cache_mode="none")
    for prompt, template, output in zip(prompts, templates, together, strict=True):
        alone = engine.generate(prompt, params, canvas=template, cache_mode="none")
        assert (alone.token_ids, alone.nfe, alone.holes) == (output.token_ids, output.nfe, output.holes)
        assert bool(output.holes) == (template is not None)


def filling(engine: Engine, seed: int, template: Sequence[int], mode: CacheMode, priority: int = 0) -> Request:
    """A request with a template, threshold 0.6."""
    params = SamplingParams(threshold=0.6, seed=1)
    (request,) = open_requests(engine, [tokens(21, seed)], params, mode, "", [list(template)], priority=priority)
    return request


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name_of", ["holes at both ends", "a block without masks", "begins with full blocks"])
def test_a_template_that_was_preempted_ends_as_if_it_had_not_been(folder, name_of, mode, after):
    """One place, and a request of higher priority takes it: fixed tokens and finished blocks stay, the block that was
    under way starts again with its own fixed tokens, and holes get what they get without it."""
    template = TEMPLATES[name_of]
    with make_engine(folder, max_running_requests=1) as engine:
        expected = engine.generate(tokens(21, 1), SamplingParams(threshold=0.6), cache_mode=mode, canvas=template)
        driver = Driver(engine)
        low, high = filling(engine, 1, template, mode), filling(engine, 2, template, mode, 1)
        driver.add(low)
        for _ in range(after):
            driver.step()
        preempted = driver.scheduler.has_work
        driver.add(high)
        driver.run()
        end = driver.end(low)
        assert end.preemptions == int(preempted)
        assert driver.order == ([high.rid, low.rid] if preempted else [low.rid, high.rid])
        assert (end.token_ids, end.text, end.holes) == (expected.token_ids, expected.text, expected.holes)
        assert (end.finish_reason, end.canvas_tokens) == ("length", expected.canvas_tokens)
        assert end.nfe >= expected.nfe
        assert_nothing_lost(engine)


@pytest.mark.parametrize("mode", MODES)
def test_every_hole_of_a_template_that_was_preempted_keeps_its_length_and_place(folder, mode):
    """Also where a prefix of other requests is reused, and preempted twice: in the first block and in a later one."""
    template = template_of(3, tokens(4, 90), 6, tokens(2, 91), 5)
    with make_engine(folder, max_running_requests=1) as engine:
        engine.generate(tokens(21, 1), SamplingParams(max_new_tokens=8), cache_mode=mode)
        driver = Driver(engine)
        low = filling(engine, 1, template, mode)
        driver.add(low)
        for seed in (2, 3):
            driver.step()
            if driver.scheduler.has_work:
                driver.add(filling(engine, seed, template, mode, 1))
                while driver.scheduler.num_waiting:
                    driver.step()
        driver.run()
        end = driver.end(low)
        assert end.preemptions >= 1
        assert [(hole.start, hole.stop) for hole in end.holes] == runs(template)
        ids = list(end.token_ids)
        for hole in end.holes:  # what is fixed stands between what the holes hold
            assert ids[: len(hole.token_ids)] == list(hole.token_ids)
            ids = ids[len(hole.token_ids) :]
            fixed = template[hole.stop :]
            fixed = fixed[: next((at for at, token in enumerate(fixed) if token < 0), len(fixed))]
            assert ids[: len(fixed)] == fixed
            ids = ids[len(fixed) :]
        assert ids == []
        assert_nothing_lost(engine)


@pytest.mark.parametrize(
    ("canvas", "words"),
    [
        ([], "no -1"),
        ([5, 6], "no -1"),
        ([-1, -2], "-2"),
        ([-1, 64], "64"),
        ([-1, "x"], "'x'"),
        ([-1, True], "True"),
        ([5, MASK_ID, -1], f"token id {MASK_ID}, the mask"),
        ("abc", "must be a list"),
        (7, "must be a list"),
        ([-1] * 200, "over the model's maximum"),
    ],
)
def test_bad_templates(engine, canvas, words):
    with pytest.raises(InvalidRequestError, match=r"canvas|max_new_tokens") as caught:
        engine.generate(tokens(5), canvas=canvas)
    assert words in str(caught.value)


def test_other_mistakes_with_templates(engine):
    with pytest.raises(InvalidRequestError, match="one such list for each prompt"):
        engine.generate([tokens(5), tokens(6)], canvas=[[-1]])
    with pytest.raises(InvalidRequestError, match="stop can't be used with a canvas"):
        engine.generate(tokens(5), SamplingParams(stop="a"), canvas=[-1])
    with pytest.raises(InvalidRequestError, match="shared_prefix"):
        engine.generate(tokens(5), shared_prefix=-1)
