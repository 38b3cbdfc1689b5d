"""Runs one process of the pipeline, which never outlives its parent.

Started by `Pipeline` as `python -m shoal.runtime.pipeline`. The parent writes one line of JSON (a `Spec`) to its
standard input and keeps that pipe open: when it closes, because the parent closed it or is gone, the process ends.
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

import msgspec

from ..errors import ShoalError
from ..logs import configure_logging
from .child import FAILED, SPARED_SIGNALS, Child, Spec
from .sockets import Endpoints

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_REMOVE_SECONDS = 1.0


def main() -> None:
    """Run the role that standard input names; exits with 0 when standard input closes, with 1 after a failure.

    Errors after standard input has closed don't count as failures: the sockets may be gone.
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
            logger.exception("the %s process failed", spec.name)
        child.failed(error)
        # Not sys.exit: threads of libraries may delay the interpreter's end.
        sys.stderr.flush()
        os._exit(FAILED)


def _run(child: Child) -> None:
    """Each role imports only what it needs: only the worker imports torch."""
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
    """Whether standard input has closed, even if the thread that waits for it has not noticed yet."""
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
