"""What the checks of the Triton kernels share: device, dtypes, tolerances, fresh random data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

DEVICE = torch.device(os.environ.get("SHOAL_TEST_DEVICE", "cpu"))
"""The CPU means Triton's interpreter."""

DTYPES = [torch.float32] if DEVICE.type == "cpu" else [torch.float32, torch.bfloat16]
"""The interpreter computes wrongly in bf16."""


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-2


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    """`found` is what float64 arithmetic gives, to the tolerance of dtype."""
    wide = found.double().cpu()
    torch.testing.assert_close(wide, expected.double().cpu(), rtol=tolerance(dtype), atol=tolerance(dtype))


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def far(path: Path, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """A view whose first stride takes it past 2^31 elements; on the CPU over a sparse file, which costs nothing."""
    assert (shape[0] - 1) * strides[0] > 2**31
    size = shape[0] * strides[0]
    if DEVICE.type == "cpu":
        whole = torch.from_file(str(path / "sparse"), shared=True, size=size, dtype=torch.float32)
    else:
        whole = torch.empty(size, device=DEVICE)
    return whole.as_strided(shape, strides)


class Recorder:
    """Stands in for a Triton kernel, launches it and keeps the grids."""

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self.kernel[grid]
