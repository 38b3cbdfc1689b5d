"""Messages that were read and wait for their turn; the requests among them can be dropped."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Generic, TypeVar

_M = TypeVar("_M")


class Backlog(Generic[_M]):
    """First in, first out.

    Args:
        capacity: messages that it holds; the reader should stop when it is full.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._numbers = itertools.count()
        self._messages: OrderedDict[str | int, _M] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_room(self) -> bool:
        """Whether it takes another message."""
        return len(self._messages) < self.capacity

    def put(self, message: _M, rid: str | None = None) -> None:
        """Queue a message; `rid` is the request that it creates, if any."""
        self._messages[next(self._numbers) if rid is None else rid] = message

    def next(self) -> _M:
        """Remove and return the oldest message; there must be one."""
        return self._messages.popitem(last=False)[1]

    def drop(self, rid: str) -> bool:
        """Drop a request; False if it does not wait here."""
        return self._messages.pop(rid, None) is not None

    def drop_all(self) -> list[str]:
        """Drop all requests and return their ids. Other messages stay."""
        rids = [key for key in self._messages if isinstance(key, str)]
        for rid in rids:
            del self._messages[rid]
        return rids
