"""What becomes of attention when the kernel for Hopper GPUs can not be had: no GPU and no Triton are needed to see."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.kernels import dispatch
from shoal.kernels.attention.batch import AttentionBatch

POOL = torch.zeros(4, 2, 16, 1, 64)
QUERIES = torch.zeros(100, 1, 64)
BATCH = AttentionBatch.build(torch.zeros((1, 1, 4), dtype=torch.int32), [0], [100], [100])


class Kernel:
    """Counts its calls, and raises what it was given."""

    def __init__(self, error: Exception | None = None):
        self.calls, self.error = 0, error

    def __call__(self, q, *_, **__):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return q, q


@pytest.fixture
def portable(monkeypatch):
    """The portable kernel's stand-in, on a device that seems to be a Hopper GPU."""
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "shoal.kernels.attention.triton", SimpleNamespace(attention_triton=kernel))
    monkeypatch.setattr(dispatch, "_hopper_missing", False)
    monkeypatch.setattr(dispatch, "uses_triton", lambda _: True)
    monkeypatch.setattr(dispatch, "_hopper_fits", lambda *_: not dispatch._hopper_missing)
    return kernel


def hopper(monkeypatch, error: Exception | None) -> Kernel:
    kernel = Kernel(error)
    monkeypatch.setitem(sys.modules, "shoal.kernels.attention.hopper_triton", SimpleNamespace(attention_hopper=kernel))
    return kernel


def test_a_kernel_that_does_not_compile_is_tried_once_and_the_portable_one_answers(portable, monkeypatch, caplog):
    kernel = hopper(monkeypatch, AttributeError("module 'gl' has no attribute 'warp_specialize'"))
    for _ in range(3):
        assert dispatch.attention(QUERIES, POOL, 0, BATCH)[0] is QUERIES
    assert (kernel.calls, portable.calls) == (1, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not compile (AttributeError" in caplog.text


def test_running_out_of_memory_is_no_reason_to_do_without_it(portable, monkeypatch):
    kernel = hopper(monkeypatch, torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError):
        dispatch.attention(QUERIES, POOL, 0, BATCH)
    kernel.error = None
    dispatch.attention(QUERIES, POOL, 0, BATCH)
    assert (kernel.calls, portable.calls) == (2, 0)


def test_a_module_that_does_not_load_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_hopper_missing", False)
    monkeypatch.delenv(dispatch.HOPPER_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "shoal.kernels.attention.hopper_triton", SimpleNamespace())
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    assert not dispatch._hopper_fits(on_gpu, POOL, None)
    assert not dispatch._hopper_fits(on_gpu, POOL, None)
    assert len(caplog.records) == 1
    assert "does not load (ImportError" in caplog.text
