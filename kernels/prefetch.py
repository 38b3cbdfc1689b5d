"""Bringing weights into the L2 cache while a kernel that leaves the memory idle runs.

A block step of few rows waits for weights most of the time, except while its small kernels run: these wait for their
own launch and for one another. A kernel that is given a `Prefetch` asks for the weights of the product that comes next
and does not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The first `num_bytes` bytes (a multiple of 16, at most all) of a tensor's memory; its values do not matter.

    A hint: results never depend on it. It needs a GPU of compute capability 9.0 or later; elsewhere it is ignored.
    """

    tensor: Tensor
    num_bytes: int

    def check(self) -> None:
        """ValueError unless num_bytes are there and divide by 16."""
        there = self.tensor.untyped_storage().nbytes() - self.tensor.storage_offset() * self.tensor.element_size()
        if not 0 < self.num_bytes <= there or self.num_bytes % 16:
            raise ValueError(f"num_bytes {self.num_bytes} must be a multiple of 16 from 16 to {there}")
