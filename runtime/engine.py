"""`Engine`: the scheduler and the worker in this process, for notebooks, batch jobs, tests and the CPU."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch

from .build import Parts, build_parts
from .engine_config import EngineConfig
from .errors import EngineClosedError, EngineError, InvalidRequestError, ShoalError
from .intake import Intake, Prompt, is_single
from .request import CacheMode, Request, RequestOutput
from .sampling_params import SamplingParams

logger = logging.getLogger(__name__)
_Listener = Callable[[RequestOutput], None]


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
            raise InvalidRequestError("give either config or options, not both", field="config")
        if model is not None:
            options["model_path"] = str(model)
        self.config = config or EngineConfig.build(**options)
        self._parts: Parts = build_parts(self.config)
        self._intake = Intake(self._parts, self.config.cache_mode)
        self._threads = torch.get_num_threads()
        self._listeners: dict[str, tuple[Request, _Listener]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._state = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="shoal-engine", daemon=True)
        self._thread.start()

    # Generation

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_mode: CacheMode | None = None,
        cache_salt: str = "",
        on_output: _Listener | None = None,
    ) -> Any:
        """Generate for one prompt (returns a RequestOutput) or for a list of them (returns a list, in order).

        All prompts are checked before any runs: InvalidRequestError or PoolTooSmallError name the field and the
        limit. A request that fails later raises its error here, after the others are done. `on_output` is called in
        the engine's thread with every terminal output as it comes.
        """
        single = is_single(prompts)
        requests = self._intake.requests([prompts] if single else prompts, sampling_params, cache_mode, cache_salt)
        done: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()

        def listen(output: RequestOutput) -> None:
            if output.finished:
                if on_output is not None:
                    on_output(output)
                done.put(output)

        self._submit(requests, listen)
        try:
            outputs = {output.rid: output for output in (done.get() for _ in requests)}
        except BaseException:
            self._call(lambda: self._abort_all(requests))
            raise
        results = [_raised(outputs[request.rid]) for request in requests]
        return results[0] if single else results

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_mode: CacheMode | None = None,
        cache_salt: str = "",
    ) -> Iterator[RequestOutput]:  # fmt: skip
        """Outputs of one request as text is committed; `text` of each begins with the text of the one before.

        Closing the iterator early aborts the request.
        """
        (request,) = self._intake.requests([prompt], sampling_params, cache_mode, cache_salt)
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        self._submit([request], outputs.put)
        finished = False
        try:
            while not finished:
                output = _raised(outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._call(lambda: self._abort(request.rid))

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

        self._submit(requests, listen)
        try:
            outputs = await asyncio.gather(*futures.values())
        except asyncio.CancelledError:
            self._call(lambda: self._abort_all(requests))
            raise
        results = [_raised(output) for output in outputs]
        return results[0] if single else results

    async def async_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, cache_mode: CacheMode | None = None,
        cache_salt: str = "",
    ) -> AsyncIterator[RequestOutput]:  # fmt: skip
        """As `stream`, asynchronous."""
        (request,) = self._intake.requests([prompt], sampling_params, cache_mode, cache_salt)
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[RequestOutput] = asyncio.Queue()
        self._submit([request], lambda output: _post(loop, outputs.put_nowait, output))
        finished = False
        try:
            while not finished:
                output = _raised(await outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._call(lambda: self._abort(request.rid))

    def abort(self, rid: str) -> None:
        """End a request early; its caller gets an output with finish_reason `abort`. Unknown ids are ignored."""
        self._call(lambda: self._abort(rid))

    # The cache

    def flush_cache(self) -> None:
        """Drop every cached prefix. Raises TreeInUseError while requests run that share one."""

        def flush() -> None:
            memory = self._parts.scheduler.memory
            memory.tree.flush()
            memory.lm_tree.flush()

        self._call_and_wait(flush)

    def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data: nodes with tokens, depth, ratio, pages and hits."""
        return self._call_and_wait(self._parts.scheduler.memory.tree.snapshot)

    def render_cache(self) -> Any:
        """The radix tree as something `rich` can print."""
        return self._call_and_wait(self._parts.scheduler.memory.tree.render)

    def check(self) -> None:
        """Check the page accounting and the trees. Raises InvariantError with the numbers."""
        self._call_and_wait(self._parts.scheduler.check)

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
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.shutdown()

    # The engine's thread

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        scheduler = self._parts.scheduler
        try:
            while True:
                while not scheduler.has_work or not self._inbox.empty():
                    task = self._inbox.get()
                    if task is None:
                        self._end_all(EngineClosedError("the engine was shut down"))
                        return
                    task()
                for output in scheduler.step():
                    self._deliver(output)
        except Exception as error:
            logger.exception("the engine's loop failed")
            with self._state:
                self._closed = True
            self._end_all(EngineError(f"the engine's loop failed: {type(error).__name__}: {error}"))

    def _end_all(self, error: ShoalError) -> None:
        for rid, (request, listener) in list(self._listeners.items()):
            self._parts.scheduler.abort(rid)
            request.fail(error)
            listener(request.output())
        self._listeners.clear()
        while not self._inbox.empty():
            task = self._inbox.get()
            if task is not None:
                task()

    def _deliver(self, output: RequestOutput) -> None:
        if output.rid not in self._listeners:
            return
        _, listener = self._listeners[output.rid]
        if output.finished:
            del self._listeners[output.rid]
        listener(output)

    def _abort(self, rid: str) -> None:
        output = self._parts.scheduler.abort(rid)
        if output is not None:
            self._deliver(output)

    def _abort_all(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._abort(request.rid)

    def _submit(self, requests: Sequence[Request], listener: _Listener) -> None:
        def submit() -> None:
            for request in requests:
                self._listeners[request.rid] = (request, listener)
                try:
                    if self._closed:
                        raise EngineClosedError("the engine was shut down")
                    self._parts.scheduler.add(request)
                except ShoalError as error:
                    request.fail(error)
                    self._deliver(request.output())

        self._call(submit)

    def _call(self, task: Callable[[], Any]) -> None:
        with self._state:
            if self._closed:
                raise EngineClosedError("the engine was shut down")
            self._inbox.put(task)

    def _call_and_wait(self, task: Callable[[], Any]) -> Any:
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((task(), None))
            except Exception as error:
                done.put((None, error))

        self._call(run)
        value, error = done.get()
        if error is not None:
            raise error
        return value


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
