"""What a program runs on: one small protocol, implemented over an engine in this process and over a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..runtime.request.sampling_params import SamplingParams
from ..runtime.text.chat_markers import ChatMarkers
from ..runtime.text.parts import TextPart


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        tokens: the prompt.
        sampling: decoding parameters; `given` names those that the program set (a server fills in its own defaults
            for the rest).
        canvas: a template (-1 for a mask), or None.
        shared_prefix: how many leading tokens were warmed on their own.
    """

    tokens: tuple[int, ...]
    sampling: SamplingParams
    given: tuple[str, ...] = ()
    canvas: tuple[int, ...] | None = None
    shared_prefix: int = 0


@dataclass(frozen=True, slots=True)
class Filled:
    """One hole of a canvas: its text and tokens, trimmed."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to a call, or what is committed of it so far.

    `meta` holds id, finish_reason (a dict with `type` and perhaps `matched`), prompt_tokens, completion_tokens,
    cached_tokens, depth, nfe, reused_token_layers and computed_token_layers.
    """

    text: str
    token_ids: tuple[int, ...]
    meta: dict[str, Any]
    holes: tuple[Filled, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of choices: for each, one for each of its tokens (runtime/request/scoring.py has the formulas)."""

    token_scores: tuple[tuple[float, ...], ...]
    meta: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Everything is awaited in the driver's thread. Failures raise ShoalError (a server's: ServerError)."""

    async def encode(self, parts: Sequence[TextPart], first: bool) -> list[int]:
        """Token ids of parts as one text; `first`: it begins the prompt (a tokenizer may add a BOS token there)."""
        ...

    async def markers(self) -> ChatMarkers:
        """What stands around the messages of a chat."""
        ...

    async def generate(self, call: Call) -> Reply:
        """Run a call to its end."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[Reply, None]:
        """Replies as text is committed; texts only grow. The last one is the end."""
        ...

    async def score(
        self, tokens: Sequence[int], choices: Sequence[Sequence[int]], method: str, shared_prefix: int
    ) -> Scored:
        """Score choices behind a prompt."""
        ...

    async def warm(self, tokens: Sequence[int]) -> dict[str, Any] | None:
        """Compute and cache a prefix on its own; figures of what that took (none: it was warm). None: nothing would be
        reused, or not to its end."""
        ...

    async def pin(self, tokens: Sequence[int]) -> bool:
        """Keep a cached prefix until `unpin`, where the backend can; whether it does."""
        ...

    async def unpin(self, tokens: Sequence[int]) -> None:
        """Undo a `pin`; never fails."""
        ...

    async def unconditional(self) -> tuple[int, ...]:
        """The prompt that stands for no prompt: the EOS token."""
        ...

    async def server_info(self) -> dict[str, Any]:
        """What runs there: model_path, cache_mode, max_tokens and more."""
        ...

    async def flush_cache(self) -> None:
        """Drop every cached prefix."""
        ...
