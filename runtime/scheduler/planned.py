"""A plan of the scheduler: what it asks of the worker, and takes back with the results."""

from __future__ import annotations

from dataclasses import dataclass

from ..request.forward import Forward


@dataclass(frozen=True, slots=True)
class Planned:
    """A forward to run. `apply` takes it back together with its results.

    Attributes:
        forward: for the worker.
        finals: its items are passes over finished sequences that are captured (mode `lm`).
        refreshes: its items are refreshes, or such passes; otherwise they are block steps.
    """

    forward: Forward
    finals: bool = False
    refreshes: bool = False
