"""A program's state: what its function gets as `s`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from ..runtime.errors import shorten
from .branching import Fork, Wait
from .errors import ExpressionError, ProgramError, UnsupportedError
from .expressions import Fill, RoleBegin, RoleEnd, flat
from .location import here
from .operations import Append, Read, Scope
from .settings import settings
from .tape import Tape
from .usage import Usage


class ProgramState:
    """Text so far and variables. Appending (`s += ...`) returns at once; reading waits for what is read.

    In an `async` function read with `await s.get(name)`, `await s.wait()`, `await s.get_text()`: a reading that blocks
    would stop every program of the event loop, and raises ExpressionError instead.
    """

    def __init__(self, tape: Tape, is_async: bool = False):
        self._tape = tape
        self._async = is_async
        self._raised: BaseException | None = None

    def _fail(self, error: BaseException) -> None:
        """The function of this state has raised."""
        self._raised = error

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

    def system(self, expression: Any = None) -> Any:
        """Append a system message; without an argument a context manager for one."""
        return self._message("system", expression)

    def user(self, expression: Any = None) -> Any:
        """Append a user message; without an argument a context manager for one."""
        return self._message("user", expression)

    def assistant(self, expression: Any = None) -> Any:
        """Append an assistant message; without an argument a context manager for one."""
        return self._message("assistant", expression)

    def _message(self, role: str, expression: Any) -> Any:
        if expression is None:
            return self._role_scope(role)
        self.append([RoleBegin(role), *flat(expression), RoleEnd(role)])
        return None

    @contextmanager
    def _role_scope(self, role: str) -> Generator[None, None, None]:
        self.append(RoleBegin(role))
        yield
        self.append(RoleEnd(role))

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
        return await self._await(self._variable(name))

    def _variable(self, name: str) -> Future[Any]:
        if self._raised is not None and name not in self._tape.variables:
            raise self._raised
        return self._tape.variable(name)

    # The whole

    def text(self) -> str:
        """All text, role markers included, once everything appended is done."""
        return self._read("text", "await s.get_text()")

    def messages(self) -> list[dict[str, str]]:
        """The messages that have ended, each with role and content."""
        return self._read("messages", "await s.get_messages()")

    def tokens(self) -> tuple[int, ...]:
        """Token ids of the text."""
        return self._read("tokens", "await s.get_tokens()")

    async def get_text(self) -> str:
        """As `text`, awaitable."""
        return await self._await(self._reading("text"))

    async def get_messages(self) -> list[dict[str, str]]:
        """As `messages`, awaitable."""
        return await self._await(self._reading("messages"))

    async def get_tokens(self) -> tuple[int, ...]:
        """As `tokens`, awaitable."""
        return await self._await(self._reading("tokens"))

    def sync(self) -> None:
        """Wait until everything appended is done. Raises ProgramError when something failed."""
        self._read("text", "await s.wait()")

    async def wait(self) -> None:
        """As `sync`, awaitable."""
        await self._await(self._reading("text"))

    def error(self) -> BaseException | None:
        """What went wrong, once everything appended is done; None when nothing did."""
        try:
            self.sync()
        except ProgramError as error:
            return error
        return self._raised

    @property
    def usage(self) -> Usage:
        """What the program has cost so far, forks and warm-ups included; whole once it is done (`sync`)."""
        return self._tape.usage

    def _reading(self, what: str) -> Future[Any]:
        done: Future[Any] = Future()
        self._tape.read(Read(here(), what, done))
        return done

    def _read(self, what: str, instead: str) -> Any:
        return self._wait(self._reading(what), f"s.{what}()", instead)

    def _wait(self, future: Future[Any], what: str, instead: str) -> Any:
        if self._async and not future.done():
            message = f"{what} would block the event loop of an async function: use {instead}"
            raise ExpressionError(message, field="state", limit=instead)
        try:
            return future.result()
        except ProgramError as error:
            raise error.again() from error.__cause__

    async def _await(self, future: Future[Any]) -> Any:
        try:
            return await asyncio.wrap_future(future)
        except ProgramError as error:
            raise error.again() from error.__cause__

    # Text as it comes

    def text_iter(self, var: str | None = None) -> Generator[str, None, None]:
        """New text as it is committed, of everything or of one variable. Without `stream=True` in one piece a call."""
        for piece in self._tape.log.read():
            if var is None or piece.name == var:
                yield piece.text
        if var is not None:
            self._variable(var)

    async def text_async_iter(
        self, var: str | None = None, return_meta_data: bool = False
    ) -> AsyncGenerator[Any, None]:
        """As `text_iter`, asynchronous; with `return_meta_data` pairs of text and meta info."""
        async for piece in self._tape.log.read_async():
            if var is None or piece.name == var:
                yield (piece.text, piece.meta) if return_meta_data else piece.text
        if var is not None:
            self._variable(var)

    # Branches

    def fork(self, size: int = 1, position_ids_offset: Any = None) -> Any:
        """Branches that go on from here, each for itself. The prompt so far is computed once for all of them.

        Returns a ProgramStateGroup. `position_ids_offset` of SGLang can't be had.
        """
        from .group import ProgramStateGroup

        if position_ids_offset is not None:
            raise UnsupportedError("position_ids_offset can't be had: leave it out", field="position_ids_offset")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ExpressionError(f"size is {shorten(size)}; it must be at least 1", field="size", value=size, limit=1)
        tape, location = self._tape, here()
        ready: Future[Tape] = Future()
        branches = [Tape(tape.backend, tape.defaults, usage=tape.usage) for _ in range(size)]
        for branch in branches:
            branch.inherit(tape)
            branch.add(Wait(ready, location))
        tape.add(Fork(tuple(branches), location, ready))
        return ProgramStateGroup([ProgramState(branch, self._async) for branch in branches], self)

    @contextmanager
    def copy(self) -> Generator[ProgramState, None, None]:
        """A branch for a `with` block."""
        branch = self.fork(1)[0]
        try:
            yield branch
        finally:
            branch._tape.end()


def fill(*parts: Any, name: str | None = None, **values: Any) -> Fill:
    """Fixed text and `gen`s as holes in one canvas, denoised together: each hole sees what stands on both sides of it.

    Every hole needs max_tokens: so many positions it has. Fixed text is kept exactly; a hole's text ends at its first
    EOS (the rest is padding) or before a stop string. `name`: a variable for the whole text. Settings (threshold,
    steps, block_length, temperature ...) hold for the canvas; without block_length all of it is one block.
    """
    return Fill(tuple(expression for part in parts for expression in flat(part)), _canvas_settings(values), name=name)


def json_skeleton(value: Any, *, name: str | None = None, **values: Any) -> Fill:
    """JSON whose keys and punctuation are fixed and whose values are filled together: the text always parses.

    `value` is JSON data with `gen(name, max_tokens=..., dtype=str | int | float | bool)` where a value is to be filled
    in (str by default). Variables get Python values: None, and null in the text, where a hole held no value of its
    type. `name`: a variable for the whole, parsed. A blank before a number or a word is the hole's own, since
    tokenizers write " 42" as one piece.
    """
    from .canvas import skeleton_parts

    return Fill(tuple(skeleton_parts(value)), _canvas_settings(values), as_json=True, name=name)


def _canvas_settings(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("max_new_tokens") is not None:
        raise UnsupportedError("max_new_tokens can't be set for a canvas: its holes say how long it is",
                               field="max_new_tokens")  # fmt: skip
    return settings(values)
