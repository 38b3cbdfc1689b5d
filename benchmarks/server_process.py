"""A server process of a benchmark, on a free port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx


class ServerProcess:
    """`python -m shoal.launch_server --model-path shop` with more flags; it logs warnings.

    Args:
        flags: of the server.
        log: file for what it logs; None: it goes where this process's goes.
        threads: of torch; None: as many as torch chooses.
    """

    def __init__(self, *flags: str, log: Path | None = None, threads: int | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        command = [sys.executable, "-m", "shoal.launch_server", "--model-path", "shop", "--port", str(self.port),
                   "--log-level", "warning", *flags]  # fmt: skip
        environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
        options: dict[str, Any] = {"env": environment}
        if log is None:
            self.process = subprocess.Popen(command, **options)
        else:
            with log.open("wb") as file:
                self.process = subprocess.Popen(command, stdout=file, stderr=file, **options)

    def wait_ready(self, seconds: float = 180.0) -> None:
        """Until /health says 200. SystemExit when it does not in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise SystemExit("a server did not get ready")

    def pids(self) -> dict[str, int]:
        """Its processes by role."""
        return httpx.get(f"{self.url}/server_info").json()["processes"]

    def forwards(self) -> int:
        """Forwards so far."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("shoal:forwards_total")))

    def stop(self) -> None:
        """SIGTERM, then wait; a log without a word is removed."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        if self._log is not None and self._log.exists() and not self._log.stat().st_size:
            self._log.unlink()
