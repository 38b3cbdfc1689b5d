"""`--dp-size N`: N servers of this machine behind sglang's router, started, watched and stopped as one."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from .runtime.checks import OPTION
from .runtime.config import EngineConfig
from .runtime.errors import ConfigError
from .runtime.http.config import ServerConfig
from .runtime.pipeline.config import PipelineConfig

logger = logging.getLogger(__name__)
RouterPolicy = Literal["cache_aware", "round_robin", "random", "power_of_two"]
EXIT_OK, EXIT_FAILED = 0, 1
_LOCAL = "127.0.0.1"
_POLL_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """Options of several servers behind a router. Raises ConfigError, naming the field, for values out of range.

    Attributes:
        dp_size: servers (replicas of the model) to start behind sglang's router, which takes `host` and `port`; each
            has `tp_size` GPUs of its own, or its share of the CPU's cores. Needs `pip install shoal[router]`.
        router_policy: how the router chooses a replica: `cache_aware` (one that has seen the prefix), `round_robin`,
            `random` or `power_of_two`.
    """

    dp_size: int = 1
    router_policy: RouterPolicy = "cache_aware"

    def __post_init__(self) -> None:
        OPTION.integer("dp_size", self.dp_size, 1, 256)
        OPTION.one_of("router_policy", self.router_policy, get_args(RouterPolicy))


def check_router() -> None:
    """Raise ConfigError where the router is not installed."""
    if importlib.util.find_spec("sglang_router") is None:
        message = "dp_size above 1 needs sglang's router: pip install 'shoal[router]'"
        raise ConfigError(message, field="dp_size", limit=1)


def flags_of(options: Mapping[str, Any]) -> list[str]:
    """Command-line flags for field values; keys are left out: they belong in the environment."""
    flags = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is None or name in ("api_key", "admin_api_key"):
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag}={value}")
    return flags


def changed(config: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from their defaults."""
    pairs = ((field.name, getattr(config, field.name), field.default) for field in fields(config))
    return {name: value for name, value, default in pairs if value != default}


class Replicas:
    """The servers, the router before them, and what keeps them running.

    A replica that ends is started again, after a pause that doubles up to a minute while it does not get ready; the
    router leaves it out meanwhile. When the router ends, everything does.

    Args:
        config: how many, and the router's policy.
        engine, pipeline, server: options of every replica; the router takes `server`'s host and port.
        gpus: of this machine; 0 on a CPU.

    Attributes:
        port: of the router.
    """

    def __init__(
        self, config: ReplicaConfig, engine: EngineConfig, pipeline: PipelineConfig, server: ServerConfig, gpus: int
    ):
        self._config, self._engine, self._server = config, engine, server
        self._own = {**changed(engine), **changed(pipeline), **changed(server)}
        self._gpus = gpus if engine.device != "cpu" else 0
        needed = config.dp_size * engine.tp_size + self._first_gpu
        if self._gpus and needed > self._gpus:
            asked = f"dp_size is {config.dp_size}; with tp_size {engine.tp_size}"
            message = f"{asked} it needs {needed} GPUs of {self._gpus}"
            raise ConfigError(
                message, field="dp_size", value=config.dp_size, limit=(self._gpus - self._first_gpu) // engine.tp_size
            )
        self.port = server.port or _free_port()
        self._ports = [_free_port() for _ in range(config.dp_size)]
        self._servers: list[subprocess.Popen[bytes] | None] = [None] * config.dp_size
        self._pauses = [_FIRST_PAUSE_S] * config.dp_size
        self._next_start = [0.0] * config.dp_size
        self._router: subprocess.Popen[bytes] | None = None
        self._stopping = False

    @property
    def urls(self) -> list[str]:
        """Addresses of the replicas."""
        return [f"http://{_LOCAL}:{port}" for port in self._ports]

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the router's end; the exit code of the process."""
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._stop)
        code = EXIT_OK
        try:
            while not self._stopping:
                self._start_missing()
                self._shorten_pauses()
                if self._router is None and all(map(self._is_ready, range(self._config.dp_size))):
                    self._router = self._start_router()
                if self._router is not None and self._router.poll() is not None:
                    logger.error("The router ended with code %d; all replicas stop", self._router.returncode)
                    code = EXIT_FAILED
                    break
                time.sleep(_POLL_S)
        finally:
            self._end()
        return code

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def command(self, number: int) -> list[str]:
        """The command line of a replica."""
        own = dict(self._own) | {"host": _LOCAL, "port": self._ports[number]}
        if self._gpus:
            own["device"] = f"cuda:{self._first_gpu + number * self._engine.tp_size}"
        return [sys.executable, "-m", "shoal.launch_server", *flags_of(own)]

    def environment(self) -> dict[str, str]:
        """Of a replica: keys, and its share of the cores."""
        keys = {"SHOAL_API_KEY": self._server.api_key, "SHOAL_ADMIN_API_KEY": self._server.admin_api_key}
        environment = {**os.environ, **{name: key for name, key in keys.items() if key is not None}}
        if not self._gpus:
            share = (os.cpu_count() or 1) // (self._config.dp_size * self._engine.tp_size)
            environment.setdefault("OMP_NUM_THREADS", str(max(1, share)))
        return environment

    @property
    def _first_gpu(self) -> int:
        return int(self._engine.device.partition(":")[2] or 0)

    def _start_missing(self) -> None:
        for number, process in enumerate(self._servers):
            if process is not None and process.poll() is None:
                continue
            now = time.monotonic()
            if process is not None:
                logger.error("Replica %d ended with code %d; it starts again", number, process.returncode)
                self._servers[number] = None
                self._next_start[number] = now + self._pauses[number]
                self._pauses[number] = min(2 * self._pauses[number], _LONGEST_PAUSE_S)
            elif now >= self._next_start[number]:
                self._servers[number] = _start(self.command(number), self.environment())
                logger.info("Replica %d starts at %s", number, self.urls[number])

    def _shorten_pauses(self) -> None:
        """After a replica that got ready the pause is short again."""
        for number, pause in enumerate(self._pauses):
            if pause > _FIRST_PAUSE_S and self._servers[number] is not None and self._is_ready(number):
                self._pauses[number] = _FIRST_PAUSE_S

    def _is_ready(self, number: int) -> bool:
        try:
            with urllib.request.urlopen(f"{self.urls[number]}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _start_router(self) -> subprocess.Popen[bytes]:
        server = self._server
        command = [
            sys.executable, "-m", "sglang_router.launch_router", "--host", server.host, "--port", str(self.port),
            "--policy", self._config.router_policy, "--worker-urls", *self.urls,
            "--prometheus-host", _LOCAL, "--prometheus-port", str(_free_port()),
            "--health-check-interval-secs", "2", "--health-failure-threshold", "1", "--health-success-threshold", "1",
        ]  # fmt: skip
        logger.info("All %d replicas are ready: the router starts on port %d", len(self._ports), self.port)
        return _start(command, dict(os.environ))

    def _end(self) -> None:
        processes = [process for process in (self._router, *self._servers) if process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + self._server.drain_timeout_s + _STOP_S
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def count_gpus() -> int:
    """GPUs that torch sees, asked in another process: this one needs no torch."""
    code = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    with contextlib.suppress(ValueError):
        return int(asked.stdout)
    return 0


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """In a child before it runs: SIGTERM when this process is gone, however it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOCAL, 0))
        return int(probe.getsockname()[1])
