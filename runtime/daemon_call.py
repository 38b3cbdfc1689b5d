"""A blocking call beside an event loop that never holds the end of the process up."""

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
    """What `call` returns or raises, from a thread that holds up no cancelled caller: fetching a model may take an
    hour. Nor does it hold up the end of the process, if that goes through `end_without_waiting`.
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
    """End the process here and now when a call is still under way; else just return.

    The call may have started threads that are no daemons (the Hub's client has some for its downloads): at an ordinary
    end the interpreter would wait for them until all is fetched.
    """
    if any(thread.is_alive() for thread in _threads):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
