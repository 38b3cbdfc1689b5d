"""The device's part of a worker: canvases' tokens, forwards over them, and commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..model.decoder import Decoder
from ..request.forward import AddRequest, ForwardItem
from .canvas import Canvas, Tokens
from .pools import BoundaryPool, KVPool

NOT_FINITE = "the model's logits are not finite (NaN or infinity): its weights are broken, or its activations overflow"
"""The error of a request whose logits at a mask, or at a token to score, give no probabilities."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What `Executor.run` did for one item.

    Attributes:
        nfe: forwards that it took part in.
        block: int64 [block length], its block as it is now, -1 for masks; None when nothing could be committed.
        scores: log-probabilities of its targets.
        finite: False when logits at its masks gave no probabilities: it commits nothing then, now or later.
    """

    nfe: int = 1
    block: Tokens | None = None
    scores: list[float] = field(default_factory=list)
    finite: bool = True


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
        """Hold the tokens of a new canvas, its prompt and its page table. Raises EngineError when there is no room."""
        ...

    def close(self, canvas: Canvas) -> None:
        """Let go of what `open` and forwards made for a canvas. Does not touch the device."""
        ...

    def audit_inputs(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Tokens int64 [at least prompt + canvas] and page table int64 [bands, pages] on the device."""
        ...

    def enter(self, canvases: Sequence[Canvas]) -> None:
        """The current block of these canvases has changed."""
        ...

    def run(self, items: Sequence[ForwardItem], canvases: Sequence[Canvas], at_most: int) -> tuple[int, list[Ran]]:
        """Run items together, from 1 to `at_most` times without a look at what was committed in between.

        `canvases[i]` is that of `items[i]`, its block the current one. Returns how many forwards ran, and of each item
        what they did. Canvases are left as they are: `Worker` notes what has changed. Raises on a failure of the whole
        batch.
        """
        ...
