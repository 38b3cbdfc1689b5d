"""Items of JSON lists and objects with commas between."""

from __future__ import annotations

from .expression import EMPTY, NEVER, Expression, Graph, Repeat, Separated, optional, sequence, text

COMMA = sequence(text(","), optional(text(" ")))


def items_of(item: Expression, low: int, high: int | None) -> Expression:
    """`low` to `high` items with commas between."""
    if high == 0:
        return EMPTY if not low else NEVER
    if high is None and low <= 1:
        some: Expression = Separated(item, COMMA)
    else:
        some = sequence(item, behind(item, max(low - 1, 0), None if high is None else high - 1))
    return some if low else optional(some)


def behind(item: Expression, low: int, high: int | None) -> Expression:
    """`low` to `high` items, each behind a comma."""
    if high is not None and high < low:
        return NEVER
    return Repeat(sequence(COMMA, item), low, high)


def every_order(items: list[Expression], low: int, high: int) -> Expression:
    """`low` to `high` of the items in any order, each at most once; a state is the set of those that came."""
    edges = []
    for state in range(1 << len(items)):
        for at, item in enumerate(items):
            if not state >> at & 1 and state.bit_count() < high:
                edges.append((state, sequence(COMMA, item) if state else item, state | 1 << at))
    ends = frozenset(state for state in range(1 << len(items)) if low <= state.bit_count() <= high)
    return Graph(tuple(edges), ends)


def one_order(items: list[Expression], low: int, high: int) -> Expression:
    """`low` to `high` of the items in their order, each at most once.

    A state is (items looked at, items that came), the second as far as it matters.
    """
    bounded = high < len(items)
    most = high if bounded else max(low, 1)
    edges: list[tuple[int, Expression, int]] = []
    for at, item in enumerate(items):
        for count in range(min(at, most) + 1):
            here, behind_it = at * (most + 1) + count, (at + 1) * (most + 1)
            edges.append((here, EMPTY, behind_it + count))
            if count < most or not bounded:
                some = sequence(COMMA, item) if count else item
                edges.append((here, some, behind_it + min(count + 1, most)))
    end = len(items) * (most + 1)
    return Graph(tuple(edges), frozenset(range(end + low, end + most + 1)))
