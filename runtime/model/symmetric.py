"""A buffer that all GPUs of a machine can read and write (torch's symmetric memory), for sums of few rows.

NCCL sums 32 rows of 4,096 bf16 numbers in 13.5 us on two H200, the two-shot kernel over symmetric memory in 7.3 us:
each rank sums its share of the elements and writes it to all. NVLink multicast is not used.
"""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from torch import Tensor

logger = logging.getLogger(__name__)
_ALIGNED_BYTES = 16


class SymmetricBuffer:
    """[rows, width] at the same place of every rank's symmetric memory; `make` allocates it."""

    def __init__(self, buffer: Tensor, group: str, ranks: int):
        self._buffer, self._group, self._ranks = buffer, group, ranks

    @classmethod
    def make(cls, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> SymmetricBuffer | None:
        """Allocate on every rank; None, with a line in the log, where GPUs can't reach each other's memory."""
        try:
            from torch.distributed import _symmetric_memory as symmetric_memory

            world = dist.group.WORLD
            assert world is not None
            buffer = symmetric_memory.empty((rows, width), dtype=dtype, device=device)
            symmetric_memory.rendezvous(buffer, group=world.group_name)
        # ImportError, RuntimeError, or whatever a torch without the feature raises: NCCL does the work then.
        except Exception as error:
            logger.warning("no symmetric memory, sums over ranks go through NCCL: %s", str(error).partition("\n")[0])
            return None
        return cls(buffer, world.group_name, dist.get_world_size())

    def room(self, rows: int) -> Tensor | None:
        """The first `rows` rows; None when it has fewer."""
        return self._buffer[:rows] if rows <= len(self._buffer) else None

    def add_up(self, x: Tensor) -> bool:
        """Sum x over the ranks in place; False, and nothing is done, when x is no room of this buffer."""
        inside = x.data_ptr() == self._buffer.data_ptr() and x.is_contiguous()
        if not inside or x.numel() * x.element_size() % (_ALIGNED_BYTES * self._ranks):
            return False
        torch.ops.symm_mem.two_shot_all_reduce_(x, "sum", self._group)
        return True
