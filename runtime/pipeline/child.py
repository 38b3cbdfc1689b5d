"""A process of the pipeline: how it starts, what it reports, and how it never outlives its parent.

Started by `Pipeline` as `python -m shoal.runtime.pipeline.child`. The parent writes one line of JSON (a `Spec`) to its
standard input and keeps that pipe open: when it closes, because the parent wants it or is gone, the process ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from ...radix_cache.errors import RadixCacheError
from ..config import EngineConfig
from ..errors import ShoalError
from ..logs import configure_logging
from ..request.facts import Facts
from .config import PipelineConfig
from .errors import pack_error
from .inbox import Inbox, Outbox
from .messages import Failed, Ready, Reply, Role, ToClient
from .sockets import Endpoints

logger = logging.getLogger(__name__)
SPARED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Ctrl-C, a supervisor's SIGTERM, the end of a terminal: they reach every process of a group, and when to stop is the
parent's decision. A process is started with them blocked: it may take a second until it can ignore them."""
FAILED = 1
"""Exit code of a process that has said why in a message of kind Failed."""
_PR_SET_PDEATHSIG = 1
_LAST_WORDS_MS = 1000
_REMOVE_SECONDS = 1.0


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


def main() -> None:
    """Run the role that standard input names; ends with code 0 when standard input closes, 1 after a failure.

    What fails once standard input has closed, because the sockets are gone say, is no failure.
    """
    for kind in SPARED_SIGNALS:
        signal.signal(kind, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SPARED_SIGNALS)
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(0)
    spec = msgspec.json.decode(line, type=Spec)
    _die_with_parent(spec)
    configure_logging(spec.log_level, spec.log_json, log_requests=False)
    child = Child(spec)
    try:
        child.endpoints.check()
        _run(child)
    except BaseException as error:
        if _is_unwanted():
            _end(spec)
        if not isinstance(error, ShoalError):
            logger.exception("the %s process failed", spec.role)
        child.failed(error)
        # Not sys.exit: threads of libraries may hold the interpreter up.
        sys.stderr.flush()
        os._exit(FAILED)


def _run(child: Child) -> None:
    """Heavy imports happen in the process that needs them: only the worker ever imports torch."""
    match child.spec.role:
        case "tokenizer":
            from .tokenizer import TokenizerProcess as Process
        case "scheduler":
            from .scheduler import SchedulerProcess as Process  # type: ignore[assignment]
        case "worker":
            from .worker import WorkerProcess as Process  # type: ignore[assignment]
        case "detokenizer":
            from .detokenizer import DetokenizerProcess as Process  # type: ignore[assignment]
    Process(child).run()


def _die_with_parent(spec: Spec) -> None:
    # The detokenizer is spared the signal: it clears the sockets' directory away when the parent was killed.
    if spec.role != "detokenizer" and sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != spec.parent:
        _end(spec)
    threading.Thread(target=_watch_parent, args=(spec,), name="shoal-lifeline", daemon=True).start()


def _is_unwanted() -> bool:
    """Whether standard input has closed; the thread that waits for it may not have seen it yet."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLHUP)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _watch_parent(spec: Spec) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _end(spec)


def _end(spec: Spec) -> None:
    """The parent has closed standard input, or is gone."""
    if spec.role == "detokenizer":
        endpoints, deadline = Endpoints(spec.directory), time.monotonic() + _REMOVE_SECONDS
        endpoints.remove()
        while endpoints.directory.exists() and time.monotonic() < deadline:  # the others may still be opening sockets
            time.sleep(0.01)
            endpoints.remove()
    os._exit(0)


if __name__ == "__main__":
    main()
