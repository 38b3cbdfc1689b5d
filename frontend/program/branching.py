"""Forks and joins as operations of the states that they connect."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .. import driver
from ..errors import Location, ProgramError
from .operations import Nothing
from .tape import Tape
from .warm_up import WarmUp


@dataclass(slots=True)
class Fork(Nothing):
    """Hand the state so far on to branches. Their common prompt is computed on its own when the first one calls.

    Computed once are its whole pages. What is left of it, at most page_size - 1 tokens, every branch computes itself:
    with k branches and a prompt of n tokens at most 1 + k x (page_size - 1) / n times the prompt's token-layers.
    """

    branches: tuple[Tape, ...]
    location: Location
    ready: Future[Tape]

    def describe(self) -> str:
        """See Operation."""
        return f"fork({len(self.branches)})"

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        await tape.transcript.flush(tape.backend)
        warm_up = tape.warm_up
        if len(self.branches) > 1:
            warm_up = WarmUp(tape.backend, tape.transcript.tokens, tape.usage, above=tape.warm_up)
        for branch in self.branches:
            branch.transcript = tape.transcript.copy()
            branch.born_with = len(branch.transcript.segments)
            branch.meta = dict(tape.meta)
            branch.warm_up = warm_up
            branch.log.add(branch.transcript.text)
        self.ready.set_result(tape)

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""
        if not self.ready.done():
            self.ready.set_exception(error)


@dataclass(slots=True)
class Wait(Nothing):
    """First operation of a branch: wait for its parent to come to the fork."""

    ready: Future[Tape]
    location: Location

    def describe(self) -> str:
        """See Operation."""
        return "fork"

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        await driver.finished(self.ready)
        self.ready.result()
        self._finish(tape)

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""
        self._finish(tape)

    def _finish(self, tape: Tape) -> None:
        """No text of the parent's variables follows in the branch."""
        for name in tape.inherited:
            tape.log.finish(name)


@dataclass(slots=True)
class Join:
    """Gather branches: their new variables become lists, or their new text is appended branch by branch."""

    branches: tuple[Tape, ...]
    names: tuple[str, ...]
    location: Location
    reads: tuple[Future[Any], ...]
    append: bool = False

    def describe(self) -> str:
        """See Operation."""
        return "join"

    async def run(self, tape: Tape) -> None:
        """See Operation."""
        for read in self.reads:
            await driver.finished(read)
            read.result()
        if self.append:
            await tape.transcript.flush(tape.backend)
            for branch in self.branches:
                for segment in branch.transcript.segments[branch.born_with :]:
                    tape.transcript.append(segment)
                    tape.log.add(segment.text)
            return
        for name in self.names:
            having = [branch for branch in self.branches if name in branch.variables]
            values = [branch.variables[name].result() for branch in having]
            tape.settle(name, values, [branch.meta.get(name) for branch in having])

    def fail(self, tape: Tape, error: ProgramError) -> None:
        """See Operation."""
