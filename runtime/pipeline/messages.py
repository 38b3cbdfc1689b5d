"""Messages between the processes of a pipeline, and their encoding: one closed union over msgpack, with a version.

Every socket has a `Codec` of its own that accepts the messages meant for it and nothing else. A frame that is too
large, malformed, of another version or of another kind is a WireError; nothing in a frame is ever executed.
"""

from __future__ import annotations

import math
from typing import Any, Generic, Literal, TypeVar, get_args

import msgspec
import numpy as np

from ..errors import WireError
from ..request.facts import Facts
from ..request.forward import AddRequest, Forward, Grow, MarkedResult, Release, StepResult
from ..request.input import Conversation, GenerateInput
from ..request.output import FinishReason, TokenLogprob
from ..request.snapshot import CanvasChange
from ..request.spec import RequestSpec
from ..request.trace_options import TraceOptions

VERSION: Literal[1] = 1
MAX_FRAME_BYTES = 64 << 20
Scalar = str | int | float | bool | None
Role = Literal["tokenizer", "scheduler", "worker", "detokenizer"]
ROLES: tuple[Role, ...] = get_args(Role)


def process_name(role: Role, rank: int = 0) -> str:
    """`worker` for rank 0, `worker-1` for the next; other roles have one process."""
    return f"{role}-{rank}" if rank else role


def process_names(tp_size: int) -> list[str]:
    """Names of a pipeline's processes."""
    return [*ROLES, *(process_name("worker", rank) for rank in range(1, tp_size))]


class _Message(msgspec.Struct, tag=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: arrays that begin with the name of their kind."""


class ErrorInfo(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A ShoalError in transit; `kind` is the name of its class."""

    kind: str
    message: str
    field: str | None = None
    value: Scalar = None
    limit: Scalar = None


class Begin(_Message):
    """Worker and tokenizer are ready: scheduler, detokenizer and intake can be built."""

    facts: Facts


class Generate(_Message):
    """A request as the client sent it, but for its rid, which is the pipeline's own. `arrival`: time.monotonic()."""

    request: GenerateInput
    arrival: float


class Accepted(_Message):
    """A request whose prompt is tokens and whose limits are checked."""

    spec: RequestSpec


class Abort(_Message):
    """End a request early."""

    rid: str


class AbortAll(_Message):
    """End every request; the scheduler answers with their number. The tokenizer ends those that it still holds and adds
    their number to `ended`.
    """

    number: int
    ended: int = 0


class Tokenize(_Message):
    """Answered with the token ids of text, of a chat, or of parts of a text, each marked as data or not.

    Errors call them `name`.
    """

    number: int
    text: str | None
    chat: Conversation | None
    add_special_tokens: bool = True
    parts: list[tuple[str, bool]] | None = None
    name: str = "prompt"


class Detokenize(_Message):
    """Answered with the text of token ids."""

    number: int
    token_ids: list[int]
    skip_special_tokens: bool


class Ask(_Message):
    """Answered by the scheduler; `alive` by the detokenizer, by way of the scheduler."""

    number: int
    what: Literal["stats", "snapshot", "flush", "alive"]


class Summarize(_Message):
    """Answered by the scheduler with hashes of the prefixes that it holds: see `Memory.summary`."""

    number: int
    stride: int
    limit: int


class Lookup(_Message):
    """What a request would reuse; the tokenizer makes a LookupSpec of it."""

    number: int
    request: GenerateInput


class LookupSpec(_Message):
    """As Lookup, its limits checked; answered by the scheduler with a CacheLookup's fields."""

    number: int
    spec: RequestSpec


class StartTrace(_Message):
    """To the worker, by way of tokenizer and scheduler; answered by the worker with the path of the file."""

    number: int
    options: TraceOptions


class StopTrace(_Message):
    """As StartTrace."""

    number: int


class Add(_Message):
    """To the worker: create a canvas."""

    request: AddRequest


class Lengthen(_Message):
    """To the worker: lengthen a page table."""

    grow: Grow


class Drop(_Message):
    """To the worker: forget canvases."""

    release: Release


class Run(_Message):
    """To the worker: run forwards; answered with `Results`."""

    forward: Forward


class Results(_Message):
    """From the worker, rank 0."""

    results: list[StepResult]


class MarkedResults(_Message):
    """As Results, when the denoising of some of the requests is watched: those have marks."""

    results: list[MarkedResult]


class Committed(_Message):
    """From each other rank of the worker, in place of `Results`: their digest (see `rank_check.py`)."""

    rank: int
    digest: int


class HolePiece(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A hole of a canvas as it is now; the detokenizer adds the text."""

    start: int
    stop: int
    tokens: list[int]
    text: str = ""


class Output(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Progress of one request: its tokens from `token_start` on and its text from `text_start` on are new.

    `text` None: the detokenizer makes it from the tokens. `logprobs` are those of `tokens`; the detokenizer adds their
    texts. The rest is as in RequestOutput.
    """

    rid: str
    token_start: int
    tokens: list[int]
    text_start: int
    text: str | None
    finish_reason: FinishReason | None
    matched_stop: int | str | None
    error: ErrorInfo | None
    prompt_tokens: int
    cached_tokens: int
    depth: int
    canvas_tokens: int
    nfe: int
    computed_token_layers: int
    prefix_refreshes: int
    preemptions: int
    queue_s: float
    first_text_s: float | None
    total_s: float
    holes: list[HolePiece] = []
    scores: list[float] = []
    logprobs: list[TokenLogprob | None] = []


def no_output(rid: str) -> Output:
    """The output of a request before its first forward."""
    return Output(
        rid=rid, token_start=0, tokens=[], text_start=0, text=None, finish_reason=None, matched_stop=None, error=None,
        prompt_tokens=0, cached_tokens=0, depth=0, canvas_tokens=0, nfe=0, computed_token_layers=0,
        prefix_refreshes=0, preemptions=0, queue_s=0.0, first_text_s=None, total_s=0.0,
    )  # fmt: skip


def aborted(rid: str) -> Output:
    """The terminal output of a request that was aborted before the scheduler had it."""
    return msgspec.structs.replace(no_output(rid), text="", finish_reason="abort")


class Outputs(_Message):
    """Progress of requests in one step."""

    outputs: list[Output]


class Denoised(_Message):
    """Changes of canvases by rid; sent before the `Outputs` of the same step, when anybody watches."""

    changes: dict[str, CanvasChange]


class Refused(_Message):
    """A request that was not accepted; no output follows."""

    rid: str
    error: ErrorInfo


class Reply(_Message):
    """Answer to Tokenize, Detokenize or Ask: plain data, or an error."""

    number: int
    value: Any = None
    error: ErrorInfo | None = None


class Ready(_Message):
    """A process is ready. The worker's (rank 0) has `facts`, the tokenizer's all else; `end_ids`: see
    `Tokenizer.end_ids`. `name`: see `process_name`.
    """

    name: str
    facts: Facts | None = None
    has_tokenizer: bool = False
    has_chat_template: bool = False
    chat_markers: dict[str, Any] | None = None
    end_ids: list[int] = msgspec.field(default_factory=list)


class Failed(_Message):
    """A process is about to end; says why."""

    role: Role
    error: ErrorInfo


ToTokenizer = (
    Begin | Generate | Abort | AbortAll | Tokenize | Detokenize | Ask | Summarize | Lookup | StartTrace | StopTrace
)
ToScheduler = Begin | Accepted | Abort | AbortAll | Ask | Summarize | LookupSpec | StartTrace | StopTrace
ToWorker = Add | Lengthen | Drop | Run | StartTrace | StopTrace
FromWorker = Results | MarkedResults | Committed
ToDetokenizer = Begin | Denoised | Outputs | Ask
ToClient = Denoised | Outputs | Refused | Reply | Ready | Failed

_M = TypeVar("_M")


class Envelope(msgspec.Struct, Generic[_M], array_like=True, frozen=True, forbid_unknown_fields=True):
    """A frame: the version, then the message."""

    version: Literal[1]
    message: _M


class Codec(Generic[_M]):
    """Encodes and decodes frames of one socket.

    Args:
        messages: the union of messages that it accepts.
        max_bytes: largest frame.
    """

    def __init__(self, messages: Any, max_bytes: int = MAX_FRAME_BYTES):
        self.max_bytes = max_bytes
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
        self._decoder = msgspec.msgpack.Decoder(Envelope[messages], dec_hook=_decode_array)

    def encode(self, message: _M) -> bytes:
        """The frame of a message. Raises WireError if it is too large or can't be encoded."""
        try:
            frame = self._encoder.encode(Envelope(VERSION, message))
        # A string may hold half a surrogate pair, an integer more than 64 bits.
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise WireError(f"a message can't be encoded: {error}", field=type(message).__name__) from error
        self._check(frame)
        return frame

    def decode(self, frame: bytes) -> _M:
        """The message in a frame. Raises WireError for anything that does not belong to this socket."""
        self._check(frame)
        try:
            message: _M = self._decoder.decode(frame).message
            return message
        except Exception as error:  # msgspec's, and whatever the checks of our own classes raise
            raise WireError(f"a frame of {len(frame)} bytes can't be read: {error}", field="frame") from error

    def _check(self, frame: bytes) -> None:
        if len(frame) > self.max_bytes:
            message = f"a frame has {len(frame)} bytes; the limit is {self.max_bytes}"
            raise WireError(message, field="frame", value=len(frame), limit=self.max_bytes)


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"{type(value).__name__} is no part of a message")


def _decode_array(kind: Any, value: Any) -> Any:
    """An array of the dtype that the field is annotated with; read-only."""
    dtype = np.dtype(get_args(get_args(kind)[1])[0])
    match value:
        case [[*shape], bytes() as data] if len(shape) <= 2 and all(type(n) is int and 0 <= n < 2**31 for n in shape):
            if math.prod(shape) * dtype.itemsize == len(data):
                return np.frombuffer(data, dtype).reshape(shape)
    raise ValueError(f"no array of {dtype}")
