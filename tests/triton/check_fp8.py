"""Residual, norm and SwiGLU with rows in fp8 as their result: Triton against references."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.layers.fp8 import Rows8, Scales, add_norm_quantize, swiglu_quantize
from shoal.kernels.layers.fp8_triton import add_norm_quantize_triton, swiglu_quantize_triton

from .checks import DEVICE, DTYPES, close, fresh

pytestmark = pytest.mark.usefixtures("poisoned")


def same(found: Rows8, expected: Rows8) -> None:
    """Scales to the last bits; numbers but for those that a last bit rounds the other way.

    The interpreter loses the carry where a number is rounded up to a power of two.
    """
    close(found.scale, expected.scale)
    a, b = found.data.float(), expected.data.float()
    checked = (b.frexp().mantissa.abs() != 0.5) if DEVICE.type == "cpu" else torch.ones_like(b, dtype=torch.bool)
    assert (a != b)[checked].float().mean() < 0.05
    assert ((a - b).abs() <= 0.13 * b.abs() + 2**-9)[checked].all()


def scales_of(rows: int, columns: int) -> Scales:
    return Scales(fresh(rows, 1).abs() + 0.1, (fresh(columns, 1).abs() + 0.1).t())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (5, 200), (3, 4096)])
@pytest.mark.parametrize("kind", ["rows", "norm", "product", "scaled", "last"])
def test_add_norm_quantize(kind, rows, columns, dtype):
    hidden, product, weight = (fresh(rows, columns, dtype=dtype) for _ in range(3))
    arguments = {
        "rows": (None, None, None), "norm": (None, None, weight[0]), "product": (product, None, weight[0]),
        "scaled": (product, scales_of(rows, columns), weight[0]), "last": (product, scales_of(rows, columns), None),
    }[kind]  # fmt: skip
    mine, other = hidden.clone(), hidden.clone()
    found = add_norm_quantize_triton(mine, *arguments, 1e-5)
    expected = add_norm_quantize.reference(other, *arguments, 1e-5)
    close(mine, other, dtype)
    if dtype == torch.float32:
        same(found, expected)
    else:
        close(found.data.float() * found.scale, expected.data.float() * expected.scale, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 48), (7, 300)])
def test_swiglu_quantize(rows, columns, scaled, dtype):
    gate_up = fresh(rows, 2 * columns + 16, dtype=dtype)[:, : 2 * columns]
    scales = scales_of(rows, 2 * columns) if scaled else None
    same(swiglu_quantize_triton(gate_up, scales), swiglu_quantize.reference(gate_up, scales))


def test_a_row_that_is_no_number_stays_so_and_zeros_stay_zeros():
    hidden = fresh(4, 64)
    hidden[1] = 0
    hidden[2, 5] = torch.nan
    found = add_norm_quantize_triton(hidden)
    values = found.data.float() * found.scale
    assert (values[1] == 0).all()
    assert values[2].isnan().any()
    assert values[[0, 1, 3]].isfinite().all()
    assert DEVICE.type == found.data.device.type
