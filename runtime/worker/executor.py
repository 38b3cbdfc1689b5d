"""The device's part of a worker: canvases' tokens, forwards over them, and commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..model.decoder import Decoder
from ..request.forward import AddRequest, ForwardItem, Grow, Logprob
from .canvas import Canvas, Tokens
from .pools import BoundaryPool, KVPool

NOT_FINITE = "the model's logits are not finite (NaN or infinity): its weights are broken, or its activations overflow"
"""The error of a request whose logits at a mask, or at a token to score, give no probabilities."""


@dataclass(frozen=True, slots=True)
class Ran:
    """Result of `Executor.run` for one item.

    Attributes:
        nfe: forwards that it took part in.
        block: int64 [block length], its block as it is now, -1 for masks; None when nothing could be committed.
        scores: log-probabilities of its targets.
        confidences: of the tokens that it committed, by position, for a canvas with marks.
        passes: of the same, the forward of these `nfe` that committed each, from 1; empty: the last one.
        entropy: the largest entropy, in nats, of a token that it committed, where the request has `refresh_entropy`.
        logprobs: (log-probability, top) of the newly committed tokens, in order of position, if asked for; their step
            is 1.
        logits: fp32 [masks, vocab] of its open masks before the forward, as the model gives them (no guidance, no
            bias), if its item asks for an audit's predictions. The mask token is impossible.
        finite: False if logits at its masks gave no probabilities; it then never commits anything again.
    """

    nfe: int = 1
    block: Tokens | None = None
    scores: list[float] = field(default_factory=list)
    confidences: Sequence[float] = ()
    passes: Sequence[int] = ()
    logprobs: list[Logprob] = field(default_factory=list)
    finite: bool = True
    entropy: float = 0.0
    logits: Tensor | None = None


class Executor(Protocol):
    """Runs forwards on one kind of device. `Worker` enters its device and inference mode before it calls.

    Attributes:
        decoder: the weights.
        kv, boundary: the pools.
    """

    decoder: Decoder
    kv: KVPool
    boundary: BoundaryPool

    def open(self, canvas: Canvas, message: AddRequest) -> None:
        """Store a new canvas: its tokens, prompt and page table. Raises EngineError if there is no room."""
        ...

    def grow(self, canvas: Canvas, message: Grow) -> None:
        """Lengthen a canvas's page table."""
        ...

    def close(self, canvas: Canvas) -> None:
        """Drop a canvas's state from `open` and forwards. Does not touch the device."""
        ...

    def audit_inputs(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Tokens int64 [at least prompt + canvas] and page table int64 [bands, pages] on the device."""
        ...

    def enter(self, canvases: Sequence[Canvas]) -> None:
        """Learn that the current block of these canvases has changed."""
        ...

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
        """Run items together, from 1 to `at_most` times, without reading commits in between.

        `canvases[i]` is that of `items[i]`, its block the current one. Returns the number of forwards and each item's
        result. It does not change canvases; `Worker` updates them. Raises if the whole batch fails.
        """
        ...
