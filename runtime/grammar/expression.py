"""Regular expressions over bytes, as trees."""

from __future__ import annotations

from dataclasses import dataclass


class Expression:
    """Base of all nodes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Bytes(Expression):
    """One byte of a set: bit b of `mask` stands for byte b."""

    mask: int

    @classmethod
    def of(cls, low: int, high: int) -> Bytes:
        """Bytes from `low` to `high`, both included."""
        return cls((1 << (high + 1)) - (1 << low))


@dataclass(frozen=True, slots=True)
class Sequence(Expression):
    """Parts one after another; none: the empty text."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Choice(Expression):
    """One of the parts; none: nothing at all matches."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Repeat(Expression):
    """`part` from `low` to `high` times; None: any number."""

    part: Expression
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Separated(Expression):
    """`part` once or more, with `separator` between."""

    part: Expression
    separator: Expression


@dataclass(frozen=True, slots=True)
class Listing(Expression):
    """Items in this order with `separator` between those that are there; (item, whether it must be there)."""

    items: tuple[tuple[Expression, bool], ...]
    separator: Expression


@dataclass(frozen=True, slots=True)
class Graph(Expression):
    """Texts along the paths from state 0 to one of `ends`; edges are (state, part, next state)."""

    edges: tuple[tuple[int, Expression, int], ...]
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class Both(Expression):
    """Texts that match both parts."""

    first: Expression
    second: Expression


@dataclass(frozen=True, slots=True)
class Without(Expression):
    """Texts of `first` that are none of `second`."""

    first: Expression
    second: Expression


EMPTY = Sequence(())
NEVER = Choice(())


def text(literal: str) -> Expression:
    """Exactly this text, in UTF-8."""
    return Sequence(tuple(Bytes(1 << byte) for byte in literal.encode()))


def optional(part: Expression) -> Expression:
    """`part` or nothing."""
    return Choice((part, EMPTY))


def sequence(*parts: Expression) -> Expression:
    """Parts one after another."""
    return Sequence(parts)


def choice(*parts: Expression) -> Expression:
    """One of the parts."""
    return Choice(parts)
