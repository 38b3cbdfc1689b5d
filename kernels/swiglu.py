"""SwiGLU (Shazeer 2020, arXiv 2002.05202): y = silu(gate) * up."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] holds the gate in its first F columns and the up projection in the rest; returns [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)


def swiglu(gate_up: Tensor) -> Tensor:
    """The fastest implementation for gate_up's device; the contract is `swiglu_reference`'s."""
    return swiglu_reference(gate_up)
