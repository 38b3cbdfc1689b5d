"""SwiGLU (Shazeer 2020, arXiv 2002.05202): y = silu(gate) * up, silu(z) = z / (1 + exp(-z)).

Caution, on the CPU: torch's vectorised exp and the scalar one, used where a run of elements ends, differ in the
last bit, and from 32768 elements on torch cuts the work between threads in the middle of rows. Whole rows up to
that size are therefore passed at a time: a row's result then depends on nothing but the row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from ..dispatch import kernel
from .row_norm import RowNorm

_ELEMENTS_PER_THREAD = 32768


@kernel("swiglu_triton.swiglu_triton")
def swiglu(gate_up: Tensor, norm: RowNorm | None = None) -> Tensor:
    """gate_up [T, 2F] holds the gate in its first F columns and the up projection in the rest; returns [T, F].

    With `norm`, gate_up was computed from hidden states that were not normalised: rows are scaled first, in fp32.
    On the CPU a row's result does not depend on T, nor on the number of threads.
    """
    if norm is not None:
        norm.check(gate_up.shape[0])
        gate, up = (gate_up.float() * norm.factor()).chunk(2, dim=-1)
        return (silu(gate).to(gate_up.dtype) * up).to(gate_up.dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    if gate_up.device.type != "cpu" or gate.numel() < _ELEMENTS_PER_THREAD:
        return silu(gate).mul_(up)
    out = gate.new_empty(gate.shape)
    rows = max(1, (_ELEMENTS_PER_THREAD - 1) // gate.shape[1])
    for part, target in zip(gate.split(rows), out.split(rows), strict=True):
        torch.ops.aten.silu.out(part, out=target)
    return out.mul_(up)
