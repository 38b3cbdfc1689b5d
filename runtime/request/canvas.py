"""The scheduler's copy of a request's canvas: committed tokens, the contiguous frontier, the tokens already shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .forward import Logprob
from .spec import RequestSpec, Tokens


class Canvas:
    """Tokens behind a prompt, as the worker reported them.

    Args:
        spec: of the request.

    Attributes:
        tokens: a token for every position; 0 where nothing is committed.
        committed: a byte for each position: 1 when committed, or fixed by a template.
        blocks: (start, stop) of each block, in positions of the canvas.
        block: index of the current block; len(blocks) at the end.
        frontier: committed positions before the first mask.
        shown: tokens that the caller may have seen before a preemption; decoding the block again never changes them.
        diverged: the worker committed a token that differs from the shown one.
        holes: (start, stop) of each run of masks between a template's fixed tokens.
        reopenings: how often committed positions have become masks.
        logprobs: by position, of a request that asks for them.
    """

    __slots__ = (
        "_length",
        "_template",
        "_window",
        "block",
        "blocks",
        "committed",
        "diverged",
        "frontier",
        "holes",
        "logprobs",
        "reopenings",
        "shown",
        "tokens",
    )

    def __init__(self, spec: RequestSpec):
        self.blocks = spec.blocks
        self.block = 0
        self._length, self._window = spec.canvas_length, spec.sampling.canvas_window
        self.tokens: list[int] = [0] * spec.sampling.max_new_tokens
        self.committed = bytearray(spec.sampling.max_new_tokens)
        self.frontier = 0
        self.shown: tuple[int, ...] = ()
        self.diverged = False
        self.reopenings = 0
        self.holes: tuple[tuple[int, int], ...] = ()
        self.logprobs: dict[int, Logprob] = {}
        self._template = spec.template
        if spec.template is not None:
            fixed = spec.template >= 0
            self.tokens = np.where(fixed, spec.template, 0).tolist()
            self._reopen(0)
            edges = np.flatnonzero(np.diff(fixed, prepend=True, append=True)).tolist()
            self.holes = tuple(zip(edges[::2], edges[1::2], strict=True))
            self.skip_full_blocks()

    @property
    def num_shown(self) -> int:
        """Leading positions whose tokens the caller may have seen."""
        return max(self.frontier, len(self.shown))

    @property
    def num_committed(self) -> int:
        """Masks committed."""
        return self.committed.count(1) - (0 if self._template is None else int((self._template >= 0).sum()))

    def span(self) -> tuple[int, int]:
        """(start, stop) of the current block; empty when there are no blocks."""
        return self.blocks[self.block] if self.blocks else (0, 0)

    @property
    def extent(self) -> int:
        """Leading positions that exist: the window's behind the current block, or all without a window."""
        if self._window is None or not self.blocks:
            return self._length
        return min(self._length, self.blocks[min(self.block, len(self.blocks) - 1)][1] + self._window)

    def skip_full_blocks(self) -> bool:
        """Advance to the next block that has a mask; returns whether the current one was full."""
        before = self.block
        while self.block < len(self.blocks) and self.committed.find(0, *self.blocks[self.block]) < 0:
            self.block += 1
        return self.block > before

    # For a worker that starts (again)

    def leading(self) -> Tokens:
        """int64 tokens before the first mask; none with a template."""
        done = max(0, self.committed.find(0)) if self._template is None else 0
        return np.array(self.tokens[:done], np.int64)

    def template(self) -> Tokens | None:
        """int64 [positions]: the template with committed tokens filled in, -1 for a mask; None without a template."""
        if self._template is None:
            return None
        return np.where(np.frombuffer(self.committed, np.bool_), np.array(self.tokens, np.int64), -1)

    # Commits

    def commit(self, positions: Sequence[int], tokens: Sequence[int], first: int = 0) -> bool:
        """Commit tokens, in order, at positions that count from `first` before the canvas.

        Stops, sets `diverged` and returns False at the first token that differs from the shown one.
        """
        num_shown = len(self.shown)
        for position, token in zip(positions, tokens, strict=True):
            at = position - first
            if at < num_shown and token != self.shown[at]:
                self.diverged = True
                return False
            self.tokens[at] = token
            self.committed[at] = 1
        return True

    def note(self, positions: Sequence[int], logprobs: Sequence[Logprob], before: int) -> None:
        """Keep the log-probabilities of commits; `before` forwards ran before those that they count."""
        for at, one in zip(positions, logprobs, strict=True):
            if at >= len(self.shown):
                self.logprobs[at] = one._replace(step=before + one.step)

    def first_mask(self) -> int:
        """The first mask at or behind the frontier; the canvas's length when there is none."""
        at = self.committed.find(0, self.frontier)
        return len(self.tokens) if at < 0 else at

    def preempt(self) -> None:
        """Go back to the start of the current block; what was shown stays shown.

        Full blocks stay committed. The block is decoded again from masks, so greedy decoding commits the same tokens
        again in modes that reuse nothing across requests.
        """
        self.shown = tuple(self.tokens[: self.num_shown])
        self.frontier = min(self.frontier, self._reopen(self.block))

    def keep_shown(self) -> None:
        """After a divergence: keep the shown tokens and decode the rest of the block from masks."""
        self._reopen(self.block)
        self.tokens[: len(self.shown)] = self.shown
        self.committed[: len(self.shown)] = b"\1" * len(self.shown)
        self.frontier = len(self.shown)
        self.diverged = False

    def _reopen(self, block: int) -> int:
        """Turn a block and all behind it back into masks, except a template's fixed tokens; returns its start."""
        start = self.blocks[block][0] if self.blocks else 0
        fixed = bytes(len(self.committed)) if self._template is None else (self._template >= 0).tobytes()
        self.committed[start:] = fixed[start:]
        self.reopenings += 1
        return start

    # What the caller sees

    def visible(self, stop_ids: frozenset[int]) -> tuple[int, ...]:
        """Committed contiguous tokens (of a hole, those before its first stop token); never fewer than were shown."""
        if self._template is not None:
            return tuple(self.tokens[at] for at in self.visible_positions(stop_ids))
        return self.shown if self.frontier < len(self.shown) else tuple(self.tokens[: self.frontier])

    def visible_from(self, start: int, stop_ids: frozenset[int]) -> tuple[int, Sequence[int]]:
        """(kept, tokens): how many of the first `start` visible tokens remain, and the visible tokens behind them."""
        if self._template is None and len(self.shown) <= start <= self.frontier:
            return start, self.tokens[start : self.frontier]
        tokens = self.visible(stop_ids)
        start = min(start, len(tokens))
        return start, tokens[start:]

    def hole_tokens(self, stop_ids: frozenset[int]) -> list[tuple[int, int, list[int]]]:
        """(start, stop, tokens) of each hole: its contiguous tokens before the first stop token."""
        return [(start, stop, self._in_hole(start, stop, stop_ids)) for start, stop in self.holes]

    def visible_positions(self, stop_ids: frozenset[int]) -> Sequence[int]:
        """Positions of the visible tokens."""
        if self._template is None:
            return range(len(self.shown) if self.frontier < len(self.shown) else self.frontier)
        length, at = self.num_shown, 0
        shown: list[int] = []
        for start, stop in self.holes:
            shown += range(at, min(start, length))
            shown += range(start, start + len(self._in_hole(start, min(stop, length), stop_ids)))
            at = stop
        return [*shown, *range(at, length)]

    def _in_hole(self, start: int, stop: int, stop_ids: frozenset[int]) -> list[int]:
        tokens: list[int] = []
        for position in range(start, stop):
            token = self.tokens[position]
            if not (self.committed[position] or position < len(self.shown)) or token in stop_ids:
                break
            tokens.append(token)
        return tokens
