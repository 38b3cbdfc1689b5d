"""A gate before an engine: calls under way stay so until a test lets them go, whoever is faster."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import Future

from shoal.frontend import EngineBackend, driver
from shoal.frontend.backend import Call, Reply
from shoal.runtime.engine.engine import Engine


class Gate(EngineBackend):
    """Counts calls. Those that `holds` picks wait at it until `open`; `began` gets each one's tokens as it comes."""

    def __init__(self, engine: Engine, holds: Callable[[Call], bool] = lambda call: False):
        super().__init__(engine)
        self.began: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self.done = self.cancelled = 0
        self._holds = holds
        self._opened: Future[None] = Future()

    def open(self) -> None:
        """Let the calls go."""
        self._opened.set_result(None)

    async def generate(self, call: Call) -> Reply:
        """See Backend."""
        self.began.put(call.tokens)
        try:
            if self._holds(call):
                await driver.finished(self._opened)
            reply = await super().generate(call)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.done += 1
        return reply


def all_calls(call: Call) -> bool:
    """Every call waits at the gate."""
    return True
