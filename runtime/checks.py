"""Checks of options and parameters: one way to say what is wrong with a value, whatever it configures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NoReturn

from .errors import ConfigError, InvalidRequestError, ShoalError, shorten

MAX_INT = 2**63 - 1
"""Largest integer that travels between processes."""


class Checks:
    """Checks that raise one class of error, which names the field, the value and the limit.

    Args:
        error: what is raised.
    """

    def __init__(self, error: type[ShoalError]):
        self._error = error

    def refuse(self, name: str, value: object, limit: str) -> NoReturn:
        """Raise the error for a value; `limit` says in words what it must be."""
        raise self._error(f"{name} is {shorten(value)}; it must be {limit}", field=name, value=value, limit=limit)

    def integer(self, name: str, value: Any, low: int, high: int = MAX_INT) -> None:
        """Refuse anything but an integer from `low` to `high`."""
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            named = high != MAX_INT or (isinstance(value, int) and value > high)
            self.refuse(name, value, f"an integer of at least {low}" + (f" and at most {high}" if named else ""))

    def number(
        self, name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False, of: str = "",
        infinite: bool = False,
    ) -> None:  # fmt: skip
        """Refuse anything but a number from `low` (or `above` it) to `high`.

        Args:
            of: what is counted, for the message: `seconds`.
            infinite: whether infinity is a number here.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, int):
            number &= abs(value) <= MAX_INT  # larger ones may not be floats
        elif number:
            number = infinite or math.isfinite(value)
        if not number or not low <= value <= high or (above and value == low):
            bounds = f"above {low:g}" if above else f"of at least {low:g}"
            most = f" and at most {high:g}" if high < math.inf else ""
            self.refuse(name, value, f"a number {'of ' + of + ' ' if of else ''}{bounds}{most}")

    def one_of(self, name: str, value: object, choices: Iterable[str]) -> None:
        """Refuse anything but one of `choices`."""
        choices = tuple(choices)
        if value not in choices:
            self.refuse(name, value, f"one of {', '.join(choices)}")

    def flag(self, name: str, value: object) -> None:
        """Refuse anything but True or False."""
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")


OPTION = Checks(ConfigError)
"""Of the options of engine, pipeline and server."""
PARAMETER = Checks(InvalidRequestError)
"""Of what comes with a request."""
