"""Recent tokens a second, from a counter that only grows."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0
_LEAST_S = 1.0
_APART_S = 0.25


class Throughput:
    """The rate over the last WINDOW_S seconds (at least one) of work; 0 at rest. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """Record the counter while there is work. After a rest, call it once before the work starts."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= _APART_S:
            samples.append((now, count))
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_S:
            samples.popleft()

    def rest(self) -> None:
        """Record that there is no work left."""
        self._samples.clear()

    def rate(self, now: float, count: int) -> float:
        """Counts a second."""
        if not self._samples:
            return 0.0
        since, before = self._samples[0]
        return (count - before) / max(now - since, _LEAST_S)
