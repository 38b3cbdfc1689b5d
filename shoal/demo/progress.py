"""Progress of the demo: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

EVERY_S = 5.0

Advance = Callable[[str, int], None]
"""Called with the name of a run and the number of its answered questions."""


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
    """Prints at once that models are being loaded, then the progress: at most a line every EVERY_S seconds."""
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
