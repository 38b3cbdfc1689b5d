"""Prefixes that several states share: computed on their own, once, before the first of them calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..backend import Backend
from .usage import Usage

MIN_TOKENS = 16
"""Shorter prefixes are not worth a forward of their own."""
_MERGED = 4


class WarmUp:
    """One shared prefix. Used in the driver's thread only.

    Args:
        tokens: the prefix.
        usage: gets what the warm-up costs.
        pin: keep it until `release`.
        above: a warm-up of a shorter prefix of the same tokens, done before.
        after: one that those who wait for this one let go first: so calls that share a prefix go out together, however
            close the two come to an end.
    """

    def __init__(
        self, backend: Backend, tokens: Sequence[int], usage: Usage, *, pin: bool = False,
        above: WarmUp | None = None, after: WarmUp | None = None,
    ):  # fmt: skip
        self.tokens = tuple(tokens)
        self._backend = backend
        self._usage = usage
        self._pin = pin
        self._above = above
        self._after = after
        self._done: asyncio.Future[int] | None = None
        self._pinned: asyncio.Task[bool] | None = None

    async def shared(self, tokens: Sequence[int]) -> int:
        """Warm the prefix if that was not done yet; how many leading tokens of a prompt it covers.

        0 for a prompt that does not begin with it, and where a warm-up has failed: it is a saving, not a condition.
        """
        if self._done is None:
            self._fit(tokens)
        if len(self.tokens) < MIN_TOKENS or tuple(tokens[: len(self.tokens)]) != self.tokens:
            return 0 if self._above is None else await self._above.shared(tokens)
        if self._done is None:
            self._done = asyncio.get_running_loop().create_future()
            try:
                warmed = await self._warm()
                if self._after is not None and self._after._done is not None:
                    await asyncio.shield(self._after._done)
                self._done.set_result(warmed)
            except BaseException:
                self._done.set_result(0)
                raise
        return await asyncio.shield(self._done)

    def _fit(self, tokens: Sequence[int]) -> None:
        """Give up the last tokens where the text behind the prefix has merged with them ("the " and "red")."""
        pairs = zip(self.tokens, tokens, strict=False)
        common = next((at for at, (own, other) in enumerate(pairs) if own != other), min(len(self.tokens), len(tokens)))
        if len(self.tokens) - common <= _MERGED:
            self.tokens = self.tokens[:common]

    async def _warm(self) -> int:
        if self._above is not None:
            await self._above.shared(self.tokens)
        try:
            meta = await self._backend.warm(self.tokens)
        except Exception:  # the calls behind it will say what is wrong
            return 0
        if self._pin:  # nobody waits for it
            self._pinned = asyncio.ensure_future(self._backend.pin(self.tokens))
        if meta is None:
            return 0
        self._usage.add(meta, warm_ups=bool(meta))
        return len(self.tokens)

    async def release(self) -> None:
        """Give back the pin, if there is one."""
        if self._pinned is not None and await self._pinned:
            await self._backend.unpin(self.tokens)
