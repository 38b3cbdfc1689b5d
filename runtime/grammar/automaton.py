"""Deterministic automata over bytes, from expressions: Thompson's construction, then subsets.

Source: Hopcroft, Motwani, Ullman, Introduction to Automata Theory, chapters 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import GrammarError
from .expression import Both, Bytes, Choice, Expression, Graph, Listing, Repeat, Separated, Sequence, Without

MAX_STATES = 4096
"""States of an automaton: a schema with more is refused."""
_MAX_PARTS = 60_000
_MAX_WORK = 3_000_000
"""Members of the sets of parts that are made, for a whole expression: a second or two."""
_TOO_LARGE = "it is too large"
FAR = (1 << 31) - 1
"""The distance of a state from which no acceptance is reached."""
DEAD, START = 0, 1


@dataclass(frozen=True, slots=True)
class Automaton:
    """A deterministic automaton; from every state but DEAD a byte string leads to acceptance, if any text matches.

    Attributes:
        table: int16 [states, classes], the next state.
        classes: uint8 [256], the class of each byte.
        accepting: bool [states].
    """

    table: npt.NDArray[np.int16]
    classes: npt.NDArray[np.uint8]
    accepting: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, expression: Expression, work: Work | None = None) -> Automaton:
        """That of an expression. Raises GrammarError: too large, nested too deeply, or no text matches.

        `work`: what several expressions may cost together; None: what one may.
        """
        try:
            found = _compiled(expression, Work() if work is None else work)
        except RecursionError as error:
            raise GrammarError("it is nested too deeply, references included") from error
        if not found.accepting.any():
            raise GrammarError("no text satisfies it")
        return found

    def next(self, state: int, data: bytes) -> int:
        """The state behind `data`."""
        for byte in data:
            state = int(self.table[state, self.classes[byte]])
        return state

    def accepts(self, data: bytes) -> bool:
        """Whether `data` matches as a whole."""
        return bool(self.accepting[self.next(START, data)])


class Work:
    """What is left of the work that compiling may cost, shared by an expression and those inside of it."""

    def __init__(self) -> None:
        self._left = _MAX_WORK

    def spend(self, amount: int) -> None:
        """Raises GrammarError when it is used up."""
        self._left -= amount
        if self._left < 0:
            raise GrammarError(_TOO_LARGE)


class _Parts:
    """A nondeterministic automaton: for each state, edges on nothing and edges on a set of bytes."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._graphs: dict[int, Graph] = {}
        self.free: list[list[int]] = []
        self.on: list[list[tuple[int, int]]] = []  # (bytes as a mask, target)
        self._tails: dict[tuple[tuple[Expression, ...], int], int] = {}

    def new(self) -> int:
        if len(self.free) >= _MAX_PARTS:
            raise GrammarError(_TOO_LARGE)
        self.free.append([])
        self.on.append([])
        return len(self.free) - 1

    def add(self, node: Expression, start: int, end: int) -> None:
        """Let `node` lead from `start` to `end`."""
        match node:
            case Bytes(mask):
                self.on[start].append((mask, end))
            case Sequence(parts) if parts and all(isinstance(part, Bytes) for part in parts):
                self.on[start] += self.on[self._tail(parts, end)]
            case Sequence(parts):
                for part in parts:
                    after = self.new()
                    self.add(part, start, after)
                    start = after
                self.free[start].append(end)
            case Choice(parts):
                for part in parts:
                    self.add(part, start, end)
            case Repeat(part, low, high):
                self._repeat(part, low, high, start, end)
            case Separated(part, separator):
                first, last = self.new(), self.new()
                self.free[start].append(first)
                self.add(part, first, last)
                self.add(separator, last, first)
                self.free[last].append(end)
            case Listing(items, separator):
                self._listing(items, separator, start, end)
            case Graph(edges, ends):
                self._graph(edges, ends, start, end)
            case Both(first, second) | Without(first, second):
                if id(node) not in self._graphs:
                    automata = _compiled(first, self.work), _compiled(second, self.work)
                    self._graphs[id(node)] = _product(*automata, isinstance(node, Both), self.work)
                self.add(self._graphs[id(node)], start, end)

    def _graph(
        self, edges: tuple[tuple[int, Expression, int], ...], ends: frozenset[int], start: int, end: int
    ) -> None:
        states: dict[int, int] = {}
        for state in (0, *ends, *(state for source, _, target in edges for state in (source, target))):
            states[state] = self.new() if state not in states else states[state]
        self.free[start].append(states[0])
        for source, part, target in edges:
            self.add(part, states[source], states[target])
        for state in ends:
            self.free[states[state]].append(end)

    def _tail(self, parts: tuple[Expression, ...], end: int) -> int:
        """The state from which bytes lead to `end`, one for equal tails: those of UTF-8 would make twice the states."""
        if not parts:
            return end
        first, *rest = parts
        assert isinstance(first, Bytes)
        if (parts, end) not in self._tails:
            self._tails[parts, end] = state = self.new()
            self.on[state].append((first.mask, self._tail(tuple(rest), end)))
        return self._tails[parts, end]

    def _repeat(self, part: Expression, low: int, high: int | None, start: int, end: int) -> None:
        for _ in range(low):
            after = self.new()
            self.add(part, start, after)
            start = after
        if high is None:
            loop = self.new()
            self.free[start].append(loop)
            self.add(part, loop, loop)
            self.free[loop].append(end)
            return
        self.free[start].append(end)
        for _ in range(high - low):
            after = self.new()
            self.add(part, start, after)
            self.free[after].append(end)
            start = after

    def _listing(self, items: tuple[tuple[Expression, bool], ...], separator: Expression, start: int, end: int) -> None:
        """`none`: no item so far; `some`: an item came before."""
        first = self.new()
        self.free[start].append(first)
        none: int | None = first
        some: int | None = None
        for item, needed in items:
            before, after = self.new(), self.new()
            if none is not None:
                self.free[none].append(before)
            if some is not None:
                self.add(separator, some, before)
            self.add(item, before, after)
            if needed:
                none = None
            elif some is not None:
                self.free[some].append(after)
            some = after
        for last in (none, some):
            if last is not None:
                self.free[last].append(end)


def _byte_classes(parts: _Parts) -> tuple[npt.NDArray[np.uint8], dict[int, tuple[int, ...]]]:
    """The class of each byte (bytes that no edge tells apart share one), and the classes of each mask."""
    masks = list({mask for edges in parts.on for mask, _ in edges})
    bits = np.array([[mask >> byte & 1 for mask in masks] for byte in range(256)], np.uint8).reshape(256, len(masks))
    rows, classes = np.unique(bits, axis=0, return_inverse=True)
    members = {mask: tuple(np.flatnonzero(rows[:, at]).tolist()) for at, mask in enumerate(masks)}
    return classes.reshape(256).astype(np.uint8), members


def _closures(parts: _Parts, end: int) -> list[frozenset[int]]:
    """For each state those that nothing leads to, as far as they have edges on bytes or are the end."""
    found: list[frozenset[int]] = []
    for state in range(len(parts.free)):
        seen, left = {state}, [state]
        while left:
            for other in parts.free[left.pop()]:
                if other not in seen:
                    seen.add(other)
                    left.append(other)
        found.append(frozenset(one for one in seen if parts.on[one] or one == end))
        parts.work.spend(len(seen))
    return found


def _compiled(expression: Expression, work: Work) -> Automaton:
    """That of an expression, perhaps of no text. Raises GrammarError: too large."""
    parts = _Parts(work)
    start, end = parts.new(), parts.new()
    parts.add(expression, start, end)
    classes, members = _byte_classes(parts)
    closures = _closures(parts, end)
    number = {frozenset[int](): DEAD, closures[start]: START}
    sets, rows = [frozenset[int](), closures[start]], [dict[int, int]()]
    while len(rows) < len(sets):
        reached: dict[int, set[int]] = {}
        for state in sets[len(rows)]:
            for mask, target in parts.on[state]:
                for one in members[mask]:
                    reached.setdefault(one, set()).update(closures[target])
                work.spend(len(members[mask]) * len(closures[target]))
        row = {}
        for one, targets in reached.items():
            key = frozenset(targets)
            if key not in number:
                if len(sets) >= MAX_STATES:
                    raise GrammarError(f"{_TOO_LARGE}: its automaton has more than {MAX_STATES} states")
                number[key] = len(sets)
                sets.append(key)
            row[one] = number[key]
        rows.append(row)
    table = np.zeros((len(sets), int(classes.max()) + 1), np.int16)
    for state, row in enumerate(rows):
        table[state, list(row)] = list(row.values())
    accepting = np.array([end in states for states in sets])
    return _pruned(table, classes, accepting)


def _pruned(
    table: npt.NDArray[np.int16], classes: npt.NDArray[np.uint8], accepting: npt.NDArray[np.bool_]
) -> Automaton:
    """Without states from which nothing is accepted, but for START."""
    alive = distances(*edges_of(table), accepting) < FAR
    alive[START] = True
    kept = np.flatnonzero(alive)
    new = np.zeros(len(table), np.int16)
    new[kept] = np.arange(1, len(kept) + 1)
    pruned = np.zeros((len(kept) + 1, table.shape[1]), np.int16)
    pruned[1:] = new[table[kept]]
    return Automaton(pruned, classes, np.concatenate(([False], accepting[kept])))


def _product(first: Automaton, second: Automaton, both: bool, work: Work) -> Graph:
    """Texts of `first` that `second` accepts too, or with `both` False those that it doesn't accept."""
    masks: dict[tuple[int, int], int] = {}
    for byte in range(256):
        pair = int(first.classes[byte]), int(second.classes[byte])
        masks[pair] = masks.get(pair, 0) | 1 << byte
    numbers = {(START, START): 0}
    left, edges, ends = [(START, START)], list[tuple[int, Expression, int]](), set[int]()
    while left:
        one, other = pair = left.pop()
        work.spend(len(masks))
        if first.accepting[one] and second.accepting[other] == both:
            ends.add(numbers[pair])
        reached: dict[tuple[int, int], int] = {}
        for (a, b), mask in masks.items():
            to = int(first.table[one, a]), int(second.table[other, b])
            if to[0] != DEAD and (to[1] != DEAD or not both):
                reached[to] = reached.get(to, 0) | mask
        for to, mask in reached.items():
            if to not in numbers:
                numbers[to] = len(numbers)
                left.append(to)
            edges.append((numbers[pair], Bytes(mask), numbers[to]))
    return Graph(tuple(edges), frozenset(ends))


def edges_of(table: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(sources, targets) of all transitions, each pair once."""
    pairs = np.unique(np.arange(len(table))[:, None] * len(table) + table)
    return pairs // len(table), pairs % len(table)


def distances(
    sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], accepting: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """int32 [states]: fewest edges from each state to an accepting one; FAR where there are none."""
    found = np.where(accepting, 0, FAR).astype(np.int32)
    for step in range(len(found)):
        new = sources[(found[targets] == step) & (found[sources] == FAR)]
        if not len(new):
            break
        found[new] = step + 1
    return found
