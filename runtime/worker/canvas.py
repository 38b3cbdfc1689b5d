"""The host's copy of a request's canvas, whichever device holds its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..request.forward import AddRequest
from ..request.sampling_params import SamplingParams
from .schedule import commits_of_block, transfer_shares

Tokens = npt.NDArray[np.int64]


@dataclass(slots=True)
class Canvas:
    """A request's canvas as of the last forward that was read back.

    Attributes:
        rid: of the request.
        serial: differs from every other canvas's of the worker, also from those of requests that ended.
        prompt_length: tokens before the canvas.
        tokens: int64 [canvas length], -1 where a mask is. A mask token that a prompt spells out is an ordinary token.
        sampling, steps_of_block: as in `AddRequest`.
        stop_ids: tokens that end the text when they stand before the first mask.
        slot: its slot in a GPU executor's `CanvasSlots`.
        nfe: forwards that could commit masks, so far.
        block, block_masks, block_step: the current block [start, stop), its masks when it was entered, and the forwards
            since then.
        block_steps: the current block's quota of forwards; None when confidence decides.
        quotas: masks that each of its forwards is to commit.
        frontier: canvas positions before the first mask.
        stopped: whether its commits have ended.
        marks: whether its results tell how sure each commit was.
    """

    rid: str
    serial: int
    prompt_length: int
    tokens: Tokens
    sampling: SamplingParams
    stop_ids: frozenset[int]
    steps_of_block: Callable[[int], int | None]
    slot: int = -1
    nfe: int = 0
    block: tuple[int, int] = (-1, -1)
    block_masks: int = 0
    block_step: int = 0
    block_steps: int | None = None
    quotas: tuple[int, ...] = ()
    frontier: int = 0
    stopped: bool = False
    marks: bool = False

    @classmethod
    def of(cls, message: AddRequest, serial: int) -> Canvas:
        """The canvas that a message asks for: masks, tokens committed before, and the fixed tokens of a template."""
        tokens, done = np.full(message.canvas_length, -1, np.int64), len(message.committed)
        tokens[:done] = message.committed
        if message.canvas is not None:
            tokens[:] = message.canvas
        return cls(
            message.rid, serial, len(message.prompt), tokens, message.sampling, message.stop_ids,
            message.steps_of_block, frontier=done, marks=message.marks,
        )  # fmt: skip

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.sampling.draws

    @property
    def shapes(self) -> bool:
        """See `SamplingParams.shapes`."""
        return self.sampling.shapes

    @property
    def origin_steps(self) -> int:
        """Forwards of the current block if its masks are committed by chance (strategy `origin`), else 0."""
        return self.block_steps or 0 if self.sampling.strategy == "origin" else 0

    def sequence(self, prompt: Tokens, mask_token_id: int) -> Tokens:
        """Prompt and canvas with mask tokens in it, int64 [prompt + canvas]."""
        return np.concatenate((prompt, np.where(self.tokens < 0, mask_token_id, self.tokens)))

    def block_tokens(self) -> Tokens:
        """The current block's part of the canvas, a view."""
        start, stop = self.block
        return self.tokens[start - self.prompt_length : stop - self.prompt_length]

    def open_positions(self, start: int, stop: int) -> Tokens:
        """Masked positions (of the whole sequence) in [start, stop)."""
        return np.flatnonzero(self.tokens[start - self.prompt_length : stop - self.prompt_length] < 0) + start

    def enter(self, start: int, stop: int) -> bool:
        """Make [start, stop) the current block and count its steps from 0; False if it already was the current one."""
        if self.block == (start, stop):
            return False
        self.block = (start, stop)
        self.block_masks = len(self.open_positions(start, stop))
        self.block_step = 0
        self.block_steps = self.steps_of_block(start)
        if self.block_steps is not None:
            if self.sampling.schedule != "linear" and self.sampling.strategy != "origin":
                self.block_steps = min(self.block_steps, max(1, self.block_masks))  # more mean the same, up to any size
            self.quotas = commits_of_block(self.sampling, self.block_masks, self.block_steps)
        return True

    def due(self, step: int) -> int | None:
        """Masks to commit at the block's step `step` (from 0), at least one; None if confidence decides."""
        if self.block_steps is None:
            return None
        return self.quotas[step] if step < len(self.quotas) else 1

    def share(self, step: int) -> float | None:
        """Probability with which the block's step `step` commits each mask, for the strategy `origin`; else None."""
        if not (steps := self.origin_steps):
            return None
        return float(transfer_shares(self.sampling.eps, steps)[min(step, steps - 1)])

    def sure_steps(self) -> int:
        """Forwards that the current block needs at least; at least one."""
        if self.block_steps is None or self.origin_steps:
            return 1
        return max(1, len(self.quotas) - self.block_step)

    def masks_after(self, steps: int) -> int:
        """Most masks of the current block that can remain after `steps` more forwards."""
        masks = len(self.open_positions(*self.block))
        at = range(self.block_step, self.block_step + steps)
        return max(0, masks - sum(self.due(step) or 1 for step in at))

    def take(self, block: Tokens, forwards: int) -> tuple[list[int], list[int]]:
        """Update the current block after `forwards` more forwards; returns new positions and tokens, in order.

        The text ends where a stop token stands before the first mask.
        """
        self.nfe += forwards
        self.block_step += forwards
        held = self.block_tokens()
        new = np.flatnonzero((held < 0) & (block >= 0))
        held[new] = block[new]
        while self.frontier < len(self.tokens) and self.tokens[self.frontier] >= 0:
            if int(self.tokens[self.frontier]) in self.stop_ids:
                self.stopped = True
            self.frontier += 1
        return (new + self.block[0]).tolist(), block[new].tolist()
