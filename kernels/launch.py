"""Launches that overlap (programmatic dependent launch, from compute capability 9.0 on).

A kernel launched so is set up while the kernel before it is still running, and waits, before it touches memory, until
that one has ended. That spares about a microsecond a launch, which counts where kernels take few. Off unless
SHOAL_OVERLAP_LAUNCHES=1 is in the environment at the first launch, or `set_overlap(True)` was called.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

VARIABLE = "SHOAL_OVERLAP_LAUNCHES"

_overlap: bool | None = None


def set_overlap(on: bool | None) -> None:
    """Whether launches overlap from now on in this process; None means: as the environment says."""
    global _overlap
    _overlap = on


def overlapping(x: Tensor) -> dict[str, bool]:
    """Keyword arguments of a launch that works on x: whether it overlaps with the kernel before."""
    global _overlap
    if _overlap is None:
        _overlap = os.environ.get(VARIABLE, "0") == "1"
    if _overlap and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0):
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}
