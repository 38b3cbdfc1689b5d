"""Sizes of the attention kernels' tiles. Imports no Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

SM_90_SHARED_MEMORY = 227 << 10
"""Bytes of shared memory that a program can have on an H100 or H200; most other GPUs have less."""

SM_90_SMS = 132
"""Streaming multiprocessors (SMs) of an H100 or H200 SXM."""


@dataclass(frozen=True, slots=True)
class AttentionTiling:
    """Tile sizes and launch options of the attention kernel.

    block_rows: rows (query x head of a KV group) of a tile; block_keys: keys of a tile, powers of two from 16 on.
    num_warps, num_stages: of the program, and of the pipeline of loads.
    bulk: copy pages through the tensor memory accelerator where a page holds whole tiles.
    heads_first: programs that run side by side are the KV heads of a tile, not the tiles of a head.
    most_registers: of a thread; 168 let three programs of 4 warps share an SM.
    """

    block_rows: int
    block_keys: int
    num_warps: int = 4
    num_stages: int = 2
    bulk: bool = False
    heads_first: bool = False
    most_registers: int | None = None

    def shared_memory(self, head_dim: int, itemsize: int) -> int:
        """Bytes of shared memory for a program's queries and for the keys and values in flight.

        A program of 16 bits takes this much and up to 2 KiB more, one of fp32 or on older GPUs less.
        """
        return (self.block_rows + 2 * self.num_stages * self.block_keys) * head_dim * itemsize


_stand_in: tuple[int, int, tuple[int, int] | None] = (SM_90_SMS, SM_90_SHARED_MEMORY, None)
"""SMs, bytes of shared memory and compute capability that devices other than CUDA's seem to have."""


def stand_in(sms: int, memory: int, capability: tuple[int, int]) -> None:
    """From now on devices other than CUDA's seem to be such a GPU."""
    global _stand_in
    _stand_in = (sms, memory, capability)
    num_sms.cache_clear()
    shared_memory.cache_clear()
    capability_of.cache_clear()


@cache
def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of this GPU; None for any other device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else _stand_in[2]


@cache
def num_sms(device: torch.device) -> int:
    """SMs of this GPU; those of an H100 for any other device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _stand_in[0]


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program on this GPU can have; those of sm_90 for any other device."""
    if device.type != "cuda":
        return _stand_in[1]
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", SM_90_SHARED_MEMORY))


def choose_tiling(
    tokens: int, requests: int, group: int, page_size: int, head_dim: int, wide: bool, fresh: bool,
    memory: int = SM_90_SHARED_MEMORY,
) -> AttentionTiling:  # fmt: skip
    """The tiling for a batch, from its shape alone: nothing is read on the device.

    `group` is heads / kv_heads. `wide` means fp32, whose products need many registers: hence the small tiles.
    `fresh`: the launch reads fresh keys. `memory`: `shared_memory` of the GPU. The sizes for 16 bits are the fastest of
    those measured on an H200 with head dimension 128 (benchmarks/results/kernels.csv). Those for less shared memory
    leave registers enough to the products of such GPUs, whose operands stand there too (compiled for sm_80 and sm_89,
    not measured).
    """
    rows = math.ceil(tokens / max(1, requests)) * group
    bulk = page_size >= 64
    if wide:
        return AttentionTiling(min(32, max(16, _power_of_2(rows))), 16, 8, 2)
    if memory < SM_90_SHARED_MEMORY:
        if head_dim > 128:
            return AttentionTiling(32, 32, 4, 2)
        return AttentionTiling(128, 32, 8, 3) if rows > 512 else AttentionTiling(32, 64, 4, 2)
    if head_dim > 128:  # two stages fit an SM's shared memory
        return AttentionTiling(128 if rows > 512 else 64, 64, 8, 2, bulk=bulk)
    if fresh and rows > 512:
        return AttentionTiling(128, 128, 8, 3, bulk=page_size >= 128)
    if rows > 512:
        return AttentionTiling(128, 64, 8, 3, bulk=bulk)
    if rows <= 64:  # programs of few requests have an SM each: room for another stage
        return AttentionTiling(64, 64, 4, 4 if requests <= 4 else 3, bulk=bulk, heads_first=True)
    return AttentionTiling(64, 64, 4, 3, bulk=bulk)


def most_shared_memory(group: int, page_size: int, head_dim: int, wide: bool, memory: int) -> int:
    """`AttentionTiling.shared_memory` of the largest tiling that `choose_tiling` may choose."""
    tilings = [
        choose_tiling(rows, 1, group, page_size, head_dim, wide, fresh, memory)
        for rows in (1, 65, 513)
        for fresh in (False, True)
    ]
    return max(tiling.shared_memory(head_dim, 4 if wide else 2) for tiling in tilings)


def request_lanes(requests: int) -> int:
    """Lanes in which a program looks for its request, a constant of the kernel; 1 where nothing has to be found."""
    return 1 if requests == 1 else max(64, _power_of_2(requests))


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
