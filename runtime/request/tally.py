"""Counts and times of one request."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .output import Timings


@dataclass(slots=True)
class Tally:
    """Counts and times of a request so far; RequestOutput explains the counts.

    Attributes:
        nfe_at_refresh: `nfe` at its latest prefix refresh.
        entropy: largest entropy, in nats, of a token committed since its latest refresh; 0 where no worker reports it.
        stepped_at: the forward of its latest block step, where not all block steps fit one forward.
        ticket: its place in the order of arrival.
        age: later requests that overtook it, weighted; see Admission.
        counted_tokens: its text tokens that are already in the scheduler's counters.
        captured_tokens: leading prompt tokens that its latest first forward captured.
        admitted_at, first_text_at: `time.monotonic()`; None: not yet.
    """

    nfe: int = 0
    nfe_at_refresh: int = 0
    entropy: float = 0.0
    stepped_at: int = 0
    computed_token_layers: int = 0
    prefix_refreshes: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    captured_tokens: int = 0
    counted_tokens: int = 0
    ticket: int = 0
    age: int = 0
    depth: int = 0
    admitted_at: float | None = None
    first_text_at: float | None = None

    def timings(self, arrival: float) -> Timings:
        """Seconds from `arrival` until now."""
        now = time.monotonic()
        first = None if self.first_text_at is None else self.first_text_at - arrival
        return Timings((self.admitted_at or now) - arrival, first, now - arrival)
