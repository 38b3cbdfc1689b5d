"""Text of a state as it comes in, for any number of readers, in threads or in event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from ...runtime.birthplace import Birthplace
from .. import driver
from ..errors import ProgramEndedError


@dataclass(slots=True)
class Piece:
    """New text: of variable `name` (None: literal), with the call's meta info so far."""

    text: str
    name: str | None
    meta: dict[str, Any] = field(default_factory=dict)


class TextLog:
    """Pieces in order. Closed when nothing follows; then `error` says whether the program failed."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._finished: set[str] = set()
        self._birthplace = Birthplace("state")
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._closed = False
        self._error: Callable[[], BaseException] | None = None

    def add(self, text: str, name: str | None = None, meta: dict[str, Any] | None = None) -> None:
        """Add a piece; an empty one is left out."""
        if text:
            self._change(lambda: self._pieces.append(Piece(text, name, meta or {})))

    def finish(self, name: str) -> None:
        """No further piece of a variable follows: it has its value, or has failed."""
        self._change(lambda: self._finished.add(name))

    def close(self, error: Callable[[], BaseException] | None = None) -> None:
        """Nothing follows; `error` makes what readers of everything get raised."""

        def change() -> None:
            if not self._closed:
                self._closed, self._error = True, error

        self._change(change)

    def complete(self, name: str | None = None) -> bool:
        """Whether reading everything, or the pieces of a variable, needs no wait."""
        with self._changed:
            return self._after(0, name)[1]

    def _change(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            wake()

    def _after(self, seen: int, name: str | None) -> tuple[list[Piece], bool]:
        """Pieces behind the first `seen`, and whether these are the last that a reader of `name` gets."""
        return self._pieces[seen:], self._closed or (name is not None and name in self._finished)

    def read(self, name: str | None = None) -> Generator[Piece, None, None]:
        """All pieces, or those of a variable, waiting for those to come. The former raises the program's error."""
        seen = 0
        while True:
            with self._changed:
                pieces, last = self._after(seen, name)
                while not pieces and not last:
                    self._check_process()
                    self._changed.wait()
                    pieces, last = self._after(seen, name)
            seen += len(pieces)
            yield from (piece for piece in pieces if name is None or piece.name == name)
            if last:
                self._raise(name)
                return

    async def read_async(self, name: str | None = None) -> AsyncGenerator[Piece, None]:
        """As `read`, asynchronous."""
        loop, seen = asyncio.get_running_loop(), 0
        while True:
            woken = asyncio.Event()
            with self._changed:
                pieces, last = self._after(seen, name)
                if not pieces and not last:
                    self._wakers.append(lambda event=woken: driver.wake(loop, event))  # type: ignore[misc]
            if not pieces and not last:
                self._check_process()
                await woken.wait()
                continue
            seen += len(pieces)
            for piece in pieces:
                if name is None or piece.name == name:
                    yield piece
            if last:
                self._raise(name)
                return

    def _check_process(self) -> None:
        if not self._birthplace.is_here:
            raise ProgramEndedError(self._birthplace.refusal, field="state")

    def _raise(self, name: str | None) -> None:
        if name is None and self._error is not None:
            raise self._error()
