"""`Engine`: the scheduler and the worker in this process, for notebooks, batch jobs, tests and the CPU."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from .build import Parts, build_parts
from .engine_config import EngineConfig
from .errors import EngineClosedError, EngineError, InvalidRequestError, ShoalError, shorten
from .request import CACHE_MODES, CacheMode, Request, RequestOutput
from .sampling_params import SamplingParams
from .text_stream import TextStream

logger = logging.getLogger(__name__)
Prompt = str | Sequence[int] | Sequence[dict[str, str]]
"""Text, token ids, or chat messages ({"role", "content"}) that the model's chat template renders."""

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
        self._threads = torch.get_num_threads()
        self._listeners: dict[str, tuple[Request, _Listener]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ids = itertools.count()
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
        single = _is_single(prompts)
        requests = self._requests([prompts] if single else prompts, sampling_params, cache_mode, cache_salt)
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
        (request,) = self._requests([prompt], sampling_params, cache_mode, cache_salt)
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
        single = _is_single(prompts)
        requests = self._requests([prompts] if single else prompts, sampling_params, cache_mode, cache_salt)
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
        (request,) = self._requests([prompt], sampling_params, cache_mode, cache_salt)
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

    # Requests

    def _requests(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        cache_mode: CacheMode | None,
        cache_salt: str,
    ) -> list[Request]:
        prompts = list(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        if len(params) != len(prompts):
            message = f"sampling_params has {len(params)} entries for {len(prompts)} prompts"
            raise InvalidRequestError(message, field="sampling_params", value=len(params), limit=len(prompts))
        mode = cache_mode or self.config.cache_mode
        if mode not in CACHE_MODES:
            limit = ", ".join(CACHE_MODES)
            raise InvalidRequestError(
                f"cache_mode is {shorten(mode)}; it must be one of {limit}", field="cache_mode", value=mode, limit=limit
            )
        if not isinstance(cache_salt, str):
            raise InvalidRequestError("cache_salt must be a string", field="cache_salt", value=cache_salt)
        return [self._request(p, s, mode, cache_salt, i) for i, (p, s) in enumerate(zip(prompts, params, strict=True))]

    def _request(self, prompt: Any, params: SamplingParams, mode: CacheMode, salt: str, index: int) -> Request:
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params[{index}] is {shorten(params)}; it must be a SamplingParams",
                field="sampling_params", value=params,
            )  # fmt: skip
        params.check_for(self._parts.block_length)
        tokens = self._encode(prompt, f"prompts[{index}]")
        block_length = params.block_length or self._parts.block_length
        request = Request(
            rid=f"{next(self._ids)}-{secrets.token_hex(4)}",
            prompt=tokens,
            sampling=params,
            cache_mode=mode,
            cache_salt=salt,
            block_length=block_length,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            stream=TextStream(self._parts.tokenizer, params.stop),
        )
        limit = self._parts.decoder.config.max_position_embeddings
        if request.total_tokens > limit:
            message = (
                f"prompts[{index}] has {len(tokens)} tokens and its canvas {request.canvas_length} (max_new_tokens): "
                f"{request.total_tokens}, over the model's maximum of {limit}"
            )
            raise InvalidRequestError(message, field="max_new_tokens", value=request.total_tokens, limit=limit)
        self._parts.scheduler.check_fits(len(tokens), request.canvas_length)
        return request

    def _encode(self, prompt: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        tokenizer = self._parts.tokenizer
        vocabulary = self._parts.decoder.config.embedding_size
        if isinstance(prompt, str) or (prompt and all(isinstance(part, dict) for part in prompt)):
            if tokenizer is None:
                raise InvalidRequestError(f"{name}: without a tokenizer, prompts must be token ids", field="prompts")
            ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.apply_chat_template(prompt)
        elif all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in prompt):
            ids = [int(token) for token in prompt]
        else:
            message = f"{name} is {shorten(prompt)}; it must be text, token ids or chat messages"
            raise InvalidRequestError(message, field="prompts", value=prompt)
        if not ids:
            raise InvalidRequestError(f"{name} is empty; it must have at least one token", field="prompts", limit=1)
        if min(ids) < 0 or max(ids) >= vocabulary:
            bad = next(token for token in ids if not 0 <= token < vocabulary)
            message = f"{name} has token id {bad}; ids must be at least 0 and below {vocabulary}"
            raise InvalidRequestError(message, field="prompts", value=bad, limit=vocabulary)
        return np.array(ids, np.int64)

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


def _is_single(prompts: Any) -> bool:
    """Whether `prompts` is one prompt: text, token ids, or the messages of one chat."""
    if isinstance(prompts, str):
        return True
    first = next(iter(prompts), None)
    return isinstance(first, int | np.integer | dict)


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
