"""A server in this process whose answers are written in the test: for what routes make of answers."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx2

from shoal.runtime.errors import EngineError
from shoal.runtime.http.app import create_app
from shoal.runtime.http.config import ServerConfig
from shoal.runtime.request.input import Conversation, GenerateInput
from shoal.runtime.request.output import RequestOutput, Timings
from shoal.runtime.service.service import ServiceStatus
from shoal.runtime.text.tokenizer import Tokenizer

from ..text.templates import HERMES, QUIET, with_template

URL = "http://127.0.0.1"


class Scripted:
    """Gives the texts of `answers` in turn, `pieces` characters at a time; keeps what it was asked.

    An answer ends with `stop`, by a stop string of its request, or, if it ends with `~`, with `length`; with `^` it
    fails.
    """

    status = ServiceStatus("up")

    def __init__(self, tokenizer: Tokenizer, *answers: str, pieces: int = 3):
        self.tokenizer = tokenizer
        self._answers = list(answers)
        self._pieces = pieces
        self.asked: list[GenerateInput] = []
        self.info: Any = types.SimpleNamespace(
            max_tokens=4096, block_length=32, block_length_source="", generation={}, model_path="scripted",
            mask_token_id=7,
            engine={"max_running_requests": 4, "cache_mode": "bicache", "block_length": None},
        )  # fmt: skip

    def prompt(self, index: int = -1) -> str:
        """The prompt of a request, as text with its control tokens."""
        return self.tokenizer.decode(self.ids(self.asked[index].prompt), skip_special_tokens=False)

    async def generate(self, request: GenerateInput) -> AsyncGenerator[RequestOutput, None]:
        """See Service."""
        self.asked.append(request)
        count = len(self.ids(request.prompt))
        answer = self._answers.pop(0)
        endings = {"~": "length", "^": "error"}
        reason = endings.get(answer[-1:], "stop")
        whole = answer if reason == "stop" else answer[:-1]
        matched = next((stop for stop in request.sampling.stop if stop in whole), None)
        if matched is not None:
            whole, reason = whole.partition(matched)[0], "stop"
        for end in range(0, len(whole), self._pieces):
            yield _output(request, whole[:end], None, None, count)
            for _ in range(20):  # turns of the loop, for whoever reads
                await asyncio.sleep(0)
        yield _output(request, whole, reason, matched, count)

    async def tokenize(self, prompt: Any, add_special_tokens: bool = True, name: str = "prompt") -> list[int]:
        """See Service."""
        return self.ids(prompt)

    async def abort(self, rid: str | None = None) -> int:
        """See Service."""
        return 0

    def ids(self, prompt: Any) -> list[int]:
        """Tokens of a prompt."""
        if isinstance(prompt, Conversation):
            return self.tokenizer.apply_chat_template(prompt)
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _output(request: GenerateInput, text: str, reason: Any, matched: str | None, prompt_tokens: int) -> RequestOutput:
    tokens = tuple(range(len(text)))
    error = EngineError("the worker failed") if reason == "error" else None
    return RequestOutput(
        request.rid, text, tokens, reason, matched, error, prompt_tokens=prompt_tokens, completion_tokens=len(tokens),
        cached_tokens=2, depth=1, canvas_tokens=len(tokens), nfe=3, reused_token_layers=2, computed_token_layers=5,
        prefix_refreshes=1, timings=Timings(0.0, 0.1, 0.2),
    )  # fmt: skip


def transport(service: Scripted, **options: Any) -> httpx2.ASGITransport:
    """What sends an HTTP client's requests to a server over `service`."""
    app = create_app(service, ServerConfig(**options), "scripted")  # type: ignore[arg-type]
    app.state.server.warm = True
    return httpx2.ASGITransport(app=app)


def http_client(service: Scripted, **options: Any) -> httpx2.AsyncClient:
    """An HTTP client of such a server; official clients take it as `http_client`."""
    return httpx2.AsyncClient(transport=transport(service, **options), base_url=URL)


def kinds(events: Sequence[Any]) -> list[str]:
    """Types of events, each run of one type once."""
    types_ = [event.type for event in events]
    return [kind for i, kind in enumerate(types_) if not i or types_[i - 1] != kind]


def hermes() -> Tokenizer:
    """A tokenizer whose chat template takes tools."""
    return with_template(HERMES)


def quiet() -> Tokenizer:
    """A tokenizer whose chat template leaves out what it does not know."""
    return with_template(QUIET)
