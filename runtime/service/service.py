"""The service behind the HTTP layer: one asynchronous interface, in this process or over a pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..request.input import GenerateInput, TextPrompt
from ..request.lookup import CacheLookup
from ..request.output import RequestOutput
from ..request.stats import SchedulerStats
from ..request.trace_options import TraceOptions
from .info import ServiceInfo

State = Literal["starting", "up", "draining", "dead"]

MAX_PRIORITY = 1 << 31
"""Largest priority that the HTTP layer lets a caller ask for, and its negative the smallest."""
PROBE_PRIORITY = -MAX_PRIORITY - 1
"""Below any client priority, so a probe never preempts."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Whether requests are taken: only in state `up`. `reason` says in words why not."""

    state: State
    reason: str = ""


class Service(Protocol):
    """Serves requests until it is shut down or dies. All methods belong to one event loop."""

    @property
    def status(self) -> ServiceStatus:
        """The state at the moment."""
        ...

    @property
    def info(self) -> ServiceInfo:
        """What runs here. Raises EngineClosedError before the service is up for the first time."""
        ...

    def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request, cumulative: `text` of each begins with the text of the one before.

        The last one is terminal: finish_reason is set, and `error` when that is `error` (or `abort` by a time-out).
        With `stream` off only the terminal one is promised. Before the first output the iterator may raise
        InvalidRequestError, PoolTooSmallError, QueueFullError or EngineClosedError; after it, nothing. Closing the
        iterator early aborts the request.
        """
        ...

    async def abort(self, rid: str | None = None) -> int:
        """End a request early, or all of them; its caller gets an output with finish_reason `abort`.

        Returns how many requests it ended; 0 for an unknown id.
        """
        ...

    async def tokenize(self, prompt: TextPrompt, add_special_tokens: bool = True, name: str = "prompt") -> list[int]:
        """Token ids of text, of text in parts, or of chat messages, called `name` in errors. Without
        `add_special_tokens` it is text inside a prompt: no BOS is added. Raises InvalidRequestError."""
        ...

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Raises InvalidRequestError."""
        ...

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """Drop every cached prefix. Raises CacheInUseError, with nothing dropped, when requests are still in flight
        after `timeout_s` seconds."""
        ...

    async def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data."""
        ...

    async def lookup(self, request: GenerateInput) -> CacheLookup:
        """What a request would reuse, without running it. Raises what `generate` raises for its input."""
        ...

    async def stats(self) -> SchedulerStats:
        """The scheduler's numbers. Raises EngineClosedError when there is no scheduler to ask."""
        ...

    async def start_profile(self, options: TraceOptions) -> str:
        """Make the worker record a trace; returns the path of its file.

        Raises InvalidRequestError if a trace is impossible or already being recorded, EngineError if the profiler
        fails.
        """
        ...

    async def stop_profile(self) -> str:
        """Write the trace; returns the path of its file. Raises as `start_profile`, and if none is being recorded."""
        ...

    async def closed(self) -> ServiceStatus:
        """Wait until the service is dead, by failure or by shutdown; its last status."""
        ...

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """Take no more requests, wait at most `drain_timeout_s` seconds for those in flight, end the rest, stop.

        May be called twice.
        """
        ...
