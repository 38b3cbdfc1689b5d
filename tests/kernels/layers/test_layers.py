"""The torch references of the decoder's kernels, against formulas in float64."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.layers.rms_norm import rms_norm
from shoal.kernels.layers.rope import apply_rope, rope_table
from shoal.kernels.layers.swiglu import swiglu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("function", [rms_norm, rms_norm.reference])
def test_rms_norm_divides_by_the_root_mean_square(dtype, function):
    x, weight = random(41, 123).to(dtype), random(123, seed=1).to(dtype)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(1, keepdim=True) + 0.1).sqrt() * weight.double()
    found = function(x, weight, 0.1)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_rms_norm_squares_in_fp32():
    x = torch.full((2, 64), 1000.0, dtype=torch.float16)
    assert torch.equal(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-5), torch.ones_like(x))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rope_turns_dimension_j_with_j_plus_half_by_position_times_speed(dtype):
    head_dim, theta, position = 10, 10000.0, 1234
    cos, sin = rope_table(position + 1, head_dim, theta)
    x = random(1, 3, head_dim).to(dtype)
    found = apply_rope(x, cos[position:], sin[position:])
    assert found.dtype == dtype
    for j in range(head_dim // 2):
        angle = torch.tensor(position * theta ** (-2 * j / head_dim), dtype=torch.float64)
        left, right = x[0, :, j].double(), x[0, :, j + head_dim // 2].double()
        expected = torch.stack([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()])
        pair = torch.stack([found[0, :, j], found[0, :, j + head_dim // 2]]).double()
        torch.testing.assert_close(pair, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_rope_reads_strided_input_and_leaves_it_alone():
    cos, sin = rope_table(7, 8, 100.0)
    whole = random(7, 5, 8)
    before = whole.clone()
    assert torch.equal(apply_rope(whole[:, 1:4], cos, sin), apply_rope(whole[:, 1:4].contiguous(), cos, sin))
    assert torch.equal(whole, before)


def test_rope_table_keeps_its_precision_at_far_positions():
    cos, _ = rope_table(131072, 4, 1e6)
    expected = torch.cos(torch.tensor(131071 * 1e6**-0.5, dtype=torch.float64))
    assert abs(cos[131071, 1].double() - expected) < 1e-7


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("function", [swiglu, swiglu.reference])
def test_swiglu_gates_the_second_half_with_the_first(dtype, function):
    gate_up = random(41, 2 * 123).to(dtype)
    gate, up = gate_up.double()[:, :123], gate_up.double()[:, 123:]
    found = function(gate_up)
    assert found.dtype == dtype
    assert found.shape == (41, 123)
    torch.testing.assert_close(
        found.double(), gate / (1 + (-gate).exp()) * up, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [333, 704])
def test_rows_of_the_elementwise_kernels_do_not_depend_on_the_batch_or_the_threads(threads, width):
    gate_up, weight = random(400, 2 * width), random(2 * width, seed=1)
    cos, sin = random(400, 5), random(400, 5, seed=2)

    def rows(tokens: slice) -> torch.Tensor:
        x = gate_up[tokens]
        turned = apply_rope(x[:, :320].view(-1, 32, 10), cos[tokens], sin[tokens])
        return torch.cat([swiglu(x), rms_norm(x, weight, 1e-5), turned.flatten(1)], dim=1)

    before = torch.get_num_threads()
    alone = torch.cat([rows(slice(i, i + 1)) for i in range(400)])
    try:
        torch.set_num_threads(threads)
        for tokens in (slice(0, 400), slice(0, 129), slice(0, 17), slice(3, 304)):
            assert torch.equal(rows(tokens), alone[tokens]), tokens
    finally:
        torch.set_num_threads(before)
