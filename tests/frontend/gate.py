"""What makes tests of calls under way independent of who is faster: a gate before the engine, and a frozen engine."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from shoal.frontend import EngineBackend, driver
from shoal.frontend.backend import Call, Reply
from shoal.runtime.engine import Engine
from shoal.runtime.request import RequestOutput


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


class Freeze:
    """Stops an engine between two steps, as soon as `when` says so of the last one's outputs, until the block ends."""

    def __init__(self, engine: Engine, when: Callable[[list[RequestOutput]], bool]):
        self.held = threading.Event()
        self._scheduler = engine._parts.scheduler
        self._step = self._scheduler.step
        self._when = when
        self._go_on = threading.Event()

    def __enter__(self) -> Freeze:
        last: list[RequestOutput] = []

        def step() -> list[RequestOutput]:
            if not self.held.is_set() and self._when(last):
                self.held.set()
                self._go_on.wait()
            last[:] = self._step()
            return list(last)

        self._scheduler.step = step  # type: ignore[method-assign]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._scheduler.step = self._step  # type: ignore[method-assign]
        self._go_on.set()


def running(engine: Engine, count: int) -> Callable[[list[RequestOutput]], bool]:
    """For Freeze: so many requests run."""
    return lambda outputs: engine._parts.scheduler.num_running >= count
