"""The one thread on which every program's calls are awaited: no thread per state."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

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


def submit(work: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Run a coroutine in the driver's thread."""
    return asyncio.run_coroutine_threadsafe(work, loop())
