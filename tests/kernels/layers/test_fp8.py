"""Rows in fp8: how far they are from what they stand for, and that scales can be applied later."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.layers.fp8 import Rows8, add_norm_quantize, quantized, swiglu_quantize
from shoal.kernels.layers.rms_norm import rms_norm
from shoal.kernels.layers.swiglu import swiglu
from shoal.runtime.model.linear import Linear
from shoal.runtime.worker.gpu import fp8_linear
from shoal.runtime.worker.gpu.fp8_linear import Fp8Linear

HALF_STEP = 2**-4
"""Of e4m3's three bits behind the point: the largest relative error of a number that is not small."""


def wide(rows: Rows8) -> torch.Tensor:
    return rows.data.float() * rows.scale


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rows_keep_their_maximum_and_four_bits_of_the_rest() -> None:
    x = random(9, 200) * torch.logspace(-6, 6, 9)[:, None]
    rows = quantized(x)
    top = x.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(wide(rows).abs().amax(-1, keepdim=True), top)
    assert ((wide(rows) - x).abs() <= HALF_STEP * x.abs() + top / 448 * 2**-9).all()
    assert (wide(quantized(torch.zeros(2, 8))) == 0).all()
    assert wide(quantized(torch.full((1, 8), torch.nan))).isnan().all()


@pytest.mark.parametrize("rows", [3, 40])
def test_a_product_is_the_same_scaled_at_once_or_later(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_linear, "MOST_UNSCALED_ROWS", 16)
    linear = Linear(random(64, 48, seed=1) * torch.logspace(-2, 1, 48), random(48, seed=2))
    quantised, x = Fp8Linear(linear), random(rows, 64)
    final, none = quantised.of_rows(quantized(x), final=True)
    later, scales = quantised.of_rows(quantized(x), final=False)
    assert none is None
    assert (scales is None) == (rows > 16)
    torch.testing.assert_close(later if scales is None else scales.apply(later), final)
    right = linear.product(x)
    error = (final - right).norm(dim=0) / right.norm(dim=0)  # each output has its own scale
    assert error.mean() < 0.05
    assert (error < 0.15).all()
    assert linear.bias is not None
    torch.testing.assert_close(quantised(x, right), final + linear.bias + right)


def test_residual_and_norm_on_the_way() -> None:
    hidden, product, weight = random(5, 64), random(5, 64, seed=1), random(64, seed=2).abs()
    linear = Fp8Linear(Linear(random(32, 64, seed=3)))
    _, scales = linear.of_rows(quantized(random(5, 32)), final=False)
    assert scales is not None
    for given in (None, scales):
        state = hidden.clone()
        rows = add_norm_quantize(state, product, given, weight, 1e-5)
        expected = hidden + (product if given is None else given.apply(product))
        torch.testing.assert_close(state, expected)
        right = quantized(rms_norm(expected, weight, 1e-5))
        assert (rows.data.float() != right.data.float()).float().mean() < 0.02  # a last bit before the rounding
        torch.testing.assert_close(rows.scale, right.scale)
    assert torch.equal(add_norm_quantize(hidden).data.float(), quantized(hidden).data.float())


def test_swiglu_on_the_way() -> None:
    gate_up = random(5, 64)
    linear = Fp8Linear(Linear(random(32, 64, seed=3)))
    _, scales = linear.of_rows(quantized(random(5, 32)), final=False)
    for given in (None, scales):
        rows = swiglu_quantize(gate_up, given)
        right = quantized(swiglu(gate_up if given is None else given.apply(gate_up)))
        assert (rows.data.float() != right.data.float()).float().mean() < 0.02
        torch.testing.assert_close(rows.scale, right.scale)
