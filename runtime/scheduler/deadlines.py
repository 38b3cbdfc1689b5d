"""Time-outs of requests."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable

from ..errors import time_out
from ..request.request import Request


class Deadlines:
    """Ends requests that are past their `timeout_s`; looks at them only when the next one is due."""

    def __init__(self) -> None:
        self._next = math.inf

    def watch(self, request: Request) -> None:
        """A request was accepted."""
        if request.spec.deadline is not None:
            self._next = min(self._next, request.spec.deadline)

    def passed(self, requests: Iterable[Request], running: Collection[str]) -> list[Request]:
        """Those of `requests` that are past their deadline and still went on, now with error and finish reason.

        Args:
            requests: all that have not ended.
            running: ids of those that run, for the message.
        """
        now = time.monotonic()
        if now < self._next:
            return []
        self._next, passed = math.inf, []
        for request in requests:
            limit, deadline = request.spec.timeout_s, request.spec.deadline
            if limit is None or deadline is None:
                continue
            if now < deadline:
                self._next = min(self._next, deadline)
            elif request.finish_reason is None:
                state = "running" if request.rid in running else "waiting"
                request.error = time_out(limit, limit + now - deadline, f"it was {state}")
                request.finish_reason = "abort"
                passed.append(request)
        return passed
