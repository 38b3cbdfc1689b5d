"""Bounds that a JSON Schema sets: of counts and of numbers. A wrong one is a GrammarError with the path to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import GrammarError

Path = tuple[str | int, ...]
MAX_COUNT = 1024
"""Largest length of a string or list that a schema may ask for."""


def counts(keywords: Mapping[str, Any], least: str, most: str, path: Path) -> tuple[int, int | None]:
    """The least and the most (None: any number) that two keywords allow."""
    for name in (least, most):
        value = keywords.get(name, 0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MAX_COUNT or value != int(value):
            raise GrammarError(f"it must be an integer from 0 to {MAX_COUNT}", (*path, name))
    low, high = int(keywords.get(least, 0)), keywords.get(most)
    if high is not None and high < low:
        raise GrammarError(f"it is below {least}", (*path, most))
    return low, None if high is None else int(high)


def range_of(keywords: Mapping[str, Any], path: Path) -> tuple[int | None, int | None, bool, bool]:
    """(low, high, low excluded, high excluded); of two bounds on a side the stricter one."""
    values: dict[str, int | None] = {}
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = keywords.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            _wrong_bound(name, path)
        if value is not None and (abs(value) > 10**15 or value != int(value)):
            _wrong_bound(name, path)
        values[name] = None if value is None else int(value)
    low, high = values["minimum"], values["maximum"]
    above, below = values["exclusiveMinimum"], values["exclusiveMaximum"]
    excluded_low = above is not None and (low is None or above >= low)
    excluded_high = below is not None and (high is None or below <= high)
    return above if excluded_low else low, below if excluded_high else high, excluded_low, excluded_high


def _wrong_bound(name: str, path: Path) -> NoReturn:
    raise GrammarError("only whole numbers of up to 15 digits can be honoured", (*path, name))
