"""Outputs of one request between the engine's thread and a reader that may be slower."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from ..request.output import RequestOutput


class Mailbox:
    """Outputs in order, for a reader in another thread.

    Bounded where outputs are large: one with a snapshot of the canvas takes the place of one that nobody has read.
    """

    def __init__(self) -> None:
        self._outputs: deque[RequestOutput] = deque()
        self._changed = threading.Condition()

    def put(self, output: RequestOutput) -> None:
        """Add an output."""
        with self._changed:
            _add(self._outputs, output)
            self._changed.notify()

    def get(self) -> RequestOutput:
        """Wait for the next output and remove it."""
        with self._changed:
            while not self._outputs:
                self._changed.wait()
            return self._outputs.popleft()


class AsyncMailbox:
    """As Mailbox, for a reader in an event loop, in which `put` must be called too."""

    def __init__(self) -> None:
        self._outputs: deque[RequestOutput] = deque()
        self._news = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Add an output."""
        _add(self._outputs, output)
        self._news.set()

    async def get(self) -> RequestOutput:
        """Wait for the next output and remove it."""
        await self._news.wait()
        output = self._outputs.popleft()
        if not self._outputs:
            self._news.clear()
        return output


def _add(outputs: deque[RequestOutput], output: RequestOutput) -> None:
    if outputs and outputs[-1].snapshot is not None:
        outputs[-1] = output
    else:
        outputs.append(output)
