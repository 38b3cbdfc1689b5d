"""Running a program on placeholders, without calls: how its text begins, whatever the arguments are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..language.expressions import Expression, Fill, Gen, OpenText, Select, Text, flat, names_of
from .messages import Messages

tracing: ContextVar[bool] = ContextVar("tracing", default=False)
"""Whether a function is being traced: a program that it runs must not call anything."""
_OPEN, _CLOSE = "\ue000", "\ue001"


class TraceStop(BaseException):
    """The program's text can't be followed any further. No Exception: a program may catch those."""

    def __init__(self, argument: str | None = None):
        self.argument = argument
        super().__init__(argument)


class Placeholder(OpenText):
    """An argument whose value is left open. It can be put into text; whatever else is done with it ends the trace."""

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def __str__(self) -> str:
        return f"{_OPEN}{object.__getattribute__(self, '_name')}{_CLOSE}"

    def __format__(self, spec: str) -> str:
        if spec:
            self._stop()
        return str(self)

    def __add__(self, other: Any) -> Any:
        return str(self) + other

    def __radd__(self, other: Any) -> Any:
        return other + str(self)

    def _stop(self, *_: Any, **__: Any) -> NoReturn:
        raise TraceStop(object.__getattribute__(self, "_name"))

    __getattr__ = __setattr__ = __getitem__ = __setitem__ = __call__ = __len__ = __iter__ = __bool__ = _stop
    __contains__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = _stop
    __mul__ = __rmul__ = __mod__ = __sub__ = __truediv__ = __hash__ = __enter__ = __await__ = _stop


@dataclass(slots=True)
class Trace:
    """How a program begins.

    Attributes:
        prefix: literal text and role markers before anything that is open.
        argument: the placeholder that the text, or the program's flow, meets first; None: it met none.
        straight: the function ran to its end without reading anything: it never waits.
    """

    prefix: list[Expression] = field(default_factory=list)
    argument: str | None = None
    straight: bool = False


class TraceState(Messages):
    """Stands in for a ProgramState: notes what is appended, stops the trace where a real value would be needed."""

    def __init__(self, trace: Trace):
        self._trace = trace
        self.is_open = True
        self._names: set[str] = set()

    def __iadd__(self, other: Any) -> TraceState:
        self.append(other)
        return self

    def append(self, other: Any) -> None:
        """Note an expression."""
        for expression in flat(other):
            self._names.update(names_of(expression))
            if self.is_open:
                self._note(expression)

    def _note(self, expression: Expression) -> None:
        if isinstance(expression, Text) and _OPEN in expression.text:
            before, _, rest = expression.text.partition(_OPEN)
            self._trace.argument = rest.partition(_CLOSE)[0]
            expression = Text(before)
            self.is_open = False
        if isinstance(expression, Gen | Select | Fill):
            self.is_open = False
        else:
            self._trace.prefix.append(expression)

    def fill(self, *parts: Any, **values: Any) -> None:
        """See ProgramState."""
        self.is_open = False
        for part in parts:
            self.append(part)

    @contextmanager
    def var_scope(self, name: str) -> Generator[None, None, None]:
        """See ProgramState."""
        self._names.add(name)
        yield

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __getattr__(self, name: str) -> Any:
        raise TraceStop

    def __getitem__(self, name: str) -> Any:
        raise TraceStop

    def __setitem__(self, name: str, value: Any) -> None:
        self._names.add(name)


def trace(function: Any, arguments: dict[str, Any], open_names: set[str]) -> Trace:
    """Run a function with some of its arguments open.

    What it does besides appending (printing, say) happens once more. An exception of its own ends the trace: it will
    come again when the program runs.
    """
    found = Trace()
    values = {name: Placeholder(name) if name in open_names else value for name, value in arguments.items()}
    state = TraceState(found)
    outer = tracing.set(True)
    try:
        function(state, **values)
        found.straight = True
    except TraceStop as stop:
        if state.is_open:
            found.argument = stop.argument
    except Exception:
        state.is_open = False
    finally:
        tracing.reset(outer)
    return found
