"""`Player`: runs a program's function with a state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .state import ProgramState
from .tape import playing


class Player:
    """A function, and how it is called.

    Args:
        func: its first argument is the state.
        is_async: `func` is a coroutine function.
    """

    def __init__(self, func: Callable[..., Any], is_async: bool):
        self.func = func
        self.is_async = is_async
        self._tasks: set[asyncio.Task[None]] = set()

    def play(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Run the function; the state keeps its error, and the caller gets it too."""
        try:
            if self.is_async:
                state.ret_value = asyncio.run(self.func(state, **arguments))
            else:
                state.ret_value = self.func(state, **arguments)
        except BaseException as error:
            state._fail(error)  # before the end: readers of a variable wake up then and look for the reason
            raise
        finally:
            state._tape.end()

    def play_quietly(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """As `play`, but only readers of the state get the error."""
        if state._tape.live:
            playing.set(state._tape)
        with suppress(Exception):
            self.play(state, arguments)

    async def play_async(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """As `play`, awaitable: an `async` function runs in this event loop, another one in a thread."""
        try:
            if self.is_async:
                state.ret_value = await self.func(state, **arguments)
            else:
                state.ret_value = await asyncio.to_thread(self.func, state, **arguments)
        except BaseException as error:
            state._fail(error)
            raise
        finally:
            state._tape.end()

    async def play_async_quietly(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """As `play_async`, but only readers of the state get the error. Cancelling it cancels the state."""
        playing.set(state._tape)
        try:
            await self.play_async(state, arguments)
        except asyncio.CancelledError:
            state.cancel()
            raise
        except Exception:
            return  # the state has it

    def start(self, state: ProgramState, arguments: dict[str, Any]) -> None:
        """Run `play_async_quietly` in a task of the running event loop."""
        task = asyncio.ensure_future(self.play_async_quietly(state, arguments))
        self._tasks.add(task)  # an event loop holds its tasks weakly
        task.add_done_callback(self._tasks.discard)
