"""Dispatch without a GPU and without Triton; attention where the kernel for Hopper GPUs can't be had."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.kernels import dispatch
from shoal.kernels.attention import gpu
from shoal.kernels.attention.batch import AttentionBatch
from shoal.kernels.attention.reference import attention
from shoal.kernels.dispatch import kernel

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
    monkeypatch.setattr(gpu, "_hopper_missing", False)
    monkeypatch.setattr(dispatch, "uses_triton", lambda _: True)
    monkeypatch.setattr(gpu, "_hopper_fits", lambda *_: not gpu._hopper_missing)
    return kernel


def hopper(monkeypatch, error: Exception | None) -> Kernel:
    kernel = Kernel(error)
    monkeypatch.setitem(sys.modules, "shoal.kernels.attention.hopper_triton", SimpleNamespace(attention_hopper=kernel))
    return kernel


def test_a_kernel_that_does_not_compile_is_tried_once_and_the_portable_one_answers(portable, monkeypatch, caplog):
    kernel = hopper(monkeypatch, AttributeError("module 'gl' has no attribute 'warp_specialize'"))
    for _ in range(3):
        assert attention(QUERIES, POOL, 0, BATCH)[0] is QUERIES
    assert (kernel.calls, portable.calls) == (1, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "does not compile (AttributeError" in caplog.text


def test_running_out_of_memory_is_no_reason_to_do_without_it(portable, monkeypatch):
    kernel = hopper(monkeypatch, torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError):
        attention(QUERIES, POOL, 0, BATCH)
    kernel.error = None
    attention(QUERIES, POOL, 0, BATCH)
    assert (kernel.calls, portable.calls) == (2, 0)


def test_a_module_that_does_not_load_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(gpu, "_hopper_missing", False)
    monkeypatch.delenv(gpu.HOPPER_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "shoal.kernels.attention.hopper_triton", SimpleNamespace())
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    assert not gpu._hopper_fits(on_gpu, POOL, None, False)
    assert not gpu._hopper_fits(on_gpu, POOL, None, False)
    assert len(caplog.records) == 1
    assert "does not load (ImportError" in caplog.text


def test_a_kernel_is_a_decorator_and_a_module_beside_the_contract(monkeypatch):
    """The Triton module is imported at the first call that needs it, and gets the call's arguments as they are."""

    @kernel("double_triton.double_triton")
    def double(x: torch.Tensor, times: int = 1) -> torch.Tensor:
        """x times 2^times."""
        return x * 2**times

    assert double.__doc__ == "x times 2^times."
    assert double(torch.ones(1), times=3) == 8
    monkeypatch.setattr(dispatch, "uses_triton", lambda device: device.type == "meta")
    with pytest.raises(ModuleNotFoundError, match="double_triton"):
        double(torch.ones(1, device="meta"))
    beside = f"{__name__.rpartition('.')[0]}.double_triton"
    monkeypatch.setitem(sys.modules, beside, SimpleNamespace(double_triton=lambda x, times: (x, times)))
    x = torch.ones(1, device="meta")
    assert double(x, times=4) == (x, 4)
    assert double(torch.ones(1)) == double.reference(torch.ones(1)) == 2
