"""Long texts are tokenized in a thread of their own, one after the other, while short ones pass."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..cpu_tuning import return_freed_memory

_M = TypeVar("_M")
_R = TypeVar("_R")


class LongTexts(Generic[_M, _R]):
    """Works on messages in a thread that starts with the first one.

    Args:
        make_work: called once in the thread; returns the function that handles each message.

    Attributes:
        ready: a file descriptor that is readable while results wait.
    """

    def __init__(self, make_work: Callable[[], Callable[[_M], _R]]):
        self.ready, self._done_signal = os.pipe()
        self._make_work = make_work
        self._messages: queue.SimpleQueue[tuple[_M, str | None]] = queue.SimpleQueue()
        self._done: deque[tuple[_M, str | None, _R | BaseException]] = deque()
        self._under_way: dict[str, None] = {}
        self._thread: threading.Thread | None = None

    def put(self, message: _M, rid: str | None = None) -> None:
        """Queue a message; `rid` is the request that it creates, if any."""
        if rid is not None:
            self._under_way[rid] = None
        self._messages.put((message, rid))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shoal-long-texts", daemon=True)
            self._thread.start()

    def drop(self, rid: str) -> bool:
        """Drop a request, so that it yields no result; False if it is not here."""
        if rid not in self._under_way:
            return False
        del self._under_way[rid]
        return True

    def drop_all(self) -> list[str]:
        """Drop all requests and return their ids."""
        rids = list(self._under_way)
        self._under_way.clear()
        return rids

    def take(self, handle: Callable[[_M, _R], object]) -> None:
        """Pass finished results, except those of dropped requests, to `handle`. Raises what the work raised."""
        if not self._done:
            return
        while self._done:
            os.read(self.ready, 1)
            message, rid, result = self._done.popleft()
            if rid is not None and not self.drop(rid):
                continue
            if isinstance(result, BaseException):
                raise result
            handle(message, result)
        del message, result
        return_freed_memory()

    def _run(self) -> None:
        work: Callable[[_M], _R] | None = None
        while True:
            message, rid = self._messages.get()
            result: _R | BaseException
            if rid is not None and rid not in self._under_way:
                continue
            try:
                work = work or self._make_work()
                result = work(message)
            except BaseException as error:
                result = error
            self._done.append((message, rid, result))
            os.write(self._done_signal, b"\0")
            del message, result
