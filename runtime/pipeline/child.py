"""What every process of the pipeline has: its start options, its sockets, and a line to the client."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
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
from .messages import Failed, Ready, Reply, Role, ToClient, process_name
from .sockets import Endpoints

SPARED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a supervisor's SIGTERM and the end of a terminal reach every process of a group, but the parent decides when
to stop. A child starts with them blocked, because it takes up to a second until it can ignore them.
"""
FAILED = 1
"""Exit code of a process that has sent its reason as a Failed message."""
_LAST_WORDS_MS = 1000


@dataclass(frozen=True, slots=True)
class Spec:
    """A child's start options.

    Attributes:
        role: which one it is; rank: which one of the worker's ranks.
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
    rank: int = 0

    @property
    def name(self) -> str:
        """See `process_name`."""
        return process_name(self.role, self.rank)


class Child:
    """What every child has: its options, the sockets' directory and a line to the client."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.endpoints = Endpoints(spec.directory)
        self.context: zmq.Context[Any] = zmq.Context()
        self._client: Outbox[ToClient] = self.outbox("client", ToClient)

    @property
    def decoder_path(self) -> Any:
        """File in which the tokenizer process saves the decoder for the other processes."""
        return self.endpoints.directory / "decoder.json"

    @property
    def rendezvous(self) -> Any:
        """File over which the worker's ranks find each other."""
        return self.endpoints.directory / "ranks"

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
        chat_markers: dict[str, Any] | None = None, end_ids: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Say that this process is ready."""
        self.tell(Ready(self.spec.name, facts, has_tokenizer, has_chat_template, chat_markers, list(end_ids)))

    def reply(self, number: int, answer: Callable[[], Any]) -> None:
        """Answer question `number` with the result of `answer`, or with the shoal error that it raises."""
        try:
            self.tell(Reply(number, answer()))
        except (ShoalError, RadixCacheError) as error:
            self.tell(Reply(number, error=pack_error(error)))

    def failed(self, error: BaseException) -> None:
        """Say that this process is about to end; waits a moment for the message to leave."""
        self._client.socket.setsockopt(zmq.LINGER, _LAST_WORDS_MS)
        self.tell(Failed(self.spec.role, pack_error(error)))
        self.context.destroy()
