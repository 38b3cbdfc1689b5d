"""What the examples share: where they run, and how they report what the cache saved."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shoal import Engine, Usage


@contextmanager
def backend() -> Iterator[Any]:
    """The server named on the command line, or an engine with the bundled model."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    with Engine("shop") as engine:
        yield engine


def saving(usage: Usage) -> None:
    """Print what a program cost and what the cache saved it."""
    print(f"cache: {usage}")
