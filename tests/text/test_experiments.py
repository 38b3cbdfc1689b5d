"""What the measurements of `text` are made with: questions about documents, and selective recomputation."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.text_modes import Run, repeated
from benchmarks.text_reuse import Task
from benchmarks.text_selective import CHOOSERS, change, choose, selective
from benchmarks.text_tasks import CANVAS, OWN, TEMPLATES, Questions, prefix_length
from shoal.text.network import MASK, Network
from shoal.text.reuse import capture, resumed


@pytest.fixture(scope="module")
def network(base) -> Network:
    return Network.load_base(base)


@pytest.fixture(scope="module")
def rows() -> Task:
    generator = torch.Generator().manual_seed(1)
    tokens, donors = (torch.randint(17, 400, (3, 40), generator=generator) for _ in range(2))
    tokens[:, 34:] = MASK
    return Task(tokens, tokens, tokens == MASK, torch.cat((tokens[:, :24], donors[:, 24:]), 1))


@torch.inference_mode()
def test_recomputing_all_or_no_tokens_is_reuse_to_a_depth(network, rows):
    donor = capture(network, rows.donors, 24)[1]
    expected = dict(resumed(network, rows.tokens, 24, donor, [1, 3]))
    everything = torch.arange(24).repeat(3, 1)
    for chosen, depth in ((everything, 1), (None, 3)):
        found = selective(network, rows.tokens, 24, donor, 1, chosen)
        torch.testing.assert_close(found, expected[depth], rtol=0, atol=1e-4)
    some = selective(network, rows.tokens, 24, donor, 1, everything[:, 4:9])
    assert all((some - expected[depth]).abs().max() > 1e-3 for depth in (1, 3))


@torch.inference_mode()
def test_a_probe_finds_the_tokens_whose_keys_changed(network, rows):
    donor = capture(network, rows.donors, 24)[1]
    same = capture(network, rows.tokens, 24)[1]
    assert change(network, rows.tokens, 24, same, 0).max() < 1e-3  # its own capture: nothing moves
    moved = change(network, rows.tokens, 24, donor, 0)
    _, truth = capture(network, rows.tokens, 24)
    expected = sum(
        ((new - old).norm(dim=-1) / new.norm(dim=-1)).mean(1)
        for new, old in ((truth.keys[1], donor.keys[1]), (truth.values[1], donor.values[1]))
    )
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_choices_are_as_many_places_as_asked_for_in_order(network, rows):
    donor = capture(network, rows.donors, 24)[1]
    for by in CHOOSERS:
        chosen = choose(network, rows, 24, donor, 1, by, 0.25)
        assert chosen.shape == (3, 6)
        assert (chosen.diff(dim=1) > 0).all()


@pytest.mark.parametrize("task", ["look-up", "quotation", "missing word", "summary"])
def test_prompt_and_donor_share_the_prefix_and_end_otherwise(asker, task):
    made = Questions(asker.documents).make(task, 0.7, 8)
    prefix = prefix_length(task, 0.7)
    assert [question.template for question in made] == [*range(TEMPLATES)] * 2
    for question in made:
        assert question.prompt[:prefix] == question.donor[:prefix]
        assert question.prompt[prefix:] != question.donor[prefix:]
        assert len(question.prompt) == prefix + OWN
        assert prefix / (len(question.prompt) + CANVAS[task]) == pytest.approx(0.7, abs=0.01)
        if question.answer:
            assert question.is_right(f"It is {question.answer.upper()}.")
            assert question.answer in asker.tokenizer.decode(list(question.prompt[:prefix]))
    assert made == Questions(asker.documents).make(task, 0.7, 8)


def test_repetition_is_the_share_of_4_grams_that_stood_before():
    assert repeated([1, 2, 3]) == 0.0
    assert repeated([1, 2, 3, 4, 5, 6]) == 0.0
    assert repeated([1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 3)


def test_runs_are_named_as_the_modes_with_depth_and_interval():
    assert Run.parse("dual") == Run("dual")
    assert Run.parse("none:reversed") == Run("none", reverse=True)
    assert Run.parse("bicache:6") == Run("bicache", 6)
    assert Run.parse("bicache:12:8") == Run("bicache", 12, 8)
    for wrong in ("full", "bicache", "dual:6", "bicache:deep"):
        with pytest.raises(argparse.ArgumentTypeError, match=wrong):
            Run.parse(wrong)
