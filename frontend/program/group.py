"""Branches of a state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from ...runtime.errors import shorten
from ..errors import ExpressionError
from .branching import Join
from .location import here
from .operations import Read
from .tape import Tape

_MODES = ("gather_variable", "concate_and_append")


class Branch(Protocol):
    """A state that was forked off another."""

    def append(self, other: Any) -> None:
        """Append text, an expression, or a list of them."""


State = TypeVar("State", bound=Branch)


class ProgramStateGroup(Generic[State]):
    """States that were forked off one parent, in order.

    Args:
        states: the branches.
        tapes: the tape of each.
        parent: the state that they were forked off.
        parent_tape: its tape.
    """

    def __init__(self, states: Sequence[State], tapes: Sequence[Tape], parent: State, parent_tape: Tape):
        self.states = list(states)
        self.parent = parent
        self._tapes = tuple(tapes)
        self._parent_tape = parent_tape

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[State]:
        return iter(self.states)

    def __getitem__(self, index: int) -> State:
        return self.states[index]

    def __setitem__(self, index: int, value: State) -> None:
        if value is not self.states[index]:
            raise ExpressionError("a branch can't be replaced by another state", field="group", value=index)

    def __iadd__(self, other: Any) -> ProgramStateGroup[State]:
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
        append, location = mode == "concate_and_append", here()
        names: dict[str, None] = {}
        reads: list[Future[Any]] = []
        for tape in self._tapes:
            tape.end()  # first: what is declared behind the reading would not be done when the parent takes it
            names.update((name, None) for name in tape.variables if name not in tape.inherited)
            done: Future[Any] = Future()
            tape.read(Read(location, "tokens" if append else "text", done))
            reads.append(done)
        self._parent_tape.add(Join(self._tapes, () if append else tuple(names), location, tuple(reads), append))

    def map(self, function: Callable[[State], Any]) -> list[Any]:
        """`function` of each branch, in order."""
        return [function(state) for state in self.states]
