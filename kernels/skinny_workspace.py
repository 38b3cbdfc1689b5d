"""Scratch memory of the skinny linear kernels: partial sums, and counters of the programs that have left theirs."""

from __future__ import annotations

import torch
from torch import Tensor


class SkinnyWorkspace:
    """Grows as plans need; owned by its maker, used by one stream at a time.

    Launches that share a workspace must not run at the same time. Counters are zero between launches: the program that
    arrives last at one resets it. So a CUDA graph may be replayed any number of times. Memory that was outgrown is
    kept, for graphs may hold its address; none is taken while a graph is captured (RuntimeError): run each shape once
    before.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.parts = torch.empty(0, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(0, dtype=torch.int32, device=device)
        self._outgrown: list[Tensor] = []

    def reserve(self, part_numbers: int, counters: int) -> None:
        """Hold at least so many fp32 numbers of partial sums and so many counters."""
        if part_numbers <= self.parts.numel() and counters <= self.arrivals.numel():
            return
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a skinny product needs more workspace during a graph capture: call it once before")
        if part_numbers > self.parts.numel():
            self._outgrown.append(self.parts)
            self.parts = torch.empty(part_numbers, dtype=torch.float32, device=self.device)
        if counters > self.arrivals.numel():
            self._outgrown.append(self.arrivals)
            self.arrivals = torch.zeros(counters, dtype=torch.int32, device=self.device)


_workspaces: dict[torch.device, SkinnyWorkspace] = {}


def device_workspace(device: torch.device) -> SkinnyWorkspace:
    """The workspace of all calls on a device that name none."""
    return _workspaces.setdefault(device, SkinnyWorkspace(device))
