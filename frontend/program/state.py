"""A program's state: what its function gets as `s`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from ...runtime.errors import shorten
from .. import driver
from ..errors import ExpressionError, ProgramCancelledError, ProgramError, UnknownVariableError, UnsupportedError
from ..language.expressions import flat
from ..language.holes import fill
from .branching import Fork, Wait
from .group import ProgramStateGroup
from .location import here
from .messages import Messages
from .operations import Append, Read, Scope
from .tape import Tape
from .usage import Usage


class ProgramState(Messages):
    """Text so far and variables. Appending (`s += ...`) returns at once; reading waits for what is read.

    In an `async` function read with `await s.get(name)`, `await s.wait()`, `await s.get_text()`: a reading that blocks
    would stop every program of the event loop, and raises ExpressionError instead. `ret_value` is what the function has
    returned.
    """

    def __init__(self, tape: Tape, is_async: bool = False):
        self._tape = tape
        self._async = is_async
        self._raised: BaseException | None = None
        self.ret_value: Any = None

    def _fail(self, error: BaseException) -> None:
        """The function of this state has raised. A cancelled task's error is no reason to cancel a reader's."""
        if not isinstance(error, Exception):
            cause, error = error, ProgramCancelledError("the program was cancelled", field="state")
            error.__cause__ = cause
        self._raised = error

    def _readable(self) -> ProgramState:
        """All calls are done: reading can't block any more, also where an async function made the state."""
        self._async = False
        return self

    # Appending

    def __iadd__(self, other: Any) -> ProgramState:
        self.append(other)
        return self

    def append(self, other: Any) -> None:
        """Append text, an expression, or a list of them. Mistakes that show at once raise here."""
        location = here()
        for expression in flat(other):
            self._tape.add(Append.of(expression, location, self._tape))

    def fill(self, *parts: Any, **values: Any) -> None:
        """Append a canvas of fixed text and holes that are filled together; see `shoal.fill`."""
        self.append(fill(*parts, **values))

    @contextmanager
    def var_scope(self, name: str) -> Generator[None, None, None]:
        """All text appended inside becomes variable `name`."""
        begin: list[int] = []
        self._tape.add(Scope(name, begin, here()))
        yield
        self._tape.add(Scope(name, begin, here(), (name,)))

    # Variables

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        return name in self._tape.variables

    def get_var(self, name: str) -> Any:
        """Value of a variable, waiting for it.

        Raises UnknownVariableError for one that nothing has declared, ProgramError when its call, or one before it,
        failed.
        """
        if self._async and self._tape.undeclared(name):
            raise _would_block(f"s[{name!r}]", "await s.get(...)")
        return self._wait(self._variable(name), f"s[{name!r}]", "await s.get(...)")

    def set_var(self, name: str, value: Any) -> None:
        """Set a variable, in place of any value it has."""
        self._tape.assign(name, value)

    def get_meta_info(self, name: str) -> Any:
        """Meta info of the call that set a variable: finish_reason, nfe, cached_tokens and more; of select its
        figures."""
        self.get_var(name)
        return self._tape.meta.get(name)

    async def get(self, name: str) -> Any:
        """As `get_var`, awaitable."""
        await self._tape.declared(name)
        return await self._await(self._variable(name))

    def _variable(self, name: str) -> Future[Any]:
        try:
            return self._tape.variable(name)
        except UnknownVariableError:
            if self._raised is not None:
                raise self._raised from None
            raise

    # The whole

    def text(self) -> str:
        """All text, role markers included, once everything appended is done."""
        text: str = self._read("text", "await s.get_text()")
        return text

    def messages(self) -> list[dict[str, str]]:
        """The messages that have ended, each with role and content."""
        messages: list[dict[str, str]] = self._read("messages", "await s.get_messages()")
        return messages

    def tokens(self) -> tuple[int, ...]:
        """Token ids of the text."""
        tokens: tuple[int, ...] = self._read("tokens", "await s.get_tokens()")
        return tokens

    async def get_text(self) -> str:
        """As `text`, awaitable."""
        text: str = await self._await_all("text")
        return text

    async def get_messages(self) -> list[dict[str, str]]:
        """As `messages`, awaitable."""
        messages: list[dict[str, str]] = await self._await_all("messages")
        return messages

    async def get_tokens(self) -> tuple[int, ...]:
        """As `tokens`, awaitable."""
        tokens: tuple[int, ...] = await self._await_all("tokens")
        return tokens

    def sync(self) -> None:
        """Wait until everything appended is done. Raises ProgramError when something failed."""
        self._read("text", "await s.wait()")

    async def wait(self) -> None:
        """As `sync`, awaitable."""
        await self._await_all("text")

    def error(self) -> BaseException | None:
        """What went wrong, once everything appended is done; None when nothing did."""
        try:
            self.sync()
        except ProgramError as error:
            return error
        return self._raised

    def cancel(self) -> None:
        """End the program now: calls in flight, those of its branches too, are aborted; what was not done raises
        ProgramError where it is read, what was done keeps its value."""
        self._tape.cancel()

    @property
    def usage(self) -> Usage:
        """What the program has cost so far, forks and warm-ups included; whole once it is done (`sync`)."""
        return self._tape.usage

    def _reading(self, what: str) -> Future[Any]:
        done: Future[Any] = Future()
        self._tape.read(Read(here(), what, done))
        return done

    def _read(self, what: str, instead: str) -> Any:
        if self._tape.finished:
            self._readable()
        return self._wait(self._reading(what), f"s.{what}()", instead)

    def _wait(self, future: Future[Any], what: str, instead: str) -> Any:
        if not future.done() and (self._async or driver.inside()):
            raise _would_block(what, instead)
        try:
            return future.result()
        except ProgramError as error:
            raise error.again() from error.__cause__

    async def _await_all(self, what: str) -> Any:
        ended = self._tape.ended
        try:
            return await self._await(self._reading(what))
        finally:
            if ended:
                self._readable()

    async def _await(self, future: Future[Any]) -> Any:
        await driver.finished(future)
        try:
            return future.result()
        except ProgramError as error:
            raise error.again() from error.__cause__

    # Text as it comes

    def text_iter(self, var_name: str | None = None) -> Generator[str, None, None]:
        """New text as it is committed: all of it, or that of one variable until it has its value.

        Without `stream=True` in one piece a call. What failed is raised at the end.
        """
        if (self._async or driver.inside()) and not self._tape.log.complete(var_name):
            raise _would_block("s.text_iter()", "s.text_async_iter()")
        shown = False
        for piece in self._tape.log.read(var_name):
            shown = True
            yield piece.text
        if var_name is not None:
            value = self.get_var(var_name)
            if not shown and isinstance(value, str) and value:
                yield value
        elif self._raised is not None:
            raise self._raised

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncGenerator[Any, None]:
        """As `text_iter`, asynchronous; with `return_meta_data` pairs of text and meta info."""
        shown = False
        async for piece in self._tape.log.read_async(var_name):
            shown = True
            yield (piece.text, piece.meta) if return_meta_data else piece.text
        if var_name is not None:
            value = await self.get(var_name)
            if not shown and isinstance(value, str) and value:
                yield (value, self._tape.meta.get(var_name)) if return_meta_data else value
        elif self._raised is not None:
            raise self._raised

    # Branches

    def fork(self, size: int = 1, position_ids_offset: Any = None) -> ProgramStateGroup[ProgramState]:
        """Branches that go on from here, each for itself. The prompt so far is computed once for all of them.

        SGLang's `position_ids_offset` can't be had.
        """
        if position_ids_offset is not None:
            raise UnsupportedError("position_ids_offset can't be had: leave it out", field="position_ids_offset")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ExpressionError(f"size is {shorten(size)}; it must be at least 1", field="size", value=size, limit=1)
        tape, location = self._tape, here()
        ready: Future[Tape] = Future()
        branches = [Tape(tape.backend, tape.defaults, stream=tape.stream, usage=tape.usage) for _ in range(size)]
        for branch in branches:
            branch.inherit(tape)
        tape.add(Fork(tuple(branches), location, ready))
        for branch in branches:  # not before: if the state has ended nothing would ever end their wait
            branch.add(Wait(ready, location))
        states = [ProgramState(branch, self._async) for branch in branches]
        return ProgramStateGroup(states, branches, self, tape)

    @contextmanager
    def copy(self) -> Generator[ProgramState, None, None]:
        """A branch for a `with` block."""
        branch = self.fork(1)[0]
        try:
            yield branch
        finally:
            branch._tape.end()


def _would_block(what: str, instead: str) -> ExpressionError:
    message = f"{what} would block the event loop of an async function: use {instead}"
    return ExpressionError(message, field="state", limit=instead)
