"""Checks that the ranks of a worker commit the same tokens: one that computed something else must not go on."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence

import msgspec

from ..errors import EngineError
from ..request.forward import StepResult
from .messages import Committed


def digest_of(results: Sequence[StepResult]) -> int:
    """CRC-32 of what a forward committed."""
    return zlib.crc32(msgspec.msgpack.encode([(one.rid, one.positions, one.tokens, one.error) for one in results]))


class RankCheck:
    """Compares every rank's digests with those of rank 0's results, forward by forward. Nothing waits for it.

    The order in which ranks report does not matter: a rank may be ahead of rank 0, or behind it.
    """

    def __init__(self, size: int):
        self._waiting: list[tuple[deque[int], deque[int]]] = [(deque(), deque()) for _ in range(size - 1)]

    def expect(self, results: Sequence[StepResult]) -> None:
        """Rank 0 has reported a forward. Raises EngineError when another one committed something else."""
        if self._waiting:
            digest = digest_of(results)
            for rank, (expected, _) in enumerate(self._waiting, 1):
                expected.append(digest)
                self._settle(rank)

    def compare(self, message: Committed) -> None:
        """Another rank has reported a forward. Raises EngineError when it committed something else than rank 0."""
        if not 1 <= message.rank <= len(self._waiting):
            raise EngineError(f"the worker has no rank {message.rank}", field="rank", value=message.rank)
        self._waiting[message.rank - 1][1].append(message.digest)
        self._settle(message.rank)

    def _settle(self, rank: int) -> None:
        expected, found = self._waiting[rank - 1]
        while expected and found:
            if expected.popleft() != found.popleft():
                message = f"ranks 0 and {rank} of the worker committed different tokens: their machines disagree"
                raise EngineError(message, field="tp_size", value=len(self._waiting) + 1)
