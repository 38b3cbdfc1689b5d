"""One request: as the scheduler keeps it, and as the caller gets it back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..radix_cache.match import Match
from .errors import ShoalError
from .sampling_params import SamplingParams
from .text_stream import TextStream

CacheMode = Literal["none", "prefix", "dual", "lm", "bicache"]
CACHE_MODES: tuple[CacheMode, ...] = ("none", "prefix", "dual", "lm", "bicache")
FinishReason = Literal["stop", "length", "abort", "error"]
Pages = npt.NDArray[np.int32]
NO_PAGES: Pages = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for admission, until the first text (None: there was none), and in all."""

    queue: float
    first_text: float | None
    total: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """State of a request: while streaming, what is committed so far; at the end, everything.

    Attributes:
        rid: the request's id.
        text: committed contiguous text, without special tokens and without the stop string.
        token_ids: its tokens, without the EOS or stop token that ended it, or as far as the stop string goes.
        finish_reason: None while running; `stop`, `length` (canvas full), `abort` or `error`.
        matched_stop: the token id or string that stopped it.
        error: what went wrong, with finish_reason `error`.
        prompt_tokens, completion_tokens: lengths of prompt and token_ids.
        cached_tokens: prompt tokens whose shallow KVs came from another request (s).
        depth: layers they were reused in (d).
        canvas_tokens: masks committed, also behind the end of the text.
        nfe: forward passes that the request took part in.
        reused_token_layers: s x d, what the first forward was spared.
        computed_token_layers: token-layers that were computed for it in all.
        prefix_refreshes: forwards that recomputed the whole prompt or its layers above d.
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

    @property
    def finished(self) -> bool:
        """Whether this is the terminal output."""
        return self.finish_reason is not None


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the scheduler. Pages named here are references that it owns and has to give back.

    `join` and `depth` say what the request itself reuses from now on: tokens [0, join) stay as they are in the layers
    below `depth`; `resume` holds their boundary pages at that depth for a prefix refresh.
    """

    rid: str
    prompt: npt.NDArray[np.int64]
    sampling: SamplingParams
    cache_mode: CacheMode
    cache_salt: str
    block_length: int
    seed: int
    stream: TextStream
    arrival: float = field(default_factory=time.monotonic)

    blocks: tuple[tuple[int, int], ...] = ()
    canvas_length: int = 0
    match: Match | None = None
    page_table: npt.NDArray[np.int32] | None = None
    own_kv: Pages = field(default_factory=lambda: NO_PAGES)
    own_boundary: Pages = field(default_factory=lambda: NO_PAGES)
    capture_depth: int = 0
    capture_tokens: int = 0
    boundary_table: dict[int, Pages] = field(default_factory=dict)
    join: int = 0
    depth: int = 0
    resume: Pages | None = None

    block: int = 0
    canvas: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    committed: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    frontier: int = 0
    started: bool = False
    needs_refresh: bool = True
    nfe: int = 0
    nfe_at_refresh: int = 0
    computed_token_layers: int = 0
    prefix_refreshes: int = 0
    cached_tokens: int = 0
    cached_depth: int = 0
    admitted_at: float | None = None
    first_text_at: float | None = None
    finish_reason: FinishReason | None = None
    matched_stop: int | str | None = None
    error: ShoalError | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        self.blocks = self.sampling.blocks(self.block_length)
        # Without new tokens the prompt is still computed, and with masks behind it: that is what makes it reusable.
        self.canvas_length = self.sampling.max_new_tokens or self.block_length
        self.canvas = np.zeros(self.sampling.max_new_tokens, np.int64)
        self.committed = np.zeros(self.sampling.max_new_tokens, np.bool_)

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

    def apply(self, positions: list[int], tokens: list[int], eos: int) -> None:
        """Take over commits, move the frontier of contiguous text, and see whether the request is at its end."""
        at = np.array(positions, np.int64) - len(self.prompt)
        self.canvas[at] = tokens
        self.committed[at] = True
        sampling = self.sampling
        stop_ids = set() if sampling.ignore_eos else {eos, *sampling.stop_token_ids}
        while self.end is None and self.frontier < len(self.canvas) and self.committed[self.frontier]:
            token = int(self.canvas[self.frontier])
            if token in stop_ids:
                self.end, self.finish_reason, self.matched_stop = self.frontier, "stop", token
                break
            self.frontier += 1
        if self.end is None and self.frontier == len(self.canvas):
            self.end, self.finish_reason = self.frontier, "length"
        self._update_text()

    def _update_text(self) -> None:
        text = self.stream.update(self.canvas[: self.frontier].tolist(), final=self.end is not None)
        if self.stream.matched_stop is not None:
            self.end = self.frontier = self.stream.stop_tokens
            self.finish_reason, self.matched_stop = "stop", self.stream.matched_stop
        if self.first_text_at is None and (text or self.frontier):
            self.first_text_at = time.monotonic()

    def fail(self, error: ShoalError) -> None:
        """End the request with an error."""
        self.error, self.finish_reason = error, "error"

    def output(self) -> RequestOutput:
        """What the caller gets to see now."""
        now = time.monotonic()
        ids = tuple(self.canvas[: self.frontier].tolist())
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
            canvas_tokens=int(self.committed.sum()),
            nfe=self.nfe,
            reused_token_layers=self.cached_tokens * self.cached_depth,
            computed_token_layers=self.computed_token_layers,
            prefix_refreshes=self.prefix_refreshes,
            timings=Timings(
                (self.admitted_at or now) - self.arrival,
                None if self.first_text_at is None else self.first_text_at - self.arrival,
                now - self.arrival,
            ),
        )
