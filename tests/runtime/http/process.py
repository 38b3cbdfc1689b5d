"""A real server process on a port of its own choice, and a small HTTP client for it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from shoal.shop.task import PriceList

START_S = 180.0
SLOW_SAMPLING = {"max_new_tokens": 512, "steps": 512, "block_length": 8, "ignore_eos": True}
# Takes a minute: what is under way stays so until a test ends it.
SLOW = {"text": "red", "sampling_params": SLOW_SAMPLING, "cache_mode": "none"}
_LISTENING = re.compile(r"Listening on (http://127\.0\.0\.1:(\d+)),")


def free_port() -> int:
    """A TCP port that nobody listens on now. Somebody else may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """`python -m shoal.launch_server --model-path shop` with more flags; logs go to a file.

    Entering waits until it is ready; leaving stops it and checks that it went well.
    """

    def __init__(self, log: Path, *flags: str, environment: dict[str, str] | None = None, wait: bool = True,
                 has_stdin: bool = True):  # fmt: skip
        self.log = log
        self._wait = wait
        self._key = next((flags[i + 1] for i, f in enumerate(flags) if f == "--api-key"), None)
        command = [sys.executable, "-m", "shoal.launch_server", "--model-path", "shop", "--port", "0"]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        with log.open("wb") as file:
            before = None if has_stdin else functools.partial(os.close, 0)
            self.process = subprocess.Popen(
                [*command, *flags], stdout=file, stderr=file, env=variables, preexec_fn=before
            )

    def __enter__(self) -> ServerProcess:
        if self._wait:
            self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        code = self.stop()
        if error is None:
            assert code == 0, f"the server ended with {code}:\n{self.log_text()[-3000:]}"

    @functools.cached_property
    def url(self) -> str:
        """Its address, as soon as it listens."""
        found = wait_for(lambda: _LISTENING.search(self.log_text()) or self.process.poll() is not None, START_S)
        assert isinstance(found, re.Match), f"the server ended:\n{self.log_text()[-3000:]}"
        return found[1]

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.url.rpartition(":")[2])

    def pid_of(self, role: str) -> int:
        """The process id of one of its processes. Needs a server that is ready and has no key but an `--api-key`."""
        with self.client() as client:
            return client.get("/server_info").json()["processes"][role]

    @contextlib.contextmanager
    def worker_held(self) -> Iterator[None]:
        """The worker does nothing inside: what is sent to the server stays under way."""
        worker = self.pid_of("worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)

    def wait_ready(self) -> None:
        """Until /health says 200. Raises with the log's end when it does not in time."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=30).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(f"the server did not get ready:\n{self.log_text()[-3000:]}")

    def stop(self, timeout: float = 60.0) -> int:
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
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Until the condition holds; what it returned. A limit that is far off: how long it takes is no claim."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not after {seconds} s"
        time.sleep(0.02)
    return found


def wait_load(client: httpx.Client, count: int) -> None:
    """Until `count` requests run or wait."""
    wait_for(lambda: client.get("/get_load").json()[0]["num_reqs"] >= count)


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


def wait_idle(client: httpx.Client, seconds: float = 120.0, name: str = "shop") -> None:
    """Until nothing runs or waits and requests hold no page."""
    deadline = time.monotonic() + seconds
    held: Sequence[int] = ()
    while time.monotonic() < deadline:
        held = held_pages(client, name)
        if held == (0, 0):
            return
        time.sleep(0.05)
    raise AssertionError(f"{held[0]} pages are held and {held[1]} requests under way after {seconds} s")
