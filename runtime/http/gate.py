"""Limits open connections, and chooses the one to close when there are too many."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from .connection import Connection, full_error
from .connection_limits import RESERVE, ConnectionLimits

logger = logging.getLogger(__name__)
_WARNING_S = 10.0


class Gate:
    """Keeps connections below the limit: a new one past it replaces the one that was silent longest.

    If all are busy with requests, it joins the RESERVE; past these it is refused.
    """

    def __init__(self, limits: ConnectionLimits):
        self.limits = limits
        self._dropped = self._refused = 0
        self._warned_at = -_WARNING_S

    def opened(self, connection: Connection) -> None:
        """Make room for a new connection, or refuse it."""
        others: Collection[Connection] = connection.connections  # type: ignore[assignment]
        if len(others) <= self.limits.max_connections:
            return
        idle = (other for other in others if other is not connection and other.is_idle)
        idlest = min(idle, key=lambda other: other.active_at, default=None)
        if idlest is not None:
            idlest.drop()
            self._dropped += 1
        else:
            connection.is_reserve = True
            if len(others) > self.limits.max_connections + RESERVE:
                connection.answer(full_error())
                self._refused += 1
        self._warn()

    def check(self, connections: Collection[Connection], now: float) -> None:
        """Close connections that are past a limit; call it about once a second."""
        for connection in list(connections):
            connection.check(now)
        unsent = sum(connection.unsent for connection in connections)
        for connection in sorted(connections, key=lambda one: one.unread_since):
            if unsent <= self.limits.max_held_bytes:
                break
            if connection.unsent:
                unsent -= connection.unsent
                connection.drop()

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at < _WARNING_S:
            return
        logger.warning(
            "%d connections are open, as many as may be (--max-connections): %d silent ones were closed, %d refused",
            self.limits.max_connections, self._dropped, self._refused,
        )  # fmt: skip
        self._warned_at, self._dropped, self._refused = now, 0, 0
