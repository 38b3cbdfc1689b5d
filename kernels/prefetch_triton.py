"""`prefetch.py` inside Triton kernels: each program asks for one run of bytes."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .prefetch import Prefetch


@triton.jit
def prefetch_share(ptr, num_bytes, run, program):
    """Ask for the `run` bytes (a multiple of 16) from program * run on; one thread of the program does."""
    begin = program * run
    size = tl.minimum(run, num_bytes - begin)
    address = ptr.to(tl.int64) + begin.to(tl.int64)
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred some;
            .reg .pred first;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            setp.gt.and.s32 some, $2, 0, first;
            @some cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.s32 $0, 0;
        }
        """,
        "=r,l,r", [address, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


def _can(x: Tensor) -> bool:
    """Whether kernels on x can ask for bytes: not in the interpreter, and not on GPUs before sm_90."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return False
    return not x.is_cuda or torch.cuda.get_device_capability(x.device) >= (9, 0)


def prefetch_arguments(prefetch: Prefetch | None, like: Tensor, programs: int) -> tuple[Tensor | None, int, int]:
    """The tensor, its bytes and those of a program, as kernels take them; the first is None for nothing to do."""
    if prefetch is None or not _can(like):
        return None, 0, 0
    prefetch.check()
    run = triton.cdiv(triton.cdiv(prefetch.num_bytes, programs), 16) * 16
    return prefetch.tensor, prefetch.num_bytes, run
