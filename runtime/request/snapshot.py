"""Snapshots of a canvas while it is denoised: the whole of it for callers, changes of it between processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

StreamMode = Literal["text", "denoise"]
STREAM_MODES: tuple[StreamMode, ...] = get_args(StreamMode)
MASK = -1


@dataclass(frozen=True, slots=True)
class CanvasSnapshot:
    """The whole canvas at one moment, as far as it exists then (`canvas_window`).

    The first four fields have an entry for each of its positions.

    Attributes:
        tokens: its token ids, -1 where a mask is.
        texts: each token's own text, special tokens included; "" for masks, and without a tokenizer.
        confidences: how sure the model was of the token when it was committed (the request's `strategy` says in what
            measure; 0 to 1 but for `random` and `entropy` with `alg_temp`). None: a mask, a template's fixed token, or
            a device that does not report it.
        steps: the forward pass, from 1, after which the token was committed; 0: a mask, or a template's fixed token.
        blocks: where each block ends.
        block: index of the current block.
        step: forward passes so far (`RequestOutput.nfe`).
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    confidences: tuple[float | None, ...]
    steps: tuple[int, ...]
    blocks: tuple[int, ...]
    block: int
    step: int


@dataclass(frozen=True, slots=True)
class CanvasChange:
    """What changed in a canvas since the change before.

    Attributes:
        length: positions of the canvas now.
        block, step: as in CanvasSnapshot.
        positions, tokens, confidences, steps: what was committed.
        whole: these are all tokens: what else there was is masks again.
        blocks: where each block ends; empty: as before.
        texts: of the tokens; empty until a tokenizer was asked.
    """

    length: int
    block: int
    step: int
    positions: list[int]
    tokens: list[int]
    confidences: list[float | None]
    steps: list[int]
    whole: bool
    blocks: list[int]
    texts: list[str]


class CanvasView:
    """A canvas as its changes describe it, which may grow or shrink."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._confidences: list[float | None] = []
        self._steps: list[int] = []
        self._blocks: tuple[int, ...] = ()
        self._block = self._step = 0

    def apply(self, change: CanvasChange, texts: Sequence[str]) -> None:
        """Take a change over; `texts` are those of its tokens."""
        self._resize(change.length, 0 if change.whole else len(self._tokens))
        self._blocks = tuple(change.blocks) or self._blocks
        self._block, self._step = change.block, change.step
        for at, token, text, confidence, step in zip(
            change.positions, change.tokens, texts, change.confidences, change.steps, strict=True
        ):
            self._tokens[at], self._texts[at] = token, text
            self._confidences[at], self._steps[at] = confidence, step

    def snapshot(self) -> CanvasSnapshot:
        """The canvas now."""
        return CanvasSnapshot(
            tuple(self._tokens), tuple(self._texts), tuple(self._confidences), tuple(self._steps), self._blocks,
            self._block, self._step,
        )  # fmt: skip

    def _resize(self, length: int, keep: int) -> None:
        """Keep the first `keep` positions; masks follow."""
        kept = min(keep, length)
        more = length - kept
        self._tokens[kept:] = [MASK] * more
        self._texts[kept:] = [""] * more
        self._confidences[kept:] = [None] * more
        self._steps[kept:] = [0] * more
