"""Layout of a ragged batch: the arrays that kernels read, built on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....kernels.attention.batch import AttentionBatch
from .arrays import Array


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of one flat batch on the device: request r has rows query_starts[r] .. query_starts[r + 1] - 1.

    positions: int32 [rows], position of each row's token in its request; -1 for padding.
    requests: int32 [rows], request of each row.
    whole: every request's rows are all of its keys.
    """

    positions: Tensor
    requests: Tensor
    batch: AttentionBatch
    whole: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of the batch, padding included."""
        return self.positions.shape[0]


@dataclass(frozen=True, slots=True)
class Spans:
    """Host side of a layout: request r runs positions lows[r] .. stops[r] - 1 and attends to keys[r] keys."""

    lows: npt.NDArray[np.int32]
    stops: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int32]

    @property
    def whole(self) -> bool:
        """Whether every request's rows are all of its keys."""
        return not self.lows.any() and bool((self.stops == self.keys).all())

    @property
    def starts(self) -> npt.NDArray[np.int32]:
        """First row of each request, and the number of rows: int32 [requests + 1]."""
        starts = np.zeros(len(self.lows) + 1, np.int32)
        np.cumsum(self.stops - self.lows, out=starts[1:])
        return starts

    def arrays(self, name: str) -> dict[str, Array]:
        """Arrays that `layout` needs on the device, with names that begin with `name`."""
        lengths = self.stops - self.lows
        starts = self.starts
        positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(self.lows - starts[:-1], lengths)
        requests = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return {f"{name}.positions": positions, f"{name}.requests": requests, f"{name}.starts": starts,
                f"{name}.keys": self.keys}  # fmt: skip


def spans(lows: Sequence[int], stops: Sequence[int], keys: Sequence[int]) -> Spans:
    """From plain lists."""
    return Spans(*(np.array(values, np.int32) for values in (lows, stops, keys)))


def layout(views: dict[str, Tensor], name: str, page_tables: Tensor, slots: Tensor, whole: bool = False) -> Layout:
    """The layout whose arrays (`Spans.arrays`) are in `views`; slots int32 [requests]."""
    batch = AttentionBatch(page_tables, slots, views[f"{name}.starts"], views[f"{name}.keys"])
    return Layout(views[f"{name}.positions"], views[f"{name}.requests"], batch, whole)
