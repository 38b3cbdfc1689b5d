"""Progress of the demo: results so far as lines, and a bar in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .tally import Tally

EVERY_S = 5.0

Advance = Callable[[str, int, Tally], None]
"""Called after a batch with the name of its run, the number of its questions, and the run's results so far."""


@contextmanager
def progress(console: Console, total: int) -> Generator[Advance, None, None]:
    """Shows results while `total` questions are answered: above a bar if `console` is a terminal, else on stderr."""
    if not console.is_terminal:
        yield lines(Console(stderr=True, width=100), total)
        return
    columns = TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=total)
        show = lines(bar.console, total)

        def advance(name: str, count: int, tally: Tally) -> None:
            bar.update(task, advance=count, description=name)
            show(name, count, tally)

        yield advance


def lines(console: Console, total: int, clock: Callable[[], float] = time.monotonic) -> Advance:
    """Prints at once that models are being loaded, then the first results, then a line every EVERY_S seconds."""
    done, begin = 0, clock()
    due = begin

    def advance(name: str, count: int, tally: Tally) -> None:
        nonlocal done, due
        done += count
        now = clock()
        if now >= due:
            due = now + EVERY_S
            results = f"{sum(tally.right)} of {len(tally.right)} right, {tally.tokens_per_s:.0f} tokens/s"
            console.print(f"{name}: {results} ({done} of {total} questions, {now - begin:.0f} s)", highlight=False)

    console.print("loading", highlight=False)
    return advance
