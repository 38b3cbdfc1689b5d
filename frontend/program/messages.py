"""The methods that append messages, alike for a state and for its stand-in in a trace."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ..language.expressions import RoleBegin, RoleEnd, flat


class Messages:
    """Appends messages by way of `append`."""

    def append(self, other: Any) -> None:
        """Append text, an expression, or a list of them."""
        raise NotImplementedError

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
