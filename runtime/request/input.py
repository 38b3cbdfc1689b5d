"""What a caller asks for, before there are tokens: prompts, and everything that goes with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..config import CacheMode
from ..text.conversation import Conversation, Message
from ..text.parts import TextPart
from .field_names import DEFAULT_NAMES, FieldNames
from .sampling_params import SamplingParams
from .snapshot import StreamMode

__all__ = ["Conversation", "GenerateInput", "Message", "Prompt", "TextPrompt"]

Prompt = str | Sequence[int | Message] | Conversation
"""Text, token ids, or what the model's chat template renders: messages ({"role", "content"}), or a Conversation."""
TextPrompt = str | Sequence[TextPart] | Sequence[Message] | Conversation
"""Text, text in parts, or what the model's chat template renders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateInput:
    """One request, as it was asked for; intake makes a RequestSpec of it.

    Attributes:
        prompt: text, token ids, chat messages or a Conversation.
        rid: its id, unique among the requests in flight; empty: intake makes one.
        sampling: decoding parameters.
        cache_mode: None: the engine's default.
        cache_salt: requests share prefixes only with those of the same salt.
        priority: higher goes first, and may preempt running requests of lower priority.
        timeout_s: seconds from acceptance to the end, less `waited_s`; past it the request ends with finish_reason
            `abort` and a RequestTimeoutError. None: it may take any time.
        waited_s: seconds of `timeout_s` that had passed before, since the caller's own request came.
        stream: whether outputs before the terminal one are wanted.
        stream_mode: `denoise`: all outputs have a `snapshot` of the canvas.
        canvas: a template: token ids, -1 for a mask; see `Engine.generate`. The outputs have `holes` then.
        shared_prefix: how many leading prompt tokens were computed on their own before.
        targets: (position in the canvas, token) pairs: a scoring request. The output has `scores`, and nothing else.
        names: the caller's names for prompt and canvas length, for errors.
    """

    prompt: Prompt
    rid: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cache_mode: CacheMode | None = None
    cache_salt: str = ""
    priority: int = 0
    timeout_s: float | None = None
    waited_s: float = 0.0
    stream: bool = True
    stream_mode: StreamMode = "text"
    canvas: Sequence[int] | None = None
    shared_prefix: int = 0
    targets: Sequence[tuple[int, int]] | None = None
    names: FieldNames = DEFAULT_NAMES
