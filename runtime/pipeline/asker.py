"""The questions that callers may ask a pipeline's processes, each with one answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ..request.input import GenerateInput, TextPrompt
from ..request.lookup import CacheLookup
from ..request.stats import SchedulerStats
from ..request.trace_options import TraceOptions
from .messages import Ask, Detokenize, StartTrace, StopTrace, Summarize, ToTokenizer
from .requests import lookup_message, tokenize_message


class Asker(ABC):
    """The part of `Service` that is questions and answers, over `_reply`."""

    @abstractmethod
    async def _reply(self, question: Callable[[int], ToTokenizer]) -> Any:
        """Send the question with a number of its own; its answer. Raises the error that it was answered with."""

    async def tokenize(self, prompt: TextPrompt, add_special_tokens: bool = True, name: str = "prompt") -> list[int]:
        """See `Service.tokenize`."""
        return list(await self._reply(lambda number: tokenize_message(number, prompt, add_special_tokens, name)))

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Raises InvalidRequestError."""
        return str(await self._reply(lambda number: Detokenize(number, list(map(int, token_ids)), skip_special_tokens)))

    async def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data."""
        return dict(await self._ask("snapshot"))

    async def cache_summary(self, stride: int, limit: int) -> bytes:
        """Hashes of the prefixes that are cached, for routers: see `Memory.summary`."""
        return bytes(await self._reply(lambda number: Summarize(number, stride, limit)))

    async def lookup(self, request: GenerateInput) -> CacheLookup:
        """What a request would reuse."""
        return CacheLookup(**await self._reply(lambda number: lookup_message(number, request)))

    async def stats(self) -> SchedulerStats:
        """The scheduler's numbers."""
        return SchedulerStats(**await self._ask("stats"))

    async def start_profile(self, options: TraceOptions) -> str:
        """Make the worker record a trace; returns the path of its file."""
        return str(await self._reply(lambda number: StartTrace(number, options)))

    async def stop_profile(self) -> str:
        """Write the trace; returns the path of its file."""
        return str(await self._reply(StopTrace))

    async def _ask(self, what: Literal["stats", "snapshot", "flush", "alive"]) -> Any:
        return await self._reply(lambda number: Ask(number, what))
