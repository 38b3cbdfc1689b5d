"""`LocalService`: the service interface over an engine in this process, without sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..birthplace import Birthplace
from ..config import EngineConfig
from ..daemon_call import in_a_daemon
from ..errors import CacheInUseError, EngineClosedError, InvalidRequestError, ShoalError, shorten
from ..request.facts import Facts
from ..request.input import GenerateInput, TextPrompt
from ..request.lookup import CacheLookup
from ..request.output import RequestOutput
from ..request.stats import SchedulerStats
from ..request.trace_options import TraceOptions
from ..service.info import ServiceInfo
from ..service.service import ServiceStatus, State
from ..text.chat_markers import markers_error
from .build import Parts
from .core import EngineCore
from .mailbox import AsyncMailbox

_POLL_S = 0.02
_T = TypeVar("_T")


class LocalService:
    """Runs the scheduler and the worker in a thread of this process: see `Service` for what the methods promise.

    For tests, and for machines where the processes of the pipeline are unwanted. In a forked child it is dead.
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._birthplace = Birthplace("service")
        self._core: EngineCore | None = None
        self._state: State = "starting"
        self._reason = "the model is loading"
        self._active: dict[str, str] = {}  # rid -> the engine's id
        self._closed = asyncio.Event()

    async def start(self) -> None:
        """Load the model. Raises ModelLoadError or ConfigError; the service is dead then."""
        self._birthplace.check()
        try:
            core = await in_a_daemon(lambda: EngineCore(self._config))
        except BaseException as error:
            self._die(f"{type(error).__name__}: {error}")
            raise
        if self._state != "starting":
            core.loop.close(wait=True)
            raise EngineClosedError(self._reason)
        self._core = core
        self._state, self._reason = "up", ""

    @property
    def status(self) -> ServiceStatus:
        """See Service."""
        if not self._birthplace.is_here:
            return ServiceStatus("dead", self._birthplace.refusal)
        if self._state == "up" and self._core is not None:
            closed = self._core.loop.closed
            if closed is not None:
                self._die(closed.message)
        return ServiceStatus(self._state, self._reason)

    @property
    def info(self) -> ServiceInfo:
        """See Service."""
        core = self.core
        tokenizer = core.parts.tokenizer
        template = tokenizer is not None and tokenizer.has_chat_template
        try:
            markers = core.chat_markers().to_json()
        except ShoalError as error:
            markers = markers_error(error)
        return ServiceInfo.of(
            self._config, core.parts.facts, has_tokenizer=tokenizer is not None, has_chat_template=template,
            chat_markers=markers, end_ids=() if tokenizer is None else tokenizer.end_ids(),
        )  # fmt: skip

    @property
    def facts(self) -> Facts:
        """The worker's facts. Raises EngineClosedError before the service is up for the first time."""
        return self.core.parts.facts

    async def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """See Service."""
        self._birthplace.check()
        if self._state != "up":
            raise EngineClosedError(self._reason or "the service takes no requests")
        core = self.core
        if request.rid in self._active:
            raise InvalidRequestError(f"rid {shorten(request.rid)} is in use", field="rid", value=request.rid)
        if request.sampling.structure is not None:  # compiled before, outside of the loop
            await asyncio.to_thread(core.intake.grammar, request.sampling, request.names)
        (inner,) = core.take([replace(request, rid="")])
        loop = asyncio.get_running_loop()
        mailbox = AsyncMailbox()
        self._active[request.rid] = inner.rid

        def deliver(output: RequestOutput) -> None:
            if request.stream or output.finished:
                loop.call_soon_threadsafe(mailbox.put, output)

        finished = False
        try:
            core.loop.submit([inner], deliver)
            while not finished:
                self._birthplace.check()
                output = await mailbox.get()
                finished = output.finished
                yield replace(output, rid=request.rid)
        finally:
            del self._active[request.rid]
            if not finished:
                core.loop.abort([inner.rid])

    async def abort(self, rid: str | None = None) -> int:
        """See Service."""
        self._birthplace.check()
        rids = list(self._active) if rid is None else [rid]
        found = [self._active[rid] for rid in rids if rid in self._active]
        if found:
            self.core.loop.abort(found)
        return len(found)

    async def tokenize(self, prompt: TextPrompt, add_special_tokens: bool = True, name: str = "prompt") -> list[int]:
        """See Service."""
        return self.core.intake.encode_text(prompt, name, add_special_tokens)

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """See Service."""
        return self.core.intake.decode(token_ids, skip_special_tokens)

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """See Service."""
        self._birthplace.check()
        deadline = time.monotonic() + timeout_s
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._active:
            message = f"flush refused: {len(self._active)} requests are under way"
            raise CacheInUseError(message, field="flush_cache", value=len(self._active), limit=0)
        await self._in_loop(lambda parts: parts.scheduler.memory.flush())

    async def cache_snapshot(self) -> dict[str, Any]:
        """See Service."""
        return await self._in_loop(lambda parts: parts.scheduler.memory.tree.snapshot())

    async def cache_summary(self, stride: int, limit: int) -> bytes:
        """Hashes of the prefixes that are cached, for routers: see `Memory.summary`."""
        return await self._in_loop(lambda parts: parts.scheduler.memory.summary(stride, limit))

    async def lookup(self, request: GenerateInput) -> CacheLookup:
        """See Service."""
        (asked,) = self.core.take([replace(request, rid="")])
        return await self._in_loop(lambda parts: parts.scheduler.planner.lookup(asked))

    async def stats(self) -> SchedulerStats:
        """See Service."""
        return await self._in_loop(lambda parts: parts.scheduler.stats())

    async def _in_loop(self, task: Callable[[Parts], _T]) -> _T:
        """Run `task` in the engine's thread; returns what it returns."""
        core = self.core
        result: _T = await asyncio.to_thread(core.loop.call_and_wait, lambda: task(core.parts))
        return result

    async def start_profile(self, options: TraceOptions) -> str:
        """Refused: there is no process of the worker's own."""
        raise InvalidRequestError("a server in one process (--in-process) records no profiles", field="in_process")

    async def stop_profile(self) -> str:
        """As start_profile."""
        return await self.start_profile(TraceOptions(output_dir="/"))

    async def closed(self) -> ServiceStatus:
        """See Service."""
        while self.status.state != "dead":
            try:
                await asyncio.wait_for(self._closed.wait(), 0.2)
            except TimeoutError:
                continue
        return self.status

    async def shutdown(self, drain_timeout_s: float = 0.0) -> None:
        """See Service."""
        if self.status.state == "dead":
            return
        self._state, self._reason = "draining", "the service is shutting down"
        deadline = time.monotonic() + drain_timeout_s
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._core is not None:
            await asyncio.to_thread(self._core.loop.close, wait=True)
        self._die("the service was shut down")

    def _die(self, reason: str) -> None:
        self._state, self._reason = "dead", reason
        self._closed.set()

    @property
    def core(self) -> EngineCore:
        """What runs the requests. Raises EngineClosedError before the service is up, and in a forked child."""
        self._birthplace.check()
        if self._core is None:
            raise EngineClosedError(self._reason)
        return self._core
