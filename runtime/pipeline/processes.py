"""The processes of a pipeline: starts them, notices when one ends, stops them all and cleans up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..birthplace import Birthplace
from ..config import EngineConfig
from ..cpu_tuning import limit_spinning
from .child import SPARED_SIGNALS, Spec
from .config import PipelineConfig
from .messages import ROLES, Role
from .sockets import Endpoints

logger = logging.getLogger(__name__)
_STOP_SECONDS = 2.0
_POLL_SECONDS = 0.1
_made: weakref.WeakSet[Pipeline] = weakref.WeakSet()


class Pipeline:
    """Child processes that talk over sockets in `endpoints`: one of each role, and the worker's other ranks.

    Start and stop it from the same thread, one that lives as long as it does: on Linux the children are killed when
    the thread that started them ends. A forked child can neither stop the processes nor keep them alive.

    Args:
        config, options: of the engine and of the pipeline; the model folder is resolved already.
        log_level, log_json: of the children, which log to standard error; as in ServerConfig.
    """

    def __init__(self, config: EngineConfig, options: PipelineConfig, log_level: str = "info", log_json: bool = False):
        self.endpoints = Endpoints.create()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._birthplace = Birthplace("pipeline")
        self._config = config
        self._options = options
        self._log = log_level, log_json
        _made.add(self)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name (see `process_name`)."""
        return {name: process.pid for name, process in self.processes.items()}

    def start(self) -> None:
        """Start all processes and return at once; `ended` reports one that fails to start."""
        command = [sys.executable, "-P", "-m", "shoal.runtime.pipeline"]
        ranks: list[tuple[Role, int]] = [("worker", rank) for rank in range(1, self._config.tp_size)]
        for role, rank in [*((role, 0) for role in ROLES), *ranks]:
            spec = Spec(role, str(self.endpoints.directory), os.getpid(), self._config, self._options, *self._log, rank)
            environment = _environment(self._config.tp_size)
            with _signals_held():
                process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=environment)
            self.processes[spec.name] = process
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(spec) + b"\n")

    async def ended(self) -> tuple[str, int]:
        """Wait until a process ends unexpectedly; returns its name and exit code."""
        while True:
            for name, process in self.processes.items():
                code = process.poll()
                if code is not None:
                    return name, code
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """End all processes, within seconds, and remove the sockets. May be called twice.

        A cancelled call kills them at once.
        """
        if not self._birthplace.is_here:
            return
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            while time.monotonic() < deadline and any(p.poll() is None for p in self.processes.values()):
                await asyncio.sleep(0.01)
        finally:
            self.kill()

    def kill(self) -> None:
        """End all processes at once, and remove the sockets."""
        if not self._birthplace.is_here:
            return
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self.endpoints.remove()

    def let_go(self) -> None:
        """In a forked child: close the inherited standard inputs, which would keep the processes alive."""
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()


def _let_go() -> None:
    for pipeline in list(_made):
        pipeline.let_go()


os.register_at_fork(after_in_child=_let_go)


def child_config(config: EngineConfig, folder: Path) -> EngineConfig:
    """The options for the children: the model is a folder."""
    return dataclasses.replace(config, model_path=str(folder))


def _environment(tp_size: int) -> dict[str, str]:
    """This process's, with this very package first on the path and limits on spinning and, per rank, on threads."""
    package = str(Path(__file__).absolute().parents[3])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    limit_spinning(environment)
    if tp_size > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // tp_size)))
    return environment


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block the signals that children ignore, so that none arrives before a child can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SPARED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"with code {code}"
    try:
        return f"by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
