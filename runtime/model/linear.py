"""Linear layers whose rows don't depend on how many other rows are computed with them.

A matrix product sums each output over `in`. The BLAS decides the order, by a kernel that depends on the number of rows
(tokens). In fp32 MKL 2024.2 behaves so:

* AVX-512, weight stored [out, in]: 15 rows or fewer are summed in another order than 16 or more.
* AVX-512, weight stored [in, out]: only a single row is, and 8 to 16 rows take half the time. From about 800
  inputs on, sums are cut into pieces that depend on the number of rows.
* AVX2: it changes with the number of rows all over, but rows of one call of 24 rows agree. Not so with fewer than
  12 outputs, where a row's place among the 24 counts: such matrices get columns of zeros.

So this module stores [in, out], computes a single row as two, and cuts long sums into pieces. If a probe (once per
shape, some milliseconds) finds that insufficient, it computes all rows in tiles of 24, the last one padded. On an AVX2
machine MKL_CBWR=AVX2,STRICT in the environment makes the probe pass and spares the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from .ranks import Ranks

_LONGEST_SUM = 704
_TILE_ROWS = 24
_FEWEST_OUTPUTS = 16
_PROBED_ROWS = (1, 2, 3, 5, 7, 8, 9, 12, 13, 15, 16, 17, 19, 24, 31, 32, 33, 48, 52, 64, 99, 128, 144, 200, 256, 300)


class Linear:
    """y = x @ W^T (+ bias) (+ residual) for a weight W [out, in].

    Args:
        weight_t: W^T, [in, out], of any strides.
        bias: [out] or None.
        batch_invariant: make a row's result independent, bit for bit, of the number of rows and of its place
            among them: for fp32 on the CPU, as long as the number of threads stays what it was here.
    """

    __slots__ = ("_pieces", "_tile", "batch_invariant", "bias", "weight_t")

    def __init__(self, weight_t: Tensor, bias: Tensor | None = None, *, batch_invariant: bool = False):
        self.weight_t = weight_t
        self.bias = bias
        self.batch_invariant = batch_invariant
        self._pieces: Sequence[Tensor] = (weight_t,)
        self._tile = 0
        if batch_invariant:
            self._tile = needed_tile(*weight_t.shape, torch.get_num_threads())
            if not self._tile:
                self._pieces = weight_t.split(_LONGEST_SUM)

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
        """Uninitialised, in the device's best layout: [in, out] on the CPU, else [out, in]."""
        if device.type == "cpu":
            weight_t = torch.empty(inputs, outputs, dtype=dtype, device=device)
        else:
            weight_t = torch.empty(outputs, inputs, dtype=dtype, device=device).t()
        vector = torch.empty(outputs, dtype=dtype, device=device) if bias else None
        return cls(weight_t, vector, batch_invariant=batch_invariant)

    def product(self, x: Tensor) -> Tensor:
        """x [T, in] -> a new [T, out], without bias."""
        if not self.batch_invariant:
            return torch.mm(x, self.weight_t)
        if (outputs := self.weight_t.shape[1]) < _FEWEST_OUTPUTS:
            wide = pad(self.weight_t, (0, _FEWEST_OUTPUTS - outputs))
            return Linear(wide, batch_invariant=True).product(x)[:, :outputs].contiguous()
        if self._tile:
            return _in_tiles(x, self.weight_t, self._tile)
        return _in_pieces(x, self._pieces)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, in] -> a new [T, out]; `residual` [T, out] is added and not changed."""
        y = self.product(x)
        if self.bias is not None:
            y += self.bias
        if residual is not None:
            y += residual
        return y


class SummedLinear(Linear):
    """A Linear without bias whose inputs are split over the ranks of a model: each has a slice [in / ranks, out].

    `product` is this rank's part; a call adds every rank's parts up.
    """

    __slots__ = ("ranks",)

    def __init__(self, part: Linear, ranks: Ranks):
        super().__init__(part.weight_t, batch_invariant=part.batch_invariant)
        self.ranks = ranks

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, in / ranks] -> a new [T, out]; `residual` [T, out] is added once and not changed."""
        y = self.ranks.add_up(self.product(x))
        if residual is not None:
            y += residual
        return y


def _in_pieces(x: Tensor, pieces: Sequence[Tensor]) -> Tensor:
    """x [T, in] times the pieces [<= _LONGEST_SUM, out] of one [in, out] matrix, added up in order."""
    if x.shape[0] == 1:
        return _in_pieces(x.expand(2, -1).contiguous(), pieces)[:1]
    if len(pieces) == 1:
        return torch.mm(x, pieces[0])
    parts = x.split(_LONGEST_SUM, dim=1)
    y = torch.mm(parts[0], pieces[0])
    for part, piece in zip(parts[1:], pieces[1:], strict=True):
        y.addmm_(part, piece)
    return y


def _in_tiles(x: Tensor, weight_t: Tensor, tile: int) -> Tensor:
    """x [T, in] times weight_t [in, out], `tile` rows to a product, whatever T."""
    rows = x.shape[0]
    whole = rows // tile * tile
    y = x.new_empty(-(-rows // tile) * tile, weight_t.shape[1])
    for start in range(0, whole, tile):
        torch.mm(x[start : start + tile], weight_t, out=y[start : start + tile])
    if whole < rows:
        last = x.new_zeros(tile, x.shape[1])
        last[: rows - whole] = x[whole:]
        torch.mm(last, weight_t, out=y[whole:])
    return y[:rows]


@lru_cache(maxsize=256)
@torch.inference_mode()
def needed_tile(inputs: int, outputs: int, num_threads: int) -> int:
    """0 when whole products of an [in, out] fp32 matrix are batch invariant on this CPU, else the rows of a tile.

    It tries random rows, alone and among others. `num_threads` is only a key of the cache.
    """
    generator = torch.Generator().manual_seed(0)
    pieces = torch.randn(inputs, outputs, generator=generator).split(_LONGEST_SUM)
    x = torch.randn(_PROBED_ROWS[-1], inputs, generator=generator)
    together = _in_pieces(x, pieces)
    invariant = all(torch.equal(_in_pieces(x[:rows], pieces), together[:rows]) for rows in _PROBED_ROWS)
    invariant = invariant and torch.equal(_in_pieces(x[5:42], pieces), together[5:42])
    return 0 if invariant else _TILE_ROWS
