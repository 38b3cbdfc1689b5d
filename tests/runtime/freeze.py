"""An engine that stands still at a moment of the test's choice: so it does not matter who is faster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from shoal.runtime.engine.engine import Engine
from shoal.runtime.request.output import RequestOutput


class Freeze:
    """Stops an engine between two steps, as soon as `when` says so of the last one's outputs, until the block ends.

    Args:
        engine: takes no requests while it stands still.
        when: called in its thread before each step.
        waits: no step is made, but requests are taken, while this is true: for others that are about to come.
    """

    def __init__(
        self, engine: Engine, when: Callable[[list[RequestOutput]], bool], waits: Callable[[], bool] = lambda: False
    ):
        self.held = threading.Event()
        self._scheduler = engine.core.parts.scheduler
        self._step = self._scheduler.step
        self._when = when
        self._waits = waits
        self._go_on = threading.Event()

    def __enter__(self) -> Freeze:
        last: list[RequestOutput] = []

        def step() -> list[RequestOutput]:
            if not self.held.is_set():
                if self._waits():
                    time.sleep(0.001)
                    return []
                if self._when(last):
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


def frozen_with(engine: Engine, count: int, canvas: int = 0) -> Freeze:
    """Stops when so many requests run that have a canvas of at least this length, however far apart they come."""
    scheduler = engine.core.parts.scheduler

    def there() -> int:
        return sum(request.spec.canvas_length >= canvas for request in scheduler._requests.values())

    return Freeze(engine, lambda _: scheduler.num_running >= count <= there(), lambda: 0 < there() < count)
