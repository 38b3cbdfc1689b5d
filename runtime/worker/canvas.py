"""What the host knows of a canvas whose tokens live on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..request.sampling_params import SamplingParams
from .cpu.sampler import quota


@dataclass(slots=True)
class HostCanvas:
    """A request's slot, and its canvas as of the last forward that was read back.

    serial: differs from every other canvas's. canvas: int64 [canvas length], -1 where a mask is. nfe: commits so far,
    as the device counts them.
    """

    slot: int
    serial: int
    prompt_length: int
    canvas: npt.NDArray[np.int64]
    sampling: SamplingParams
    stop_ids: frozenset[int]
    steps_per_block: int | None
    nfe: int = 0
    block: tuple[int, int] = (-1, -1)
    block_masks: int = 0
    block_step: int = 0
    frontier: int = 0
    stopped: bool = False

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.sampling.temperature > 0

    def block_canvas(self) -> npt.NDArray[np.int64]:
        """The current block's part of the canvas, a view."""
        start, stop = self.block
        return self.canvas[start - self.prompt_length : stop - self.prompt_length]

    def open_positions(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Masked positions (of the whole sequence) in [start, stop)."""
        return np.flatnonzero(self.canvas[start - self.prompt_length : stop - self.prompt_length] < 0) + start

    def enter(self, start: int, stop: int) -> bool:
        """Make [start, stop) the current block and count its steps from here; False when it was that already."""
        if self.block == (start, stop):
            return False
        self.block = (start, stop)
        self.block_masks = len(self.open_positions(start, stop))
        self.block_step = 0
        return True

    def sure_steps(self) -> int:
        """Forwards that the current block will need for certain, at least one."""
        if self.steps_per_block is None:
            return 1
        return max(1, min(self.steps_per_block, self.block_masks) - self.block_step)

    def masks_after(self, steps: int) -> int:
        """Masks of the current block that can be open after so many more forwards."""
        masks = len(self.open_positions(*self.block))
        if self.steps_per_block is None:
            return max(0, masks - steps)
        at = range(self.block_step, self.block_step + steps)
        return max(0, masks - sum(max(1, quota(self.block_masks, self.steps_per_block, step)) for step in at))

    def take(self, block: npt.NDArray[np.int64]) -> tuple[list[int], list[int]]:
        """Take over the block as it is on the device now; positions and tokens that are new, in order."""
        held = self.block_canvas()
        new = np.flatnonzero((held < 0) & (block >= 0))
        held[new] = block[new]
        while self.frontier < len(self.canvas) and self.canvas[self.frontier] >= 0:
            if int(self.canvas[self.frontier]) in self.stop_ids:
                self.stopped = True
            self.frontier += 1
        return (new + self.block[0]).tolist(), block[new].tolist()
