"""What a program appends to a state: text, generations, choices, roles, canvases with holes, and lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from ...runtime.errors import shorten
from ..errors import ExpressionError

ROLES = ("system", "user", "assistant")


class OpenText:
    """Base of what stands for text that is not known yet; `str` gives it a form in which it can be found again."""

    __slots__ = ()


class Expression:
    """Base of all expressions. They mean something only once they are appended to a state: `s += gen("x")`."""

    __slots__ = ()

    def __add__(self, other: Any) -> Sequence_:
        return Sequence_((*flat(self), *flat(other)))

    def __radd__(self, other: Any) -> Sequence_:
        return Sequence_((*flat(other), *flat(self)))

    def __str__(self) -> str:
        self._refuse()

    def __format__(self, spec: str) -> str:
        self._refuse()

    def __bool__(self) -> bool:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ExpressionError(
            f"{self.describe()} is no text: it has a result only inside a function, appended to its state "
            f"(s += {self.describe()}), and is then read as s[name]"
        )

    def describe(self) -> str:
        """The expression in words, for errors."""
        return type(self).__name__.lower()


@dataclass(frozen=True, slots=True, repr=False)
class Text(Expression):
    """Literal text."""

    text: str

    def describe(self) -> str:
        """See Expression."""
        return f"text {shorten(self.text, 40)}"

    def __repr__(self) -> str:
        return f"Text({self.text!r})"


@dataclass(frozen=True, slots=True)
class Gen(Expression):
    """A generation, or a hole of a `Fill`. `own` are the settings given here; `dtype` and `n` as in SGLang."""

    name: str | None
    own: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    dtype: type | None = None

    def describe(self) -> str:
        """See Expression."""
        return f"gen({self.name!r})"

    __str__ = Expression.__str__


@dataclass(frozen=True, slots=True)
class Select(Expression):
    """A choice of one of several texts."""

    name: str | None
    choices: tuple[str, ...]
    method: Any
    temperature: float = 0.0

    def describe(self) -> str:
        """See Expression."""
        return f"select({self.name!r})"

    __str__ = Expression.__str__


@dataclass(frozen=True, slots=True)
class _RoleMark(Expression):
    role: str
    edge: ClassVar[str]

    def describe(self) -> str:
        """See Expression."""
        return f"{self.role}_{self.edge}()"

    __str__ = Expression.__str__


class RoleBegin(_RoleMark):
    """The header of a role."""

    __slots__ = ()
    edge = "begin"


class RoleEnd(_RoleMark):
    """What ends a role."""

    __slots__ = ()
    edge = "end"


@dataclass(frozen=True, slots=True)
class Fill(Expression):
    """A canvas of fixed parts and holes, filled together. `as_json`: the text has to be JSON; `name` gets its value."""

    parts: tuple[Expression, ...]
    own: dict[str, Any] = field(default_factory=dict)
    as_json: bool = False
    name: str | None = None

    def describe(self) -> str:
        """See Expression."""
        return "json_skeleton(...)" if self.as_json else "fill(...)"

    @property
    def holes(self) -> tuple[Gen, ...]:
        """The generations among the parts."""
        return tuple(part for part in self.parts if isinstance(part, Gen))

    __str__ = Expression.__str__


class Sequence_(Expression):  # noqa: N801 - collections.abc has the name
    """Expressions one after the other."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Expression]):
        self.parts = tuple(parts)

    def describe(self) -> str:
        """See Expression."""
        return " + ".join(part.describe() for part in self.parts)


def flat(value: Any) -> Iterator[Expression]:
    """The expressions that a value stands for, lists resolved; None stands for nothing.

    Raises ExpressionError for what is neither text nor an expression.
    """
    if value is None:
        return
    if isinstance(value, str | OpenText):
        yield Text(str(value))
    elif isinstance(value, Sequence_):
        yield from value.parts
    elif isinstance(value, Expression):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from flat(part)
    else:
        message = f"{shorten(value)} can't be appended: it must be text, an expression, or a list of them"
        raise ExpressionError(message, field="expression", value=value)


def names_of(expression: Expression) -> tuple[str, ...]:
    """Variables that an expression sets."""
    if isinstance(expression, Fill):
        own = (expression.name,) if expression.name else ()
        return tuple(hole.name for hole in expression.holes if hole.name) + own
    if isinstance(expression, Gen | Select):
        return (expression.name,) if expression.name else ()
    return ()
