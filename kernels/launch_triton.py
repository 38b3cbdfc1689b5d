"""The other half of `launch.py`, inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wait_for_the_kernel_before(OVERLAP: tl.constexpr):
    """First thing in a kernel whose launch overlaps: nothing that others write may be read or overwritten earlier."""
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
