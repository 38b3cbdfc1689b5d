"""The service behind the HTTP layer: one asynchronous interface, in this process or over a pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..config import CacheMode
from ..request.field_names import DEFAULT_NAMES, FieldNames
from ..request.output import RequestOutput
from ..request.sampling_params import SamplingParams
from ..text.chat_markers import PLAIN
from ..text.parts import TextPart
from ..worker.trace import TraceOptions
from .stats import SchedulerStats

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or chat messages ({"role", "content"}) that the model's chat template renders."""

State = Literal["starting", "up", "draining", "dead"]

MAX_PRIORITY = 1 << 31
"""Largest priority that the HTTP layer lets a caller ask for, and its negative the smallest."""
PROBE_PRIORITY = -MAX_PRIORITY - 1
"""Below any client priority, so a probe never preempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateInput:
    """One request.

    Attributes:
        rid: its id, unique among the requests under way.
        prompt: text, token ids or chat messages.
        sampling: decoding parameters.
        cache_mode: None: the engine's default.
        cache_salt: requests share prefixes only with those of the same salt.
        priority: higher goes first, and may preempt running requests of lower priority.
        timeout_s: seconds from acceptance to the end; past it the request ends with finish_reason `abort` and a
            RequestTimeoutError. None: it may take any time.
        stream: whether outputs before the terminal one are wanted.
        canvas: a template: token ids, -1 for a mask; see `Engine.generate`. The outputs have `holes` then.
        shared_prefix: how many leading prompt tokens were computed on their own before.
        targets: (position in the canvas, token) pairs: a scoring request. The output has `scores`, and nothing else.
        names: the caller's names for prompt and canvas length, for errors.
    """

    rid: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cache_mode: CacheMode | None = None
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    stream: bool = True
    canvas: Sequence[int] | None = None
    shared_prefix: int = 0
    targets: Sequence[tuple[int, int]] | None = None
    names: FieldNames = DEFAULT_NAMES


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Whether requests are taken: only in state `up`. `reason` says in words why not."""

    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What runs here. Constant once the service is up.

    Attributes:
        model_path: as given; `model_folder` is its folder.
        architecture: `llada` or `dream`; `model` holds every field of ModelConfig.
        engine: every field of EngineConfig, and `device_in_use`, `dtype_in_use`.
        max_tokens: most prompt and canvas tokens of a request: the model's maximum or the pool's.
        block_length: default of the sampling parameter.
        depth_profile: as in `depth_profile.json`.
        has_tokenizer, has_chat_template: whether text and chat messages can be given.
        chat_markers: the template's text around each message of a chat, as ChatMarkers gives it.
    """

    model_path: str
    model_folder: str
    architecture: str
    model: dict[str, Any]
    engine: dict[str, Any]
    max_tokens: int
    block_length: int
    vocab_size: int
    mask_token_id: int
    eos_token_id: int
    depth_profile: dict[str, Any]
    has_tokenizer: bool
    has_chat_template: bool
    version: str
    chat_markers: dict[str, Any] = field(default_factory=PLAIN.to_json)


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

    async def tokenize(
        self,
        prompt: str | Sequence[TextPart] | Sequence[Message],
        add_special_tokens: bool = True,
        name: str = "prompt",
    ) -> list[int]:
        """Token ids of text, of text in parts, or of chat messages, called `name` in errors. Without
        `add_special_tokens` it is text inside a prompt: no BOS is added. Raises InvalidRequestError."""
        ...

    async def detokenize(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Raises InvalidRequestError."""
        ...

    async def flush_cache(self, timeout_s: float = 0.0) -> None:
        """Drop every cached prefix. Raises CacheInUseError, with nothing dropped, when requests are still under way
        after `timeout_s` seconds."""
        ...

    async def cache_snapshot(self) -> dict[str, Any]:
        """The radix tree as JSON-able data."""
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
