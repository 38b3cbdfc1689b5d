"""The ranks of a model: processes of one machine that hold a slice of its weights each (tensor parallelism).

Megatron-LM's split (Shoeybi et al. 2019, arXiv 1909.08053): queries, keys, values, gate and up are split along their
outputs, the attention's output and down along their inputs, so that a layer needs two sums over the ranks. Embedding,
norms, router and head are whole on every rank. All ranks run the same forwards in the same order, and every sum has
the same bits on all of them, so they commit the same tokens without telling each other.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import RankLostError
from .symmetric import SymmetricBuffer

_LOOPBACK = Path("/sys/class/net/lo")
_ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast stays off: it needs a fabric manager that many machines lack, and hangs without it."""


class Ranks:
    """One rank's side of the group. `join` makes it; a process joins once.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are; at least 2.
    """

    def __init__(self, rank: int, size: int, device: torch.device, symmetric: SymmetricBuffer | None = None):
        self.rank, self.size = rank, size
        self._device = device
        self._symmetric = symmetric

    @classmethod
    def join(cls, rendezvous: str | Path, rank: int, size: int, device: torch.device, timeout_s: float) -> Ranks:
        """Wait for the other ranks, and connect to them: over NCCL on GPUs, over gloo on CPUs.

        Args:
            rendezvous: a file that does not exist yet, the same for all ranks, in a folder that only this user enters.
            rank, size: which one this is, and of how many.
            device: of this rank's weights.
            timeout_s: seconds that a rank waits for another.

        Connections go over the loopback interface and ports that the system chooses. Raises RuntimeError when the
        others do not come in time.
        """
        names = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if _LOOPBACK.exists() else {}
        for name, value in {**_ENVIRONMENT, **names}.items():
            os.environ.setdefault(name, value)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        store = dist.FileStore(str(rendezvous), size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )  # fmt: skip
        ranks = cls(rank, size, device)
        ranks.least(0)  # connects now, not within the first forward or a graph's capture
        return ranks

    def reserve(self, rows: int, width: int, dtype: torch.dtype) -> None:
        """On GPUs, make room for sums of up to [rows, width] in symmetric memory, if the machine has it.

        All ranks must call it together.
        """
        if self._device.type == "cuda":
            self._symmetric = SymmetricBuffer.make(rows, width, dtype, self._device)
            if self.least(int(self._symmetric is not None)) == 0:
                self._symmetric = None

    def room(self, rows: int) -> Tensor | None:
        """[rows, width] of symmetric memory, always the same, where `add_up` is fastest; None if there is none."""
        return None if self._symmetric is None else self._symmetric.room(rows)

    def add_up(self, x: Tensor) -> Tensor:
        """Sum of every rank's x, of any shape, in place; returns x. The same bits on every rank.

        On a CPU an element's bits do not depend on the shape: ranks are added in order. Raises RankLostError.
        """
        if self._device.type == "cuda":
            if self._symmetric is None or not self._symmetric.add_up(x):
                dist.all_reduce(x)
            return x
        first, *others = self._collect(x)
        x.copy_(first)
        for other in others:
            x += other
        return x

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Every rank's x (equal shapes), side by side along `dim`: a new tensor, the same on every rank."""
        return torch.cat(list(self._collect(x)), dim)

    def least(self, value: int) -> int:
        """The smallest of every rank's values, on every rank."""
        held = torch.tensor(value, dtype=torch.int64, device=self._device)
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return int(held)

    def _collect(self, x: Tensor) -> Tensor:
        """[size, *x.shape]."""
        out = torch.empty((self.size, *x.shape), dtype=x.dtype, device=x.device)
        parts = list(out.view(self.size, -1).view(torch.uint8))  # as bytes: gloo does not know every dtype
        try:
            dist.all_gather(parts, x.contiguous().view(-1).view(torch.uint8))
        except RuntimeError as error:
            words = str(error).partition(". ")[0]
            raise RankLostError(f"rank {self.rank} has lost another rank: {words}", field="tp_size") from error
        return out
