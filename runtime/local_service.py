"""`LocalService`: the service interface over an engine in this process, without sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, replace
from typing import Any

from .build import choose_dtype
from .engine import Engine
from .engine_config import EngineConfig
from .errors import CacheInUseError, EngineClosedError, InvalidRequestError, RequestTimeoutError, ShoalError, shorten
from .request import RequestOutput
from .service import GenerateInput, Message, ServiceInfo, ServiceStatus, State
from .stats import SchedulerStats

_POLL_S = 0.02


class LocalService:
    """Runs the scheduler and the worker in a thread of this process: see `Service` for what the methods promise.

    For tests, and for machines where the processes of the pipeline are unwanted. Priorities and the limit on queued
    requests are the scheduler's; time-outs are kept here.
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._engine: Engine | None = None
        self._state: State = "starting"
        self._reason = "the model is loading"
        self._started = time.monotonic()
        self._active: dict[str, str] = {}  # rid -> the engine's id
        self._closed = asyncio.Event()
        self._totals: dict[str, int] = {}

    async def start(self) -> None:
        """Load the model. Raises ModelLoadError or ConfigError; the service is dead then."""
        try:
            self._engine = await asyncio.to_thread(Engine, config=self._config)
        except BaseException as error:
            self._die(f"{type(error).__name__}: {error}")
            raise
        self._state, self._reason = "up", ""

    @property
    def status(self) -> ServiceStatus:
        """See Service."""
        if self._state == "up" and self._engine is not None and self._engine._loop._closed is not None:
            self._die(self._engine._loop._closed.message)
        return ServiceStatus(self._state, self._reason)

    @property
    def info(self) -> ServiceInfo:
        """See Service."""
        engine = self._need_engine()
        parts, model, memory = engine._parts, engine.model_config, engine._parts.scheduler.memory
        pool = memory.kv.num_pages // memory.config.num_bands * memory.config.page_size
        used = {
            "device_in_use": str(parts.decoder.device),
            "dtype_in_use": str(choose_dtype(self._config.dtype, parts.decoder.device)).removeprefix("torch."),
        }
        from .. import __version__

        return ServiceInfo(
            model_path=self._config.model_path,
            model_folder=str(parts.folder),
            architecture=model.architecture,
            model=_plain(asdict(model)),
            engine={**asdict(self._config), **used},
            max_tokens=min(model.max_position_embeddings, pool),
            block_length=parts.block_length,
            vocab_size=model.embedding_size,
            mask_token_id=model.mask_token_id,
            eos_token_id=model.eos_token_id,
            depth_profile=parts.profile.to_json(),
            has_tokenizer=parts.tokenizer is not None,
            has_chat_template=parts.tokenizer is not None and parts.tokenizer.has_chat_template,
            version=__version__,
        )

    async def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """See Service."""
        if self._state != "up":
            raise EngineClosedError(self._reason or "the service takes no requests")
        engine = self._need_engine()
        if request.rid in self._active:
            raise InvalidRequestError(f"rid {shorten(request.rid)} is in use", field="rid", value=request.rid)
        (inner,) = engine._intake.requests([request.prompt], request.sampling, request.cache_mode, request.cache_salt)
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._active[request.rid] = inner.rid

        def deliver(output: RequestOutput) -> None:
            if request.stream or output.finished:
                loop.call_soon_threadsafe(queue.put_nowait, output)

        error: ShoalError | None = None
        finished = False
        try:
            engine._loop.submit([inner], deliver)
            while not finished:
                wait = None if deadline is None or error is not None else max(0.0, deadline - time.monotonic())
                try:
                    output = await asyncio.wait_for(queue.get(), wait)
                except TimeoutError:
                    error = RequestTimeoutError(
                        f"the request was not done within timeout_s = {request.timeout_s}",
                        field="timeout_s", value=request.timeout_s,
                    )  # fmt: skip
                    engine._loop.abort([inner.rid])
                    continue
                finished = output.finished
                if finished:
                    self._count(output)
                if output.finish_reason == "abort" and error is not None:
                    output = replace(output, error=error)
                yield replace(output, rid=request.rid)
        finally:
            del self._active[request.rid]
            if not finished:
                engine._loop.abort([inner.rid])

    async def abort(self, rid: str | None = None) -> int:
        """See Service."""
        rids = list(self._active) if rid is None else [rid]
        found = [self._active[rid] for rid in rids if rid in self._active]
        if found:
            self._need_engine()._loop.abort(found)
        return len(found)

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """See Service."""
        return self._need_engine()._intake._encode(prompt, "prompt").tolist()

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """See Service."""
        engine = self._need_engine()
        if engine.tokenizer is None:
            raise InvalidRequestError("without a tokenizer there is no text", field="token_ids")
        limit = engine.model_config.embedding_size
        for token in token_ids:
            if not 0 <= token < limit:
                message = f"token id {token} must be at least 0 and below {limit}"
                raise InvalidRequestError(message, field="token_ids", value=token, limit=limit)
        return engine.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """See Service."""
        deadline = time.monotonic() + timeout_s
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._active:
            message = f"flush refused: {len(self._active)} requests are under way"
            raise CacheInUseError(message, field="flush_cache", value=len(self._active), limit=0)
        await asyncio.to_thread(self._need_engine().flush_cache)

    async def cache_snapshot(self) -> dict[str, Any]:
        """See Service."""
        return await asyncio.to_thread(self._need_engine().cache_snapshot)

    async def stats(self) -> SchedulerStats:
        """See Service. Counters are those of finished requests."""
        engine = self._need_engine()
        return await asyncio.to_thread(engine._loop.call_and_wait, lambda: self._read_stats(engine))

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
        if self._state == "dead":
            return
        self._state, self._reason = "draining", "the service is shutting down"
        deadline = time.monotonic() + drain_timeout_s
        while self._active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        self._die("the service was shut down")

    def _die(self, reason: str) -> None:
        self._state, self._reason = "dead", reason
        self._closed.set()

    def _need_engine(self) -> Engine:
        if self._engine is None:
            raise EngineClosedError(self._reason)
        return self._engine

    def _count(self, output: RequestOutput) -> None:
        def add(name: str, number: int) -> None:
            self._totals[name] = self._totals.get(name, 0) + number

        ends = {"stop": "finished_stop", "length": "finished_length", "abort": "aborted", "error": "failed"}
        add(ends[output.finish_reason or "error"], 1)
        add("requests", 1)
        add("prompt_tokens", output.prompt_tokens)
        add("generated_tokens", output.completion_tokens)
        add("canvas_tokens", output.canvas_tokens)
        add("cache_query_tokens", output.prompt_tokens)
        add("cache_hit_tokens", output.cached_tokens)
        add("cache_queries", 1)
        add("cache_hits", int(output.cached_tokens > 0))
        add("reused_token_layers", output.reused_token_layers)
        add("computed_token_layers", output.computed_token_layers)
        add("nfe", output.nfe)
        add("prefix_refreshes", output.prefix_refreshes)

    def _read_stats(self, engine: Engine) -> SchedulerStats:
        scheduler = engine._parts.scheduler
        memory = scheduler.memory
        evictable = memory.kv.num_reclaimable
        tree_pages = sum(tree.snapshot()["kv_pages"] for tree in (memory.tree, memory.lm_tree))
        return SchedulerStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            kv_pages=memory.kv.num_pages,
            kv_pages_free=memory.kv.num_free,
            kv_pages_tree=tree_pages,
            kv_pages_requests=memory.kv.num_pages - memory.kv.num_free - evictable,
            boundary_pages=memory.boundary.num_pages,
            boundary_pages_free=memory.boundary.num_free,
            capacity_tokens=memory.kv.num_pages // memory.config.num_bands * memory.config.page_size,
            token_usage=1.0 - (memory.kv.num_free + evictable) / memory.kv.num_pages,
            uptime=time.monotonic() - self._started,
            **self._totals,
        )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str | int | float | bool | None) else str(value)
            for key, value in values.items()}  # fmt: skip
