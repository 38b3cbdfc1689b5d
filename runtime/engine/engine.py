"""`Engine`: the scheduler and the worker in this process, for notebooks, batch jobs, tests and the CPU."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Unpack, cast, overload

from ...radix_cache.errors import LockError
from ...radix_cache.node import Namespace
from ..config import EngineConfig
from ..errors import ConfigError, InvalidRequestError, shorten
from ..request.input import GenerateInput, Prompt
from ..request.output import RequestOutput
from ..request.request import Request
from ..request.sampling_params import SamplingParams
from ..request.scoring import ScoreMethod, ScoreOutput
from ..text.chat_markers import ChatMarkers
from ..text.parts import TextPart
from .build import Parts
from .core import EngineCore
from .inputs import RequestOptions, ScoreOptions, inputs_of, is_single
from .loop import Listener
from .mailbox import AsyncMailbox, Mailbox
from .score_groups import WARM_UP, score_groups

logger = logging.getLogger(__name__)
DEFAULT_SCORE_METHOD: ScoreMethod = "pseudo"


class Engine:
    """Runs requests on one model, with prefix reuse across them.

    A thread of the engine's own drives the scheduler; every method may be called from any thread. Outputs of a list of
    prompts come in its order. Use it as a context manager, or call `shutdown`.

    A child made by `fork` (`os.fork`, a `multiprocessing` pool) inherits the engine without its thread. There, whatever
    needs the thread raises EngineClosedError and `shutdown` does nothing; the parent's engine goes on. On a CPU the
    child can make an engine of its own.

    Args:
        model: `shop` (the bundled model), a model folder, or a hub id; or give an EngineConfig as `config`.
        parts: of `build_parts(config)`, in place of those that it would build; for measurements and tests.
        options: any other field of EngineConfig.
    """

    def __init__(
        self, model: str | None = None, *, config: EngineConfig | None = None, parts: Parts | None = None,
        **options: Any,
    ):  # fmt: skip
        if config is not None and (model is not None or options):
            raise ConfigError("give either config or options, not both", field="config", value=sorted(options))
        if config is not None and not isinstance(config, EngineConfig):
            raise ConfigError(f"config is {shorten(config)}; it must be an EngineConfig", field="config", value=config)
        if model is not None:
            options["model_path"] = str(model)
        self.config = config or EngineConfig.build(**options)
        self.core = EngineCore(self.config, parts)
        self._loop = self.core.loop

    @property
    def default_sampling_params(self) -> SamplingParams:
        """Of prompts for which none are given: generation_config.json's, else 1,024 new tokens or, with a
        canvas_window, as many as the model allows; less where no more fit."""
        facts = self.core.parts.facts
        default = facts.default_sampling
        if self.core.config.canvas_window is None or "max_new_tokens" in facts.generation:
            return default
        return replace(default, max_new_tokens=facts.max_tokens)  # a canvas that grows costs what is written

    # Generation

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is also a sequence of texts
        self, prompts: Prompt, sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        on_output: Listener | None = None, **options: Unpack[RequestOptions],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    def generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *,
        on_output: Listener | None = None, **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]: ...  # fmt: skip

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        on_output: Listener | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput | list[RequestOutput]:
        """Generate for one prompt (returns a RequestOutput) or for a list of them (returns a list, in order).

        All prompts are checked before any runs: InvalidRequestError or PoolTooSmallError name the field and the
        limit. A request that fails later raises its error here, after the others are done. `on_output` is called in
        the engine's thread with every terminal output as it comes; what it raises is logged. `options`: see
        RequestOptions.
        """
        requests, single = self._requests(prompts, sampling_params, options)
        results = [_raised(output) for output in self._run(requests, on_output)]
        return results[0] if single else results

    def _requests(self, prompts: Any, sampling_params: Any, options: RequestOptions) -> tuple[list[Request], bool]:
        if options.get("stream_mode", "text") != "text":
            message = f"stream_mode is {options['stream_mode']!r}; call stream or async_stream for snapshots"
            raise InvalidRequestError(message, field="stream_mode", value=options["stream_mode"], limit="text")
        single = is_single(prompts)
        if single:
            return [self._request(prompts, sampling_params, options)], True
        return self.core.take(inputs_of(prompts, sampling_params, self.default_sampling_params, **options)), False

    def _request(self, prompt: Prompt, sampling_params: Any, options: RequestOptions) -> Request:
        """As `_requests`, of what is one prompt whatever it looks like."""
        if options.get("canvas") is not None:
            options = {**options, "canvas": cast(Any, [options["canvas"]])}
        return self.core.take(inputs_of([prompt], sampling_params, self.default_sampling_params, **options))[0]

    def _run(self, requests: list[Request], on_output: Listener | None = None) -> list[RequestOutput]:
        """Terminal outputs of requests, in their order."""
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
        return [outputs[request.rid] for request in requests]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> Generator[RequestOutput, None, None]:
        """Outputs of one request as text is committed; `text` of each begins with the text of the one before.

        With `stream_mode="denoise"` an output comes after every commit, each with a `snapshot` of the canvas.
        Closing the iterator early aborts the request.
        """
        request = self._request(prompt, sampling_params, options)
        outputs = Mailbox()
        self._loop.submit([request], outputs.put)
        finished = False
        try:
            while not finished:
                self._loop.check_process()
                output = _raised(outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._loop.abort([request.rid])

    @overload
    async def async_generate(  # type: ignore[overload-overlap]  # as `generate`
        self, prompts: Prompt, sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput: ...  # fmt: skip

    @overload
    async def async_generate(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]: ...  # fmt: skip

    async def async_generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput | list[RequestOutput]:
        """As `generate`, awaitable; cancelling it aborts its requests."""
        requests, single = self._requests(prompts, sampling_params, options)
        results = [_raised(output) for output in await self._async_run(requests)]
        return results[0] if single else results

    async def _async_run(self, requests: list[Request]) -> list[RequestOutput]:
        """As `_run`."""
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[RequestOutput]] = {r.rid: loop.create_future() for r in requests}

        def listen(output: RequestOutput) -> None:
            if output.finished:
                _post(loop, _resolve, futures[output.rid], output)

        self._loop.submit(requests, listen)
        try:
            return list(await asyncio.gather(*futures.values()))
        except asyncio.CancelledError:
            self._loop.abort([request.rid for request in requests])
            raise

    async def async_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `stream`, asynchronous."""
        request = self._request(prompt, sampling_params, options)
        loop = asyncio.get_running_loop()
        outputs = AsyncMailbox()
        self._loop.submit([request], lambda output: _post(loop, outputs.put, output))
        finished = False
        try:
            while not finished:
                self._loop.check_process()
                output = _raised(await outputs.get())
                finished = output.finished
                yield output
        finally:
            if not finished:
                self._loop.abort([request.rid])

    def score(
        self,
        prompt: Prompt,
        choices: Sequence[str | Sequence[int]],
        method: ScoreMethod = DEFAULT_SCORE_METHOD,
        **options: Unpack[ScoreOptions],
    ) -> ScoreOutput:
        """How probable each of `choices` (texts or token ids) is behind the prompt; see runtime/request/scoring.py.

        Raises InvalidRequestError for no choices, an empty one, an unknown method, and all that `generate` refuses.
        """
        plan, groups = score_groups(self.core.intake, prompt, choices, method, options)
        done = [_raised(output) for specs in groups for output in self._run(self.core.open(specs))]
        warm = len(done) - plan.num_forwards
        return plan.gather(done[warm:], done[:warm])

    async def async_score(
        self,
        prompt: Prompt,
        choices: Sequence[str | Sequence[int]],
        method: ScoreMethod = DEFAULT_SCORE_METHOD,
        **options: Unpack[ScoreOptions],
    ) -> ScoreOutput:
        """As `score`, awaitable."""
        plan, groups = score_groups(self.core.intake, prompt, choices, method, options)
        done = [_raised(output) for specs in groups for output in await self._async_run(self.core.open(specs))]
        warm = len(done) - plan.num_forwards
        return plan.gather(done[warm:], done[:warm])

    def abort(self, rid: str) -> None:
        """End a request early; its caller gets an output with finish_reason `abort`.

        Ids of requests that have ended, or never were, are ignored.
        """
        self._loop.abort([rid])

    # The cache

    def pin(self, prompt: Prompt, *, cache_salt: str = "") -> int:
        """Keep a prompt's prefix cached until `unpin`, computing it now if it is not cached; for mode `bicache`.

        Returns how many of its tokens are kept: whole pages, fewer where the depth profile allows no reuse or memory
        was short. Pins count: pin twice, unpin twice. Raises what `generate` raises for a prompt.
        """
        tokens = self.core.intake.encode(prompt, "prompt")
        tree, namespace = self.core.parts.scheduler.memory.tree, self._namespace(cache_salt)
        whole = len(tokens) // self.page_size * self.page_size
        if self.cached_tokens(tokens, cache_salt=cache_salt) < whole:
            warm_up = GenerateInput(prompt=tokens, sampling=WARM_UP, cache_mode="bicache", cache_salt=cache_salt)
            _raised(*self._run(self.core.take([warm_up])))
        return self._loop.call_and_wait(lambda: tree.pin(tokens, namespace))

    def cached_tokens(self, prompt: Prompt, *, cache_salt: str = "") -> int:
        """How many leading tokens of a prompt are cached (whole pages), for mode `bicache`; changes nothing."""
        tokens = self.core.intake.encode(prompt, "prompt")
        tree, namespace = self.core.parts.scheduler.memory.tree, self._namespace(cache_salt)
        return self._loop.call_and_wait(lambda: tree.match(tokens, namespace, touch=False).num_tokens)

    def unpin(self, prompt: Prompt, *, cache_salt: str = "") -> None:
        """Undo one `pin` of the same prompt. Raises InvalidRequestError when it is not pinned (or was flushed)."""
        tokens = self.core.intake.encode(prompt, "prompt")
        tree, namespace = self.core.parts.scheduler.memory.tree, self._namespace(cache_salt)
        try:
            self._loop.call_and_wait(lambda: tree.unpin(tokens, namespace))
        except LockError as error:
            raise InvalidRequestError("prompt is not pinned", field="prompt", value=len(tokens)) from error

    @contextmanager
    def pinned(self, prompt: Prompt, *, cache_salt: str = "") -> Generator[int, None, None]:
        """`pin` for the length of a `with` block, which gets the number of tokens kept."""
        kept = self.pin(prompt, cache_salt=cache_salt)
        try:
            yield kept
        finally:
            if kept:
                self.unpin(prompt, cache_salt=cache_salt)

    def _namespace(self, cache_salt: str) -> Namespace:
        return Namespace(cache_salt, self.core.parts.scheduler.memory.profile.capture)

    def flush_cache(self) -> None:
        """Drop every cached prefix. Raises CacheInUseError, with nothing dropped, while running requests share one."""
        self._loop.call_and_wait(self.core.parts.scheduler.memory.flush)

    def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data: nodes with tokens, depth, ratio, pages and hits."""
        return self._loop.call_and_wait(self.core.parts.scheduler.memory.tree.snapshot)

    def render_cache(self) -> Any:
        """The radix tree as something `rich` can print."""
        return self._loop.call_and_wait(self.core.parts.scheduler.memory.tree.render)

    def check(self) -> None:
        """Check the page accounting and the trees. Raises InvariantError with the numbers."""
        self._loop.call_and_wait(self.core.parts.scheduler.check)

    @property
    def page_size(self) -> int:
        """Token positions of a page."""
        return self.core.parts.facts.page_size

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; None with dummy weights."""
        return self.core.parts.tokenizer

    @property
    def depth_profile(self) -> Any:
        """The depth profile in use, rounded to whole bands."""
        return self.core.parts.profile

    @property
    def model_config(self) -> Any:
        """Shapes of the model."""
        return self.core.parts.decoder.config

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt. Without `add_special_tokens` it is text inside a prompt: no BOS is added.

        Raises InvalidRequestError for what is no prompt, or has no tokens.
        """
        if add_special_tokens or not isinstance(prompt, str):
            return self.core.intake.encode(prompt, "prompt")
        return self.core.intake.encode_text(prompt, "prompt", False)

    def encode_parts(self, parts: Sequence[TextPart], *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of parts as one text: those that are data give no special token. Raises InvalidRequestError."""
        return self.core.intake.encode_text(parts, "parts", add_special_tokens)

    def chat_markers(self) -> ChatMarkers:
        """What the chat template puts around each message. Raises ModelLoadError, naming it, when it is broken."""
        return self.core.chat_markers()

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
