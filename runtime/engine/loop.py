"""The engine's thread: drives the scheduler, runs other threads' calls between its steps, delivers outputs."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from ..birthplace import Birthplace
from ..cpu_tuning import return_freed_memory
from ..errors import EngineClosedError, EngineError, InvalidRequestError, ShoalError
from ..request.output import RequestOutput
from ..request.request import Request
from ..scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)
Listener = Callable[[RequestOutput], None]
_T = TypeVar("_T")
_OPEN: weakref.WeakSet[EngineLoop] = weakref.WeakSet()


class EngineLoop:
    """Owns the thread, and for every request in flight the listener of its outputs.

    A listener runs in the engine's thread; its errors are logged and harm no other request. Every request that `submit`
    took gets exactly one terminal output, whatever happens. The loop holds no reference to the Engine, so an unused
    engine can be collected. A forked child lacks the thread: there the loop takes nothing, and closing does nothing.

    Args:
        scheduler: driven by the thread; no other code may touch it from now on.
        idle_s: seconds without work after which the thread returns freed memory to the system and ends; new work starts
            another; None: never. On a CPU every thread that has computed keeps a team of OpenMP threads. If a process
            has more of these than cores, short operations wait for threads that sleep, so idle engines would slow the
            others down.
    """

    def __init__(self, scheduler: Scheduler, idle_s: float | None = None):
        self._scheduler = scheduler
        self._idle_s = idle_s
        self._birthplace = Birthplace("engine")
        self._torch_threads = torch.get_num_threads()
        self._listeners: dict[str, tuple[Request, Listener]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed: ShoalError | None = None
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        _OPEN.add(self)

    # From any thread

    @property
    def closed(self) -> ShoalError | None:
        """Why it takes no more requests; None while it does."""
        if not self._birthplace.is_here:
            return EngineClosedError(self._birthplace.refusal)
        return self._closed

    @property
    def thread(self) -> threading.Thread | None:
        """Its thread; None before the first call, and after a rest."""
        return self._thread

    def check_process(self) -> None:
        """Raise EngineClosedError in a process forked from the engine's, which has no engine thread."""
        self._birthplace.check()

    def submit(self, requests: Sequence[Request], listener: Listener) -> None:
        """Queue requests. Raises EngineClosedError if the engine is closed or was made in another process."""

        def submit() -> None:
            fresh = []
            for request in requests:
                if request.rid in self._listeners:  # the request that has this id keeps it, and its listener
                    message = f"rid {request.rid!r} is in use"
                    request.fail(InvalidRequestError(message, field="rid", value=request.rid))
                    self._guard(listener, request.output())
                    continue
                self._listeners[request.rid] = (request, listener)
                fresh.append(request)
            for request in fresh:
                try:
                    self._refuse_if_closed()
                    self._scheduler.add(request)
                except ShoalError as error:
                    request.fail(error)
                    self._deliver(request.output())

        self.call(submit)

    def abort(self, rids: Sequence[str]) -> None:
        """End requests early; ids of others, or of requests that have ended, are ignored, as is a closed engine."""

        def abort() -> None:
            for rid in rids:
                output = self._scheduler.abort(rid)
                if output is not None:
                    self._deliver(output)

        try:
            self.call(abort)
        except EngineClosedError:
            logger.debug("closing has ended the requests already")

    def call(self, task: Callable[[], None]) -> None:
        """Run `task` in the engine's thread, soon. Raises EngineClosedError as `submit` does."""
        self.check_process()
        with self._state:
            self._refuse_if_closed()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="shoal-engine", daemon=True)
                thread.start()  # raises where the system allows no more: nothing was taken on then
                self._thread = thread
            self._inbox.put(task)

    def call_and_wait(self, task: Callable[[], _T]) -> _T:
        """Run `task` in the engine's thread; returns what it returns, raises what it raises."""
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except Exception as error:
                done.set_exception(error)

        self.call(run)
        return done.result()

    def close(self, wait: bool) -> None:
        """Stop; requests that still run end with EngineClosedError. May be called twice."""
        if not self._birthplace.is_here:
            return
        with self._state:
            if self._closed is None:
                self._closed = EngineClosedError("the engine was shut down")
                self._inbox.put(None)
            thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    # In the engine's thread

    def _run(self) -> None:
        torch.set_num_threads(self._torch_threads)
        scheduler = self._scheduler
        try:
            while True:
                while not scheduler.has_work or not self._inbox.empty():
                    try:
                        task = self._inbox.get(timeout=self._idle_s)
                    except queue.Empty:
                        if self._rests():
                            return_freed_memory()
                            return
                        continue
                    if task is None:
                        self._end_all(EngineClosedError("the engine was shut down"))
                        return
                    task()
                    del task  # it may hold objects that a caller wants collected
                    if not self._birthplace.is_here:  # a callback forked: the parent goes on
                        return
                for output in scheduler.step():
                    self._deliver(output)
                if not self._birthplace.is_here:
                    return
        except Exception as error:
            logger.exception("the engine's loop failed")
            words = f"the engine's loop failed: {type(error).__name__}: {error}"
            with self._state:
                self._closed = EngineClosedError(words)
            self._end_all(EngineError(words))

    def _rests(self) -> bool:
        """Whether the thread may end: no call waits, and the next one will start another thread."""
        with self._state:
            if not self._inbox.empty():
                return False
            self._thread = None
            return True

    def _end_all(self, error: ShoalError) -> None:
        for request, _ in list(self._listeners.values()):
            self._guard(self._scheduler.abort, request.rid)
            request.fail(error)
            self._deliver(request.output())
        while not self._inbox.empty():
            task = self._inbox.get()
            if task is not None:
                self._guard(task)

    def _deliver(self, output: RequestOutput) -> None:
        if output.rid not in self._listeners or not self._birthplace.is_here:
            return
        _, listener = self._listeners[output.rid]
        if output.finished:
            del self._listeners[output.rid]
        self._guard(listener, output)

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise EngineClosedError(self._closed.message)

    @staticmethod
    def _guard(call: Callable[..., Any], *arguments: object) -> None:
        try:
            call(*arguments)
        except BaseException:  # also SystemExit: it would end this thread, and all callers would wait forever
            logger.exception("a callback of the engine's thread failed")


@atexit.register
def _close_all() -> None:
    """Stop between two steps: an interpreter that ends while a thread is inside torch aborts the process."""
    for loop in list(_OPEN):
        loop.close(wait=True)
