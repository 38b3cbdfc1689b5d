"""A state's operations: queued by the program, carried out one after the other in the driver's thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from . import driver
from .backend import Backend
from .errors import DuplicateNameError, Location, ProgramEndedError, ProgramError, UnknownVariableError
from .settings import Settings
from .text_log import TextLog
from .transcript import Transcript
from .usage import Usage
from .warm_up import WarmUp


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
        """The tape has failed, here or before: whoever waits for this operation gets the error."""
        ...


class Tape:
    """Operations, variables and the transcript of one state. Any thread may add operations and read variables.

    An operation that fails ends the tape: the variables behind it raise its error, those before it keep their values.
    """

    def __init__(self, backend: Backend, defaults: Settings, *, stream: bool = False, usage: Usage | None = None):
        self.backend = backend
        self.defaults = defaults
        self.stream = stream
        self.usage = usage if usage is not None else Usage()
        self.transcript = Transcript()
        self.born_with = 0  # segments that it has from the state it was forked off
        self.log = TextLog()
        self.warm_up: WarmUp | None = None
        self.variables: dict[str, Future[Any]] = {}
        self.meta: dict[str, Any] = {}
        self.error: ProgramError | None = None
        self.player: int | None = None
        self._queue: deque[Operation] = deque()
        self._lock = threading.Condition()
        self._busy = False
        self._ended = False

    # From any thread

    def add(self, operation: Operation) -> None:
        """Queue an operation and declare its variables.

        Raises DuplicateNameError for a name that the state has already, ProgramEndedError after `end`.
        """
        with self._lock:
            self._check_open(operation)
            names = list(operation.names)
            for name in names:
                if name in self.variables or names.count(name) > 1:
                    message = f"{operation.location}: {operation.describe()}: the state has a variable {name!r} already"
                    raise DuplicateNameError(message, field="name", value=name)
            self.variables.update((name, Future()) for name in names)
            self._lock.notify_all()
        self.read(operation)

    def read(self, operation: Operation) -> None:
        """Queue an operation that changes nothing: also after `end`."""
        with self._lock:
            self._queue.append(operation)
            if self._busy:
                return
            self._busy = True
        driver.submit(self._run())

    def _check_open(self, operation: Operation) -> None:
        if self._ended:
            message = f"{operation.location}: {operation.describe()}: the program of this state has ended"
            raise ProgramEndedError(message, field="state")

    def end(self) -> None:
        """Take no further operations; those queued are carried out."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()
            idle = not self._busy
        if idle:
            self.close_log()

    def close_log(self) -> None:
        """Tell readers of the text that nothing follows."""
        error = self.error
        self.log.close(error.again if error is not None else None)

    def variable(self, name: str) -> Future[Any]:
        """The future of a variable. Raises UnknownVariableError for one that nothing has declared.

        While the program of a streaming state still runs, in another thread (`player`), it waits for the declaration.
        """
        with self._lock:
            if self.player is not None and self.player != threading.get_ident():
                self._lock.wait_for(lambda: self._ended or name in self.variables)
            if name not in self.variables:
                known = ", ".join(map(repr, self.variables)) or "none"
                message = f"unknown variable {name!r}; variables of this state: {known}"
                raise UnknownVariableError(message, field="name", value=name, limit=tuple(self.variables))
            return self.variables[name]

    def assign(self, name: str, value: Any) -> None:
        """Set a variable now, in place of any value it has."""
        done: Future[Any] = Future()
        done.set_result(value)
        with self._lock:
            self.variables[name] = done

    def inherit(self, other: Tape) -> None:
        """Take over the variables that another tape has declared."""
        with other._lock:
            self.variables = dict(other.variables)

    # In the driver's thread

    def settle(self, name: str | None, value: Any, meta: Any = None) -> None:
        """Set a variable that an operation has declared."""
        if name:
            self.meta[name] = meta
            self.variables[name].set_result(value)

    async def shared_prefix(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a prompt are warmed on their own; warms them now if that is due."""
        return 0 if self.warm_up is None else await self.warm_up.shared(tokens)

    async def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._busy = False
                    ended = self._ended
                    break
                operation = self._queue.popleft()
            try:
                if self.error is None:
                    await operation.run(self)
            except Exception as error:
                inner = error.__cause__ if isinstance(error, ProgramError) else None
                own = ProgramError(operation.describe(), operation.location, error)
                self.error = error if isinstance(error, ProgramError) and inner is not None else own
            if self.error is not None:
                operation.fail(self, self.error)
                for name in operation.names:
                    future = self.variables[name]
                    if not future.done():
                        future.set_exception(self.error)
        if ended:
            self.close_log()
