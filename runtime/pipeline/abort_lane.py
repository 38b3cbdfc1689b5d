"""Aborts that can't be lost: what the receiver has no room for is sent again until it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

RETRY_SECONDS = 0.01


class AbortLane:
    """Tells the pipeline to end requests, in order. Belongs to one event loop.

    Args:
        send: sends the abort of a request unless the receiver has no room; whether it was sent.
    """

    def __init__(self, send: Callable[[str], bool]):
        self._send = send
        self._waiting: dict[str, None] = {}
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_behind(self) -> bool:
        """Whether aborts wait for room: nothing else should take it."""
        return bool(self._waiting)

    def abort(self, rid: str) -> None:
        """End a request: at once, or as soon as there is room."""
        self._waiting[rid] = None
        if self._retry is None:
            self._send_all()

    def close(self) -> None:
        """Nobody is left to tell."""
        self._waiting.clear()
        if self._retry is not None:
            self._retry.cancel()

    def _send_all(self) -> None:
        self._retry = None
        while self._waiting:
            rid = next(iter(self._waiting))
            if not self._send(rid):
                self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._send_all)
                return
            del self._waiting[rid]
