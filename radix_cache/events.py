"""Events of the tree, for metrics and for subscribers that mirror its content."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from .node import Namespace

EventKind = Literal["stored", "trimmed", "evicted"]


class TreeEvent(NamedTuple):
    """One change of a node: `stored` (new or raised), `trimmed` (shallower) or `evicted` (gone).

    `depth` is the node's valid depth afterwards; page counts are what the change added or gave up.
    """

    kind: EventKind
    namespace: Namespace
    num_tokens: int
    depth: int
    kv_pages: int
    boundary_pages: int


class EventLog:
    """Totals of all events, and an optional callback that sees each.

    The callback runs in the middle of the change: it must not call the tree.
    """

    def __init__(self, callback: Callable[[TreeEvent], None] | None = None):
        self.callback = callback
        self.totals: dict[str, int] = {"stored": 0, "trimmed": 0, "evicted": 0}

    def add(self, event: TreeEvent) -> None:
        """Count `event`."""
        self.totals[event.kind] += 1
        if self.callback is not None:
            self.callback(event)
