"""Renders templates of clients in a process of its own, with limits on time, memory and the text's length."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import InvalidRequestError

MAX_TEMPLATE = 65_536
"""Most characters of a client's template."""
RENDER_S = 2.0
"""Most seconds for all renderings of one conversation."""
MAX_TEXT = 4 << 20
_MEMORY = 512 << 20
_START_S = 60.0
_PIECE = 1 << 16
_PROGRAM = Path(__file__).with_name("sandbox_child.py")


class Sandbox:
    """Starts the process when it is first needed, and again after it was killed for a template without an end.

    Not for several threads at once. The process ends with this object, and when this process dies.

    Attributes:
        process: renders templates; None before the first one, and once it was stopped.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None

    def render(self, template: str, variables: Mapping[str, Any], deadline: float) -> str:
        """The text of a template.

        Args:
            template: Jinja source.
            variables: JSON's kinds only.
            deadline: `time.monotonic()` by which it must be done.

        Raises InvalidRequestError, with field `chat_template`, for a template that is broken, refuses its variables,
        or takes too much.
        """
        if len(template) > MAX_TEMPLATE:
            message = f"chat_template has {len(template)} characters; at most {MAX_TEMPLATE} are taken"
            raise _refusal(message, MAX_TEMPLATE)
        process = self._started()
        line = json.dumps({"template": template, "variables": variables}) + "\n"
        try:
            process.stdin.write(line.encode())  # type: ignore[union-attr]
            reply = json.loads(_line(_out(process), deadline))
        except (TimeoutError, OSError, ValueError) as error:
            self.close()
            if isinstance(error, TimeoutError):
                message = f"chat_template takes longer than {RENDER_S:g} seconds"
                raise _refusal(message, RENDER_S) from error
            raise _refusal("chat_template takes too much memory or time", None) from error
        if "text" in reply:
            return str(reply["text"])
        words = {"syntax": "can't be parsed", "refused": "refuses the messages"}
        said = words.get(reply["error"], "can't render the messages")
        raise _refusal(f"chat_template {said}: {reply['reason']}", "a Jinja template")

    def close(self) -> None:
        """End the process; the next template starts another one."""
        if self._end is not None:
            self._end()
            self.process = self._end = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            limits = [str(_MEMORY), str(int(RENDER_S) + 1), str(MAX_TEXT)]
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM), *limits], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, bufsize=0, env={},
            )  # fmt: skip
            self._end = weakref.finalize(self, _end, self.process, os.getpid())
            try:
                _line(_out(self.process), time.monotonic() + _START_S)
            except (TimeoutError, OSError) as error:
                self.close()
                message = "chat_template: the process that renders templates does not start here"
                raise _refusal(message, None) from error
        return self.process


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a process, but not from a fork of its owner."""
    if os.getpid() != owner:
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def _out(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _line(pipe: IO[bytes], deadline: float) -> bytes:
    """The next line. Raises TimeoutError, or OSError at the end of the pipe."""
    found = bytearray()
    while not found.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(pipe.fileno(), _PIECE)
        if not piece:
            raise OSError("the process ended")
        found += piece
    return bytes(found)


def _refusal(message: str, limit: Any) -> InvalidRequestError:
    return InvalidRequestError(message, field="chat_template", limit=limit)
