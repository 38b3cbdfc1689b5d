"""The pipeline's sockets: Unix sockets in a directory that only this user may enter."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import zmq

from ..errors import ConfigError
from .messages import MAX_FRAME_BYTES

NAMES = ("tokenizer", "scheduler", "results", "worker", "detokenizer", "client")
_RANK = "-00"  # the sockets of ranks are called worker-1 and so on
_LONGEST_PATH = 100  # a Unix socket's address has room for 107 bytes
_HIGH_WATER = 10_000
_RECONNECT_MS = 20


class Endpoints:
    """The sockets' directory, mode 0700: `create` it in the parent, name it to the children, `remove` it at the end."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    @classmethod
    def create(cls) -> Endpoints:
        """Create a directory. Raises ConfigError if that fails or its path is too long for sockets."""
        try:
            directory = tempfile.mkdtemp(prefix="shoal-")
        except OSError as error:
            message = f"no directory for sockets can be made: {error}; TMPDIR can name another place"
            raise ConfigError(message, field="TMPDIR", value=os.environ.get("TMPDIR")) from error
        longest = max(len(os.fsencode(f"{directory}/{name}")) for name in NAMES) + len(_RANK)
        if longest > _LONGEST_PATH:
            os.rmdir(directory)
            message = f"TMPDIR is {tempfile.gettempdir()!r}: too long for Unix sockets, choose a shorter one"
            raise ConfigError(message, field="TMPDIR", value=longest, limit=_LONGEST_PATH)
        return cls(directory)

    def check(self) -> None:
        """Raise ConfigError unless the directory is this user's and no other user may enter it."""
        status = self.directory.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700:
            message = f"{str(self.directory)!r} must belong to this user with mode 0700"
            raise ConfigError(message, field="directory", value=oct(stat.S_IMODE(status.st_mode)), limit="0o700")

    def remove(self) -> None:
        """Remove the directory and its sockets; missing files are no error."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def pull(self, context: zmq.Context[Any], name: str) -> zmq.Socket[bytes]:
        """The socket that receives what is sent to `name`."""
        socket = _socket(context, zmq.PULL)
        socket.bind(self._address(name))
        return socket

    def push(self, context: zmq.Context[Any], name: str) -> zmq.Socket[bytes]:
        """A socket that sends to `name`, which need not listen yet."""
        socket = _socket(context, zmq.PUSH)
        socket.connect(self._address(name))
        return socket

    def _address(self, name: str) -> str:
        assert name.partition("-")[0] in NAMES
        return f"ipc://{self.directory}/{name}"


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
    if kind == zmq.PUSH:
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    return socket
