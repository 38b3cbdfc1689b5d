"""Text of a state as it comes in, for any number of readers, in threads or in event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Piece:
    """New text: of variable `name` (None: literal), with the call's meta info so far."""

    text: str
    name: str | None
    meta: dict[str, Any] = field(default_factory=dict)


class TextLog:
    """Pieces in order. `closed` when nothing follows; then `error` says whether the program failed."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._closed = False
        self._error: Callable[[], BaseException] | None = None

    def add(self, text: str, name: str | None = None, meta: dict[str, Any] | None = None) -> None:
        """Add a piece; an empty one is left out."""
        if text:
            self._change(lambda: self._pieces.append(Piece(text, name, meta or {})))

    def close(self, error: Callable[[], BaseException] | None = None) -> None:
        """Nothing follows; `error` makes what readers get raised."""

        def change() -> None:
            if not self._closed:
                self._closed, self._error = True, error

        self._change(change)

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            wake()

    def _after(self, seen: int) -> tuple[list[Piece], bool]:
        """Pieces behind the first `seen`, and whether these are the last."""
        return self._pieces[seen:], self._closed

    def read(self) -> Generator[Piece, None, None]:
        """All pieces, waiting for those to come. Raises the program's error."""
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=seen: len(self._pieces) > at or self._closed)  # type: ignore[misc]
                pieces, closed = self._after(seen)
            seen += len(pieces)
            yield from pieces
            if closed:
                self._raise()
                return

    async def read_async(self) -> AsyncGenerator[Piece, None]:
        """As `read`, asynchronous."""
        loop, seen = asyncio.get_running_loop(), 0
        while True:
            woken = asyncio.Event()
            with self._changed:
                pieces, closed = self._after(seen)
                if not pieces and not closed:
                    self._wakers.append(lambda event=woken: loop.call_soon_threadsafe(event.set))  # type: ignore[misc]
            if not pieces and not closed:
                await woken.wait()
                continue
            seen += len(pieces)
            for piece in pieces:
                yield piece
            if closed:
                self._raise()
                return

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error()
