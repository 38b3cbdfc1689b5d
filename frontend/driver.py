"""The one thread on which every program's calls are awaited: no thread per state."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import ExpressionError

Result = TypeVar("Result")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of the driver's thread, started on first use (again after a fork of the process)."""
    global _loop
    with _lock:
        if _loop is None or not _loop.is_running():
            started = threading.Event()
            made = asyncio.new_event_loop()
            made.call_soon(started.set)
            threading.Thread(target=made.run_forever, name="shoal-programs", daemon=True).start()
            started.wait()
            _loop = made
        return _loop


def _forget() -> None:
    """In a forked process: its parent's loop says that it runs, but the thread is not there."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)


def inside() -> bool:
    """Whether this is the driver's thread, which must never wait for itself."""
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def submit(work: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Run a coroutine in the driver's thread."""
    return asyncio.run_coroutine_threadsafe(work, loop())


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the driver's thread and wait for it.

    Raises ExpressionError in the driver's thread itself, where async functions of a batch run: it would wait for ever.
    """
    if inside():
        work.close()
        message = "this would block the thread that carries out all programs: await the async twin instead"
        raise ExpressionError(message, field="function", limit="await")
    return submit(work).result()


async def finished(future: Future[Any]) -> None:
    """Wait until a future is done, in any event loop.

    Unlike `asyncio.wrap_future`, giving up the wait leaves the future as it is: others may wait for it too.
    """
    if future.done():
        return
    own, woken = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: wake(own, woken))
    await woken.wait()


def wake(own: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of another thread's event loop, unless that loop is closed."""
    try:
        own.call_soon_threadsafe(event.set)
    except RuntimeError:
        return
