"""What the scheduler remembers of a canvas whose denoising its caller watches."""

from __future__ import annotations

from collections.abc import Sequence

from .canvas import Canvas
from .forward import Marks
from .snapshot import CanvasChange, CanvasView


class Denoising:
    """Confidence and forward pass of each commit of one canvas, and which of them were not reported yet.

    Args:
        canvas: of the request.

    Attributes:
        view: the canvas put together from the changes, where that is done in this process.
    """

    def __init__(self, canvas: Canvas):
        self.view = CanvasView()
        self._canvas = canvas
        self._marks: dict[int, tuple[float | None, int]] = {}
        self._new: dict[int, None] = {}
        self._reported = -1
        self._blocks: list[int] = []

    def commit(self, positions: Sequence[int], marks: Marks | None, before: int) -> None:
        """Record commits at canvas positions; `before`: the request's forward passes before those of `marks`."""
        if marks is None:
            return
        for at, confidence, step in zip(positions, marks.confidences, marks.passes, strict=True):
            self._marks[at] = confidence, before + step
            self._new[at] = None

    def take(self, step: int) -> CanvasChange:
        """The change since the last call; `step`: the request's forward passes so far."""
        canvas = self._canvas
        whole = self._reported != canvas.reopenings
        at: Sequence[int] = list(self._new)
        if whole:
            at = [position for position, full in enumerate(canvas.committed) if full]
        length = min(len(canvas.tokens), canvas.extent)
        stops = [min(stop, length) for start, stop in canvas.blocks if start < length]
        blocks = [] if stops == self._blocks else stops
        self._new, self._reported, self._blocks = {}, canvas.reopenings, stops
        marks = [self._marks.get(position, (None, 0)) for position in at]
        return CanvasChange(
            length, canvas.block, step, list(at), [canvas.tokens[position] for position in at],
            [confidence for confidence, _ in marks], [number for _, number in marks], whole, blocks, [],
        )  # fmt: skip
