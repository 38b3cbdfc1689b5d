"""A real server process on a free port, and a small HTTP client for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from shoal.shop.task import PriceList

START_S = 90.0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """`python -m shoal.launch_server --model-path shop` with more flags; logs go to a file.

    Entering waits until it is ready; leaving stops it and checks that it went well.
    """

    def __init__(self, log: Path, *flags: str, environment: dict[str, str] | None = None, wait: bool = True):
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait = wait
        self._key = next((flags[i + 1] for i, f in enumerate(flags) if f == "--api-key"), None)
        command = [sys.executable, "-m", "shoal.launch_server", "--model-path", "shop", "--port", str(self.port)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with log.open("wb") as file:
            self.process = subprocess.Popen([*command, *flags], stdout=file, stderr=file, env=variables)

    def __enter__(self) -> ServerProcess:
        if self._wait:
            self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        code = self.stop()
        if error is None:
            assert code == 0, f"the server ended with {code}:\n{self.log_text()[-3000:]}"

    def wait_ready(self) -> None:
        """Until /health says 200. Raises with the log's end when it does not in time."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"the server did not get ready:\n{self.log_text()[-3000:]}")

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, and the exit code; SIGKILL when that takes too long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log_text(self) -> str:
        """Everything that the process logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client with the server's address, and its key if it has one."""
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)


def chat_text(prices: PriceList, question: str) -> str:
    """A question about a list as the chat template of `shop` renders it."""
    return f"<|system|>{prices.text}<|end|><|user|>{question}<|end|><|assistant|>"


def chat_messages(prices: PriceList, question: str) -> list[dict[str, str]]:
    """The same as messages."""
    return [{"role": "system", "content": prices.text}, {"role": "user", "content": question}]


def held_pages(client: httpx.Client, name: str = "shop") -> tuple[int, int]:
    """(pages of running requests, requests running or waiting), as the metrics have it."""
    values = metric_values(client)
    pages = values[f'shoal:pages{{held="requests",model_name="{name}",pool="kv"}}']
    load = client.get("/get_load").json()[0]
    return int(pages), load["num_reqs"]


def metric_values(client: httpx.Client) -> dict[str, float]:
    """The text exposition of /metrics as name with labels -> value."""
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def wait_idle(client: httpx.Client, seconds: float = 20.0, name: str = "shop") -> None:
    """Until nothing runs or waits and requests hold no page."""
    deadline = time.monotonic() + seconds
    held: Sequence[int] = ()
    while time.monotonic() < deadline:
        held = held_pages(client, name)
        if held == (0, 0):
            return
        time.sleep(0.05)
    raise AssertionError(f"{held[0]} pages are held and {held[1]} requests under way after {seconds} s")
