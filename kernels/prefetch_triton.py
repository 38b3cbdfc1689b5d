"""`prefetch.py` inside Triton kernels: each thread of each program asks for one run of bytes."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .prefetch import Prefetch


@triton.jit
def prefetch_share(ptr, num_bytes, run, program, LANES: tl.constexpr):
    """Ask for the runs of `run` bytes (a multiple of 16) of lanes program * LANES to program * LANES + LANES - 1."""
    begin = (program * LANES + tl.arange(0, LANES)) * run
    size = tl.minimum(run, num_bytes - begin)
    address = ptr.to(tl.int64) + begin.to(tl.int64)
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred some;
            setp.gt.s32 some, $2, 0;
            @some cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.s32 $0, 0;
        }
        """,
        "=r,l,r", [address, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


def _can(x: Tensor) -> bool:
    """Whether kernels on x can ask for bytes: not in the interpreter, and not on GPUs before sm_90."""
    return os.environ.get("TRITON_INTERPRET") != "1" and (not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (9, 0))


def prefetch_arguments(
    prefetch: Prefetch | None, like: Tensor, programs: int, lanes: int
) -> tuple[Tensor | None, int, int]:
    """The tensor, its bytes and the bytes of a lane, as kernels take them; the first is None if nothing is to be done."""
    if prefetch is None or not _can(like):
        return None, 0, 0
    prefetch.check()
    run = triton.cdiv(triton.cdiv(prefetch.num_bytes, programs * lanes), 16) * 16
    return prefetch.tensor, prefetch.num_bytes, run
