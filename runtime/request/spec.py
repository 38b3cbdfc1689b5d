"""What a request asks for: the one record that passes from intake to the scheduler."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..config import CacheMode
from ..grammar.grammar import Grammar
from .sampling_params import SamplingParams
from .snapshot import StreamMode

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestSpec:
    """One accepted request. Every limit is checked and every default is resolved.

    Attributes:
        rid: its id, unique among the requests in flight.
        prompt: int64 [prompt tokens].
        sampling: decoding parameters; `max_new_tokens` is the template's length where there is one.
        cache_mode: its cache mode.
        cache_salt: only requests with the same salt share prefixes.
        block_length: positions of a block.
        seed: of its draws.
        stop_ids: tokens that end its text, or each hole of its template.
        end_ids: tokens that end the model's texts, whatever ends this one.
        template: int64 [max_new_tokens], a token where the canvas is fixed and -1 for a mask; None: all masks.
        grammar: what its text must satisfy; None: it is free.
        targets: int64 [n, 2], pairs (position in the canvas, token); makes it a scoring request: one forward gives the
            log-probabilities of the targets, nothing is committed or captured.
        shared_prefix: leading prompt tokens that the caller has warmed on their own; the reuse margin does not apply
            inside them.
        priority: higher goes first and may preempt.
        timeout_s, waited_s: seconds to the end, and how many of them had passed at arrival; None: any time.
        stream: whether outputs before the terminal one are wanted.
        stream_mode: what these show: `text`, or `denoise`, the whole canvas too.
        arrival: `time.monotonic()` when the client sent it.
    """

    rid: str
    prompt: Tokens
    sampling: SamplingParams
    cache_mode: CacheMode
    cache_salt: str
    block_length: int
    seed: int
    stop_ids: frozenset[int]
    end_ids: frozenset[int] = frozenset()
    template: Tokens | None = None
    grammar: Grammar | None = None
    targets: Tokens | None = None
    shared_prefix: int = 0
    priority: int = 0
    timeout_s: float | None = None
    waited_s: float = 0.0
    stream: bool = True
    stream_mode: StreamMode = "text"
    arrival: float = field(default_factory=time.monotonic)

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each block in positions of the canvas; none of a scoring request."""
        return () if self.targets is not None else self.sampling.blocks(self.block_length)

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` past which the request ends; None: never."""
        return None if self.timeout_s is None else self.arrival + self.timeout_s - self.waited_s

    @property
    def canvas_length(self) -> int:
        """Canvas positions. Without new tokens one block of masks still stands behind the prompt: a capture without
        masks behind it can't be reused.
        """
        return self.sampling.max_new_tokens or self.block_length

    @property
    def total_tokens(self) -> int:
        """Prompt and canvas tokens."""
        return len(self.prompt) + self.canvas_length
