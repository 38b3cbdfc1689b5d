"""Traces of a worker by torch.profiler, for chrome://tracing and Perfetto."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from ..checks import PARAMETER
from ..errors import EngineError, InvalidRequestError
from ..request.trace_options import TraceOptions

logger = logging.getLogger(__name__)


def why_not_writable(folder: Path) -> str | None:
    """None when the folder, which is made where it is missing, can be written to; else the reason in words."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        return getattr(error, "strerror", None) or str(error)
    return None if os.access(folder, os.W_OK | os.X_OK) else "no permission"


class WorkerTrace:
    """At most one trace at a time. Everything happens in the thread that runs the forwards.

    Make it before torch is imported.
    """

    def __init__(self) -> None:
        self._profile: Any = None
        self._path = Path()
        self._left = 0
        self._count = 0
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch writes lines of its own between those of the log

    def start(self, options: TraceOptions) -> str:
        """Begin a trace; returns the path of its file.

        Raises InvalidRequestError when one is running, the folder can't be written to, or the machine has none of the
        activities; EngineError when the profiler does not start.
        """
        if self._profile is not None:
            raise InvalidRequestError(f"a profile is running already: {self._path}", field="start_profile")
        from torch import cuda
        from torch.profiler import ProfilerActivity, profile

        kinds = {"CPU": ProfilerActivity.CPU, "GPU": ProfilerActivity.CUDA}
        chosen = [kinds[name] for name in options.activities if name != "GPU" or cuda.is_available()]
        if not chosen:
            PARAMETER.refuse("activities", list(options.activities), "CPU: this machine has no GPU")
        folder = Path(options.output_dir)
        if (reason := why_not_writable(folder)) is not None:
            PARAMETER.refuse("output_dir", str(folder), f"a folder that the server can write to ({reason})")
        self._count += 1
        self._path = folder / f"shoal-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{self._count}.trace.json.gz"
        made = profile(activities=chosen, with_stack=options.with_stack, record_shapes=options.record_shapes)
        try:
            made.start()
        except RuntimeError as error:
            raise EngineError(f"the profiler does not start: {error}", field="start_profile") from error
        self._profile, self._left = made, options.num_steps
        logger.info("profile: %d steps at most, to %s", self._left, self._path)
        return str(self._path)

    def step(self) -> None:
        """Count a scheduling step; end the trace after its last one."""
        if self._profile is None:
            return
        self._left -= 1
        if self._left == 0:
            try:
                self.stop()
            except EngineError as error:
                logger.error("%s", error.message)

    def stop(self) -> str:
        """Write the trace; returns the path of its file. Takes seconds.

        Raises InvalidRequestError when none is running, EngineError when it can't be written.
        """
        if self._profile is None:
            last = f"; the last one went to {self._path}" if self._count else ""
            raise InvalidRequestError(f"no profile is running{last}", field="stop_profile")
        made, self._profile = self._profile, None
        try:
            made.stop()
            made.export_chrome_trace(str(self._path))
        except (OSError, RuntimeError) as error:
            raise EngineError(f"the profile can't be written to {self._path}: {error}", field="stop_profile") from error
        logger.info("profile: written to %s", self._path)
        return str(self._path)
