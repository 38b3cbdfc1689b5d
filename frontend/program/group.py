"""Branches of a state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from ...runtime.errors import shorten
from ..errors import ExpressionError
from .branching import Join
from .location import here
from .operations import Read
from .state import ProgramState

_MODES = ("gather_variable", "concate_and_append")


class ProgramStateGroup:
    """States that were forked off one parent, in order."""

    def __init__(self, states: Sequence[ProgramState], parent: ProgramState):
        self.states = list(states)
        self.parent = parent

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __getitem__(self, index: int) -> ProgramState:
        return self.states[index]

    def __setitem__(self, index: int, value: ProgramState) -> None:
        if value is not self.states[index]:
            raise ExpressionError("a branch can't be replaced by another state", field="group", value=index)

    def __iadd__(self, other: Any) -> ProgramStateGroup:
        """Append to every branch: one expression, a list with one for each, or a function of the branch's index."""
        if callable(other):
            other = [other(index) for index in range(len(self.states))]
        if isinstance(other, list | tuple):
            if len(other) != len(self.states):
                message = f"{len(other)} expressions for {len(self.states)} branches"
                raise ExpressionError(message, field="group", value=len(other), limit=len(self.states))
            each: Sequence[Any] = other
        else:
            each = [other] * len(self.states)
        for state, expression in zip(self.states, each, strict=True):
            state.append(expression)
        return self

    def join(self, mode: str = "gather_variable") -> None:
        """End the branches and take them into the parent.

        `gather_variable`: each variable that branches have set becomes a list in the parent, in the order of branches;
        one that the parent had when it was forked keeps the parent's value.
        `concate_and_append`: the branches' new text (tokens as they are) is appended one after the other.
        """
        if mode not in _MODES:
            message = f"mode is {shorten(mode)}; it must be one of {', '.join(_MODES)}"
            raise ExpressionError(message, field="mode", value=mode, limit=_MODES)
        parent, append, location = self.parent._tape, mode == "concate_and_append", here()
        names: dict[str, None] = {}
        reads: list[Future[Any]] = []
        for state in self.states:
            state._tape.end()  # first: what is declared behind the reading would not be done when the parent takes it
            names.update((name, None) for name in state._tape.variables if name not in state._tape.inherited)
            done: Future[Any] = Future()
            state._tape.read(Read(location, "tokens" if append else "text", done))
            reads.append(done)
        tapes = tuple(state._tape for state in self.states)
        parent.add(Join(tapes, () if append else tuple(names), location, tuple(reads), append))

    def map(self, function: Callable[[ProgramState], Any]) -> list[Any]:
        """`function` of each branch, in order."""
        return [function(state) for state in self.states]
