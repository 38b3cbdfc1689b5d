"""Many runs of one program: which prefixes they share, and in which order they should run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import driver
from ..backend import Backend
from ..language.expressions import Expression, RoleBegin, RoleEnd, Text
from .trace import trace
from .transcript import Transcript
from .usage import Usage
from .warm_up import MIN_TOKENS, WarmUp


@dataclass(slots=True)
class Group:
    """Items whose text begins alike. `straight`: the function is known to read nothing."""

    prefix: list[Expression]
    items: list[int]
    straight: bool
    groups: list[Group] = field(default_factory=list)

    def order(self) -> list[int]:
        """The items, those of a group together."""
        return [item for group in self.groups for item in group.order()] if self.groups else list(self.items)


def plan(function: Any, arguments: Sequence[dict[str, Any]]) -> Group:
    """Group a batch by tracing: first with every argument open that differs, then value by value of the argument that
    the text meets first, as long as that makes groups of more than one."""
    return _explore(function, arguments, list(range(len(arguments))), frozenset())


def _explore(function: Any, arguments: Sequence[dict[str, Any]], items: list[int], fixed: frozenset[str]) -> Group:
    first = arguments[items[0]]
    differ = {name for name in first if name not in fixed and _differs([arguments[i].get(name) for i in items])}
    traced = trace(function, first, differ)
    group = Group(traced.prefix, items, traced.straight)
    if traced.argument is None or traced.argument not in differ:
        return group
    parts: dict[Hashable, list[int]] = {}
    for item in items:
        parts.setdefault(_key(arguments[item][traced.argument]), []).append(item)
    if 1 < len(parts) < len(items):
        inner = fixed | {traced.argument}
        group.groups = [_explore(function, arguments, part, inner) for part in parts.values()]
    return group


def _differs(values: Sequence[Any]) -> bool:
    keys = [_key(value) for value in values]
    return any(key != keys[0] for key in keys)


def _key(value: Any) -> Hashable:
    """Equal for equal values of plain types; anything else is equal to itself alone."""
    if isinstance(value, str | int | float | bool | bytes | None):
        return (type(value), value)
    if isinstance(value, list | tuple):
        return (type(value), tuple(_key(item) for item in value))
    if isinstance(value, dict):
        return (dict, tuple((_key(name), _key(item)) for name, item in value.items()))
    return (object, id(value))


class SharedPrefixes:
    """The warm-ups of a batch: for each item the longest prefix that it shares with another."""

    def __init__(self, backend: Backend, usage: Usage):
        self._backend = backend
        self._usage = usage
        self.of: dict[int, WarmUp] = {}
        self._all: list[WarmUp] = []

    async def find(self, group: Group, above: WarmUp | None = None) -> None:
        """Make a warm-up for each group of more than one item whose prefix is longer than that of the one above."""
        warm_up = above
        if len(group.items) > 1:
            tokens = await prefix_tokens(group.prefix, self._backend)
            if len(tokens) >= (len(above.tokens) if above else 0) + MIN_TOKENS:
                after = self._all[-1] if self._all else None
                warm_up = WarmUp(self._backend, tokens, self._usage, pin=True, above=above, after=after)
                self._all.append(warm_up)
        for item in group.items:
            if warm_up is not None:
                self.of[item] = warm_up
        for inner in group.groups:
            await self.find(inner, warm_up)

    def release(self) -> None:
        """Unpin them all."""
        released = [driver.submit(warm_up.release()) for warm_up in self._all]
        if not driver.inside():  # where a generator that nobody wants any more is collected, there is no choosing
            for future in released:
                future.result()


async def prefix_tokens(prefix: Sequence[Expression], backend: Backend) -> tuple[int, ...]:
    """Tokens of the literal beginning of a program."""
    transcript = Transcript()
    for expression in prefix:
        if isinstance(expression, Text):
            transcript.literal(expression.text)
        elif isinstance(expression, RoleBegin | RoleEnd):
            before, after = (await backend.markers()).of(expression.role, transcript.empty)
            if isinstance(expression, RoleBegin):
                transcript.begin(expression.role, before)
            else:
                transcript.end(after)
    await transcript.flush(backend)
    return transcript.tokens
