"""What every process of the pipeline has: what it was told at its start, its sockets, and a line to the client."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from ...radix_cache.errors import RadixCacheError
from ..config import EngineConfig
from ..errors import ShoalError
from ..request.facts import Facts
from .config import PipelineConfig
from .errors import pack_error
from .inbox import Inbox, Outbox
from .messages import Failed, Ready, Reply, Role, ToClient
from .sockets import Endpoints

SPARED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a supervisor's SIGTERM, the end of a terminal: they reach every process of a group, and when to stop is the
parent's decision. A process is started with them blocked: it may take a second until it can ignore them."""
FAILED = 1
"""Exit code of a process that has said why in a message of kind Failed."""
_LAST_WORDS_MS = 1000


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process is told at its start.

    Attributes:
        role: which one it is.
        directory: of the sockets.
        parent: process id of its parent.
        engine, pipeline: options.
        log_level, log_json: as in ServerConfig.
    """

    role: Role
    directory: str
    parent: int
    engine: EngineConfig
    pipeline: PipelineConfig
    log_level: str
    log_json: bool


class Child:
    """What every process has: its options, its sockets' directory and a line to the client."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.endpoints = Endpoints(spec.directory)
        self.context: zmq.Context[Any] = zmq.Context()
        self._client: Outbox[ToClient] = self.outbox("client", ToClient)

    @property
    def decoder_path(self) -> Any:
        """Where the tokenizer process leaves what the others need to turn tokens into text."""
        return self.endpoints.directory / "decoder.json"

    def inbox(self, name: str, messages: Any) -> Inbox[Any]:
        """The endpoint `name`, as its receiver."""
        return Inbox(self.endpoints, self.context, name, messages)

    def outbox(self, name: str, messages: Any) -> Outbox[Any]:
        """The endpoint `name`, as a sender."""
        return Outbox(self.endpoints, self.context, name, messages)

    def tell(self, message: ToClient) -> None:
        """Send a message to the client."""
        self._client.send(message)

    def ready(
        self, facts: Facts | None = None, has_tokenizer: bool = False, has_chat_template: bool = False,
        chat_markers: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Say that this process is ready."""
        self.tell(Ready(self.spec.role, facts, has_tokenizer, has_chat_template, chat_markers))

    def reply(self, number: int, answer: Callable[[], Any]) -> None:
        """Send what `answer` returns, or the shoal error that it raises, to whoever asked under `number`."""
        try:
            self.tell(Reply(number, answer()))
        except (ShoalError, RadixCacheError) as error:
            self.tell(Reply(number, error=pack_error(error)))

    def failed(self, error: BaseException) -> None:
        """Say that this process is about to end; waits a moment for the message to leave."""
        self._client.socket.setsockopt(zmq.LINGER, _LAST_WORDS_MS)
        self.tell(Failed(self.spec.role, pack_error(error)))
        self.context.destroy()
