"""The numbers and trees of several replicas as those of one server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..runtime.request.stats import SchedulerStats

_MEANS = frozenset({"token_usage", "audit_divergence"})
_MOST = frozenset({"audit_worst_divergence"})
_LEAST = frozenset({"audit_depth_limit", "uptime"})
_TREE_TOTALS = ("num_nodes", "num_tokens", "kv_pages", "boundary_pages", "kv_bytes", "boundary_bytes",
                "evictable_kv_pages")  # fmt: skip


def total_stats(parts: Sequence[SchedulerStats]) -> SchedulerStats:
    """Sums of counters and sizes; means of shares and of what audits measured; the least uptime and depth limit."""
    names = [field.name for field in fields(SchedulerStats)]
    return SchedulerStats(**{name: _total(name, [getattr(part, name) for part in parts]) for name in names})


def _total(name: str, values: list[Any]) -> Any:
    known = [value for value in values if value is not None and value != ()]
    if not known:
        return values[0] if values else 0
    if name in _LEAST:
        return min(known)
    if name in _MOST:
        return max(known)
    if isinstance(known[0], tuple | list):
        return tuple(sum(column) / len(known) for column in zip(*known, strict=True))
    return sum(known) / len(known) if name in _MEANS else sum(known)


def joined_snapshots(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One snapshot with the namespaces of all; each says by its `replica`, a number, which tree it is of."""
    whole = dict(parts[0])
    for name in _TREE_TOTALS:
        whole[name] = sum(part[name] for part in parts)
    whole["events"] = {name: sum(part["events"][name] for part in parts) for name in whole["events"]}
    whole["namespaces"] = [
        {**namespace, "replica": number} for number, part in enumerate(parts) for namespace in part["namespaces"]
    ]
    return whole
