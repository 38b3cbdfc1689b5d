"""A server whose processes are killed under load: errors for everybody at once, then an exit that says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from .process import ServerProcess

ROLES = ("tokenizer", "scheduler", "worker", "detokenizer")
CLIENTS = 16
LONG = {"input_ids": [5] * 8, "sampling_params": {"max_new_tokens": 512, "block_length": 8, "ignore_eos": True}}
FLAGS = ("--null-worker", "--null-tokens", "1", "--kv-cache-tokens", "16384", "--skip-warmup")


def children(pid: int) -> list[int]:
    """Direct children, in the order in which they were started."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def load(url: str, stream: bool, ends: list[Any]) -> None:
    """One request after the other until one does not end well; what it ended with, and when."""
    with httpx.Client(base_url=url, timeout=10) as client:
        while True:
            try:
                reply = client.post("/generate", json={**LONG, "stream": stream})
            except httpx.TransportError as error:
                ends.append((time.monotonic(), error))
                return
            if (
                reply.status_code != 200
                or '"error"' in reply.text
                or '"finish_reason":{"type":"length"' not in reply.text
            ):
                ends.append((time.monotonic(), reply))
                return


SLOW = [pytest.param(role, marks=pytest.mark.slow) for role in ("tokenizer", "detokenizer")]


@pytest.mark.parametrize("role", ["scheduler", "worker", *SLOW])
def test_kill_9_under_load(tmp_path, role):
    sockets = tmp_path / "t"
    sockets.mkdir()
    server = ServerProcess(tmp_path / "log", *FLAGS, environment={"TMPDIR": str(sockets)})
    server.wait_ready()
    pids = children(server.process.pid)
    assert len(pids) == len(ROLES)
    assert len(list(sockets.glob("shoal-*/*"))) >= len(ROLES)
    ends: list[Any] = []
    threads = [threading.Thread(target=load, args=(server.url, n % 2 == 0, ends), daemon=True) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert not ends
    killed = time.monotonic()
    os.kill(pids[ROLES.index(role)], signal.SIGKILL)
    statuses = set()
    while server.process.poll() is None and time.monotonic() < killed + 10:
        try:
            statuses.add(httpx.get(f"{server.url}/health", timeout=1).status_code)
        except httpx.TransportError:
            break
        time.sleep(0.01)
    code = server.process.wait(10)
    for thread in threads:
        thread.join(5)
    assert len(ends) == CLIENTS
    assert max(when for when, _ in ends) - killed < 5
    assert any(isinstance(end, httpx.Response) for _, end in ends)
    assert statuses <= {200, 503}
    assert code == 1
    assert f"the {role} process ended by signal SIGKILL" in server.log_text()
    assert list(sockets.glob("shoal-*")) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
