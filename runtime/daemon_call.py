"""A blocking call beside an event loop that never delays the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakSet

_T = TypeVar("_T")
_threads: WeakSet[threading.Thread] = WeakSet()


async def in_a_daemon(call: Callable[[], _T]) -> _T:
    """Run `call` in a daemon thread; return its result or raise its error. A cancelled caller does not wait for the
    thread: fetching a model may take an hour. Nor does the process, if it ends through `end_without_waiting`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name="shoal-daemon-call", daemon=True)
    _threads.add(thread)
    thread.start()
    return await future


def end_without_waiting(code: int) -> None:
    """End the process at once if a call is still running; else return.

    The call may have started threads that are not daemons (the Hub client's downloads). At an ordinary exit the
    interpreter would wait for them.
    """
    if any(thread.is_alive() for thread in _threads):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
