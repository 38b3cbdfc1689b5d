"""The order in which waiting requests are admitted, and the running ones that may be preempted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..request.request import Request
from .reuse import ReusePlanner

_MATCHED_AT_MOST = 256  # requests whose prefix is looked up at a time; the rest keep their order behind them


def admission_order(policy: str, waiting: Sequence[Request], planner: ReusePlanner) -> list[Request]:
    """Waiting requests in order of admission.

    Higher priorities first. Among equals `fcfs`: as they came. `lpm`: the longest cached prefix first. `dfs-weight`:
    requests under the same cached prefix together, the prefix that most of them share first, those without a cached
    prefix last. Ties keep the order of arrival.
    """
    order = list(waiting)
    if len({request.priority for request in order}) > 1:
        order.sort(key=lambda r: -r.priority)
    if policy == "fcfs" or len(order) < 2:
        return order
    head, tail = order[:_MATCHED_AT_MOST], order[_MATCHED_AT_MOST:]
    cached = {request.rid: planner.cached_tokens(request) for request in head}
    if policy == "lpm":
        return sorted(head, key=lambda r: (-r.priority, -cached[r.rid])) + tail
    prefix = {r.rid: (r.spec.cache_mode, r.spec.cache_salt, r.prompt[: cached[r.rid]].tobytes()) for r in head}
    weight = Counter(prefix[rid] for rid, tokens in cached.items() if tokens)
    first: dict[tuple[str, str, bytes], int] = {}
    for place, request in enumerate(head):
        first.setdefault(prefix[request.rid], place)
    return sorted(head, key=lambda r: (-r.priority, -weight[prefix[r.rid]], first[prefix[r.rid]])) + tail


def preemptible(running: Iterable[Request], priority: int) -> list[Request]:
    """Running requests that one of `priority` may preempt: the lowest priority first, then the youngest."""
    lower = [request for request in running if request.priority < priority]
    return sorted(lower, key=lambda r: (r.priority, -(r.tally.admitted_at or 0.0)))


def strength(request: Request, old: int) -> tuple[bool, int, int]:
    """Who keeps its pages when they are short: of two running requests the one with the larger key.

    Aged requests first (`tally.age` of at least `old`), then the higher priority, then the one that came earlier.
    """
    return request.tally.age >= old, request.priority, -request.tally.ticket
