"""One request: as the scheduler keeps it, and as the caller gets it back."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...radix_cache.match import Match
from ..errors import ShoalError
from ..text.stream import TextStream
from .sampling_params import SamplingParams

CacheMode = Literal["none", "prefix", "dual", "lm", "bicache"]
CACHE_MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache")
FinishReason = Literal["stop", "length", "abort", "error"]
Pages = npt.NDArray[np.int32]
Tokens = npt.NDArray[np.int64]
NO_PAGES: Pages = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for admission, until the first text (None: there was none), and in all."""

    queue: float
    first_text: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Hole:
    """One hole of a canvas template: a run of masks between fixed tokens.

    Attributes:
        start, stop: its positions in the canvas.
        token_ids: what is committed of it, from its start without a gap, before the first EOS or stop token in it.
        text: their text, without special tokens.
    """

    start: int
    stop: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """State of a request: while streaming, what is committed so far; at the end, everything.

    Attributes:
        rid: the request's id.
        text: committed contiguous text, without special tokens and without the stop string.
        token_ids: its tokens, without the EOS or stop token that ended it, or as far as the stop string goes. With a
            canvas template: fixed tokens and those of the holes, each hole without what follows its first EOS.
        finish_reason: None while running; `stop`, `length` (canvas full), `abort` or `error`.
        matched_stop: the token id or string that stopped it.
        error: what went wrong, with finish_reason `error`; also with `abort` when a time-out did it.
        prompt_tokens, completion_tokens: lengths of prompt and token_ids.
        cached_tokens: prompt tokens whose shallow KVs came from another request (s).
        depth: layers they were reused in (d).
        canvas_tokens: masks committed, also behind the end of the text.
        nfe: forward passes that the request took part in.
        reused_token_layers: s x d, what the first forward was spared.
        computed_token_layers: token-layers that were computed for it in all.
        prefix_refreshes: forwards that recomputed the whole prompt or its layers above d.
        retractions: times that the request was put back into the queue for one of higher priority.
        holes: of a canvas template, in order.
        scores: of a scoring request: natural log-probabilities of its targets, in their order.
    """

    rid: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    matched_stop: int | str | None
    error: ShoalError | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    depth: int
    canvas_tokens: int
    nfe: int
    reused_token_layers: int
    computed_token_layers: int
    prefix_refreshes: int
    timings: Timings
    retractions: int = 0
    holes: tuple[Hole, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether this is the terminal output."""
        return self.finish_reason is not None


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the scheduler. Pages named here are references that it owns and has to give back.

    `capture_table` (int32 [bands, pages]) are the KV pages that the tree is offered, when these are not its own.

    `join` and `depth` say what the request itself reuses from now on: tokens [0, join) stay as they are in the layers
    below `depth`; `resume` holds their boundary pages at that depth for a prefix refresh.

    `canvas` and `committed` (a byte for each position: 1 when committed) are what the worker reported. `shown` holds
    the canvas's tokens that the caller may have seen before a retraction: they stay, whatever is decoded again;
    `diverged` says that something else was.

    `counted_tokens` are the text tokens that the scheduler's counters have of it.

    `ticket` is its place in the order of arrival, `age` what later requests have cost it (see Admission).

    `stepped_at` is the forward in which it last took its turn, where not all block steps fit one.

    `template` (int64 [max_new_tokens], -1 for a mask) is a canvas with fixed tokens. `targets` (int64 [n, 2]: position
    in the canvas, token) makes it a scoring request: one forward, nothing committed, nothing captured (tokens behind
    the prompt would show in its keys and values). `shared_prefix` is how many leading prompt tokens the caller has
    warmed on their own: inside them the planner's reuse margin does not apply.
    """

    rid: str
    prompt: npt.NDArray[np.int64]
    sampling: SamplingParams
    cache_mode: CacheMode
    cache_salt: str
    block_length: int
    seed: int
    stream: TextStream
    template: Tokens | None = None
    targets: Tokens | None = None
    shared_prefix: int = 0
    arrival: float = field(default_factory=time.monotonic)
    priority: int = 0
    ticket: int = 0
    age: int = 0
    timeout_s: float | None = None
    streaming: bool = True

    blocks: tuple[tuple[int, int], ...] = ()
    canvas_length: int = 0
    match: Match | None = None
    page_table: npt.NDArray[np.int32] | None = None
    own_kv: Pages = field(default_factory=lambda: NO_PAGES)
    own_boundary: Pages = field(default_factory=lambda: NO_PAGES)
    capture_depth: int = 0
    capture_tokens: int = 0
    boundary_table: dict[int, Pages] = field(default_factory=dict)
    capture_table: npt.NDArray[np.int32] | None = None
    join: int = 0
    depth: int = 0
    resume: Pages | None = None
    refresh_interval: int | None = None

    block: int = 0
    canvas: list[int] = field(default_factory=list)
    committed: bytearray = field(default_factory=bytearray)
    shown: tuple[int, ...] = ()
    diverged: bool = False
    frontier: int = 0
    started: bool = False
    needs_refresh: bool = True
    nfe: int = 0
    nfe_at_refresh: int = 0
    stepped_at: int = 0
    counted_tokens: int = 0
    computed_token_layers: int = 0
    prefix_refreshes: int = 0
    retractions: int = 0
    cached_tokens: int = 0
    cached_depth: int = 0
    admitted_at: float | None = None
    first_text_at: float | None = None
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    error: ShoalError | None = None
    end: int | None = None
    scores: tuple[float, ...] = ()
    holes: tuple[tuple[int, int], ...] = ()
    stop_ids: Set[int] = frozenset()

    def __post_init__(self) -> None:
        self.blocks = self.sampling.blocks(self.block_length)
        # Without new tokens the prompt is still computed, and with masks behind it: that is what makes it reusable.
        self.canvas_length = self.sampling.max_new_tokens or self.block_length
        self.canvas = [0] * self.sampling.max_new_tokens
        self.committed = bytearray(self.sampling.max_new_tokens)
        if self.template is not None:
            fixed = self.template >= 0
            self.canvas = np.where(fixed, self.template, 0).tolist()
            self._reopen(0)
            edges = np.flatnonzero(np.diff(fixed, prepend=True, append=True)).tolist()
            self.holes = tuple(zip(edges[::2], edges[1::2], strict=True))
            self.skip_full_blocks()

    @property
    def total_tokens(self) -> int:
        """Prompt and canvas."""
        return len(self.prompt) + self.canvas_length

    @property
    def steps_per_block(self) -> int | None:
        """Forward passes for a block when the request has a fixed number of steps."""
        return None if self.sampling.steps is None else self.sampling.steps // max(1, len(self.blocks))

    def block_span(self) -> tuple[int, int]:
        """(start, stop) of the current block in positions of the whole sequence; empty without new tokens."""
        if not self.blocks:
            return len(self.prompt), len(self.prompt)
        start, stop = self.blocks[self.block]
        return len(self.prompt) + start, len(self.prompt) + stop

    def score(self, targets: Tokens) -> None:
        """Make this a scoring request; before the scheduler gets it."""
        self.targets, self.blocks = targets, ()

    def skip_full_blocks(self) -> bool:
        """Move on to the next block that has a mask; whether the current one was full."""
        before = self.block
        while self.block < len(self.blocks) and self.committed.find(0, *self.blocks[self.block]) < 0:
            self.block += 1
        return self.block > before

    def committed_tokens(self) -> Tokens:
        """Tokens before the first mask, for a worker that starts (again) with the rest; none with a template."""
        done = max(0, self.committed.find(0)) if self.template is None else 0
        return np.array(self.canvas[:done], np.int64)

    def template_now(self) -> Tokens | None:
        """The template with what is committed filled in."""
        if self.template is None:
            return None
        return np.where(np.frombuffer(self.committed, np.bool_), np.array(self.canvas, np.int64), -1)

    def apply(self, positions: list[int], tokens: list[int], eos: int) -> None:
        """Take over commits, move the frontier of contiguous text, and see whether the request is at its end.

        None are taken over, and `diverged` is set, when one of them is another token than was shown.
        """
        if self.targets is not None:
            self.end, self.finish_reason = 0, "length"
            return
        offset, canvas, committed, shown = len(self.prompt), self.canvas, self.committed, self.shown
        for position, token in zip(positions, tokens, strict=True):
            at = position - offset
            if at < len(shown) and token != shown[at]:
                self.diverged = True
                return
            canvas[at] = token
            committed[at] = 1
        before = self.frontier
        stop = committed.find(0, before)
        stop = len(canvas) if stop < 0 else stop
        if not self.stop_ids and not self.sampling.ignore_eos:
            self.stop_ids = frozenset((eos, *self.sampling.stop_token_ids))
        if self.end is None and stop > before and self.template is None:
            for at in range(before, stop):
                token = canvas[at]
                if token in self.stop_ids:
                    self.end, self.finish_reason, self.matched_stop, stop = at, "stop", token, at
                    break
        self.frontier = stop
        if self.end is None and stop == len(canvas):
            self.end, self.finish_reason = stop, "length"
        if stop > before or self.end is not None:
            self._update_text()

    def _update_text(self) -> None:
        if self.frontier < len(self.shown):
            return
        text = "" if self.stream.silent else self.stream.update(self.token_ids, final=self.end is not None)
        if self.stream.matched_stop is not None:
            self.end = self.frontier = self.stream.stop_tokens
            self.finish_reason, self.matched_stop = "stop", self.stream.matched_stop
        if self.first_text_at is None and (text or self.frontier):
            self.first_text_at = time.monotonic()

    def retract(self) -> None:
        """Go back to the start of the current block, to be admitted again; what was shown stays shown.

        Whole blocks stay committed. The block is decoded again from masks alone, as its first step found it: where
        nothing is reused across requests, greedy decoding then commits the same tokens again.
        """
        self.shown = tuple(self.canvas[: max(self.frontier, len(self.shown))])
        start = self._reopen(self.block)
        self.frontier = min(self.frontier, start)
        self.started, self.needs_refresh = False, True
        self.page_table, self.capture_table, self.resume, self.boundary_table = None, None, None, {}
        self.join = self.depth = 0
        self.retractions += 1

    def keep_shown(self) -> None:
        """The block came out otherwise than before a retraction: decode it from masks behind what was shown."""
        self._reopen(self.block)
        self.canvas[: len(self.shown)] = self.shown
        self.committed[: len(self.shown)] = b"\1" * len(self.shown)
        self.frontier = len(self.shown)
        self.diverged = False
        self.needs_refresh = self.cache_mode != "none"

    def _reopen(self, block: int) -> int:
        """Make masks of a block and all behind it again, but for a template's fixed tokens; where it starts."""
        start = self.blocks[block][0] if self.blocks else 0
        fixed = bytes(len(self.committed)) if self.template is None else (self.template >= 0).tobytes()
        self.committed[start:] = fixed[start:]
        return start

    def _visible(self, length: int) -> tuple[int, ...]:
        """The first `length` canvas tokens, without what lies behind the first stop token of each hole."""
        shown: list[int] = []
        at = 0
        for start, stop in self.holes:
            shown += self.canvas[at : min(start, length)]
            shown += self._in_hole(start, min(stop, length))
            at = stop
        return tuple(shown + self.canvas[at:length])

    def _in_hole(self, start: int, stop: int) -> list[int]:
        """Tokens known in canvas positions [start, stop) without a gap, before the first stop token."""
        tokens: list[int] = []
        for position in range(start, stop):
            token = self.canvas[position]
            if not (self.committed[position] or position < len(self.shown)) or token in self.stop_ids:
                break
            tokens.append(token)
        return tokens

    def hole_tokens(self) -> list[tuple[int, int, list[int]]]:
        """(start, stop, tokens) of each hole; none of a scoring request."""
        if self.targets is not None:
            return []
        return [(start, stop, self._in_hole(start, stop)) for start, stop in self.holes]

    @property
    def canvas_tokens(self) -> int:
        """Masks committed."""
        return self.committed.count(1) - (0 if self.template is None else int((self.template >= 0).sum()))

    def fail(self, error: ShoalError) -> None:
        """End the request with an error."""
        self.error, self.finish_reason = error, "error"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Committed contiguous tokens, of holes those before their stop tokens; never fewer than were shown."""
        if self.template is not None:
            return self._visible(max(self.frontier, len(self.shown)))
        return self.shown if self.frontier < len(self.shown) else tuple(self.canvas[: self.frontier])

    @property
    def num_text_tokens(self) -> int:
        """Length of `token_ids`."""
        if self.template is not None:
            return len(self.token_ids)
        return max(len(self.shown), self.frontier)

    def tokens_from(self, start: int) -> tuple[int, Sequence[int]]:
        """How many of the first `start` visible tokens stay, and the visible ones behind them."""
        if self.template is None and len(self.shown) <= start <= self.frontier:
            return start, self.canvas[start : self.frontier]
        tokens = self.token_ids
        start = min(start, len(tokens))
        return start, tokens[start:]

    def timings(self) -> Timings:
        """Seconds until now."""
        now = time.monotonic()
        first = None if self.first_text_at is None else self.first_text_at - self.arrival
        return Timings((self.admitted_at or now) - self.arrival, first, now - self.arrival)

    def output(self) -> RequestOutput:
        """What the caller gets to see now."""
        ids = self.token_ids
        return RequestOutput(
            rid=self.rid,
            text=self.stream.text,
            token_ids=ids,
            finish_reason=self.finish_reason,
            matched_stop=self.matched_stop,
            error=self.error,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(ids),
            cached_tokens=self.cached_tokens,
            depth=self.cached_depth,
            canvas_tokens=self.canvas_tokens,
            nfe=self.nfe,
            reused_token_layers=self.cached_tokens * self.cached_depth,
            computed_token_layers=self.computed_token_layers,
            prefix_refreshes=self.prefix_refreshes,
            timings=self.timings(),
            retractions=self.retractions,
            holes=tuple(Hole(a, b, tuple(ids), self.stream.decode(ids)) for a, b, ids in self.hole_tokens()),
            scores=self.scores,
        )
