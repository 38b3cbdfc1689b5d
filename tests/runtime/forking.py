"""What a forked child makes of something: its result or error comes back as text."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

LIMIT_S = 120.0


def in_child(call: Callable[[], Any], *, ends: bool = False) -> str:
    """Run `call` in a child made by fork: `str` of what it returns, or the error's type and message.

    With `ends` the child ends as an interpreter does, callbacks of atexit included. Fails when the child hangs.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads: they are what this is about
        child = os.fork()
    if not child:
        try:
            answer = str(call())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        if ends:
            import atexit

            atexit._run_exitfuncs()
        os._exit(0)
    os.close(writer)
    try:
        if not _finished(child, reader):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the child hangs after {LIMIT_S} s")
        return os.read(reader, 1 << 16).decode()
    finally:
        os.close(reader)


def in_own_loop(call: Callable[[], Any]) -> str:
    """`str` of what an async function returns, or the error's type and message, in a thread and event loop of its own.

    For a child whose main thread is inside its parent's loop.
    """
    done: list[str] = []

    def work() -> None:
        try:
            done.append(str(asyncio.run(call())))
        except Exception as error:
            done.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return done[0]


def _finished(child: int, reader: int) -> bool:
    """Wait for the child's end: then its end of the pipe is closed."""
    poller = select.poll()
    poller.register(reader, select.POLLHUP)
    if not poller.poll(LIMIT_S * 1000):
        return False
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    sys.stdout.flush()
    return True
