"""Detects whether an object is used in the process that made it or in a forked child."""

from __future__ import annotations

import os

from .errors import EngineClosedError

_forks = 0
"""Forks between the first process that imported this module and this one: unlike process ids, never used again."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Birthplace:
    """Remembers the process in which it was made.

    A forked child inherits objects but not the threads that serve them: a call would wait forever, and a lock that a
    thread held at the fork stays locked. So objects with threads, sockets or processes check here before they take a
    lock, and refuse.

    Args:
        name: of the object, for messages.
    """

    def __init__(self, name: str):
        self._name = name
        self._pid = os.getpid()
        self._made_after = _forks

    @property
    def is_here(self) -> bool:
        """Whether the running process made the object."""
        return self._made_after == _forks

    @property
    def refusal(self) -> str:
        """The error text: why a forked child can't use the object, and what it can do instead."""
        return (
            f"the {self._name} was made in another process ({self._pid}) and process {os.getpid()} was forked from it: "
            f"use it there, or make one in this process"
        )

    def check(self) -> None:
        """Raise EngineClosedError in any other process."""
        if not self.is_here:
            raise EngineClosedError(self.refusal)
