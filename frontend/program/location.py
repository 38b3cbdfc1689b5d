"""Which line of a program is running."""

from __future__ import annotations

import sys

from ..errors import Location

_OWN = __name__.removesuffix(".program.location")


def here() -> Location:
    """The innermost line outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN):
        frame = frame.f_back
    code = frame.f_code
    return Location(code.co_filename, frame.f_lineno, code.co_name)
