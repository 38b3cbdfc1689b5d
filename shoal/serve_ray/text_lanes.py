"""Tokenizing in a gateway: in threads, so that its event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..runtime.config import EngineConfig
from ..runtime.model.hub import resolve_model_folder
from ..runtime.model.settings import load_tokenizer
from ..runtime.request.facts import Facts
from ..runtime.request.input import Conversation
from ..runtime.request.intake import Intake
from ..runtime.text.parts import TextPart, strings

_LONG_TEXT = 65536
"""Length from which a text is tokenized in the thread for long texts: about 50 ms."""
_T = TypeVar("_T")


class TextLanes:
    """Three threads, each with a tokenizer of its own, since threads can't share one: for short texts, for long ones,
    and for templates that came with a request.

    Args:
        config: of the engine.
        facts: of its model, from a replica.
    """

    def __init__(self, config: EngineConfig, facts: Facts):
        self._config, self._facts = config, facts
        self._own = threading.local()
        self._short, self._long, self._templates = (
            ThreadPoolExecutor(1, f"shoal-{name}") for name in ("texts", "long-texts", "templates")
        )

    async def prepare(self) -> None:
        """Load the tokenizer for short texts now. Raises ModelLoadError."""
        await self._in(self._short, lambda intake: None)

    async def encode(self, prompt: Any, add_special_tokens: bool, name: str) -> list[int]:
        """See `Service.tokenize`."""
        lane = self._short
        if isinstance(prompt, Conversation) and prompt.template is not None:
            lane = self._templates
        elif _length(prompt) > _LONG_TEXT:
            lane = self._long
        return await self._in(lane, lambda intake: intake.encode_text(prompt, name, add_special_tokens))

    async def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """See `Service.detokenize`."""
        return await self._in(self._short, lambda intake: intake.decode(token_ids, skip_special_tokens))

    async def _in(self, lane: ThreadPoolExecutor, work: Callable[[Intake], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(lane, lambda: work(self._intake()))

    def _intake(self) -> Intake:
        """This thread's."""
        if not hasattr(self._own, "intake"):
            # Not the replica's folder: that may be on another machine.
            tokenizer = load_tokenizer(self._config, resolve_model_folder(self._config.model_path))
            self._own.intake = Intake(self._config, self._facts, tokenizer)
        intake: Intake = self._own.intake
        return intake

    def close(self) -> None:
        """Let go of the threads; what they work on ends by itself."""
        for lane in (self._short, self._long, self._templates):
            lane.shutdown(wait=False, cancel_futures=True)


def _length(prompt: Any) -> int:
    """Characters of the texts in a prompt."""
    if isinstance(prompt, Conversation):
        prompt = [prompt.messages, prompt.tools, prompt.template_kwargs]
    elif prompt and isinstance(prompt[0], TextPart):
        prompt = [part.text for part in prompt]
    return sum(map(len, strings(prompt)))
