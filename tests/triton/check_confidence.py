"""Confidence against softmax in float64, and the choice of the backend."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels import dispatch
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.reference import attention
from shoal.kernels.layers.kv_write import rope_write_kv
from shoal.kernels.layers.rms_norm import rms_norm
from shoal.kernels.layers.swiglu import swiglu
from shoal.kernels.sampling import confidence_triton
from shoal.kernels.sampling.confidence import confidence

from .checks import DEVICE, DTYPES, Recorder, close, far, fresh

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def grids(monkeypatch):
    recorder = Recorder(confidence_triton._scan_kernel)
    monkeypatch.setattr(confidence_triton, "_scan_kernel", recorder)
    return recorder.grids


def check(logits: torch.Tensor, splits: int | None) -> None:
    found = confidence_triton.confidence_triton(logits, splits)
    p = logits.double().cpu().softmax(-1)
    best = p.topk(2, dim=-1).values
    assert found.token.dtype == torch.int64
    assert torch.equal(found.token.cpu(), logits.float().cpu().max(-1, keepdim=True).values.eq(logits.float().cpu())
                       .to(torch.int8).argmax(-1))  # fmt: skip
    close(found.probability, best[:, 0])
    close(found.margin, best[:, 0] - best[:, 1])
    close(found.entropy, torch.special.entr(p).sum(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
@pytest.mark.parametrize(
    ("vocabulary", "splits", "made"), [(123, None, 1), (9001, 1, 1), (9001, 2, 2), (9001, None, 5)]
)
def test_summaries_of_the_softmax(grids, vocabulary, splits, made, scale, dtype):
    check(fresh(17, vocabulary + 5, dtype=dtype)[:, :vocabulary] * scale, splits)
    assert grids == [(17, made)]


@pytest.mark.parametrize("splits", [1, 3])
def test_impossible_tokens(splits):
    logits = fresh(4, 9001)
    logits[0, 17] = -torch.inf
    logits[1, :5000] = -torch.inf
    logits[2, 5000:] = -torch.inf
    check(logits, splits)
    logits[:] = -torch.inf
    logits[:, 8888] = -3.0
    found = confidence_triton.confidence_triton(logits, splits)
    assert (found.token == 8888).all()
    assert [column.tolist() for column in found[1:]] == [[1.0] * 4, [1.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("places", [(8000, 41), (4200, 4100), (123, 123 + 4096), (8999, 9000)])
def test_the_lower_of_two_equal_tokens_wins_with_no_margin(places, splits):
    logits = fresh(2, 9001)
    logits[:, list(places)] = 30.0
    found = confidence_triton.confidence_triton(logits, splits)
    assert (found.token == min(places)).all()
    assert (found.margin == 0).all()
    close(found.probability, torch.full((2,), 0.5))


def test_logits_far_from_zero():
    check(fresh(3, 500) + 1e4, 1)
    check(fresh(3, 500) - 1e4, 1)


def test_offsets_past_two_to_the_31(tmp_path):
    logits = far(tmp_path, (3, 123), (2**30 + 64, 1))
    logits.copy_(fresh(3, 123))
    check(logits, 1)


def test_no_rows():
    assert [column.shape for column in confidence_triton.confidence_triton(fresh(0, 123))] == [(0,)] * 4


@pytest.fixture
def backend():
    yield dispatch.set_backend
    dispatch.set_backend(None)


def test_both_backends_give_the_same(backend):
    x, weight, gate_up, logits = fresh(5, 64), fresh(64), fresh(5, 246), fresh(5, 123)
    qkv, cos, sin = fresh(5, 4, 64), fresh(5, 32), fresh(5, 32)
    positions = torch.arange(5, dtype=torch.int32, device=DEVICE)
    rows = torch.zeros(5, dtype=torch.int32, device=DEVICE)
    batch = AttentionBatch.build(torch.tensor([[[3, 1]]], dtype=torch.int32, device=DEVICE), [0], [5], [5])

    def everything() -> list[torch.Tensor]:
        pool = torch.zeros((4, 2, 16, 1, 64), device=DEVICE)
        q = rope_write_kv(qkv[:, :2], qkv[:, 2:3], qkv[:, 3:], cos, sin, positions, rows, batch, 0, pool)
        return [
            rms_norm(x, weight, 1e-5), swiglu(gate_up),
            *confidence(logits), q, pool, *attention(q, pool, 0, batch, num_splits=2),
        ]  # fmt: skip

    backend("reference")
    expected = everything()
    backend("triton")
    assert dispatch.backend() == "triton"
    for found, wanted in zip(everything(), expected, strict=True):
        assert found.dtype == wanted.dtype
        close(found, wanted)
