"""What the sampler is told of logits, against the formulas in float64."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from shoal.kernels.sampling.confidence import confidence


def logits_of(rows: int, vocabulary: int, scale: float = 3.0, impossible: int | None = None) -> torch.Tensor:
    logits = scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows + vocabulary))
    if impossible is not None:
        logits[:, impossible] = -math.inf
    return logits


@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0])
@pytest.mark.parametrize("vocabulary", [2, 41, 5003])
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_summaries_are_the_formulas(rows, vocabulary, scale, monkeypatch):
    monkeypatch.setattr(sys.modules[confidence.__module__], "_ROWS_AT_ONCE", 50)
    logits = logits_of(rows, vocabulary, scale, impossible=vocabulary // 2 if vocabulary > 2 else None)
    found = confidence(logits)
    p = logits.double().softmax(1)
    first, second = p.sort(1, descending=True).values[:, :2].T
    entropy = [-sum(x * math.log(x) for x in row if x > 0) for row in p.tolist()]
    assert torch.equal(found.token, logits.argmax(1))
    torch.testing.assert_close(found.probability.double(), first, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.margin.double(), first - second, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.entropy.double(), torch.tensor(entropy, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    assert {each.dtype for each in found[1:]} == {torch.float32}
    assert found.token.dtype == torch.int64


def test_rows_do_not_depend_on_one_another_nor_on_the_slices(monkeypatch):
    logits = logits_of(100, 333)
    whole = confidence(logits)
    for rows_at_once in (1, 7, 99, 100, 101):
        monkeypatch.setattr(sys.modules[confidence.__module__], "_ROWS_AT_ONCE", rows_at_once)
        assert all(torch.equal(a, b) for a, b in zip(confidence(logits), whole, strict=True))
    alone = confidence(logits[42:43])
    assert all(torch.equal(a, b[42:43]) for a, b in zip(alone, whole, strict=True))


def test_half_precision_is_summed_in_fp32():
    logits = logits_of(9, 5003).bfloat16()
    found = confidence(logits)
    expected = logits.double().softmax(1)
    torch.testing.assert_close(found.probability.double(), expected.max(1).values, rtol=1e-4, atol=1e-6)
    assert found.probability.dtype == torch.float32


def test_certainty_and_ignorance():
    certain = torch.full((1, 50), -math.inf)
    certain[0, 7] = 2.0
    found = confidence(certain)
    assert (int(found.token), float(found.probability), float(found.margin)) == (7, 1.0, 1.0)
    assert float(found.entropy) == 0.0
    ignorant = confidence(torch.zeros(1, 50))
    assert float(ignorant.margin) == 0.0
    assert float(ignorant.entropy) == pytest.approx(math.log(50), rel=1e-5)


def test_the_argument_is_left_alone_and_no_rows_give_nothing():
    logits = logits_of(5, 41)
    before = logits.clone()
    confidence(logits)
    assert torch.equal(logits, before)
    assert [len(each) for each in confidence(torch.empty(0, 41))] == [0, 0, 0, 0]
