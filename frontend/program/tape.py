"""A state's operations: queued by the program, carried out one after the other in the driver's thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

from ...runtime.birthplace import Birthplace
from .. import driver
from ..backend import Backend
from ..errors import (
    DuplicateNameError,
    Location,
    ProgramCancelledError,
    ProgramEndedError,
    ProgramError,
    UnknownVariableError,
)
from ..language.settings import Settings
from .text_log import TextLog
from .transcript import Transcript
from .usage import Usage
from .warm_up import WarmUp

playing: ContextVar[Tape | None] = ContextVar("playing", default=None)
"""The tape whose function runs in this context (and in what it starts)."""


class Operation(Protocol):
    """What a tape can carry out."""

    @property
    def location(self) -> Location:
        """The line of the program that asked for it."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Variables that it sets."""
        ...

    def describe(self) -> str:
        """In words, for errors."""
        ...

    async def run(self, tape: Tape) -> None:
        """Do it: change the tape's transcript and set the variables."""
        ...

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """The tape has failed, here or before: readers that wait for this operation get the error."""
        ...


class Tape:
    """Operations, variables and the transcript of one state. Any thread may add operations and read variables.

    An operation that fails ends the tape: the variables behind it raise its error, those before it keep their values.
    A forked child can read what was done before the fork; what was in flight continues in the parent alone, and
    raises ProgramEndedError in the child.

    Attributes:
        live: the function runs somewhere else while others read: they wait for what it has not declared yet.
        inherited: the variables that it has from the state it was forked off.
        born_with: the segments that it has from there.
    """

    def __init__(self, backend: Backend, defaults: Settings, *, stream: bool = False, usage: Usage | None = None):
        self.backend = backend
        self.defaults = defaults
        self.stream = stream
        self.usage = usage if usage is not None else Usage()
        self.transcript = Transcript()
        self.born_with = 0
        self.log = TextLog()
        self.warm_up: WarmUp | None = None
        self.variables: dict[str, Future[Any]] = {}
        self.meta: dict[str, Any] = {}
        self.inherited: dict[str, Future[Any]] = {}
        self.error: ProgramError | None = None
        self.live = False
        self._promised: dict[str, Future[Any]] = {}  # what operations set; `assign` may put another value before it
        self._queue: deque[Operation] = deque()
        self._birthplace = Birthplace("state")
        self._lock = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._branches: WeakSet[Tape] = WeakSet()
        self._task: asyncio.Task[Any] | None = None
        self._busy = False
        self._ended = False
        self._cancelled = False

    # From any thread

    def add(self, operation: Operation) -> None:
        """Queue an operation and declare its variables.

        Raises DuplicateNameError for a name that the state has already, ProgramEndedError after `end`.
        """
        self._check_process(done=not self._busy)
        with self._lock:
            self._check_open(operation)
            names = list(operation.names)
            for name in names:
                if name in self.variables or names.count(name) > 1:
                    message = f"{operation.location}: {operation.describe()}: the state has a variable {name!r} already"
                    raise DuplicateNameError(message, field="name", value=name)
            self._promised.update((name, Future()) for name in names)
            self.variables.update((name, self._promised[name]) for name in names)
            self._notify()
        self.read(operation)

    def _notify(self) -> None:
        """Something was declared, or nothing will be any more; with the lock held."""
        self._lock.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def read(self, operation: Operation) -> None:
        """Queue an operation that changes nothing: also after `end`."""
        self._check_process(done=not self._busy)
        with self._lock:
            self._queue.append(operation)
            if self._busy:
                return
            self._busy = True
        driver.submit(self._run())

    def _check_process(self, done: bool) -> None:
        """Refuse, in a forked child, what is not done: nobody will do it there. Takes no lock: it may stay locked."""
        if not done and not self._birthplace.is_here:
            raise ProgramEndedError(self._birthplace.refusal, field="state")

    def _check_open(self, operation: Operation) -> None:
        if self._ended:
            message = f"{operation.location}: {operation.describe()}: the program of this state has ended"
            raise ProgramEndedError(message, field="state")

    def end(self) -> None:
        """Take no further operations; those queued are carried out."""
        with self._lock:
            self._ended = True
            self._notify()
            idle = not self._busy
        if idle:
            self.close_log()

    def cancel(self) -> Future[None]:
        """End the tape and its branches now: calls in flight are aborted, what was not done fails. The future is done
        when all of that has happened."""
        self._give_up()
        return driver.submit(self._wind_up())

    def _give_up(self) -> None:
        """Note in the tape and its branches that they are cancelled. Once a tape has ended nothing is forked off it: so
        no branch is missed."""
        with self._lock:
            self._cancelled = self._cancelled or self._busy or not self._ended
            self._ended = True
            self._notify()
            own = list(self._branches)
        for branch in own:
            branch._give_up()

    def branches(self) -> list[Tape]:
        """All tapes that were forked off this one, theirs included, as far as anybody still holds them."""
        with self._lock:
            own = list(self._branches)
        return own + [inner for branch in own for inner in branch.branches()]

    @property
    def ended(self) -> bool:
        """Whether it takes no further operations."""
        return self._ended

    @property
    def finished(self) -> bool:
        """Whether it has ended and everything in it is done."""
        with self._lock:
            return self._ended and not self._busy

    def close_log(self) -> None:
        """Tell readers of the text that nothing follows."""
        error = self.error
        self.log.close(error.again if error is not None else None)

    def variable(self, name: str) -> Future[Any]:
        """The future of a variable. Raises UnknownVariableError for one that nothing has declared.

        While the function of a `live` tape runs elsewhere, it waits for the declaration.
        """
        future = self.variables.get(name)
        self._check_process(done=not self._undeclared(name) if future is None else future.done())
        with self._lock:
            self._lock.wait_for(lambda: not self._undeclared(name))
            if name not in self.variables:
                known = ", ".join(map(repr, self.variables)) or "none"
                message = f"unknown variable {name!r}; variables of this state: {known}"
                raise UnknownVariableError(message, field="name", value=name, limit=tuple(self.variables))
            return self.variables[name]

    def undeclared(self, name: str) -> bool:
        """Whether `variable` would wait."""
        with self._lock:
            return self._undeclared(name)

    def _undeclared(self, name: str) -> bool:
        return self.live and not self._ended and name not in self.variables and playing.get() is not self

    async def declared(self, name: str) -> None:
        """Wait, in any event loop, until `variable` would not."""
        loop = asyncio.get_running_loop()
        while True:
            self._check_process(done=not self._undeclared(name))
            woken = asyncio.Event()
            with self._lock:
                if not self._undeclared(name):
                    return
                self._wakers.append(lambda event=woken: driver.wake(loop, event))  # type: ignore[misc]
            await woken.wait()

    def assign(self, name: str, value: Any) -> None:
        """Set a variable now, in place of any value it has."""
        done: Future[Any] = Future()
        done.set_result(value)
        with self._lock:
            self.variables[name] = done
            self._notify()
        self.log.finish(name)

    def inherit(self, other: Tape) -> None:
        """Take over the variables that another tape has declared, and end when that one is cancelled.

        Before the fork is queued there: a tape that has been cancelled meanwhile refuses it.
        """
        with other._lock:
            self.variables = dict(other.variables)
            self.inherited = dict(other.variables)
            other._branches.add(self)

    # In the driver's thread

    def settle(self, name: str | None, value: Any, meta: Any = None) -> None:
        """Set a variable that an operation has declared."""
        if name:
            self.meta[name] = meta
            self._promised[name].set_result(value)
            self.log.finish(name)

    async def shared_prefix(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a prompt are warmed on their own; warms them now if that is due."""
        return 0 if self.warm_up is None else await self.warm_up.shared(tokens)

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        while True:
            with self._lock:
                if not self._queue:
                    self._busy = False
                    ended = self._ended
                    break
                operation = self._queue.popleft()
            try:
                if self.error is None and not self._cancelled:
                    await operation.run(self)
            except Exception as error:
                self._failed(operation, error)
            except asyncio.CancelledError:
                if not self._cancelled:
                    raise
            if self._cancelled and self.error is None:
                self._failed(operation, ProgramCancelledError("the program was cancelled", field="state"))
            if self.error is not None:
                operation.fail(self, self.error)
                for name in operation.names:
                    future = self._promised[name]
                    if not future.done():
                        future.set_exception(self.error)
                    self.log.finish(name)
        self._task = None
        if ended:
            self.close_log()

    def _failed(self, operation: Operation, error: Exception) -> None:
        """Note what an operation failed with; what it got from another state's failure stays that one's error."""
        if isinstance(error, ProgramError) and error.__cause__ is not None:
            self.error = error
        else:
            self.error = ProgramError(operation.describe(), operation.location, error)

    async def _wind_up(self) -> None:
        tasks = []
        for tape in (self, *self.branches()):
            if tape._task is not None:
                tape._task.cancel()
                tasks.append(tape._task)
            elif not tape._busy:
                tape.close_log()
        if tasks:
            await asyncio.wait(tasks)
