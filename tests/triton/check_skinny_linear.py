"""Skinny linear layers against formulas in float64: ways of sharing the work, epilogues, counters, refusals."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import skinny_linear_triton as module
from shoal.kernels.skinny_linear import skinny_linear_reference, skinny_swiglu_reference
from shoal.kernels.skinny_linear_triton import skinny_linear_triton, skinny_swiglu_triton
from shoal.kernels.skinny_tiling import SkinnyTiling, choose_skinny, default_tiling, plan_skinny
from shoal.kernels.skinny_workspace import SkinnyWorkspace

from .checks import DEVICE, DTYPES, Recorder, fresh

pytestmark = pytest.mark.usefixtures("poisoned")

GPU = DEVICE.type == "cuda"
SHAPES = [(41, 123, 112), (1, 33, 16), (128, 64, 80)]
TILINGS = {
    "whole": SkinnyTiling(32, block_inner=32, num_stages=2),
    "whole of two widths": SkinnyTiling(64, 32, block_inner=32, num_stages=3),
    "splits": SkinnyTiling(64, splits=3, block_inner=32, num_stages=2),
    "splits of two widths": SkinnyTiling(32, 16, splits=2, block_inner=32, num_stages=3),
    "in step": SkinnyTiling(32, splits=2, block_inner=32, num_stages=2, stagger=False),
    "pointers": SkinnyTiling(32, 16, splits=3, block_inner=32, num_stages=2, bulk=False),
}


def near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, size: float = 1.0) -> None:
    """To 1e-5 (bf16 1e-2) of the size that sums of so many products have; an infinity or NaN is never near."""
    limit = (1e-5 if dtype == torch.float32 else 1e-2) * size
    error = (found.double() - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    assert error <= limit, (error, limit)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().t()


def gated(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    gate, up = product(x, weight).to(dtype).double().chunk(2, dim=1)
    return gate / (1 + (-gate).exp()) * up


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
@pytest.mark.parametrize(("rows", "columns", "inner"), SHAPES)
def test_product_bias_and_residual(monkeypatch, rows, columns, inner, tiling, dtype):
    recorder = Recorder(module._skinny_kernel)
    monkeypatch.setattr(module, "_skinny_kernel", recorder)
    x, weight, bias = fresh(rows, inner, dtype=dtype), fresh(columns, inner, dtype=dtype), fresh(columns, dtype=dtype)
    residual = fresh(rows, columns + 5, dtype=dtype)[:, 5:]
    wide = product(x, weight)
    near(
        skinny_linear_triton(x, weight, bias, residual, tiling=tiling), wide + bias.double() + residual.double(), dtype
    )
    plan = plan_skinny(rows, columns, inner, dtype == torch.float32, False, tiling)
    assert recorder.grids == [(plan.column_tiles * plan.splits, plan.row_tiles)]
    assert torch.equal(skinny_linear_triton(x, weight, tiling=tiling), skinny_linear_triton(x, weight, tiling=tiling))

    out = torch.full((rows, columns + 3), torch.nan, dtype=dtype, device=DEVICE)
    assert skinny_linear_triton(x, weight, out=out[:, 1:-2], tiling=tiling).data_ptr() == out[:, 1:].data_ptr()
    near(out[:, 1:-2], wide, dtype)
    assert out[:, :1].isnan().all()
    assert out[:, -2:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS)
def test_the_gated_product(tiling, dtype):
    for rows, columns, inner in ((41, 43, 112), (2, 64, 16)):
        x, weight = fresh(rows, inner, dtype=dtype), fresh(2 * columns, inner, dtype=dtype)
        near(skinny_swiglu_triton(x, weight, tiling=tiling), gated(x, weight, dtype), dtype, 2.0)
        near(skinny_swiglu_reference(x, weight), gated(x, weight, dtype), dtype, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_in_place_and_counters_that_reset(dtype):
    tiling, workspace = TILINGS["splits of two widths"], SkinnyWorkspace(DEVICE)
    x, weight = fresh(33, 96, dtype=dtype), fresh(123, 96, dtype=dtype)
    wide, residual = product(x, weight), fresh(33, 123, dtype=dtype)
    for _ in range(3):
        expected = residual.double() + wide
        assert skinny_linear_triton(x, weight, None, residual, residual, tiling=tiling, workspace=workspace) is residual
        near(residual, expected, dtype)
        assert workspace.arrivals.numel() > 0
        assert not workspace.arrivals.any()
        workspace.parts.fill_(torch.nan)
    before = workspace.parts
    larger = fresh(400, 96, dtype=dtype)
    near(skinny_linear_triton(x, larger, tiling=tiling, workspace=workspace), product(x, larger), dtype)
    near(skinny_linear_triton(x, weight, tiling=tiling, workspace=workspace), wide, dtype)
    assert before.data_ptr() in {x.data_ptr() for x in (*workspace._outgrown, workspace.parts)}


def test_what_lies_outside_is_not_read():
    """Rows past x's and the weight's own hold NaN, and so do columns past K."""
    x, weight = (torch.full((64, 128), torch.nan, device=DEVICE) for _ in range(2))
    x[:5, :48], weight[:37, :48] = fresh(5, 48), fresh(37, 48)
    for tiling in TILINGS.values():
        found = skinny_linear_triton(x[:5, :48], weight[:37, :48], tiling=tiling)
        near(found, product(x[:5, :48], weight[:37, :48]), torch.float32)


def test_an_infinity_reaches_its_outputs_only():
    x, weight = fresh(17, 64), fresh(40, 64)
    x[3, 5] = torch.inf
    found = skinny_linear_triton(x, weight, tiling=TILINGS["splits of two widths"])
    assert found[3].isinf().all()
    assert found[torch.arange(17) != 3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference(dtype):
    x, weight, bias = fresh(41, 112, dtype=dtype), fresh(30, 112, dtype=dtype), fresh(30, dtype=dtype)
    residual = fresh(41, 30, dtype=dtype)
    expected = product(x, weight) + bias.double() + residual.double()
    assert skinny_linear_reference(x, weight, bias, residual, residual) is residual
    near(residual, expected, dtype)


def test_no_rows_and_no_columns():
    assert skinny_linear_triton(fresh(0, 32), fresh(8, 32)).shape == (0, 8)
    assert skinny_swiglu_triton(fresh(3, 32), fresh(0, 32)).shape == (3, 0)


def test_arguments_that_do_not_fit_are_refused():
    x, weight = fresh(4, 32), fresh(8, 32)
    for function in (skinny_linear_triton, skinny_linear_reference):
        with pytest.raises(ValueError, match="last dimension"):
            function(x, fresh(8, 16))
        with pytest.raises(ValueError, match="multiple of 16"):
            function(fresh(4, 24), fresh(8, 24))
        with pytest.raises(ValueError, match="bias"):
            function(x, weight, fresh(7))
        with pytest.raises(ValueError, match="residual"):
            function(x, weight, None, fresh(4, 9))
        with pytest.raises(ValueError, match="out is"):
            function(x, weight, out=fresh(4, 8).double())
        with pytest.raises(ValueError, match="contiguous"):
            function(x, fresh(32, 8).t())
        with pytest.raises(ValueError, match="float16"):
            function(x.half(), weight.half())
    for gate in (skinny_swiglu_triton, skinny_swiglu_reference):
        with pytest.raises(ValueError, match="even"):
            gate(x, fresh(7, 32))
    with pytest.raises(ValueError, match="16 bytes"):
        skinny_linear_triton(fresh(4, 33)[:, :32], weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_chosen_tiling(dtype):
    rows, columns, inner = (33, 600, 512) if GPU else (33, 60, 64)
    x, weight = fresh(rows, inner, dtype=dtype), fresh(2 * columns, inner, dtype=dtype)
    near(skinny_linear_triton(x, weight), product(x, weight), dtype)
    near(skinny_swiglu_triton(x, weight), gated(x, weight, dtype), dtype, 2.0)


def test_when_a_blas_is_chosen():
    assert choose_skinny(32, 4096, 4096, torch.bfloat16) == default_tiling(32, 4096, 4096, torch.bfloat16)
    assert choose_skinny(33, 4096, 4096, torch.bfloat16) is None
    assert choose_skinny(0, 4096, 4096, torch.bfloat16) is None
    assert choose_skinny(32, 4096, 4072, torch.bfloat16) is None
    assert choose_skinny(32, 4096, 4096, torch.float32) is None
    assert choose_skinny(32, 12288, 4096, torch.bfloat16, gated=True) is None


def test_plans():
    plan = plan_skinny(33, 12288, 4096, False, False, SkinnyTiling(64, 32))
    assert (plan.block_rows, plan.row_tiles, plan.column_tiles, plan.splits) == (64, 1, 128, 1)
    assert (plan.part_numbers, plan.counters) == (0, 0)
    plan = plan_skinny(100, 4096, 96, False, True, SkinnyTiling(128, splits=4))
    assert (plan.block_rows, plan.column_tiles, plan.splits) == (128, 32, 2)
    assert (plan.part_numbers, plan.counters) == (128 * 4096 * 2 * 2, 32)
    assert plan_skinny(100, 64, 64, True, False, SkinnyTiling(32)).row_tiles == 4


@pytest.mark.parametrize(("columns", "inner"), [(12288, 4096), (4096, 12288), (4608, 3584), (37, 16), (3584, 18944)])
def test_default_tilings_fit_an_h200(columns, inner):
    for rows in (1, 32, 33, 128):
        for gated in (False, True):
            tiling = default_tiling(rows, columns, inner, torch.bfloat16, gated)
            plan = plan_skinny(rows, columns, inner, False, gated, tiling)
            width = (tiling.block_columns + tiling.more_columns) * (2 if gated else 1)
            assert tiling.num_stages * 2 * tiling.block_inner * (plan.block_rows + width) <= 227 * 1024
            assert plan.column_tiles * plan.splits <= 132 or plan.splits == 1


if GPU:

    def test_graphs_replay_and_early_launches_wait():
        """A chain in which each product reads what the one before wrote, captured and replayed."""
        for early in (-1, 0, 3):
            tiling = SkinnyTiling(32, 16, 3, early_tiles=early)
            x, weights = fresh(32, 2048, dtype=torch.bfloat16), fresh(6, 2048, 2048, dtype=torch.bfloat16) / 2048**0.5
            expected = x
            for weight in weights:
                expected = skinny_linear_reference(expected, weight)

            def chain(
                x: torch.Tensor = x, weights: torch.Tensor = weights, tiling: SkinnyTiling = tiling
            ) -> torch.Tensor:
                y = x
                for weight in weights:
                    y = skinny_linear_triton(y, weight, tiling=tiling)
                return y

            first = chain()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = chain()
            for _ in range(20):
                y.fill_(torch.nan)
                graph.replay()
                torch.cuda.synchronize()
                assert torch.equal(y, first)
            near(first, expected.double(), torch.bfloat16, 4.0)
