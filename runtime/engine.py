"""`Engine`: the scheduler and the worker in this process, for notebooks, batch jobs, tests and the CPU."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from types import TracebackType
from typing import Any

from .build import Parts, build_parts
from .engine_config import EngineConfig
from .engine_loop import EngineLoop, Listener
from .errors import ConfigError, shorten
from .intake import Intake, is_single
from .request import CacheMode, RequestOutput
from .sampling_params import SamplingParams
from .service import Prompt

logger = logging.getLogger(__name__)


class Engine:
    """Runs requests on one model, with prefix reuse across them.

    A thread of the engine's own drives the scheduler; every method may be called from any thread. Outputs of a list of
    prompts come in its order. Use it as a context manager, or call `shutdown`.

    Args:
        model: `shop` (the bundled model), a model folder, or a hub id; or give an EngineConfig as `config`.
        options: any other field of EngineConfig.
    """

    def __init__(self, model: str | None = None, *, config: EngineConfig | None = None, **options: Any):
        if config is not None and (model is not None or options):
            raise ConfigError("give either config or options, not both", field="config", value=sorted(options))
        if config is not None and not isinstance(config, EngineConfig):
            raise ConfigError(f"config is {shorten(config)}; it must be an EngineConfig", field="config", value=config)
        if model is not None:
            options["model_path"] = str(model)
        self.config = config or EngineConfig.build(**options)
        self._parts: Parts = build_parts(self.config)
        self._intake = Intake(self.config, self._parts.facts, self._parts.tokenizer)
        self._loop = EngineLoop(self._parts.scheduler)

    # Generation

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_mode: CacheMode | None = None,
        cache_salt: str = "",
        on_output: Listener | None = None,
    ) -> Any:
        """Generate for one prompt (returns a RequestOutput) or for a list of them (returns a list, in order).

        All prompts are checked before any runs: InvalidRequestError or PoolTooSmallError name the field and the
        limit. A request that fails later raises its error here, after the others are done. `on_output` is called in
        the engine's thread with every terminal output as it comes; what it raises is logged.
        """
        single = is_single(prompts)
        requests = self._intake.requests([prompts] if single else prompts, sampling_params, cache_mode, cache_salt)
        done: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()

        def listen(output: RequestOutput) -> None:
            if output.finished:
                try:
                    if on_output is not None:
                        on_output(output)
                finally:
                    done.put(output)

        self._loop.submit(requests, listen)
        try:
            outputs = {output.rid: output for output in (done.get() for _ in requests)}
        except BaseException:
            self._loop.abort([request.rid for request in requests])
            raise
        results = [_raised(outputs[request.rid]) for request in requests]
        return results[0] if single else results

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_mode: CacheMode | None = None,
        cache_salt: str = "",
    ) -> Generator[RequestOutput, None, None]:  # fmt: skip
        """Outputs of one request as text is committed; `text` of each begins with the text of the one before.

        Closing the iterator early aborts the request.
        """
        (request,) = self._intake.requests([prompt], sampling_params, cache_mode, cache_salt)
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        self._loop.submit([request], outputs.put)
        finished = False
        try:
            while not finished:
                output = _raised(outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._loop.abort([request.rid])

    async def async_generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_mode: CacheMode | None = None,
        cache_salt: str = "",
    ) -> Any:
        """As `generate`, awaitable; cancelling it aborts its requests."""
        single = is_single(prompts)
        requests = self._intake.requests([prompts] if single else prompts, sampling_params, cache_mode, cache_salt)
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[RequestOutput]] = {r.rid: loop.create_future() for r in requests}

        def listen(output: RequestOutput) -> None:
            if output.finished:
                _post(loop, _resolve, futures[output.rid], output)

        self._loop.submit(requests, listen)
        try:
            outputs = await asyncio.gather(*futures.values())
        except asyncio.CancelledError:
            self._loop.abort([request.rid for request in requests])
            raise
        results = [_raised(output) for output in outputs]
        return results[0] if single else results

    async def async_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_mode: CacheMode | None = None,
        cache_salt: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:  # fmt: skip
        """As `stream`, asynchronous."""
        (request,) = self._intake.requests([prompt], sampling_params, cache_mode, cache_salt)
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._loop.submit([request], lambda output: _post(loop, outputs.put_nowait, output))
        finished = False
        try:
            while not finished:
                output = _raised(await outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._loop.abort([request.rid])

    def abort(self, rid: str) -> None:
        """End a request early; its caller gets an output with finish_reason `abort`.

        Ids of requests that have ended, or never were, are ignored.
        """
        self._loop.abort([rid])

    # The cache

    def flush_cache(self) -> None:
        """Drop every cached prefix. Raises CacheInUseError, with nothing dropped, while running requests share one."""
        self._loop.call_and_wait(self._parts.scheduler.memory.flush)

    def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data: nodes with tokens, depth, ratio, pages and hits."""
        return self._loop.call_and_wait(self._parts.scheduler.memory.tree.snapshot)

    def render_cache(self) -> Any:
        """The radix tree as something `rich` can print."""
        return self._loop.call_and_wait(self._parts.scheduler.memory.tree.render)

    def check(self) -> None:
        """Check the page accounting and the trees. Raises InvariantError with the numbers."""
        self._loop.call_and_wait(self._parts.scheduler.check)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None with dummy weights."""
        return self._parts.tokenizer

    @property
    def depth_profile(self) -> Any:
        """The depth profile in use, rounded to whole bands."""
        return self._parts.profile

    @property
    def model_config(self) -> Any:
        """Shapes of the model."""
        return self._parts.decoder.config

    # Life

    def shutdown(self) -> None:
        """Stop the engine; requests that still run end with EngineClosedError. May be called twice."""
        self._loop.close(wait=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_loop"):
            self._loop.close(wait=False)  # at the interpreter's end the thread would never come back


def _raised(output: RequestOutput) -> RequestOutput:
    if output.error is not None:
        raise output.error
    return output


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    """Run `call` in the event loop, unless that is gone."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        logger.debug("an event loop was closed before its output came")


def _resolve(future: asyncio.Future[RequestOutput], output: RequestOutput) -> None:
    if not future.done():
        future.set_result(output)
