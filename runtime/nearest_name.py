"""The known name that a misspelt one most likely meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MISSPELT = 0.82
"""Similarity from which a name counts as a misspelling of a known one."""


def nearest_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `known`; None when none is at least `cutoff` similar (a ratio of difflib, 0 to 1).

    Case, dashes and camelCase make no difference: `maxTokens` is `max_tokens`.
    """
    found = difflib.get_close_matches(_plain(name), list(known), 1, cutoff)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?`, or an empty string if no name is similar."""
    near = nearest_name(name, known)
    return f"; did you mean {near}?" if near else ""


def _plain(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[:64])
    return snake.lower().replace("-", "_")
