"""RMSNorm, SwiGLU and RoPE with the paged write, against formulas in float64."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import kv_write_triton, swiglu_triton
from shoal.kernels.kv_write_triton import rope_write_kv_triton
from shoal.kernels.rms_norm_triton import add_rms_norm_triton, rms_norm_triton
from shoal.kernels.rope import rope_table

from .checks import DEVICE, DTYPES, Recorder, close, far, fresh

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 123, 256])
def test_rms_norm_with_and_without_a_residual(columns, dtype):
    x, residual = (fresh(41, columns + 3, dtype=dtype)[:, 1 : columns + 1] for _ in range(2))
    weight = fresh(columns, dtype=dtype)

    def expected(rows: torch.Tensor) -> torch.Tensor:
        wide = rows.double()
        return wide / (wide.square().mean(1, keepdim=True) + 0.1).sqrt() * weight.double()

    close(rms_norm_triton(x, weight, 0.1), expected(x), dtype)
    y, total = add_rms_norm_triton(x, residual, weight, 0.1)
    assert torch.equal(total, x + residual)
    close(y, expected(total), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [41, 1123])
def test_swiglu_over_more_than_one_tile(monkeypatch, columns, dtype):
    recorder = Recorder(swiglu_triton._swiglu_kernel)
    monkeypatch.setattr(swiglu_triton, "_swiglu_kernel", recorder)
    gate_up = fresh(13, 2 * columns + 1, dtype=dtype)[:, :-1] * 3
    gate, up = gate_up.double().chunk(2, dim=1)
    close(swiglu_triton.swiglu_triton(gate_up), gate / (1 + (-gate).exp()) * up, dtype)
    assert recorder.grids == [(13, -(-columns // 1024))]


def test_swiglu_of_large_gates_is_finite():
    gate_up = torch.tensor([[-200.0, 200.0, 1.0, 1.0]], device=DEVICE)
    close(swiglu_triton.swiglu_triton(gate_up), torch.tensor([[0.0, 200.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), [(41, 12, 2, 64), (1, 9, 9, 128), (16, 1, 1, 64)])
def test_rope_and_the_paged_write(monkeypatch, tokens, heads, kv_heads, head_dim, in_place, dtype):
    recorder = Recorder(kv_write_triton._rope_write_kernel)
    monkeypatch.setattr(kv_write_triton, "_rope_write_kernel", recorder)
    qkv = fresh(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    before = qkv.double()
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    positions = torch.arange(tokens) * 7 + 3
    cos, sin = (table[positions].to(DEVICE) for table in rope_table(400, head_dim, 1e4))
    pool = torch.full((24, 2, 2, 16, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)
    page_table = torch.randperm(24)
    pages, offsets = page_table[positions // 16].to(DEVICE), (positions % 16).to(DEVICE)
    rotated = rope_write_kv_triton(q, k, v, cos, sin, pool[:, 1], pages, offsets, q if in_place else None)
    assert (rotated is q) == in_place

    left, right = before.chunk(2, dim=-1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    turned = torch.cat([left * c - right * s, right * c + left * s], dim=-1)
    close(rotated, turned[:, :heads], dtype)
    close(pool[pages, 1, 0, offsets], turned[:, heads : heads + kv_heads], dtype)
    close(pool[pages, 1, 1, offsets], before[:, heads + kv_heads :], dtype)
    assert torch.equal(qkv[:, heads:].double(), before[:, heads:])
    assert in_place or torch.equal(q.double(), before[:, :heads])
    pool[pages, 1, :, offsets] = torch.nan
    assert pool.isnan().all()
    assert recorder.grids == [(-(-tokens // 16), -(-heads // 8) + 2 * -(-kv_heads // 8))]


def test_offsets_past_two_to_the_31(tmp_path):
    rows, weight = fresh(3, 64), fresh(64)
    x = far(tmp_path, (3, 64), (2**30 + 64, 1))
    x.copy_(rows)
    assert torch.equal(rms_norm_triton(x, weight, 0.1), rms_norm_triton(rows, weight, 0.1))
    assert torch.equal(swiglu_triton.swiglu_triton(x), swiglu_triton.swiglu_triton(rows))


def test_writes_to_places_past_two_to_the_31(tmp_path):
    pool = far(tmp_path, (3, 2, 16, 1, 64), (2**30 + 64, 1024, 64, 64, 1))
    q, cos, sin = fresh(2, 1, 64), torch.ones(2, 32, device=DEVICE), torch.zeros(2, 32, device=DEVICE)
    places = torch.tensor([[2, 3], [2, 15]], dtype=torch.int32, device=DEVICE)
    rope_write_kv_triton(q, q, q, cos, sin, pool, places[:, 0].contiguous(), places[:, 1].contiguous())
    for kv in (0, 1):
        assert torch.equal(pool[2, kv][[3, 15]], q)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="weight"):
        rms_norm_triton(fresh(2, 4), fresh(3), 1e-5)
    with pytest.raises(ValueError, match="residual"):
        add_rms_norm_triton(fresh(2, 4), fresh(1, 4), fresh(4), 1e-5)
    with pytest.raises(ValueError, match="even"):
        swiglu_triton.swiglu_triton(fresh(2, 5))
    q, table, at = fresh(2, 1, 64), fresh(2, 32), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="do not fit"):
        rope_write_kv_triton(q, q, q, table, table, fresh(1, 2, 16, 2, 64), at, at)
