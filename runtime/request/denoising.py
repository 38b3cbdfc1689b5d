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
        self._blocks: tuple[tuple[int, int], ...] = ()

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
        blocks = [stop for _, stop in canvas.blocks] if whole or self._blocks is not canvas.blocks else []
        self._new, self._reported, self._blocks = {}, canvas.reopenings, canvas.blocks
        marks = [self._marks.get(position, (None, 0)) for position in at]
        return CanvasChange(
            len(canvas.tokens), canvas.block, step, list(at), [canvas.tokens[position] for position in at],
            [confidence for confidence, _ in marks], [number for _, number in marks], whole, blocks, [],
        )  # fmt: skip
