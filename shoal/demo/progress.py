"""How far the demo is: a bar in a terminal, and elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_S = 5.0

Advance = Callable[[str, int], None]
"""Told the name of a run, and how many questions of it were answered."""


@contextmanager
def progress(console: Console, total: int) -> Generator[Advance, None, None]:
    """Shows how many of `total` questions are answered: on `console` if that is a terminal, else on stderr."""
    if not console.is_terminal:
        yield plain_lines(Console(stderr=True, width=100), total)
        return
    columns = TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda name, count: bar.update(task, advance=count, description=name)


def plain_lines(console: Console, total: int, clock: Callable[[], float] = time.monotonic) -> Advance:
    """Says at once that models are loaded, then where things stand: a line at most every EVERY_S seconds."""
    done, begin = 0, clock()
    said = begin

    def advance(name: str, count: int) -> None:
        nonlocal done, said
        done += count
        now = clock()
        if now - said >= EVERY_S:
            said = now
            console.print(f"{name}: {done} of {total} questions, {now - begin:.0f} s", highlight=False)

    console.print("loading", highlight=False)
    return advance
