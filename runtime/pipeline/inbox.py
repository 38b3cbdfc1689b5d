"""A receiving socket: decodes frames; logs and drops invalid ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import zmq

from ..errors import WireError
from .messages import Codec
from .sockets import Endpoints

logger = logging.getLogger(__name__)
_M = TypeVar("_M")


class Inbox(Generic[_M]):
    """The receiving end of one of the pipeline's endpoints.

    Args:
        endpoints, context: directory and ZMQ context.
        name: of the endpoint.
        messages: the union of messages that belong there.
    """

    def __init__(self, endpoints: Endpoints, context: zmq.Context[Any], name: str, messages: Any):
        self.name = name
        self.socket = endpoints.pull(context, name)
        self.bad_frames = 0
        self._codec: Codec[_M] = Codec(messages)

    @property
    def fileno(self) -> int:
        """File descriptor for an event loop. It is edge-triggered: `drain` everything whenever it is readable."""
        return int(self.socket.getsockopt(zmq.FD))

    def receive(self) -> _M:
        """The next message; waits for it."""
        while True:
            message = self._read(self.socket.recv())
            if message is not None:
                return message

    def is_quiet(self, seconds: float) -> bool:
        """Whether no message arrives for so long; returns as soon as one does."""
        return not self.socket.poll(round(1000 * seconds))

    def drain(self, handle: Callable[[_M], object], has_room: Callable[[], bool] = lambda: True) -> None:
        """Pass every message that has arrived to `handle`, while there is room for more; does not wait."""
        while has_room():
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._read(frame)
            if message is not None:
                handle(message)

    def _read(self, frame: bytes) -> _M | None:
        try:
            return self._codec.decode(frame)
        except WireError as error:
            self.bad_frames += 1
            logger.error("%s: %s", self.name, error.message)
            return None


class Outbox(Generic[_M]):
    """The sending end of one of the pipeline's endpoints.

    Args:
        endpoints, context, name: as for Inbox.
        messages: the union of messages that belong there.
    """

    def __init__(self, endpoints: Endpoints, context: zmq.Context[Any], name: str, messages: Any):
        self.socket = endpoints.push(context, name)
        self._codec: Codec[_M] = Codec(messages)

    def send(self, message: _M) -> None:
        """Send; waits while the receiver is too far behind. Raises WireError when the message can't be sent."""
        self.socket.send(self._codec.encode(message))

    def send_nowait(self, message: _M) -> bool:
        """Send, unless the receiver is too far behind; returns whether it was sent.

        Raises WireError if the message can't be sent or its receiver could not read it, so that no caller waits forever
        for an answer.
        """
        frame = self._codec.encode(message)
        self._codec.decode(frame)
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
