"""Linear layers whose rows don't depend on how many other rows are computed with them.

What was seen of MKL's fp32 matrix product on AVX-512 (each output is a sum over `in`; rows are tokens):

* with the weight stored [out, in], 15 rows or fewer are summed in another order than 16 or more;
* with the weight stored [in, out], only a single row is, and 8 to 16 rows take half the time;
* from about 800 inputs on, sums are cut into pieces that depend on the number of rows.

So: store [in, out], compute a single row as two, and cut long sums into pieces here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LONGEST_SUM = 704


class Linear:
    """y = x @ W^T (+ bias) (+ residual) for a weight W [out, in].

    Args:
        weight_t: W^T, [in, out], of any strides.
        bias: [out] or None.
        batch_invariant: make a row's result independent, bit for bit, of the number of rows and of its place
            among them, for fp32 on the CPU.
    """

    __slots__ = ("_pieces", "batch_invariant", "bias", "weight_t")

    def __init__(self, weight_t: Tensor, bias: Tensor | None = None, *, batch_invariant: bool = False):
        self.weight_t = weight_t
        self.bias = bias
        self.batch_invariant = batch_invariant
        longest = _LONGEST_SUM if batch_invariant else max(weight_t.shape[0], 1)
        self._pieces = weight_t.split(longest)

    @classmethod
    def empty(
        cls,
        inputs: int,
        outputs: int,
        bias: bool = False,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_invariant: bool = False,
    ) -> Linear:
        """Uninitialised, laid out as is best for the device: [in, out] on the CPU, else [out, in]."""
        if device.type == "cpu":
            weight_t = torch.empty(inputs, outputs, dtype=dtype, device=device)
        else:
            weight_t = torch.empty(outputs, inputs, dtype=dtype, device=device).t()
        vector = torch.empty(outputs, dtype=dtype, device=device) if bias else None
        return cls(weight_t, vector, batch_invariant=batch_invariant)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, in] -> a new [T, out]; `residual` [T, out] is added and not changed."""
        lone_row = self.batch_invariant and x.shape[0] == 1
        if lone_row:
            x = x.expand(2, -1).contiguous()
        if len(self._pieces) == 1:
            y = torch.mm(x, self.weight_t)
        else:
            starts = x.split(_LONGEST_SUM, dim=1)
            y = torch.mm(starts[0], self._pieces[0])
            for part, piece in zip(starts[1:], self._pieces[1:], strict=True):
                y.addmm_(part, piece)
        if lone_row:
            y = y[:1]
        if self.bias is not None:
            y += self.bias
        if residual is not None:
            y += residual
        return y
