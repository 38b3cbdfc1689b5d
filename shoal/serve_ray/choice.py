"""Which replica a request goes to: the one that holds the longest prefix of the prompt, unless it is overloaded.

Knows nothing of Ray: replicas are names, prefixes are hashes (`radix_cache/summary.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_EXPECTED = 4096
"""Prefixes that a replica is expected to hold between two of its summaries."""


def packed(hashes: Iterable[int]) -> bytes:
    """Hashes as bytes, 8 each."""
    return np.fromiter(hashes, "<u8").tobytes()


def unpacked(data: bytes) -> list[int]:
    """Hashes from their bytes; none from bytes that are no hashes."""
    return np.frombuffer(data, "<u8").tolist() if len(data) % 8 == 0 else []


@dataclass(slots=True)
class Holdings:
    """What one replica holds, as far as a router knows.

    A summary is seconds old. What was routed to the replica since counts as held too, until a summary that was made
    after it: `fresh` came after the latest summary, `older` after the one before, whose making it may have missed.
    """

    summary: bytes = b""
    reported: frozenset[int] = frozenset()
    fresh: dict[int, None] = field(default_factory=dict)
    older: dict[int, None] = field(default_factory=dict)

    def report(self, summary: bytes) -> None:
        """Take a summary over; the same one again changes nothing."""
        if summary != self.summary:
            self.summary, self.reported = summary, frozenset(unpacked(summary))
            self.older, self.fresh = self.fresh, {}

    def expect(self, hashes: Sequence[int]) -> None:
        """A prompt with these prefixes is on its way to the replica."""
        for each in hashes:
            self.fresh.pop(each, None)
            self.fresh[each] = None
        while len(self.fresh) > MAX_EXPECTED:
            del self.fresh[next(iter(self.fresh))]

    def matched(self, hashes: Sequence[int]) -> int:
        """How many strides of a prompt are held; `hashes` are of its prefixes, shortest first."""
        for count in range(len(hashes), 0, -1):
            each = hashes[count - 1]
            if each in self.reported or each in self.fresh or each in self.older:
                return count
        return 0

    @property
    def size(self) -> int:
        """Prefixes that it knows of."""
        return len(self.reported) + len(self.fresh)


class PrefixChooser:
    """Orders replicas for a prompt, the best first.

    A replica is overloaded if it has both more than `balance_abs` requests above the least loaded one and more than
    `balance_rel` times as many. Those that are not come first, by the longest held prefix, then by the lowest load,
    then by the fewest prefixes. Overloaded ones follow, the lowest load first.
    """

    def __init__(self, balance_abs: int, balance_rel: float):
        self._abs, self._rel = balance_abs, balance_rel
        self._holdings: dict[str, Holdings] = {}
        self._turn = 0

    def update(self, summaries: Mapping[str, bytes]) -> None:
        """The replicas that exist now, each with its latest summary."""
        self._holdings = {name: self._holdings.get(name) or Holdings() for name in summaries}
        for name, summary in summaries.items():
            self._holdings[name].report(summary)

    def order(self, loads: Mapping[str, int], hashes: Sequence[int]) -> list[str]:
        """The names in `loads` (requests in flight on each), the best first; `hashes` are of the prompt's prefixes,
        shortest first. Any replica may be new or gone meanwhile.
        """
        if not loads:
            return []
        least = min(loads.values())
        self._turn += 1
        # Equal ones take turns: sorting is stable, and every call begins with another one.
        names = sorted(loads)
        at = self._turn % len(names)

        def rank(name: str) -> tuple[bool, int, int, int]:
            load, held = loads[name], self._holdings.get(name) or _NOTHING
            if load > least + self._abs and load > least * self._rel:
                return True, load, -held.matched(hashes), held.size
            return False, -held.matched(hashes), load, held.size

        return sorted(names[at:] + names[:at], key=rank)

    def routed(self, name: str, hashes: Sequence[int]) -> None:
        """A prompt with these prefixes was sent to a replica."""
        if name in self._holdings:
            self._holdings[name].expect(hashes)


_NOTHING = Holdings()
