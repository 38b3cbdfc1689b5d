"""Aborts that can't be lost: resends them until the receiver has room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

RETRY_SECONDS = 0.01


class AbortLane:
    """Tells the pipeline to end requests, in order. Belongs to one event loop.

    Args:
        send: sends the abort of a request if the receiver has room; returns whether it did.
    """

    def __init__(self, send: Callable[[str], bool]):
        self._send = send
        self._waiting: dict[str, None] = {}
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_behind(self) -> bool:
        """Whether aborts wait for room; other messages must not take it."""
        return bool(self._waiting)

    def abort(self, rid: str) -> None:
        """End a request: at once, or as soon as there is room."""
        self._waiting[rid] = None
        if self._retry is None:
            self._send_all()

    def close(self) -> None:
        """Drop all aborts: the pipeline is gone."""
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
