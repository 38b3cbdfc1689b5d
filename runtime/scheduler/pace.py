"""How much one forward may hold: tokens that fit the device, and what a target for first texts leaves of them."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..request.forward import ForwardItem, StepResult
from .planned import Planned

_WINDOW = 16
"""Latest forwards of a kind, whose median is the estimate: a forward that stalls once changes nothing."""
_FORWARDS = 4
"""Forwards from a request's arrival to its first text: see Pace."""
_NEWCOMERS_IN_ROW = 8
"""So running requests stand still for two targets at most, however many short requests come."""


class RefreshBatch:
    """Items of one forward over many tokens. The first one always has room, so that every request can run.

    Args:
        max_tokens: tokens that it may compute.
        max_token_layers: token-layers that it may compute.
        num_layers: of the model.

    Attributes:
        items: the forward.
        is_full: an item did not fit; `has_room` takes none after it, so that order is kept.
    """

    __slots__ = ("_max_token_layers", "_max_tokens", "_num_layers", "_token_layers", "_tokens", "is_full", "items")

    def __init__(self, max_tokens: int, max_token_layers: float, num_layers: int):
        self._max_tokens, self._max_token_layers, self._num_layers = max_tokens, max_token_layers, num_layers
        self._tokens = self._token_layers = 0
        self.items: list[ForwardItem] = []
        self.is_full = False

    def has_room(self, item: ForwardItem) -> bool:
        """Whether an item fits beside those that are in it."""
        tokens = self._tokens + item.stop - item.join
        layers = self._token_layers + item.token_layers(self._num_layers)
        self.is_full |= bool(self.items) and (tokens > self._max_tokens or layers > self._max_token_layers)
        return not self.is_full

    def add(self, item: ForwardItem) -> None:
        """Put an item into the forward."""
        self.items.append(item)
        self._tokens += item.stop - item.join
        self._token_layers += item.token_layers(self._num_layers)


class Pace:
    """Bounds forwards, and measures them where a target asks for it.

    With a target, new requests go first in a refresh; after eight that left block starts out, these go first in one.
    So the first forward of a request waits for at most the forward in flight, one message of block steps and one
    batch of block starts, unless other new requests are before it or it finds no slot or memory. Its first text comes
    with its first forward when that commits the first token. Therefore each forward may take a quarter of the target:
    a refresh holds as many token-layers, and a message as many block steps, as took so long of late. Before anything
    is measured that is one request, and one step. A request whose own refresh takes longer runs alone.

    Times decide what runs together and in which order. They change no answer.

    Args:
        max_tokens: tokens of one refresh; see EngineConfig.max_refresh_tokens.
        max_steps: block steps of one message; see EngineConfig.max_steps_per_message.
        num_layers: of the model.
        target_s: seconds within which first texts should come; None: nothing is measured, and nothing bounded but by
            `max_tokens` and `max_steps`.
    """

    def __init__(self, max_tokens: int, max_steps: int, num_layers: int, target_s: float | None = None):
        self._max_tokens, self._max_steps, self._num_layers = max_tokens, max_steps, num_layers
        self.target_s = target_s
        self._began = 0.0
        self._refreshes: deque[float] = deque(maxlen=_WINDOW)  # seconds a token-layer
        self._steps: deque[float] = deque(maxlen=_WINDOW)  # seconds a step

    @property
    def combines(self) -> bool:
        """Whether block steps may follow a refresh in the same message. With a target not: each kind is measured."""
        return self._max_steps > 1 and self.target_s is None

    @property
    def newcomers_in_row(self) -> int:
        """Refreshes in a row in which new requests may go before block starts of running ones, and leave some out."""
        return 0 if self.target_s is None else _NEWCOMERS_IN_ROW

    @property
    def max_token_layers(self) -> float:
        """Token-layers that a refresh may compute; infinity without a target."""
        if self.target_s is None:
            return math.inf
        each = _median(self._refreshes)
        return self.target_s / _FORWARDS / each if each else 0.0

    def numbers(self) -> dict[str, Any]:
        """The target's fields of SchedulerStats."""
        if self.target_s is None:
            return {}
        return {
            "target_first_text_s": self.target_s, "refresh_token_layer_s": _median(self._refreshes),
            "block_step_s": _median(self._steps), "refresh_token_layers_limit": self.max_token_layers,
        }  # fmt: skip

    def batch(self) -> RefreshBatch:
        """An empty batch with the bounds of now."""
        return RefreshBatch(self._max_tokens, self.max_token_layers, self._num_layers)

    def fitting(self, items: Iterable[ForwardItem]) -> int:
        """How many leading items fit one forward: at least one, if there is any."""
        batch = self.batch()
        for item in items:
            if not batch.has_room(item):
                break
            batch.add(item)
        return len(batch.items)

    def steps(self, others_wait: bool) -> int:
        """Block steps of one message; `others_wait`: requests that need a refresh do."""
        if self.target_s is None:
            return 1 if others_wait else self._max_steps
        each = _median(self._steps)
        return max(1, min(self._max_steps, int(self.target_s / _FORWARDS / each))) if each else 1

    def begin(self) -> None:
        """A forward begins."""
        self._began = time.monotonic()

    def end(self, planned: Planned, results: Iterable[StepResult]) -> None:
        """A forward has ended."""
        forward = planned.forward
        if self.target_s is None or any(item.audit for item in forward.items):
            return
        seconds = time.monotonic() - self._began
        if planned.refreshes:
            self._refreshes.append(seconds / sum(item.token_layers(self._num_layers) for item in forward.items))
        elif steps := max((result.nfe for result in results), default=0):
            self._steps.append(seconds / steps)


def _median(seconds: deque[float]) -> float | None:
    return statistics.median(seconds) if seconds else None
