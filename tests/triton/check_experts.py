"""Experts: routing, tokens sorted by expert, grouped products and their sum, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoal.kernels.layers import experts_triton, routing_triton
from shoal.kernels.layers.experts import expert_mlp
from shoal.kernels.layers.experts_triton import Tiles, choose_tiles, expert_mlp_triton

from .checks import DEVICE, DTYPES, close, fresh, tolerance

pytestmark = pytest.mark.usefixtures("poisoned")


def dense(*inputs: Any) -> torch.Tensor:
    """Every expert on every token in float64, weighted by 0 where it was not chosen."""
    residual, x, router, gate_up, down = (t.double().cpu() for t in inputs[:5])
    top_k: int = inputs[5]
    p = (x @ router.t()).softmax(-1)
    chosen = p.topk(top_k, dim=-1)
    weights = torch.zeros_like(p).scatter(1, chosen.indices, chosen.values)
    gate, up = torch.einsum("th,efh->tef", x, gate_up).chunk(2, dim=-1)
    y = torch.einsum("tef,ehf->teh", F.silu(gate) * up, down)
    return residual + (y * weights[..., None]).sum(1)


def world(tokens: int, hidden: int, width: int, experts: int, dtype: torch.dtype) -> list[Any]:
    """residual, x, router, gate_up, down; x in 16 bits, as the router gets it."""
    weights = (fresh(experts, 2 * width, hidden, dtype=dtype) / hidden**0.5, fresh(experts, hidden, width, dtype=dtype))
    wide = fresh(tokens, hidden + 8, dtype=dtype)
    return [fresh(tokens, hidden, dtype=dtype), wide[:, :hidden], fresh(experts, hidden) / 4, *weights]


def run(function: Any, inputs: list[Any], *more: Any) -> torch.Tensor:
    """The residual stays as it is."""
    found: torch.Tensor = function(inputs[0].clone(), *inputs[1:], *more)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "experts", "top_k"),
    [(1, 64, 48, 8, 2), (41, 96, 40, 8, 3), (123, 200, 72, 5, 5), (7, 64, 32, 64, 8), (300, 64, 16, 3, 1)],
)
def test_experts(tokens, hidden, width, experts, top_k, dtype):
    inputs = world(tokens, hidden, width, experts, dtype)
    expected = dense(*inputs, top_k)
    reference = run(expert_mlp.reference, inputs, top_k)
    found = run(expert_mlp_triton, inputs, top_k)
    scale = float(expected.abs().max())
    for result in (reference, found):
        error = (result.double().cpu() - expected).abs().max() / scale
        assert error < tolerance(dtype), float(error)


def test_many_tokens_of_one_expert_take_several_tiles_and_the_others_none():
    inputs = world(70, 64, 32, 6, torch.float32)
    inputs[1][:, 0], inputs[2][4, 0] = 10.0, 50.0
    tiles = (Tiles(16, 16, 64, 4, 1), Tiles(16, 32, 64, 4, 1))
    found, expected = run(expert_mlp_triton, inputs, 1, tiles), dense(*inputs, 1)
    close(found / expected.abs().max().float().to(DEVICE), expected / expected.abs().max())


def test_a_tokens_result_does_not_depend_on_its_company():
    """Bit for bit on a GPU; the interpreter's products depend on a row's place."""
    inputs = world(40, 64, 32, 6, torch.float32)
    tiles = (Tiles(16, 16, 64, 4, 1), Tiles(16, 32, 64, 4, 1))
    together = run(expert_mlp_triton, inputs, 3, tiles)
    for token in (0, 17, 39):
        own = slice(token, token + 1)
        alone = run(expert_mlp_triton, [*(x[own] for x in inputs[:2]), *inputs[2:]], 3, tiles)
        close(alone, together[own])
        assert DEVICE.type == "cpu" or torch.equal(alone, together[own])


def test_rows_that_are_no_numbers_reach_the_output_and_nothing_else():
    inputs = world(9, 64, 32, 6, torch.float32)
    plain = run(expert_mlp_triton, inputs, 2)
    inputs[1][4, 3] = torch.nan
    found = run(expert_mlp_triton, inputs, 2)
    assert found[4].isnan().all()
    others = torch.arange(9, device=DEVICE) != 4
    close(found[others], plain[others])


@pytest.mark.parametrize(
    "tiles",
    [
        (Tiles(16, 16, 64, 4, 1, swap=True), Tiles(32, 64, 16, 4, 1)),
        (Tiles(16, 16, 32, 4, 1, swap=True, bulk=True), Tiles(32, 64, 16, 4, 1, bulk=True)),
        (Tiles(16, 16, 64, 4, 1, programs=1), Tiles(16, 16, 32, 4, 1, swap=True, bulk=True, programs=2)),
    ],
    ids=["swapped", "bulk", "programs"],
)
def test_every_way_to_cut_the_products_gives_the_same(tiles, monkeypatch):
    """Sizes that no tile divides; programs take several tiles each."""
    monkeypatch.setattr(experts_triton, "num_sms", lambda _: 3)
    for dtype in DTYPES:
        inputs = world(45, 96, 40, 7, dtype)
        expected = dense(*inputs, 3)
        error = (run(expert_mlp_triton, inputs, 3, tiles).double().cpu() - expected).abs().max() / expected.abs().max()
        assert error < tolerance(dtype), float(error)


def test_pairs_are_placed_by_expert_then_by_token(monkeypatch):
    """Also where more chunks are counted than at once."""
    monkeypatch.setattr(routing_triton, "_COUNTED", 2)
    for tokens in (20, 50, 200):
        routed = routing_triton.route(fresh(tokens, 64), fresh(7, 64), 2)
        ids = routed.ids.long()
        order = ids.argsort(stable=True)
        assert torch.equal(routed.tokens.long(), order // 2)
        assert torch.equal(routed.places.long(), order.argsort())
        assert routed.starts.tolist() == [int((ids < expert).sum()) for expert in range(8)]


def test_routing_is_that_of_fp32():
    """Also where x is in 16 bits: probabilities to fp32's precision, and so the same experts."""
    for dtype in DTYPES:
        x, router = fresh(70, 520, dtype=dtype), fresh(11, 520) / 8
        routed = routing_triton.route(x, router, 4)
        p = (x.double() @ router.double().t()).softmax(-1)
        chosen = p.topk(4, dim=-1)
        assert torch.equal(routed.ids.view(70, 4).long(), chosen.indices.sort(-1).values)
        close(routed.weights.view(70, 4), p.gather(1, chosen.indices.sort(-1).values))


def test_tiles_fit_the_shared_memory_of_every_gpu():
    for have in (99 << 10, 163 << 10, 227 << 10):
        for tokens in (1, 32, 256, 1024, 1 << 14):
            for itemsize in (2, 4):
                for tiles, weights in zip(choose_tiles(8 * tokens, 64, itemsize, have), (2, 1), strict=True):
                    held = tiles._replace(stages=tiles.stages - (tiles.rows < 64))
                    assert held.shared_memory(weights, itemsize) <= have - 2048
                    assert held.stages >= 1
