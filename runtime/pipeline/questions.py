"""Questions to the pipeline that wait for their answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from ..errors import EngineClosedError
from .errors import unpack_error
from .messages import Reply


class Questions:
    """Numbers questions and returns each answer to its caller."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, send: Callable[[int], None]) -> Any:
        """Send a question under a number and wait for its answer. Raises the ShoalError that is the answer."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            send(number)
            return await future
        finally:
            del self._asked[number]

    def answer(self, reply: Reply) -> None:
        """Deliver an answer, if its caller still waits."""
        future = self._asked.get(reply.number)
        if future is None or future.done():
            return
        if reply.error is not None:
            future.set_exception(unpack_error(reply.error))
        else:
            future.set_result(reply.value)

    def close(self, reason: str) -> None:
        """Fail all callers: no more answers will come."""
        for future in self._asked.values():
            if not future.done():
                future.set_exception(EngineClosedError(reason))
