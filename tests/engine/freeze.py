"""An engine that stands still at a moment of the test's choice: so it does not matter who is faster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from shoal.runtime.engine import Engine
from shoal.runtime.request import RequestOutput


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
        self.go_on()

    def go_on(self) -> None:
        """Let it go on before the end of the block; it stops no second time."""
        self._go_on.set()


def running(engine: Engine, count: int) -> Callable[[list[RequestOutput]], bool]:
    """For Freeze: so many requests run."""
    return lambda outputs: engine._parts.scheduler.num_running >= count
