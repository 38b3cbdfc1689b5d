"""RMSNorm, SwiGLU and RoPE with the paged write, against formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.layers import kv_write_triton, swiglu_triton
from shoal.kernels.layers.embed import embed
from shoal.kernels.layers.embed_triton import embed_triton
from shoal.kernels.layers.fp8 import Scales
from shoal.kernels.layers.head_norm import HeadNorm
from shoal.kernels.layers.kv_write import rope_write_kv
from shoal.kernels.layers.rms_norm_triton import rms_norm_triton
from shoal.kernels.layers.rope import rope_table
from shoal.kernels.layers.row_norm import RowNorm
from shoal.kernels.layers.swiglu import swiglu

from .checks import DEVICE, DTYPES, Recorder, close, far, fresh

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 123, 256])
def test_rms_norm(columns, dtype):
    x = fresh(41, columns + 3, dtype=dtype)[:, 1 : columns + 1]
    weight = fresh(columns, dtype=dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(1, keepdim=True) + 0.1).sqrt() * weight.double()
    close(rms_norm_triton(x, weight, 0.1), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [41, 1123])
def test_swiglu_over_more_than_one_tile(monkeypatch, columns, dtype):
    recorder = Recorder(swiglu_triton._swiglu_kernel)
    monkeypatch.setattr(swiglu_triton, "_swiglu_kernel", recorder)
    gate_up = fresh(13, 2 * columns + 1, dtype=dtype)[:, :-1] * 3
    gate, up = gate_up.double().chunk(2, dim=1)
    close(swiglu_triton.swiglu_triton(gate_up), gate / (1 + (-gate).exp()) * up, dtype)
    assert recorder.grids == [(13, -(-columns // 1024))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 123, 256])
def test_embeddings_of_the_tokens_at_positions(columns, dtype):
    table = fresh(50, columns + 3, dtype=dtype)[:, :columns]
    tokens = torch.randint(0, 50, (7, 40), dtype=torch.int32, device=DEVICE)
    slots = torch.tensor([5, 0, 6], dtype=torch.int32, device=DEVICE)
    requests = torch.tensor([0, 0, 1, 2, 2, 2], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([39, 0, 17, 3, 4, -1], dtype=torch.int32, device=DEVICE)
    expected = table[tokens.long()[[5, 5, 0, 6, 6, 6], [39, 0, 17, 3, 4, 0]]]
    for function in (embed_triton, embed.reference):
        assert torch.equal(function(table, tokens, slots, requests, positions), expected)
    assert embed_triton(table, tokens, slots, requests[:0], positions[:0]).shape == (0, columns)
    with pytest.raises(ValueError, match=r"positions is torch\.int64"):
        embed_triton(table, tokens, slots, requests, positions.long())
    with pytest.raises(ValueError, match="must be contiguous"):
        embed_triton(fresh(50, 4, dtype=dtype).t(), tokens, slots, requests, positions)


def test_swiglu_of_large_gates_is_finite():
    gate_up = torch.tensor([[-200.0, 200.0, 1.0, 1.0]], device=DEVICE)
    close(swiglu_triton.swiglu_triton(gate_up), torch.tensor([[0.0, 200.0]]))


def tables(requests: int, bands: int, pages: int, num_pages: int) -> AttentionBatch:
    """Page tables in which no two requests share a page; entries of all bands but the last are wrong."""
    ids = torch.full((requests + 1, bands, pages), 2**30, dtype=torch.int32)
    ids[1:, -1] = torch.randperm(num_pages)[: requests * pages].view(requests, pages).to(torch.int32)
    slots = list(range(requests, 0, -1))
    return AttentionBatch.build(ids.to(DEVICE), slots, [0] * requests, [0] * requests)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), [
    (9, 12, 2, 64), (2, 9, 9, 128), (8, 1, 1, 64), (3, 21, 3, 16), (2, 7, 1, 256),
])  # fmt: skip
def test_rope_and_the_paged_write(monkeypatch, tokens, heads, kv_heads, head_dim, page_size, in_place, dtype):
    recorder = Recorder(kv_write_triton._rope_write_kernel)
    monkeypatch.setattr(kv_write_triton, "_rope_write_kernel", recorder)
    qkv = fresh(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    before = qkv.double()
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    rows = torch.randint(0, 2, (tokens,))
    positions = torch.randperm(150)[:tokens]
    positions[tokens // 2] = -1
    rows[tokens // 2] = 2**30
    num_pages = 2 * -(-150 // page_size) + 4
    batch = tables(2, 3, -(-150 // page_size), num_pages)
    cos_table, sin_table = (table.to(DEVICE) for table in rope_table(400, head_dim, 1e4))
    options = {"q_out": q, "k_out": k} if in_place else {}
    real = [token for token in range(tokens) if token != tokens // 2]
    at, request = positions[real], rows[real]
    pages = batch.page_tables[batch.slots[request].long().cpu(), 2, (at // page_size).to(DEVICE)].long()
    offsets = (at % page_size).to(DEVICE)
    positions_there, rows_there = (x.to(DEVICE, torch.int32) for x in (positions, rows))

    left, right = before.chunk(2, dim=-1)
    c, s = (table.double()[positions.clamp(min=0).to(DEVICE)][:, None] for table in (cos_table, sin_table))
    turned = torch.cat([left * c - right * s, right * c + left * s], dim=-1)
    original = qkv.clone()
    for function in (rope_write_kv.reference, kv_write_triton.rope_write_kv_triton):
        qkv.copy_(original)
        pool = torch.full((num_pages, 2, 2, page_size, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)
        rotated = function(q, k, v, cos_table, sin_table, positions_there, rows_there, batch, 2, pool[:, 1], **options)
        assert (rotated is q) == in_place
        close(rotated[real], turned[real, :heads], dtype)
        assert rotated[tokens // 2].isnan().all() or (in_place and torch.equal(qkv, torch.where(
            torch.arange(tokens, device=DEVICE)[:, None, None] == tokens // 2, original, qkv)))  # fmt: skip
        close(pool[pages, 1, 0, offsets], turned[real, heads : heads + kv_heads], dtype)
        close(pool[pages, 1, 1, offsets], before[real, heads + kv_heads :], dtype)
        assert torch.equal(v.double(), before[:, heads + kv_heads :])
        if in_place:
            close(k[real], turned[real, heads : heads + kv_heads], dtype)
        else:
            assert torch.equal(qkv, original)
        pool[pages, 1, :, offsets] = torch.nan
        assert pool.isnan().all()
    assert recorder.grids == [(-(-tokens // 4), -(-heads // 2) + 2 * -(-kv_heads // 2))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_columns", [1, 300, 1500])
def test_swiglu_behind_a_norm_that_was_put_off(hidden_columns, dtype):
    gate_up, hidden = fresh(13, 2 * 1123, dtype=dtype) * 3, fresh(13, hidden_columns + 2, dtype=dtype)[:, :-2] * 2
    factor = (hidden.double().square().mean(1, keepdim=True) + 0.1).rsqrt()
    gate, up = (gate_up.double() * factor).chunk(2, dim=1)
    for function in (swiglu.reference, swiglu_triton.swiglu_triton):
        close(function(gate_up, norm=RowNorm(hidden, 0.1)), gate / (1 + (-gate).exp()) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("with_norm", "with_bias", "per_head", "with_scales"),
    [
        (True, False, False, False),
        (False, True, False, False),
        (True, True, False, False),
        (False, False, True, False),
        (True, True, True, False),
        (False, True, False, True),
        (False, False, True, True),
    ],
)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), [(9, 12, 2, 64), (2, 9, 9, 128)])
def test_rope_behind_a_norm_or_scales_that_were_put_off(
    tokens, heads, kv_heads, head_dim, with_norm, with_bias, per_head, with_scales, dtype
):
    qkv = fresh(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    hidden, bias = fresh(tokens, 1100, dtype=dtype) * 3, fresh(heads + 2 * kv_heads, head_dim, dtype=dtype)
    wide, scales = qkv.double(), None
    if with_scales:
        scales = Scales(fresh(tokens, 1), fresh(1, qkv[0].numel()))
        wide = wide * scales.rows.double()[:, :, None] * scales.columns.double().view(1, *qkv.shape[1:])
    if with_norm:
        wide = wide * (hidden.double().square().mean(1) + 0.1).rsqrt()[:, None, None]
    if with_bias:
        wide = wide + bias.double()
    head_norm = HeadNorm(fresh(head_dim, dtype=dtype), fresh(head_dim, dtype=dtype), 0.2) if per_head else None
    if head_norm is not None:
        normed = wide * (wide.square().mean(2, keepdim=True) + 0.2).rsqrt()
        q_normed, k_normed = normed[:, :heads], normed[:, heads : heads + kv_heads]
        scaled = [q_normed * head_norm.q_weight.double(), k_normed * head_norm.k_weight.double()]
        wide = torch.cat([*scaled, wide[:, heads + kv_heads :]], dim=1)
    positions, rows = torch.randperm(150)[:tokens], torch.randint(0, 2, (tokens,))
    positions[tokens // 2] = -1
    batch = tables(2, 3, 10, 24)
    cos_table, sin_table = (table.to(DEVICE) for table in rope_table(400, head_dim, 1e4))
    left, right = wide.chunk(2, dim=-1)
    c, s = (table.double()[positions.clamp(min=0).to(DEVICE)][:, None] for table in (cos_table, sin_table))
    turned = torch.cat([left * c - right * s, right * c + left * s], dim=-1)
    real = [token for token in range(tokens) if token != tokens // 2]
    pages = batch.page_tables[batch.slots[rows[real]].long().cpu(), 2, (positions[real] // 16).to(DEVICE)].long()
    offsets = (positions[real] % 16).to(DEVICE)
    there = [x.to(DEVICE, torch.int32) for x in (positions, rows)]
    options: dict[str, Any] = {"norm": RowNorm(hidden, 0.1) if with_norm else None, "bias": bias if with_bias else None,
                               "head_norm": head_norm, "scales": scales}  # fmt: skip
    original = qkv.clone()
    functions: list[Any] = [rope_write_kv.reference, kv_write_triton.rope_write_kv_triton]
    for function in functions:
        for in_place in (False, True):
            qkv.copy_(original)
            q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
            pool = torch.full((24, 2, 16, kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE)
            outs = {"q_out": q, "k_out": k} if in_place else {}
            rotated = function(q, k, v, cos_table, sin_table, *there, batch, 2, pool, **outs, **options)
            close(rotated[real], turned[real, :heads], dtype)
            close(pool[pages, 0, offsets], turned[real, heads : heads + kv_heads], dtype)
            close(pool[pages, 1, offsets], wide[real, heads + kv_heads :], dtype)
            if in_place:
                close(k[real], turned[real, heads : heads + kv_heads], dtype)
                assert torch.equal(v, original[:, heads + kv_heads :])
            pool[pages, :, offsets] = torch.nan
            assert pool.isnan().all()


def test_a_norm_that_was_put_off_behind_many_tokens(monkeypatch):
    """So many that tiles would hold several tokens, whose rows are not one and the same."""
    monkeypatch.setattr(kv_write_triton, "MANY_TOKENS", 8)
    qkv, hidden = fresh(19, 3, 32), fresh(19, 40) * torch.arange(1, 20, device=DEVICE)[:, None]
    q, k, v = qkv.split(1, dim=1)
    at = torch.arange(19, dtype=torch.int32, device=DEVICE)
    batch = tables(1, 1, 2, 2)
    cos, sin = (table.to(DEVICE) for table in rope_table(19, 32, 1e4))
    norm = RowNorm(hidden, 0.1)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    functions: list[Any] = [rope_write_kv.reference, kv_write_triton.rope_write_kv_triton]
    for function in functions:
        pool = torch.zeros((2, 2, 16, 1, 32), device=DEVICE)
        found.append((function(q, k, v, cos, sin, at, at * 0, batch, 0, pool, norm=norm), pool))
    for one, other in zip(*found, strict=True):
        close(one, other)
    with pytest.raises(ValueError, match=r"block \(4, 2\): with a norm a tile holds one token"):
        kv_write_triton.rope_write_kv_triton(q, k, v, cos, sin, at, at * 0, batch, 0, pool, norm=norm, block=(4, 2))


def test_offsets_past_two_to_the_31(tmp_path):
    rows, weight = fresh(3, 64), fresh(64)
    x = far(tmp_path, (3, 64), (2**30 + 64, 1))
    x.copy_(rows)
    assert torch.equal(rms_norm_triton(x, weight, 0.1), rms_norm_triton(rows, weight, 0.1))
    assert torch.equal(swiglu_triton.swiglu_triton(x), swiglu_triton.swiglu_triton(rows))


def test_writes_to_places_past_two_to_the_31(tmp_path):
    pool = far(tmp_path, (3, 2, 16, 1, 64), (2**30 + 64, 1024, 64, 64, 1))
    q, cos, sin = fresh(2, 1, 64), torch.ones(32, 32, device=DEVICE), torch.zeros(32, 32, device=DEVICE)
    batch = tables(1, 1, 1, 1)
    batch.page_tables[:] = 2
    positions, rows = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([3, 15], [0, 0]))
    kv_write_triton.rope_write_kv_triton(q, q, q, cos, sin, positions, rows, batch, 0, pool)
    for kv in (0, 1):
        assert torch.equal(pool[2, kv][[3, 15]], q)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="weight"):
        rms_norm_triton(fresh(2, 4), fresh(3), 1e-5)
    with pytest.raises(ValueError, match="last dimension"):
        rms_norm_triton(fresh(4, 2).t(), fresh(4), 1e-5)
    with pytest.raises(ValueError, match="even"):
        swiglu_triton.swiglu_triton(fresh(2, 5))
    q, table, at = fresh(2, 1, 64), fresh(2, 32), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    write, batch = kv_write_triton.rope_write_kv_triton, tables(1, 1, 1, 1)
    with pytest.raises(ValueError, match="do not fit"):
        write(q, q, q, table, table, at, at, batch, 0, fresh(1, 2, 16, 2, 64))
    with pytest.raises(ValueError, match=r"hidden is \(3, 8\); it must be \[2, H\]"):
        write(q, q, q, table, table, at, at, batch, 0, fresh(1, 2, 16, 1, 64), norm=RowNorm(fresh(3, 8), 0.1))
    with pytest.raises(ValueError, match=r"hidden is \(3, 8\); it must be \[2, H\]"):
        swiglu_triton.swiglu_triton(fresh(2, 6), norm=RowNorm(fresh(3, 8), 0.1))
    with pytest.raises(ValueError, match=r"bias \(3, 8\) must be contiguous, \[3, 64\]"):
        write(q, q, q, table, table, at, at, batch, 0, fresh(1, 2, 16, 1, 64), bias=fresh(3, 8))
    with pytest.raises(ValueError, match="positions is"):
        write(q, q, q, table, table, at.long(), at, batch, 0, fresh(1, 2, 16, 1, 64))
    with pytest.raises(ValueError, match="band -1 of 1"):
        write(q, q, q, table, table, at, at, batch, -1, fresh(1, 2, 16, 1, 64))
